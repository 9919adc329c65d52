"""What a run generated, read back from samples/iter-NNN.jsonl: counted, filtered, listed, and each problem's way.

It judges nothing again and shows only what was written down then. It returns lines of plain text, in which whatever a
model wrote is safe to print. It prints nothing.
"""

import gc
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from star.evaluate import VERDICTS
from star.problem import PHASES, SAMPLED, STUDENT, Generation
from star.run.lines import checked, read_lines
from star.tasks.records import clip
from star.text import visible

OUTCOMES = {  # beside VERDICTS' own names
    "kept": lambda g: g.kept and g.phase == "generate",
    "rationalized": lambda g: g.kept and g.phase == "rationalize",
    "failed": lambda g: g.verdict != "right",
    "truncated": lambda g: g.verdict == "length",
}
RIGHT_MARKS = {"generate": "K", "rationalize": "R", "validate": "E", "evaluate": "E", "pass at k": "E"}
FAILED_MARKS = {"wrong": "w", "unparsed": "u", "length": "t", "leak": "l", "open": "o"}
LEGEND = ("K right, R rationalized (these are trained on, or chosen from), E right in an evaluation; "
          "w wrong, u unparsed, t truncated, l leak; . not tried")
SHOWN = 12  # lines of a text in a listing


@dataclass(frozen=True)
class Filter:
    """Which generations to show; None lets all pass. ValueError names the choices if a name is none of them."""

    iterations: tuple[int, int] | None = None  # first and last
    phase: str | None = None
    verdict: str | None = None  # of VERDICTS or OUTCOMES
    problem: str | None = None  # an id, or what stands behind a "-" at its end: 17 for train-17
    source: str | None = None  # who wrote it

    def __post_init__(self):
        for name, choices in (("phase", SAMPLED), ("verdict", (*VERDICTS, *OUTCOMES))):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"the {name} is {value!r}; it must be one of {', '.join(choices)}")


def load(run: Path) -> list[Generation]:
    """All generations of a run folder, in the order of the iterations; a last line that is being written is left out.

    FileNotFoundError if it has no samples, ValueError if there is nothing in them or a line is no generation.
    """
    return load_asked(run)[0]


def load_asked(run: Path) -> tuple[list[Generation], dict[str, tuple[str, str]]]:
    """(`load`, problem id -> (its question, the right answer) as the samples have them)."""
    files = sorted((run / "samples").glob("iter-*.jsonl"), key=lambda p: (len(p.name), p.name))  # 1000 after 999
    if not files:
        raise FileNotFoundError(f"{run} has no samples/iter-NNN.jsonl, so there is nothing to list; a run is runs/NAME")
    gc.disable()  # nothing becomes garbage here, and looking for it would take a third of the time
    try:
        records = [(r, path, number) for path in files for number, r in enumerate(read_lines(path), 1)]
        generations = [checked(*record) for record in records]
    finally:
        gc.enable()
    if not generations:
        raise ValueError(f"{run} has no whole generation in its samples yet")
    return generations, {r["problem"]: (str(r.get("question", "")), str(r.get("right_answer", "")))
                         for r, *_ in records}


def browse(run: Path, wanted: Filter, limit: int, width: int) -> list[str]:
    """Without a filter an overview and each problem's way, else a list. ValueError says what there is instead of none.
    """
    everything, asked = load_asked(run)
    found = [g for g in everything if matches(g, wanted)]
    if not found:
        raise ValueError(nothing(wanted, everything))
    if wanted != Filter():
        return listing(found, limit, width, asked)
    tries = [g for g in found if g.phase in ("generate", "rationalize")]
    return [*overview(found), "", *journeys(tries or found, limit)]


def matches(g: Generation, filter: Filter) -> bool:
    """Does a generation pass all parts of the filter?"""
    if filter.iterations is not None and not filter.iterations[0] <= g.iteration <= filter.iterations[1]:
        return False
    if filter.phase not in (None, g.phase):
        return False
    if filter.source not in (None, g.source):
        return False
    if filter.problem not in (None, g.problem) and not g.problem.endswith(f"-{filter.problem}"):
        return False
    return filter.verdict in (None, g.verdict) or (filter.verdict in OUTCOMES and OUTCOMES[filter.verdict](g))


def nothing(filter: Filter, generations: Sequence[Generation]) -> str:
    """One line for a filter that none of these generations passes: what there is instead."""
    asked = vars(filter) | {"iterations": filter.iterations and "{}-{}".format(*filter.iterations)}
    line = "no generation" + "".join(f", {name} {visible(str(v))}" for name, v in asked.items() if v is not None)
    found = [g for g in generations if matches(g, Filter(problem=filter.problem))]
    there = found or generations
    if not there:
        return line
    seen, phases, verdicts = ({getattr(g, name) for g in there} for name in ("iteration", "phase", "verdict"))
    line += (f"; {'it has' if found and filter.problem else 'there are'} iterations {min(seen)}-{max(seen)}, "
             f"phases {', '.join(p for p in PHASES if p in phases)}, "
             f"verdicts {', '.join(v for v in VERDICTS if v in verdicts)}")
    ids = list(dict.fromkeys(clip(g.problem, 40) for g in generations))
    return line if found else f"{line}, problems such as {', '.join(ids[:3])}"


def overview(generations: Sequence[Generation]) -> list[str]:
    """A table: a line for each iteration and phase. Texts are distinct as star/select sees it: of one problem."""
    groups: dict[tuple[int, int, str], list[Generation]] = {}
    for g in generations:
        who = "" if g.source == STUDENT else clip(g.source, 24)
        groups.setdefault((g.iteration, PHASES.index(g.phase), f"{g.phase} {who}".rstrip()), []).append(g)
    wide = max([11, *(len(name) for *_, name in groups)])
    shown = [v for v in VERDICTS if v != "open" or any(g.verdict == v for g in generations)]
    lines = [f"{'it':>4} {'phase':{wide}}" + "".join(f"{v:>9}" for v in shown) + " | distinct right  mean tokens"]
    for (n, _, name), part in sorted(groups.items()):
        count = Counter(g.verdict for g in part)
        distinct = len({(g.problem, g.text.strip()) for g in part if g.verdict == "right"})
        mean = sum(len(g.tokens) for g in part) / len(part)
        lines.append(f"{n:4} {name:{wide}}" + "".join(f"{count[v]:9}" for v in shown)
                     + f" | {distinct:14} {mean:12.1f}")
    return lines if groups else []


def listing(generations: Sequence[Generation], limit: int, width: int, asked: dict[str, tuple[str, str]] | None = None
            ) -> list[str]:
    """A block for each of the first `limit` generations, iteration by iteration: what it is, its verdict, its text.

    asked: problem id -> (question, right answer), shown where it is known.
    """
    lines = []
    for g in sorted(generations, key=_position)[:limit]:
        question, answer = (asked or {}).get(g.problem, ("", ""))
        parts = [] if g.answer is None else [f"says {clip(g.answer, 40)}"]
        parts += [f"right is {clip(answer, 40)}"] if answer and g.verdict != "right" else []
        says = f" ({'; '.join(parts)})" if parts else ""
        steps = ", but a step is wrong" if g.steps_right is False else ""
        who = "" if g.source == STUDENT else f" of {clip(g.source, 40)}"
        what = f"iter {g.iteration} {g.phase} {clip(g.problem, 60)} sample {g.sample}{who}"
        lines.append(f"{what}: {g.verdict}{says}{steps}")
        lines += [f"  ? {clip(' '.join(question.split()), width - 4)}"] if question not in ("", g.problem) else []
        if g.reward is not None:
            scores = ", ".join(f"{clip(name, 24)} {score:.2f}" for name, score in (g.scores or {}).items())
            lines.append(f"    reward {g.reward:.3f} ({scores})")
        text = wrapped(g.text, width - 4)
        if len(text) > SHOWN + 1:  # one line more takes no more room than saying so
            text[SHOWN:] = [f"... {len(text) - SHOWN} more lines"]
        lines += ["    " + line if line else "" for line in text] + [""]
    left = len(generations) - limit
    return [*lines, f"... {left} more generation{'s' * (left > 1)}"] if left > 0 else lines[:-1]


def _position(g: Generation) -> tuple[int, int, int]:
    return g.iteration, PHASES.index(g.phase), g.sample


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


def wrapped(text: str, width: int) -> list[str]:
    """Visible lines of at most this width (but 20 always fit); they begin where the text's own lines do."""
    lines = text.strip("\n").expandtabs(4).split("\n")
    return [piece for line in (lines if text.strip() else ["(nothing)"])
            for piece in textwrap.wrap(visible(line), max(width, 20), break_on_hyphens=False) or [""]]
