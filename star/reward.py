"""Judges: a number, or one an attribute, for an answer to a question. What ranks the rationales of Algorithm 1, line 3.

`RewardModel` is a decoder with a small head, read at one token; `Likelihood` needs no head: how likely a model finds
the answer. Both take token ids. `Judge` puts a tokenizer and a prompt format in front: texts in, numbers out. Nothing
here reads a folder (checkpoints/reward does), trains a head (star/judge) or chooses among answers (star/select).

Scores compare answers to the same question only: so say the cards of NVIDIA's judges.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
import torch.nn.functional as F
from torch import Tensor

from star.batch import Batch, micro_batches, row_of
from star.decoder import Decoder
from star.problem import Example
from star.text import Prompt

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # of HelpSteer, in its order
# What a judge's card adds its attributes up with (hf.co/nvidia: Nemotron-4-340B-Reward; Llama3-70B-SteerLM-RM, of which
# an earlier card left out the last two). Longer answers do not count as better ones: verbosity is negative.
WEIGHTS = {
    "nemotron-4-340b": (0.3, 0.74, 0.46, 0.47, -0.33),
    "steerlm-70b": (0.65, 0.8, 0.45, 0.55, -0.4),
    "steerlm-70b-v1": (0.65, 0.8, 0.45, 0.0, 0.0),
}
FORMATS = ("plain", "chat", "steerlm")
SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions.")  # fmt: skip
MOST = 1e30  # size of a score or weight: what is larger is no judgement, and could add up to infinity
TURN = re.compile(r"(?:^|\n)<extra_id_1>(User|Assistant)\n")  # how HelpSteer writes several turns into one question
LOGITS = 256  # positions whose logits exist at a time


def is_score(value: object) -> bool:
    """A number that a score, rating or weight can be: not true or false, not NaN, not beyond MOST."""
    return type(value) in (int, float) and -MOST < value < MOST


def choose_weights(labels: Sequence[str], spec: str | None, own: Sequence[float] | None = None) -> tuple[float, ...]:
    """A weight a label, for the sum that answers are ranked by.

    spec: a name in WEIGHTS (labels that are no attribute get 0), or numbers "a,b,c", one a label (or one an attribute
    where all five are among the labels). None: `own`, what the judge's folder recommends; else 1 for a single label,
    else nemotron-4-340b where the five attributes are there. ValueError for what does not fit.
    """
    attributes = all(a in labels for a in ATTRIBUTES)
    needs = f"--reward-weights needs {len(labels)} number{'s' * (len(labels) > 1)}, for {', '.join(labels)}"
    if spec is None:
        if own is not None:
            return tuple(own)
        if len(labels) == 1:
            return (1.0,)
        if not attributes:
            raise ValueError(f"{needs}: this judge has no weights of its own")
        spec = "nemotron-4-340b"
    if spec in WEIGHTS:
        if not attributes:
            raise ValueError(f"--reward-weights {spec} weighs {', '.join(ATTRIBUTES)}, which this judge does not name; "
                             f"{needs}")
        given = WEIGHTS[spec]
    else:
        try:
            given = tuple(float(n) for n in spec.split(","))
        except ValueError:
            raise ValueError(f"--reward-weights is {spec!r}, neither numbers nor one of {', '.join(WEIGHTS)}; {needs}"
                             ) from None
        if not all(map(is_score, given)) or not any(given):
            raise ValueError(f"--reward-weights is {spec!r}; the weights must be finite and not all 0")
        if len(given) == len(labels):
            return given
        if len(given) != len(ATTRIBUTES) or not attributes:
            raise ValueError(f"{needs}; {spec!r} has {len(given)}")
    return tuple(dict(zip(ATTRIBUTES, given, strict=True)).get(label, 0.0) for label in labels)


@dataclass
class RewardModel:
    """A decoder and a linear head: scores are head @ h + bias for the final-normed hidden state h of one token a row.

    That token is the rightmost whose id is not pad_id, or the last one without a pad_id: by id, as in the reference,
    so that an answer that ends in the pad id is read one token earlier there and here.
    """

    model: Decoder
    head: Tensor  # (L, D) float32 (float64 beside a float64 decoder), whatever the decoder's dtype is
    labels: list[str]
    bias: Tensor | None = None  # (L,)
    pad_id: int | None = None
    weights: tuple[float, ...] | None = None  # what its folder recommends to add the labels up with
    format: str | None = None  # ditto, one of FORMATS
    logit: bool = False  # the head is a row of the vocabulary's: scores are logits, with the decoder's scale and cap

    @property
    def max_pos(self) -> int:
        """Tokens a row may have."""
        return self.model.config.max_pos

    def score(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of N rows -> (N, labels) float32 on the CPU, in the order of the rows.

        Rows are packed, the longest first: neighbours and padding change a score by rounding only. Raises ValueError
        for a row that is empty, longer than max_pos, or holds an id outside the vocabulary.
        """
        check_rows(self.model, rows)
        out = torch.zeros(len(rows), len(self.labels))
        with torch.no_grad():
            for places, batch in self.batches(rows):
                out[places] = self.read(batch).float().cpu()
        return out

    def batches(self, rows: Sequence[Sequence[int]], budget: int | None = None) -> Iterator[tuple[list[int], Batch]]:
        """(indices of some rows, these rows as one batch) until all are packed; `budget` tokens a batch, or one row.

        What stands behind the token that is read is cut off: nothing looks at it.
        """
        budget = budget or (2048 if self.model.device.type == "cpu" else 8192)
        cut = [row[: read_at(row, self.pad_id) + 1] for row in rows]
        order = sorted(range(len(cut)), key=lambda i: -len(cut[i]))
        while order:
            n, size = 0, 0
            while n < len(order) and (n == 0 or size + len(cut[order[n]]) <= budget):
                size, n = size + len(cut[order[n]]), n + 1
            yield order[:n], pack([cut[i] for i in order[:n]], self.model.device)
            order = order[n:]

    def read(self, batch: Batch, recompute: bool = False) -> Tensor:
        """(n, L) scores of a batch's rows, differentiable; only the rows that are read pass through the last layer."""
        hidden = batch.hidden(self.model, recompute)  # (n, D)
        out = F.linear(hidden.to(self.head.dtype), self.head, self.bias)
        if not self.logit:
            return out
        out, cap = out * self.model.config.logit_scale, self.model.config.logit_cap
        return cap * torch.tanh(out / cap) if cap else out


class Likelihood:
    """The judge without a head: how likely a model finds an answer (V-STaR's form of a verifier; a free baseline)."""

    def __init__(self, model: Decoder):
        self.model, self.labels = model, ["likelihood"]

    @property
    def max_pos(self) -> int:
        """Tokens a row may have."""
        return self.model.config.max_pos

    @torch.no_grad()
    def score(self, examples: Sequence[Example]) -> Tensor:
        """(N, 1) float32 on the CPU: mean log-probability of tokens[n_prompt:], in nats a token.

        Raises ValueError as RewardModel.score does, and where there is no prompt or no answer.
        """
        check_rows(self.model, [e.tokens for e in examples])
        for i, e in enumerate(examples):
            if not 1 <= e.n_prompt < len(e.tokens):
                raise ValueError(f"row {i} has {len(e.tokens)} tokens, of them {e.n_prompt} prompt: a likelihood needs "
                                 "at least one of the prompt and one of the answer")
        order = sorted(range(len(examples)), key=lambda i: -len(examples[i].tokens))  # as micro_batches takes them
        found = []
        for batch in micro_batches(examples, 2048 if self.model.device.type == "cpu" else 8192, self.model.device):
            pieces = zip(batch.hidden(self.model).split(LOGITS), batch.targets.split(LOGITS), strict=True)
            found += [-F.cross_entropy(self.model.logits(h), t, reduction="none").float().cpu() for h, t in pieces]
        sizes = [len(examples[i].tokens) - examples[i].n_prompt for i in order]
        rows = torch.cat(found or [torch.zeros(0)]).split(sizes)
        out = torch.zeros(len(examples), 1)
        for i, row in zip(order, rows, strict=True):
            out[i] = row.mean()
        return out


def read_at(row: Sequence[int], pad_id: int | None) -> int:
    """Where a row is read: its rightmost id that is not pad_id; the first if all are, the last without a pad_id.

    [5, 7, 0, 0] with pad 0: 1. [0, 0, 5, 7]: 3. [5, 0, 7]: 2. [0, 0]: 0, as in the reference.
    """
    if pad_id is None:
        return len(row) - 1
    return next((i for i in range(len(row) - 1, 0, -1) if row[i] != pad_id), 0)


def pack(rows: Sequence[Sequence[int]], device: torch.device) -> Batch:
    """One row of these sequences, which must come longest first; each is read at its last token."""
    return row_of(rows, [[len(row) - 1] for row in rows], [], device)


def check_rows(model: Decoder, rows: Sequence[Sequence[int]]) -> None:
    vocab, most = model.config.vocab, model.config.max_pos
    for i, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"row {i} is empty: there is no token to read a score at")
        if len(row) > most:
            raise ValueError(f"row {i} has {len(row)} tokens, but the judge's context is {most}: leave the row out, or "
                             "take a judge with a longer context")
        if min(row) < 0 or max(row) >= vocab:
            odd = next(t for t in row if not 0 <= t < vocab)
            raise ValueError(f"row {i} holds the id {odd}, outside the judge's vocabulary of {vocab}: encode it with "
                             "the judge's own tokenizer")


class Judge:
    """A scorer with its tokenizer and prompt format: questions and answers in, numbers out.

    format: "plain" (question and answer as one text, and an end), "chat" (the template that the tokenizer carries) or
    "steerlm" (the markers that NVIDIA's judges in NeMo's format are trained with).
    """

    def __init__(self, name: str, scorer: RewardModel | Likelihood, tokenizer, format: str, weights: Sequence[float]):
        self.name, self.scorer, self.tokenizer, self.format = name, scorer, tokenizer, format
        self.labels, self.weights = list(scorer.labels), tuple(weights)
        if format not in FORMATS:
            raise ValueError(f"judge {name}: the format is {format!r}; it must be one of {', '.join(FORMATS)}")
        if len(self.weights) != len(self.labels):
            raise ValueError(f"judge {name}: {len(self.weights)} weights for {len(self.labels)} labels")
        if isinstance(scorer, Likelihood) and format == "steerlm":
            raise ValueError(f"judge {name}: a likelihood has no use for the format steerlm: take plain or chat")
        if format == "chat":
            if tokenizer.chat is None:
                raise ValueError(f"judge {name}: the format chat needs a chat template, and its tokenizer has none")
            one, other = (tokenizer.chat.render([("user", "?"), ("assistant", a)], answered=True) for a in "XY")
            if one == other:
                raise ValueError(f"judge {name}: its chat template leaves out the answer: nothing could be rated")

    def rate(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, ...] | None]:
        """(question, answer) texts -> a float a label. None: it does not fit the judge's context, and nothing is ever
        cut; or it holds a character that the judge has no token for.

        Raises ValueError for a question that ends in the assistant's turn, or that the chat template refuses.
        """
        rows = [self.encode(question, answer) for question, answer in pairs]
        fitting = {row: None for row in rows if self.reads(getattr(row, "tokens", row))}
        found = self.scorer.score(list(fitting)).tolist()  # equal texts are scored once
        scores = {row: tuple(values) for row, values in zip(fitting, found, strict=True)}
        return [scores.get(row) for row in rows]

    def reads(self, ids: Sequence[int]) -> bool:
        return len(ids) <= self.scorer.max_pos and (self.tokenizer.unk_id is None or self.tokenizer.unk_id not in ids)

    def total(self, scores: Sequence[float]) -> float:
        """The weighted sum that answers are ranked by."""
        return sum(w * s for w, s in zip(self.weights, scores, strict=True))

    def encode(self, question: str, answer: str) -> tuple[int, ...] | Example:
        """What the scorer reads: token ids, or for a likelihood an Example whose targets are the answer and its end."""
        encode, end = self.tokenizer.encode, list(self.tokenizer.eos_ids[:1])
        likelihood = isinstance(self.scorer, Likelihood)
        if self.format == "plain":
            ids = encode(Prompt(question + answer)) + end
            if not likelihood:
                return tuple(ids)
            same = takewhile(lambda pair: pair[0] == pair[1], zip(encode(Prompt(question)), ids, strict=False))
            return Example(tuple(ids), max(1, sum(1 for _ in same)))  # a token over the border is the answer's
        turns = split_turns(question)
        if likelihood:
            prompt = encode(self.tokenizer.chat.render(turns))
            return Example((*prompt, *encode(Prompt(answer), special=False), *end), len(prompt))
        turns.append(("assistant", answer))
        text = self.tokenizer.chat.render(turns, answered=True) if self.format == "chat" else steerlm(turns)
        return tuple(encode(text, special=False))  # the format says it all: no BOS beside it, no end behind it


def split_turns(question: str) -> list[tuple[str, str]]:
    """A question that may hold earlier turns, as (role, content): HelpSteer joins them by its own markers.

    "a\\n<extra_id_1>Assistant\\nb\\n<extra_id_1>User\\nc" -> [("user", "a"), ("assistant", "b"), ("user", "c")].
    ValueError unless the user's and the assistant's turns alternate and the user's is the last.
    """
    first, *rest = TURN.split(question)
    turns = [("user", first)] if first or not rest else []
    turns += [(role.lower(), content) for role, content in zip(rest[::2], rest[1::2], strict=True)]
    if len(turns) % 2 == 0 or any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(turns)):
        raise ValueError(f"the turns of a question must alternate and end in the user's; these are "
                         f"{', '.join(role for role, _ in turns)}: {question[:60]!r}")
    return turns


def steerlm(turns: Sequence[tuple[str, str]]) -> Prompt:
    """The text of NeMo's format, a system line of the usual wording in front; the last marker is where it is read."""
    said, typed = f"<extra_id_0>System\n{SYSTEM}\n", []
    for role, content in turns:
        said += f"<extra_id_1>{role.capitalize()}\n{content}\n"
        typed.append((len(said) - len(content) - 1, len(said) - 1))
    return Prompt(f"{said}<extra_id_2>", typed)
