"""A run in words for people: a bar for each phase on stderr; on stdout a line an iteration, and what it looked like.

It is shown the loop's events and what the run folder made of them, and keeps nothing that the folder does not have.
"""

import sys
from collections.abc import Iterable

from tqdm import tqdm

from star.evaluate import VERDICTS
from star.problem import STUDENT, Chunk, Event, Finished, Generation, Note, Phase, Scored, Step, Tick
from star.run.diagnosis import cause, notes
from star.run.folder import Run, read_lines
from star.run.history import clip
from star.run.measured import measured
from star.run.plan import Plan
from star.run.rates import mean_use
from star.run.work import Forecast, duration
from star.tasks import ask


class Progress:
    """Shows events as they come. show: rationales an iteration."""

    def __init__(self, plan: Plan, show: int = 3, given: Iterable[Generation] = ()):
        """given: what a resumed run had already made of its iteration."""
        self.plan, self.show_most, self.bar = plan, show, None
        newest = max((g.iteration for g in given), default=0)  # --keep all gives those before, too
        self.seen = [g for g in given if g.iteration == newest and g.phase in ("generate", "rationalize")]
        self.groups = [*dict.fromkeys(p.group or "all" for p in plan.task.heldout)]
        self.groups += ["mean"] if len(self.groups) > 1 else []
        self.open = not plan.task.heldout[0].answer  # then there is nothing but a judge to go by
        self.groups = ["reward"] if self.open else self.groups
        self.forecast, self.paced, self.validates = Forecast(plan.work), False, plan.config.validation > 0
        self.checks_steps = ask(plan.task, "check_steps", plan.task.train[0], "") is not None
        accuracy = "".join(f" {clip(g, 7):>7}" for g in self.groups) + (f" {'valid.':>7}" if self.validates else "")
        width = 8 * (len(self.groups) + self.validates)
        held = "held out" if self.open else "held-out accuracy, %" if width >= 20 else "right, %"
        reasons = " ".join(f"{v:>5}" for v in VERDICTS if v != "right" and (v != "open" or self.open))
        self.blank = " " * len(reasons)  # where nothing was tried
        print(f"{'':4}{held:{width}} | {'examples from':18} | {'wrong':>9} | {'dropped problems':{len(reasons)}} | "
              f"{'':7} | {'% of device':13}")
        print(f"{'it':>2}  {accuracy} | {'kept':>5} {'rationalized':>12} | {'steps':>9} | {reasons} | "
              f"{'tok/s':>7} | {'sample':>6} {'train':>6} | {'s':>6} | {'left':>7}", flush=True)

    def show(self, event: Event, run: Run) -> None:
        if isinstance(event, Tick | Step):
            self.bar.update()
        elif isinstance(event, Note):
            tqdm.write(f"note    {event.text}", file=sys.stderr)
        elif isinstance(event, Phase):
            self.pace(run)
            self.close()
            unit = "step" if event.name == "train" else "problem"
            who = "" if event.source == STUDENT else f" ({clip(event.source, 24)})"
            self.bar = tqdm(total=event.total, desc=f"{event.iteration}: {event.name}{who}", unit=unit, leave=False,
                            disable=None)  # None: where it is no terminal a log would fill with it
        elif isinstance(event, Chunk):
            self.seen += [g for g in event.generations if g.phase in ("generate", "rationalize")]
            self.pace(run)
        elif isinstance(event, Scored):
            known = {g.key: g for g in event.generations}
            self.seen = [known.get(g.key, g) for g in self.seen]
        elif isinstance(event, Finished):
            self.close()
            self.row(event.metrics, run.timings)
            print("".join(f"      {line}\n" for line in [*sources(event.metrics), *agreement(event.metrics)]), end="")
            print("".join(f"{line}\n" for line in notes(run.metrics(), self.plan)), end="", flush=True)
            if "kept" in event.metrics and self.show_most:
                print("\n".join([*keep_rate(event.metrics), *examples(self.seen, self.show_most), ""]), flush=True)
            self.seen = []

    def pace(self, run: Run) -> None:
        """After the first chunk: how fast it goes, and what that makes of the whole."""
        tokens, rows, seconds = run.clock.sampled()
        if self.paced or not rows:
            return
        self.paced = True
        rest = (sum(self.plan.work.sampled) - rows) * seconds / rows
        tqdm.write(f"pace    {tokens / seconds:,.0f} tokens/s, {tokens / rows:.1f} tokens a rationale: at most "
                   f"{duration(rest)} of sampling ahead, training not counted yet", file=sys.stderr)

    def row(self, m: dict, timings: dict | None) -> None:
        """The line of an iteration."""
        cells = [m.get("reward", {}).get("mean")] if self.open else [m.get("accuracy", {}).get(g) for g in self.groups]
        cells += [m.get("validation", {}).get("mean")] if self.validates else []
        unit, digits = (1, 3) if self.open else (100, 1)
        shown = ("" if c is None else f"{unit * c:.{digits}f}" for c in cells)
        line = f"{m['iteration']:>2}  " + "".join(f" {cell:>7}" for cell in shown)
        if "kept" in m:
            wrong = f"{m['kept_wrong_steps']} + {m['rationalized_wrong_steps']}" if self.checks_steps else "unchecked"
            line += f" | {m['kept']:5} {m['rationalized']:12} | {wrong:>9} | "
            line += " ".join(f"{n:{max(5, len(v))}}" for v, n in m["dropped"].items())
        else:
            what = f"({m['examples']} given)" if m["iteration"] else "(base)"
            line += f" | {what:18} | {'':9} | {self.blank}"
        if timings:
            rationales = self.plan.work.sampled[m["iteration"]]
            self.forecast.add(timings["seconds"], rationales, m.get("steps", 0))
            sampling, training = self.forecast.left(m["iteration"])
            left = "" if training is None else duration(sampling + training)
            line += (f" | {timings['sampled_tokens_per_s']:7,} | {nearest(timings.get('use', {}))} | "
                     f"{sum(timings['seconds'].values()):6.1f} | {left:>7}")
        print(line, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def nearest(use: dict) -> str:
    """"  41 c     55": sampling is nearer to the limit of computing than to that of memory (m), at 41 %; training 55 %.

    Blank for what was not done, or not measured.
    """
    cells = ["", ""]
    if "sampling" in use:
        most, letter = max((use["sampling"]["matmul"], "c"), (use["sampling"]["bandwidth"], "m"))
        cells[0] = f"{100 * most:.0f} {letter}"
    if "training" in use:
        cells[1] = f"{100 * use['training']['matmul']:.0f}"
    return " ".join(f"{cell:>6}" for cell in cells)


def used(timings: list[dict]) -> list[str]:
    """How fast each phase was, and how near to what the device can do; [] where that was not measured."""
    laps, parts = [t.get("use", {}) for t in timings], []
    for phase, use in mean_use(laps).items():
        shares = [f"{use['matmul']:.0%} of the device's matmul rate"]
        shares += [f"{use['bandwidth']:.0%} of its bandwidth"] if "bandwidth" in use else []
        parts.append(f"{phase} {use['tokens'] / use['seconds']:,.0f} tokens/s: {', '.join(shares)}")
    each = "each rank: " if any("ranks" in t for t in timings) else ""
    return [f"used    {each}{'; '.join(parts)}"] if parts else []


def sources(m: dict) -> list[str]:
    """A line a source: how many of its answers were right, let through by --select, and are trained on."""
    said = m.get("sources", {})
    width = max((len(clip(name, 24)) for name in said), default=0)
    lines = []
    for name, s in said.items():
        of = [f"{s[key]} {what}" for key, what in (("chosen_hinted", "with the hint"), ("chosen_wrong", "not right"))
              if s[key] and not (what == "not right" and m["dropped"].get("open"))]
        some = f" ({', '.join(of)})" if of else ""
        reward = f", mean reward {s['reward']:.2f}" if s["reward"] is not None else ""
        lines.append(f"{clip(name, 24):{width}}  {s['tried']:6} tried {s['right']:6} right {s['kept']:6} let through "
                     f"{s['chosen']:6} chosen{some}{reward}")
    return lines


def agreement(m: dict) -> list[str]:
    """How far the judge can be trusted: its agreement with the verifier, by the total and by each attribute."""
    judge = m.get("judge")
    if judge is None or not m.get("accuracy"):
        return []
    more = f"; {judge['unscored']} without a score" if judge["unscored"] else ""
    if not judge["auc"]:
        return [f"judge and verifier cannot be compared: no problem has both right and wrong answers{more}"]
    (value, low, high), by = judge["auc"], judge["by_attribute"]
    parts = ", ".join(f"{clip(name, 16)} {a:.2f}" for name, (a, *_) in by.items()) if len(by) > 1 else ""
    return [f"judge and verifier agree with AUC {value:.2f} ({low:.2f}-{high:.2f}) in the {judge['problems']} problems "
            f"with right and wrong answers; ties {judge['ties']:.0%}{more}" + (f" [{parts}]" if parts else "")]


def keep_rate(m: dict) -> list[str]:
    """How much there was to learn from."""
    cut = m["truncated"] / max(m["tries"], 1)
    if m["dropped"].get("open"):
        return [f"      {m['examples']} answers to {m['problems']} problems are trained on; tries: {m['mean_tokens']} "
                f"tokens, {cut:.1%} cut off"]
    tries = f"; tries without a hint: {m['mean_tokens']} tokens, {cut:.1%} cut off" if m["tries"] else ""
    keep = f"{m['distinct']} different rationales to keep"
    if left_out := m.get("degenerate", {}).get("left_out"):
        keep += f"; {left_out} left out by --drop-degenerate"
    if "sources" in m:  # then these are not all that is trained on
        keep = f"{m['distinct']} different right rationales, {m['examples']} answers trained on"
    return [f"      {m['solved']} of {m['problems']} problems solved ({m['solved'] / m['problems']:.1%}), "
            f"{m['rationalized_problems']} of them only with the hint; {keep}{tries}"]


def examples(seen: list[Generation], most: int) -> list[str]:
    """Some of the rationales with their verdicts: each kind once, if it came."""
    kinds: dict[str, list[Generation]] = {}
    for g in seen:
        hinted = g.phase == "rationalize"
        kind = ("rationalized" if hinted else "kept") if g.kept else f"{g.verdict}, hinted" if hinted else g.verdict
        kinds.setdefault(kind, []).append(g)
    order = sorted(kinds, key=lambda k: (k != "kept", k != "rationalized", -len(kinds[k])))
    from_middle = {kind: found[len(found) // 2 :] + found[: len(found) // 2] for kind, found in kinds.items()}
    picked = [(kind, from_middle[kind][i]) for i in range(most) for kind in order if i < len(from_middle[kind])]
    return [f"      {kind:16} {clip(g.problem, 60)}{whose(g)}: "
            f"{clip(' / '.join(g.text.strip().split(chr(10))), 120)}"
            for kind, g in picked[:most]]


def whose(g: Generation) -> str:
    """Who wrote it, if not the student, and its reward, if it has one."""
    parts = [] if g.source == STUDENT else [clip(g.source, 24)]
    parts += [] if g.reward is None else [f"reward {g.reward:.2f}"]
    return f" ({', '.join(parts)})" if parts else ""


def weak(metrics: dict, plan: Plan) -> str:
    """The paper's condition for a start (section 6), where the base's few-shot accuracy does not meet it; else "".

    With the likely cause, where most of what it said is not even an answer.
    """
    task = plan.task
    if "interval" not in metrics or metrics["interval"]["mean"][0] > task.chance:
        return ""
    share, chance = metrics["accuracy"]["mean"], f" ({task.chance:.1%} by guessing)" if task.chance else ""
    said = metrics["said"]
    mute = 2 * (said["unparsed"] + said["length"]) > sum(said.values())
    return (f"note    the base solves {share:.1%} of the held-out problems{chance}: not surely more than chance. The "
            "paper's remark (section 6): STaR starts only where few-shot accuracy is above chance; GPT-2 could not "
            "learn arithmetic so\n" + (f"likely  {cause(said, plan)}\n" if mute else ""))


def summary(run: Run, price: float | None) -> list[str]:
    """At the end: which iteration is the best, and what all of them took."""
    path = run.folder / "timings.jsonl"
    metrics, timings = run.metrics(), measured(read_lines(path), path)
    lines, best = [], metrics[-1].get("best", metrics[-1]["iteration"])
    chosen = next(m for m in metrics if m["iteration"] == best)
    if "reward" in chosen:
        why = "best on validation" if "best" in chosen else "the last"
        lines.append(f"result  iteration {best} ({why}): mean reward {chosen['reward']['mean']:.3f} of held-out "
                     f"answers; the base {metrics[0]['reward']['mean']:.3f}")
    if "accuracy" in chosen:
        low, high = chosen["interval"]["mean"]
        why = "best on validation" if "best" in chosen else "the last"
        lines.append(f"result  iteration {best} ({why}): {chosen['accuracy']['mean']:.1%} of the held-out problems, "
                     f"95 % interval {low:.1%} to {high:.1%}; the base {metrics[0]['accuracy']['mean']:.1%}")
        for name in (name for name in ("pass_at", "maj_at") if name in chosen):
            shares = ", ".join(f"{v:.1%} @{k}" for k, v in chosen[name].items())
            lines.append(f"{name.removesuffix('_at'):7} {shares}")
    hours = sum(sum(t["seconds"].values()) * t.get("ranks", 1) for t in timings) / 3600
    sampled, trained = (sum(t["tokens"].get(kind, 0) for t in timings) for kind in ("sampled", "trained"))
    money = f"; {hours * price:.2f} at {price:g} an hour" if price is not None else ""
    return [*lines, *used(timings), f"spent   {hours:.3f} device-hours; {sampled:,} tokens sampled, "
            f"{trained:,} trained on{money}"]
