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
    state.json             where to go on; written last, atomically

It writes what star/loop yields, and reads it back: `Run.open` is the one reader of config.json. It decides nothing and
prints nothing.
"""

import json
import os
import subprocess
import sys
import time
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from checkpoints.adapters import save_adapter
from checkpoints.files import read_json, write_atomically, write_json
from star.config import DEFAULTS, StarConfig, several
from star.decoder import Decoder
from star.loop import State
from star.problem import SAMPLED, STUDENT, Chunk, Event, Finished, Generation, Phase, Scored, Tick
from star.run.rates import Meter
from star.tasks import is_file, short_name

READ = (".safetensors", ".json", ".jsonl", ".model", ".jinja", ".txt")  # what is read of a folder; not its README
ENDS = 2**20  # bytes of a file, at either end, that its checksum is made of


@dataclass
class Clock:
    """Seconds and tokens of each phase of an iteration."""

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)  # rationales or steps that took tokens
    student: float = 0.0  # seconds in which the student sampled, and no other model did
    _phase: str = ""
    _since: float = 0.0
    _source: str = STUDENT

    def enter(self, phase: str, source: str = STUDENT) -> None:
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
            if self._phase in SAMPLED and self._source == STUDENT:
                self.student += now - self._since
        self._phase, self._since, self._source = phase, now, source

    def count(self, tokens: int) -> None:
        self.tokens[self._phase] = self.tokens.get(self._phase, 0) + tokens
        self.rows[self._phase] = self.rows.get(self._phase, 0) + (tokens > 0)

    def sampled(self) -> tuple[int, int, float]:
        """(tokens, rationales, seconds) of the phases that sample, the one in hand included."""
        now = time.perf_counter() - self._since if self._phase in SAMPLED else 0.0
        seconds = sum(s for phase, s in self.seconds.items() if phase in SAMPLED) + now
        kinds = [phase for phase in self.tokens if phase in SAMPLED]
        return sum(self.tokens[k] for k in kinds), sum(self.rows.get(k, 0) for k in kinds), seconds

    def rate(self, *phases: str) -> float:
        """Tokens a second over these phases together."""
        return sum(self.tokens.get(p, 0) for p in phases) / max(sum(self.seconds.get(p, 0.0) for p in phases), 1e-9)


class Run:
    """One run folder. `create` a new one, `open` or `resume` one; then give `record` every event."""

    def __init__(self, folder: Path, config: StarConfig, options: dict):
        self.folder, self.config, self.options, self.clock = folder, config, options, Clock()
        self.learns = "rationales"  # STaR; "gold" and "answers" are star/experiments/baseline's
        self.iteration, self.best, self.finished = -1, None, False  # as in state.json
        self.timings: dict = {}  # of the iteration last finished
        self.meter: Meter | None = None  # None: timings say nothing of what the device can do
        self.where = "before the first iteration"

    @classmethod
    def create(cls, folder: Path | None, config: StarConfig, options: dict, facts: dict, learns: str = "rationales"
               ) -> "Run":
        """Start a folder; None takes the next free runs/<task>-NNN. FileExistsError if it holds something already."""
        if folder is None:
            task = short_name(config.task)
            taken = [p.name.rpartition("-")[2] for p in Path("runs").glob(f"{task}-*")]
            number = max((int(n) for n in taken if n.isdecimal()), default=0) + 1
            folder = Path("runs") / f"{task}-{number:03d}"
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and is not empty; go on with it by --resume {folder}, or give "
                                  "another --out")
        for part in ("samples", "adapters"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"settings": asdict(config), "options": options, "learns": learns,
                                             "inputs": inputs(config, options), **facts})
        run = cls(folder, config, options)
        run.learns = learns
        run._write_state(-1, None, False)
        return run

    @classmethod
    def open(cls, folder: Path, **changed) -> "Run":
        """A run as it was left, to read. FileNotFoundError or ValueError, one line, for what is no run of this version.

        changed: settings in place of the run's own.
        """
        for name in ("state.json", "config.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is no run: it has no {name}; a run lies in runs/NAME")
        written, state = read_json(folder / "config.json"), read_json(folder / "state.json")
        settings, options = written.get("settings"), written.get("options", {})
        sound = isinstance(settings, dict) and isinstance(options, dict) and isinstance(state.get("best", 0), int)
        if not sound or type(state.get("iteration")) is not int:
            raise ValueError(f"{folder}: config.json has no settings, or state.json no iteration")
        odd, lacks = sorted(set(settings) - set(DEFAULTS)), sorted(set(DEFAULTS) - set(settings))
        if odd or lacks:
            what = [f"{verb} {', '.join(names)}" for verb, names in (("has", odd), ("lacks", lacks)) if names]
            raise ValueError(f"{folder} was written by another version: config.json {' and '.join(what)}; go on with "
                             f"that version (git commit {written.get('git_commit')})")
        settings |= {k: written[k] for k in ("dtype", "slots") if k in written}  # what auto came to then
        try:
            config = StarConfig(**settings)
        except ValueError as e:
            raise ValueError(f"{folder}/config.json: {e}") from None
        run = cls(folder, replace(config, **changed), options)
        run.iteration, run.best, run.finished = state["iteration"], state.get("best"), state.get("finished") is True
        run.learns = str(written.get("learns"))
        return run

    @classmethod
    def resume(cls, folder: Path, **changed) -> tuple["Run", State, list[Generation]]:
        """(run, state, what star/loop needs of the generations made); settings are the run's own but for `changed`.

        ValueError also for a model or data that were replaced since: what was judged then would meet others now.
        """
        run = cls.open(folder, **changed)
        began, now = read_json(folder / "config.json").get("inputs") or {}, inputs(run.config, run.options)
        for path in began.keys() & now.keys():
            if began[path] != now[path]:
                raise ValueError(f"{path} is not what {folder} began with: put the former one back, or start a new run")
        for name in ("metrics.jsonl", "timings.jsonl"):  # a stop may have come between these and state.json
            lines = [r for r in read_lines(folder / name) if r["iteration"] <= run.iteration]
            write_atomically(folder / name, "".join(json.dumps(r) + "\n" for r in lines).encode())
        records = whole_chunks(read_lines(run.samples(run.iteration + 1)))
        if run.samples(run.iteration + 1).exists():
            write_atomically(run.samples(run.iteration + 1), "".join(json.dumps(r) + "\n" for r in records).encode())
        known = {m["iteration"]: m["validation"]["mean"] for m in run.metrics() if "validation" in m}
        state = State(run.iteration, known)
        run._write_state(state.iteration, state.best, state.done(run.config))
        if run.config.keep == "all":
            records = [r for i in range(1, run.iteration + 1) for r in read_lines(run.samples(i))] + records
        return run, state, [generation(r) for r in records]

    def samples(self, iteration: int) -> Path:
        return self.folder / "samples" / f"iter-{iteration:03d}.jsonl"

    def adapter(self, iteration: int) -> Path:
        return self.folder / "adapters" / f"iter-{iteration:03d}"

    def metrics(self) -> list[dict]:
        return read_lines(self.folder / "metrics.jsonl")

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
            self.clock.enter(event.name, event.source)
            self.where = f"iteration {event.iteration}, {event.name}"
        elif isinstance(event, Tick):
            self.clock.count(event.tokens)
        elif isinstance(event, Chunk):
            lines = [asdict(g) | {"question": p.question, "right_answer": p.answer, "chunk": len(event.generations)}
                     for g, p in zip(event.generations, event.problems, strict=True)]
            append(self.samples(lines[0]["iteration"]), lines)
        elif isinstance(event, Scored):
            self._score(event.generations)
        elif isinstance(event, Finished):
            self._finish(event, model)

    def _score(self, generations: list[Generation]) -> None:
        """Put scores beside what they are of, in one atomic write: after a stop all of them are there, or none."""
        path, scored = self.samples(generations[0].iteration), {g.key: g for g in generations}
        records = read_lines(path)
        for r in records:
            if g := scored.get(generation(r).key):
                r |= {"scores": g.scores, "reward": g.reward}
        write_atomically(path, "".join(json.dumps(r) + "\n" for r in records).encode())

    def _finish(self, event: Finished, model: Decoder) -> None:
        self.clock.enter("save")
        if event.iteration:
            save_adapter(model, self.adapter(event.iteration))
        append(self.folder / "metrics.jsonl", [event.metrics])
        self.clock.enter("")
        memory = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None
        self.timings = {
            "iteration": event.iteration, "seconds": {k: round(v, 3) for k, v in self.clock.seconds.items()},
            "tokens": {"sampled": self.clock.sampled()[0], "trained": self.clock.tokens.get("train", 0)},
            "sampled_tokens_per_s": round(self.clock.rate(*SAMPLED)),
            "trained_tokens_per_s": round(self.clock.rate("train")), "peak_device_bytes": memory,
        }
        if self.meter:
            use = self.meter.lap(self.clock.student, self.clock.seconds.get("train", 0.0), event.metrics)
            self.timings |= {"rates": self.meter.rates and asdict(self.meter.rates), "use": use}
        append(self.folder / "timings.jsonl", [self.timings])
        self._write_state(event.iteration, event.metrics.get("best"), event.done)
        self.clock = Clock()

    def _write_state(self, iteration: int, best: int | None, finished: bool) -> None:
        self.iteration, self.best, self.finished = iteration, best, finished
        chosen = {} if best is None else {"best": best}
        write_json(self.folder / "state.json", {"iteration": iteration, "finished": finished, **chosen})


def inputs(config: StarConfig, options: dict) -> dict[str, int]:
    """path -> checksum of each file and folder that settings and task options name, and that is there."""
    task = [config.task] * is_file(config.task)
    named = [*task, config.model, config.reward, *several(config.generators), *several(config.candidates)]
    paths = {str(p) for p in (*named, *options.values()) if p and isinstance(p, str | Path) and Path(p).exists()}
    return {p: checksum(Path(p)) for p in sorted(paths)}


def checksum(path: Path) -> int:
    """Of a file, or of what is read of a folder: of names and sizes, and of what stands at the files' ends."""
    code = 0
    for file in [f for f in sorted(path.iterdir()) if f.suffix in READ] if path.is_dir() else [path]:
        if file.is_file():
            size = file.stat().st_size
            code = zlib.crc32(f"{file.name} {size}".encode(), code)
            with open(file, "rb") as f:
                code = zlib.crc32(f.read(ENDS), code)
                f.seek(max(0, size - ENDS))
                code = zlib.crc32(f.read(ENDS), code)
    return code


def append(path: Path, records: list[dict]) -> None:
    """Add lines to a file; they are on the disk when this returns."""
    with open(path, "ab") as f:
        f.write("".join(json.dumps(r) + "\n" for r in records).encode())
        f.flush()
        os.fsync(f.fileno())


def read_lines(path: Path) -> list[dict]:
    """Records of a JSONL file; a last line that a stop cut short is left out. [] where there is no file."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is no whole line
        return [json.loads(line) for line in lines]
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is damaged: {e}") from None


def whole_chunks(records: list[dict]) -> list[dict]:
    """Leave out a last chunk that a stop cut short: made again with its former neighbours, it comes out the same."""
    start = 0
    while start < len(records) and start + records[start]["chunk"] <= len(records):
        start += records[start]["chunk"]
    return records[:start]


def generation(record: dict) -> Generation:
    fields = {k: v for k, v in record.items() if k not in ("chunk", "question", "right_answer")}
    return Generation(**fields | {"tokens": tuple(fields["tokens"])})


def newest_finished(runs: Path = Path("runs")) -> Path | None:
    """The finished run that was written last, or None."""
    states = sorted(runs.glob("*/state.json"), key=lambda p: p.stat().st_mtime)
    finished = [p.parent for p in states if read_json(p).get("finished") is True]
    return finished[-1] if finished else None


def facts(model: Decoder, slots: int) -> dict:
    """What a run should say about where it ran, and what "auto" settings came to there."""
    root = Path(__file__).parents[2]
    try:
        git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
        commit = None
    cuda = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None
    return {
        "command": sys.argv, "python": sys.version.split()[0], "torch": torch.__version__,
        "git_commit": commit, "device": str(model.device), "device_name": cuda,
        "dtype": str(model.dtype).removeprefix("torch."), "slots": slots, "threads": torch.get_num_threads(),
    }
