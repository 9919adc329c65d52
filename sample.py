"""python sample.py "48571+9664": ask a trained model, and see whether it is right.

Without a question it is a prompt to type into. With --trace it shows one problem's whole way through Algorithm 1. It
takes the newest finished run, or the model that ships; with --model a folder's model goes on with any text, without a
task. With --run and no question it lists what that run generated (star/run/history). It changes nothing on disk.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C while torch is imported; `command` puts Python's own handler back
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import shutil
import sys
from pathlib import Path

import checkpoints
from star import prompts
from star.config import StarConfig
from star.device import choose_device
from star.evaluate import VERDICTS
from star.problem import Completion, Example, Generation, Problem
from star.rollout import Rollout
from star.run import history
from star.run.flags import Parser, command
from star.run.folder import Run, newest_finished
from star.run.plan import load_base, load_tokenizer, outline
from star.sampler import Sampler
from star.tasks import Task, ask, load_task
from star.text import TextStream


class Writer:
    """A model that goes on with a text: no task, no verdict."""

    def __init__(self, config: StarConfig, adapter: Path | None, args):
        folder, device = Path(config.model or checkpoints.SHIPPED), choose_device(config.device)
        self.tokenizer = load_tokenizer(folder, config.chat)
        model = load_base(outline(folder, config, device), device)
        if adapter is not None:
            checkpoints.load_adapter(model, adapter)
        self.sampler = Sampler(model, slots=1, max_len=min(model.config.max_pos, 16_384), tokenizer=self.tokenizer)
        self.temperature, self.seed = args.temperature, args.seed

    def write(self, prompt: list[int], max_new: int, show: bool, stop: tuple[str, ...] = ()) -> Completion:
        """What follows a prompt; with show, its characters are printed as they come."""
        room = self.sampler.max_len - len(prompt)
        if not prompt or room < 1:
            raise ValueError(f"the text has {len(prompt)} tokens; it must have 1 to {self.sampler.max_len - 1}")
        # the prompt's ids too: a first piece decoded alone would lose the space that parts it from the prompt
        stream = TextStream(self.tokenizer, list(prompt), len(self.tokenizer.decode(prompt)))

        def on_token(_: int, token: int) -> None:
            if show and token not in self.tokenizer.eos_ids:
                print(stream.push(token), end="", flush=True)

        (out,) = self.sampler.generate([prompt], max_new_tokens=min(max_new, room), temperature=self.temperature,
                                       seeds=[self.seed], stop_ids=self.tokenizer.eos_ids, stop=stop, on_token=on_token)
        if show:
            print(stream.end(), end="", flush=True)
        return out


class Asker:
    """Model M_iteration of a run with its task, asked as the run's loop asks it."""

    def __init__(self, writer: Writer, task: Task, config: StarConfig, iteration: int):
        self.writer, self.task, self.config, self.iteration = writer, task, config, iteration
        self.max_new = config.max_new_tokens or 2 * task.max_new_tokens  # questions may be longer here
        self.rollout = Rollout(writer.sampler, writer.tokenizer, task, config)

    def rationale(self, problem: Problem, phase: str, show: bool) -> Generation:
        """One completion with its verdict; with show, its characters are printed as they come."""
        hinted = phase == "rationalize"
        few_shot = self.config.shows_examples(self.iteration, hinted)
        prompt = prompts.encode(self.task, problem, self.writer.tokenizer, hinted, few_shot)
        out = self.writer.write(prompt, self.max_new, show, self.task.stop)
        return self.rollout.judge((self.iteration, phase, problem.id, 0), problem, out, self.writer.seed)

    def answer(self, question: str) -> None:
        """Reason aloud and say whether the answer is right."""
        problem = ask(self.task, "parse", question)
        print(self.task.question(problem).rstrip("\n"))
        g = self.rationale(problem, "generate", show=True)
        if not problem.answer:
            print(f"\n-> {g.answer if g.answer is not None else VERDICTS[g.verdict]}")
        elif g.verdict == "right":
            print(f"\n-> {g.answer} is right" + (", but not every step is" if g.steps_right is False else ""))
        elif g.answer is None or g.verdict == "length":
            print(f"\n-> {VERDICTS[g.verdict]}: the answer is {problem.answer}")
        else:
            print(f"\n-> {g.answer} is wrong: the answer is {problem.answer}")

    def trace(self, question: str) -> None:
        """One problem's whole way: prompt, rationale, hint, hinted rationale, verdict, and what is trained on."""
        problem = ask(self.task, "parse", question)
        if not problem.answer:
            raise ValueError("--trace needs a question whose answer the task can tell, to judge by and to hint with: "
                             "its method parse(text) must give a Problem with an answer")
        for phase in ("generate", "rationalize") if self.config.rationalize else ("generate",):
            hinted = phase == "rationalize"
            shown = " (behind the few-shot text)" if self.task.few_shot(problem, hinted) and self.config.shows_examples(
                self.iteration, hinted) else ""
            prompt = self.task.hinted(problem) if hinted else self.task.question(problem)
            g = self.rationale(problem, phase, show=False)
            print(f"{paint('bold', phase)}{shown}\n{indent(prompt)}\n{paint('bold', '  the model writes')}\n"
                  f"{indent(g.text)}")
            print(paint("green" if g.kept else "red", f"  -> {g.verdict}: {VERDICTS[g.verdict]}")
                  + (", though a step is wrong" if g.steps_right is False else "") + "\n")
            if g.kept:
                tokenizer, few_shot = self.writer.tokenizer, self.config.few_shot_train
                show_example(prompts.example(self.task, problem, tokenizer, g.tokens, few_shot), tokenizer)
                return
        print("dropped: nothing of it is trained on")


def show_example(example: Example, tokenizer) -> None:
    """Ids and characters of a training sequence; the ones that bear loss stand in brackets, in green."""
    ends = dict.fromkeys(tokenizer.eos_ids, "<end>")
    pieces = [f"{i}:{ends.get(i) or repr(tokenizer.decode([i]))}" for i in example.tokens]
    print(paint("bold", "train") + f" on {len(pieces)} ids; loss falls on those in [ ]")
    print("  " + paint("dim", " ".join(pieces[: example.n_prompt])))
    print("  " + paint("green", "[" + " ".join(pieces[example.n_prompt :]) + "]"))


def indent(text: str) -> str:
    return "\n".join("    " + line for line in text.rstrip("\n").split("\n"))


def paint(color: str, text: str) -> str:
    """Text in colour, where the output is a terminal and nobody said NO_COLOR."""
    codes = {"bold": "1", "dim": "2", "red": "31", "green": "32"}
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\x1b[{codes[color]}m{text}\x1b[0m"


def asker(args) -> tuple[Asker, str]:
    """(the run's model with its task, a line that says which it is)."""
    folder = args.run or newest_finished()
    if folder is None and args.iteration:
        raise ValueError("--iteration needs a run, and runs/ has no finished one; train one: python train.py")
    if folder is None:
        config, options, learns, iteration, adapter = StarConfig(), {}, "rationales", 0, None
        which = "the base model that ships (no finished run in runs/; train one: python train.py)"
    else:
        run = Run.open(folder)
        config, options, learns = run.config, run.options, run.learns
        iteration = run.choose(args.iteration, base=args.trace)
        adapter = run.adapter(iteration) if iteration else None
        which = f"{folder}, iteration {iteration}" + ("" if iteration else " (the base)")
    if args.max_new_tokens is not None:
        config = StarConfig(**vars(config) | {"max_new_tokens": args.max_new_tokens})
    task = load_task(config.task, **options)
    task = task.answers_only() if learns == "answers" else task
    return Asker(Writer(config, adapter, args), task, config, iteration), which


def read_args(argv: list[str]):
    parser = Parser("\n\n".join(__doc__.split("\n\n")[1:]))
    parser.add_argument("question", nargs="?", help="a question, as 48571+9664; none: type them in")
    parser.add_argument("--model", type=Path, help="a model folder: go on with any text, without a task")
    parser.add_argument("--max-new-tokens", type=int, help="where to stop [the run's; with --model 200]")
    parser.add_argument("--trace", action="store_true", help="show one problem's whole way")
    parser.add_argument("--run", type=Path, help="run folder [the newest finished one]")
    parser.add_argument("--iteration", type=int, help="which model; 0: the base [the best or last; 0 with --trace]")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy [0]")
    parser.add_argument("--seed", type=int, default=0, help="of the draws, if the temperature is not 0 [0]")
    parser.add_argument("--ask", action="store_true", help="with --run: type questions, list nothing")
    parser.add_argument("--problem", help="list: one problem's rationales; 17 finds train-17")
    parser.add_argument("--verdict", help=f"list: {', '.join([*VERDICTS, *history.OUTCOMES])}")
    parser.add_argument("--phase", help=f"list: {', '.join(history.SAMPLED)}")
    parser.add_argument("--limit", type=int, default=20, help="list: rationales or problems shown at most [20]")
    args = parser.parse_args(argv)
    filters = [flag for flag in ("problem", "verdict", "phase") if getattr(args, flag) is not None]
    asks = args.question is not None or args.trace or args.ask or args.model is not None
    if filters and asks:
        raise ValueError(f"--{filters[0]} lists what a run generated: leave out the question, --trace, --ask, --model")
    if args.model is not None and (args.trace or args.run or args.iteration is not None):
        raise ValueError("--model asks a model without a run: leave out --run, --iteration and --trace")
    if args.trace and args.question is None:
        raise ValueError('--trace needs a question, as in: python sample.py --trace "1064+4991"')
    if args.limit < 1:
        raise ValueError(f"--limit is {args.limit}; it must be at least 1")
    args.browse = bool(filters) or (args.run is not None and not asks)
    return args


@command
def main(argv: list[str]) -> None:
    args = read_args(argv)
    if args.browse:
        run = args.run or newest_finished()
        if run is None:
            raise ValueError("runs/ has no finished run: name one by --run")
        n = None if args.iteration is None else (args.iteration, args.iteration)
        wanted = history.Filter(n, args.phase, args.verdict, args.problem)
        print("\n".join(history.browse(run, wanted, args.limit, max(shutil.get_terminal_size((120, 24)).columns, 60))))
        return
    if args.model is not None:
        writer, which = Writer(StarConfig(model=str(args.model)), None, args), args.model

        def respond(text: str) -> None:
            print(paint("dim", text), end="", flush=True)
            writer.write(writer.tokenizer.encode(text), args.max_new_tokens or 200, show=True)
            print()
    else:
        model, which = asker(args)
        respond = model.trace if args.trace else model.answer
    print(paint("dim", f"model: {which}"))
    if args.question is not None:
        respond(args.question)
        return
    while True:
        try:
            respond(input("? "))
        except EOFError:
            return
        except ValueError as e:
            print(f"error: {e}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
