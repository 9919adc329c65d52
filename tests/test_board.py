"""--tensorboard: what is written, in a stand-in for its writer, and what is said where it is not installed."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import SHIPPED

import train
from star.run.board import numbers
from star.run.folder import read_lines

pytestmark = pytest.mark.usefixtures("own_folder")
SMALL = ["--model", str(SHIPPED), "--digits", "1-2", "--problems", "20", "--first-steps", "1", "--heldout-problems",
         "9", "--tensorboard"]


class Writer:
    """torch.utils.tensorboard.SummaryWriter, as far as it is used."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.texts, self.scalars, self.open = Path(folder), purge_step, [], [], True

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def flush(self):
        pass

    def close(self):
        self.open = False


@pytest.fixture
def writers(monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    made = []
    module.SummaryWriter = lambda *args, **how: made.append(Writer(*args, **how)) or made[-1]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


def test_metrics_and_rationales_are_written_as_they_come(writers):
    assert train.main([*SMALL, "--iterations", "1", "--out", "run"]) == 0
    (writer,) = writers
    assert (writer.folder, writer.purge_step, writer.open) == (Path("run/tensorboard"), 0, False)
    metrics = read_lines(Path("run/metrics.jsonl"))
    for n in (0, 1):
        written = {tag: value for tag, value, step in writer.scalars if step == n}
        assert written.items() >= dict(numbers(metrics[n])).items()
        assert {"seconds/evaluate", "sampled_tokens_per_s", "use/sampling/matmul"} <= written.keys()
    sample = read_lines(Path("run/samples/iter-001.jsonl"))[0]
    _, text, _ = next(t for t in writer.texts if t[0] == "rationales 001/generate")
    assert all(line.startswith("    ") for line in text.split("\n")[1:])  # a block of code
    assert all(part in text.replace("\n    ", "\n") for part in (sample["question"], sample["text"], sample["verdict"]))
    assert [step for _, _, step in writer.texts] == list(range(len(writer.texts)))
    assert len(writer.texts) <= 12
    assert train.main(["--resume", "run", "--iterations", "2", "--tensorboard"]) == 0
    assert writers[1].purge_step == 2
    assert {step for _, _, step in writers[1].scalars} == {2}


def test_without_the_package_nothing_is_begun(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train.main(SMALL) == 2
    assert capsys.readouterr().err.startswith("error: --tensorboard needs the package tensorboard (")
    assert not Path("runs").exists()


def test_numbers_are_found_at_any_depth():
    assert numbers({"iteration": 1, "a": {"b": 2, "c": [1, 2]}, "d": True, "e": "x"}) == [("a/b", 2.0), ("d", 1.0)]
