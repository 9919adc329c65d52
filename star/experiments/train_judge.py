"""python -m star.experiments.train_judge --base DIR --data FILE --out DIR: a judge from rated answers or from pairs.

A head (one number, or one an attribute) is put on the base, with adapters underneath, and trained; the folder that
comes out is read by --reward, and by transformers' AutoModelForSequenceClassification with equal scores. FILE is JSON
Lines of one of these forms, told apart by their fields:

    {"prompt", "response", "helpfulness": 3, "correctness": 4, ...}      ratings, as in HelpSteer; any may be missing
    {"prompt", "chosen", "rejected"[, "margin": 2]}                      pairs
    {"prompt", "response_1", "response_2", "preference_strength": -2}    pairs, as in HelpSteer2; below 0: the first

Printed are, on rows held out by their prompt, the correlation with each rating and the share of pairs in right order.
"""

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import checkpoints
from checkpoints.reward import pad_of
from star.device import choose_device, choose_dtype
from star.judge import Preferred, Rated, correlation, new_judge, pairs_right, score_items, train_judge
from star.prompts import unknown
from star.reward import ATTRIBUTES, FORMATS, Judge, RewardModel, choose_weights, is_score
from star.run.flags import Parser, command
from star.run.models import load_tokenizer
from star.tasks.records import Record, field, read_records

MISSING = -100  # what NVIDIA's own files write where there is no rating
ADVICE = "rows are {prompt, response, ratings}, {prompt, chosen, rejected} or {prompt, response_1, response_2, " \
         "preference_strength}"
KINDS = {"chosen": ("chosen", "rejected"), "response_1": ("response_1", "response_2"), "response": ("response",)}


def kind_of(record: Record) -> str:
    """Which of KINDS a record is. ValueError names the line."""
    kind = next((k for k in KINDS if k in record[1]), None)
    if kind is None:
        field(record, "response", ADVICE)
    return kind


def words(record: Record, name: str) -> str:
    value = field(record, name, ADVICE)
    if not isinstance(value, str):
        raise ValueError(f"{record[0]}: field {name!r} is of type {type(value).__name__}; it must be text")
    return value


def number(record: Record, name: str) -> float | None:
    """A rating; None where there is none. ValueError names the line."""
    value = record[1].get(name)
    if value is None or value == MISSING:
        return None
    if not is_score(value):
        raise ValueError(f"{record[0]}: {name!r} is {value!r}; it must be a finite number, or null where it is missing")
    return float(value)


def labels_of(records: Sequence[Record], kind: str, given: str | None) -> list[str]:
    """What the judge rates: the names given, else the attributes (or all numbers) that the rows hold; of pairs one."""
    if kind != "response":
        names = (given or "reward").split(",")
        if len(names) > 1:
            raise ValueError(f"--labels {given}: pairs say only which answer is better: give one label")
        return names
    there = {k: None for _, r in records for k, v in r.items() if type(v) in (int, float) and v != MISSING}
    names = given.split(",") if given else [a for a in ATTRIBUTES if a in there]
    if absent := [n for n in names if n not in there]:
        raise ValueError(f"--labels {given}: no row has a number called {absent[0]!r}; there is "
                         f"{', '.join(there) or 'none at all'}")
    if not names:
        raise ValueError(f"{records[0][0]}: there are responses but no ratings by HelpSteer's names; --labels names "
                         f"others, of {', '.join(there) or 'none at all'}")
    if len(set(names)) < len(names):
        raise ValueError(f"--labels {given} names a label twice")
    return names


def prompts_apart(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held out): about this share of the prompts, all rows of a prompt on one side."""
    prompts = sorted({words(r, "prompt") for r in records})
    if len(prompts) < 2:
        raise ValueError(f"--heldout {share}: all rows have one prompt, so none can be held out: give a file")
    n = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    held = set(random.Random(seed).sample(prompts, n))
    return [r for r in records if r[1]["prompt"] not in held], [r for r in records if r[1]["prompt"] in held]


def item_of(record: Record, kind: str, judge: Judge) -> Rated | Preferred | None:
    """What the judge learns from a row; None: it says nothing. ValueError names the line that does not fit."""
    where = record[0]
    if kind_of(record) != kind:
        raise ValueError(f"{where} is of another form than the rows before it: {ADVICE}")
    prompt = words(record, "prompt")
    answers = [words(record, name).rstrip() for name in KINDS[kind]]  # as star/pool asks: no cue of who wrote it
    try:
        rows = [judge.encode(prompt, answer) for answer in answers]
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None
    for row, answer in zip(rows, answers, strict=True):
        if (odd := unknown(judge.tokenizer, prompt + answer, row)) is not None:
            raise ValueError(f"{where}: the base has no token for {odd!r}: take one that reads this text")
    if kind == "response":
        values = tuple(number(record, label) for label in judge.labels)
        return Rated(rows[0], values, prompt) if any(v is not None for v in values) else None
    if kind == "response_1":
        margin = number(record, "preference_strength")
        if margin is None:
            raise ValueError(f"{where} has no preference_strength: it must be a number, below 0 for the first")
        rows = rows if margin < 0 else rows[::-1]
    else:
        margin = number(record, "margin") if "margin" in record[1] else 1.0
        if margin is None or margin < 0:
            raise ValueError(f"{where}: the margin is {record[1]['margin']}; how much better the chosen answer is must "
                             "be a number, 0 or above")
    return Preferred(*rows, abs(margin)) if margin else None


def items_of(records: Sequence[Record], kind: str, judge: Judge, most: int
             ) -> tuple[list[Rated] | list[Preferred], str]:
    """(what the judge learns from, what was left out and why)."""
    items = [item_of(record, kind, judge) for record in records]
    telling = [item for item in items if item is not None]
    fitting = [item for item in telling if max(map(len, item.rows)) <= most]
    notes = (len(telling) - len(fitting), f"longer than {most} tokens"), (len(items) - len(telling), "that say nothing")
    return fitting, "".join(f"; {n} {why} left out" for n, why in notes if n)


def pad_for(base: Path, model, tokenizer) -> int | None:
    """The base's own pad id; without one an id that no row ends in, so that rows are read at their end."""
    pad = pad_of(base, model.source.config)
    others = (tokenizer.unk_id, tokenizer.bos_id, *range(tokenizer.vocab_size, model.config.vocab))
    return pad if pad is not None else next((i for i in others if i is not None and i not in tokenizer.eos_ids), None)


def report(judge: RewardModel, data: list[Rated] | list[Preferred], name: str) -> None:
    """Print what the judge makes of these rows, each figure with its count."""
    scores = score_items(judge, data)
    if isinstance(data[0], Preferred):
        right, n = pairs_right(scores, data)
        print(f"{name:9} {100 * right / n:.1f} % of {n} pairs in right order")
        return
    print(f"{name:9} {'label':<16}{'correlation':>12}{'ratings':>9}{'pairs right, %':>16}{'pairs':>7}")
    for j, label in enumerate(judge.labels):
        (r, n), (right, pairs) = correlation(scores, data, j), pairs_right(scores, data, j)
        print(f"{'':9} {label:<16}{'-' if r is None else f'{r:.3f}':>12}{n:>9}"
              f"{f'{100 * right / pairs:.1f}' if pairs else '-':>16}{pairs:>7}")


def flags(argv: list[str]):
    parser = Parser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the model that becomes a judge")
    parser.add_argument("--data", type=Path, required=True, help="rated answers or pairs, .jsonl or .json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--heldout", default="0.1", help="a file of held-out rows, or a share of the prompts [0.1]")
    parser.add_argument("--labels", help="names of the ratings to learn [the attributes of HelpSteer that there are]")
    parser.add_argument("--format", choices=FORMATS, default="plain", help="how question and answer are put [plain]")
    parser.add_argument("--reward-weights", help="what the folder recommends to add the labels up with [nothing]")
    for name, kind, default, what in (
            ("steps", int, 100, "optimizer steps"), ("batch-size", int, 8, "rows or pairs a step"),
            ("lr", float, 5e-4, "highest learning rate; 10 %% warmup, then linear to zero"),
            ("rank", int, 16, "of the adapters; 0: the head alone"), ("seed", int, 0, "of data order and adapters")):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{what} [{default:g}]")
    parser.add_argument("--max-tokens", type=int, help="longest row [the base's context]")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
                        help="of the base, and of the folder written; the head is float32 [auto]")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, ... [auto]")
    args = parser.parse_args(argv)
    for name, least in (("steps", 1), ("batch_size", 1), ("rank", 0), ("max_tokens", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least {least}")
    if not (math.isfinite(args.lr) and args.lr > 0):
        raise ValueError(f"--lr is {args.lr}; it must be above 0")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise FileExistsError(f"{args.out} exists and is not empty: give another --out")
    return args


def read_data(args) -> tuple[list[Record], list[Record]]:
    """(training rows, held-out rows)."""
    records = read_records(args.data)
    try:
        share = float(args.heldout)
    except ValueError:
        return records, read_records(args.heldout)
    if not 0 < share < 1:
        raise ValueError(f"--heldout is {args.heldout}; it must be a file, or a share between 0 and 1")
    return prompts_apart(records, share, args.seed)


@command
def main(argv: list[str]) -> None:
    args = flags(argv)
    train, held = read_data(args)
    kind = kind_of(train[0])
    labels = labels_of(train, kind, args.labels)
    weights = choose_weights(labels, args.reward_weights) if args.reward_weights else None
    device = choose_device(args.device)
    model = checkpoints.outline(args.base, None if args.dtype == "auto" else args.dtype)
    model = checkpoints.fill(model.to(choose_dtype(device, model.dtype)) if args.dtype == "auto" else model, device)
    tokenizer = load_tokenizer(args.base, args.format == "chat")
    rm = new_judge(model, labels, args.rank, 2 * args.rank, args.seed, pad_id=pad_for(args.base, model, tokenizer),
                   weights=weights, format=args.format)
    judge = Judge(str(args.base), rm, tokenizer, args.format, [1.0] * len(labels))
    most = min(args.max_tokens or rm.max_pos, rm.max_pos)
    (data, left), (heldout, held_left) = (items_of(part, kind, judge, most) for part in (train, held))
    for name, rows, out in (("--data", data, left), ("--heldout", heldout, held_left)):
        if not rows:
            raise ValueError(f"{name}: no row is left to use{out}")
    what = "ratings of" if kind == "response" else "pairs by"
    print(f"judge     {checkpoints.describe(model)}; {what} {', '.join(labels)}; format {args.format}\n"
          f"data      {len(data)} rows{left}; held out {len(heldout)}{held_left}; longest "
          f"{max(len(r) for item in data for r in item.rows)} tokens", flush=True)
    losses = []
    steps = train_judge(rm, data, args.steps, args.lr, args.batch_size, args.seed, warmup=args.steps // 10)
    with tqdm(steps, total=args.steps, desc="train", unit="step", disable=None) as bar:
        for loss in bar:
            losses.append(loss)
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}")
    tenth = max(1, len(losses) // 10)
    print(f"loss      {sum(losses[:tenth]) / tenth:.3f} in the first {tenth} steps, {sum(losses[-tenth:]) / tenth:.3f} "
          "in the last")
    report(rm, heldout, "held out")
    checkpoints.save_reward_model(rm, args.out)
    print(f"wrote     {args.out}: read it by --reward {args.out}")


if __name__ == "__main__":
    sys.exit(main())
