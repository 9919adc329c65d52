"""What a run generated: read back, filtered, counted, listed, and each problem's way, whatever the texts hold."""

import json
from dataclasses import asdict

import pytest
from conftest import refused

from star.evaluate import VERDICTS
from star.problem import PHASES, Generation
from star.run.history import (
    FAILED_MARKS,
    LEGEND,
    RIGHT_MARKS,
    SAMPLED,
    Filter,
    browse,
    clip,
    journeys,
    listing,
    load,
    matches,
    nothing,
    overview,
    visible,
    wrapped,
)


def made(n, phase, problem, verdict, text="x", answer=None, sample=0, steps=None, tokens=3):
    return Generation(n, phase, problem, sample, 0, (1,) * tokens, text, "stop", -0.5, answer, verdict, steps)


STORY = [  # problem 17 from wrong to right, and two others
    made(0, "evaluate", "heldout-3", "wrong", "h", "1"),
    made(1, "generate", "train-17", "wrong", "2+3=5\n=5", "5"),
    made(1, "generate", "train-4", "unparsed", "eh"),
    made(1, "rationalize", "train-17", "right", "2+6=8\n=8", "8"),
    made(1, "rationalize", "train-4", "leak", "because it is 9", "9"),
    made(1, "evaluate", "heldout-3", "right", "h2", "2"),
    made(2, "generate", "train-17", "right", "2+6=8\n=8", "8"),
    made(2, "generate", "train-4", "length", "eh eh"),
    made(2, "evaluate", "heldout-3", "right", "h2", "2"),
]


def write(folder, name, generations, end="\n"):
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(g) | {"chunk": len(generations)}) for g in generations]
    (folder / "samples" / name).write_text("\n".join(lines) + end)


def passing(**parts):
    return [STORY.index(g) for g in STORY if matches(g, Filter(**parts))]


def test_load_gives_back_what_was_written_in_order(tmp_path):
    late = [made(n, "generate", "a", "right") for n in (999, 1000)]
    for g in late:
        write(tmp_path, f"iter-{g.iteration:03d}.jsonl", [g])
    for n in (2, 0, 1):
        write(tmp_path, f"iter-{n:03d}.jsonl", [g for g in STORY if g.iteration == n])
    assert load(tmp_path) == STORY + late


def test_load_leaves_out_the_line_that_is_being_written(tmp_path):
    write(tmp_path, "iter-001.jsonl", STORY[1:3], end="")
    assert load(tmp_path) == STORY[1:2]


def test_load_says_what_is_missing_or_damaged(tmp_path):
    refused(load, tmp_path / "nowhere", words=("nowhere", "samples/iter-NNN.jsonl"), error=FileNotFoundError)
    write(tmp_path, "iter-000.jsonl", [], end="")
    refused(load, tmp_path, words=(str(tmp_path), "no whole generation"))
    write(tmp_path, "iter-000.jsonl", STORY[:1])
    (tmp_path / "samples" / "iter-001.jsonl").write_text("{\n{}\n")
    refused(load, tmp_path, words=("iter-001.jsonl is damaged",))
    good = asdict(STORY[0]) | {"chunk": 1}
    for bad in (
        {}, good | {"new": 1}, good | {"verdict": "fine"}, good | {"verdict": []}, good | {"phase": "train"},
        good | {"text": None}, good | {"answer": 8}, good | {"iteration": "1"}, good | {"sample": None},
        good | {"problem": 17}, {k: v for k, v in good.items() if k != "text"},
    ):  # fmt: skip
        (tmp_path / "samples" / "iter-001.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
        refused(load, tmp_path, words=("iter-001.jsonl, line 2, is no generation",))


def test_a_filter_lets_pass_what_it_names():
    assert passing() == list(range(9))
    assert passing(iterations=(1, 1)) == [1, 2, 3, 4, 5]
    assert passing(iterations=(0, 1)) == [0, 1, 2, 3, 4, 5]
    assert passing(phase="rationalize") == [3, 4]
    assert passing(verdict="right") == [3, 5, 6, 8]
    assert passing(verdict="leak") == [4]
    assert passing(problem="train-17") == passing(problem="17") == [1, 3, 6]
    assert passing(problem="7") == passing(problem="train") == passing(problem="-17") == []
    assert passing(problem="17", verdict="right", iterations=(2, 5)) == [6]


def test_a_filter_knows_names_for_outcomes():
    assert passing(verdict="kept") == [6]
    assert passing(verdict="rationalized") == [3]
    assert passing(verdict="failed") == [0, 1, 2, 4, 7]
    assert passing(verdict="truncated") == passing(verdict="length") == [7]


def test_a_filter_refuses_unknown_names():
    phases = "generate, rationalize, validate, evaluate, pass at k"
    refused(lambda: Filter(phase="train"), words=("the phase is 'train'", phases))
    refused(lambda: Filter(verdict="good"), words=("the verdict is 'good'", *VERDICTS, "kept", "truncated"))


def test_nothing_says_what_there_is_instead():
    assert nothing(Filter(iterations=(5, 9), phase="generate"), STORY) == (
        "no generation, iterations 5-9, phase generate; there are iterations 0-2, phases generate, rationalize, "
        "evaluate, verdicts right, wrong, unparsed, length, leak")
    assert nothing(Filter(problem="17", verdict="leak"), STORY) == (
        "no generation, verdict leak, problem 17; it has iterations 1-2, phases generate, rationalize, "
        "verdicts right, wrong")
    assert nothing(Filter(problem="train-18"), STORY).endswith(", problems such as heldout-3, train-17, train-4")
    many = [made(1, "generate", f"a-{i}", "right") for i in range(9)]
    assert nothing(Filter(problem="17x"), many).endswith(", problems such as a-0, a-1, a-2")
    assert nothing(Filter(problem="a"), []) == "no generation, problem a"
    assert nothing(Filter(problem="a\n\x1b"), STORY).startswith("no generation, problem a\\n\\x1b;")


def test_overview_counts_by_iteration_and_phase():
    twice = [made(2, "generate", "b", "right", text, tokens=6) for text in ("y", "y ", "z")]
    lines = overview([*twice, made(2, "generate", "c", "right", "y", tokens=6), *STORY])
    shown = [v for v in VERDICTS if v != "open"]
    assert lines[0].split() == ["it", "phase", *shown, "|", "distinct", "right", "mean", "tokens"]
    assert [line.split() for line in lines[1:]] == [
        ["0", "evaluate", "0", "1", "0", "0", "0", "|", "0", "3.0"],
        ["1", "generate", "0", "1", "1", "0", "0", "|", "0", "3.0"],
        ["1", "rationalize", "1", "0", "0", "0", "1", "|", "1", "3.0"],
        ["1", "evaluate", "1", "0", "0", "0", "0", "|", "1", "3.0"],
        ["2", "generate", "5", "0", "0", "1", "0", "|", "4", "5.0"],
        ["2", "evaluate", "1", "0", "0", "0", "0", "|", "1", "3.0"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert overview([]) == []


def test_listing_is_a_block_a_generation():
    assert listing(STORY[1:4], 2, 80) == [
        "iter 1 generate train-17 sample 0: wrong (says 5)", "    2+3=5", "    =5", "",
        "iter 1 generate train-4 sample 0: unparsed", "    eh", "",
        "... 1 more generation"]  # fmt: skip
    assert listing(STORY[1:2], 2, 80)[-1] == "    =5"
    assert listing(STORY, 0, 80) == ["... 9 more generations"]
    assert listing(STORY[1:3], 2, 30, {"train-17": ("2 +\n3 " * 9, "6")})[:3] == [
        "iter 1 generate train-17 sample 0: wrong (says 5; right is 6)", "  ? 2 + 3 2 + 3 2 + 3 2 + 3 2…", "    2+3=5"]
    assert listing([], 3, 80) == []


@pytest.mark.parametrize(("lines", "more"), [(12, []), (13, []), (14, ["    ... 2 more lines"])])
def test_listing_cuts_long_texts(lines, more):
    text = "\n".join(f"step {i}" for i in range(lines))
    block = listing([made(1, "generate", "a", "wrong", text)], 1, 80)
    shown = 12 if more else lines
    assert block[1:] == [f"    step {i}" for i in range(shown)] + more


def test_listing_wraps():
    block = listing([made(1, "generate", "a", "wrong", "word " * 20)], 1, 40)
    assert block[1:] == ["    " + " ".join(["word"] * n) for n in (7, 7, 6)]
    assert listing([made(1, "generate", "a", "wrong", "")], 1, 40)[1] == "    (nothing)"


def test_listing_tells_a_problems_way():
    """Whatever order they come in: by iteration, then as its phases follow each other, then by sample."""
    samples = [made(1, "generate", "train-17", "right", "eh", "8", sample=k, steps=k == 3) for k in (3, 2)]
    again = [made(2, "evaluate", "train-17", "right"), made(2, "validate", "train-17", "length")]
    lines = listing([*again, *samples, *(g for g in STORY[::-1] if g.problem == "train-17")], 9, 80)
    assert [line for line in lines if line.startswith("iter")] == [
        "iter 1 generate train-17 sample 0: wrong (says 5)",
        "iter 1 generate train-17 sample 2: right (says 8), but a step is wrong",
        "iter 1 generate train-17 sample 3: right (says 8)",
        "iter 1 rationalize train-17 sample 0: right (says 8)",
        "iter 2 generate train-17 sample 0: right (says 8)",
        "iter 2 validate train-17 sample 0: length",
        "iter 2 evaluate train-17 sample 0: right",
    ]


def test_browse_shows_everything_or_what_was_asked_for(tmp_path):
    """An overview of all and the ways of the problems tried in training; with a filter a list, or what there is."""
    write(tmp_path, "iter-000.jsonl", STORY)
    tries = [g for g in STORY if g.phase != "evaluate"]
    assert browse(tmp_path, Filter(), 9, 80) == [*overview(STORY), "", *journeys(tries, 9)]
    wanted = Filter(problem="17", verdict="right")
    assert browse(tmp_path, wanted, 1, 80) == listing([STORY[3], STORY[6]], 1, 80)
    assert browse(tmp_path, wanted, 1, 80)[-1] == "... 1 more generation"
    refused(browse, tmp_path, Filter(verdict="leak", problem="17"), 9, 80, words=(
        "no generation, verdict leak, problem 17; it has iterations 1-2",))
    write(tmp_path, "iter-000.jsonl", STORY[:1])  # a base that was only evaluated has ways too
    assert browse(tmp_path, Filter(), 9, 80) == [*overview(STORY[:1]), "", *journeys(STORY[:1], 9)]


def test_journeys_put_those_that_came_right_first():
    others = [made(n, "generate", "always", "right") for n in (1, 2)]
    lost = [made(1, "generate", "lost", "right"), made(2, "rationalize", "lost", "right")]
    lost += [made(1, "generate", "hinted", "wrong"), made(2, "rationalize", "hinted", "right")]
    assert journeys([*others, *lost, *STORY], 9) == [
        "problem   0 1 2",
        "heldout-3 w E E",
        "train-17  . R K",
        "always    . K K",
        "lost      . K R",
        "hinted    . w R",
        "train-4   . l t",
        LEGEND,
    ]
    lines = journeys([*others, *lost, *STORY], 2)
    assert [line.split()[0] for line in lines] == ["problem", "heldout-3", "train-17", "...", "K"]
    assert lines[3] == "... 4 more problems"
    assert journeys(STORY, 0)[0].split() == ["problem", "0", "1", "2"]
    assert journeys([], 9) == []


def test_journeys_mark_the_best_outcome_or_the_last_failure():
    tries = [made(12, "generate", "a", v, sample=k) for k, v in enumerate(("wrong", "right", "unparsed"))]
    hinted = [made(12, "rationalize", "a", "right"), made(12, "rationalize", "b", "wrong")]
    failed = [made(12, "generate", "b", "unparsed"), made(12, "generate", "b", "length", sample=1)]
    assert journeys([*hinted, *tries, *failed], 9)[:3] == ["problem 12", "a        K", "b        w"]
    assert {"right", *FAILED_MARKS} == set(VERDICTS)
    assert set(RIGHT_MARKS) == set(SAMPLED) == set(PHASES) - {"train", "judge"}
    marks = [*{*RIGHT_MARKS.values()}, *FAILED_MARKS.values()]
    assert len(set(marks)) == len(marks)


def test_journeys_show_those_tried_in_most_iterations_before_others():
    often = [made(n, "generate", "often", "wrong") for n in (1, 2)]
    lines = journeys([made(1, "generate", "once", "wrong"), *often], 9)
    assert [line.split()[0] for line in lines[1:3]] == ["often", "once"]


NASTY = "a\x1b[31mred\r\x07\x08\x00 \x9b5m \u202eright \ud800 \u2028 end\tof\x7f"


def test_what_a_model_wrote_cannot_reach_the_terminal():
    """Nor can an id or an answer; and every line can be printed."""
    gs = [made(1, "generate", NASTY + "\n", v, NASTY + "\n\n" + NASTY, NASTY + "\n") for v in ("wrong", "right")]
    lines = [*overview(gs), *listing(gs, 5, 60), *journeys(gs, 5), nothing(Filter(problem="\x1b"), gs)]
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
    assert "".join(lines).encode("utf-8")
    assert any("a\\x1b[31mred\\r\\x07" in line for line in lines)


def test_visible_keeps_what_can_be_seen():
    assert visible("é 漢字 ✓ a\\b 'x' e\u0301") == "é 漢字 ✓ a\\b 'x' e\u0301"
    assert visible("\x1b\n\x9b\u202e\ud800\xa0") == "\\x1b\\n\\x9b\\u202e\\ud800\\xa0"
    assert [clip("é" * n + "\x1b", 8) for n in (4, 5)] == ["éééé\\x1b", "ééééé\\x…"]


def test_wrapped_keeps_lines_and_indents():
    assert wrapped("\na\n\n  b\tc\n", 20) == ["a", "", "  b c"]
    assert wrapped("x" * 45, 3) == ["x" * 20, "x" * 20, "x" * 5]
    assert wrapped("ab-cd " * 4, 22) == ["ab-cd ab-cd ab-cd", "ab-cd"]
    assert wrapped(" \n", 20) == ["(nothing)"]
