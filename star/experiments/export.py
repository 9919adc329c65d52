"""python -m star.experiments.export OUT: a trained model as a folder that transformers, vLLM and PEFT load.

A run's adapters are merged into the base's weights (in float32, rounded once to the checkpoint's dtype) and written
under the base's tensor names, with its tokenizer. prompt.txt says how the model was asked, since it answers other forms
otherwise. Who wants the adapters alone has them: runs/NAME/adapters is PEFT's layout. A run with --base-bits 8 learned
its adapters beside rounded weights; they are merged into the checkpoint's own, so the folder differs from what the run
had sampled by the rounding to 8 bits.

Then the folder is read again, and proved to be the run's model: every weight is W + s B A within its dtype's rounding,
and it says the same as base and adapters to three of the run's questions. Where that fails it exits with 2.
"""

import contextlib
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

import checkpoints
from checkpoints.files import write_atomically
from star import lora, prompts
from star.config import StarConfig
from star.decoder import Decoder
from star.device import choose_device
from star.problem import Completion
from star.run.flags import Parser, as_flags, command
from star.run.folder import Run, read_lines
from star.run.history import clip
from star.run.ledger import newest_finished, none_finished
from star.run.models import load_base, load_tokenizer, outline, room
from star.sampler import Sampler
from star.tasks import Task, load_task

LINE = "-" * 80
ASKED, NEW = 3, 48  # questions that run and folder are asked, and new tokens of an answer
ROWS = 1024  # of a matrix that are compared at a time
LEAST, STORED, COMPUTED = 1e-3, 16, 128  # a log-probability may move by so much, or by so many epsilons of the dtype


def prompt_page(run: Run, iteration: int, out: Path, task: Task, tokenizer) -> str:
    """What prompt.txt says: how this model was asked when it was measured, and how to ask it so."""
    config = run.config
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


# ------------------------------------------------------------------------------------- is it what the run had learned?


@torch.no_grad()
def check_weights(model: Decoder, out: Path) -> None:
    """Is each tensor of the folder W + s B A of this model, rounded once? ValueError names one that is not.

    Computed anew in float64, a tensor at a time: what was rounded is off by half a unit in the last place at most, and
    a matrix that lacks its adapter, has another's, or stands in another order by more. Small errors are seen too, that
    no greedy token shows.
    """
    copy = checkpoints.outline(out)
    if copy.config != model.config:
        raise ValueError(f"{out}/config.json describes another model than {model.source.path}/config.json")
    adapted, layout, seen = lora.adapted(model), copy.source.layout, set()
    for part, weight in model.tensors():
        name, found = layout.name(part), torch.empty_like(weight)
        seen.add(name)
        copy.source.files[name].read_into(name, found, layout.order(part))
        for rows in torch.arange(len(weight)).split(ROWS):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            scale, A, B = adapted.get(part, (0.0, None, None))
            wanted = weight[here].double() if A is None else (
                weight[here].double() + scale * B[here].double() @ A.double())
            off = (found[here].double() - wanted).abs()
            if not (off <= rounding(wanted, weight.dtype, A is not None)).all():  # NaN too
                raise ValueError(f"{copy.source.files[name].path}: {name} is off by {off.max():.2g} from the run's "
                                 f"weight with its adapter merged in, more than rounding to {words(weight.dtype)} is")
    for name, file in copy.source.files.items():  # a vision tower; a head of its own in a tied model is seen above
        if name not in seen and not torch.equal(file.read(name), model.source.files[name].read(name).to(
                file.dtype(name))):
            raise ValueError(f"{file.path}: {name} is not what {model.source.files[name].path} has")


def rounding(wanted: Tensor, dtype: torch.dtype, merged: bool) -> Tensor | float:
    """How far each number may lie from the one in float64; what was not merged is the same to the last bit."""
    info = torch.finfo(dtype)
    half = info.eps / 2 * wanted.abs() + info.smallest_normal * info.eps  # below the smallest normal steps are equal
    return half + 1e-6 * wanted.abs().max() if merged else 0.0  # the sum itself was made in float32


def words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def questions(run: Run, iteration: int, task: Task | None, tokenizer, most: int) -> dict[str, list[int]]:
    """Name -> ids of some held-out problems' prompts, from all parts of the set, asked as the run asked.

    Where the task cannot be read any more, or none is shorter than `most`: beginnings of what the run had sampled.
    """
    problems = task.heldout[:: max(1, len(task.heldout) // ASKED)] if task and tokenizer else []
    few_shot = run.config.shows_examples(iteration, hinted=False)
    asked = {p.id: prompts.encode(task, p, tokenizer, few_shot=few_shot) for p in problems[: 4 * ASKED]}
    asked = {name: ids for name, ids in asked.items() if len(ids) < most}
    lines = (r for n in range(run.iteration + 1) for r in read_lines(run.samples(n)) if r["tokens"])
    asked = asked or {f"the rationale of {r['problem']}": r["tokens"][:8] for r in itertools.islice(lines, ASKED)}
    if not asked:
        raise ValueError(f"nothing is left to ask it, neither the task nor samples of {run.folder}")
    return dict(itertools.islice(asked.items(), ASKED))


def place(base: Path, config: StarConfig) -> tuple[torch.device, StarConfig]:
    """(device, settings) to ask both models with: the run's own where the weights have room, else the CPU."""
    for device, dtype in ((config.device, config.dtype), ("cpu", config.dtype), ("cpu", "bfloat16")):
        with contextlib.suppress(ValueError):
            settings = replace(config, device=device, dtype=dtype, base_bits=None)  # both with whole weights
            room(outline(base, settings, choose_device(device)), choose_device(device))
            return choose_device(device), settings
    raise ValueError(f"no device has room to load {base} again, and to ask it")


def greedy(model: Decoder, asked: Sequence[list[int]], tokenizer) -> list[Completion]:
    """What a model goes on with, its adapters live if it has any. No stop strings: their tokens would be cut off."""
    prefix, rest = prompts.split_prefix(asked)
    most = min(NEW, model.config.max_pos - max(map(len, asked)))
    sampler = Sampler(model, len(rest), max(map(len, rest)) + most, tokenizer, merge=False)
    return sampler.generate(rest, prefix=prefix, max_new_tokens=most,
                            stop_ids=tokenizer.eos_ids if tokenizer else ())


@torch.no_grad()
def scores(model: Decoder, behind: Sequence[list[int]], tokens: Sequence[tuple[int, int]]) -> Tensor:
    """(ids, 2): log-probabilities of the two tokens that may follow each of these ids."""
    rows = [model(torch.tensor([ids], device=model.device))[0, -1].log_softmax(-1)[list(two)]
            for ids, two in zip(behind, tokens, strict=True)]
    return torch.stack(rows).cpu()


def compare(run: Run, iteration: int, out: Path, task: Task | None, tokenizer) -> str:
    """A line that says whether run and folder say the same; one model is in memory at a time.

    Where tokens differ, the log-probabilities of both under both models tell a tie, which rounding decides, from a
    fault. ValueError for one, and wherever log-probabilities differ by more than rounding can explain, same tokens or
    not. task, tokenizer: None if they cannot be read.
    """
    base = Path(run.config.model or checkpoints.SHIPPED)
    own, stored = tokenizer and load_tokenizer(out, run.config.chat), checkpoints.outline(out)
    asked, asked_there = (questions(run, iteration, task, t, stored.config.max_pos) for t in (tokenizer, own))
    if tokenizer and (asked, tokenizer.eos_ids) != (asked_there, own.eos_ids):
        raise ValueError(f"its tokenizer makes other ids of the run's prompts than that of {base}")
    device, config = place(base, run.config)

    def load(folder: Path) -> Decoder:
        model = load_base(outline(folder, config, device), device)
        if folder == base:
            checkpoints.load_adapter(model, run.adapter(iteration))
        return model

    names, ids = list(asked), list(asked.values())
    ours, theirs = (greedy(load(folder), ids, tokenizer) for folder in (base, out))
    pairs = [list(zip(a.tokens, b.tokens, strict=False)) for a, b in zip(ours, theirs, strict=True)]
    differ = {i: next(t for t, (x, y) in enumerate(pair) if x != y)  # prompt -> its first new token that differs
              for i, pair in enumerate(pairs) if any(x != y for x, y in pair)}
    off = [abs(x - y) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
           for x, y in list(zip(a.logprobs, b.logprobs, strict=False))[: differ.get(i)]]
    found = ""
    if differ:
        behind, tokens = zip(*(([*ids[i], *ours[i].tokens[:t]], pairs[i][t]) for i, t in differ.items()), strict=True)
        here, there = (scores(load(folder), behind, tokens) for folder in (base, out))
        off += (here - there).abs().flatten().tolist()
        (i, t), more = next(iter(differ.items())), f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        (a, b), (c, d) = here[0].tolist(), there[0].tolist()
        found = (f"to {names[i]}{more} the run says {text(ours[i], t, tokenizer)} and the folder "
                 f"{text(theirs[i], t, tokenizer)} from new token {t + 1} on, with log-probabilities {a:.4f} and "
                 f"{b:.4f} by the run, {c:.4f} and {d:.4f} by the folder")
    computed = torch.finfo(outline(out, config, device).dtype).eps
    most, limit = torch.tensor(off).max().item(), max(LEAST, STORED * torch.finfo(stored.dtype).eps,
                                                      COMPUTED * computed)
    if not most <= limit:  # NaN too
        raise ValueError(f"{found or 'it says the same'}, but log-probabilities differ by up to {most:.2g}, and "
                         f"rounding to {words(stored.dtype)} explains {limit:.2g}")
    if found:
        return (f"differs: {found}. That is a tie, which rounding merged weights to {words(stored.dtype)} decides "
                f"otherwise; {run.adapter(iteration)} has the adapters as they were learned")
    bits = run.config.base_bits
    whole = f" with whole weights (it sampled and learned on {bits} bits, and says others now and then)" if bits else ""
    return (f"same: to {len(asked)} prompts the folder, loaded again, says the same {sum(map(len, pairs))} greedy "
            f"tokens as the run{whole}; log-probabilities differ by {most:.1g} at most")


def text(said: Completion, t: int, tokenizer) -> str:
    """What it says from token t on, clipped; ids where there is no tokenizer."""
    return repr(clip(tokenizer.decode(list(said.tokens[t : t + 12])), 40)) if tokenizer else str(said.tokens[t : t + 4])


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
        raise ValueError(f"nothing to export: {none_finished()}")
    run = Run.open(folder)
    iteration = run.choose(args.iteration)
    if iteration == 0:
        raise ValueError(f"nothing to export: iteration 0 of {folder} is the base, without adapters; copy its folder")
    model = checkpoints.load_model(run.config.model or checkpoints.SHIPPED)
    checkpoints.load_adapter(model, run.adapter(iteration))
    checkpoints.export_merged(model, args.out)
    task = tokenizer = None
    try:
        task = load_task(run.config.task, **run.options)
        task = task.answers_only() if run.learns == "answers" else task
        tokenizer = load_tokenizer(Path(run.config.model or checkpoints.SHIPPED), run.config.chat)
        page = prompt_page(run, iteration, args.out, task, tokenizer)
        write_atomically(args.out / "prompt.txt", page.encode())
    except (ValueError, OSError, ImportError) as e:  # the data went elsewhere: the model is whole without it
        print(f"note: no prompt.txt, since the run's task cannot be read ({e})", file=sys.stderr)
    print(f"wrote {args.out}: {folder}, iteration {iteration}, {checkpoints.describe(model)}", flush=True)
    try:
        check_weights(model, args.out)
        del model  # there may not be room for two
        print(compare(run, iteration, args.out, task, tokenizer))
    except (ValueError, OSError) as e:
        raise ValueError(f"{args.out} is kept, but not proved to be what {folder} had learned by iteration "
                         f"{iteration}: {e}") from None


if __name__ == "__main__":
    sys.exit(main())
