"""The folder of a run: everything that happened, written so that a stop at any moment loses at most the work in hand.

    config.json            settings, task options, command line, versions, git commit, device, dtype
    metrics.jsonl          one line an iteration; equal runs write equal lines
    timings.jsonl          seconds and tokens/s by phase, shares of what the device can do: all that differs between two
                           equal runs is here or above
    samples/iter-003.jsonl every generation with its verdict, its question and the right answer, and its scores if there
                           is a judge
    adapters/iter-003/     what the model had learned by then, in PEFT's layout
    curves.png             held-out accuracy over iterations
    report.html            the run to look at: where rationales were lost, and each problem's journey
    training/              a training under way (star/run/unfinished), gone when its iteration is finished
    state.json             where to go on, and the size and checksum of what is whole; written last, atomically

It writes what star/loop yields, and reads it back: `Run.open` is the one reader of config.json. One process at a time
writes a folder (star/run/lock), and a signal waits for a write to end (star/run/signals). It decides nothing and prints
nothing.
"""

import contextlib
import json
import time
import warnings
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

import torch

from checkpoints.adapters import save_adapter
from checkpoints.files import read_json, read_json_if_there, write_atomically, write_json
from star.config import DEFAULTS, StarConfig
from star.decoder import Decoder
from star.loop import State
from star.problem import SAMPLED, Chunk, Event, Finished, Generation, Note, Phase, Scored, Step, Tick
from star.run import unfinished
from star.run.clock import Clock
from star.run.inputs import inputs, replaced
from star.run.ledger import (
    clipped,
    is_ledger,
    never_began,
    next_folder,
    refuse_links,
    refuse_program,
    size_and_checksum,
)
from star.run.lines import append, checked, chunks, generation, read_lines, sealed, whole_chunks
from star.run.lock import lock
from star.run.measured import measured
from star.run.rates import Meter
from star.run.signals import written_first
from star.tasks import short_name

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
SAVE_AFTER = 10.0  # seconds between saves of a training, at least
SAVE_SHARE = 1 / 50  # of its time that a training may spend on being saved, and a judge on its scores


class Run:
    """One run folder. `create` a new one, `open` or `resume` one; then give `record` every event."""

    def __init__(self, folder: Path, config: StarConfig, options: dict):
        self.folder, self.config, self.options, self.clock = folder, config, options, Clock()
        self.changed: dict = {}  # settings that a resumed run has been given anew
        self.learns = "rationales"  # STaR; "gold" and "answers" are star/experiments/baseline's
        self.iteration, self.best, self.finished = -1, None, False  # as in state.json
        self.files: dict[str, list[int]] = {}  # what is whole: [bytes, checksum] by its path in the folder
        self.timings: dict = {}  # of the iteration last finished
        self.notes: list[str] = []  # of the iteration in hand
        self.meter: Meter | None = None  # None: timings say nothing of what the device can do
        self.where = "before the first iteration"
        self._lock: IO[str] | None = None  # held by whoever writes
        self._scores: list[Generation] = []  # not yet written down
        self._saved, self._cost = time.perf_counter(), 0.0  # when a training or scores were written, and in what time

    @classmethod
    def create(cls, folder: Path | None, config: StarConfig, options: dict, facts: dict, learns: str = "rationales"
               ) -> "Run":
        """Start a folder; None takes the next free runs/<task>-NNN. FileExistsError if it holds something already."""
        folder = next_folder(short_name(config.task)) if folder is None else folder
        if folder.exists() and not never_began(folder):
            raise FileExistsError(f"{folder} exists and is not empty; go on with it by --resume {folder}, or give "
                                  "another --out")
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, config, options)
        run.learns = learns
        run._hold(lock(folder))
        refuse_links(folder)
        if not never_began(folder):  # somebody was faster
            raise FileExistsError(f"{folder} has just been begun by another process: give another --out")
        for part in ("samples", "adapters"):
            (folder / part).mkdir(exist_ok=True)
        write_json(folder / "config.json", {"settings": asdict(config), "options": options, "learns": learns,
                                             "inputs": inputs(config, options), **facts})
        run._write_state(-1, None, False)
        return run

    @classmethod
    def open(cls, folder: Path, **changed) -> "Run":
        """A run as it was left, to read. FileNotFoundError or ValueError, one line, for what is no run of this version.

        changed: settings in place of the run's own. Settings that its version did not have are at their defaults.
        """
        begun = read_lines(folder / "metrics.jsonl") != []  # else it may have been stopped before its first state.json
        for name in ("config.json", *["state.json"] * begun):
            if not (folder / name).is_file():
                if begun:
                    raise FileNotFoundError(f"{folder} has lost its {name}: put it back, or start a new run")
                new = "it was stopped before it began: begin it again by --out" if never_began(folder) else (
                    "a run lies in runs/NAME")
                raise FileNotFoundError(f"{folder} is no run: it has no {name}; {new}")
        written, state = read_json(folder / "config.json"), read_json_if_there(folder / "state.json")
        state = state or {"iteration": -1}
        settings, options, files = written.get("settings"), written.get("options", {}), state.get("files", {})
        sound = isinstance(settings, dict) and isinstance(options, dict) and isinstance(state.get("best", 0), int)
        if not sound or not settings or type(state.get("iteration")) is not int or state["iteration"] < -1 or (
                not is_ledger(files)):
            raise ValueError(f"{folder}: config.json has no settings, or state.json no iteration")
        odd, lacks = sorted(set(settings) - set(DEFAULTS)), sorted(set(DEFAULTS) - set(settings))
        if odd:
            raise ValueError(f"{folder} was written by another version: its config.json has {clipped(odd)}; go on with "
                             f"that version (git commit {str(written.get('git_commit'))[:40]})")
        if lacks:
            warnings.warn(f"{folder} was written by another version: {clipped(lacks)} are not in its config.json, and "
                          "taken at their defaults", stacklevel=1)
        settings |= {k: written[k] for k in ("dtype", "slots") if k in written}  # what auto came to then
        try:
            config = StarConfig(**settings)
        except ValueError as e:
            raise ValueError(f"{folder}/config.json: {e}") from None
        refuse_program(folder, config.task)
        run = cls(folder, replace(config, **changed), options)
        run.iteration, run.best, run.finished = state["iteration"], state.get("best"), state.get("finished") is True
        run.learns, run.files, run.changed = str(written.get("learns")), files, changed
        return run

    @classmethod
    def resume(cls, folder: Path, **changed) -> tuple["Run", State, list[Generation]]:
        """(run, state, what star/loop needs of the generations made); settings are the run's own but for `changed`.

        ValueError also for a run that another process writes, for a model or data that were replaced since (what was
        judged then would meet others now), and for pieces of it that are lost.
        """
        cls.open(folder)
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(lock(folder))
            refuse_links(folder)
            run = cls.open(folder, **changed)  # nobody writes any more
            run._hold(held)
            state, given = run._go_back()
            stack.pop_all()  # the lock stays
        return run, state, given

    def _go_back(self) -> tuple[State, list[Generation]]:
        """Take away what stands behind the last whole chunk, and read what is there."""
        folder = self.folder
        began = read_json(folder / "config.json").get("inputs") or {}
        if not isinstance(began, dict) or not all(isinstance(code, str) for code in began.values()):
            warnings.warn(f"{folder} was written by another version: whether its data changed cannot be told",
                          stacklevel=1)
        elif said := replaced(began, inputs(self.config, self.options), folder):
            raise ValueError(said)
        metrics = [r for r in self.metrics() if r["iteration"] <= self.iteration]
        if len(metrics) != self.iteration + 1 or [m["iteration"] for m in metrics] != list(range(len(metrics))):
            raise ValueError(f"{folder / 'metrics.jsonl'} must have a line for each of the iterations 0 to "
                             f"{self.iteration}: put the former file back, or start a new run")
        self._check_files()
        path = folder / "timings.jsonl"
        timings = [r for r in measured(read_lines(path), path) if r["iteration"] <= self.iteration]
        for name, lines in (("metrics.jsonl", metrics), ("timings.jsonl", timings)):  # a stop came before state.json
            write_atomically(folder / name, "".join(json.dumps(r) + "\n" for r in lines).encode())
        path = self.samples(self.iteration + 1)
        records = whole_chunks(read_lines(path), path)
        if path.exists():
            write_atomically(path, "".join(json.dumps(r) + "\n" for r in records).encode())
        made = [checked(r, path, i) for i, r in enumerate(records, 1)]
        known = {m["iteration"]: m["validation"]["mean"] for m in metrics if "validation" in m}
        state = State(self.iteration, known, unfinished.load(self.training, self.iteration + 1))
        (folder / "adapters").mkdir(exist_ok=True)
        (folder / "samples").mkdir(exist_ok=True)
        self.best, self.finished = state.best, state.done(self.config)
        if self.config.keep == "all":
            made = [checked(r, self.samples(n), i) for n in range(1, self.iteration + 1)
                    for i, r in enumerate(read_lines(self.samples(n)), 1)] + made
        return state, made

    def goes_on(self, facts: dict) -> list[str]:
        """Write down that, how and with which settings a resumed run goes on. Notes on what may change its bytes."""
        path = self.folder / "config.json"
        began = read_json(path)
        resumed = began.get("resumed", [])
        if not isinstance(resumed, list) or not all(isinstance(r, dict) for r in resumed):
            raise ValueError(f"{path} is damaged: resumed is {str(resumed)[:60]}")
        last = [began, *resumed][-1]
        notes = [f"the run was written with {name} {last[name]}, and goes on with {name} {facts[name]}: the last "
                 "digits of log-probabilities may differ from what they would have been"
                 for name in ("torch", "threads", "ranks", "device", "slots")
                 if name in last and last[name] != facts[name]]
        write_json(path, began | {"settings": began["settings"] | self.changed, "slots": facts["slots"],
                                  "resumed": [*resumed, facts]})
        self._write_state(self.iteration, self.best, self.finished)
        return notes

    def close(self) -> None:
        """Let another process write the folder."""
        if self._lock is not None:
            self._lock.close()

    def _hold(self, held: IO[str]) -> None:
        """Keep the folder's lock; a run that nobody holds lets go of it, and not the collector, which warns."""
        self._lock = held
        weakref.finalize(self, held.close)

    def _check_files(self) -> None:
        """ValueError for files that going on needs, and that are not as the run left them."""
        needed = ["metrics.jsonl", *(f"adapters/iter-{self.iteration:03d}/{name}" for name in ADAPTER)]
        needed += [f"samples/iter-{n:03d}.jsonl" for n in range(1, self.iteration + 1) if self.config.keep == "all"]
        for name in needed:
            path = self.folder / name
            if name in self.files and size_and_checksum(path, self.files[name][0]) != self.files[name]:
                what = "is not as this run left it" if path.is_file() else "is gone, and the run goes on from it"
                raise ValueError(f"{path} {what}: put the former file back, or start a new run")

    @property
    def training(self) -> Path:
        return self.folder / "training"

    def samples(self, iteration: int) -> Path:
        return self.folder / "samples" / f"iter-{iteration:03d}.jsonl"

    def adapter(self, iteration: int) -> Path:
        return self.folder / "adapters" / f"iter-{iteration:03d}"

    def metrics(self) -> list[dict]:
        """A line an iteration. ValueError names one that no run writes."""
        path = self.folder / "metrics.jsonl"
        return measured(read_lines(path), path)

    def choose(self, iteration: int | None, base: bool = False) -> int:
        """The iteration asked for; None: the best on validation, else the last (0 with `base`)."""
        last = max(self.iteration, 0)
        if iteration is None:
            return 0 if base else max(last if self.best is None else self.best, 0)
        if not 0 <= iteration <= last:
            raise ValueError(f"--iteration is {iteration}, but {self.folder} has iterations 0 (the base) to {last}")
        return iteration

    def record(self, event: Event, model: Decoder) -> None:
        """Write down one event of star/loop."""
        if isinstance(event, Phase):
            self._score()
            self.clock.enter(event.name, event.source)
            self.where = f"iteration {event.iteration}, {event.name}"
            self._saved, self._cost = time.perf_counter(), 0.0
        elif isinstance(event, Tick):
            self.clock.count(event.tokens)
        elif isinstance(event, Step):
            self._step(event, model)
        elif isinstance(event, Note):
            self.notes.append(event.text)
        elif isinstance(event, Chunk):
            lines = [vars(g) | {"question": p.question, "right_answer": p.answer}
                     for g, p in zip(event.generations, event.problems, strict=True)]
            with written_first():
                append(self.samples(lines[0]["iteration"]), sealed(lines))
        elif isinstance(event, Scored):
            self._scores += event.generations
            if time.perf_counter() - self._saved >= self._cost / SAVE_SHARE:
                self._score()
        elif isinstance(event, Finished):
            self._score()
            with written_first():
                self._finish(event, model)

    def _step(self, event: Step, model: Decoder) -> None:
        """Write a training down every so often: by default when the last time has cost a fiftieth of what it took."""
        self.clock.count(event.tokens)
        every, began = self.config.save_every, time.perf_counter()
        due = began - self._saved > max(SAVE_AFTER, self._cost / SAVE_SHARE)
        if event.last or len(event.stats.losses) % every == 0 if every else due:
            self.clock.enter("save")
            with written_first():
                unfinished.save(self.training, event.iteration, event.stats, model)
            self._saved = time.perf_counter()
            self._cost = self._saved - began
            self.clock.enter("train")

    def _score(self) -> None:
        """Put scores beside what they are of, in one atomic write of the file."""
        if not self._scores:
            return
        began = time.perf_counter()
        path, scored = self.samples(self._scores[0].iteration), {g.key: g for g in self._scores}
        records = read_lines(path)
        for r in records:
            if g := scored.get(generation(r).key):
                r |= {"scores": g.scores, "reward": g.reward}
        lines = [r for chunk in chunks(records, path, fresh=True) for r in chunk]
        with written_first():
            write_atomically(path, "".join(json.dumps(r) + "\n" for r in lines).encode())
        self._scores, self._saved = [], time.perf_counter()
        self._cost = self._saved - began

    def _finish(self, event: Finished, model: Decoder) -> None:
        self.clock.enter("save")
        adapter, n = self.adapter(event.iteration), event.iteration
        if n:
            save_adapter(model, adapter)
        append(self.folder / "metrics.jsonl", [event.metrics])
        for path in (self.folder / "metrics.jsonl", self.samples(n), *(adapter / name for name in ADAPTER if n)):
            if path.is_file():
                self.files[str(path.relative_to(self.folder))] = size_and_checksum(path)
        self.clock.enter("")
        memory = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None
        self.timings = {
            "iteration": n, "seconds": {k: round(v, 3) for k, v in self.clock.seconds.items()},
            "tokens": {"sampled": self.clock.sampled()[0], "trained": self.clock.tokens.get("train", 0)},
            "sampled_tokens_per_s": round(self.clock.rate(*SAMPLED)),
            "trained_tokens_per_s": round(self.clock.rate("train")), "peak_device_bytes": memory,
            **({"notes": self.notes} if self.notes else {}),
        }
        if self.meter:
            self.timings |= {"ranks": self.meter.ranks} if self.meter.ranks > 1 else {}
            trained = self.clock.seconds.get("train", 0.0), self.clock.tokens.get("train", 0)
            use = self.meter.lap(self.clock.student, *trained, event.metrics)
            self.timings |= {"rates": self.meter.rates and asdict(self.meter.rates), "use": use}
        append(self.folder / "timings.jsonl", [self.timings])
        self._write_state(n, event.metrics.get("best"), event.done)
        unfinished.clear(self.training)
        self.clock, self.notes = Clock(), []

    def _write_state(self, iteration: int, best: int | None, finished: bool) -> None:
        self.iteration, self.best, self.finished = iteration, best, finished
        chosen = {} if best is None else {"best": best}
        write_json(self.folder / "state.json", {"iteration": iteration, "finished": finished, **chosen,
                                                "files": self.files})
