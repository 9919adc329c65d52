"""report.html: a run that can be looked at, in one file that needs nothing beside it.

    config.json, metrics.jsonl, samples/iter-NNN.jsonl, task, tokenizer  ->  facts  ->  report.html

What is counted, chosen, rendered and encoded is done here, by the functions that the run itself uses; the page
(report.html beside this file) only shows it. Facts are columns of numbers that point into tables, where each text
stands once. They hold no time and no place of the run: equal runs write equal pages. It judges and prints nothing.
"""

import gc
import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import checkpoints
from checkpoints.files import read_json, write_atomically
from star import prompts
from star.config import DEFAULTS, StarConfig
from star.evaluate import VERDICTS
from star.problem import PHASES, STUDENT, Generation
from star.run.folder import Run
from star.run.lines import checked, read_lines
from star.run.progress import agreement, keep_rate, sources
from star.select import passes, select
from star.tasks import Task

PAGE = Path(__file__).with_name("report.html")
MOST = 40_000_000  # characters of JSON that generations may take, about: what a browser opens in a second or two
SAID = ("question", "right_answer")  # what a line of samples says of its problem
TRIES = ("generate", "rationalize")
ALL = 1 << 32  # above every `place`
TABLES = ("problems", "texts", "fronts", "prompts", "heads", "sources")
NAMES = tuple(VERDICTS)
FATES = ("unaided", "hinted", "trained", *(v for v in NAMES if v != "right"))  # of a problem in an iteration
MACHINE = ("device", "device_name", "dtype", "slots", "threads", "torch", "python", "git_commit")


class Report:
    """The page of a run, kept up to date: `write` reads the iterations that are new and writes all of it.

    Without task and tokenizer it has no prompts and no loss masks; `notes` are lines that say so, and why.
    """

    def __init__(self, run: Run, task: Task | None = None, tokenizer=None, notes: Sequence[str] = ()):
        self.run, self.task, self.tokenizer, self.notes = run, task, tokenizer, tuple(notes)
        self.path = run.folder / "report.html"
        self.problems = {p.id: p for p in [*task.heldout, *task.train]} if task else {}
        self._begin()

    def _begin(self) -> None:
        self.done, self.under_way = -1, False  # the last iteration that is taken in; was it not finished then?
        self.made: dict[int, list[Generation]] = {}  # those that the page has room for
        self.cut, self.crowded = ALL, False  # of iterations before the newest: problems whose `place` is below
        self.all_made: dict[int, int] = {}  # iteration -> how many there are
        self.said: dict[str, tuple[str, str | None]] = {}  # problem -> its SAID
        self.fates, self.answers, self.inexact = {}, {}, []  # by iteration
        self.before: list[Generation] = []  # what --keep all trains on again
        self.chosen: dict[int, list[Generation]] = {}
        self.rendered: dict[tuple, tuple[str, str]] = {}  # key of a prompt -> (text in front, what is asked)
        self._empty()

    def _empty(self) -> None:
        """No generation is on the page yet."""
        self.tables = {name: {} for name in TABLES}  # value -> its row
        self.index: dict[tuple, int] = {}  # key of a generation -> its row
        self.sequenced: set[tuple] = set()
        self.shared: tuple[int, ...] = ()  # ids that all training sequences begin with: of the few-shot text
        self.pieces: dict[int, str] = {}
        self.blocks: list[str] = []  # JSON of each iteration

    def write(self) -> Path:
        """Write report.html into the run's folder, atomically. ValueError names a file of samples that is damaged."""
        metrics = self.run.metrics()
        gc.disable()  # nothing becomes garbage here, and looking for it takes a third of the time
        try:
            if self.under_way:
                self._begin()
            for n in range(self.done + 1, self.run.iteration + 2):  # the last one is under way
                if self.run.samples(n).exists():
                    self._read(n, metrics)
            self.under_way = self.done > self.run.iteration
            if self.crowded:
                self._empty()
            self.blocks += [dumped(self._block(i)) for i in sorted(self.made)[len(self.blocks) :]]
            write_atomically(self.path, page(self.facts(metrics), self.blocks).encode())
        finally:
            gc.enable()
        return self.path

    def _read(self, n: int, metrics: Sequence[dict]) -> None:
        """Take in the samples of an iteration: count them all, keep what there is room for."""
        path, made = self.run.samples(n), []
        for number, record in enumerate(read_lines(path), 1):
            more = {k: record.pop(k) for k in SAID if k in record} if isinstance(record, dict) else {}
            made.append(checked(record, path, number))
            if SAID[0] in more and made[-1].problem not in self.said:
                question, answer = (str(more.get(k) or "") for k in SAID)
                self.said[made[-1].problem] = question, answer or None
        trained = next((m["examples"] for m in metrics if m["iteration"] == n and "kept" in m), None)
        chosen = self._trained_on(made) if trained is not None else []
        if trained is not None and len(chosen) != trained:
            self.inexact.append(n)
            chosen = [g for g in made if g.kept]
        self.done, self.made[n], self.chosen[n], self.all_made[n] = n, made, chosen, len(made)
        keys = {g.key for g in chosen}
        self.answers[n], self.fates[n] = self._answers(made, keys), self._fates(made, keys)
        self._make_room(n)

    def _trained_on(self, made: Sequence[Generation]) -> list[Generation]:
        """Lines 5 and 6 of Algorithm 1 once more, by star/select, as star/loop has them."""
        config = self.run.config
        kept = [g for g in made if g.phase in TRIES and passes(g, config)]
        self.before = kept if config.keep == "last" else sorted(self.before, key=lambda g: g.key) + kept
        most = config.max_per_problem or (1 if config.ranks else None)
        return select(self.before, config.dedup, most, config.ranks)

    def _make_room(self, n: int) -> None:
        """The newest iteration whole, if half the room is enough for it; of those before it a part of the problems, the
        same in all, so that their way can be followed. Never more than before: a resumed run ends alike."""
        self.cut = min(self.cut, fitting((g for i, part in self.made.items() if i < n for g in part), MOST // 2))
        limits = dict.fromkeys(self.made, self.cut) | {n: fitting(self.made[n], MOST // 2)}
        self.crowded = min(limits.values()) < ALL
        if self.crowded:
            for kept in (self.made, self.chosen):
                kept |= {i: [g for g in part if place(g.problem) < limits[i]] for i, part in kept.items()}

    def group(self, problem: str) -> str:
        return (self.problems[problem].group if problem in self.problems else "") or "all"

    def _answers(self, made: Sequence[Generation], chosen: set) -> list[list]:
        """Rows [phase, source, group, how many of each verdict, how many are trained on in this iteration]."""
        rows: dict[tuple[str, str, str], list] = {}
        for g in made:
            counts = rows.setdefault((g.phase, g.source, self.group(g.problem)), [[0] * len(NAMES), 0])
            counts[0][NAMES.index(g.verdict)] += 1
            counts[1] += g.key in chosen
        return [[*key, *counts] for key, counts in sorted(rows.items(), key=lambda item: PHASES.index(item[0][0]))]

    def _fates(self, made: Sequence[Generation], chosen: set) -> list[list]:
        """Rows [group, how many problems came to each of FATES]: solved unaided, with the hint, trained on though
        nobody knows the answer, or else the verdict on the last try."""
        fate: dict[str, str] = {}
        for g in (g for g in made if g.phase in TRIES):
            if fate.get(g.problem) not in ("unaided", "hinted", "trained"):
                solved = "unaided" if g.phase == "generate" else "hinted"
                open_ = "trained" if g.verdict == "open" and g.key in chosen else g.verdict
                fate[g.problem] = solved if g.kept else open_
        count = Counter((self.group(p), f) for p, f in fate.items())
        return [[group, [count[group, f] for f in FATES]] for group in dict.fromkeys(map(self.group, fate))]

    def facts(self, metrics: Sequence[dict]) -> dict:
        """What the page shows beside the generations."""
        run, written, usual = self.run, read_json(self.run.folder / "config.json"), StarConfig()
        settings, left = DEFAULTS | written["settings"], sum(self.all_made.values()) - len(self.index)
        strange = sum(p not in self.problems for p in self.tables["problems"]) if self.task else 0
        notes = [*self.notes, *([self._left_out(left)] if left else []), *(
            [f"{strange:,} problems are not in the task as it is now: they have no prompts and no loss masks."]
            if strange else []), *(
            f"What iteration {n} trained on cannot be computed again from its samples: all its right ones are shown so"
            for n in self.inexact)]
        return {
            "task": run.config.task, "model": Path(run.config.model or checkpoints.SHIPPED).name, "learns": run.learns,
            "iteration": run.iteration, "finished": run.finished, "notes": notes,
            "headline": [learning(metrics), losing(self.fates, metrics)],
            "settings": [[k, settings[k], settings[k] != getattr(usual, k)] for k in DEFAULTS] + [
                [k, v, True] for k, v in run.options.items() if v is not None],
            "machine": {k: written[k] for k in MACHINE if written.get(k) is not None},
            "verdicts": VERDICTS, "phases": PHASES, "student": STUDENT, "metrics": metrics,
            "said": {m["iteration"]: in_words(m) for m in metrics if "kept" in m},
            "groups": list(dict.fromkeys(p.group or "all" for p in self.problems.values())) or ["all"],
            "fate_names": FATES, "fates": self.fates, "answers": self.answers,
            "ends": list(self.tokenizer.eos_ids) if self.tokenizer else [],
            "shared_ids": self.shared, "pieces": self.pieces,
        }

    def _left_out(self, left: int) -> str:
        whole = [i for i, part in self.made.items() if len(part) == self.all_made[i]]
        kept = f"all of iteration {whole[-1]}, and " if whole else ""
        return (f"{left:,} of {sum(self.all_made.values()):,} answers are left out below, since no browser would open "
                f"them all: here are {kept}of each iteration those to a part of the problems, the same in all. Curves, "
                "table and counts are of all of them; python sample.py --run lists the others.")

    def _block(self, n: int) -> dict:
        """An iteration's generations as columns, and what they add to the tables that these point into (-1: nothing).
        """
        made, tables = self.made[n], self.tables
        had = {name: len(table) for name, table in tables.items()}
        texts, problems, who = tables["texts"], tables["problems"], tables["sources"]
        for g in made:
            self.index[g.key] = len(self.index)
        block = {
            "iteration": n, "phase": [PHASES.index(g.phase) for g in made], "sample": [g.sample for g in made],
            "verdict": [NAMES.index(g.verdict) for g in made], "tokens": [len(g.tokens) for g in made],
            "steps": [g.steps_right for g in made], "source": [row(who, g.source) for g in made],
            "problem": [row(problems, g.problem) for g in made], "text": [row(texts, g.text) for g in made],
            "says": [row(texts, g.answer) for g in made], "prompt": [self._prompt(g) for g in made],
        }
        if any(g.reward is not None for g in made):
            block |= {name: finite([getattr(g, name) for g in made]) for name in ("reward", "scores")}
        chosen = [g for g in self.chosen[n] if g.key in self.index]
        block |= {"trained": [self.index[g.key] for g in chosen], "sequences": self._sequences(chosen)}
        new = list(itertools.islice(problems, had["problems"], None))
        about = [self._about(p) for p in new]
        block["about"] = [[self.group(p), row(texts, q), row(texts, a)] for p, (q, a) in zip(new, about, strict=True)]
        return block | {name: list(itertools.islice(table, had[name], None)) for name, table in tables.items()}

    def _sequences(self, chosen: Sequence[Generation]) -> list[list[int]]:
        """[generation, row of its prompt's ids, ids that bear loss ...] of those trained on for the first time."""
        out, config = [], self.run.config
        known = {g.problem: self.problems[g.problem] for g in chosen if g.problem in self.problems}
        new = [g for g in chosen if g.problem in known and g.key not in self.sequenced] if self.tokenizer else []
        examples = [prompts.example(self.task, known[g.problem], self.tokenizer, g.tokens, config.few_shot_train)
                    for g in new]
        if config.few_shot_train and len(examples) > 1 and not self.shared:
            self.shared = tuple(prompts.split_prefix([list(e.tokens[: e.n_prompt]) for e in examples])[0])
        for g, e in zip(new, examples, strict=True):
            alike = e.tokens[: len(self.shared)] == self.shared
            head = (alike, *e.tokens[len(self.shared) if alike else 0 : e.n_prompt])
            out.append([self.index[g.key], row(self.tables["heads"], head), *e.tokens[e.n_prompt :]])
            self.sequenced.add(g.key)
        for i in {i for e in examples for i in e.tokens} - self.pieces.keys():  # alone, it would lose a space in front
            self.pieces[i] = self.tokenizer.decode([i, i])[len(self.tokenizer.decode([i])) :]
        return out

    def _about(self, problem: str) -> tuple[str, str | None]:
        """(question, right answer) as the samples have them, else the task, else the id and nothing."""
        known = self.problems.get(problem)
        return self.said.get(problem) or ((known.question, known.answer or None) if known else (problem, None))

    def _prompt(self, g: Generation) -> int:
        """Row of the prompt behind which it was sampled: (text in front, what is asked). -1: not known.

        Another model has its own template: of its prompt only what is asked is known.
        """
        problem, own, hinted = self.problems.get(g.problem), g.source == STUDENT, g.phase == "rationalize"
        if problem is None or (own and not self.tokenizer):
            return -1
        few_shot = own and self.run.config.shows_examples(g.iteration - (g.phase in TRIES), hinted)
        key = g.problem, hinted, few_shot, own
        if key not in self.rendered:
            chat = self.tokenizer.chat if own else None
            text = prompts.render(self.task, problem, chat, hinted, few_shot)
            asked = self.task.hinted(problem) if hinted else self.task.question(problem)
            at = max(text.rfind(self.task.turn(problem, hinted)) if chat else len(text) - len(asked), 0)
            self.rendered[key] = text[:at], text[at:]
        front, asked = self.rendered[key]
        return row(self.tables["prompts"], (row(self.tables["fronts"], front), row(self.tables["texts"], asked)))


def page(facts: dict, blocks: Sequence[str]) -> str:
    """The page with its facts, and those of each iteration as JSON."""
    data = f'{{"blocks":[{",".join(blocks)}],{dumped(finite(facts))[1:]}'
    return PAGE.read_text(encoding="utf-8").replace('"DATA"', data, 1)


def dumped(facts: dict) -> str:
    """JSON in ASCII without "<": it can close no script element, whatever a model wrote."""
    return json.dumps(facts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def row(table: dict, value) -> int:
    """The row of a value in a table; a new one stands at its end."""
    return -1 if value is None else table.setdefault(value, len(table))


def finite(value):
    """The same without numbers that JSON has no form for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def place(problem: str) -> int:
    """Where a problem stands among all: the same in every run."""
    return zlib.crc32(problem.encode("utf-8", "surrogatepass"))


def fitting(generations: Iterable[Generation], most: int) -> int:
    """The first place whose problem has no room any more; ALL if all have."""
    costs: Counter[int] = Counter()
    for g in generations:
        costs[place(g.problem)] += 200 + len(g.text) * (1 if g.text.isascii() else 6) + 6 * len(g.tokens)  # \uXXXX
    total = 0
    for at in sorted(costs):
        total += costs[at]
        if total > most:
            return at
    return ALL


def in_words(metrics: dict) -> list[str]:
    """What the terminal says below an iteration's line."""
    lines = [*sources(metrics), *agreement(metrics), *(keep_rate(metrics) if "tries" in metrics else [])]
    return [line.strip() for line in lines]


def learning(metrics: Sequence[dict]) -> str:
    measured = [m for m in metrics if "accuracy" in m or "reward" in m]
    if not measured:
        return "No iteration is finished yet."
    base, best = measured[0], metrics[-1].get("best", measured[-1]["iteration"])
    last = next((m for m in measured if m["iteration"] == best), measured[-1])
    which = f"iteration {last['iteration']}" + (", best on validation" if "best" in last else "")
    if "reward" in last:
        return (f"The judge's mean reward of held-out answers is {base['reward']['mean']:.3f} for the base"
                + (f" and {last['reward']['mean']:.3f} after {which}." if last is not base else "."))
    (low, high), share, was = last["interval"]["mean"], last["accuracy"]["mean"], base["accuracy"]["mean"]
    if last is base:
        return f"The base answers {was:.1%} of the held-out problems rightly (95 % interval {low:.1%} to {high:.1%})."
    apart = low > base["interval"]["mean"][1] or high < base["interval"]["mean"][0]
    how = ("rose" if share > was else "fell") if apart else "did not surely change: it went"
    return (f"Held-out accuracy {how} from {was:.1%} (the base) to {share:.1%} ({which}; 95 % interval {low:.1%} to "
            f"{high:.1%}).")


def losing(fates: dict[int, list], metrics: Sequence[dict]) -> str:
    tried = [n for n, rows in fates.items() if rows]
    if not tried:
        given = next((m["examples"] for m in metrics if "examples" in m), None)
        return (f"Nothing was sampled to be trained on; {given:,} written examples were given." if given else
                "Nothing was sampled to be trained on yet.")
    n, count = max(tried), Counter()
    for _, numbers in fates[n]:
        count.update(dict(zip(FATES, numbers, strict=True)))
    total, solved = sum(count.values()), count["unaided"] + count["hinted"]
    if count["open"] or count["trained"]:
        return (f"Iteration {n}: of {total:,} problems, none with an answer to compare with, {count['trained']:,} gave "
                "one to train on.")
    lost = ", ".join(f"{count[f]:,} {f}" for f in FATES[3:] if count[f])
    return (f"Iteration {n}: of {total:,} problems {solved:,} were solved ({solved / total:.1%}), {count['hinted']:,} "
            f"of them only with the hint{'; lost, by the last try: ' if lost else ''}{lost}.")
