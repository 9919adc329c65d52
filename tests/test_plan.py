"""What a run stands on, known before the weights are loaded: which prompts fit, what is refused, what is built."""

import copy
import random

import pytest
import torch
from conftest import GOLDEN, refused

import checkpoints
import star.run.models
import star.run.plan
from star import prompts
from star.config import StarConfig
from star.lora import lora_modules, trainable
from star.problem import Problem, Shot
from star.ranks import ONE, Ranks
from star.run.memory import Lengths, Memory, memory
from star.run.models import JOIN, load_base, measure_prompts
from star.run.plan import build, make_plan, shared
from star.run.work import Work
from star.shard import Turns
from star.tasks import Task, load_task

CPU = torch.device("cpu")


# whether prompts fit


class Questions(Task):
    """Problems are texts; the hint stands in front."""

    shots, between = (Shot(Problem("example", "1+1", "2"), "=2\n"),), ""

    def __init__(self, train, heldout):
        self.train, self.heldout = ([Problem(f"{part}{i}", q, "7") for i, q in enumerate(questions)]
                                    for part, questions in (("t", train), ("h", heldout)))

    def question(self, problem):
        return problem.question + "\n"

    def hinted(self, problem):
        return f"hint {problem.answer}\n{problem.question}\n"


def longest(task, tokenizer, few_shot, out=()):
    return max(len(prompts.encode(task, p, tokenizer, hinted, few_shot))
               for p in [*task.train, *task.heldout] if p.id not in out for hinted in (False, True))


def test_problems_that_do_not_fit_are_found(tokenizer):
    """Of the hinted prompt too: hinted few-shot text 14, hint 7, question and line break. The task is left as it is."""
    task = Questions(["1" * n for n in (5, 79, 80, 90)], ["2" * n for n in (4, 79, 99)])
    before = frozen(task)
    lengths, out = measure_prompts(task, tokenizer, max_new=10, limit=111)
    assert out == {"h2", "t2", "t3"}
    assert lengths == Lengths(question=87, examples=14)
    assert lengths.whole == longest(task, tokenizer, True, out) == 101
    assert lengths.question == longest(task, tokenizer, False, out)
    assert frozen(task) == before
    task.train, task.heldout = ([p for p in part if p.id not in out] for part in (task.train, task.heldout))
    assert measure_prompts(task, tokenizer, 10, 111) == (lengths, set())


def frozen(task):
    """All that a task consists of, with the identity of its lists."""
    return dict(vars(task)), id(task.train), id(task.heldout), list(task.train), list(task.heldout)


def test_few_shot_text_that_leaves_no_room_is_refused(tokenizer):
    refused(measure_prompts, Questions(["1"], ["2"]), tokenizer, 10, 24,
            words=("few-shot text has 14 tokens", "24 positions", "show fewer examples"))
    refused(measure_prompts, Questions(["1" * 99] * 5, ["1"]), tokenizer, 10, 60,
            words=("5 of 6 prompts", "60 positions", "t0, t1, t2 and 2 more", "fewer examples", "--max-new-tokens"))
    refused(measure_prompts, Questions(["1"], ["1" * 99]), tokenizer, 10, 60, words=("1 of 2 prompts", "such as h0"))


@pytest.mark.parametrize("name", ["tok_llama3", "tok_sp_llama", "tok_gpt2"])
def test_the_longest_is_found_among_texts_of_any_kind(name):
    """Tokens are no simple matter of bytes: rare signs take several, common words one. None may be overlooked."""
    words, rng = checkpoints.load_tokenizer(GOLDEN / name), random.Random(0)
    kinds = ["the ", "and then ", "7 ", "1934 ", "é", "中", "\n\n", "🙂", " " * 9]
    texts = ["".join(rng.choices(kinds[i % 9 :][:2], k=rng.randrange(1, 40))) for i in range(300)]
    task = Questions(texts[:250], texts[250:])
    lengths, out = measure_prompts(task, words, 10, 10**6)
    assert out == set()
    assert lengths.question == longest(task, words, False)
    assert abs(lengths.whole - longest(task, words, True)) <= JOIN
    limit = lengths.whole - 20
    _, out = measure_prompts(task, words, 10, limit)
    assert 0 < len(out) < 150
    assert longest(task, words, True, out) + 10 <= limit
    assert all(max(len(prompts.encode(task, p, words, hinted)) for hinted in (False, True)) + 10 > limit
               for p in task.train if p.id in out)


def test_each_few_shot_text_counts_for_its_own_problems(tokenizer):
    class Two(Questions):
        def few_shot(self, problem, hinted=False):
            return "+" * (60 if len(problem.question) > 9 else 3)

    task = Two(["1" * n for n in (9, 10, 24, 25)], ["2"])
    lengths, out = measure_prompts(task, tokenizer, max_new=10, limit=60 + 7 + 24 + 1 + 10)
    assert out == {"t3"}
    assert lengths == Lengths(question=7 + 24 + 1, examples=60)


def test_few_prompts_are_encoded(tokenizer):
    """A training set of ten thousands is looked through in no time."""
    class Counted:
        chat, unk_id, calls = None, 0, 0

        def encode(self, text, special=True):
            Counted.calls += 1
            return tokenizer.encode(text, special)

    task = load_task("arithmetic", digits="4-5")
    lengths, _ = measure_prompts(task, Counted(), 68, 512)
    assert lengths == Lengths(24, 0)
    assert Counted.calls < 100


def test_a_conversation_counts_with_its_template(tokenizer):
    class Long:
        """A template that says much itself."""

        def render(self, turns):
            return "n" * 40 + "".join(f"{'h' if role == 'user' else 't'}{said}\n" for role, said in turns) + "t"

    spoken = copy.copy(tokenizer)
    spoken.chat = Long()
    task = Questions(["1" * n for n in (5, 30, 31)], ["2"])
    lengths, out = measure_prompts(task, spoken, 10, 40 + 16 + 1 + 7 + 30 + 2 + 10)
    assert out == {"t2"}
    assert lengths == Lengths(question=longest(task, spoken, False, out), examples=16)
    assert lengths.whole == longest(task, spoken, True, out)


# the plan


def plan_of(task, generates=True, ranks=ONE, **settings):
    """The plan of a run of the shipped model on a task that is here already."""
    return make_plan(StarConfig(**settings), {"digits": "1"}, lambda _: task, generates, ranks=ranks)


def test_a_plan_leaves_the_callers_task_as_it_is():
    """Two runs of one task object, of which one has less room, must not see each other's problems go."""
    task = Questions(["1" * n for n in (5, 30, 400)], ["2", "2" * 400])
    task.notes = ("said before",)
    before = frozen(task)
    plan = plan_of(task, max_new_tokens=150, problems=3)
    assert frozen(task) == before
    assert plan.task is not task
    assert not any(value is task for value in vars(plan).values())
    assert [p.id for p in plan.task.train] == ["t0", "t1"]
    assert [p.id for p in plan.task.heldout] == ["h0"]
    assert plan.task.question(task.train[0]) == task.question(task.train[0])
    assert plan.notes[0] == "said before"
    assert "2 problems are left out" in plan.notes[1]
    assert "h1, t2" in plan.notes[1]
    assert plan.work == Work.of(plan.config, 2, 1)
    assert task.notes == ("said before",)
    assert [p.id for p in plan_of(task, max_new_tokens=20).task.train] == ["t0", "t1", "t2"]


def test_what_a_plan_says(tokenizer):
    task = Questions(["1" * n for n in (5, 30)], ["2"])
    plan = plan_of(task, slots=3, max_new_tokens=17)
    assert (plan.max_new, plan_of(task).max_new) == (17, task.max_new_tokens)
    assert plan.lengths == measure_prompts(task, tokenizer, 17, 512)[0]
    assert plan.max_len == plan.lengths.question + 17 + JOIN
    assert plan.memory == memory(plan.model, plan.config, plan.lengths, 17, max(plan.work.sampled), CPU)
    assert not any(lora_modules(plan.model))
    assert {t.device.type for _, t in plan.model.tensors()} == {"meta"}, "nothing is loaded yet"
    assert plan_of(task, generates=False, iterations=1).work.sampled == [1, 1]
    bare = Questions(["1"], ["2"])
    bare.shots = ()
    assert (plan_of(bare).max_len, plan_of(bare).notes) == (plan_of(bare).lengths.question + plan_of(bare).max_new, [])


def test_what_suits_no_task_or_model_is_refused(monkeypatch):
    task, bare = Questions(["1"] * 5, ["2"]), Questions(["1"] * 5, ["2"])
    bare.shots = ()
    refused(lambda: plan_of(bare, few_shot_sample="hint"), words=("--few-shot-sample hint", "no examples", "leave it"))
    refused(lambda: plan_of(bare, few_shot_train=True), words=("--few-shot-train", "no examples"))
    plan_of(task, few_shot_sample="hint", few_shot_train=True)
    refused(lambda: plan_of(task, validation=5), words=("--validation is 5", "only 5 training problems"))
    long = Questions(["1"] * 4 + ["1" * 600], ["2"])
    refused(lambda: plan_of(long, validation=4), words=("--validation is 4", "only 4", "fit into the context"))
    refused(lambda: make_plan(StarConfig(), {"digits": "0"}), words=("--digits is '0'",))
    task.turns = lambda problem, hinted=False: []
    monkeypatch.setattr(star.run.models, "load_chat", lambda folder: Plain())
    refused(lambda: plan_of(task, chat=True), words=("--chat", "no form as a conversation"))


class Plain:
    """A template without a word of its own."""

    def render(self, turns):
        return "".join(said for _, said in turns)


def test_a_run_without_room_is_refused_before_weights_are_read(monkeypatch):
    plan = plan_of(Questions(["1"] * 5, ["2"]), slots=2)
    monkeypatch.setattr(checkpoints, "fill", lambda *args: pytest.fail("weights were read"))
    monkeypatch.setattr(star.run.plan, "free_memory", lambda device: plan.memory.weights + 1)
    refused(build, plan, words=("the run needs", "cpu has", "--rank"))
    monkeypatch.setattr(star.run.models, "free_memory", lambda device: plan.memory.weights - 1)
    refused(load_base, plan.model, plan.device, words=("the weights need 2.1 MiB in float32", "--dtype bfloat16"))


class Heard(Ranks):
    """Ranks that say what they are made to say."""

    def __init__(self, *said):
        super().__init__(0, len(said))
        self.said, self.asked = said, []

    def gather(self, value):
        self.asked.append(value)
        return list(self.said)


def test_ranks_share_the_weights_where_one_has_no_room_or_they_are_told_to(monkeypatch):
    need = Memory(weights=100, adapters=10, copy=40, sampling=30, training=20, slots=1)  # 140 without a copy

    def kind(free, ranks, device=CPU, **settings):
        monkeypatch.setattr(star.run.plan, "free_memory", lambda _: free)
        return type(shared(StarConfig(**settings), need, device, ranks))

    for free, short in ((139, True), (140, False), (None, False)):
        ranks = Heard(False, False)
        assert kind(free, ranks) is Heard
        assert ranks.asked == [short]
        assert kind(free, Heard(False, True)) is Turns  # another lacks it
        assert kind(free, Heard(False, False), shard=True) is Turns
        assert kind(free, ONE) is Ranks
    for settings in ({"shard": False}, {"merge": True}):
        ranks = Heard(False, False)
        assert kind(1, ranks, **settings) is Heard
        assert ranks.asked == [False]
    refused(lambda: kind(139, ONE, shard=True), words=("--shard", "torchrun", "--no-shard"))
    apple = torch.device("mps")
    refused(lambda: kind(139, Heard(False, False), apple, shard=True), words=("--shard", "mps", "--no-shard"))
    assert kind(139, Heard(False, False), apple) is Heard
    monkeypatch.undo()
    plan = plan_of(Questions(["1"] * 5, ["2"]), slots=2, shard=True, ranks=Heard(False, False))
    alone = plan_of(Questions(["1"] * 5, ["2"]), slots=2)
    assert isinstance(plan.ranks, Turns)
    assert any("shared out over 2 ranks" in note for note in plan.notes)
    assert plan.memory.copy == 0 < alone.memory.copy
    assert plan.memory.adapters == alone.memory.adapters


def test_what_is_built_from_a_plan():
    plan = plan_of(Questions(["1"] * 5, ["2"]), slots=2, rank=3, merge=False)
    sampler = build(plan)
    assert (sampler.slots, sampler.max_len, sampler.merge) == (2, plan.max_len, False)
    assert sampler.tokenizer is plan.tokenizer
    assert 4 * sum(p.nbytes for p in trainable(sampler.model).values()) == plan.memory.adapters
    assert sum(t.nbytes for _, t in sampler.model.tensors()) == plan.memory.weights
