"""Algorithm 1 with a scripted model: what is kept, what is retried, what is trained on, and what never is."""

import random

import pytest
import torch
from conftest import SHIPPED

import checkpoints
from star import loop, prompts
from star.config import StarConfig
from star.evaluate import accuracy, verdict
from star.loop import Chunk, Finished, Phase, State, Tick, draw, fold, star
from star.lora import add_lora, trainable
from star.problem import Completion, Generation, Problem
from star.sampler import Sampler
from star.tasks import Task, load_task


class Riddles(Task):
    """Any answer is written =answer; the hint stands in front. Problems are numbered."""

    hint_mark = "hint"

    def __init__(self, n=12):
        problems = [Problem(str(i), f"{i}+{i}", str(2 * i), "even" if i % 2 == 0 else "odd") for i in range(n)]
        self.train, self.heldout = problems[: n - 4], problems[n - 4 :]

    def question(self, problem):
        return problem.question + "\n"

    def hinted(self, problem):
        return f"hint {problem.answer}\n{problem.question}\n"

    def extract(self, text):
        return text.rpartition("=")[2] if "=" in text else None


class Scripted:
    """A sampler whose completions a function of the prompt's text decides: (text, finish)."""

    def __init__(self, model, tokenizer, script):
        self.model, self.tokenizer, self.script, self.asked, self.slots = model, tokenizer, script, [], 3

    def stream(self, prompts, prefix=(), stop_ids=(), seeds=None, **options):
        for i, prompt in reversed(list(enumerate(prompts))):  # rows end in any order
            text = self.tokenizer.decode([*prefix, *prompt])
            self.asked.append(text)
            said, finish = self.script(text)
            ids = self.tokenizer.encode(said) + ([stop_ids[0]] if finish == "stop" else [])
            yield i, Completion(tuple(ids), (-0.5,) * len(ids), finish)


def answer(text):
    return str(2 * int(text.rstrip("\n").rpartition("\n")[2].split("+")[0]))


@pytest.fixture
def setup(tokenizer):
    def make(script, task=None, **settings):
        model = add_lora(checkpoints.load_model(SHIPPED), rank=2, targets=("q_proj",))
        config = StarConfig(
            **{"iterations": 1, "first_steps": 1, "problems": 8, "slots": 3, "batch_size": 4} | settings
        )
        return Scripted(model, tokenizer, script), tokenizer, task or Riddles(), config

    return make


def trained_on(monkeypatch):
    """Catch the examples of every call of the trainer, by iteration."""
    seen = []
    original = loop.finetune_steps

    def spy(model, examples, *args, **options):
        seen.append(list(examples))
        return original(model, examples, *args, **options)

    monkeypatch.setattr(loop, "finetune_steps", spy)
    return seen


def finished(events):
    return [e.metrics for e in events if isinstance(e, Finished)]


def test_kept_rationalized_and_dropped(setup, monkeypatch, tokenizer):
    """Problems 0-1 right at once; 2-3 only with the hint; 4 quotes it; 5 has no answer; 6 is wrong; 7 is cut off."""

    def script(text):
        n = int(answer(text)) // 2
        right = "=" + answer(text)
        if "hint" not in text:
            return (right, "stop") if n < 2 or n >= 8 else ("=1", "stop")
        said = {2: right, 3: right, 4: "hint" + right, 5: "0", 6: "=1", 7: right}[n]
        return said, "length" if n == 7 else "stop"

    examples = trained_on(monkeypatch)
    events = list(star(*setup(script)))
    base, first = finished(events)
    assert base["accuracy"] == {"even": 1.0, "odd": 1.0, "mean": 1.0}
    assert base["said"] == {"right": 4, "wrong": 0, "unparsed": 0, "length": 0, "leak": 0}
    assert 0 < base["interval"]["even"][0] < base["interval"]["mean"][0] < 1  # of 2 and of 4 problems
    assert (first["kept"], first["rationalized"], first["examples"]) == (2, 2, 4)
    assert first["dropped"] == {"wrong": 1, "unparsed": 1, "length": 1, "leak": 1}
    texts = {
        tokenizer.decode(list(e.tokens[: e.n_prompt])): tokenizer.decode(list(e.tokens[e.n_prompt :]))
        for e in examples[0]
    }
    assert texts == {f"{n}+{n}\n": f"={2 * n}" for n in range(4)}  # plain questions, whatever was hinted
    assert all(e.tokens[-1] == 1 for e in examples[0])  # and an end
    generations = [g for e in events if isinstance(e, Chunk) for g in e.generations]
    assert len({g.key for g in generations}) == len(generations) == 4 + 8 + 6 + 4
    assert all(g.seed == fold(0, *g.key) for g in generations)
    phases = [(e.name, e.total) for e in events if isinstance(e, Phase)]
    assert phases == [("evaluate", 4), ("generate", 8), ("rationalize", 6), ("train", 1), ("evaluate", 4)]
    assert sum(isinstance(e, Tick) for e in events) == sum(total for _, total in phases)


def test_hints_can_be_off(setup):
    sampler, *rest = setup(
        lambda text: ("=" + answer(text), "stop") if int(answer(text)) % 4 else ("=1", "stop"), hint="off"
    )
    (_, first) = finished(star(sampler, *rest))
    assert not any("hint" in text for text in sampler.asked)
    assert (first["kept"], first["rationalized"], first["dropped"]["wrong"]) == (4, 0, 4)


@pytest.mark.parametrize("seed", range(8))
def test_a_hint_never_enters_an_example(setup, monkeypatch, tokenizer, seed):
    """Whatever a model writes, hinted or not: random texts over the whole alphabet, quoting hints at will."""
    rng = random.Random(seed)

    def script(text):
        pieces = [text, "hint " + answer(text), "\n", "=", answer(text), "=" + answer(text), "hint", "C0", "5"]
        said = "".join(rng.choice(pieces) for _ in range(rng.randrange(6)))
        return said + rng.choice(["", "=" + answer(text)]), rng.choice(["stop", "stop", "length"])

    examples = trained_on(monkeypatch)
    task = Riddles(40)
    events = star(*setup(script, task, problems=36, iterations=2))
    solved = True
    while solved:
        try:
            next(events)
        except StopIteration:
            break
        except ValueError:
            solved = False
    questions = {tuple(tokenizer.encode(task.question(p))) for p in task.train}
    for e in (e for step in examples for e in step):
        assert e.tokens[: e.n_prompt] in questions
    assert examples or not solved


def test_rationalized_text_that_quotes_the_hint_is_a_leak():
    task, problem = Riddles(), Problem("1", "1+1", "2")
    assert verdict(task, problem, "hint 2 =2", "stop", hinted=True) == "leak"
    assert verdict(task, problem, "=2", "stop", hinted=True) == "right"
    assert verdict(task, problem, "=2", "length", hinted=True) == "length"
    assert verdict(task, problem, "2", "stop", hinted=False) == "unparsed"
    assert verdict(task, problem, "=3", "stop", hinted=False) == "wrong"


def test_nothing_solved_stops_and_says_what_to_try(setup):
    events = star(*setup(lambda text: ("=1", "stop")))
    with pytest.raises(ValueError, match=r"none of 8 problems was solved, with 8 hinted .* try easier problems"):
        list(events)


def test_only_missing_generations_are_made(setup):
    script = lambda text: ("=" + answer(text) if "hint" in text else "=1", "stop")  # noqa: E731
    first = list(star(*setup(script)))
    every = [g for e in first if isinstance(e, Chunk) for g in e.generations if g.iteration == 1]
    for keep in (0, 1, 5, len(every)):
        made = random.Random(keep).sample(every, keep)
        sampler, *rest = setup(script)
        events = list(star(sampler, *rest, state=State(0), made=made))
        assert len(sampler.asked) == len(every) - keep
        assert finished(events) == finished(first)[1:]
        again = [g for e in events if isinstance(e, Chunk) for g in e.generations]
        assert {g.key for g in again} == {g.key for g in every} - {g.key for g in made}


@pytest.mark.parametrize("start", ["base", "previous"])
def test_where_an_iteration_starts_from(setup, monkeypatch, start):
    """From the base: adapters are at zero when training begins. Otherwise: they are what the last iteration left."""
    seen, left = [], []
    original = loop.finetune_steps

    def spy(model, *args, **options):
        seen.append(sum(float(p.detach().abs().sum()) for name, p in trainable(model).items() if ".B." in name))
        yield from original(model, *args, **options)
        left.append(sum(float(p.detach().abs().sum()) for name, p in trainable(model).items() if ".B." in name))

    monkeypatch.setattr(loop, "finetune_steps", spy)
    list(star(*setup(lambda text: ("=" + answer(text), "stop"), iterations=3, start=start)))
    assert seen == ([0.0, 0.0, 0.0] if start == "base" else [0.0, *left[:2]])
    assert min(left) > 0


def test_problems_are_drawn_evenly_and_anew():
    train = [Problem(f"a{i}", "", "", "a") for i in range(3)] + [Problem(f"b{i}", "", "", "b") for i in range(50)]
    for n, a in ((4, 2), (10, 3), (53, 3), (99, 3)):
        drawn = draw(train, n, seed=1)
        assert len({p.id for p in drawn}) == len(drawn) == min(n, 53)
        assert sum(p.group == "a" for p in drawn) == a
    assert draw(train, 9, 1) == draw(train, 9, 1) != draw(train, 9, 2)


def test_seeds_depend_on_every_part():
    key = (0, 1, "generate", "7", 0)
    others = [(1, *key[1:]), (0, 2, *key[2:]), (0, 1, "rationalize", *key[3:]), (*key[:3], "8", 0), (*key[:4], 1)]
    keys = [key, *others, (0, 11, *key[2:])]  # fmt: skip
    assert len({fold(*k) for k in keys}) == len(keys)
    assert all(0 <= fold(*k) < 2**63 for k in keys)


def test_temperature_changes_with_the_seed(tokenizer):
    """Two runs of one seed are equal, event by event; another seed draws other rationales."""

    task = load_task("arithmetic", digits="2")
    task.heldout = task.heldout[:30]

    def run(seed):
        model = add_lora(checkpoints.load_model(SHIPPED), rank=2)
        config = StarConfig(problems=30, iterations=1, first_steps=2, temperature=1.0, seed=seed, max_new_tokens=40)
        events = star(Sampler(model, 16, 256, tokenizer), tokenizer, task, config, State(0))
        return [e for e in events if not isinstance(e, Phase | Tick)]

    torch.manual_seed(1)
    first = run(1)
    torch.manual_seed(2)  # the global state has no say
    assert first == run(1)
    assert first != run(2)


def test_shared_prefix_and_examples(tokenizer):
    assert prompts.share([[1, 2, 3], [1, 2, 4, 5]]) == ([1, 2], [[3], [4, 5]])
    assert prompts.share([[1, 2], [1, 2, 3]]) == ([1], [[2], [2, 3]])
    assert prompts.share([[5]]) == ([], [[5]])
    assert prompts.share([]) == ([], [])
    assert prompts.share([[7, 1], [7, 3], [7, 2]]) == ([7], [[1], [3], [2]])
    task, problem = Riddles(), Problem("1", "1+1", "2")
    rationale = tokenizer.encode("=2")
    for ids in (rationale, [*rationale, 1]):  # an end is added only where the model wrote none
        e = prompts.example(task, problem, tokenizer, ids)
        assert e.tokens == (*tokenizer.encode("1+1\n=2"), 1)
        assert e.n_prompt == 4
    with pytest.raises(ValueError, match="no token for 'x' in the prompt of problem 'p'"):
        prompts.encode(task, Problem("p", "1x1", "1"), tokenizer)


def test_few_shot_text_is_sampled_with_and_shared(setup, monkeypatch, tokenizer):
    task = Riddles()
    task.prefix, task.hint_prefix = "1+1\n=2\n", "hint 2\n1+1\n=2\n"
    script = lambda text: ("=" + answer(text) if text.startswith("hint") else "=1", "stop")  # noqa: E731
    examples = trained_on(monkeypatch)
    sampler, *rest = setup(script, task)
    list(star(sampler, *rest))
    assert all(text.startswith((task.prefix, task.hint_prefix)) for text in sampler.asked)
    assert any(text.startswith(task.hint_prefix + "hint") for text in sampler.asked)
    assert len(examples[0]) == 8
    assert all(e.tokens[e.n_prompt] == tokenizer.encode("=")[0] for e in examples[0])


@pytest.mark.parametrize(("shown", "behind_hints"), [("base", False), ("hint", True)])
def test_few_shot_text_can_be_trained_on_and_dropped(setup, monkeypatch, tokenizer, shown, behind_hints):
    """--few-shot-sample base: only M_0 sees the text, so M_1's evaluation is the first without; hint: all hints do."""
    task = Riddles()
    task.prefix, task.hint_prefix = "1+1\n=2\n", "hint 2\n1+1\n=2\n"
    script = lambda text: ("=" + answer(text) if "hint" in text else "=1", "stop")  # noqa: E731
    examples = trained_on(monkeypatch)
    sampler, *rest = setup(script, task, few_shot_sample=shown, few_shot_train="on", iterations=2)
    seen = {}
    for event in star(sampler, *rest):
        if isinstance(event, Phase):
            sampler.asked.clear()
            seen[event.iteration, event.name] = None
        elif isinstance(event, Chunk):
            key = event.generations[0].iteration, event.generations[0].phase
            seen[key] = {text.startswith((task.prefix, task.hint_prefix)) for text in sampler.asked}
    assert seen == {
        (0, "evaluate"): {True}, (1, "generate"): {True}, (1, "rationalize"): {True}, (1, "train"): None,
        (1, "evaluate"): {False}, (2, "generate"): {False}, (2, "rationalize"): {behind_hints}, (2, "train"): None,
        (2, "evaluate"): {False}}  # fmt: skip
    prompt = tokenizer.encode(task.prefix)
    assert all(e.tokens[: len(prompt)] == tuple(prompt) and e.n_prompt > len(prompt) for e in examples[0])


def varied(right):
    """A script whose k-th call writes a text of its own; `right(text)` says whether it arrives at the answer."""
    calls = []

    def script(text):
        calls.append(text)
        said = "=" + answer(text) if right(text) else "=1"
        return str(len(calls) // 3) + said, "stop"  # texts repeat: three calls in a row write the same number

    return script


def test_several_samples_a_problem(setup, monkeypatch):
    sampler, *rest = setup(varied(lambda text: "hint" not in text and int(answer(text)) % 4 == 0), samples=3,
                           temperature=1.0, hint_samples=2, dedup="off", problems=8)  # fmt: skip
    examples = trained_on(monkeypatch)
    events = list(star(sampler, *rest))
    (_, first) = finished(events)
    assert [(e.name, e.total) for e in events if isinstance(e, Phase)] == [
        ("evaluate", 4), ("generate", 24), ("rationalize", 8), ("train", 1), ("evaluate", 4)]  # fmt: skip
    assert (first["problems"], first["kept"], first["rationalized"]) == (8, 12, 0)
    assert first["dropped"]["wrong"] == 4
    assert len(examples[0]) == 12
    generations = [g for e in events if isinstance(e, Chunk) for g in e.generations]
    assert len({g.key for g in generations}) == len({g.seed for g in generations}) == len(generations)


@pytest.mark.parametrize(("dedup", "cap", "most"), [("off", None, 3), ("on", None, 2), ("on", 1, 1), ("off", 2, 2)])
def test_repeats_and_cap(setup, monkeypatch, dedup, cap, most):
    examples = trained_on(monkeypatch)
    sampler, *rest = setup(varied(lambda text: True), samples=3, temperature=1.0, dedup=dedup, cap=cap)
    list(star(sampler, *rest))
    prompts_seen = [e.tokens[: e.n_prompt] for e in examples[0]]
    assert max(prompts_seen.count(p) for p in prompts_seen) == most
    if dedup == "on":
        assert len(set(examples[0])) == len(examples[0])


def test_all_rounds_are_trained_on_and_come_back_from_disk(setup, monkeypatch):
    """Other problems each iteration: the second trains on both iterations' rationales, resumed or not."""
    examples = trained_on(monkeypatch)
    options = {"rounds": "all", "iterations": 2, "problems": 4}
    sampler, *rest = setup(varied(lambda text: True), Riddles(20), **options)
    events = list(star(sampler, *rest))
    assert len(examples[0]) == 4
    assert len(examples[1]) == 8
    assert [m["examples"] for m in finished(events)[1:]] == [4, 8]
    made = [g for e in events if isinstance(e, Chunk) for g in e.generations if g.iteration == 1]
    sampler, *rest = setup(lambda text: ("=" + answer(text), "stop"), Riddles(20), **options)
    list(star(sampler, *rest, state=State(1), made=made))
    assert examples[2][:4] == examples[1][:4]
    assert len(examples[2]) == 8


@pytest.mark.parametrize(("wanted", "asked"), [(1, 3), (3, 3), (4, 6), (7, 8), (8, 8)])
def test_sampling_stops_when_enough_is_right(setup, wanted, asked):
    """In parts of as many problems as there are slots, each with its hint pass, so that the mix stays."""
    sampler, *rest = setup(lambda text: ("=" + answer(text) if "hint" in text else "=1", "stop"), wanted=wanted)
    (_, first) = finished(star(sampler, *rest))
    assert first["problems"] == asked
    assert first["rationalized"] == asked


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_failures_is_rationalized(setup, share):
    script = lambda text: ("=" + answer(text) if "hint" in text or answer(text) == "2" else "=1", "stop")  # noqa: E731
    counts = []
    for seed in range(6):
        sampler, *rest = setup(script, Riddles(44), problems=40, hint_share=share, seed=seed)
        (_, first) = finished(star(sampler, *rest))
        assert first["rationalized"] + first["dropped"]["wrong"] == 39
        counts.append(first["rationalized"])
    assert {0.0: max(counts) == 0, 0.5: 12 <= min(counts) <= max(counts) <= 28, 1.0: min(counts) == 39}[share]
    assert len(set(counts)) > 1 or share != 0.5


def test_epochs_say_how_long_to_train(setup):
    sampler, *rest = setup(lambda text: ("=" + answer(text), "stop"), epochs=2.5, first_steps=28)
    (_, first) = finished(star(sampler, *rest))
    assert first["steps"] == 5  # 8 examples, 4 a step


def test_accuracy_weighs_groups_alike():
    problems = [
        Problem("1", "", "", "a"),
        Problem("2", "", "", "b"),
        Problem("3", "", "", "b"),
        Problem("4", "", "", "b"),
    ]
    verdicts = {"1": "right", "2": "wrong", "3": "wrong", "4": "right"}
    made = [Generation(1, "evaluate", p, 0, 0, (), "", "stop", 0.0, None, v, None) for p, v in verdicts.items()]
    assert accuracy(problems, made) == {"a": 1.0, "b": 1 / 3, "mean": pytest.approx(2 / 3)}
    assert list(accuracy([Problem("1", "", "")], made)) == ["all", "mean"]
