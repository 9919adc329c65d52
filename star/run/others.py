"""The other models, answers and judge of a run: refused here if they cannot serve, loaded when the pool needs them.

    --generators, --candidates, --reward  ->  Others: a pool (star/pool), what to say of it, what memory it takes

It sees outlines, tokenizers and files, and loads no weights until the pool asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoints
from checkpoints.chat import has_chat
from star import prompts
from star.config import StarConfig, several
from star.decoder import Decoder
from star.pool import Model, Pool, judge_pair
from star.problem import STUDENT, Candidate
from star.reward import Judge, Likelihood, RewardModel, choose_weights
from star.run.candidates import Reader
from star.run.history import clip
from star.run.memory import memory
from star.run.models import JOIN, load_base, load_tokenizer, measure_prompts, outline, placed, recast, room
from star.sampler import Sampler
from star.select import set_aside
from star.tasks import Task
from star.tasks.records import named

MARKERS = 256  # bytes that a judge's format puts around question and answer, at most


@dataclass(frozen=True)
class Others:
    """Who answers and who judges beside the student. bytes: of the largest of them, at work."""

    pool: Pool
    said: list[str]
    notes: list[str]
    bytes: int = 0


def plan_others(config: StarConfig, task: Task, tokenizer, student: Decoder, max_new: int, device: torch.device
                ) -> Others:
    """Raises ValueError or FileNotFoundError for what cannot serve: which folder, file or line, and why."""
    folders = [Path(path) for path in several(config.generators)]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names) or STUDENT in names:
        raise ValueError(f"--generators has folders named {', '.join(names)}: each must have a name of its own, and "
                         f"{STUDENT!r} is that of the model which is trained")
    said, notes, models, most = [], [], [], 0
    for folder in folders:
        model, line, need, said_of = plan_model(folder, config, task, max_new, device)
        models.append(model)
        notes += said_of
        said.append(f"pool    {clip(model.name, 60)}: {line}")
        most = max(most, need)
        if model.left_out:
            notes.append(f"{len(model.left_out)} problems do not fit into the context of {model.name}: "
                         f"{named(sorted(model.left_out))}")
    reader = Reader(task, tokenizer, names, config.skip_bad, not config.reward, config.reward_weights)
    candidates = [c for file in several(config.candidates) for c in reader.read(file)]
    said += [f"pool    {note}" for note in reader.notes]
    if reader.labels and config.reward:
        notes.append(f"the scores in --candidates are not used: {Path(config.reward).name} scores all answers")
    rewarded(config, candidates)
    notes += answered(config, task, candidates)
    judge = None
    if config.reward:
        judge = plan_judge(Path(config.reward), config, device)
        said.append(f"judge   {described(judge)}")
        notes += [*judge.tokenizer.notes, *fits(judge, task), *kinship(judge, student)]
        most = max(most, sum(p.nbytes for p in judge.scorer.model.parameters()))
    pool = Pool(models, candidates, (lambda: loaded(judge, config, device)) if judge else None)
    return Others(pool, said, notes, most)


def rewarded(config: StarConfig, candidates: Sequence[Candidate]) -> None:
    """ValueError where answers are to be chosen by a reward that nobody gives."""
    if config.reward_weights and not config.reward and all(c.reward is None for c in candidates):
        raise ValueError(f"--reward-weights {config.reward_weights} weighs scores, and no line of --candidates has any")
    if config.ranks and not config.reward and not any(c.reward is not None for c in candidates):
        raise ValueError(f"--select {config.select} chooses by reward, but no line of --candidates has scores: name a "
                         "reward model by --reward")


def answered(config: StarConfig, task: Task, candidates: Sequence[Candidate]) -> list[str]:
    """A note on answers that nobody learns from, since --validation set their problems aside. ValueError if all are,
    and nobody else answers."""
    aside = {p.id for p in set_aside(task.train, config.validation)[0]}
    lost = sum(c.problem in aside for c in candidates)
    if lost == len(candidates) and candidates and not config.samples and not config.generators:
        raise ValueError(f"--validation {config.validation} sets all problems aside that --candidates answer: lower it")
    return [f"{lost} answers in --candidates are to problems that --validation sets aside: not used"] if lost else []


def plan_model(folder: Path, config: StarConfig, task: Task, max_new: int, device: torch.device
               ) -> tuple[Model, str, int, list[str]]:
    """(another model, what it is, the bytes that it needs at work, notes on its tokens)."""
    model, tokenizer = outline(folder, config, device), load_tokenizer(folder, config.chat, ends=True)
    try:
        lengths, left_out = measure_prompts(task, tokenizer, max_new, model.config.max_pos)
    except ValueError as e:
        raise ValueError(f"generator {folder.name}: {e}") from None
    max_len = lengths.question + max_new + JOIN * (lengths.examples > 0)
    Sampler(model, 1, max_len, tokenizer)  # does the tokenizer fit the model?
    rows = min(config.problems, len(task.train)) * max(config.samples, 1)
    need = memory(model, config, lengths, max_new, rows, device)

    def opened() -> tuple[Sampler, object]:
        return Sampler(load_base(outline(folder, config, device), device), config.slots, max_len, tokenizer), tokenizer

    most = need.weights + need.sampling
    return Model(folder.name, opened, frozenset(left_out)), checkpoints.describe(model), most, [
        *tokenizer.notes, *recast(folder, config, model)]


def plan_judge(folder: Path, config: StarConfig, device: torch.device) -> Judge:
    """The judge around an outline: it encodes, but cannot score yet."""
    if config.reward_by == "likelihood":
        scorer, own = Likelihood(outline(folder, config, device)), None
    else:
        scorer = checkpoints.outline_reward_model(folder, None if config.dtype == "auto" else config.dtype)
        placed(scorer.model, config, device)
        own = scorer.format or ("steerlm" if len(scorer.labels) == 9 else None)
    form = config.reward_format
    if form == "auto":
        form = own or ("chat" if has_chat(folder) else "plain")
    weights = choose_weights(scorer.labels, config.reward_weights, getattr(scorer, "weights", None))
    return Judge(folder.name, scorer, load_tokenizer(folder, form == "chat"), form, weights)


def loaded(judge: Judge, config: StarConfig, device: torch.device) -> Judge:
    """The same judge with its weights."""
    fresh = plan_judge(judge.scorer.model.source.path, config, device)
    room(fresh.scorer.model, device)
    if isinstance(fresh.scorer, RewardModel):
        checkpoints.fill_reward_model(fresh.scorer, device)
    else:
        checkpoints.fill(fresh.scorer.model, device)
    return fresh


def described(judge: Judge) -> str:
    """For people: what it is, how it is asked, what its attributes count."""
    total = " ".join(f"{w:+g} {clip(label, 40)}" for w, label in zip(judge.weights, judge.labels, strict=True) if w)
    how = {"plain": "asked as the task asks", "chat": "asked in its chat template", "steerlm": "asked with SteerLM's "
           "markers"}[judge.format]
    return f"{clip(judge.name, 60)}: {checkpoints.describe(judge.scorer.model)}; {how}; reward = {total}"


def fits(judge: Judge, task: Task) -> list[str]:
    """Notes on questions that leave no room for an answer. ValueError if none does, or the judge cannot read one."""
    most, asked = judge.scorer.max_pos, {p.id: judge_pair(judge, task, p, "")[0] for p in task.train}
    long = [p for p, text in asked.items()  # a token is a byte at least: most questions need not be encoded
            if len(text.encode()) + MARKERS >= most and len(ids(judge, text)) >= most]
    ids(judge, asked[task.train[0].id])  # has its tokenizer all characters?
    if len(long) == len(asked):
        raise ValueError(f"the judge {judge.name} reads {most} tokens, and every question of the task has more: take a "
                         "judge with a longer context")
    return [f"{len(long)} questions leave no room for an answer in the {most} tokens of {judge.name}, so their answers "
            f"have no score: {named(long)}"] if long else []


def ids(judge: Judge, question: str) -> Sequence[int]:
    """A question as the judge reads it, with next to no answer. ValueError for a character that it has no token for."""
    row = judge.encode(question, question[-1:])
    row = getattr(row, "tokens", row)
    if (odd := prompts.unknown(judge.tokenizer, question, row)) is not None:
        raise ValueError(f"the judge {judge.name} has no token for {odd!r}, which stands in {question[:60]!r}: take a "
                         "judge that reads the task's language")
    return row


def kinship(judge: Judge, student: Decoder) -> list[str]:
    """A note on a judge of another lineage."""
    mine, its = (m.source.config["model_type"] for m in (student, judge.scorer.model))
    if mine == its:
        return []
    return [f"the judge is of the family {its}, the student of {mine}: choosing the best of several answers works as "
            "well, but training on its choices is known to suffer (RewardBench 2, arXiv 2506.01937)"]
