"""python -m star.experiments.export OUT: a trained model as a folder that transformers, vLLM and PEFT load.

A run's adapters are merged into the base's weights (in float32, rounded once to the checkpoint's dtype) and written
under the base's tensor names, with its tokenizer. prompt.txt says how the model was asked, since it answers other forms
otherwise. Who wants the adapters alone has them: runs/NAME/adapters is PEFT's layout.
"""

import shlex
import sys
from pathlib import Path
from shlex import quote

import checkpoints
from checkpoints.files import write_atomically
from star import prompts
from star.run.flags import Parser, as_flags, command
from star.run.folder import Run, newest_finished
from star.run.models import load_tokenizer
from star.tasks import load_task

LINE = "-" * 80


def prompt_page(run: Run, iteration: int, out: Path) -> str:
    """What prompt.txt says: how this model was asked when it was measured, and how to ask it so."""
    config = run.config
    task = load_task(config.task, **run.options)
    task = task.answers_only() if run.learns == "answers" else task
    tokenizer = load_tokenizer(Path(config.model or checkpoints.SHIPPED), config.chat)
    problem, shown = task.train[0], config.shows_examples(iteration, hinted=False)
    prompt = prompts.render(task, problem, tokenizer.chat, few_shot=shown)
    ids = prompts.encode(task, problem, tokenizer, few_shot=shown)
    ends = " or ".join(["its end-of-sequence token", *(f"the text {stop!r}" for stop in task.stop)])
    how, call = "plain text", "tokenizer(prompt)"
    if config.chat:
        how = "a conversation in the chat template of this folder"
        call = "tokenizer.apply_chat_template(turns, add_generation_prompt=True)"
    flags = ["--task", config.task, *as_flags(run.options), *["--chat"] * config.chat]
    here = (f"python sample.py --model {quote(str(out))} {shlex.join(flags)} {quote(problem.question)}" if shown else
            f"python sample.py --run {quote(str(run.folder))} --iteration {iteration} --ask")
    trained = f" Training saw it {'behind the same' if config.few_shot_train else 'without the'} worked examples." if (
        shown and task.few_shot(problem)) else ""
    return "\n".join([
        f"This model was fine-tuned by STaR on task {task.name} ({run.folder.name}, iteration {iteration}).",
        f"It was asked in one form, {how}, and answers other forms worse.",
        f"The whole prompt of problem {problem.id} stands between the lines:",
        "", LINE, prompt, LINE, "",
        f"It ends with {prompt[-12:]!r} and has {len(ids)} tokens, of which the first is {ids[0]}.{trained}",
        f"An answer ends at {ends}, after at most {config.max_new_tokens or task.max_new_tokens} new tokens; it was "
        "drawn greedily when the model was measured.",
        "To ask something else, put it in the place of the last question:", "",
        f"    {here}",
        f"    transformers: {call}, then model.generate(..., do_sample=False)", ""])


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
    try:
        write_atomically(args.out / "prompt.txt", prompt_page(run, iteration, args.out).encode())
    except (ValueError, OSError) as e:  # the data went elsewhere: the model is whole without it
        print(f"note: no prompt.txt, since the run's task cannot be read ({e})", file=sys.stderr)
    print(f"wrote {args.out}: {folder}, iteration {iteration}, {checkpoints.describe(model)}")


if __name__ == "__main__":
    sys.exit(main())
