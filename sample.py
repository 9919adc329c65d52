"""python sample.py "48571+9664": ask a trained model, and see whether it is right.

Without a question it is a prompt to type into. With --trace it shows one problem's whole way through Algorithm 1, with
--best-of several answers to a question and which of them a judge picks. It takes the newest finished run, or the model
that ships; with --model a folder's model goes on with any text, or answers the questions of --task. With --run and no
question it lists what that run generated (star/run/history). --questions and --rollouts write files for and from other
models (star/run/exchange); nothing else on disk is changed.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C while torch is imported; `command` puts Python's own handler back
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import checkpoints
from checkpoints.chat import has_chat
from star import prompts
from star.config import DEFAULTS, OF_OTHERS, StarConfig
from star.device import choose_device
from star.evaluate import VERDICTS
from star.pool import Pool
from star.problem import STUDENT, Completion, Example, Generation, Problem
from star.rollout import Rollout, result
from star.run import best, history
from star.run.exchange import write_questions, write_rollouts
from star.run.flags import command, one_line
from star.run.folder import Run
from star.run.ledger import newest_finished, none_finished
from star.run.models import load_base, load_tokenizer, outline
from star.run.others import plan_others
from star.run.sample_flags import read_args
from star.run.screen import legible
from star.sampler import Sampler
from star.tasks import Task, ask, load_task
from star.tasks.records import named
from star.text import Prompt, TextStream, visible

JUDGED = ("generators", "reward", "reward_by", "reward_weights", "reward_format")  # flags of --best-of


class AnyText(Task):
    """Any text, with no answer to compare with: what a model is asked without a task."""

    max_new_tokens = 200

    def __init__(self):
        self.train = self.heldout = [self.parse(" ")]

    def question(self, problem: Problem) -> str:
        return problem.question

    def extract(self, text: str) -> None:
        return None


class Writer:
    """A model that goes on with a text: no task, no verdict."""

    def __init__(self, config: StarConfig, adapter: Path | None, args):
        folder, device = Path(config.model or checkpoints.SHIPPED), choose_device(config.device)
        self.tokenizer = load_tokenizer(folder, config.chat)
        model = load_base(outline(folder, config, device), device)
        if adapter is not None:
            checkpoints.load_adapter(model, adapter)
        self.sampler = Sampler(model, slots=1, max_len=min(model.config.max_pos, 16_384), tokenizer=self.tokenizer)
        self.temperature, self.seed = args.temperature or 0.0, args.seed

    def write(self, prompt: list[int], max_new: int, show: bool, stop: tuple[str, ...] = ()) -> Completion:
        """What follows a prompt; with show, its characters are printed as they come."""
        room = self.sampler.max_len - len(prompt)
        if not prompt or room < 1:
            raise ValueError(f"the text has {len(prompt)} tokens; it must have 1 to {self.sampler.max_len - 1}")
        # the prompt's ids too: a first piece decoded alone would lose the space that parts it from the prompt
        stream = TextStream(self.tokenizer, list(prompt), len(self.tokenizer.decode(prompt)))

        def on_token(_: int, token: int) -> None:
            if show and token not in self.tokenizer.eos_ids:
                print(legible(stream.push(token)), end="", flush=True)

        (out,) = self.sampler.generate([prompt], max_new_tokens=min(max_new, room), temperature=self.temperature,
                                       seeds=[self.seed], stop_ids=self.tokenizer.eos_ids, stop=stop, on_token=on_token)
        if show:
            print(legible(stream.end()), end="", flush=True)
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
        return self.rollout.verify((self.iteration, phase, problem.id, 0, STUDENT), problem, out, self.writer.seed)

    def problem(self, text: str) -> Problem:
        """What somebody typed: one of the task's own problems, where it is that, whose answer is known."""
        problem, words = ask(self.task, "parse", text), text.split()
        if problem.answer:
            return problem
        return next((p for p in [*self.task.train, *self.task.heldout] if p.question.split() == words), problem)

    def known(self, name: str) -> Problem:
        """A problem of the task by its id, or what stands behind a "-" at its end: 17 for train-17."""
        problems = [*self.task.train, *self.task.heldout]
        found = [p for p in problems if p.id == name] or [p for p in problems if p.id.endswith(f"-{name}")]
        if not found:
            raise ValueError(f"--problem {name}: task {self.task.name} has none of this id; its ids are like "
                             f"{named([p.id for p in problems])}")
        return found[0]

    def answer(self, question: str) -> None:
        """Reason aloud and say whether the answer is right."""
        problem = self.problem(question)
        print(legible(prompts.render(self.task, problem, self.writer.tokenizer.chat, few_shot=False)).rstrip("\n"))
        g = self.rationale(problem, "generate", show=True)
        said, right = visible(str(g.answer)), visible(problem.answer)
        if not problem.answer:
            print(f"\n-> {said if g.answer is not None else VERDICTS['unparsed']}")
        elif g.verdict == "right":
            print(f"\n-> {said} is right" + (", but not every step is" if g.steps_right is False else ""))
        elif g.answer is None or g.verdict == "length":
            print(f"\n-> {VERDICTS[g.verdict]}: the answer is {right}")
        else:
            print(f"\n-> {said} is wrong: the answer is {right}")

    def best_of(self, question: str, n: int, temperature: float, pool: Pool) -> None:
        """n answers, those of other models too, rated by the judge; the best first."""
        problem = self.problem(question)
        tokenizer, step = self.writer.tokenizer, self.iteration + 1  # M_0 samples in iteration 1
        config = replace(self.config, samples=n, temperature=temperature if n > 1 else self.config.temperature,
                         max_new_tokens=self.max_new, hint_samples=None, max_per_problem=None, wanted=None)
        few_shot = self.config.shows_examples(self.iteration, hinted=False)
        length = len(prompts.encode(self.task, problem, tokenizer, few_shot=few_shot))
        sampler = Sampler(self.writer.sampler.model, n, length + self.max_new, tokenizer)
        home = Rollout(sampler, tokenizer, self.task, config)
        tried = home.complete(step, "generate", [problem]) + result(pool.answers(home, step, [problem]))
        rated = result(pool.score(home, step, tried, [problem]))
        print(legible(self.task.question(problem)).rstrip("\n") + "\n")
        print("\n".join(best.table(rated, max(shutil.get_terminal_size((100, 24)).columns, 60))))
        pick = best.merged(rated)[0][0]
        right = {"right": " is right", "wrong": f" is wrong: the answer is {visible(problem.answer)}"}.get(
            pick.verdict, "")
        if pick.answer is not None and pick.reward is not None:
            print(f"\n-> {visible(str(pick.answer))}{right}")

    def trace(self, problem: Problem) -> None:
        """One problem's whole way: prompt, rationale, hint, hinted rationale, verdict, and what is trained on."""
        if not problem.answer:
            raise ValueError("--trace needs a question whose answer the task can tell, to judge by and to hint with: "
                             "name one of the task's own by --problem ID, or let its method parse(text) give a Problem "
                             "with an answer")
        for phase in ("generate", "rationalize") if self.config.rationalize else ("generate",):
            hinted = phase == "rationalize"
            shown = " (behind the few-shot text)" if self.task.few_shot(problem, hinted) and self.config.shows_examples(
                self.iteration, hinted) else ""
            prompt = prompts.render(self.task, problem, self.writer.tokenizer.chat, hinted, few_shot=False)
            g = self.rationale(problem, phase, show=False)
            print(f"{paint('bold', phase)}{shown}\n{indent(prompt)}\n{paint('bold', '  the model writes')}\n"
                  f"{indent(g.text)}")
            says = "" if g.kept else visible(f"; it says {g.answer}, right is {problem.answer}")
            print(paint("green" if g.kept else "red", f"  -> {g.verdict}: {VERDICTS[g.verdict]}")
                  + (", though a step is wrong" if g.steps_right is False else "") + f"{says}\n")
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
    return "\n".join("    " + line for line in legible(text).rstrip("\n").split("\n"))


def paint(color: str, text: str) -> str:
    """Text in colour, where the output is a terminal and nobody said NO_COLOR; no other code passes."""
    codes, text = {"bold": "1", "dim": "2", "red": "31", "green": "32"}, legible(text)
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\x1b[{codes[color]}m{text}\x1b[0m"


def chosen(args) -> tuple[StarConfig, dict, str, int, Path | None, str]:
    """(settings, task options, what was learned, iteration, adapters, a line that says which model it is)."""
    config, options, learns, iteration, adapter = StarConfig(), args.options, "rationales", 0, None
    folder = args.run or (None if args.model or args.task else newest_finished())
    if args.model is not None:
        config, which = StarConfig(model=str(args.model), chat=args.chat), str(args.model)
    elif folder is None and args.iteration:
        raise ValueError(f"--iteration needs a run, and {none_finished()}")
    elif folder is None:
        which = "the base model that ships" + ("" if args.task else f" ({none_finished()})")
    else:
        run = Run.open(folder)
        config, options, learns = run.config, run.options, run.learns
        iteration = run.choose(args.iteration, base=args.trace)
        adapter = run.adapter(iteration) if iteration else None
        which = f"{folder}, iteration {iteration}" + ("" if iteration else " (the base)")
    if args.task is not None:
        config = replace(config, task=args.task)
    if args.max_new_tokens is not None:
        config = replace(config, max_new_tokens=args.max_new_tokens)
    return config, options, learns, iteration, adapter, which


def asker(args) -> tuple[Asker, str]:
    """(the model with its task, a line that says which it is)."""
    config, options, learns, iteration, adapter, which = chosen(args)
    task = AnyText() if args.model and not args.task else load_task(config.task, **options)
    task = task.answers_only() if learns == "answers" else task
    return Asker(Writer(config, adapter, args), task, config, iteration), which


def judged(model: Asker, args) -> Pool:
    """The other models and the judge of --best-of; the run's own judge where the flags name none."""
    given = {name: getattr(args, name) for name in JUDGED if getattr(args, name) is not None}
    others = {name: DEFAULTS[name] for name in OF_OTHERS if name == "generators" or name not in JUDGED}
    others |= {"wanted": None, "hint_samples": None, "max_per_problem": None}
    settings = vars(model.config) | others | {"samples": 1} | given
    if not settings["reward"]:
        raise ValueError("--best-of picks by a judge: name a reward model by --reward")
    config, writer = StarConfig(**settings), model.writer
    others = plan_others(config, model.task, writer.tokenizer, writer.sampler.model, model.max_new,
                         writer.sampler.model.device)
    print(paint("dim", "\n".join(map(visible, [*others.said, *(f"note    {note}" for note in others.notes)]))))
    return others.pool


@command
def main(argv: list[str]) -> None:
    args = read_args(argv, "\n\n".join(__doc__.split("\n\n")[1:]))
    if args.browse:
        run = args.run or newest_finished()
        if run is None:
            raise ValueError(none_finished())
        n = None if args.iteration is None else (args.iteration, args.iteration)
        wanted = history.Filter(n, args.phase, args.verdict, args.problem, args.source)
        width = max(shutil.get_terminal_size((120, 24)).columns, 60)
        print("\n".join(history.browse(run, wanted, args.limit or 20, width)))
        return
    if args.files:
        print(write_file(args))
        return
    which, respond = responder(args)
    print(paint("dim", visible(f"model: {which}")))
    if args.question is not None or args.trace:
        respond(args.question)
        return
    while True:
        try:
            respond(input("? "))
        except EOFError:
            return
        except ValueError as e:
            print(f"error: {one_line(str(e))}", file=sys.stderr)


def write_file(args) -> str:
    """--questions or --rollouts; a line on what was written."""
    config, options, _, iteration, adapter, _ = chosen(args)
    if args.questions:
        return write_questions(args.questions, config, options, args.limit, args.seed)
    temperature = args.temperature if args.temperature is not None else 0.7 if (args.samples or 1) > 1 else 0.0
    return write_rollouts(args.rollouts, config, options, args.limit, iteration, adapter, samples=args.samples or 1,
                          temperature=temperature, seed=args.seed)


def responder(args) -> tuple[str, Callable[[str], None]]:
    """(which model it is, what is done with a text)."""
    if args.model and not args.task and not args.best_of:
        writer = Writer(StarConfig(model=str(args.model), chat=args.chat), None, args)
        if (args.model / "prompt.txt").is_file():
            print(paint("dim", visible(f"note: {args.model / 'prompt.txt'} says how this model was asked")))
        elif not args.chat and has_chat(args.model):
            print(paint("dim", "note: this model has a chat template, and is asked without it here: --chat"))
        return str(args.model), lambda text: go_on(writer, text, args.max_new_tokens or 200)
    model, which = asker(args)
    if args.best_of:
        pool, temperature = judged(model, args), 0.7 if args.temperature is None else args.temperature
        return which, lambda text: model.best_of(text, args.best_of, temperature, pool)
    if args.problem is not None:
        return which, lambda _: model.trace(model.known(args.problem))
    return which, (lambda text: model.trace(model.problem(text))) if args.trace else model.answer


def go_on(writer: Writer, text: str, max_new: int) -> None:
    """Any text and what follows it."""
    tokenizer, chat = writer.tokenizer, writer.tokenizer.chat
    if marks := tokenizer.special_in(text):
        marks = visible(named(list(marks)))
        print(paint("dim", f"note: {marks} stands there as text: --chat writes the model's own tokens"))
    print(paint("dim", text), end="\n" if chat else "", flush=True)
    prompt = chat.render([("user", text)]) if chat else Prompt(text)
    ids = tokenizer.encode(prompt)
    if (odd := prompts.unknown(tokenizer, prompt, ids)) is not None:
        raise ValueError(f"the tokenizer has no token for {odd!r}: {text[:60]!r}")
    writer.write(ids, max_new, show=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
