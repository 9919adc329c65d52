"""python -m star.experiments.export OUT: a trained model as a folder that transformers, vLLM and PEFT load.

A run's adapters are merged into the base's weights (in float32, rounded once to the checkpoint's dtype) and written
under the base's tensor names, with its tokenizer. Who wants the adapters alone has them: runs/NAME/adapters is PEFT's
layout.
"""

import sys
from pathlib import Path

import checkpoints
from star.run.flags import Parser, command
from star.run.folder import Run, newest_finished


@command
def main(argv: list[str]) -> None:
    parser = Parser(__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument("--run", type=Path, help="run folder [the newest finished one]")
    parser.add_argument("--iteration", type=int, help="which model [the best on validation, else the last]")
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise FileExistsError(f"{args.out} exists and is not empty: give another folder")
    folder = args.run or newest_finished()
    if folder is None:
        raise ValueError("nothing to export: runs/ has no finished run; train one, or name one by --run")
    run = Run.open(folder)
    iteration = run.choose(args.iteration)
    if iteration == 0:
        raise ValueError(f"nothing to export: iteration 0 of {folder} is the base, without adapters; copy its folder")
    model = checkpoints.load_model(run.config.model or checkpoints.SHIPPED)
    checkpoints.load_adapter(model, run.adapter(iteration))
    checkpoints.export_merged(model, args.out)
    print(f"wrote {args.out}: {folder}, iteration {iteration}, {checkpoints.describe(model)}")


if __name__ == "__main__":
    sys.exit(main())
