"""Makes the judge that ships: a small decoder that rates a sum's scratchpad by the five attributes of HelpSteer.

    python -m star.experiments.tiny_judge --out runs/tiny-judge

It ranks several rationales of one problem, after they were sampled (Algorithm 1, line 3). It is trained from nothing on
right scratchpads and on ones with planted errors, of fresh sums of 1-5 digits; no generator's sample and none of the
held-out sums of star/tasks/arithmetic is among them. A seed decides everything.

A head on the last token alone learns nothing: who cannot add cannot be surprised. So the layers are taught, one after
the other, what the next ones need, by heads that are thrown away: which token comes next (layer NEXT), which one should
stand here, whatever does (HERE), whether it does (SAME), and behind the last layer whether all was right so far, beside
the five attributes. Without HERE it fails: told only whether tokens are right, it does not learn to look.
"""

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import checkpoints
from star.batch import Batch, micro_batches
from star.best_of import auc_within
from star.experiments.tiny_adder import CONFIG, begin, build, compare
from star.finetune import lr_factor
from star.problem import Example, Problem
from star.reward import ATTRIBUTES, Judge, RewardModel
from star.run.flags import Parser, command
from star.tasks.arithmetic import make, scratchpad, split

STEPS, BATCH, LR, WARMUP = 3000, 32, 2e-3, 100
NEXT, HERE, SAME = 3, 4, 5  # layers that the helping heads read, of 6
JUDGE = CONFIG | {"num_hidden_layers": 6, "intermediate_size": 160}
WEIGHTS = (0.3, 0.74, 0.46, 0.47, -0.33)  # of star/reward's nemotron-4-340b
SHORT, ALL = (1, 2, 2, 3, 3), (1, 2, 3, 3, 4, 4, 4, 5, 5, 5)  # lengths drawn in the first fifth of the steps, and then
# Kinds of errors and how often each is planted: in a column, in the answer line, in the text as it stands.
COLUMN = {"digit": 3, "order": 1, "carry": 2, "sum": 2, "missing": 1, "repeated": 1}
ANSWER = {"answer digit": 2, "answer mixed": 2, "answer short": 1, "answer long": 1}
TEXT = {"end": 1, "character": 1}
KINDS = COLUMN | ANSWER | TEXT
LINE = re.compile(r"([0-9])\+([0-9])\+C([0-9])=([0-9])([0-9])")
IGNORE, PAD = -100, 0  # a label that is none; the unknown token, which no scratchpad holds
ERROR = 10.0  # weight of the first wrong token: there are few


def attributes(problem: Problem, text: str) -> tuple[float, ...]:
    """Five numbers from 0 to 4, as HelpSteer's are, in the order of ATTRIBUTES, for any text.

    helpfulness: 4 if the last line is the right answer. correctness: 4 if every step is right. coherence: share of the
    lines that follow from those before. complexity: share of the columns with a carry, in or out, that are right (of
    all columns, if none has one). verbosity: length in right lengths, 2 for the right one.
    """
    gold = scratchpad(*problem.question.split("+"))
    right, lines = gold.split("\n"), text.split("\n")
    columns = range(len(right) - 1)
    hard = [i for i in columns if "C1=" in right[i] or "=1" in right[i]] or list(columns)
    handled = sum(i < len(lines) and lines[i] == right[i] for i in hard) / len(hard)
    return (4.0 * (lines[-1] == right[-1]), 4.0 * (text == gold), 4.0 * coherence(lines), 4.0 * handled,
            min(2 * len(text) / len(gold), 4.0))


def coherence(lines: Sequence[str]) -> float:
    """Share of lines that follow: a column adds up and takes the carry of the line before; the last line collects.

    It does not know the question: wrong digits that are added up rightly are coherent.
    """
    carry, digits, follow = "0", "", 0
    for line in lines[:-1]:
        if column := LINE.fullmatch(line):
            x, y, taken, tens, unit = column.groups()
            follow += taken == carry and int(x) + int(y) + int(taken) == int(tens + unit)
            carry, digits = tens, unit + digits
    follow += lines[-1] == "=" + carry.replace("0", "") + digits
    return follow / len(lines)


class Writer:
    """Draws sums, and writes their scratchpads with errors of the kinds that generators make."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.heldout = {p.id for n in range(1, 6) for p in split(n)[1]}

    def sum(self, lengths: Sequence[int]) -> Problem:
        """A fresh one, never one of the held-out sums."""
        while True:
            n = self.rng.choice(lengths)
            problem = make(*(str(self.rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n)) for _ in range(2)))
            if problem.id not in self.heldout:
                return problem

    def draw(self, problem: Problem) -> str:
        """A scratchpad: right, or with one error, or with several."""
        errors = self.rng.choices((0, 1, 2, 3), (30, 50, 12, 8))[0]
        return self.write(problem, self.rng.choices(list(KINDS), list(KINDS.values()), k=errors))

    def write(self, problem: Problem, kinds: Sequence[str]) -> str:
        """A scratchpad with an error of each kind, somewhere (now and then it happens to be right all the same)."""
        numbers, rng = problem.question.split("+"), self.rng
        errors = {rng.randrange(len(numbers[0])): kind for kind in kinds if kind in COLUMN}
        lines, answer = self.columns(numbers, errors, follow=rng.random() < 0.7)
        for kind in kinds:
            answer = self.answer(answer, kind) if kind in ANSWER and answer else answer
        text = "\n".join([*lines, f"={answer}"])
        for kind in kinds:
            at = rng.randrange(len(text)) if text else 0
            if kind == "end":
                text = text[:at]
            elif kind == "character":  # one left out, replaced or put in
                text = text[:at] + rng.choice(("", rng.choice("\n0123456789+=C"))) + text[at + rng.randrange(2) :]
        return text

    def columns(self, numbers: Sequence[str], errors: dict[int, str], follow: bool) -> tuple[list[str], str]:
        """(lines, answer). errors: place -> kind. follow: after an error go on from it; else as if there were none."""
        rng, n = self.rng, len(numbers[0])
        pairs = [tuple(map(int, pair)) for pair in zip(*(reversed(number) for number in numbers), strict=True)]
        lines, digits, carry, true = [], "", 0, 0
        for i, pair in enumerate(pairs):
            kind, true = errors.get(i), (sum(pair) + true) // 10
            if kind == "missing":
                continue
            x, y = pairs[rng.randrange(n)] if kind == "order" else pair
            if kind == "digit":
                x, y = (self.misread(numbers[0], i), y) if rng.random() < 0.5 else (x, self.misread(numbers[1], i))
            carry = 1 - carry if kind == "carry" else carry
            total = x + y + carry
            if kind == "sum":
                total = rng.choice([t for t in (total - 10, total - 1, total + 1, total + 10) if 0 <= t < 20])
            times = 2 if kind == "repeated" else 1
            lines += [f"{x}+{y}+C{carry}={total:02d}"] * times
            digits = str(total % 10) * times + digits
            carry = total // 10 if follow else true
        return lines, f"{carry or ''}{digits}" if follow else str(sum(map(int, numbers)))

    def misread(self, number: str, i: int) -> int:
        """A digit from beside the i-th from the right, or any."""
        near = number[::-1][max(i - 1, 0) : i + 2]
        return int(self.rng.choice(near)) if self.rng.random() < 0.6 else self.rng.randrange(10)

    def answer(self, answer: str, kind: str) -> str:
        """A digit of the answer left out (short), put in (long), replaced by any (digit), or by another one, or one
        left out and another put in elsewhere (mixed)."""
        at, to = self.rng.randrange(len(answer)), self.rng.randrange(len(answer))
        any_digit = str(self.rng.randrange(10))
        if kind == "answer digit":
            return answer[:at] + any_digit + answer[at + 1 :]
        if kind == "answer long":
            return answer[:at] + self.rng.choice((any_digit, answer[at])) + answer[at:]
        short = answer[:at] + answer[at + 1 :]
        if kind == "answer short":
            return short
        if self.rng.random() < 0.5:
            return answer[:at] + answer[to] + answer[at + 1 :]
        return short[:to] + self.rng.choice((any_digit, answer[to])) + short[to:]


class Row(NamedTuple):
    """A scratchpad and what is to be learned from it, in lists of a label a place.

    Place 0 is the prompt's last token, place i > 0 the text's i-th, the last one its end: n + 2 for n characters.
    """

    example: Example  # a token that nothing looks at stands behind the end, so that the end counts among its places
    next: list[int]  # the token that must follow; IGNORE behind the first error
    here: list[int]  # the token that should stand here; IGNORE at place 0 and behind the first error
    same: list[int]  # does it? 1 or 0, IGNORE likewise
    right: list[int]  # 1 while the text so far begins the right scratchpad, else 0; IGNORE at place 0
    attributes: tuple[float, ...]


LABELS = ("next", "here", "same", "right")


def row(problem: Problem, text: str, tokenizer) -> Row:
    end = tokenizer.eos_ids[0]
    prompt, came = tokenizer.encode(problem.question + "\n"), [*tokenizer.encode(text), end]
    gold = [*tokenizer.encode(scratchpad(*problem.question.split("+"))), end]
    error = next((i for i, (a, b) in enumerate(zip(came, gold, strict=False)) if a != b), len(gold))
    told = [gold[i] if i <= error and i < len(gold) else IGNORE for i in range(len(came) + 1)]
    right = [int(i < error) for i in range(len(came))]
    same = [r if i <= error else IGNORE for i, r in enumerate(right)]
    return Row(Example((*prompt, *came, 0), len(prompt)), told, [IGNORE, *told[:-1]], [IGNORE, *same], [IGNORE, *right],
               attributes(problem, text))


class Pupil:
    """The judge and the heads that help to train it."""

    def __init__(self, vocab: int, seed: int):
        self.model = build(vocab, seed, JUDGE)
        size, self.states = JUDGE["hidden_size"], {}
        self.score, self.same, self.right, self.here = (
            nn.Linear(size, n, bias=False) for n in (len(ATTRIBUTES), 1, 1, vocab))
        for head in (self.score, self.same, self.right, self.here):
            nn.init.zeros_(head.weight)
        for n in (NEXT, HERE, SAME):
            self.model.layers[n - 1].register_forward_hook(lambda _, given, out, n=n: self.states.update({n: out}))

    def parameters(self) -> list[nn.Parameter]:
        return [p for m in (self.model, self.score, self.same, self.right, self.here) for p in m.parameters()]

    def loss(self, batch: Batch, rows: Sequence[Row], counts: dict[str, int]) -> Tensor:
        """What this batch of rows adds to the step's loss; counts: labels of each kind in the whole step."""
        last = batch.hidden(self.model)  # (N, D)
        after, at, agree = (F.rms_norm(self.states[n][0, batch.places], last.shape[1:], eps=1e-5)
                            for n in (NEXT, HERE, SAME))  # (1, T, D) -> (N, D)
        label = {name: torch.tensor([t for r in rows for t in getattr(r, name)]) for name in LABELS}
        weight = torch.where(label["same"] == 0, ERROR, 1.0)
        here = F.cross_entropy(self.here(at), label["here"], ignore_index=IGNORE, reduction="none")
        losses = {
            "next": F.cross_entropy(self.model.logits(after), label["next"], ignore_index=IGNORE, reduction="sum"),
            "here": (here * weight).sum(),
            "same": 0.5 * told_apart(self.same(agree), label["same"], weight),
            "right": 0.5 * told_apart(self.right(last), label["right"], torch.ones_like(weight)),
        }
        ends = torch.tensor([len(r.right) for r in rows]).cumsum(0) - 1
        error = (self.score(last[ends]) - torch.tensor([r.attributes for r in rows])).square().mean(1).sum()
        return sum(losses[name] / counts[name] for name in LABELS) + 0.1 * error / BATCH

    def judge(self) -> RewardModel:
        return RewardModel(self.model, self.score.weight.data, list(ATTRIBUTES), pad_id=PAD, weights=WEIGHTS,
                           format="plain")


def told_apart(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Sum of weighted cross-entropies of logits (N, 1) with labels (N,) of 0, 1 and IGNORE."""
    return F.binary_cross_entropy_with_logits(logits[:, 0], label.float(), weight * (label != IGNORE), reduction="sum")


def train(pupil: Pupil, writer: Writer, tokenizer, steps: int) -> None:
    """All weights, AdamW."""
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in tqdm(range(steps), desc="train", unit="step", disable=None):
        problems = [writer.sum(SHORT if step < steps // 5 else ALL) for _ in range(BATCH)]
        rows = [row(p, writer.draw(p), tokenizer) for p in problems]
        rows.sort(key=lambda r: -len(r.example.tokens))  # micro_batches keeps this order
        counts = {name: sum(t != IGNORE for r in rows for t in getattr(r, name)) for name in LABELS}
        for batch in micro_batches([r.example for r in rows], 2048, pupil.model.device):
            n = sum(n for n, _ in batch.runs)
            pupil.loss(batch, rows[:n], counts).backward()
            rows = rows[n:]
        torch.nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * lr_factor(step, steps, WARMUP, "linear")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def report(judge: Judge, seed: int = 1) -> None:
    """On the held-out sums: error of each attribute, and how often the right scratchpad is rated above a wrong one."""
    writer, problems = Writer(seed), [p for n in range(2, 6) for p in split(n)[1]]

    def rate(texts: Sequence[str]) -> list[tuple[float, ...]]:
        return judge.rate([(f"{p.question}\n", text) for p, text in zip(problems, texts, strict=True)])

    drawn = [writer.draw(p) for p in problems]
    errors = torch.tensor(rate(drawn)) - torch.tensor([attributes(p, t) for p, t in zip(problems, drawn, strict=True)])
    print("mean squared error  " + ", ".join(
        f"{name} {error:.3f}" for name, error in zip(ATTRIBUTES, errors.square().mean(0).tolist(), strict=True)))
    gold = [scratchpad(*p.question.split("+")) for p in problems]
    above = [judge.total(scores) for scores in rate(gold)]
    print("right above wrong, %")
    for kind in KINDS:
        wrong = [writer.write(p, [kind]) for p in problems]
        below = [judge.total(scores) for scores in rate(wrong)]
        pairs = [((a, True), (b, False)) for a, b, g, w in zip(above, below, gold, wrong, strict=True) if g != w]
        print(f"    {kind:15} {100 * auc_within(pairs)[0]:5.1f} of {len(pairs)}")


@command
def main(argv: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-judge"), help="folder to write, new or empty")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    tokenizer = begin(args.out)
    pupil = Pupil(tokenizer.vocab_size, args.seed)
    train(pupil, Writer(args.seed), tokenizer, STEPS)
    checkpoints.save_reward_model(pupil.judge(), args.out, JUDGE | {"vocab_size": tokenizer.vocab_size})
    report(Judge("tiny-judge", checkpoints.load_reward_model(args.out), tokenizer, "plain", WEIGHTS))
    compare(args.out, "tiny-judge")


if __name__ == "__main__":
    sys.exit(main())
