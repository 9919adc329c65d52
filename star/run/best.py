"""Several answers to one question beside each other: their attributes as bars, their total, and the pick.

It shows what a judge said (star/reward), and asks nobody.
"""

import sys
from collections.abc import Sequence

from star.problem import STUDENT, Generation
from star.reward import ATTRIBUTES
from star.run.history import clip, wrapped

WIDTH = 24  # characters of a bar
FULL = (0.0, 4.0)  # HelpSteer's scale, for its attributes; scores outside stretch it


def merged(generations: Sequence[Generation]) -> list[tuple[Generation, int]]:
    """(generation, how many say the same), equal texts of one source once, the best reward first and ties as given."""
    count: dict[tuple[str, str], int] = {}
    first: dict[tuple[str, str], Generation] = {}
    for g in generations:
        key = g.source, g.text.strip()
        count[key] = count.get(key, 0) + 1
        first.setdefault(key, g)
    order = sorted(first, key=lambda key: float("inf") if first[key].reward is None else -first[key].reward)
    return [(first[key], count[key]) for key in order]


def table(generations: Sequence[Generation], width: int = 100, lines: int = 6) -> list[str]:
    """A block for each different answer, the best first: who wrote it, its total, a bar an attribute, its text."""
    rated = merged(generations)
    scores = [s for g, _ in rated for s in (g.scores or {}).values()]
    known = all(label in ATTRIBUTES for g, _ in rated for label in g.scores or {})
    low, high = (min([FULL[0], *scores]), max([FULL[1], *scores])) if known else (min(scores), max(scores))
    out = []
    for i, (g, n) in enumerate(rated, 1):
        who = "the model" if g.source == STUDENT else clip(g.source, 40)
        total = f"total {g.reward:.3f}" if g.reward is not None else "not rated: " + (
            "cut off, raise --max-new-tokens" if g.finish == "length" else "the judge cannot read it")
        again = f", {n} times" if n > 1 else ""
        right = {"right": " (right)", "wrong": " (wrong)"}.get(g.verdict, "")
        says = "" if g.answer is None else f", says {clip(g.answer, 30)}{right}"
        pick = "  <- the pick" if i == 1 and g.reward is not None else ""
        out.append(f"{i:>3}  {total}  {who}{again}{says}{pick}")
        name = max([len(clip(label, 20)) for label in g.scores or {}], default=0)
        out += [f"     {clip(label, 20):{name}} {bar(score, low, high)} {score:6.2f}"
                for label, score in (g.scores or {}).items()]
        text = wrapped(g.text, width - 9)
        out += [f"       {line}".rstrip() for line in text[:lines]]
        out += [f"       ... {len(text) - lines} more lines"] * (len(text) > lines) + [""]
    return out[:-1]


def bar(score: float, low: float, high: float) -> str:
    """A bar from `low` on; of plain characters where the output cannot show blocks."""
    filled = round(WIDTH * (score - low) / (high - low)) if high > low else WIDTH
    blocks = "utf" in (sys.stdout.encoding or "").lower()
    return ("█" if blocks else "#") * filled + ("░" if blocks else ".") * (WIDTH - filled)
