"""The commands as people run them: what they print, how they stop, and that bad input is one line and exit code 2."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, ROOT, SHIPPED, stopped
from safetensors.torch import load_file, save_file
from test_loop import Riddles

import checkpoints
import sample
import star.run.plan
import star.tasks
import train
from checkpoints.files import write_json
from star.experiments import export, tiny_adder
from star.problem import Phase
from star.run.folder import read_lines
from star.tasks import load_task
from star.tasks.arithmetic import Arithmetic

pytestmark = pytest.mark.usefixtures("own_folder")
SMALL = ["--model", str(SHIPPED), "--digits", "1-2", "--problems", "40", "--first-steps", "2", "--iterations", "1",
         "--heldout-problems", "50"]


def one_line(capsys, code, *words):
    """Exit code 2, one line on stderr that holds these words, and nothing else."""
    err = re.sub("^pace .*\n", "", capsys.readouterr().err)
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err


def parrot(folder):
    """A model with a SentencePiece tokenizer that says "the", whatever it is asked."""
    folder = Path(folder)
    shutil.copytree(GOLDEN / "llama_bias", folder)
    shutil.copy(GOLDEN / "tok_sp_llama" / "tokenizer.model", folder)
    words = checkpoints.load_tokenizer(folder)
    (the,) = words.encode("the", special=False)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    width = config["hidden_size"]
    embedding, head = torch.zeros(words.vocab_size, width), torch.zeros(words.vocab_size, width)
    embedding[:, 0], head[the, 0] = 1e4, 1.0  # positive, whatever the layers add
    tensors |= {"model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": torch.ones(width)}
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", config | {"vocab_size": words.vocab_size, "tie_word_embeddings": False})


def test_train_then_sample(capsys, tmp_path):
    assert train.main(SMALL) == 0
    out = capsys.readouterr().out
    assert re.search(r"^device  (cpu|cuda)", out, re.M)
    rows = re.findall(r"^ ?(\d+) +([\d. ]+)\|", out, re.M)
    assert [r[0] for r in rows] == ["0", "1"]
    run = tmp_path / "runs" / "arithmetic-001"
    assert {p.name for p in run.iterdir()} == {
        "config.json", "metrics.jsonl", "timings.jsonl", "samples", "adapters", "curves.png", "report.html",
        "state.json", ".lock"}  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["problems"] == 40
    assert {"command", "torch", "git_commit", "device", "dtype"} <= set(config)

    assert sample.main(["12+34"]) == 0
    out = capsys.readouterr().out
    assert "runs/arithmetic-001, iteration 1" in out
    assert "2+4+C0=06\n1+3+C0=04\n=46\n-> 46 is right" in out

    assert train.main(["--resume", str(run)]) == 2
    assert "has finished its 1 iterations; to go on: --resume " in capsys.readouterr().err
    assert train.main(["--resume", str(run), "--extend", "1"]) == 0
    assert [m["iteration"] for m in read_lines(run / "metrics.jsonl")] == [0, 1, 2]
    assert train.main([*SMALL, "--out", str(run)]) == 2
    assert f"go on with it by --resume {run}" in capsys.readouterr().err
    assert train.main(["--resume", str(run), "--lr", "1", "--out", "x"]) == 2
    assert "leave out --out" in capsys.readouterr().err


# --check


def test_check_says_what_a_run_would_stand_on(capsys):
    assert train.main(["--check"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert re.match(r"model   .*tiny-adder: llama, 538,112 parameters, float32$", out[0])
    assert out[1] == "cost    at most 39,650 rationales x 68 new tokens = 2,696,200; 552 steps x 32 examples"
    weights, adapters, copy, cache, training, most = (float(x) for x in re.findall(r"([\d.]+) MiB", out[2])[:6])
    assert weights == pytest.approx(538_112 * 4 / 2**20, abs=0.06)
    assert adapters == pytest.approx(16 * 114_688 / 2**20, abs=0.06)  # 4 bytes each for value, gradient, two moments
    assert weights - copy == pytest.approx((21 * 128 + 9 * 128) * 4 / 2**20, abs=0.1)  # all but embedding and norms
    assert most == pytest.approx(weights + adapters + copy + max(cache, training), abs=0.3)
    assert re.match(r"cache   \d+ slots of 92 tokens: at most [\d.]+ MiB$", out[3])
    assert out[4:] == [
        "task    arithmetic: 37,950 training problems, 850 held out; answers are compared as they are written",
        "ends    a rationale ends at its end token, or after 68 tokens",
        "prompt  5+0: 4 ids, first 9, last 2", "        5+0",
        "hinted  the same problem", "        hint 5", "        5+0"]
    assert not Path("runs").exists()


def test_check_shows_examples_and_how_answers_are_compared(capsys):
    """Few-shot text and question as one text, plain and hinted, as they will be encoded."""
    Path("sums.jsonl").write_text("".join(json.dumps({"question": f"{i}+{i}", "answer": str(2 * i)}) + "\n"
                                          for i in range(40)))
    Path("shots.jsonl").write_text('{"question": "1+50", "rationale": "50 and 1 are 51.", "answer": "51"}\n')
    parrot("words")
    argv = ["--task", "jsonl", "--model", "words", "--data", "sums.jsonl", "--few-shot", "shots.jsonl"]
    assert train.main([*argv, "--check", "--max-new-tokens", "30"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^task    jsonl: 34 training problems, 6 held out; answers are compared as numbers$", out, re.M)
    assert "ends    a rationale ends at '\\nQ:', or after 30 tokens\n" in out
    example = "        Q: 1+50{}\n        A: 50 and 1 are 51. The answer is 51.\n        \n"
    shown = out.partition("\nprompt  sums-1: ")[2].partition("\n")[2].split("hinted  the same problem\n")
    assert shown == [example.format(hint) + f"        Q: 0+0{own}\n        A:\n"
                     for hint, own in (("", ""), (" (Answer: 51)", " (Answer: 0)"))]


def test_check_refuses_what_a_run_would(capsys, monkeypatch):
    one_line(capsys, train.main(["--check", "--model", "nowhere"]), "no model folder", "nowhere")
    one_line(capsys, train.main(["--check", "--out", "x"]), "leave out --out and --resume")
    monkeypatch.setattr(star.run.plan, "free_memory", lambda _: 10**6)
    for argv in (["--check"], []):
        said = train.main(["--model", str(SHIPPED), *argv])
        one_line(capsys, said, "the run needs 2.1 MiB and cpu has 1.0 MiB free", "--dtype bfloat16")
    assert not Path("runs").exists()


@pytest.mark.filterwarnings("default:.*not finite")
def test_check_reads_no_weights(capsys):
    """Numbers that are not finite are seen where they are read: at the start of a run."""
    shutil.copytree(SHIPPED, "nan")
    tensors = load_file("nan/model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, "nan/model.safetensors")
    argv = ["--model", "nan", "--digits", "1", "--iterations", "0", "--heldout-problems", "2"]
    assert train.main([*argv, "--check"]) == 0
    assert capsys.readouterr().err == ""
    train.main(argv)
    warned = re.findall(r"^warning: .*: (.*) holds numbers that are not finite", capsys.readouterr().err, re.M)
    assert warned == ["model.norm.weight"]


# sample and export


def test_a_model_goes_on_with_a_text(capsys, monkeypatch):
    assert sample.main(["--model", str(SHIPPED), "12+34\n", "--max-new-tokens", "9"]) == 0
    assert capsys.readouterr().out.endswith("12+34\n2+4+C0=06\n")
    one_line(capsys, sample.main(["--model", str(SHIPPED), "--trace", "1+1"]), "with --trace name a --task")
    one_line(capsys, sample.main(["--model", str(SHIPPED), ""]), "the text has 0 tokens; it must have 1 to 511")
    assert sample.main(["12+34", "--max-new-tokens", "4"]) == 0  # with a task too
    assert "2+4+\n-> was cut off at the length cap" in capsys.readouterr().out


def test_what_a_model_writes_keeps_the_space_before_it(capsys):
    """SentencePiece: a first piece decoded alone has none."""
    parrot("sp")
    assert sample.main(["--model", "sp", "the the", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.endswith("the the the the\n")


def test_export_of_a_run(capsys):
    one_line(capsys, export.main(["out"]), "nothing to export")
    assert train.main(SMALL) == 0
    assert export.main(["out"]) == 0
    assert "wrote out: runs/arithmetic-001, iteration 1" in capsys.readouterr().out
    assert sample.main(["--model", "out", "12+34\n", "--max-new-tokens", "9"]) == 0
    live = checkpoints.load_model(SHIPPED)
    checkpoints.load_adapter(live, "runs/arithmetic-001/adapters/iter-001")
    ids = torch.arange(2, 15)[None]
    torch.testing.assert_close(checkpoints.load_model("out")(ids), live(ids), atol=1e-3, rtol=1e-3)
    one_line(capsys, export.main(["out"]), "out exists and is not empty")
    page = Path("out/prompt.txt").read_text()
    first = load_task("arithmetic", digits="1-2").train[0]
    line = export.LINE
    assert f"prompt of problem {first.id} stands between the lines:\n\n{line}\n{first.question}\n\n{line}\n" in page
    assert "worked examples" not in page


@pytest.mark.parametrize(("flags", "trained"), [
    ([], "Training saw it without the worked examples"), (["--few-shot-train"], "Training saw it behind the same"),
    (["--few-shot-sample", "base"], None)])
def test_an_export_says_how_it_was_asked(shown, monkeypatch, capsys, flags, trained):
    asked = shown
    verified(monkeypatch, "right")
    argv = ["--task", "shown", "--iterations", "1", "--problems", "20", "--first-steps", "1", "--model", str(SHIPPED)]
    assert train.main([*argv, *flags]) == 0
    assert export.main(["out"]) == 0
    page = Path("out/prompt.txt").read_text()
    prompt = page.split(export.LINE)[1].strip("\n")
    assert (trained or "It ends with") in page
    assert prompt.startswith(EXAMPLE) is (trained is not None)
    (command,) = re.findall("^    python sample.py (.*)", page, re.M)
    assert sample.main(["--model", "out", prompt + "\n", "--max-new-tokens", "3"]) == 0
    assert "note: out/prompt.txt says how this model was asked" in capsys.readouterr().out
    if trained is None:
        assert command == f"--run {Path('runs/shown-001')} --iteration 1 --ask"
        return
    asked.clear()
    assert sample.main(shlex.split(command)) == 0  # it can be pasted, and asks as it was asked
    assert asked == [prompt + "\n"]
    assert "-> " in capsys.readouterr().out


def test_a_chat_model_asked_without_its_template_is_told_of(capsys):
    shutil.copytree(SHIPPED, "m")
    for there in (False, True):
        if there:
            Path("m/chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
        assert train.main(["--model", "m", "--digits", "1", "--check"]) == 0
        assert ("note    the model has a chat template, and is asked without it" in capsys.readouterr().out) is there
        assert sample.main(["--model", "m", "12+34\n", "--max-new-tokens", "3"]) == 0
        assert ("note: this model has a chat template" in capsys.readouterr().out) is there
    Path("m/tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"19": {"content": "<|end|>", "special": true}}}')
    assert sample.main(["--model", "m", "1<|end|>", "--max-new-tokens", "1"]) == 2
    said = capsys.readouterr()
    assert "note: <|end|> stands there as text" in said.out
    assert said.err == "error: the tokenizer has no token for '<': '1<|end|>'\n"
    Path("q.jsonl").write_text("".join(f'{{"question": "Q{i}?", "answer": "{i}"}}\n' for i in range(9)))
    one_line(capsys, train.main(["--task", "jsonl", "--data", "q.jsonl", "--check", "--zero-shot"]),
             "has no token for", "the tiny adder that ships, which knows sums alone: name a model's folder by --model")
    one_line(capsys, train.main(["--digits", "1", "--check", "--chat"]), "has no chat template", "folder by --model")
    assert train.main(["--model", "m", "--digits", "1", "--check", "--chat"]) == 0
    assert sample.main(["--model", "m", "12+34", "--max-new-tokens", "3", "--chat"]) == 0
    assert "note" not in capsys.readouterr().out


def test_an_export_outlives_its_data(tmp_path, capsys):
    shutil.copy(Path(train.__file__).parent / "star/tasks/arithmetic.py", tmp_path / "mine.py")
    assert train.main(["--task", "mine.py", *SMALL, "--digits", "1-2"]) == 0
    (tmp_path / "mine.py").unlink()
    capsys.readouterr()
    assert export.main(["out"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("note: no prompt.txt, since the run's task cannot be read (--task ")
    assert "wrote out" in said.out
    assert not Path("out/prompt.txt").exists()


def test_sample_without_a_run(capsys):
    assert sample.main(["11+22"]) == 0
    assert "-> 33 is right" in capsys.readouterr().out


def test_sample_says_when_the_model_is_wrong(capsys):
    assert sample.main(["48571+99664"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"-> .*: the answer is 148235", out)


def test_trace_shows_the_whole_way(capsys):
    """The base fails, explains the sum once it is given, and what is trained on holds no hint."""
    assert sample.main(["--trace", "1064+4991"]) == 0
    out = capsys.readouterr().out
    generate, rationalize, trained = re.split(r"^rationalize$|^train on", out, flags=re.M)
    assert "-> wrong" in generate or "-> unparsed" in generate
    assert "hint 6055" in rationalize
    assert "-> right" in rationalize
    assert "'h'" not in trained
    prompt, targets = trained.split("[", 1)[1].split("\n", 1)[1].split("[")
    ids = [int(x) for x in re.findall(r"(\d+):(?:'|<)", prompt)]
    assert len(ids) == len("1064+4991\n")
    assert targets.rstrip().endswith("1:<end>]")
    assert "\x1b" not in out  # no colours where there is no terminal


def test_trace_of_a_problem_by_its_id(tmp_path, capsys):
    """Of any task: its answer is known, whether or not the task can parse what is typed."""
    sums = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(1, 30)]
    Path("s.jsonl").write_text("".join(json.dumps(s) + "\n" for s in sums))
    parrot("sp")  # that says "the" to all of it
    argv = ["--task", "jsonl", "--data", "s.jsonl", "--zero-shot", "--model", "sp", "--max-new-tokens", "5"]
    for name in ("s-17", "17"):
        assert sample.main([*argv, "--trace", "--problem", name]) == 0
        out = capsys.readouterr().out
        assert "    Q: 17+17\n" in out
        assert "    Q: 17+17 (Answer: 34)\n" in out
        assert out.count("-> length") == 2
    one_line(capsys, sample.main([*argv, "--trace", "--problem", "99"]), "--problem 99: task jsonl has none", "like s-")
    one_line(capsys, sample.main([*argv, "--trace", "--problem", "17", "1+1"]), "not both")
    one_line(capsys, sample.main([*argv, "--trace", "50+50"]), "--problem ID")
    assert sample.main([*argv, "--trace", " 17+17\n"]) == 0  # a question of its own, typed
    assert "(Answer: 34)" in capsys.readouterr().out
    assert sample.main([*argv, "17+17"]) == 0
    assert "the answer is 34\n" in capsys.readouterr().out
    assert sample.main([*argv, "50+50"]) == 0
    assert "the answer is" not in capsys.readouterr().out.rpartition("->")[2]


def test_trace_has_colours_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert sample.main(["--trace", "1064+4991"]) == 0
    assert "\x1b[32m[" in capsys.readouterr().out


# sample, as the run's loop asks


WITH_EXAMPLES = """
from star.problem import Shot
from star.tasks.arithmetic import Arithmetic, make

class Shown(Arithmetic):
    def __init__(self):
        super().__init__(range(2, 3))
        self.train = [p for p in self.train if p.id != "85+11"]
        self.heldout, self.between = self.heldout[:6], "\\n"
        self.shots = [Shot(make("85", "11"), self.worked(make("85", "11")))]

def load():
    return Shown()
"""


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A task named "shown": sums of two digits behind one example. The prompts that sample.py asks with, as text."""
    (tmp_path / "shown.py").write_text(WITH_EXAMPLES)
    monkeypatch.setattr(star.tasks, "__path__", [*star.tasks.__path__, str(tmp_path)])
    asked, write = [], sample.Writer.write

    def spy(writer, prompt, *args, **how):
        asked.append(writer.tokenizer.decode(prompt))
        return write(writer, prompt, *args, **how)

    monkeypatch.setattr(sample.Writer, "write", spy)
    return asked


def test_a_task_may_be_any_file(tmp_path, capsys):
    """The run is named by it, asked as it was trained, and goes on with the file as it was."""
    mine = tmp_path / "mine.py"
    mine.write_text(WITH_EXAMPLES)
    argv = ["--task", "mine.py", "--model", str(SHIPPED), "--few-shot-sample", "base", "--iterations", "0"]
    assert train.main(argv) == 0
    run = Path("runs/mine-001")
    assert json.loads((run / "config.json").read_text())["settings"]["task"] == str(mine)
    assert sample.main(["12+34", "--run", str(run)]) == 0
    assert sample.main(["12+34", "--task", "mine.py"]) == 0
    assert train.main(["--resume", str(run), "--iterations", "0"]) == 2  # finished
    mine.write_text(WITH_EXAMPLES + "\n# other\n")
    capsys.readouterr()
    one_line(capsys, train.main(["--resume", str(run), "--iterations", "1"]), f"{mine} is not what {run} began with")
    one_line(capsys, train.main(["--task", "mime.py"]), "--task mime.py: there is no such file")


EXAMPLE = "85+11\n5+1+C0=06\n8+1+C0=09\n=96\n"
HINTED = "hint 96\n" + EXAMPLE


def verified(monkeypatch, verdict):
    """Whatever the model writes, this is the verdict."""
    verify = sample.Rollout.verify
    monkeypatch.setattr(sample.Rollout, "verify", lambda *args: replace(verify(*args), verdict=verdict))


@pytest.mark.parametrize(("when", "base", "trained"), [
    ("always", [EXAMPLE, HINTED], [EXAMPLE, HINTED]), ("base", [EXAMPLE, HINTED], ["", ""]),
    ("hint", [EXAMPLE, HINTED], ["", HINTED])])
def test_sample_asks_as_the_run_does(shown, monkeypatch, capsys, when, base, trained):
    """few_shot_sample: the base is asked behind the examples, a model trained on bare questions as the setting says."""
    argv = ["--task", "shown", "--few-shot-sample", when, "--iterations", "1", "--problems", "20", "--first-steps", "1",
            "--model", str(SHIPPED)]
    verified(monkeypatch, "right")  # the tiny adder is lost behind examples
    assert train.main(argv) == 0
    verified(monkeypatch, "wrong")  # so that each trace shows the hint too
    for iteration, examples in ((0, base), (1, trained)):
        shown.clear()
        assert sample.main(["12+34", "--iteration", str(iteration)]) == 0
        assert sample.main(["--trace", "12+34", "--iteration", str(iteration)]) == 0
        plain, hinted = examples
        assert shown == [plain + "12+34\n", plain + "12+34\n", hinted + "hint 46\n12+34\n"], iteration
        told = re.findall(r"^(generate|rationalize)( \(behind the few-shot text\))?$", capsys.readouterr().out, re.M)
        assert [bool(behind) for _, behind in told] == [bool(plain), bool(hinted)]


@pytest.mark.parametrize("switch", [[], ["--few-shot-train"]])
def test_trace_shows_what_the_run_trains_on(shown, monkeypatch, capsys, switch):
    argv = ["--task", "shown", *switch, "--iterations", "0", "--model", str(SHIPPED), "--out", "run"]
    assert train.main(argv) == 0
    verified(monkeypatch, "right")
    assert sample.main(["--trace", "12+34", "--run", "run"]) == 0
    plain = capsys.readouterr().out.partition("loss falls on")[2].partition("\n")[2].partition("[")[0]
    assert len(re.findall(r"\d+:'", plain)) == len((EXAMPLE if switch else "") + "12+34\n")


def test_trace_of_a_run_without_hints_shows_none(capsys):
    assert train.main([*SMALL, "--no-rationalize", "--iterations", "0", "--out", "run"]) == 0
    capsys.readouterr()
    assert sample.main(["--trace", "1064+4991", "--run", "run"]) == 0
    out = capsys.readouterr().out
    assert "rationalize" not in out
    assert out.endswith("dropped: nothing of it is trained on\n")


def test_typed_questions(capsys, monkeypatch):
    lines = iter(["11+22", "what?", "3+4"])

    def typed(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert sample.main([]) == 0
    said = capsys.readouterr()
    assert "-> 33 is right" in said.out
    assert "-> 7 is right" in said.out
    assert said.err.count("'what?' is not a sum") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "nowhere"], ["no model folder /", "/nowhere: it must hold config.json"]),
        (["--task", "algebra"], ["unknown task 'algebra'", "known are arithmetic"]),
        (["--problems", "0"], ["--problems is 0", "at least 1"]),
        (["--problems", "-5"], ["--problems is -5"]),
        (["--problems", "many"], ["--problems", "'many'"]),
        (["--iterations", "-1"], ["--iterations is -1"]),
        (["--lr", "-1"], ["--lr is -1"]),
        (["--lr", "nan"], ["--lr is nan"]),
        (["--lr", "1e9"], ["--lr is 1000000000.0", "at most"]),
        (["--growth", "0.5"], ["--growth is 0.5"]),
        (["--growth", "inf"], ["--growth is inf"]),
        (["--growth", "10", "--iterations", "10000"], ["--growth 10.0 over 10000 iterations", "lower one"]),
        (["--temperature", "-0.1"], ["--temperature is -0.1"]),
        (["--rank", "0"], ["--rank is 0"]),
        (["--batch-size", "0"], ["--batch-size is 0"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--digits", "9-1"], ["--digits is '9-1'"]),
        (["--keep", "some"], ["--keep", "'some'", "'all'"]),
        (["--max-new-tokens", "5000"], ["positions", "lower --max-new-tokens"]),
        (["--device", "abacus"], ["--device is 'abacus'"]),
        (["--data", "x"], ["task arithmetic has no setting --data", "task coin_flip, commonsenseqa, gsm8k, jsonl"]),
        (["--frobnicate"], ["--frobnicate", "--help"]),
        (["--resume", "nowhere"], ["nowhere is no run"]),
    ],
)
def test_bad_flags(capsys, tmp_path, argv, words):
    given = ["--model", str(SHIPPED)] if "--model" not in argv and "--resume" not in argv else []
    one_line(capsys, train.main([*given, *argv]), *words)
    assert not list(tmp_path.iterdir()), "what cannot start leaves nothing behind"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: (m / "config.json").unlink(), ["no config.json"]),
        (lambda m: (m / "model.safetensors").unlink(), ["no model.safetensors"]),
        (lambda m: (m / "tokenizer.model").unlink(), ["no tokenizer.model"]),
        (lambda m: os.truncate(m / "model.safetensors", 70_000), ["damaged or cut short"]),
        (lambda m: shrink_vocabulary(m), ["the tokenizer has 21 ids", "only 12"]),
    ],
)
def test_bad_model_folders(capsys, tmp_path, damage, words):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED, folder)
    damage(folder)
    one_line(capsys, train.main(["--model", str(folder)]), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def shrink_vocabulary(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:12].clone()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 12}))


@pytest.mark.parametrize(("argv", "words"), [
    (["--validation", "8"], "--validation is 8, but there are only 8 training problems"),
    (["--few-shot-train"], "--few-shot-train is given, but task arithmetic shows no examples here: leave it out"),
    (["--few-shot-sample", "hint"], "--few-shot-sample hint is given, but task arithmetic shows no examples"),
    (["--chat"], "leave out --chat"),
])
def test_what_a_task_or_model_cannot_give_is_refused(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.setattr(star.run.plan, "load_task", lambda *_, **__: Riddles(12))
    for more in ([], ["--check"]):
        one_line(capsys, train.main(["--model", str(SHIPPED), *argv, *more]), words)
    assert not list(tmp_path.iterdir())


def test_a_runs_rationales_are_listed(capsys, tmp_path):
    """--run without a question: an overview, a filtered list, one problem's way; bad filters are one line."""
    run = tmp_path / "run"
    assert train.main([*SMALL, "--digits", "2-4", "--iterations", "2", "--out", str(run)]) == 0
    shown = capsys.readouterr().out
    samples = re.findall(r"^      (?:kept|rationalized|wrong|unparsed|length|leak)", shown, re.M)
    assert len(samples) == 6, "three an iteration"
    assert re.search(r"^result  iteration 2 \(the last\): [\d.]+% .* 95 % interval", shown, re.M)
    assert re.search(r"^spent   [\d.]+ device-hours; [\d,]+ tokens sampled, [\d,]+ trained on$", shown, re.M)
    assert sample.main(["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +1 generate", out, re.M)
    assert "K right" in out
    tried = [json.loads(line) for line in (run / "samples" / "iter-001.jsonl").read_text().splitlines()]
    wrong = next(t for t in tried if t["verdict"] == "wrong" and t["phase"] == "generate")
    assert sample.main(["--run", str(run), "--problem", wrong["problem"]]) == 0
    out = capsys.readouterr().out
    said = f"(says {wrong['answer']}; right is {wrong['right_answer']})"
    assert f"iter 1 generate {wrong['problem']} sample 0: wrong {said}\n" in out
    assert sample.main(["--run", str(run), "--iteration", "1", "--verdict", "kept", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^iter 1 generate .*: right", out, re.M)) == 2
    one_line(capsys, sample.main(["--run", str(run), "--verdict", "good"]), "good", "kept")
    one_line(capsys, sample.main(["--run", str(run), "--problem", "x"]), "x")
    one_line(capsys, sample.main(["1+1", "--run", str(run), "--problem", "x"]), "leave out the question")
    one_line(capsys, sample.main(["--run", str(run), "--limit", "0"]), "--limit is 0")


def test_nothing_solved_is_one_line(capsys):
    code = train.main(["--model", str(SHIPPED), "--digits", "9", "--problems", "20", "--iterations", "1"])
    one_line(capsys, code, "none of 20 problems was solved, with 20 hinted retries", "try easier problems")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["x"], ["'x' is not a sum"]),
        (["1+1", "--run", "nowhere"], ["nowhere is no run"]),
        (["1+1", "--iteration", "3"], ["no finished run"]),
        (["--trace"], ["--trace needs a question"]),
        (["1+1", "--device", "abacus"], ["--device"]),
        (["1+1", "--temperature", "-1"], ["temperature is -1.0"]),
    ],
)
def test_bad_questions(capsys, argv, words):
    code = sample.main(argv)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len([line for line in lines if line.startswith("error: ")]) == len(lines) == 1
    assert all(word in lines[0] for word in words), lines


def test_tiny_adder_makes_a_model_that_loads(capsys, monkeypatch):
    class Few(Arithmetic):
        def __init__(self, lengths):
            super().__init__(lengths)
            self.heldout = self.heldout[::40]

    monkeypatch.setattr(tiny_adder, "STEPS", 2)
    monkeypatch.setattr(tiny_adder, "Arithmetic", Few)
    threads = torch.get_num_threads()
    assert tiny_adder.main(["--out", "made"]) == 0
    assert "differs from the model that ships" in capsys.readouterr().out
    assert tiny_adder.main(["--out", "made"]) == 2
    for name in ("tokenizer.model", "config.json"):
        assert (SHIPPED / name).read_bytes() == Path("made", name).read_bytes(), name
    assert tiny_adder.main(["--out", "again"]) == 0
    assert Path("made/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    torch.set_num_threads(threads)


# Ctrl-C


def interrupted(argv, wait_for, tmp_path):
    """Run a command, send SIGINT as soon as its output shows `wait_for`; (exit code, output)."""
    return stopped([sys.executable, *argv], wait_for, lambda process: process.send_signal(signal.SIGINT), cwd=tmp_path)


@pytest.mark.parametrize("phase", ["0: evaluate", "1: train"])
def test_ctrl_c_in_any_phase(phase, tmp_path):
    """It stops at once, says how to go on in one line, and that works. Of phases that sample, one: a process each."""
    argv = [str(ROOT / "train.py"), *SMALL, "--digits", "2-3", "--problems", "200", "--first-steps", "12", "--slots",
            "32", "--heldout-problems", "100"]
    code, log = interrupted(argv, phase, tmp_path)
    assert code == 130, log
    assert "Traceback" not in log
    last = log.replace("\r", "\n").rstrip().splitlines()[-1]  # behind the rest of a bar, if that was just drawn
    name = phase.split(": ")[1]
    assert last.endswith(
        f"stopped in iteration {phase[0]}, {name}; go on with: python train.py --resume runs/arithmetic-001")
    if phase == "1: train":
        assert train.main(["--resume", "runs/arithmetic-001"]) == 0
        state = json.loads((tmp_path / "runs/arithmetic-001/state.json").read_text())
        assert (state["iteration"], state["finished"]) == (1, True)


def test_a_log_holds_no_bars(capfd):
    """Where stderr is no terminal, bars would fill it; the table and the pace stay."""
    assert train.main(SMALL) == 0
    said = capfd.readouterr()
    assert re.fullmatch("pace .*\n", said.err)
    assert "\r" not in said.out
    assert " 1 " in said.out


def test_ctrl_c_while_a_library_imports_itself(monkeypatch, capsys):
    """Python 3.11 makes a RuntimeError of what interrupts it between a class and its attributes."""
    def events(*_):
        yield Phase(0, "evaluate", 1)
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr(train, "star", events)
    assert train.main(SMALL) == 130
    err = capsys.readouterr().err.replace("\r", "\n").rstrip().splitlines()[-1]
    assert err == "stopped in iteration 0, evaluate; go on with: python train.py --resume runs/arithmetic-001"


def test_ctrl_c_before_anything_runs(tmp_path):
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *SMALL], cwd=tmp_path, stderr=subprocess.PIPE)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert b"Traceback" not in err
    assert process.returncode == 130


def test_ctrl_c_at_the_prompt(monkeypatch, capsys):
    def typed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", typed)
    assert sample.main([]) == 130
