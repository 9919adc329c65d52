"""python -m star.experiments.export OUT: a trained model as a folder that transformers, vLLM and PEFT load.

A run's adapters are merged into the base's weights (in float32, rounded once to the checkpoint's dtype) and written
under the base's tensor names, with its tokenizer. Who wants the adapters alone has them: runs/NAME/adapters is PEFT's
layout.
"""

import sys
from pathlib import Path

import checkpoints
import train
from sample import choose


def main(argv: list[str] | None = None) -> int:
    parser = train.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument("--run", type=Path, help="run folder [the newest finished one]")
    parser.add_argument("--iteration", type=int, help="which model [the last]")
    try:
        args = parser.parse_args(argv)
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise FileExistsError(f"{args.out} exists and is not empty: give another folder")
        config, adapter, which = choose(args.run, args.iteration, trace=False)
        if adapter is None:
            raise ValueError(f"nothing to export: {which} has no adapters; train first, or copy the base's folder")
        model = checkpoints.load_model(config.model or checkpoints.SHIPPED)
        checkpoints.load_adapter(model, adapter)
        checkpoints.export_merged(model, args.out)
        print(f"wrote {args.out}: {which}, {checkpoints.describe(model)}")
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
