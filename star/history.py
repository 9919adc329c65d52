"""What a run generated, read back from samples/iter-NNN.jsonl: listed, filtered, and one problem across iterations.

It judges nothing again and shows only what was written down then; a right answer is known to it only where some
generation gave it. It returns lines of plain text, and whatever a model wrote is safe to print. It prints nothing.
"""

import difflib
import gc
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from star.evaluate import VERDICTS
from star.problem import Generation
from star.run import generation, read_lines

PHASES = ("generate", "rationalize", "validate", "evaluate", "pass at k")  # in the order of an iteration
OUTCOMES = {  # beside VERDICTS' own names
    "kept": lambda g: g.verdict == "right" and g.phase == "generate",
    "rationalized": lambda g: g.verdict == "right" and g.phase == "rationalize",
    "failed": lambda g: g.verdict != "right",
    "truncated": lambda g: g.verdict == "length",
}
RIGHT_MARKS = {"generate": "K", "rationalize": "R", "validate": "E", "evaluate": "E", "pass at k": "E"}
FAILED_MARKS = {"wrong": "w", "unparsed": "u", "length": "t", "leak": "l"}
LEGEND = ("K kept, R rationalized (both trained on), E right in an evaluation; "
          "w wrong, u unparsed, t truncated, l leak; . not tried")
SHOWN = 12  # lines of a text in a listing
COLUMN, GAP = 28, " | "


@dataclass(frozen=True)
class Filter:
    """Which generations to show; None lets all pass. ValueError names the choices if a name is none of them."""

    iterations: tuple[int, int] | None = None  # first and last
    phase: str | None = None
    verdict: str | None = None  # of VERDICTS or OUTCOMES
    problem: str | None = None  # an id, or what stands behind a "-" at its end: 17 for train-17

    def __post_init__(self):
        for name, choices in (("phase", PHASES), ("verdict", (*VERDICTS, *OUTCOMES))):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"the {name} is {value!r}; it must be one of {', '.join(choices)}")


def load(run: Path) -> list[Generation]:
    """All generations of a run folder, in the order of the iterations; a last line that is being written is left out.

    FileNotFoundError if it has no samples, ValueError if there is nothing in them or a line is no generation.
    """
    files = sorted((run / "samples").glob("iter-*.jsonl"), key=lambda p: (len(p.name), p.name))  # 1000 after 999
    if not files:
        raise FileNotFoundError(f"{run} has no samples/iter-NNN.jsonl, so there is nothing to list; a run is runs/NAME")
    gc.disable()  # nothing becomes garbage here, and looking for it would take a third of the time
    try:
        generations = [_checked(r, path, number) for path in files for number, r in enumerate(read_lines(path), 1)]
    finally:
        gc.enable()
    if not generations:
        raise ValueError(f"{run} has no whole generation in its samples yet")
    return generations


def _checked(record: dict, path: Path, number: int) -> Generation:
    try:
        g = generation(record)
        named = g.phase in PHASES and g.verdict in VERDICTS
        numbers, texts = (g.iteration, g.sample), (g.problem, g.text, g.answer or "")
        if not (named and all(isinstance(n, int) for n in numbers) and all(isinstance(t, str) for t in texts)):
            raise TypeError("a field has a value that it cannot have")
    except (AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"{path}, line {number}, is no generation that this version knows: {e}") from None
    return g


def matches(g: Generation, filter: Filter) -> bool:
    """Does a generation pass all parts of the filter?"""
    if filter.iterations is not None and not filter.iterations[0] <= g.iteration <= filter.iterations[1]:
        return False
    if filter.phase not in (None, g.phase):
        return False
    if filter.problem not in (None, g.problem) and not g.problem.endswith(f"-{filter.problem}"):
        return False
    return filter.verdict in (None, g.verdict) or (filter.verdict in OUTCOMES and OUTCOMES[filter.verdict](g))


def nothing(filter: Filter, generations: Sequence[Generation]) -> str:
    """One line for a filter that none of these generations passes: what there is instead."""
    asked = vars(filter) | {"iterations": filter.iterations and "{}-{}".format(*filter.iterations)}
    said = "no generation" + "".join(f", {name} {visible(str(v))}" for name, v in asked.items() if v is not None)
    found = [g for g in generations if matches(g, Filter(problem=filter.problem))]
    there = found or generations
    if there:
        seen, phases, verdicts = ({getattr(g, name) for g in there} for name in ("iteration", "phase", "verdict"))
        said += (f"; {'it has' if found and filter.problem else 'there are'} iterations {min(seen)}-{max(seen)}, "
                 f"phases {', '.join(p for p in PHASES if p in phases)}, "
                 f"verdicts {', '.join(v for v in VERDICTS if v in verdicts)}")
    if there and not found:
        ids = {name: g.problem for g in generations for name in (g.problem.rpartition("-")[2], g.problem)}
        near = difflib.get_close_matches(filter.problem, ids, 3, 0.5) or list(ids)[:1]
        said += f"; nearest problems: {', '.join(dict.fromkeys(visible(ids[name]) for name in near))}"
    return said


def overview(generations: Sequence[Generation]) -> list[str]:
    """A table: a line for each iteration and phase. Texts are distinct as star/select sees it: of one problem."""
    groups: dict[tuple[int, int], list[Generation]] = {}
    for g in generations:
        groups.setdefault((g.iteration, PHASES.index(g.phase)), []).append(g)
    lines = [f"{'it':>4} {'phase':11}" + "".join(f"{v:>9}" for v in VERDICTS) + " | distinct right  mean tokens"]
    for (n, phase), part in sorted(groups.items()):
        count = Counter(g.verdict for g in part)
        distinct = len({(g.problem, g.text.strip()) for g in part if g.verdict == "right"})
        mean = sum(len(g.tokens) for g in part) / len(part)
        lines.append(f"{n:4} {PHASES[phase]:11}" + "".join(f"{count[v]:9}" for v in VERDICTS)
                     + f" | {distinct:14} {mean:12.1f}")
    return lines if groups else []


def listing(generations: Sequence[Generation], limit: int, width: int) -> list[str]:
    """A block for each of the first `limit` generations: what it is and how it was judged, then its text."""
    lines = []
    for g in generations[:limit]:
        says = f" (says {clip(g.answer, 40)})" if g.answer is not None else ""
        lines.append(f"iter {g.iteration} {g.phase} {clip(g.problem, 60)} sample {g.sample}: {g.verdict}{says}")
        text = wrapped(g.text, width - 4)
        if len(text) > SHOWN + 1:  # one line more takes no more room than saying so
            text[SHOWN:] = [f"... {len(text) - SHOWN} more lines"]
        lines += ["    " + line if line else "" for line in text] + [""]
    left = len(generations) - limit
    return [*lines, f"... {left} more generation{'s' * (left > 1)}"] if left > 0 else lines[:-1]


def side_by_side(generations: Sequence[Generation], width: int, questions: dict[str, str] | None = None) -> list[str]:
    """One problem's generations as columns, in the order they were made; what does not fit stands in bands below.

    A text that stands in an earlier column is named, not repeated. ValueError if there are several problems.
    """
    ids = list(dict.fromkeys(g.problem for g in generations))
    if len(ids) > 1:
        raise ValueError(f"side by side is for one problem, and these are {len(ids)}: "
                         f"{', '.join(clip(i, 40) for i in ids[:4])}{', ...' * (len(ids) > 4)}; give one whole id")
    made = sorted(generations, key=_position)
    right = next((g.answer for g in made if g.verdict == "right"), None)
    across = max(1, min(len(made), (width + len(GAP)) // (COLUMN + len(GAP))))
    wide = (width + len(GAP)) // across - len(GAP)
    lines = [f"problem {clip(i, 60)}" for i in ids]
    lines += ["    " + line for i in ids if i in (questions or {}) for line in wrapped(questions[i], width - 4)]
    columns = [[_title(g), *wrapped(_judgement(g, right), wide), "", *wrapped(_text(g, made), wide)] for g in made]
    for start in range(0, len(columns), across):
        rows = zip_longest(*columns[start : start + across], fillvalue="")
        lines += ["", *(GAP.join(cell.ljust(wide) for cell in row).rstrip() for row in rows)]
    return lines


def _position(g: Generation) -> tuple[int, int, int]:
    return g.iteration, PHASES.index(g.phase), g.sample


def _title(g: Generation) -> str:
    return f"it {g.iteration} · {g.phase}" + (f" · {g.sample}" if g.sample else "")


def _judgement(g: Generation, right: str | None) -> str:
    """The verdict in a line: "✓ rationalized", "✗ wrong: 5 ≠ 8"; without the 8 where no generation arrived at it."""
    if g.verdict == "right":
        name = "rationalized" if g.phase == "rationalize" else "right"
        return f"✓ {name}" + (", but a step is wrong" if g.steps_right is False else "")
    if g.verdict != "wrong":
        return f"✗ {g.verdict}"
    return f"✗ wrong: {g.answer}" + (f" ≠ {right}" if right is not None else "")


def _text(g: Generation, made: list[Generation]) -> str:
    """The text of a generation, or which of those made before it stands for."""
    first = next(other for other in made if other.text == g.text)
    if first is g:
        return g.text
    alone = sum(other.iteration == first.iteration for other in made) == 1
    return f"(as in iteration {first.iteration})" if alone else f"(as in {_title(first)})"


def journeys(generations: Sequence[Generation], limit: int) -> list[str]:
    """A row a problem, a column an iteration, a mark for its best outcome or else its last failure; then a legend.

    Rows that went from failing without a hint to right come first, then those tried in most iterations. At most
    `limit` rows are shown.
    """
    cells: dict[str, dict[int, str]] = {}
    for g in sorted(generations, key=_position):
        row = cells.setdefault(g.problem, {})
        if row.get(g.iteration, "w") not in RIGHT_MARKS.values():  # a right one stays, whatever came after it
            row[g.iteration] = RIGHT_MARKS[g.phase] if g.verdict == "right" else FAILED_MARKS[g.verdict]
    if not cells:
        return []
    iterations = sorted({g.iteration for g in generations})
    rows = [(clip(p, 32), [marks.get(n, ".") for n in iterations]) for p, marks in cells.items()]
    rows.sort(key=lambda row: (not _rose(row[1]), row[1].count(".")))
    table = [("problem", iterations), *rows[:limit]]
    name, wide = max(len(p) for p, _ in table), len(str(iterations[-1])) + 1
    lines = [f"{p:{name}}" + "".join(f"{mark:>{wide}}" for mark in marks) for p, marks in table]
    return [*lines, *([f"... {len(rows) - limit} more problems"] if len(rows) > limit else []), LEGEND]


def _rose(marks: list[str]) -> bool:
    """Did it fail unaided (R: it needed the hint) when it was first tried, and was right unaided when last tried?"""
    tried = [mark for mark in marks if mark != "."]
    return tried[0] not in "KE" and tried[-1] in "KE"


def visible(text: str) -> str:
    """Text without what a terminal obeys or cannot show: escapes, control and format characters, lone surrogates."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def clip(text: str, most: int) -> str:
    text = visible(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def wrapped(text: str, width: int) -> list[str]:
    """Visible lines of at most this width (but 20 always fit); they begin where the text's own lines do."""
    lines = text.strip("\n").expandtabs(4).split("\n")
    return [piece for line in (lines if text.strip() else ["(nothing)"])
            for piece in textwrap.wrap(visible(line), max(width, 20), break_on_hyphens=False) or [""]]
