"""JSON and safetensors files: read strictly, written atomically. Nothing is unpickled, nothing is downloaded.

Tensors are read straight into the memory they stay in, some megabytes at a time: what loading needs beside the model is
one chunk a reader. (The safetensors library maps the file, which counts a second time as long as it is open; it writes
ours.)
"""

import contextlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kernels.int8 import quantize
from star.text import once

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
BEYOND = {torch.float64: (1023 + 40) << 52, torch.float32: (127 + 40) << 23, torch.float16: 31 << 10,
          torch.bfloat16: (127 + 40) << 7}  # bits of 2^40, or of what float16 has no numbers for
CHUNK = 2 << 20  # bytes read at a time: small enough that the next look at them finds them in the processor's cache
MOST_HEADER = 10_000_000  # bytes; of 60,000 tensors. JSON takes up to twenty times its size in memory
MOST_JSON = {"tokenizer.json": 64 << 20, "tekken.json": 64 << 20}  # bytes; of all others MOST_HEADER
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict:
    """The object in a JSON file. FileNotFoundError or ValueError names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    with reading(path):
        size, most = path.stat().st_size, MOST_JSON.get(path.name, MOST_HEADER)
        if size > most:
            raise ValueError(f"{path} has {size:,} bytes; more than {most:,} are not read: fetch it again")
        text = path.read_bytes()
    try:
        data = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not an object")
    return data


def read_json_if_there(path: Path) -> dict:
    """As `read_json`; {} if there is no such file."""
    return read_json(path) if path.is_file() else {}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system says of a file that cannot be read names it."""
    try:
        yield
    except OSError as e:
        raise type(e)(e.errno, e.strerror, str(path)) from None


@contextlib.contextmanager
def _atomically(path: Path) -> Iterator[Path]:
    """A file to write instead, which is renamed into its place once the disk has it: nobody ever sees half a file, nor
    finds neither after a power cut. What cannot be written whole is taken away.

    What stands at either name is replaced, a link too: nothing is written where a link leads.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)  # the name is the folder's
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException as e:
        temporary.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.errno and e.filename is None:  # a write that failed does not say where
            raise OSError(e.errno, e.strerror, str(path)) from None
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """All of it or nothing, whenever the program is stopped."""
    with _atomically(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, data: dict) -> None:
    write_atomically(path, (json.dumps(data, indent=2) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, atomically. OSError for a disk that is full and the like."""
    with _atomically(path) as temporary:
        temporary.touch()  # with the rights that new files have here: safetensors' own only their owner can read
        rights = temporary.stat().st_mode
        try:
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary,
                      metadata={"format": "pt"})
        except SafetensorError as e:
            raise OSError(f"{path} could not be written ({e})") from None
        temporary.chmod(rights)


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], sizes: dict[str, int], most: float = math.inf
) -> None:
    """model.safetensors, or files of at most `most` bytes (a larger tensor has one of its own) and their index.

    sizes: the bytes of each of `tensors`, in their order. They come one by one: a shard of them is in memory at a time.
    """
    shards, room = [[]], most
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    names = [WHOLE] if len(shards) == 1 else [
        f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    stream = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, dict(itertools.islice(stream, len(shard))))
    (folder / (INDEX if len(shards) == 1 else WHOLE)).unlink(missing_ok=True)  # of a model that stood there before
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in its file."""

    dtype: str  # the format's word: BF16, F32, I32, ...
    shape: tuple[int, ...]
    start: int  # byte in the file
    size: int  # bytes


class TensorFile:
    """A safetensors file, its header checked against its size. ValueError names the file and what is wrong with it.

    Layout: 8 bytes with the header's length, little-endian; the header, JSON {name: {dtype, shape, data_offsets}}; then
    the tensors without gaps.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with reading(path), open(path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                length = int.from_bytes(f.read(8), "little")
                if size < 8 or length > min(size - 8, MOST_HEADER):
                    raise ValueError(f"it has {size:,} bytes and a header of {length:,}")
                header = json.loads(f.read(length).decode(), object_pairs_hook=once)
            self.entries = _entries(header, 8 + length, size)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise ValueError(f"{path} is damaged or cut short ({e}): fetch it again") from None

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def dtype(self, name: str) -> torch.dtype:
        """ValueError for whole numbers and 8-bit floats: quantised weights are not supported."""
        kind = self.entries[name].dtype
        if kind not in DTYPES:
            raise ValueError(f"{self.path}: {name} has dtype {kind}; quantised weights are not supported: fetch the "
                             "repository with bfloat16, float16 or float32 weights")
        return DTYPES[kind]

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, as it is stored."""
        out = torch.empty(self.entries[name].shape, dtype=self.dtype(name))
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor, order: Tensor | None = None, scale: Tensor | None = None) -> bool:
        """Copy the tensor into `out`, of its shape and any float dtype and device. Are all its numbers finite and below
        2^40? (One flipped bit makes 1e37 of a weight, and what computes with that is NaN.)

        order (rows,): row i of `out` is the file's row order[i]. scale (rows,): for an `out` of int8, the scale of each
        row, which is written too (kernels/int8).
        """
        assert out.shape == self.entries[name].shape, f"{name}: {out.shape} != {self.entries[name].shape}"
        out = out if out.ndim else out[None]  # a single number is one row
        place = None if order is None else torch.argsort(order)  # file's row -> out's row
        straight = out.is_cpu and out.is_contiguous() and out.dtype == self.dtype(name) and place is None
        finite = True
        for row, chunk in self.chunks(name, into=out if straight else None):
            finite &= _finite(chunk)
            at = slice(row, row + len(chunk)) if place is None else place[row : row + len(chunk)].to(out.device)
            if scale is not None:
                chunk, scales = quantize(chunk)
                scale[at] = scales.to(scale)
            if place is not None:
                out[at] = chunk.to(out)
            elif not straight:
                out[at].copy_(chunk)
        return finite

    def chunks(self, name: str, into: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) piece by piece: in a buffer that the next piece overwrites, or in their place in `into`."""
        entry, dtype = self.entries[name], self.dtype(name)
        rows, *rest = entry.shape or (1,)
        row_bytes = entry.size // max(rows, 1)
        most = max(1, CHUNK // max(row_bytes, 1))
        if into is None:
            buffer = torch.empty(min(most, rows), *rest, dtype=dtype)
        with open(self.path, "rb", buffering=0) as f:
            f.seek(entry.start)
            for row in range(0, rows, most):
                n = min(most, rows - row)
                chunk = buffer[:n] if into is None else into[row : row + n]
                _fill(f, memoryview(chunk.reshape(-1).view(torch.uint8).numpy()))
                yield row, chunk


def _finite(chunk: Tensor) -> bool:
    """Are all numbers finite and below 2^40? Infinity and NaN are the largest bit patterns of either sign.

    torch's reductions of bfloat16 take longer than the reading; numpy's of whole numbers are lost beside it.
    """
    if not chunk.numel():
        return True
    bits, beyond = chunk.reshape(-1).view(torch.uint8).numpy(), BEYOND[chunk.dtype]
    signed, unsigned = (bits.view(f"{kind}{chunk.itemsize}").max() for kind in "iu")
    return bool(signed < beyond and unsigned < beyond + (1 << (8 * chunk.itemsize - 1)))


def _fill(file, target: memoryview) -> None:
    done = 0
    while done < len(target):
        n = file.readinto(target[done:])
        if not n:
            raise ValueError(f"{file.name} ended while it was read: it is being changed")
        done += n


def _entries(header: dict, data: int, size: int) -> dict[str, Entry]:
    """The header's tensors; `data` is the first byte behind the header. ValueError says what does not fit."""
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        (start, end), shape = info["data_offsets"], tuple(info["shape"])
        if not all(type(n) is int and n >= 0 for n in (start, end, *shape)):
            raise ValueError(f"{name} has offsets {start}-{end} and shape {list(shape)}")
        entry = Entry(str(info["dtype"]), shape, data + start, end - start)
        known = DTYPES.get(entry.dtype)
        if known is not None and entry.size != math.prod(shape) * known.itemsize:
            raise ValueError(f"{name} has {entry.size:,} bytes for shape {list(shape)} of {entry.dtype}")
        found[name] = entry
    at = data
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != at:
            raise ValueError(f"{name} starts at byte {entry.start:,} where the tensor before it ends at {at:,}")
        at += entry.size
    if at != size:
        raise ValueError(f"its tensors end at byte {at:,}, the file at {size:,}")
    return found


def tensor_files(folder: Path) -> dict[str, TensorFile]:
    """Tensor name -> the file that holds it: model.safetensors, as in the reference, else what the index names. Other
    files are not looked at.

    FileNotFoundError or ValueError for files that are missing, stand in another folder, or disagree with the index.
    Warns of shards beside a whole file, which an index names too.
    """
    index, whole = folder / INDEX, folder / WHOLE
    if not index.is_file() or (whole.is_file() and f'"{WHOLE}"' not in index.read_text(errors="replace")):
        if index.is_file() and any(folder.glob("model-*.safetensors")):
            warnings.warn(f"{folder} has {WHOLE} and shards: {WHOLE} is read, as transformers does; if the shards are "
                          "the model, take it away", stacklevel=3)
        file = TensorFile(_single(folder))
        return dict.fromkeys(file.entries, file)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names")
    files = {name: TensorFile(_inside(index, name)) for name in sorted(set(weight_map.values()))}
    for tensor, name in weight_map.items():
        if tensor not in files[name]:
            raise ValueError(f"{folder / name} lacks the tensor {tensor} that the index promises")
    for name, file in files.items():
        for tensor in file.entries:
            if weight_map.get(tensor) != name:
                other = f"stands in {weight_map[tensor]} too" if tensor in weight_map else "is not in the index"
                raise ValueError(f"{file.path} holds the tensor {tensor}, which {other}: fetch the folder again")
    return {tensor: files[name] for tensor, name in weight_map.items()}


def _single(folder: Path) -> Path:
    path = folder / WHOLE
    if path.is_file():
        return path
    if path.is_symlink():
        raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which is not there: fetch it again")
    pickled = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth") for p in folder.glob(kind))
    if pickled:
        raise FileNotFoundError(
            f"{folder} has {pickled[0]} but no safetensors; pickled weights can run code and are not read. Convert "
            "them where you trust them: python -c \"from transformers import AutoModelForCausalLM as M; "
            "M.from_pretrained('IN', dtype='auto').save_pretrained('OUT')\"")
    raise FileNotFoundError(f"no {WHOLE} and no {INDEX} in {folder}")


def _inside(index: Path, name: str) -> Path:
    """The shard's path, if its name is one in this folder; it may be a link to anywhere: weights are only read."""
    path = index.parent / name
    if Path(name).name != name:
        raise ValueError(f"{index} names the file {name!r}, which is not in its folder")
    if not path.is_file():
        what = f"is a link to {os.readlink(path)}, which is not there" if path.is_symlink() else "is missing"
        raise FileNotFoundError(f"shard {name} {what}; {index} lists it: fetch it again")
    return path
