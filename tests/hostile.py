"""Seeded fuzzing through entry functions, in one process: each case gives a file that nobody should trust to a function
that users call, and ends in success, in a refusal of one line, or is a fault.

    for case in cases(100):
        rng = seeded(f"config {case}")
        (folder / "config.json").write_text(dumped(mutated(sound, rng)))
        faults.judge(f"config {case}", folder / "config.json", use_model, folder)
    assert not faults, faults.said()

`use` must use what it has loaded and assert that it is sound: an AssertionError is a misreading. HOSTILE=1 in the
environment, or another word, makes other cases, and twice as many.
"""

import contextlib
import copy
import faulthandler
import io
import json
import os
import random
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from star.run.flags import one_line

SECONDS, MIB = 2.0, 300  # that a case may take, above where it starts
ROOM = 3 << 30  # bytes of address space above the start: who asks for more gets a MemoryError, and the machine lives on
MOST_LINE = 2000  # characters of a refusal
REFUSALS = (ValueError, OSError, ImportError)  # what a command prints in one line (star/run/flags)


def cases(n: int) -> list[int]:
    """Numbers below n: 0-11, 24-35, ..., in which every remainder of small numbers occurs; with HOSTILE, all."""
    return [i for i in range(n) if i // 12 % 2 == 0 or "HOSTILE" in os.environ]


def seeded(case: str) -> random.Random:
    """What a case is made by: another machine makes the same."""
    return random.Random(os.environ.get("HOSTILE", "") + case)


class Raw(str):
    """JSON that json.dumps would not write: it stands in the file as it is."""


MANY = "9" * 401
VALUES: list[object] = [  # what may stand in place of any value
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**62, 2**64, 10**30, 0.5, -0.5, 1e-45, 1e-9, 1e38, 1e300, Raw("1e400"),
    Raw("-1e400"), Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw(MANY), Raw("-" + MANY), Raw("9" * 5000), "", "x",
    "2", "nan", "\x1b[31mred\x07", "two\nlines", Raw('"\\ud800"'), "n" * 1_000_000, [], [1], ["x"], [[[]]], [None], {},
    {"a": 1}, {"x": {"y": []}}, Raw("[" * 60 + "]" * 60), Raw("[" * 100_000 + "]" * 100_000),
    Raw('{"a":' * 100_000 + "1" + "}" * 100_000),
]


def dumped(value: object) -> str:
    """JSON in which Raw texts stand as they are."""
    raw: list[str] = []

    def held(v: object) -> object:
        if isinstance(v, Raw):
            raw.append(v)
            return f"\0{len(raw) - 1}\0"
        if isinstance(v, dict):
            return {k: held(x) for k, x in v.items()}
        return [held(x) for x in v] if isinstance(v, list) else v

    text = json.dumps(held(value))
    for i, v in enumerate(raw):
        text = text.replace(f'"\\u0000{i}\\u0000"', v)
    return text


def paths(value: object, at: tuple = ()) -> list[tuple]:
    """Where something stands in a JSON value, the whole left out; of long lists and objects the first few places."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    return [path for k, v in items[:40] for path in [(*at, k), *paths(v, (*at, k))]]


def mutated(sound: object, rng: random.Random, where: list[tuple] | None = None) -> object:
    """A copy in which one place has another value, is gone, stands twice or 10^5 times, or has its neighbour's value.

    where: the places that may change, all of `paths` else.
    """
    value = copy.deepcopy(sound)
    *before, key = rng.choice(where or paths(sound))
    part = value
    for k in before:
        part = part[k]
    kind = rng.random()
    if kind < 0.75:
        part[key] = rng.choice(VALUES)
    elif kind < 0.85:
        del part[key]
    elif kind < 0.93:
        part[key] = copy.deepcopy(rng.choice(list(part.values()) if isinstance(part, dict) else part))
    elif isinstance(part, dict):
        own, n = json.dumps(part[key]), rng.choice([1, 100_000])
        part[key] = Raw(own + f", {json.dumps(key)}: {own if len(own) < 100 else 1}" * n)
    else:
        part += [copy.deepcopy(part[key])] * rng.choice([1, 100_000 // (1 + len(json.dumps(part[key])))])
    return value


def damaged(data: bytes, rng: random.Random, within: int | None = None) -> bytes:
    """Some bits flipped, a piece cut out, doubled or overwritten, or the end cut off; most of it in the first bytes."""
    out, n = bytearray(data), min(within or len(data), len(data))
    at, kind = rng.randrange(n), rng.choice(["bits", "bits", "cut", "out", "twice", "noise", "zeros"])
    few = rng.choice([1, 2, 4, 8, 64])
    if kind == "bits":
        for _ in range(few):
            out[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del out[at:]
    elif kind == "out":
        del out[at : at + few]
    elif kind == "twice":
        out[at:at] = out[at : at + few]
    else:
        out[at : at + few] = rng.randbytes(few) if kind == "noise" else bytes(few)
    return bytes(out)


class TooLong(BaseException):
    """Not an Exception, so that nobody takes it for what a file has done."""


faulthandler.register(signal.SIGVTALRM, chain=True)  # says where it is, then ends the process


@contextlib.contextmanager
def limited(seconds: float):
    """TooLong behind so many seconds of this process, whatever else the machine does, or behind ten times that of
    waiting. What does not come back from C code in ten times that ends the process, with a traceback."""
    def ring(*_: object):
        raise TooLong

    timers = {signal.ITIMER_PROF: seconds, signal.ITIMER_REAL: 10 * seconds, signal.ITIMER_VIRTUAL: 10 * seconds}
    before = {kind: signal.signal(kind, ring) for kind in (signal.SIGPROF, signal.SIGALRM)}
    for timer, after in timers.items():
        signal.setitimer(timer, after, 0.5)  # again and again: somebody's `except` may have swallowed the first
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _status(word: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak, VmSize with what it has only asked for."""
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(word))


class Memory:
    """How far the process grows above where it is. Without /proc, by the peak since its beginning, which sees less."""

    def __init__(self):
        self.proc = Path("/proc/self/clear_refs").exists()
        if self.proc:
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        self.start = _status("VmRSS") if self.proc else self._peak()

    def _peak(self) -> int:
        if self.proc:
            return _status("VmHWM")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def mib(self) -> float:
        return (self._peak() - self.start) / 2**20

    @contextlib.contextmanager
    def bounded(self):
        """Where the system allows it, who asks for ROOM more gets a MemoryError."""
        before = resource.getrlimit(resource.RLIMIT_AS)
        if self.proc:
            resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ROOM, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


class Faults(list):
    """What went wrong, a line a case. ended: how many cases succeeded, were refused, were faults."""

    def __init__(self):
        super().__init__()
        self.ended: Counter = Counter()
        self.slowest = (0.0, "")

    def judge(self, case: str, named: Path | str, use: Callable[..., object], *args: object, seconds: float = SECONDS,
              mib: float = MIB, must: str | None = None) -> str:
        """Run a case, use(*args): "success", "refused" or "fault", and the last is written down.

        named: the file or folder, whose name must stand in a refusal; "": any may. must: how the case has to end, where
        the truth is known.
        """
        ended, said, memory, begun = "success", "", Memory(), time.process_time()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                with memory.bounded(), limited(seconds):
                    use(*args)
            except REFUSALS as e:
                ended, said = "refused", str(e)
            except TooLong:
                ended, said = "fault", f"more than {seconds} s"
            except KeyboardInterrupt:
                raise
            except BaseException as e:  # whatever else comes out is what this looks for
                ended, said = "fault", f"{type(e).__name__}: {e}"
        took, grown = time.process_time() - begun, memory.mib()
        wrong = [self._odd(said, named)] if ended == "refused" else [said] if ended == "fault" else []
        wrong += [self._odd(str(w.message), "") for w in warned]
        wrong += [f"{took:.1f} s"] * (ended != "fault" and took > seconds) + [f"{grown:.0f} MiB"] * (grown > mib)
        if must is not None and ended not in (must, "fault"):
            wrong.append(f"ends in {ended} ({said[:200]}), not in {must}")
        self.slowest = max(self.slowest, (took, case))
        if wrong := [w for w in wrong if w]:
            ended = "fault"
            self.append(f"{case}: {one_line('; '.join(wrong))[:400]}")
        self.ended[ended] += 1
        return ended

    def _odd(self, said: str, named: Path | str) -> str:
        """What is wrong with a refusal, as a command prints it; "": nothing."""
        line = one_line(said)
        if not line.isprintable() or len(line) > MOST_LINE:
            return f"a line of {len(line):,} characters: {line[:100]}"
        name = named.name if isinstance(named, Path) else named
        return "" if name in line else f"does not name {name}: {line[:300]}"

    def said(self) -> str:
        return f"{len(self)} faults, {dict(self.ended)}:\n" + "\n".join(self[:40])


def commanded(main: Callable[[list[str]], int], argv: list[str]) -> str:
    """What a command prints. ValueError with its line where it refuses; AssertionError if it says more than that."""
    before, shown = signal.getsignal(signal.SIGINT), warnings.showwarning
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
    finally:
        signal.signal(signal.SIGINT, before)
        warnings.showwarning = shown
    lines = [line for line in err.getvalue().splitlines() if not line.startswith(("warning: ", "note: "))]
    if code == 2:
        assert len(lines) == 1, f"exit 2 with {len(lines)} lines: {lines[:3]}"
        assert lines[0].startswith("error: "), lines
        raise ValueError(lines[0].removeprefix("error: "))
    assert code == 0, f"exit {code}: {lines[:3]}"
    text = out.getvalue()
    assert all(c.isprintable() or c in "\n\t" for c in text), f"raw control characters: {text[:300]!r}"
    return text
