"""python -m star.experiments.report RUN: write a run's report.html anew, from what lies in its folder.

train.py writes it as the run goes; this is for runs of before, for baselines, and for a look at an iteration that is
under way. Prompts and loss masks need the task's data and the model's tokenizer: where these are gone, or are no longer
what the run began with, the page goes without and a line says so. No weights are read.
"""

import sys
from pathlib import Path

import checkpoints
from checkpoints.files import read_json
from star.run.flags import Parser, command, one_line
from star.run.folder import Run
from star.run.inputs import inputs
from star.run.ledger import newest_finished, none_finished
from star.run.models import load_tokenizer
from star.run.report import Report
from star.tasks import load_task


def opened(folder: Path) -> Report:
    """The report of a run that was left, with its task and tokenizer where they still are what they were."""
    run, notes, task, tokenizer = Run.open(folder), [], None, None
    began, now = read_json(folder / "config.json").get("inputs") or {}, inputs(run.config, run.options)
    for path in began:
        if began[path] != now.get(path):
            gone = "is gone" if path not in now else "is not what the run began with"
            return Report(run, notes=[f"Prompts, groups and loss masks are left out: {path} {gone}."])
    try:
        task = load_task(run.config.task, **run.options)
        task = task.answers_only() if run.learns == "answers" else task
        tokenizer = load_tokenizer(Path(run.config.model or checkpoints.SHIPPED), run.config.chat)
    except (ValueError, OSError, ImportError) as e:
        what = "Prompts and loss masks" if task else "Prompts, groups and loss masks"
        notes.append(f"{what} are left out: {one_line(str(e))}")
    return Report(run, task, tokenizer, notes)


@command
def main(argv: list[str]) -> None:
    parser = Parser(__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, nargs="?", help="run folder [the newest finished one]")
    args = parser.parse_args(argv)
    folder = args.run or newest_finished()
    if folder is None:
        raise ValueError(f"nothing to report on: {none_finished()}")
    report = opened(folder)
    path = report.write()
    for note in report.notes:
        print(f"note    {note}", file=sys.stderr)
    print(f"wrote   {path}: {path.stat().st_size:,} bytes; open it in a browser")


if __name__ == "__main__":
    sys.exit(main())
