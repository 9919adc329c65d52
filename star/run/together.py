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
from star.device import failure, first_line, out_of_memory
from star.finetune import FinetuneStats
from star.loop import State, Training
from star.lora import trainable
from star.problem import Generation
from star.ranks import ONE, Ranks
from star.run.inputs import inputs
from star.run.signals import stop

BEAT, SILENT, GRACE = 1.0, 15.0, 8.0  # seconds: between signs of life; until one is missed; for the main thread to stop
MEET = timedelta(minutes=5)
PATIENCE = timedelta(days=7)  # of a collective: a rank may sample for long, and who is gone is found otherwise


def several() -> bool:
    """Is this process one of several ranks?"""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def speaks() -> bool:
    """Before ranks have met: does this process speak for those of its host?"""
    return int(os.environ.get("LOCAL_RANK") or 0) == 0


@contextlib.contextmanager
def together() -> Iterator[tuple[Ranks, "Watch"]]:
    """All ranks, met. ValueError where they do not meet. Where this one ends by an error that another speaks of,
    SystemExit takes its place."""
    if not several():
        yield ONE, Watch(None, 0, 1)
        return
    try:
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
        Ranks(rank, size).gather(None)  # nobody goes before all are done
        dist.destroy_process_group()
    except (KeyboardInterrupt, RuntimeError, MemoryError, ValueError, OSError, ImportError) as e:
        stopped, gone = stop(e), watch.why(e)
        watch.say(first_line(e) if not stopped else f"signal {stopped.number}", because=gone)
        fault = isinstance(e, RuntimeError) and not (gone or stopped or failure(e) or out_of_memory(e))
        if rank == 0 and gone and (stopped or isinstance(e, ConnectionError)):
            raise OSError(gone) from None
        if rank == 0 or fault:
            raise
        watch.tell()
        sys.exit(stopped.code if stopped and not gone else 2)
    finally:
        watch.close()


class Watch:
    """Who of the ranks is there. A thread looks; `gone` is what it found, in words, or None."""

    def __init__(self, store: dist.Store | None, rank: int, size: int):
        self.store, self.rank, self.size = store, rank, size
        self.gone: str | None = None
        self.lost: set[int] = set()  # ranks that went without a word
        self.over, self.others = threading.Event(), [r for r in range(size) if r != rank]
        self.lock, self.asked = threading.Lock(), False  # does the main thread know that something is wrong?
        if size > 1:
            store.set(f"who {rank}", json.dumps([socket.gethostname(), os.getpid(), processes()]))
            self.who = {r: json.loads(store.get(f"who {r}")) for r in range(size)}  # waits for them
            self.heard = dict.fromkeys(self.others, (b"", time.monotonic()))  # last sign of life, and when it came
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()

    @property
    def speaker(self) -> int:
        """The rank that says what all have to say: the first that did not go without a word."""
        return min(set(range(self.size)) - self.lost)

    def say(self, last: str, because: str | None = None) -> None:
        """This rank's last words: "" if it has done all that it had to do. because: which other rank is the cause."""
        if self.size > 1:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"end {self.rank}", json.dumps([last, because]))

    def why(self, e: BaseException) -> str | None:
        """Which rank's end this error comes from, in words; None: it has nothing to do with the others.

        A collective that failed, or a SIGTERM (by which torchrun stops the ranks that are left), may come before the
        watch has seen it: then it waits.
        """
        stopped = stop(e)
        terminated = stopped is not None and stopped.number == signal.SIGTERM
        with contextlib.suppress(KeyboardInterrupt), self.lock:  # the watch's own, in this very moment
            self.asked = True
        end = time.monotonic() + (3 * BEAT if terminated else SILENT + BEAT)
        while self.size > 1 and self.gone is None and time.monotonic() < end and (
                terminated or isinstance(e, ConnectionError)):
            with contextlib.suppress(KeyboardInterrupt):  # torchrun's SIGTERM, which comes where a rank is gone
                time.sleep(BEAT / 20)
        return self.gone or (f"another rank is gone ({e})" if isinstance(e, ConnectionError) else None)

    def tell(self) -> None:
        """Say who is gone, if it is for this rank to say it."""
        if self.rank == self.speaker:
            print(f"error: {self.gone}: go on with the run by --resume", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.over.set()
        if self.size > 1 and threading.current_thread() is not self.thread:
            self.thread.join()

    def _run(self) -> None:
        beat = 0
        while self.gone is None:
            if self.over.wait(BEAT):
                return
            beat += 1
            try:
                self.store.set(f"beat {self.rank}", str(beat))
                self.gone = self._look()
            except RuntimeError:  # torchrun keeps the store, or without it rank 0
                by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
                self.lost |= set() if by_torchrun else {0}
                self.gone = "torchrun is gone" if by_torchrun else f"{self._name(0)} is gone"
        if self.over.wait(2 * BEAT):  # the main thread may know by itself
            return
        with self.lock:
            if not self.asked:
                _thread.interrupt_main(signal.SIGTERM)
        if not self.over.wait(GRACE):  # it waits in a call that no signal ends
            self.tell()
            os._exit(2)

    def _name(self, rank: int) -> str:
        host, process, _ = self.who[rank]
        return f"rank {rank} (process {process} on {host})"

    def _look(self) -> str | None:
        """Who is gone, by what is nearest to the cause: went without a word, ended by an error, ended by a signal."""
        found: list[tuple[int, str]] = []
        for rank in self.others:
            (_, process, where), name = self.who[rank], self._name(rank)
            if self.store.check([f"end {rank}"]):
                last, because = json.loads(self.store.get(f"end {rank}"))
                if because:
                    found.append((2, because))
                elif last:
                    found.append((1 + last.startswith("signal"), f"{name} stopped: {last}"))
                continue
            sign = self.store.get(f"beat {rank}") if self.store.check([f"beat {rank}"]) else b""
            if sign != self.heard[rank][0]:
                self.heard[rank] = sign, time.monotonic()
            silent = time.monotonic() - self.heard[rank][1]
            dead = where == processes() and not alive(process)
            if silent > SILENT or dead:
                self.lost.add(rank)
                found.append((0, name + (" is gone" if dead else f" has not been heard of for {silent:.0f} s")))
        return min(found)[1] if found else None


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


def surroundings(model: Decoder, config: StarConfig, options: dict) -> dict:
    """What must be alike on all ranks besides the settings: versions, kind of device, dtype, hashes of what is read."""
    read = {f"{path} (by its hash)": code for path, code in inputs(config, options).items()}
    return {"torch": torch.__version__, "device": model.device.type, "dtype": str(model.dtype), **read}


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
