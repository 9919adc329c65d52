"""How the processes of a run meet, watch each other, and part: started by torchrun, or by whatever else sets RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    with together() as (ranks, watch):  ...       one process: Ranks of one, and nobody to watch

Each rank tells the others every BEAT seconds that it is there, and why, when it goes. Where one is gone, the main
thread of the others is stopped as by SIGTERM, which lets a write come to its end, and rank 0 says who it was: it speaks
for all, or where it is gone itself, the first that is left. What ranks share of the work is star/ranks.
"""

import _thread
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from star.config import StarConfig
from star.decoder import Decoder
from star.device import all_ranks, failure, first_line, local_ranks, out_of_memory
from star.finetune import FinetuneStats
from star.loop import State, Training
from star.lora import trainable
from star.problem import Generation
from star.ranks import ONE, Ranks
from star.run.inputs import inputs
from star.run.signals import Stopped, at_once, stop

BEAT, SILENT, GRACE = 1.0, 15.0, 8.0  # seconds: between signs of life; until one is missed; for the main thread to stop
MEET = timedelta(minutes=5)
PATIENCE = timedelta(days=7)  # of a collective: a rank may sample for long, and who is gone is found otherwise


def several() -> bool:
    """Is this process one of several ranks?"""
    return all_ranks() > 1


def by_torchrun() -> bool:
    """Does torchrun keep the store by which ranks meet? Without it rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def speaks() -> bool:
    """Before ranks have met: does this process speak for those of its host?"""
    return local_ranks()[0] == 0


@contextlib.contextmanager
def together() -> Iterator[tuple[Ranks, "Watch"]]:
    """All ranks, met. ValueError where they do not meet. Where this one ends by an error that another speaks of,
    SystemExit takes its place."""
    if not several():
        yield ONE, Watch(None, 0, 1)
        return
    try:
        with at_once():
            store, rank, size = next(dist.rendezvous("env://", timeout=MEET))
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", rank=rank,
                                    world_size=size, store=dist.PrefixStore("star", store), timeout=PATIENCE)
            watch = Watch(store.clone(), rank, size)
    except (RuntimeError, ValueError, KeyError) as e:
        raise ValueError(f"the ranks of this run did not meet ({first_line(e)}): start all of them by torchrun, with "
                         "the same --nnodes and --nproc-per-node on each host") from None
    try:
        with contextlib.ExitStack() as quiet:
            if rank:
                warnings.simplefilter("ignore")
                quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
            yield Ranks(rank, size), watch
        watch.say("")
        watch.close()
        with contextlib.suppress(ConnectionError):  # whoever is gone has done its part
            Ranks(rank, size).gather(None)  # nobody takes away what others still use
            dist.destroy_process_group()
    except (KeyboardInterrupt, RuntimeError, MemoryError, ValueError, OSError, ImportError) as e:
        cause = watch.cause(e)
        stopped = stop(cause)
        watch.say(first_line(cause), stopped.number if stopped else None)
        if rank == 0:
            time.sleep(0 if by_torchrun() else 3 * BEAT)  # with it goes the store, where its last words are
            raise cause from None
        if isinstance(cause, RuntimeError) and not (stopped or failure(cause) or out_of_memory(cause)):
            raise  # a fault of ours: let it be seen
        watch.tell(cause)
        os._exit(stopped.code if stopped else 2)
    finally:
        watch.close()


class Watch:
    """Who of the ranks is there. A thread looks; `gone` is what it found, in words, or None."""

    def __init__(self, store: dist.Store | None, rank: int, size: int):
        self.store, self.rank, self.size = store, rank, size
        self.gone: str | None = None
        self.number: int | None = None  # of the signal by which it went
        self.because: str | None = None  # what this rank's end comes from, if from another's
        self.lost: set[int] = set()  # ranks that went without a word
        self.over, self.others = threading.Event(), [r for r in range(size) if r != rank]
        self.lock, self.asked = threading.Lock(), False  # does the main thread know that something is wrong?
        self.interrupted = False  # does it know by the watch?
        if size > 1:
            store.set(f"who {rank}", json.dumps([socket.gethostname(), os.getpid(), processes()]))
            self.who = {r: json.loads(store.get(f"who {r}")) for r in range(size)}  # waits for them
            self.heard = dict.fromkeys(self.others, (b"", time.monotonic()))  # last sign of life, and when it came
            if rank and speaks():  # another host than rank 0's
                print(f"rank {rank} of {size} is there; {self._name(0)} speaks for all", file=sys.stderr, flush=True)
            self.looked = time.monotonic()
            for work in (self._ask, self._run):
                threading.Thread(target=work, daemon=True).start()

    @property
    def speaker(self) -> int:
        """The rank that says what all have to say: the first that did not go without a word."""
        return min(set(range(self.size)) - self.lost)

    def say(self, last: str, number: int | None = None) -> None:
        """This rank's last words, and the signal that ends it; "": it has done all that it had to do."""
        if self.size > 1:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"end {self.rank}", json.dumps([last, number, self.because]))

    def cause(self, e: BaseException) -> BaseException:
        """What an error comes from: another rank's end, as an OSError that names it, or a Stopped where it went by a
        signal; else the error itself.

        A collective that failed, or a SIGTERM (by which torchrun stops the ranks that are left), may come before the
        watch has seen why: then it waits.
        """
        stopped, waits = stop(e), isinstance(e, ConnectionError)
        terminated = stopped is not None and stopped.number == signal.SIGTERM
        if self.size == 1 or self.asked or (stopped and not terminated):
            return e
        with contextlib.suppress(KeyboardInterrupt), self.lock:  # the watch's own, in this very moment
            self.asked = True
        end = time.monotonic() + (SILENT + BEAT if waits else 3 * BEAT)
        while self.gone is None and time.monotonic() < end and (waits or terminated):
            with contextlib.suppress(KeyboardInterrupt):  # torchrun's SIGTERM, which comes where a rank is gone
                time.sleep(BEAT / 20)
        if not (waits or stopped) or (self.gone is None and not waits):
            return e
        self.because = self.gone or f"another rank is gone ({e})"
        if self.number is None:
            return OSError(self.because)
        return e if stopped and not self.interrupted else Stopped(self.number, f"as {self.gone} was, ")

    def tell(self, cause: BaseException) -> None:
        """Say what ends this rank, if rank 0 does not: it is gone, or on another host."""
        if self.rank == self.speaker or speaks():
            go_on = ": go on with the run by --resume" if self.because else ""
            said = "stopped" if stop(cause) else f"error: {first_line(cause)}{go_on}"
            print(said, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nobody is needed any more."""
        self.over.set()

    def _run(self) -> None:
        """Wait for news of the thread that asks, which is held up itself where the one that keeps the store hangs."""
        beats, looked = 0, self.looked
        while self.gone is None:
            if self.over.wait(BEAT):
                return
            beats, looked = (beats + 1 if looked == self.looked else 0), self.looked  # beats: not while it is suspended
            if beats * BEAT > SILENT:
                self.lost.add(0)
                self.gone = f"{self._name(0)} has not been heard of for {beats * BEAT:.0f} s"
        if self.over.wait(2 * BEAT):  # the main thread may know by itself
            return
        with self.lock:
            if not self.asked:
                self.interrupted = True
                _thread.interrupt_main(signal.SIGTERM)
        if not self.over.wait(GRACE):  # it waits in a call that no signal ends
            self.because = self.gone
            if self.rank == 0:
                print(f"error: {self.gone}: go on with the run by --resume", file=sys.stderr, flush=True)
            else:
                self.tell(OSError(self.gone))
            os._exit(2)

    def _ask(self) -> None:
        """Say that this rank is there, and look for the others, again and again."""
        while self.gone is None and not self.over.wait(BEAT):
            try:
                self.store.set(f"beat {self.rank}", str(self.looked))
                if time.monotonic() - self.looked > SILENT / 2:  # this rank was suspended, and the others may have been
                    self.heard = {r: (sign, time.monotonic()) for r, (sign, _) in self.heard.items()}
                found = self._look()
            except RuntimeError:
                self.lost |= set() if by_torchrun() else {0}
                found = ("torchrun is gone" if by_torchrun() else f"{self._name(0)} is gone"), None
            self.looked = time.monotonic()
            if found[0] and self.gone is None:
                self.number, self.gone = found[1], found[0]

    def _name(self, rank: int) -> str:
        host, process, _ = self.who[rank]
        return f"rank {rank} (process {process} on {host})"

    def _look(self) -> tuple[str | None, int | None]:
        """Who is gone and by which signal, nearest to the cause: without a word, by an error, by another, by a signal.
        """
        found: list[tuple[int, str, int | None]] = []
        for rank in self.others:
            (_, process, where), name = self.who[rank], self._name(rank)
            if self.store.check([f"end {rank}"]):
                last, number, because = json.loads(self.store.get(f"end {rank}"))
                if because:
                    found.append((2, because, number))
                elif number:
                    found.append((3, name, number))
                elif last:
                    found.append((1, f"{name} stopped: {last}", None))
                continue
            sign = self.store.get(f"beat {rank}") if self.store.check([f"beat {rank}"]) else b""
            if sign != self.heard[rank][0]:
                self.heard[rank] = sign, time.monotonic()
            silent = time.monotonic() - self.heard[rank][1]
            dead = where == processes() and not alive(process)
            if silent > SILENT or dead:
                self.lost.add(rank)
                found.append((0, name + (" is gone" if dead else f" has not been heard of for {silent:.0f} s"), None))
        return min(found, key=lambda f: f[:2])[1:] if found else (None, None)


def processes() -> str:
    """Which processes this one can see: containers may have a host's name in common, and other processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def alive(process: int) -> bool:
    """Is there such a process on this host? One that has ended, and whose parent does not know yet, is not."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat", "rb") as f:
            return f.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or no /proc here
        return True


def agree(ranks: Ranks, what: dict) -> None:
    """ValueError, the same on every rank, names the first thing that a rank has otherwise than rank 0."""
    first, *others = ranks.gather({key: "none" if value is None else str(value) for key, value in what.items()})
    for rank, theirs in enumerate(others, 1):
        for key in [*first, *theirs]:
            mine, its = (side.get(key, "none") for side in (first, theirs))
            if mine != its:
                raise ValueError(f"rank {rank} has {key} {its}, and rank 0 has {mine}: start all ranks with the same "
                                 "settings, files and versions")


def agree_on_surroundings(ranks: Ranks, model: Decoder, config: StarConfig, options: dict) -> None:
    """The same for what must be alike besides the settings: versions, kind of device, dtype, hashes of what is read."""
    if ranks.size == 1:  # hashes take as long as reading does
        return
    read = {f"{path} (by its hash)": code for path, code in inputs(config, options).items()}
    agree(ranks, {"torch": torch.__version__, "device": model.device.type, "dtype": str(model.dtype), **read})


def share_state(ranks: Ranks, model: Decoder, state: State, given: list[Generation]) -> tuple[State, list[Generation]]:
    """Where rank 0 stands and what it has been given, on every rank; the adapters too, in place."""
    if ranks.size == 1:
        return state, given
    params, begun = trainable(model), state.training
    if begun is not None:
        begun.check(model)
    counted = None if begun is None else {
        f.name: getattr(begun.stats, f.name) for f in fields(FinetuneStats) if f.name != "state"}
    said = ranks.share([state.iteration, list(state.validation.items()), [vars(g) for g in given], counted])
    ranks.spread(list(params.values()))
    iteration, validation, made, counted = said
    if counted is not None:
        parts = [begun.adapters, *begun.moments] if begun else [
            {name: torch.zeros_like(p, device="cpu") for name, p in params.items()} for _ in range(3)]
        ranks.spread([part[name] for part in parts for name in params])
        begun = Training(FinetuneStats(**counted), parts[0], parts[1:])
    return State(iteration, dict(validation), begun), [
        Generation(**g | {"tokens": tuple(g["tokens"])}) for g in made]
