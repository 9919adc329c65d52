"""python train.py: a model teaches itself to reason, by Algorithm 1 of STaR (arXiv 2203.14465).

The algorithm is star/loop.py. This file reads flags, plans, gives each event of the loop to the run folder and shows
it: a bar for each phase, a line an iteration. Without flags a small model that ships learns to add. --check says what
a run would stand on; --help lists the settings, and with --task NAME that task's own.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C while torch is imported; `command` has another handler
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote

import checkpoints
from star.config import StarConfig
from star.device import failure, local_ranks, out_of_memory
from star.loop import NothingSolved, State, star
from star.problem import Finished, Generation
from star.ranks import Ranks
from star.run.board import Board, summary_writer
from star.run.diagnosis import nothing_solved
from star.run.flags import FULL, Flags, command, read_flags
from star.run.folder import Run
from star.run.inputs import facts
from star.run.plan import Plan, build, check, make_plan, opening
from star.run.plots import curves
from star.run.progress import Progress, summary, weak
from star.run.rates import Meter
from star.run.report import Report
from star.run.signals import Stopped, stop
from star.run.together import Watch, agree, agree_on_surroundings, share_state, together
from star.sampler import Sampler

FREE_ON_RESUME = ("iterations", "device", "slots", "micro_tokens", "save_every", "shard")  # may change half-way


@command
def main(argv: list[str]) -> None:
    with together() as (ranks, watch):
        train(argv, ranks, watch)


main.ranks = True


def train(argv: list[str], ranks: Ranks, watch: Watch) -> None:
    """A run, from its flags to its curves; of several ranks, what rank 0 does. It alone writes and speaks."""
    flags, _ = read_flags(argv, __doc__)
    if flags.extend is not None and not flags.resume:
        raise ValueError("--extend adds iterations to a run: name it by --resume")
    if flags.check:
        if flags.out or flags.resume:
            raise ValueError("--check starts no run: leave out --out and --resume")
        print("\n".join(check(make_plan(StarConfig(**flags.settings), flags.options, ranks=ranks))))
        return
    said = flags.settings | flags.options | {"resume": flags.resume and str(flags.resume)}
    agree(ranks, {"--" + name.replace("_", "-"): value for name, value in said.items()})
    if ranks.rank:
        follow(ranks)
        return
    writer = summary_writer() if flags.tensorboard else None
    run, plan, sampler, state, given = begin(flags, ranks)
    report = Report(run, plan.task, plan.tokenizer)
    board = Board(writer, run.folder, run.iteration) if writer else contextlib.nullcontext()
    with contextlib.closing(run), contextlib.closing(Progress(plan, flags.show, given)) as progress, board:
        for metrics in run.metrics():
            progress.row(metrics, None)
        try:
            for event in star(sampler, plan.tokenizer, plan.task, plan.config, state, given, plan.others.pool,
                              plan.ranks):
                run.record(event, sampler.model)
                progress.show(event, run)
                if writer:
                    board.show(event, run)
                if isinstance(event, Finished):
                    print(weak(event.metrics, plan) if event.iteration == 0 else "", end="", flush=True)
                    shown(report)
                    if sum(run.timings["seconds"].values()) > 30:
                        draw(run)  # half a second: not for iterations that take little more
        except (KeyboardInterrupt, RuntimeError, MemoryError, OSError) as e:
            e, on = watch.cause(e), f"in {run.where}; go on with: {go_on(ranks, run.folder)}"
            if stopped := stop(e):
                raise Stopped(stopped.number, f"{stopped}{on}") from None
            if (said := FULL if out_of_memory(e) else str(e) if isinstance(e, OSError) else failure(e)) is None:
                raise
            raise OSError(f"{said} ({on})") from None
        except ValueError as e:
            shown(report)  # what nothing could be learned from can be looked at
            if isinstance(e, NothingSolved):
                print("\n".join(nothing_solved(e.tries, plan, run.folder)), flush=True)
            raise ValueError(f"{e} (in {run.where}; {report.path} shows what was done until then)") from None
    watch.close()
    draw(run)
    print("\n" + "\n".join(summary(run, flags.price_per_hour)))
    print(f"curves  {run.folder / 'curves.png'}\nreport  {report.path}\nlook    python sample.py --run {run.folder}")


def begin(flags: Flags, ranks: Ranks) -> tuple[Run, Plan, Sampler, State, list[Generation]]:
    """All that the loop needs, and the run's folder: a new one, or one to go on with."""
    run, state, given = resumed(flags) if flags.resume else (None, State(), [])
    config, options = (run.config, run.options) if run else (StarConfig(**flags.settings), flags.options)
    ranks.share([asdict(config), options])
    plan = make_plan(config, options, ranks=ranks)
    sampler, ranks = build(plan), plan.ranks
    agree_on_surroundings(ranks, sampler.model, plan.config, options)
    here = facts(sampler.model, sampler.slots, ranks.size)
    if run is None:  # only now: what cannot start leaves no folder behind
        run, notes = Run.create(flags.out, plan.config, options, here), []
    else:
        notes = [f"note    {note}" for note in run.goes_on(here)] + [f"resume  {at(state, given)}"]
        if state.iteration > 0:
            checkpoints.load_adapter(sampler.model, run.adapter(state.iteration))
    state, given = share_state(ranks, sampler.model, state, given)
    run.meter = Meter(sampler, ranks.size)
    print("\n".join([*opening(plan, sampler), *notes, f"rates   {run.meter}", f"run     {run.folder}\n"]), flush=True)
    return run, plan, sampler, state, given


def follow(ranks: Ranks) -> None:
    """The same loop on rank 1, 2, ...: what happens in it rank 0 writes down."""
    config, options = ranks.share()
    plan = make_plan(StarConfig(**config), options, ranks=ranks)
    sampler, ranks = build(plan), plan.ranks
    agree_on_surroundings(ranks, sampler.model, plan.config, options)
    state, given = share_state(ranks, sampler.model, State(), [])
    for _ in star(sampler, plan.tokenizer, plan.task, plan.config, state, given, plan.others.pool, ranks):
        pass


def go_on(ranks: Ranks, folder: Path) -> str:
    """The command that goes on with a run."""
    rest, here = f"train.py --resume {quote(str(folder))}", local_ranks()[1]
    if ranks.size > max(here, 1):
        return f"torchrun as before, but {rest}"
    return f"python {rest}" if ranks.size == 1 else f"torchrun --nproc-per-node {ranks.size} {rest}"


def resumed(flags: Flags) -> tuple[Run, State, list]:
    """The run in a folder, where it stands, and what it had already sampled. ValueError for one that has finished."""
    began, keeps = Run.open(flags.resume).config, "--resume keeps the run's settings"
    if flags.out:
        raise ValueError(f"{keeps}, and its folder: leave out --out")
    flag = {name: "--" + name.replace("_", "-") for name in [*flags.settings, *FREE_ON_RESUME]}
    other = [f"{flag[name]} is {value}, and the run was begun with {getattr(began, name)}"
             for name, value in flags.settings.items() if name not in FREE_ON_RESUME and value != getattr(began, name)]
    if other:
        free = ", ".join(["--extend", *(flag[name] for name in FREE_ON_RESUME)])
        raise ValueError(f"{keeps}: {'; '.join(other)}; only {free} may change")
    if began.wanted and flags.settings.get("slots", began.slots) != began.slots:
        raise ValueError(f"{keeps}: --wanted {began.wanted} is looked at after as many problems as there are slots: "
                         "leave out --slots")
    changed = {name: flags.settings[name] for name in FREE_ON_RESUME if name in flags.settings}
    run, state, given = Run.resume(flags.resume, **changed | more_iterations(flags, began))
    if run.learns != "rationales":
        raise ValueError(f"{flags.resume} is a baseline: go on with python -m star.experiments.baseline --resume")
    if state.done(run.config):
        early = state.iteration < run.config.iterations
        raise ValueError(f"{flags.resume} has finished its {state.iteration} iterations"
                         + (", out of --patience; to go on, start a run with more --patience" if early else
                            f"; to go on: --resume {quote(str(flags.resume))} --extend N"))
    return run, state, given


def at(state: State, given: list) -> str:
    """Where a run goes on, in words."""
    n, steps = state.iteration + 1, len(state.training.stats.losses) if state.training else 0
    made = sum(g.iteration == n for g in given)
    return (f"in iteration {n}, of which {made:,} rationales are there" +
            (f", and {steps} steps of the training" if steps else ""))


def more_iterations(flags: Flags, began: StarConfig) -> dict[str, int]:
    """--extend, as a setting."""
    if flags.extend is None:
        return {}
    if "iterations" in flags.settings or flags.extend < 1:
        raise ValueError(f"--extend is {flags.extend}; it adds at least 1 to the iterations of a run: give it, or "
                         "--iterations")
    return {"iterations": began.iterations + flags.extend}


def shown(report: Report) -> None:
    """The page so far. A run does not end for want of its picture."""
    try:
        report.write()
    except (ValueError, OSError) as e:
        print(f"note: no report.html: {e}", file=sys.stderr)


def draw(run: Run) -> None:
    """The curves so far; without matplotlib the run goes on and says what to install."""
    try:
        curves(run.folder / "curves.png", run.metrics())
    except (ImportError, ValueError, OSError) as e:
        print(f"note: no curves.png: {e}" if not isinstance(e, ImportError) else f"note: {e}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
