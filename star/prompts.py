"""From a problem to token ids: prompts to sample from, and examples to train on.

A hint can enter only through `encode(..., hinted=True)`, whose ids go to the sampler and nowhere else: `example` is
built from the question. Prompts are plain text, or a conversation where the tokenizer carries a chat template: nothing
but that writes control tokens, whatever a task's texts hold, and no prompt ends in an end of sequence (star/text).
"""

import itertools
from collections.abc import Sequence

from star.problem import Example, Problem
from star.tasks import Task
from star.text import Prompt


def render(task: Task, problem: Problem, chat=None, hinted: bool = False, few_shot: bool = True) -> str:
    """The prompt as text. chat: a template (checkpoints/chat) that makes turns of few-shot examples and question."""
    if chat is not None:
        shown = task.turns(problem, hinted) if few_shot else []
        turns = [turn for asked, answered in shown for turn in (("user", asked), ("assistant", answered))]
        return chat.render([*turns, ("user", task.turn(problem, hinted))])
    examples = task.few_shot(problem, hinted) if few_shot else ""
    return Prompt(examples + (task.hinted(problem) if hinted else task.question(problem)))


def encode(task: Task, problem: Problem, tokenizer, hinted: bool = False, few_shot: bool = True) -> list[int]:
    """Ids of the few-shot text and the question, encoded as ONE text: pieces encoded apart need not add up to it.

    few_shot: with the task's few-shot text, the hinted form's own. ValueError for a character without a token.
    """
    text = render(task, problem, getattr(tokenizer, "chat", None), hinted, few_shot)
    ids = tokenizer.encode(text)
    if (odd := unknown(tokenizer, text, ids)) is not None:
        raise ValueError(f"the tokenizer has no token for {odd!r} in the prompt of problem {problem.id!r}: "
                         f"{text[:60]!r}")
    return ids


def unknown(tokenizer, text: str, ids: Sequence[int]) -> str | None:
    """A character of the text that the tokenizer has no token for, if its ids say that there is one."""
    if tokenizer.unk_id is None or tokenizer.unk_id not in ids:
        return None
    return next((c for c in text if tokenizer.unk_id in tokenizer.encode(c, special=False)), text)


def split_prefix(prompts: Sequence[list[int]]) -> tuple[list[int], list[list[int]]]:
    """(longest common id prefix, what is left of each prompt); at least one id is left to each.

    split_prefix([[1, 2, 3], [1, 2, 4, 5]]) -> ([1, 2], [[3], [4, 5]])
    """
    first, last = min(prompts, default=[]), max(prompts, default=[])  # the two that differ earliest
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    n = min(common, min(map(len, prompts), default=1) - 1)
    return first[:n], [p[n:] for p in prompts]


def continued(task: Task, problem: Problem, tokenizer, text: str, few_shot: bool = False) -> list[int]:
    """Ids of a rationale that was not sampled but written, as it stands behind its question: encoded as one text."""
    prompt = encode(task, problem, tokenizer, few_shot=few_shot)
    whole = tokenizer.encode(render(task, problem, getattr(tokenizer, "chat", None), few_shot=few_shot) + text)
    if whole[: len(prompt)] == prompt:
        return whole[len(prompt) :]
    return tokenizer.encode(Prompt(text), special=False)  # its first characters would join the prompt's last token


def example(task: Task, problem: Problem, tokenizer, rationale: Sequence[int], few_shot: bool = False) -> Example:
    """The training sequence of a kept rationale: ids of the plain question, the sampled ids as they are, an end.

    However the rationale came about, the prompt is the one without hint (STaR, section 3.3). Of one that a stop string
    ended, the blanks before it are left out: of "12.\n" in front of "\nQ:" the line break belongs to what parts two
    examples of the few-shot text, and would be learned as part of the answer.
    """
    prompt = encode(task, problem, tokenizer, few_shot=few_shot)
    rationale = list(rationale)
    if rationale and rationale[-1] in tokenizer.eos_ids:
        return Example((*prompt, *rationale), len(prompt))
    while task.stop and rationale and not tokenizer.decode(rationale[-1:]).strip():
        rationale.pop()
    return Example((*prompt, *rationale, tokenizer.eos_ids[0]), len(prompt))
