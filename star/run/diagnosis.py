"""Why a model solves nothing, for people: what most of its tries looked like, the likely cause, and what to do.

It goes by the verdicts and texts that a run wrote down, and by how the model was asked. It judges nothing again, and
prints nothing.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from checkpoints.chat import has_chat
from star.evaluate import VERDICTS
from star.problem import STUDENT, Generation
from star.run.history import clip
from star.run.plan import Plan
from star.tasks import task_options
from star.text import visible

SHOWN = 3  # tries
LOOP = 4  # times that a text says its last words, from which on it goes round in circles


def nothing_solved(tries: Sequence[Generation], plan: Plan, run: Path, width: int = 120) -> list[str]:
    """Lines for an iteration none of whose tries was right: three of what there is most of, the cause, a command."""
    mine = [g for g in tries if g.source == STUDENT] or list(tries)
    plain = [g for g in mine if g.phase == "generate"] or mine
    said = Counter(g.verdict for g in plain)
    most, count = said.most_common(1)[0]
    alike = [g for g in plain if g.verdict == most]
    shown = alike[:: max(1, len(alike) // SHOWN)][:SHOWN]
    right = {p.id: p.answer for p in plan.task.train}
    lines = [f"\n{count} of {len(plain)} tries without a hint: {VERDICTS[most]}. Such as"]
    for g in shown:
        says = (f" (says {clip(g.answer, 24)}; right is {clip(right.get(g.problem, ''), 24)})" if g.answer is not None
                else "")
        text = " / ".join(filter(None, g.text.strip().split("\n"))) or "(nothing)"
        ends = text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"
        lines.append(f"  {clip(g.problem, 40)}{says}: {clip(ends, width + 8)}")
    n = max(g.iteration for g in mine) - 1
    look = f"look    python sample.py --run {quote(str(run))} --trace --problem {visible(quote(shown[0].problem))}"
    return [*lines, f"likely  {cause(said, plan, looks(shown))}", look + f" --iteration {n}" * (n > 0)]


def looks(tries: Sequence[Generation]) -> str:
    """What most of these have in common besides their verdict; "" for nothing."""
    if sum(not g.text.strip() for g in tries) * 2 > len(tries):
        return "the model says nothing at all"
    if sum(map(goes_round, tries)) * 2 > len(tries):
        return "they repeat themselves"
    return ""


def cause(said: dict[str, int], plan: Plan, look: str = "") -> str:
    """What is likely wrong where most tries have these verdicts and look so, and the flag that helps."""
    config, most, flags = plan.config, max(said, key=said.__getitem__), task_options(plan.config.task)
    others = "others by --few-shot, or --zero-shot, which asks in words" if "zero_shot" in flags else "other examples"
    shown = "show worked examples" + (", by --few-shot FILE" if "few_shot" in flags else " (the task's `shots`)")
    chat = not config.chat and has_chat(plan.model.source.path)
    asks = "the model has a chat template, and was asked without it: --chat" if chat else ""
    if most == "length" and not look:
        return (f"{plan.max_new} tokens are too few for an answer: a longer --max-new-tokens"
                + (f"; or {asks}" if asks else ""))
    if most in ("length", "unparsed"):
        what = look or "no answer stands there in a form that is read" + (
            ', such as "The answer is ..."' if "zero_shot" in flags else "")
        if asks:
            return f"{what}; {asks}"
        if plan.task.prefix:
            return f"{what}: the examples do not show the form well, or the model is too small to follow them: {others}"
        return f"{what}: {shown}"
    if most == "leak":
        return "with a hint it says nothing but the hint: other few-shot examples, or a larger model"
    return ("answers are given and are wrong. If the right ones above are written otherwise than the model's, mend the "
            "data or take another --grade; else the problems are too hard for this model: easier ones, a larger model, "
            "or more tries (--samples 8 --temperature 0.8)" + (f"; or {asks}" if asks else ""))


def goes_round(g: Generation) -> bool:
    """Does a text end in the same words over and over? "so it is so it is so it is so it is" does."""
    words = g.text.split()
    return any(len(words) >= LOOP * n and all(words[-n:] == words[-n * (k + 1) : -n * k or None] for k in range(LOOP))
               for n in range(1, min(40, len(words) // LOOP) + 1))
