"""Files: read strictly, written whole. Each refusal is one line that names the file and what is wrong with it."""

import json
import math
import os
import resource
import shutil
import struct
import time

import pytest
import torch
from conftest import GOLDEN, refused
from safetensors.torch import load_file, save_file

from checkpoints import files
from checkpoints.files import (
    INDEX,
    WHOLE,
    TensorFile,
    read_json,
    tensor_files,
    write_atomically,
    write_json,
    write_shards,
    write_tensors,
)
from star.text import once


def raw(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def shards(tmp_path):
    """A writable copy of a sharded golden."""
    for file in (GOLDEN / "llama2").glob("model*"):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_reads_what_the_library_writes(tmp_path, monkeypatch, dtype, chunk):
    monkeypatch.setattr(files, "CHUNK", chunk)
    tensors = {name: torch.randn(shape).to(dtype)
               for name, shape in (("a", (7, 5)), ("b", (3,)), ("c", ()), ("d", (0, 4)), ("e", (2, 3, 4)))}
    save_file(tensors, tmp_path / "t.safetensors")
    file = TensorFile(tmp_path / "t.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name), tensor)
        wide = torch.empty(tensor.shape, dtype=torch.float64)
        assert file.read_into(name, wide)
        assert torch.equal(wide, tensor.double())
    pieces = [piece.nbytes for _, piece in file.chunks("a")]
    assert max(pieces) <= max(chunk, 5 * dtype.itemsize)  # at least a row at a time, and no more than was asked for
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    mixed = torch.empty(7, 5, dtype=dtype)
    file.read_into("a", mixed, order)
    assert torch.equal(mixed, tensors["a"][order])


def test_numbers_that_are_not_finite_are_noticed(tmp_path):
    for odd in (math.nan, math.inf, -math.inf):
        for dtype in (torch.float32, torch.bfloat16):
            tensor = torch.zeros(30, 4, dtype=dtype)
            tensor[17, 2] = odd
            save_file({"a": tensor, "b": torch.zeros(3)}, tmp_path / "t.safetensors")
            file = TensorFile(tmp_path / "t.safetensors")
            assert not file.read_into("a", torch.empty(30, 4))
            assert file.read_into("b", torch.empty(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_no_weight_is_are_noticed_too(tmp_path, dtype):
    """One flipped bit makes 1e37 of 0.1: squared it is infinite, and NaN thereafter. 65504 is float16's largest."""
    for number, sound in ((1e10, True), (-1e10, True), (1.2e12, False), (-1.2e12, False), (1e37, False)):
        if dtype == torch.float16:
            number, sound = math.copysign(65504, number), True
        save_file({"a": torch.tensor([0.0, number, -0.1]).to(dtype)}, tmp_path / "t.safetensors")
        assert TensorFile(tmp_path / "t.safetensors").read_into("a", torch.empty(3)) == sound


@pytest.mark.parametrize(("data", "why"), [
    (b"", "0 bytes"),
    (b"\x01\x02", "2 bytes"),
    (b"\xff" * 8 + b"{}", "header of 18,446,744"),
    (raw(b"{]"), "Expecting"),
    (raw(b"[1]"), "damaged"),
    (raw(b"\xff\xfe"), "utf-8"),
    (raw({"a": entry(0, 4, [1])}, b""), "tensors end at byte"),
    (raw({"a": entry(0, 4, [1])}, b"\0" * 9), "tensors end at byte"),
    (raw({"a": entry(0, 4, [2])}, b"\0" * 4), "4 bytes for shape [2]"),
    (raw({"a": entry(0, 4, [-1])}, b"\0" * 4), "shape [-1]"),
    (raw({"a": entry(4, 0, [1])}, b"\0" * 4), "bytes for shape"),
    (raw({"a": entry(0, 4, [1]), "b": entry(2, 6, [1])}, b"\0" * 6), "starts at byte"),
    (raw({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"\0" * 12), "starts at byte"),
    (raw({"a": {"dtype": "F32"}}), "damaged"),
    (raw({"a": entry("0", 4, [1])}, b"\0" * 4), "damaged"),
    (raw(b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), b"\0" * 4), "'a' stands in it twice"),
])
def test_damaged_tensor_files(tmp_path, data, why):
    path = tmp_path / "t.safetensors"
    path.write_bytes(data)
    text = refused(TensorFile, path)
    assert "t.safetensors is damaged or cut short" in text
    assert why in text


@pytest.mark.parametrize("dtype", ["I32", "I8", "F8_E4M3", "U8"])
def test_quantised_weights_are_refused_by_name(tmp_path, dtype):
    shape = [1] if dtype == "I32" else [4]
    (tmp_path / "t.safetensors").write_bytes(raw({"a": entry(0, 4, shape, dtype)}, b"\0" * 4))
    assert f"a has dtype {dtype}; quantised" in refused(TensorFile(tmp_path / "t.safetensors").read, "a")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "t.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:200])
    assert "ended while it was read" in refused(file.read, "a")


def test_the_index_decides(shards):
    (shards / "stray.safetensors").write_bytes(b"not looked at")
    every = {k: v for file in sorted(shards.glob("model-*")) for k, v in load_file(file).items()}
    found = tensor_files(shards)
    assert found.keys() == every.keys()
    assert all(torch.equal(file.read(name), every[name]) for name, file in found.items())


@pytest.mark.parametrize(("name", "why"), [
    ("../other.safetensors", "not in its folder"), ("/etc/passwd", "not in its folder"), ("a/b", "not in its folder"),
    ("gone.safetensors", "shard gone.safetensors is missing")])
def test_an_index_may_not_lead_elsewhere(shards, name, why):
    edit_index(shards, lambda m: m.update({"model.norm.weight": name}))
    assert why in refused(tensor_files, shards, error=(ValueError, FileNotFoundError))


def test_a_shard_may_be_a_link(tmp_path):
    """Into the cache of the Hub, or to another disk."""
    cache = tmp_path / "models--a--b"
    folder, blobs = cache / "snapshots" / "0123", cache / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted((GOLDEN / "llama2").glob("model*"))):
        shutil.copy(file, blobs / str(i))
        (folder / file.name).symlink_to(f"../../blobs/{i}")
    assert len(tensor_files(folder)) == len(tensor_files(GOLDEN / "llama2"))
    link = folder / "model-00001-of-00003.safetensors"
    link.unlink()
    shutil.copy(GOLDEN / "llama2" / link.name, tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    assert len(tensor_files(folder)) == len(tensor_files(GOLDEN / "llama2"))
    (tmp_path / "elsewhere").unlink()
    said = f"shard {link.name} is a link to {tmp_path / 'elsewhere'}, which is not there"
    assert said in refused(tensor_files, folder, error=FileNotFoundError)
    (folder / INDEX).unlink()
    (folder / WHOLE).symlink_to("gone")
    assert "is a link to gone, which is not there" in refused(tensor_files, folder, error=FileNotFoundError)


@pytest.mark.parametrize("index", ['{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "{", ""])
def test_a_whole_file_counts_more_than_an_index(tmp_path, index):
    """As in the reference: a stale index from before is not read, even if its shards are still there."""
    save_file({"b": torch.ones(2)}, tmp_path / WHOLE)
    (tmp_path / INDEX).write_text(index)
    assert list(tensor_files(tmp_path)) == ["b"]
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.warns(UserWarning, match=f"has {WHOLE} and shards: {WHOLE} is read"):
        assert list(tensor_files(tmp_path)) == ["b"]


def test_an_index_that_names_the_whole_file_decides(tmp_path):
    save_file({"b": torch.ones(2)}, tmp_path / WHOLE)
    save_file({"a": torch.ones(2)}, tmp_path / "rest.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"b": WHOLE, "a": "rest.safetensors"}}))
    assert sorted(tensor_files(tmp_path)) == ["a", "b"]


def test_shards_and_whole_files_replace_each_other(tmp_path):
    for most, names in ((16, {"a", "b"}), (math.inf, {"c"}), (16, {"a", "b"})):
        tensors = {name: torch.ones(4) for name in names}
        write_shards(tmp_path, tensors.items(), dict.fromkeys(tensors, 16), most)
        assert set(tensor_files(tmp_path)) == names


def test_nothing_is_written_where_a_link_leads(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("a.json", "a.json.tmp", "t.safetensors", "t.safetensors.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_json(tmp_path / "a.json", {"a": 1})
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)})
    assert victim.read_text() == "mine"
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert not (tmp_path / "t.safetensors").is_symlink()


def test_a_tensor_in_two_shards_or_in_none(shards):
    first, second = sorted(shards.glob("model-*"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor}, second)
    assert f"{name}, which stands in {first.name} too" in refused(tensor_files, shards)
    save_file(load_file(second) | {"new": tensor}, second)
    shutil.copy(GOLDEN / "llama2" / second.name, second)
    save_file(load_file(second) | {"new": tensor}, second)
    assert "new, which is not in the index" in refused(tensor_files, shards)
    shutil.copy(GOLDEN / "llama2" / second.name, second)
    edit_index(shards, lambda m: m.update({"promised": second.name}))
    assert "lacks the tensor promised" in refused(tensor_files, shards)


def test_an_index_that_is_none(shards):
    (shards / INDEX).write_text('{"weight_map": {"a": 3}}')
    assert "no weight_map" in refused(tensor_files, shards)
    (shards / INDEX).write_text('{"weight_map": {"a": "x", "a": "y"}}')
    assert "'a' stands in it twice" in refused(tensor_files, shards)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    assert "no model.safetensors" in refused(tensor_files, tmp_path, error=FileNotFoundError)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    text = refused(tensor_files, tmp_path, error=FileNotFoundError)
    assert "pytorch_model.bin but no safetensors" in text
    assert "save_pretrained" in text


def test_json_that_is_none(tmp_path):
    path = tmp_path / "a.json"
    assert "no a.json" in refused(read_json, path, error=FileNotFoundError)
    deep = "[" * 10**5
    for text, why in (("{", "not JSON"), ("[1]", "holds a list"), ('{"a": 1, "a": 2}', "twice"), (deep, "not JSON")):
        path.write_text(text)
        assert why in refused(read_json, path)


def test_writes_leave_nothing_behind(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {"a": torch.arange(6.0).view(2, 3).T})
    write_atomically(tmp_path / "x", b"1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.safetensors", "x"]
    assert torch.equal(load_file(tmp_path / "t.safetensors")["a"], torch.arange(6.0).view(2, 3).T)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_have_the_rights_that_the_user_gives_new_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(2)})
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o666 & ~mask}


def test_a_full_disk_is_one_line_and_what_stood_there_stays(tmp_path):
    """Here a limit on the size of files: safetensors' own error is no OSError."""
    file = tmp_path / "t.safetensors"
    write_tensors(file, {"a": torch.ones(3)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        refused(write_tensors, file, {"a": torch.zeros(1000)}, words=(str(file),), error=OSError)
        refused(write_atomically, tmp_path / "x", bytes(2000), error=OSError)
        refused(write_shards, tmp_path, {"a": torch.zeros(1000)}.items(), {"a": 4000}, error=OSError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    assert load_file(file)["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(5, "Input/output error")])
def test_a_write_that_is_stopped_leaves_no_half(tmp_path, monkeypatch, stop):
    def stopped(fd):
        raise stop

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_atomically(tmp_path / "x", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"old"}


def test_a_name_outlives_a_power_cut(tmp_path, monkeypatch):
    """First the file is on the disk, then it gets its name, then its folder is on the disk."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("rename") or replace(a, b))
    write_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(2)})
    write_json(tmp_path / "a.json", {})
    assert done == [step for name in ("t.safetensors", "a.json")
                    for step in (f"{tmp_path}/{name}.tmp", "rename", str(tmp_path))]


def test_files_too_large_to_be_what_they_are_called(tmp_path):
    """Sparse files: nothing of them is read."""
    for name, most in (("config.json", 10_000_000), ("tokenizer.json", 64 << 20)):
        with open(tmp_path / name, "wb") as f:
            f.truncate(1 << 40)
        refused(read_json, tmp_path / name, words=(name, "1,099,511,627,776 bytes", f"more than {most:,}"))


def test_a_file_that_the_system_does_not_read_is_named(tmp_path, monkeypatch):
    def broken(self):
        raise OSError(5, "Input/output error")

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(type(tmp_path), "read_bytes", broken)
    refused(read_json, tmp_path / "a.json", words=("Input/output error", str(tmp_path / "a.json")), error=OSError)


def test_a_key_that_stands_twice_is_found_in_one_pass(tmp_path):
    """Counting each key took ten hours of 10^6."""
    pairs = [(str(i), 0) for i in range(200_000)]
    begun = time.process_time()
    assert refused(once, [*pairs, ("199999", 1)], words=("'199999' stands in it twice",))
    assert time.process_time() - begun < 1
