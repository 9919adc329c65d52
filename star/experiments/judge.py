"""N answers, one judge: who picks best, what a pool of models adds, and what a student learns from the judge's choice.

    python -m star.experiments.judge --seeds 11 12 13 --out runs/judge

    best-of  a generator from the middle of a run answers unseen sums 16 times; the judge, a vote, the likeliest and
             others pick one of 1, 2, 4, 8, 16, all from the same 16 answers (star/best_of)
    pool     the base alone against the base and a second model, at as many sampled answers
    star     STaR on what the verifier lets through, on the best of it by the judge, and on the judge's word alone

Every figure goes to results.jsonl below --out; what is there is not measured again, and runs that were stopped go on.
The runs of train.py for the last two are star/experiments/judge_runs; --task coin_flip is star/experiments/coins.
"""

import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import checkpoints
from checkpoints.files import read_json_if_there, write_atomically, write_json
from star.best_of import auc_within, best_of, majority, tied, weighted_majority
from star.config import StarConfig
from star.evaluate import Z, by_group, intervals, pass_at
from star.experiments import coins
from star.experiments.addition import FRESH, fresh
from star.experiments.judge_runs import JUDGE, SECOND, generator, percent, pool_part, star_part
from star.pool import Pool
from star.problem import Generation, Problem
from star.reward import Judge
from star.rollout import Rollout, result
from star.run.flags import Parser, command
from star.run.folder import Run, append, read_lines
from star.run.inputs import hashed
from star.run.others import fits, loaded, plan_judge
from star.run.plots import figure, save
from star.sampler import Sampler
from star.tasks.arithmetic import HELD_OUT, Arithmetic, lengths_of, split

PARTS = ("best-of", "pool", "star")
METHODS = {  # in the order of the table; all are expectations over the subsets of k of the N samples
    "random": "random", "majority": "majority", "likely": "most likely", "judge": "best by the judge",
    "weighted": "majority weighted by the judge", "oracle": "oracle: any of N right",
}
RIVALS = ("greedy", "majority", "likely")  # whom the judge must beat
BANDS = ("majority", "judge")  # the picture shows the intervals of these
Share = tuple[float, float, float]  # a share with the ends of its 95 % interval


def load_judge(folder: Path, task: Arithmetic) -> Judge:
    """The judge in this folder, as train.py --reward would use it. ValueError if it cannot read the task."""
    config, device = StarConfig(reward=str(folder)), torch.device("cpu")
    judge = plan_judge(folder, config, device)
    for note in fits(judge, task):
        print(f"note    {note}")
    return loaded(judge, config, device)


def same_as_before(out: Path, settings: dict) -> None:
    """Write down what the figures in a folder are made with. ValueError if what is there was made with something else.
    """
    file = out / "settings.json"
    before = read_json_if_there(file)
    for name in settings.keys() & before.keys():
        if settings[name] != before[name]:
            raise ValueError(f"the figures in {out} were made with {name} {before[name]}, now it is {settings[name]}: "
                             "give another --out")
    write_json(file, before | settings)


def answers(run: Run, iteration: int, problems: Sequence[Problem], task: Arithmetic, judge: Judge, samples: int
            ) -> tuple[list[Generation], list[Generation]]:
    """(one greedy answer a problem, `samples` answers a problem at temperature 1 with the judge's scores)."""
    model = checkpoints.load_model(run.config.model or checkpoints.SHIPPED)
    checkpoints.load_adapter(model, run.adapter(iteration))
    tokenizer = checkpoints.load_tokenizer(model.source.path)
    config = StarConfig(seed=run.config.seed, eval_samples=samples, temperature=1.0)
    rollout = Rollout(Sampler(model, 512, 20 + task.max_new_tokens, tokenizer), tokenizer, task, config)
    greedy = rollout.complete(iteration, "evaluate", problems)
    tries = rollout.complete(iteration, "pass at k", problems)
    return greedy, result(Pool(judge=lambda: judge).score(rollout, iteration, tries, problems))


def reward(g: Generation) -> float:
    """What the judge ranks by; an answer that it did not rate, since it was cut off, comes last."""
    return -math.inf if g.reward is None else g.reward


def chances(tries: Sequence[Generation], k: int) -> dict[str, float]:
    """method -> probability that it picks a right one of k of these answers to one problem.

    "likely" goes by the mean log-probability of a token. "weighted": an answer weighs exp(its reward), so that a point
    of reward is worth e votes.
    """
    right = [g.verdict == "right" for g in tries]
    said = [g.answer if g.verdict in ("right", "wrong") else None for g in tries]
    rewards, n = [reward(g) for g in tries], len(tries)
    best = max(rewards)
    weights = [math.exp(r - best) if r > -math.inf else 0.0 for r in rewards]
    return {
        "random": pass_at(1, sum(right), n), "majority": majority(said, right, k),
        "likely": best_of([g.logprob / max(len(g.tokens), 1) for g in tries], right, k),
        "judge": best_of(rewards, right, k), "weighted": weighted_majority(said, weights, right, k),
        "oracle": pass_at(k, sum(right), n),
    }


def shares(problems: Sequence[Problem], value: dict[str, float]) -> dict[str, Share]:
    """group -> mean and its interval, and "mean" over the groups."""
    ends = intervals(problems, value)
    return {group: (mean, *ends[group]) for group, (mean, _) in by_group(problems, value).items()}


def differences(problems: Sequence[Problem], a: dict[str, float], b: dict[str, float]) -> dict[str, Share]:
    """group -> mean of a - b over its problems, and its 95 % interval (normal). Both answer the same problems: this
    sees smaller differences than their two intervals do."""
    found = {}
    for group in dict.fromkeys(p.group for p in problems):
        each = torch.tensor([a[p.id] - b[p.id] for p in problems if p.group == group], dtype=torch.float64)
        mean, half = each.mean().item(), Z * each.std(correction=0).item() / len(each) ** 0.5
        found[group] = (mean, mean - half, mean + half)
    return found


def agreement(problems: Sequence[Problem], of: dict[str, list[Generation]], labels: Sequence[str]) -> dict[str, dict]:
    """group -> {"reward": AUC within a problem, and of each attribute and of the likelihood; "problems": how many have
    right and wrong answers; "ties": share of all whose best reward different answers have}."""
    found = {}
    for group in dict.fromkeys(p.group for p in problems):
        tries = [of[p.id] for p in problems if p.group == group]
        values = {label: lambda g, label=label: (g.scores or {}).get(label, -math.inf) for label in labels}
        values |= {"reward": reward, "likelihood": lambda g: g.logprob / max(len(g.tokens), 1)}
        both = sum(len({g.verdict == "right" for g in one}) == 2 for one in tries)
        auc = {name: auc_within([(value(g), g.verdict == "right") for g in one] for one in tries)
               for name, value in values.items() if both}
        ties = [tied([reward(g) for g in one], [g.answer for g in one]) for one in tries]
        found[group] = {"auc": auc, "problems": both, "ties": sum(ties) / len(ties)}
    return found


def measure(problems: Sequence[Problem], greedy: Iterable[Generation], tries: Iterable[Generation],
            labels: Sequence[str]) -> dict:
    """What one seed's answers are worth, by group: a line of results.jsonl."""
    of: dict[str, list[Generation]] = {p.id: [] for p in problems}
    for g in tries:
        of[g.problem].append(g)
    n, first = len(of[problems[0].id]), {g.problem: float(g.verdict == "right") for g in greedy}
    methods: dict[str, dict[str, dict[str, Share]]] = {name: {} for name in METHODS}
    above: dict[str, dict[str, dict[str, Share]]] = {name: {} for name in RIVALS}
    for k in sorted({*(2**i for i in range(n.bit_length())), n}):
        each = {p: chances(one, k) for p, one in of.items()}
        value = {name: {p: values[name] for p, values in each.items()} for name in METHODS} | {"greedy": first}
        for name in METHODS:
            methods[name][str(k)] = shares(problems, value[name])
        for name in RIVALS:
            above[name][str(k)] = differences(problems, value["judge"], value[name])
    return {"greedy": shares(problems, first), "methods": methods, "above": above,
            "agreement": agreement(problems, of, labels)}


def unseen(n: int) -> list[Problem]:
    """Sums of n digits that no generator was trained on: those held out, then fresh ones, where there are any."""
    return split(n)[1] + (fresh(n) if n > 2 else [])


def best_of_part(out: Path, args: Namespace, judge: Judge) -> int:
    """Measure each seed, print the table and what it says, draw. Exit code of a generator's run that failed, else 0."""
    task = Arithmetic(lengths_of(args.digits))
    problems = [p for n in lengths_of(args.digits) for p in unseen(n)[: args.problems]]
    records = {}
    for seed in args.seeds:
        key = {"part": "best-of", "seed": seed}
        done = [r for r in read_lines(out / "results.jsonl") if key.items() <= r.items()]
        if not done:
            code, folder = generator(out, seed, args.iterations)
            if code:
                return code
            print(f"\nseed {seed}: {args.samples} answers to each of {len(problems)} sums", flush=True)
            greedy, tries = answers(Run.open(folder), args.iterations, problems, task, judge, args.samples)
            text = "".join(json.dumps(asdict(g)) + "\n" for g in [*greedy, *tries])
            write_atomically(out / f"answers-{seed}.jsonl", text.encode())
            done = [key | measure(problems, greedy, tries, judge.labels)]
            append(out / "results.jsonl", done)
        records[seed] = done[-1]
    print("\n" + "\n".join([*table(records), "", *said(records)]), flush=True)
    try:
        draw(out / "best-of.png", records)
    except ImportError as e:
        print(f"note: {e}", file=sys.stderr)
    return 0


def table(records: dict[int, dict]) -> list[str]:
    """Markdown, a table a length: each seed's share of right picks in %, with its interval, by method and N."""
    lines = []
    first = next(iter(records.values()))
    ks = list(first["methods"]["judge"])
    for group in first["agreement"]:
        lines += ["", f"| {group}: right, % (95 %) | seed | " + " | ".join(f"N = {k}" for k in ks) + " |",
                  "|---" * (2 + len(ks)) + "|"]
        lines += [f"| greedy | {seed} | {percent(*r['greedy'][group])} |" + " |" * (len(ks) - 1)
                  for seed, r in records.items()]
        for name, words in METHODS.items():
            lines += [f"| {words} | {seed} | " + " | ".join(percent(*r["methods"][name][k][group]) for k in ks) + " |"
                      for seed, r in records.items()]
    return lines[1:]


def said(records: dict[int, dict]) -> list[str]:
    """What the table says of the judge: does it beat the others beyond their intervals, and how far does it go?"""
    lines = []
    for seed, r in records.items():
        k = max((k for k in r["methods"]["judge"] if int(k) <= 8), key=int)
        for group, found in r["agreement"].items():
            at = {name: values[k][group] for name, values in r["methods"].items()} | {"greedy": r["greedy"][group]}
            apart = [name for name in RIVALS if at["judge"][1] > at[name][2]]
            above = [f"{name} ({100 * at[name][0]:.1f}) by {points(r['above'][name][k][group])}" for name in RIVALS]
            way = at["oracle"][0] - at["greedy"][0]
            far = f"{(at['judge'][0] - at['greedy'][0]) / way:.0%}" if way > 0 else "no way"
            auc = {name: f"{v:.3f} ({low:.3f}-{high:.3f})" for name, (v, low, high) in found["auc"].items()}
            lines.append(
                f"seed {seed}, {group}: the judge's best of {k} is {percent(*at['judge'])}, above {', '.join(above)}; "
                f"intervals apart from {', '.join(apart) or 'none'}; {far} of the way from greedy to any of {k} right "
                f"({100 * at['oracle'][0]:.1f}); AUC within a problem "
                f"{auc.get('reward')}, of the likelihood {auc.get('likelihood')}, over {found['problems']} that have "
                f"right and wrong answers; ties {found['ties']:.1%}")
    return lines


def points(difference: Share) -> str:
    """ "+8.5 (+3.1 to +13.9)": of percent."""
    value, low, high = (f"{100 * v:+.1f}" for v in difference)
    return f"{value} ({low} to {high})"


def draw(path: Path, records: dict[int, dict]) -> None:
    """Right picks over N, one picture a length: the mean over seeds; bands from the lowest to the highest end of the
    seeds' intervals (the seeds share their problems, so that these are not independent)."""
    first = next(iter(records.values()))
    groups, ks = list(first["agreement"]), list(first["methods"]["judge"])
    places = [math.log2(int(k)) for k in ks]
    drawing = figure(6 * len(groups))
    for axes, group in zip(drawing.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        for i, (name, words) in enumerate(METHODS.items()):
            values = [[r["methods"][name][k][group] for r in records.values()] for k in ks]
            mean = [100 * sum(v for v, _, _ in seeds) / len(seeds) for seeds in values]
            style = {"color": "black", "linestyle": ":"} if name == "oracle" else {"color": f"C{i}", "marker": "o"}
            axes.plot(places, mean, label=words, markersize=4, **style)
            if name in BANDS:
                axes.fill_between(places, [100 * min(low for _, low, _ in seeds) for seeds in values],
                                  [100 * max(high for _, _, high in seeds) for seeds in values],
                                  color=f"C{i}", alpha=0.15, linewidth=0)
        greedy = [r["greedy"][group][0] for r in records.values()]
        axes.axhline(100 * sum(greedy) / len(greedy), color="grey", linestyle="--", label="greedy")
        axes.set(title=f"{group} sums, seeds {', '.join(map(str, records))}", xlabel="N", ylabel="right, %")
        axes.set_xticks(places, ks)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(drawing, path)


def chosen_parts(text: str) -> list[str]:
    """Of "best-of,star" the parts, in their order. ValueError for others."""
    names = [name.strip() for name in text.split(",")]
    odd = [name for name in names if name not in PARTS]
    if odd:
        raise ValueError(f"--parts names {odd[0]!r}; the parts are {', '.join(PARTS)}")
    return [part for part in PARTS if part in names]


@command
def main(argv: list[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--task", choices=("arithmetic", "coin_flip"), default="arithmetic")
    parser.add_argument("--model", type=Path, help="of --task coin_flip: folder of a real language model")
    parser.add_argument("--data", type=Path, help="of --task coin_flip: folder with coin_flip.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13], help="[11 12 13]")
    parser.add_argument("--out", type=Path, help="folder of the runs and figures [runs/judge]")
    parser.add_argument("--reward", type=Path, default=JUDGE, help="folder of the judge [the one that ships]")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, separated by commas [all]")
    parser.add_argument("--iterations", type=int, default=3, help="of the runs, and of the generator's [3]")
    parser.add_argument("--samples", type=int, default=16, help="answers a sum: the largest N [16]")
    parser.add_argument("--digits", default="4-5", help="lengths of the sums [4-5]")
    parser.add_argument("--problems", type=int, default=200, help="sums a length: 200 held out, then fresh ones [200]")
    args = parser.parse_args(argv)
    for name, most in (("iterations", 100), ("samples", 1024), ("problems", HELD_OUT + FRESH)):
        if not 1 <= getattr(args, name) <= most:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be from 1 to {most}")
    args.seeds, parts = list(dict.fromkeys(args.seeds)), chosen_parts(args.parts)
    if args.task == "coin_flip":
        return coins.run(args.out or Path("runs/judge-coins"), args.model, args.data, args.seeds, args.iterations)
    if args.model is not None or args.data is not None:
        raise ValueError("--model and --data belong to --task coin_flip: sums are asked of the model that ships")
    out, made_with = args.out or Path("runs/judge"), {"--iterations": args.iterations}
    if "best-of" in parts:
        lengths_of(args.digits)
        made_with |= {"--samples": args.samples, "--digits": args.digits, "--problems": args.problems}
    if {"best-of", "star"} & set(parts):
        judge = load_judge(args.reward, Arithmetic(range(1, 6)))  # refused now, not in ten minutes
        made_with |= {"a judge of hash": hashed(args.reward)}
    if "pool" in parts:
        if not SECOND.is_dir():
            raise FileNotFoundError(f"no second model in {SECOND}: leave out its part by --parts best-of,star")
        made_with |= {"a second model of hash": hashed(SECOND)}
    out.mkdir(parents=True, exist_ok=True)
    same_as_before(out, made_with)
    code = best_of_part(out, args, judge) if "best-of" in parts else 0
    if not code and "pool" in parts:
        code = pool_part(out, args.seeds, args.iterations)
    if not code and "star" in parts:
        code = star_part(out, args.seeds, args.iterations, args.reward)
    return code


if __name__ == "__main__":
    sys.exit(main())
