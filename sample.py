"""python sample.py "48571+9664": ask a trained model, and see whether it is right.

Without a question it is a prompt to type into. With --trace it shows one problem's whole way through Algorithm 1. It
takes the newest finished run, or the model that ships; with --model a folder's model goes on with any text, without a
task. With --run and no question it lists what that run generated (star/history). It changes nothing on disk.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C while torch is imported; main() puts Python's own handler back
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import shutil
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

import checkpoints
from checkpoints.files import read_json
from star import history, prompts
from star.config import StarConfig
from star.evaluate import VERDICTS, verdict
from star.problem import Completion, Example, Problem
from star.run import newest_finished
from star.sampler import Sampler
from star.tasks import Task
from star.text import TextStream
from train import Parser, load_base, load_tokenizer, one_line, prepare


class Writer:
    """A model that goes on with a text: no task, no verdict."""

    def __init__(self, config: StarConfig, adapter: Path | None, temperature: float, seed: int):
        model = load_base(config)
        self.tokenizer = load_tokenizer(config)
        if adapter is not None:
            checkpoints.load_adapter(model, adapter)
        self.sampler = Sampler(model, slots=1, max_len=min(model.config.max_pos, 16_384), tokenizer=self.tokenizer)
        self.temperature, self.seed = temperature, seed
        self.cap = config.max_new_tokens or 200

    def write(self, prompt: list[int], cap: int, show: bool, stop: tuple[str, ...] = ()) -> Completion:
        """What follows a prompt, up to an end or the cap; with show, its characters are printed as they come."""
        room = self.sampler.max_len - len(prompt)
        if not prompt or room < 1:
            raise ValueError(f"the text has {len(prompt)} tokens; it must have 1 to {self.sampler.max_len - 1}")
        # the prompt's ids too: a first piece decoded alone would lose the space that parts it from the prompt
        stream = TextStream(self.tokenizer, list(prompt), len(self.tokenizer.decode(prompt)))

        def on_token(_: int, token: int) -> None:
            if show and token not in self.tokenizer.eos_ids:
                print(stream.push(token), end="", flush=True)

        out = self.sampler.generate([prompt], max_new_tokens=min(cap, room), temperature=self.temperature,
                                    seeds=[self.seed], stop_ids=self.tokenizer.eos_ids, stop=stop, on_token=on_token)[0]
        if show:
            print(stream.end(), end="", flush=True)
        return out

    def answer(self, text: str) -> None:
        """The text, and what the model writes behind it."""
        print(paint("dim", text), end="", flush=True)
        self.write(self.tokenizer.encode(text), self.cap, show=True)
        print()


class Asker:
    """A model with its task, ready to be asked."""

    def __init__(self, config: StarConfig, writer: Writer):
        self.task: Task = prepare(config)
        self.writer, self.tokenizer = writer, writer.tokenizer
        self.cap = config.max_new_tokens or 2 * self.task.max_new_tokens  # questions may be longer here

    def rationale(self, problem: Problem, hinted: bool, show: bool) -> tuple[str, str, list[int]]:
        """(text, verdict, ids) of one completion; with show, its characters are printed as they come."""
        out = self.writer.write(prompts.encode(self.task, problem, self.tokenizer, hinted), self.cap, show,
                                self.task.stop)
        text = self.tokenizer.decode([i for i in out.tokens if i not in self.tokenizer.eos_ids])
        return text, verdict(self.task, problem, text, out.finish, hinted), list(out.tokens)

    def answer(self, question: str) -> None:
        """Reason aloud and say whether the answer is right."""
        problem = self.task.parse(question)
        print(self.task.question(problem).rstrip("\n"))
        text, said, _ = self.rationale(problem, hinted=False, show=True)
        found = self.task.extract(text)
        if not problem.answer:
            print(f"\n-> {found if found is not None else VERDICTS[said]}")
        elif said == "right":
            steps = ", but not every step is" if self.task.check_steps(problem, text) is False else ""
            print(f"\n-> {found} is right{steps}")
        elif found is None or said == "length":
            print(f"\n-> {VERDICTS[said]}: the answer is {problem.answer}")
        else:
            print(f"\n-> {found} is wrong: the answer is {problem.answer}")

    def trace(self, question: str) -> None:
        """One problem's whole way: prompt, rationale, hint, hinted rationale, verdict, and what is trained on."""
        problem = self.task.parse(question)
        if not problem.answer:
            raise ValueError("--trace needs a question whose answer the task can tell, to judge by and to hint with")
        for hinted, title in ((False, "generate"), (True, "rationalize")):
            prompt = self.task.hinted(problem) if hinted else self.task.question(problem)
            text, said, ids = self.rationale(problem, hinted, show=False)
            wrong_step = said == "right" and self.task.check_steps(problem, text) is False
            print(f"{paint('bold', title)}\n{indent(prompt)}\n{paint('bold', '  the model writes')}\n{indent(text)}")
            print(paint("green" if said == "right" else "red", f"  -> {said}: {VERDICTS[said]}")
                  + (", though a step is wrong" if wrong_step else "") + "\n")
            if said == "right":
                self.show_example(prompts.example(self.task, problem, self.tokenizer, ids))
                return
        print("dropped: nothing of it is trained on")

    def show_example(self, example: Example) -> None:
        """Ids and characters of a training sequence; the ones that bear loss stand in brackets, in green."""
        ends = dict.fromkeys(self.tokenizer.eos_ids, "<end>")
        pieces = [f"{i}:{ends.get(i) or repr(self.tokenizer.decode([i]))}" for i in example.tokens]
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


def choose(run: Path | None, iteration: int | None, trace: bool) -> tuple[StarConfig, Path | None, str]:
    """(settings, adapter folder or None for the base, a line that says which model it is)."""
    run = run or newest_finished()
    if run is None:
        if iteration:
            raise ValueError("--iteration needs a run, and runs/ has no finished one; train one: python train.py")
        return StarConfig(), None, "the base model that ships (no finished run in runs/; train one: python train.py)"
    settings, state = read_json(run / "config.json").get("settings"), read_json(run / "state.json")
    if not isinstance(settings, dict):
        raise ValueError(f"{run} is no run: its config.json has no settings")
    last = state.get("iteration", -1)
    best = state.get("best")
    iteration = iteration if iteration is not None else 0 if trace else max(last if best is None else best, 0)
    if not 0 <= iteration <= max(last, 0):
        raise ValueError(f"--iteration is {iteration}, but {run} has iterations 0 (the base) to {max(last, 0)}")
    adapter = run / "adapters" / f"iter-{iteration:03d}" if iteration else None
    return StarConfig(**settings), adapter, f"{run}, iteration {iteration}" + ("" if iteration else " (the base)")


def wants_list(args) -> bool:
    """Is it the run's rationales that are asked for, and not its model? ValueError where it could be both."""
    filters = [flag for flag in ("problem", "verdict", "phase") if getattr(args, flag) is not None]
    if filters and (args.question is not None or args.trace or args.ask or args.model):
        raise ValueError(f"--{filters[0]} lists what a run generated: leave out the question, --trace, --ask, --model")
    if args.limit < 1:
        raise ValueError(f"--limit is {args.limit}; it must be at least 1")
    asks = args.question is not None or args.trace or args.ask or args.model is not None
    return bool(filters) or (args.run is not None and not asks)


def look(args) -> None:
    """What a run generated: an overview and each problem's way, a filtered list, or one problem side by side."""
    run = args.run or newest_finished()
    if run is None:
        raise ValueError("runs/ has no finished run: name one by --run")
    width = max(shutil.get_terminal_size((120, 24)).columns, 60)
    iterations = None if args.iteration is None else (args.iteration, args.iteration)
    wanted = history.Filter(iterations, args.phase, args.verdict, args.problem)
    everything = history.load(run)
    found = [g for g in everything if history.matches(g, wanted)]
    if not found:
        raise ValueError(history.nothing(wanted, everything))
    if args.problem is not None:
        lines = history.side_by_side(found, width, questions(run))
    elif iterations or args.phase or args.verdict:
        lines = history.listing(found, args.limit, width)
    else:
        trained_on = [g for g in found if g.phase in ("generate", "rationalize")]
        lines = [*history.overview(found), "", *history.journeys(trained_on or found, args.limit)]
    print("\n".join(lines))


def questions(run: Path) -> dict[str, str]:
    """Question by problem of the run's task; none where its data is no longer there."""
    try:
        task = load_task_of(run)
    except (ValueError, OSError):
        return {}
    return {p.id: p.question for p in [*task.train, *task.heldout]}


def load_task_of(run: Path) -> Task:
    settings = read_json(run / "config.json").get("settings", {})
    known = {f.name for f in fields(StarConfig)}
    return prepare(StarConfig(**{k: v for k, v in settings.items() if k in known}))


def main(argv: list[str] | None = None) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.showwarning = one_line
    parser = Parser(description="\n\n".join(__doc__.split("\n\n")[1:]))
    parser.add_argument("question", nargs="?", help="a question of the task, as 48571+9664; none: type them in")
    parser.add_argument("--model", type=Path, help="a model folder: go on with any text, without a task")
    parser.add_argument("--max-new-tokens", type=int, help="where to stop at last [the run's; with --model 200]")
    parser.add_argument("--trace", action="store_true", help="show one problem's whole way through the algorithm")
    parser.add_argument("--run", type=Path, help="run folder [the newest finished one]")
    parser.add_argument("--iteration", type=int, help="which model; 0 is the base [the last; 0 with --trace]")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy [0]")
    parser.add_argument("--seed", type=int, default=0, help="of the draws, if the temperature is not 0 [0]")
    parser.add_argument("--ask", action="store_true", help="with --run: type questions to its model, list nothing")
    parser.add_argument("--problem", help="list: one problem's rationales side by side; 17 finds train-17")
    parser.add_argument("--verdict", help="list: right, wrong, unparsed, length, leak; kept, rationalized, failed")
    parser.add_argument("--phase", help="list: generate, rationalize, evaluate, validate, 'pass at k'")
    parser.add_argument("--limit", type=int, default=20, help="list: rationales or problems shown at most [20]")
    try:
        args = parser.parse_args(argv)
        if wants_list(args):
            look(args)
            return 0
        if args.model is not None:
            if args.trace or args.run or args.iteration is not None:
                raise ValueError("--model asks a model without a run: leave out --run, --iteration and --trace")
            config, adapter, which = StarConfig(model=str(args.model)), None, args.model
        else:
            config, adapter, which = choose(args.run, args.iteration, args.trace)
        if args.max_new_tokens is not None:
            config = replace(config, max_new_tokens=args.max_new_tokens)
        writer = Writer(config, adapter, args.temperature, args.seed)
        asker = writer if args.model is not None else Asker(config, writer)
        print(paint("dim", f"model: {which}"))
        if args.trace and args.question is None:
            raise ValueError('--trace needs a question, as in: python sample.py --trace "1064+4991"')
        if args.question is not None:
            (asker.trace if args.trace else asker.answer)(args.question)
            return 0
        while True:
            try:
                asker.answer(input("? "))
            except ValueError as e:
                print(f"error: {e}", file=sys.stderr)
    except EOFError:
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
