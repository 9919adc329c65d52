"""Is what was exported what the run had learned? Faults planted in a folder are seen, rounding is called rounding."""

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, SHIPPED, stirred
from safetensors.torch import load_file, save_file
from test_commands import one_line

import checkpoints
import train
from checkpoints.files import write_json
from star import lora
from star.experiments import export
from star.run.folder import Run
from star.tasks import load_task

pytestmark = pytest.mark.usefixtures("own_folder")
QUICK = ["--iterations", "1", "--first-steps", "1", "--digits", "1-2", "--problems", "4", "--heldout-problems", "3"]
FAMILIES = ["llama2", "falcon40b", "gemma2", "granite4_dense", "nemotron4", "qwen3"]
SAME = r"same: to 3 prompts the folder, loaded again, says the same \d+ greedy tokens as the run; log-probabilities "


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run of the model that ships, whose adapters do something; copied by those who change it."""
    where = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(train, "curves", lambda path, metrics: None)
        assert train.main([*QUICK, "--model", str(SHIPPED)]) == 0
    return stir(where / "runs" / "arithmetic-001")


def stir(run):
    """A run's adapters, made to move the logits."""
    model = stirred(checkpoints.load_model(Run.open(run).config.model), rank=16, alpha=32)
    with torch.no_grad():
        for _, module in lora.lora_modules(model):
            for B in module.B:
                B.mul_(0.03)
    checkpoints.save_adapter(model, run / "adapters" / "iter-001")
    return run


def changed(run, copy, **settings):
    """A copy of a run with other settings, as if it had been made so."""
    shutil.copytree(run, copy)
    written = json.loads(Path(copy, "config.json").read_text())
    options = {} if "task" in settings else written["options"]
    write_json(Path(copy, "config.json"), written | {"settings": written["settings"] | settings, "options": options,
                                                     "inputs": {}})


def planted(monkeypatch, edit):
    """Every export from now on is edited behind its back: edit(tensors, folder)."""
    write = checkpoints.export_merged

    def wrong(model, folder):
        write(model, folder)
        tensors = load_file(folder / "model.safetensors")
        edit(tensors, folder)
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")

    monkeypatch.setattr(checkpoints, "export_merged", wrong)


def recast(dtype, own_head, folder=Path("m")):
    """The model that ships in another dtype, with a head of its own or its embedding's."""
    shutil.copytree(SHIPPED, folder)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    tensors.pop("lm_head.weight", None)
    if own_head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.01
    save_file({name: t.to(dtype) for name, t in tensors.items()}, folder / "model.safetensors")
    name = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", config | {"tie_word_embeddings": not own_head, "dtype": name})
    return str(folder)


@pytest.mark.parametrize(("dtype", "own_head", "most"), [
    (torch.float32, True, 10**9), (torch.bfloat16, False, 100_000), (torch.float16, True, 100_000)])
def test_an_export_is_asked_again(monkeypatch, capsys, dtype, own_head, most):
    monkeypatch.setattr(checkpoints, "export_merged", functools.partial(checkpoints.export_merged, most_shard=most))
    assert train.main([*QUICK, "--model", recast(dtype, own_head)]) == 0
    stir(Path("runs/arithmetic-001"))
    assert export.main(["out"]) == 0
    assert re.search(f"^(differs: to|{SAME})", capsys.readouterr().out, re.M)
    assert checkpoints.load_model("out").dtype == dtype
    assert len(list(Path("out").glob("*.safetensors"))) == (1 if most == 10**9 else len(
        set(json.loads(Path("out/model.safetensors.index.json").read_text())["weight_map"].values())))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_is_compared_by_its_own_rounding(tmp_path, name, dtype):
    """Of every layout: a merged weight passes, one step off in its dtype does not."""
    model = stirred(checkpoints.load_model(GOLDEN / name, dtype=dtype))
    checkpoints.export_merged(model, tmp_path)
    export.check_weights(model, tmp_path)
    file = next(f for f in sorted(tmp_path.glob("*.safetensors")) if any("mlp" in key for key in load_file(f)))
    tensors = load_file(file)
    key = next(key for key in tensors if "mlp" in key and tensors[key].ndim == 2)
    row = tensors[key][-1]
    row[row.abs().argmax()] *= 1 + 2 * torch.finfo(row.dtype).eps if dtype == "bfloat16" else 1 + 1e-5
    save_file(tensors, file)
    with pytest.raises(ValueError, match=re.escape(f"{file}: {key} is off by ")):
        export.check_weights(model, tmp_path)


def without_adapter(tensors, folder):
    key = "model.layers.1.mlp.up_proj.weight"
    tensors[key] = load_file(SHIPPED / "model.safetensors")[key]


def swapped(tensors, folder):
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].flip(0)


def one_norm(tensors, folder):
    tensors["model.norm.weight"][5] *= 1.001


def no_number(tensors, folder):
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(("edit", "name"), [
    (without_adapter, "model.layers.1.mlp.up_proj.weight"), (swapped, "model.layers.0.self_attn.q_proj.weight"),
    (one_norm, "model.norm.weight"), (no_number, "model.layers.0.mlp.down_proj.weight")])
def test_one_wrong_tensor_is_named(learned, monkeypatch, capsys, edit, name):
    planted(monkeypatch, edit)
    said = export.main(["out", "--run", str(learned)])
    one_line(capsys, said, f"out is kept, but not proved to be what {learned} had learned by iteration 1: "
             f"out/model.safetensors: {name} is off by ")
    assert Path("out/config.json").is_file()


@pytest.mark.filterwarnings("default:.*not finite")
@pytest.mark.parametrize("edit", [without_adapter, swapped, no_number])
def test_its_answers_tell_on_a_wrong_tensor_too(learned, monkeypatch, capsys, edit):
    """Whatever the weights look like: also what reads them, and the formula of merging, may be wrong."""
    planted(monkeypatch, edit)
    monkeypatch.setattr(export, "check_weights", lambda model, out: None)
    assert export.main(["out", "--run", str(learned)]) == 2
    *warned, said = capsys.readouterr().err.splitlines()
    assert len(warned) == (edit is no_number)
    assert re.match("error: out is kept, but not proved.*log-probabilities differ by up to .*, and rounding to float32",
                    said)


def test_a_wrong_config_and_a_wrong_tokenizer_are_told(learned, monkeypatch, capsys):
    def other_rope(tensors, folder):
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", config | {"rope_theta": 123.0, "rope_parameters": None})

    def other_words(tensors, folder):
        shutil.copy(GOLDEN / "tok_sp_llama" / "tokenizer.model", folder)

    def no_words(tensors, folder):
        (folder / "tokenizer.model").unlink()

    for out, edit, words in (("a", other_rope, "a/config.json describes another model"),
                             ("b", other_words, "b is kept, but not proved"), ("c", no_words, "c is kept, but not")):
        with monkeypatch.context() as patch:
            planted(patch, edit)
            capsys.readouterr()
            one_line(capsys, export.main([out, "--run", str(learned)]), words)


def test_what_a_model_does_not_use_is_compared_too(tmp_path):
    """A vision tower, and the head that a tied model has beside its embedding."""
    tensors = load_file(GOLDEN / "gemma3" / "model.safetensors")
    tower, source, out = "vision_tower.x.weight", tmp_path / "in", tmp_path / "out"
    source.mkdir()
    text = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    write_json(source / "config.json", {"model_type": "gemma3", "text_config": text, "vision_config": {}})
    save_file({f"language_model.{name}": t for name, t in tensors.items()} | {
        "language_model.lm_head.weight": tensors["model.embed_tokens.weight"].clone(), tower: torch.ones(3, 3)},
        source / "model.safetensors")
    model = stirred(checkpoints.load_model(source))
    checkpoints.export_merged(model, out)
    export.check_weights(model, out)
    for name, said in ((tower, f"{tower} is not what {source}"), ("language_model.lm_head.weight", "another model")):
        whole = load_file(out / "model.safetensors")
        save_file(whole | {name: whole[name] * 2}, out / "model.safetensors")
        with pytest.raises(ValueError, match=said):
            export.check_weights(model, out)
        save_file(whole, out / "model.safetensors")


def test_a_tie_is_called_rounding(learned, monkeypatch, capsys):
    """Two tokens with the same row of the head: the smallest change decides which is drawn."""
    changed(learned, "runs/tied", model="m")
    shutil.copytree(SHIPPED, "m")
    tensors, config = load_file("m/model.safetensors"), json.loads(Path("m/config.json").read_text())
    head = tensors["model.embed_tokens.weight"].clone()
    head[6:] = head[6]
    save_file(tensors | {"lm_head.weight": head}, "m/model.safetensors")
    write_json(Path("m/config.json"), config | {"tie_word_embeddings": False})

    def nudged(tensors, folder):
        tensors["lm_head.weight"][9] += 1e-6 * tensors["lm_head.weight"][9].sign()

    planted(monkeypatch, nudged)
    monkeypatch.setattr(export, "check_weights", lambda model, out: None)
    assert export.main(["out", "--run", "runs/tied"]) == 0
    assert re.search(r"^differs: to \S+ .*the run says '.*' and the folder '.*' from new token \d+ on, with "
                     r"log-probabilities -[\d.]+ and -[\d.]+ by the run, .*That is a tie, which rounding merged "
                     r"weights to float32 decides otherwise; runs/tied/adapters/iter-001 has", capsys.readouterr().out,
                     re.M)


@pytest.mark.parametrize("gone", ["task", "words", "samples"])
def test_it_is_asked_something_whatever_is_left(learned, capsys, gone):
    """A task file that went elsewhere, or fails; a base without its tokenizer: the run's own rationales are begun."""
    task = {"task": str(Path("mine.py").absolute())} if gone != "words" else {}
    changed(learned, "runs/left", model="m", **task)
    shutil.copytree(SHIPPED, "m")
    Path("mine.py").write_text("raise SystemExit('no such luck')")
    if gone == "words":
        Path("m/tokenizer.model").unlink()
    if gone == "samples":
        shutil.rmtree("runs/left/samples")
    code = export.main(["out", "--run", "runs/left"])
    said = capsys.readouterr()
    assert "note: no prompt.txt" in said.err
    if gone == "samples":
        assert code == 2
        assert "out is kept, but not proved" in said.err
        assert "nothing is left to ask it" in said.err
    else:
        assert code == 0
        assert re.search(f"^{SAME}", said.out, re.M)


def test_it_is_asked_as_the_run_asked(learned, monkeypatch, capsys):
    changed(learned, "runs/chat", model="m", chat=True)
    shutil.copytree(SHIPPED, "m")
    Path("m/chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}=")
    asked, greedy = [], export.greedy
    monkeypatch.setattr(export, "greedy", lambda model, ids, words: asked.append(ids) or greedy(model, ids, words))
    assert export.main(["out", "--run", "runs/chat"]) == 0
    assert asked[0] == asked[1]
    words, problems = checkpoints.load_tokenizer(SHIPPED), load_task("arithmetic", digits="1-2").heldout
    questions = [problems[i * (len(problems) // 3)].question.strip() for i in range(3)]
    assert [words.decode(ids) for ids in asked[0]] == [f"{q}\n=" for q in questions]


def test_one_model_after_the_other_and_where_there_is_room(learned, monkeypatch, capsys):
    rooms = []

    def room(model, device):
        rooms.append((model.dtype, device.type))
        if model.dtype == torch.float32 or full:
            raise ValueError("no room")

    full = False
    monkeypatch.setattr(export, "room", room)
    run = Run.open(learned)
    device, config = export.place(SHIPPED, replace(run.config, device="cuda:99"))
    assert (device.type, config.dtype) == ("cpu", "bfloat16")
    assert rooms == [(torch.float32, "cpu"), (torch.bfloat16, "cpu")]
    full = True
    one_line(capsys, export.main(["out", "--run", str(learned)]), "out is kept, but not proved", "no device has room")
