"""Several models and a judge in the loop: what is carried over, what is scored, what is chosen, what is loaded when."""

import json
from dataclasses import replace

import pytest
from conftest import SHIPPED, refused
from test_loop import Riddles, Scripted, answer, finished, trained_on
from test_loop import setup as setup  # the fixture

import checkpoints
from star.draws import seed_of
from star.loop import State, star
from star.pool import Model, Pool, agreement, by_source, carried, clean, fitted, judge_pair, ties
from star.problem import Candidate, Chunk, Generation, Phase, Problem, Scored, Shot
from star.reward import Judge
from star.rollout import Rollout, result
from star.run.folder import Run, generation, read_lines
from star.select import choose_problems


class Numbers:
    """A judge that has an opinion of texts."""

    name, labels, weights, format = "numbers", ["length", "oddity"], (1.0, -2.0), "plain"
    total = Judge.total

    def __init__(self, opinion):
        self.opinion, self.asked = opinion, []

    def rate(self, pairs):
        self.asked += pairs
        return [self.opinion(question, text) for question, text in pairs]


def right(text):
    return f"={answer(text)}", "stop"


def wrong(text):
    return "=1", "stop"


def other(name, script, tokenizer, opened, left_out=()):
    def open_():
        opened.append(name)
        return Scripted(checkpoints.load_model(SHIPPED), tokenizer, script), tokenizer

    return Model(name, open_, frozenset(left_out))


def made(problem, text, verdict="right", source="student", reward=None, scores=None, sample=0, phase="generate"):
    return Generation(1, phase, problem, sample, 0, (1, 2), text, "stop", -0.5, None, verdict, None, source, scores,
                      reward)


def test_all_sources_are_verified_alike_and_only_the_student_gets_hints(setup, monkeypatch, tokenizer):
    """0 is solved by the student, 1 by another model, 2 by the file, 3 with the hint; the rest by nobody."""
    opened, seen = [], trained_on(monkeypatch)

    def student(text):
        n = int(text.rstrip("\n").rpartition("\n")[2].split("+")[0])
        return right(text) if n == 0 or n >= 8 or ("hint" in text and n == 3) else wrong(text)

    def guest(text):
        return right(text) if text.startswith("1+") else ("1", "stop") if text.startswith("4+") else wrong(text)

    file = [Candidate("2", "claude", "<|im_start|>assistant\n2+2\n=4<|im_end|>\n<|im_start|>user\n=5"),
            Candidate("2", "claude", "=5"), Candidate("5", "claude", "five and five: ten")]
    pool = Pool([other("mistral", guest, tokenizer, opened, left_out=["7"])], file)
    events = list(star(*setup(student), pool=pool))
    base, first = finished(events)
    assert "sources" not in base
    assert first["sources"] == {
        "student": {"tried": 8, "right": 1, "kept": 2, "chosen": 2, "chosen_hinted": 1, "chosen_wrong": 0,
                    "reward": None},
        "mistral": {"tried": 7, "right": 1, "kept": 1, "chosen": 1, "chosen_hinted": 0, "chosen_wrong": 0,
                    "reward": None},
        "claude": {"tried": 3, "right": 1, "kept": 1, "chosen": 1, "chosen_hinted": 0, "chosen_wrong": 0,
                   "reward": None}}
    assert "judge" not in first
    assert (first["kept"], first["rationalized"], first["solved"], first["tries"]) == (3, 1, 4, 8)
    texts = {tokenizer.decode(list(e.tokens)) for e in seen[0]}
    assert texts == {"0+0\n=0", "1+1\n=2", "2+2\n2+2\n=4", "3+3\n=6"}  # of the conversation only the answer
    assert all(e.tokens[-1] == tokenizer.eos_ids[0] for e in seen[0])
    generations = [g for e in events if isinstance(e, Chunk) for g in e.generations]
    assert len({g.key for g in generations}) == len(generations)
    by_name = {(g.source, g.problem, g.sample, g.phase): g for g in generations if g.iteration == 1}
    assert by_name["mistral", "4", 0, "generate"].verdict == "unparsed"
    assert by_name["claude", "2", 1, "generate"].verdict == "wrong"
    strange = by_name["claude", "5", 0, "generate"]  # letters that the student has no token for
    assert (strange.verdict, strange.tokens, strange.logprob) == ("unparsed", (), None)
    assert [e.source for e in events if isinstance(e, Phase) and e.name in ("generate", "rationalize")] == [
        "student", "mistral", "files", "student"]
    assert opened == ["mistral"]
    assert "7" not in {g.problem for g in generations if g.source == "mistral"}


def test_the_best_right_one_is_trained_on(setup, monkeypatch, tokenizer):
    """Three right texts a problem; the judge likes long ones, but not those with a 9."""
    judge = Numbers(lambda question, text: (float(len(text)), float("9" in text)))
    seen = trained_on(monkeypatch)
    file = [Candidate("1", "a", "1+1\n=2"), Candidate("1", "b", "9+9+9\n=2"), Candidate("2", "a", "2222222\n=5"),
            Candidate("3", "a", "33\n=6"), Candidate("3", "b", "44\n=6")]  # the last two tie
    events = list(star(*setup(right, select="correct+reward", reward="a"), pool=Pool([], file, lambda: judge)))
    first = finished(events)[1]
    best = {1: "1+1\n=2", 3: "33\n=6"}
    assert {tokenizer.decode(list(e.tokens)) for e in seen[0]} == {
        f"{p}+{p}\n" + best.get(p, f"={2 * p}") for p in range(8)}
    assert first["examples"] == 8
    (scored,) = [e for e in events if isinstance(e, Scored)]
    assert {g.reward for g in scored.generations if g.text == "9+9+9\n=2"} <= {len("9+9+9\n=2") - 2.0}
    assert all(g.scores.keys() == {"length", "oddity"} for g in scored.generations)
    assert len(judge.asked) == len(set(judge.asked))  # equal texts of a problem once
    assert first["judge"]["problems"] == 1  # with right and wrong answers: the 2's
    assert first["judge"]["by_attribute"].keys() == {"length", "oddity"}
    assert first["judge"]["auc"] == [0.0, 0.0, pytest.approx(0.79, abs=0.01)]  # the wrong one is longer


@pytest.mark.parametrize(("settings", "kept"), [
    ({"select": "correct"}, {"=2", "1\n=2"}),
    ({"select": "correct+reward", "max_per_problem": 2, "samples": 2, "temperature": 1.0}, {"=2", "1\n=2"}),
    ({"select": "correct+reward"}, {"1\n=2"}),
    ({"select": "correct+reward", "reward_threshold": 1.5, "max_per_problem": 9}, {"=2", "1\n=2"}),
    ({"select": "correct+reward", "reward_threshold": 2.5, "max_per_problem": 9}, {"1\n=2"}),
    ({"select": "reward-blind"}, {"1234567\n=3"}),
    ({"select": "reward-blind", "reward_threshold": 4.5, "max_per_problem": 9}, {"1234567\n=3"}),
    ({"select": "reward-blind", "reward_threshold": 3.5, "max_per_problem": 9}, {"1234567\n=3", "1\n=2"}),
])
def test_selections(setup, monkeypatch, tokenizer, settings, kept):
    """One problem: right in 2 and in 4 characters, wrong in 9, and one that is cut off."""
    seen = trained_on(monkeypatch)
    task = Riddles()
    task.train = task.train[1:2]
    file = [Candidate("1", "a", "1\n=2"), Candidate("1", "a", "1234567\n=3"), Candidate("1", "a", "9" * 999 + "\n=2")]
    judge = Numbers(lambda question, text: (float(len(text)), 0.0))
    config = {"reward": "a", "candidates": "b"} | settings
    list(star(*setup(right, task, **config), pool=Pool([], file, lambda: judge)))
    assert {tokenizer.decode(list(e.tokens[e.n_prompt :])) for e in seen[0]} == kept


def test_what_lets_nothing_through_says_why(setup):
    judge = Numbers(lambda question, text: None)
    refused(list, star(*setup(right, select="correct+reward", reward="a"), pool=Pool(judge=lambda: judge)),
            words=("iteration 1", "8 are right", "--select correct+reward lets none through", "has a reward"))
    judge = Numbers(lambda question, text: (1.0, 0.0))
    refused(list, star(*setup(wrong, select="reward-blind", reward="a", reward_threshold=2.0),
                       pool=Pool(judge=lambda: judge)), words=("0 are right (8 wrong)", "at least 2.0"))
    refused(list, star(*setup(lambda text: ("=1", "stop"), candidates="a"), pool=Pool([], [Candidate("1", "a", "=3")])),
            words=("iteration 1: none of 8 problems was solved",))


def test_a_score_that_is_no_number_names_problem_and_source(setup):
    judge = Numbers(lambda question, text: (float("nan") if question.startswith("2") else 1.0, 0.0))
    refused(list, star(*setup(right), pool=Pool(judge=lambda: judge)),
            words=("the judge numbers gives length nan", "student", "problem 2, sample 0"))


def test_without_samples_the_files_problems_are_drawn(setup, monkeypatch, tokenizer):
    seen = trained_on(monkeypatch)
    sampler, *rest = setup(right, samples=0, candidates="a", problems=2)
    events = list(star(sampler, *rest, pool=Pool([], [Candidate("5", "a", "=10"), Candidate("6", "a", "1")])))
    first = finished(events)[1]
    assert (first["problems"], first["tries"], first["mean_tokens"], first["rationalized"]) == (2, 0, 0.0, 0)
    assert [tokenizer.decode(list(e.tokens)) for e in seen[0]] == ["5+5\n=10"]
    assert len(sampler.asked) == 8  # held out, twice


def test_a_stopped_run_asks_nobody_again(setup, tokenizer, tmp_path):
    """Given are generations of all sources, scored or not: what comes out is the same, and no model is opened twice."""
    file = [Candidate("2", "claude", "2\n=4")]

    def run(given, opened, judged):
        def judge():
            judged.append(1)
            return Numbers(lambda question, text: (float(len(text)), 0.0))

        pool = Pool([other("mistral", right, tokenizer, opened)], file, judge)
        return list(star(*setup(wrong, select="correct+reward", reward="a"), State(0, {}), given, pool))

    opened, judged = [], []
    whole = run([], opened, judged)
    chunks = [g for e in whole if isinstance(e, Chunk) for g in e.generations if g.phase != "evaluate"]
    (scored,) = [e.generations for e in whole if isinstance(e, Scored)]
    after = {g.key: g for g in scored}
    assert (opened, len(judged)) == (["mistral"], 1)
    again = run(chunks, opened, judged)
    assert finished(again) == finished(whole)
    assert (opened, len(judged)) == (["mistral"], 2)  # all had answered; nobody had scored
    again = run([after.get(g.key, g) for g in chunks], opened, judged)
    assert finished(again) == finished(whole)
    assert (opened, len(judged)) == (["mistral"], 2)


def test_scores_take_their_place_in_the_folder(tmp_path, setup):
    """One atomic write: the lines, and the chunks that a resumed run goes by, stay as they were."""
    run = Run(tmp_path, setup(right)[3], {})
    (tmp_path / "samples").mkdir()
    first, second = [made("a", "x"), made("b", "y")], [made("b", "z", source="m")]
    for chunk in (first, second):
        run.record(Chunk(chunk, [Problem(g.problem, "how many?", "4") for g in chunk]), None)
    before = read_lines(run.samples(1))
    run.record(Scored([replace(second[0], scores={"s": 1.5}, reward=1.5)]), None)
    after = read_lines(run.samples(1))
    assert [r["chunk"] for r in after] == [2, 2, 1] == [r["chunk"] for r in before]
    assert after[:2] == before[:2]
    assert {(r["question"], r["right_answer"]) for r in after} == {("how many?", "4")}
    assert [generation(r) for r in after] == [*first, replace(second[0], scores={"s": 1.5}, reward=1.5)]
    assert not list(tmp_path.glob("samples/*.tmp*"))


def test_markup_is_no_part_of_an_answer():
    for text in ("It is 4.", "  It is 4.\n", "<|im_start|>assistant\nIt is 4.<|im_end|>\n<|im_start|>user\nAnd 5?",
                 "<start_of_turn>model\nIt is 4.<end_of_turn>", "[/INST] It is 4.</s>", "<s>It is 4.<|eot_id|>",
                 "<|start_header_id|>assistant<|end_header_id|>\n\nIt is 4.<|end_of_text|>",
                 "It is 4.<|END_OF_TURN_TOKEN|>",
                 "<extra_id_1>Assistant\nIt is 4.\n<extra_id_1>User\n"):
        assert clean(text) == "It is 4.", text
    assert clean("<think>2 and 2</think>\nIt is 4.") == "2 and 2\n\nIt is 4."
    assert clean("<think>8 + 4 = 1</think>2") == "8 + 4 = 1\n2"  # not 12
    assert clean("The answer is <answer>1</answer>2") == "The answer is \n1\n2"
    assert clean("The answer is 4<s>2") == "The answer is 4<s>2"  # in the middle it is no opening
    for text in ("a < b and |x| > 3, so [INS] <b>", "If |x|<|y|> 3 then"):
        assert clean(text) == text


def test_a_foreign_answer_is_written_as_the_student_would(setup):
    """Behind a question that ends in a newline as it stands, else behind a space; no stop string is left inside."""
    sampler, tokenizer, task, config = setup(right)
    home = Rollout(sampler, tokenizer, task, config)
    key = (1, "generate", "1", 0, "a")
    assert carried(home, key, task.train[1], " 1+1\n\n=2 ").text == "1+1\n\n=2"
    task.stop = ("\n\n",)
    assert carried(home, key, task.train[1], " 1+1 \n \n=2\n\n").text == "1+1\n=2"  # paragraphs become lines
    fitted(task, task.train[1], "a" + " " * 10**6 + "\n" + " " * 10**6 + "b", chat=False)  # in no time
    task.stop = ("\n9",)
    assert carried(home, key, task.train[1], "=2\n9+9").text == "=2"
    task.question = lambda problem: problem.question
    assert carried(home, key, task.train[1], "=2").text == " =2"
    task.question = lambda problem: problem.question + "\n+C"
    task.stop = ()
    assert carried(home, key, task.train[1], "+C =2").text == " =2"  # the cue stands there already
    long = carried(home, key, task.train[1], "1" * 999 + "\n=2")
    assert (long.verdict, long.finish) == ("length", "length")  # the student could not write it to its end
    assert long.tokens[-1] != tokenizer.eos_ids[0]


def test_a_judge_does_not_see_who_wrote_it(setup):
    """The blanks at the end are a sampler's, not an answer's: a judge once learned from them alone."""
    task = Riddles()
    judge = Numbers(None)
    assert judge_pair(judge, task, task.train[1], " =2 \n") == ("1+1\n", " =2")
    judge.format = "chat"
    assert judge_pair(judge, task, task.train[1], " =2 \n") == ("1+1", "=2")


def test_agreement_compares_answers_to_one_problem_only():
    """a: right above wrong; b: one of two pairs in order; c and d have one kind only; e is not rated."""
    def rated(p, verdict, reward, k=0, phase="generate"):
        return made(p, f"{k}", verdict, reward=reward, scores={"reward": -reward}, sample=k, phase=phase)

    tried = [rated("a", "right", 9.0), rated("a", "wrong", 8.0, 1), rated("b", "right", 1.0),
             rated("b", "wrong", 2.0, 1), rated("b", "unparsed", 0.0, 2), rated("c", "right", -5.0),
             rated("d", "wrong", 50.0), made("e", "", "wrong")]
    found = agreement(tried)
    assert (found["problems"], found["unscored"]) == (2, 1)
    value, low, high = found["auc"]
    assert 0 < low < 0.75 == value < high <= 1
    assert found["by_attribute"]["reward"][0] == 0.25  # an attribute may be called so
    assert agreement([made("e", "", "wrong")]) == {
        "problems": 0, "auc": None, "by_attribute": {}, "ties": 0.0, "unscored": 1}
    assert ties([[rated("a", "right", 1.0), rated("a", "wrong", 1.0, 1)], [rated("b", "right", 2.0)],
                 [rated("c", "right", 2.0), rated("c", "right", 1.0, 1)]]) == 0.5


def test_a_line_a_source():
    tried = [made("a", "x", reward=1.0), made("a", "y", "wrong", reward=2.0), made("a", "x", source="m"),
             made("b", "z", phase="rationalize", reward=9.0)]
    assert by_source(tried, [*tried[:3], tried[3]], tried[1:]) == {
        "student": {"tried": 2, "right": 1, "kept": 3, "chosen": 2, "chosen_hinted": 1, "chosen_wrong": 1,
                    "reward": 1.5},
        "m": {"tried": 1, "right": 1, "kept": 1, "chosen": 1, "chosen_hinted": 0, "chosen_wrong": 0, "reward": None}}


def test_problems_that_a_file_answers_are_drawn_first(setup):
    """In every iteration, whatever the seed; then others, if anybody answers these."""
    _, _, task, config = setup(right, problems=4)
    pool = Pool([], [Candidate(p, "a", "=1") for p in ("5", "2", "nobody's")])
    for seed in range(5):
        drawn = [p.id for p in pool.draw(task.train, config, seed)]
        assert sorted(drawn[:2]) == ["2", "5"]
        assert len(set(drawn)) == 4
        assert pool.draw(task.train, replace(config, problems=1), seed)[0].id in ("2", "5")
        alone = replace(config, samples=0, candidates="a")
        assert sorted(p.id for p in pool.draw(task.train, alone, seed)) == ["2", "5"]
    assert Pool().draw(task.train, config, 3) == choose_problems(task.train, 4, 3)


def test_a_problem_without_answer_is_open_and_rated(setup, monkeypatch, tokenizer):
    """What is held out is rated too, cut off or not: its mean reward stands in the place of accuracy."""
    seen, task = trained_on(monkeypatch), Riddles()
    task.train, task.heldout = ([replace(p, answer="") for p in part] for part in (task.train, task.heldout))
    judge = Numbers(lambda question, text: (float(len(text)), 0.0))

    def student(text):
        return ("12345", "length") if text.startswith("8") else ("=" + text[0], "stop")

    sampler, *rest = setup(student, task, select="reward", reward="a", validation=2, samples=2, temperature=1.0)
    base, first = finished(star(sampler, *rest, pool=Pool(judge=lambda: judge)))
    assert "accuracy" not in base
    assert base["reward"] == {"mean": (5 + 2 + 2 + 2) / 4, "scored": 4}
    assert base["said"]["open"] == 3
    assert first["validation"] == {"mean": 2.0, "scored": 2}
    assert first["dropped"]["open"] == 6
    assert len(seen[0]) == 6  # the best of each problem
    assert json.loads(json.dumps(first)) == first


def test_another_models_draws_are_its_own(setup, tokenizer):
    """The student draws what it draws alone; another model, by its name, something else."""
    sampler, _, task, config = setup(right, samples=2, temperature=1.0)
    home = Rollout(sampler, tokenizer, task, config)
    alone = home.complete(1, "generate", task.train)
    guests = result(Pool([other("m", right, tokenizer, [])]).answers(home, 1, task.train))
    assert {g.seed for g in alone}.isdisjoint(g.seed for g in guests)
    assert [g.text for g in guests] == [g.text for g in alone]
    assert {g.source for g in guests} == {"m"}


def test_another_model_is_asked_as_a_base_is(setup, tokenizer):
    """Behind the examples in every iteration, where the student that was trained sees them no more."""
    task = Riddles()
    task.shots, task.between = [Shot(Problem("s", "21+21", "42"), "=42")], "\n"
    guest = Scripted(checkpoints.load_model(SHIPPED), tokenizer, right)
    pool = Pool([Model("m", lambda: (guest, tokenizer))])
    sampler, *rest = setup(right, task, few_shot_sample="base", iterations=2)
    list(star(sampler, *rest, pool=pool))
    assert len(guest.asked) == 2 * 8
    assert all(text.startswith("21+21\n=42") for text in guest.asked)
    assert [text.startswith("21+21") for text in sampler.asked] == [True] * 12 + [False] * (4 + 8 + 4)


def test_half_of_what_another_model_said_is_not_asked_again(setup, tokenizer):
    sampler, _, task, config = setup(right)
    guest = Scripted(checkpoints.load_model(SHIPPED), tokenizer, right)
    pool = Pool([Model("m", lambda: (guest, tokenizer))])
    whole = result(pool.answers(Rollout(sampler, tokenizer, task, config), 1, task.train))
    guest.asked.clear()
    again = result(pool.answers(Rollout(sampler, tokenizer, task, config, whole[:5]), 1, task.train))
    assert again == whole
    assert len(guest.asked) == 3


def test_equal_answers_to_a_problem_are_rated_once(setup, tokenizer):
    sampler, _, task, config = setup(right, samples=3, temperature=1.0)
    home, judge = Rollout(sampler, tokenizer, task, config), Numbers(lambda question, text: (1.0, 0.0))
    tried = home.complete(1, "generate", task.train)
    rated = result(Pool(judge=lambda: judge).score(home, 1, tried, task.train))
    assert len(judge.asked) == len(task.train)
    assert [g.reward for g in rated] == [1.0] * 24


def test_right_steps_are_asked_for(setup, monkeypatch, tokenizer):
    """And only what has them counts for --wanted: with 3 slots, one is found among the first three problems."""
    seen, task = trained_on(monkeypatch), Riddles()
    sampler, *rest = setup(right, task, select="correct+steps", rationalize=False)
    task.check_steps = lambda problem, text: problem.id in ("2", "5")
    assert finished(star(sampler, *rest))[1]["kept"] == 8
    assert sorted(tokenizer.decode(list(e.tokens)) for e in seen[0]) == ["2+2\n=4", "5+5\n=10"]
    sampler, *rest = setup(right, task, select="correct+steps", rationalize=False, wanted=1)
    drawn = [p.id for p in Pool().draw(task.train, rest[2], seed_of(0, 1, "draw"))]
    task.check_steps = lambda problem, text: problem.id == drawn[4]
    assert finished(star(sampler, *rest))[1]["problems"] == 6  # three, and three more
