"""Algorithm 1 with a scripted model: what is kept, what is retried, what is trained on, and what never is."""

import random

import pytest
import torch
from conftest import SHIPPED, refused

import checkpoints
from star import loop, prompts
from star.config import StarConfig
from star.draws import seed_of
from star.loop import State, star
from star.lora import add_lora, trainable
from star.problem import Chunk, Completion, Finished, Phase, Problem, Shot, Step, Tick
from star.rollout import Rollout
from star.sampler import Sampler
from star.tasks import Task, load_task


class Riddles(Task):
    """Any answer is written =answer; the hint stands in front. Problems are numbered."""

    hint_mark, between = "hint", ""

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
        self.released = 0

    def release(self):
        self.released += 1

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
    assert all(g.seed == seed_of(0, *g.key[:4]) for g in generations)
    phases = [(e.name, e.total) for e in events if isinstance(e, Phase)]
    assert phases == [("evaluate", 4), ("generate", 8), ("rationalize", 6), ("train", 1), ("evaluate", 4)]
    assert sum(isinstance(e, Tick | Step) for e in events) == sum(total for _, total in phases)


def test_hints_can_be_off(setup):
    sampler, *rest = setup(
        lambda text: ("=" + answer(text), "stop") if int(answer(text)) % 4 else ("=1", "stop"), rationalize=False
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


def test_nothing_solved_stops_and_says_what_to_try(setup):
    events = star(*setup(lambda text: ("=1", "stop")))
    with pytest.raises(ValueError, match=r"none of 8 problems was solved, with 8 hinted .* try easier problems"):
        list(events)


def test_only_missing_generations_are_made(setup):
    script = lambda text: ("=" + answer(text) if "hint" in text else "=1", "stop")  # noqa: E731
    first = list(star(*setup(script)))
    every = [g for e in first if isinstance(e, Chunk) for g in e.generations if g.iteration == 1]
    for keep in (0, 1, 5, len(every)):
        given = random.Random(keep).sample(every, keep)
        sampler, *rest = setup(script)
        events = list(star(sampler, *rest, state=State(0), given=given))
        assert len(sampler.asked) == len(every) - keep
        assert finished(events) == finished(first)[1:]
        again = [g for e in events if isinstance(e, Chunk) for g in e.generations]
        assert {g.key for g in again} == {g.key for g in every} - {g.key for g in given}


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


def test_seeds_depend_on_every_part():
    key = (0, 1, "generate", "7", 0)
    others = [(1, *key[1:]), (0, 2, *key[2:]), (0, 1, "rationalize", *key[3:]), (*key[:3], "8", 0), (*key[:4], 1)]
    keys = [key, *others, (0, 11, *key[2:])]  # fmt: skip
    assert len({seed_of(*k) for k in keys}) == len(keys)
    assert all(0 <= seed_of(*k) < 2**63 for k in keys)


def test_temperature_changes_with_the_seed(tokenizer):
    """Two runs of one seed are equal, event by event; another seed draws other rationales."""

    task = load_task("arithmetic", digits="2")
    task.heldout = task.heldout[:30]

    def run(seed):
        model = add_lora(checkpoints.load_model(SHIPPED), rank=2)
        config = StarConfig(problems=30, iterations=1, first_steps=2, temperature=1.0, seed=seed, max_new_tokens=40)
        events = star(Sampler(model, 16, 256, tokenizer), tokenizer, task, config, State(0))
        return [e for e in events if not isinstance(e, Phase | Tick | Step)]

    torch.manual_seed(1)
    first = run(1)
    torch.manual_seed(2)  # the global state has no say
    assert first == run(1)
    assert first != run(2)


def test_what_parts_examples_is_not_learned_as_part_of_an_answer(tokenizer):
    """The blanks in front of a stop string go; those of a rationale that ended by itself are its own."""
    task, (eos, *_) = Riddles(), tokenizer.eos_ids
    said = tokenizer.encode("1+1\n=2", special=False)
    (newline,) = tokenizer.encode("\n", special=False)
    assert prompts.example(task, task.train[1], tokenizer, [*said, newline]).tokens[-2:] == (newline, eos)
    task.stop = ("\nQ:",)
    for cut in ([], [newline], [newline, newline]):
        assert prompts.example(task, task.train[1], tokenizer, [*said, *cut]).tokens[-len(said) - 1 :] == (*said, eos)
    whole = prompts.example(task, task.train[1], tokenizer, [*said, newline, eos])
    assert whole.tokens[-len(said) - 2 :] == (*said, newline, eos)
    assert prompts.example(task, task.train[1], tokenizer, [newline]).tokens[-2:] == (newline, eos)  # the prompt's own


def test_shared_prefix_and_examples(tokenizer):
    assert prompts.split_prefix([[1, 2, 3], [1, 2, 4, 5]]) == ([1, 2], [[3], [4, 5]])
    assert prompts.split_prefix([[1, 2], [1, 2, 3]]) == ([1], [[2], [2, 3]])
    assert prompts.split_prefix([[5]]) == ([], [[5]])
    assert prompts.split_prefix([]) == ([], [])
    assert prompts.split_prefix([[7, 1], [7, 3], [7, 2]]) == ([7], [[1], [3], [2]])
    task, problem = Riddles(), Problem("1", "1+1", "2")
    rationale = tokenizer.encode("=2")
    for ids in (rationale, [*rationale, 1]):  # an end is added only where the model wrote none
        e = prompts.example(task, problem, tokenizer, ids)
        assert e.tokens == (*tokenizer.encode("1+1\n=2"), 1)
        assert e.n_prompt == 4
    with pytest.raises(ValueError, match="no token for 'x' in the prompt of problem 'p'"):
        prompts.encode(task, Problem("p", "1x1", "1"), tokenizer)


def with_example():
    """Riddles behind one worked example."""
    task = Riddles()
    task.shots = [Shot(Problem("example", "1+1", "2"), "=2\n")]
    assert (task.prefix, task.hint_prefix) == ("1+1\n=2\n", "hint 2\n1+1\n=2\n")
    return task


def test_few_shot_text_is_sampled_with_and_shared(setup, monkeypatch, tokenizer):
    task = with_example()
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
    task = with_example()
    script = lambda text: ("=" + answer(text) if "hint" in text else "=1", "stop")  # noqa: E731
    examples = trained_on(monkeypatch)
    sampler, *rest = setup(script, task, few_shot_sample=shown, few_shot_train=True, iterations=2)
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
                           temperature=1.0, hint_samples=2, dedup=False, problems=8)  # fmt: skip
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


@pytest.mark.parametrize(("dedup", "at_most", "most"), [(False, None, 3), (True, None, 2), (True, 1, 1), (False, 2, 2)])
def test_repeats_and_the_most_of_a_problem(setup, monkeypatch, dedup, at_most, most):
    examples = trained_on(monkeypatch)
    sampler, *rest = setup(varied(lambda text: True), samples=3, temperature=1.0, dedup=dedup, max_per_problem=at_most)
    list(star(sampler, *rest))
    prompts_seen = [e.tokens[: e.n_prompt] for e in examples[0]]
    assert max(prompts_seen.count(p) for p in prompts_seen) == most
    if dedup:
        assert len(set(examples[0])) == len(examples[0])


def test_all_rounds_are_trained_on_and_come_back_from_disk(setup, monkeypatch):
    """Other problems each iteration: the second trains on both iterations' rationales, resumed or not."""
    examples = trained_on(monkeypatch)
    options = {"keep": "all", "iterations": 2, "problems": 4}
    sampler, *rest = setup(varied(lambda text: True), Riddles(20), **options)
    events = list(star(sampler, *rest))
    assert len(examples[0]) == 4
    assert len(examples[1]) == 8
    assert [m["examples"] for m in finished(events)[1:]] == [4, 8]
    given = [g for e in events if isinstance(e, Chunk) for g in e.generations if g.iteration == 1]
    sampler, *rest = setup(lambda text: ("=" + answer(text), "stop"), Riddles(20), **options)
    list(star(sampler, *rest, state=State(1), given=given))
    assert examples[2][:4] == examples[1][:4]
    assert len(examples[2]) == 8


@pytest.mark.parametrize(("wanted", "asked"), [(1, 3), (3, 3), (4, 6), (7, 8), (8, 8)])
def test_sampling_stops_when_enough_is_right(setup, wanted, asked):
    """In parts of as many problems as there are slots, each with its hint pass, so that the mix stays."""
    sampler, *rest = setup(lambda text: ("=" + answer(text) if "hint" in text else "=1", "stop"), wanted=wanted)
    (_, first) = finished(star(sampler, *rest))
    assert first["problems"] == asked
    assert first["rationalized"] == asked


def test_epochs_say_how_long_to_train(setup):
    sampler, *rest = setup(lambda text: ("=" + answer(text), "stop"), epochs=2.5, first_steps=28)
    (_, first) = finished(star(sampler, *rest))
    assert first["steps"] == 5  # 8 examples, 4 a step


def test_the_sampler_lets_go_of_its_memory_before_each_training(setup, monkeypatch, tokenizer):
    """The cache and what a training step keeps never lie in memory together."""
    seen, original = [], loop.finetune_steps

    def spy(*args, **options):
        seen.append(sampler.released)
        return original(*args, **options)

    monkeypatch.setattr(loop, "finetune_steps", spy)
    sampler, *rest = setup(lambda text: ("=" + answer(text), "stop"), iterations=3)
    list(star(sampler, *rest))
    assert seen == [1, 2, 3]

    def look(*args, **options):
        seen.append((real._slots, real._prefix))
        return original(*args, **options)

    monkeypatch.setattr(loop, "finetune_steps", look)
    task = load_task("arithmetic", digits="2")
    task.train, task.heldout = task.train[:8], task.heldout[:2]
    real = Sampler(add_lora(checkpoints.load_model(SHIPPED), rank=2), 4, 64, tokenizer)
    list(star(real, tokenizer, task, StarConfig(iterations=1, first_steps=1)))
    assert seen[3:] == [(None, None)]
    assert real._slots is not None, "it was in use before and after"


@pytest.mark.parametrize("method", ["extract", "right", "leaks", "check_steps"])
def test_a_task_that_fails_in_the_middle_of_a_run_is_one_line(setup, method):
    """Its trial at load saw no such text. The line names file, method and text, not a place in this program."""
    def fails(*args):
        if "7" in args[-1]:
            return [][7]
        return getattr(Riddles, method)(task, *args)

    def script(text):  # hinted texts are rationales of their own, so that leaks is asked too
        return ("7" if int(answer(text)) > 4 else "") + "=" + (answer(text) if "hint" in text else "1"), "stop"

    task = type("Failing", (Riddles,), {})()
    setattr(task, method, fails)
    events, seen = star(*setup(script, task)), []
    said = refused(lambda: seen.extend(events), words=("test_loop.py", f"{method}(", "7=", "raises IndexError"))
    assert "\n" not in said
    assert any(isinstance(e, Phase) for e in seen), "it had begun"


def test_a_rollout_alone(setup):
    """Judged generations in the order of the problems, without a loop around it; what is given is not made again."""
    sampler, tokenizer, task, config = setup(varied(lambda text: int(answer(text)) % 4 == 0), samples=2,
                                             temperature=1.0)
    problems = task.train[5:2:-1]
    made = Rollout(sampler, tokenizer, task, config).complete(3, "generate", problems)
    assert [g.key for g in made] == [(3, "generate", p.id, k, "student") for p in problems for k in range(2)]
    assert [g.verdict for g in made] == ["wrong", "wrong", "right", "right", "wrong", "wrong"]
    assert [g.answer for g in made] == ["1", "1", "8", "8", "1", "1"]
    assert all(g.logprob == -0.5 * len(g.tokens) and g.steps_right is None for g in made)
    sampler.asked.clear()
    again = Rollout(sampler, tokenizer, task, config, made[:4]).complete(3, "generate", problems)
    assert again[:4] == made[:4]
    assert len(sampler.asked) == 2
    quoting = Completion(tuple(tokenizer.encode("hint=8")), (-1.0,) * 6, "stop")
    hinted = Rollout(sampler, tokenizer, task, config).verify((1, "rationalize", "4", 0, "student"), problems[1],
                                                              quoting, 5)
    assert (hinted.verdict, hinted.text, hinted.seed, hinted.kept) == ("leak", "hint=8", 5, False)
