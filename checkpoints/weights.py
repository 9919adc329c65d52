"""Decoder weights on disk: `config.json` + `model.safetensors`, or shards behind their index. Reads and writes them.

Strict: a tensor that is missing, left over or of another shape is an error that names it. The model is built without
memory and filled tensor by tensor.
"""

import copy
import itertools
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoints.families import decoder_config
from checkpoints.files import DTYPES, TensorFile, read_json, tensor_files, write_atomically, write_json, write_shards
from checkpoints.layout import Layout
from star import lora
from star.decoder import Decoder, DecoderConfig, Linear, Norm
from star.device import check_dtype
from star.positions import rotary_table

COMPANIONS = ("tokenizer", "special_tokens", "added_tokens", "vocab.", "merges.", "tekken", "generation_config",
              "chat_template", "preprocessor_config", "processor_config")  # files that an export takes along
SCORE = ("score.weight", "score.bias")  # the head of a judge: checkpoints/reward reads it
MOST_SHARD = 5 * 10**9  # bytes
MOST_HEAD = 1 << 16  # entries of a head
READERS = min(4, os.cpu_count() or 1)  # threads that read: most of the time goes into the pages of new memory


@dataclass(frozen=True)
class Source:
    """Where a model came from: what is needed to write it, or its adapters, under the names it had."""

    path: Path
    config: dict  # config.json as it stands
    layout: Layout
    files: dict[str, TensorFile]  # tensor name -> the file that holds it


def load_config(path: str | Path) -> tuple[dict, DecoderConfig, Layout]:
    """(config.json, what it means, how the files are laid out). FileNotFoundError or ValueError names the folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}: it must hold config.json and model.safetensors")
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds adapters, not a model: give the folder of their base model")
    raw = read_json(folder / "config.json")
    try:
        config, layout = decoder_config(raw)
        _try(config)
        return raw, config, layout
    except ValueError as e:
        raise ValueError(f"{folder}: {e}") from None
    except (TypeError, AttributeError, AssertionError, ArithmeticError, LookupError, RuntimeError) as e:
        said = " ".join(str(e).split())[:200]  # a value of another kind; torch adds pages to what it says
        raise ValueError(f"{folder}/config.json does not make sense ({said})") from None


@torch.no_grad()
def _try(config: DecoderConfig) -> None:
    """Does a small decoder with these factors and ropes, a layer each, say numbers? ValueError if it does not."""
    ropes = range(len(config.ropes))
    if config.norm_eps < 0 or config.head_dim > MOST_HEAD or config.rot_dim > config.head_dim or config.rot_dim < 0:
        raise ValueError(f"config.json makes norm_eps {config.norm_eps:g}, head_dim {config.head_dim:,} and rot_dim "
                         f"{config.rot_dim:,}, which is no model")
    model = Decoder(replace(config, vocab=4, d_model=8, n_heads=1, n_kv=1, d_ff=8, n_layers=max(1, len(ropes)),
                            rope_of=tuple(ropes), windows=()))
    for p in model.parameters():
        p.copy_(torch.linspace(-0.5, 1, p.numel()).view(p.shape))
    ids = torch.tensor([[0, 1, 2]])
    tables = [rotary_table(rope, config.rot_dim or config.head_dim, ids, torch.float32, long)
              for rope in config.ropes for long in (False, True)]
    said = [model(ids), *itertools.chain.from_iterable(tables)]  # attention on a CPU makes 0 of NaN, and hides it
    if not all(t.isfinite().all() for t in said):
        raise ValueError("with the numbers of config.json (rope, norm, scales) a model computes no numbers: fetch it "
                         "again")


def outline(path: str | Path, dtype: torch.dtype | str | None = None, judge: bool = False) -> Decoder:
    """The decoder of a folder without its weights, on torch's "meta" device: what it is and what it would need.

    judge: a folder whose model has a score head instead of the vocabulary's (checkpoints/reward); its decoder computes
    hidden states only. Raises what `load_model` raises, but for damage inside the weights themselves.
    """
    folder = Path(path)
    raw, config, layout = load_config(folder)
    files = tensor_files(folder)
    layout, files = layout.rooted(files), {n: f for n, f in files.items() if not re.search(layout.buffers, n)}
    if "score.weight" in files and not judge:
        raise ValueError(f"{folder} is a judge: it has a score head and no vocabulary's; give it as --reward")
    _check_sizes(folder, config, files)
    config = replace(config, tied=judge or (config.tied and not _own_head(files, layout)),  # tied: no head of its own
                     bias_head=config.bias_head and not judge)
    with torch.device("meta"):
        model = Decoder(config).to(_dtype(folder, raw, dtype) or _dtype_of(files, layout))
    model.source = Source(folder, raw, layout, files)
    _check(model)
    return model


def load_model(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str | None = None) -> Decoder:
    """The decoder stored in a folder, on `device`.

    dtype None: what config.json says, else what the tensors are. Raises FileNotFoundError or ValueError, with file and
    tensor, for a folder, config or weights that are missing, damaged or do not fit together. Warns of numbers that are
    not finite.
    """
    return fill(outline(path, dtype), device)


def fill(model: Decoder, device: str | torch.device, each: Callable[[nn.Module], None] | None = None) -> Decoder:
    """Give an outline its memory on `device`, and read its weights there in the dtype that the outline has now.

    Weights in 8 bits (star/lora) are rounded piece by piece, so that they are never there twice. each: is given every
    block once it is filled, and may put less in its place before the next is made (star/shard). Adapters that the
    outline has get memory, and no values yet.
    """
    device = torch.device(device)
    check_dtype(device, model.dtype)
    if each is None:
        return _fill(model, device)
    for name in [name for name, _ in model.named_children() if name != "layers"]:
        _fill(model, device, name)
    for i, block in enumerate(model.layers):
        _fill(model, device, f"layers.{i}")
        each(block)
    return model


def _fill(model: Decoder, device: torch.device, inside: str = "") -> Decoder:
    """`fill` of one module, by its path."""
    for module in list(model.get_submodule(inside).modules()):  # as to_empty does, which imports half a second of sympy
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device), p.requires_grad))
    files, layout = model.source.files, model.source.layout
    views = {layout.name(name): (name, view) for name, view in model.tensors(inside=inside)}
    scales = dict(model.tensors(lora.row_scales, inside))
    names = sorted(views, key=lambda n: (files[n].path, files[n].entries[n].start))  # as they lie on the disk

    def read(name: str) -> bool:
        canonical, view = views[name]
        scale = scales[canonical] if view.dtype == torch.int8 else None
        return files[name].read_into(name, view, layout.order(canonical), scale)

    readers = 1 if device.type == "mps" else READERS  # several threads crash Metal (pytorch issue 197805)
    with ThreadPoolExecutor(readers) as pool:
        for name, finite in zip(names, pool.map(read, names), strict=True):
            if not finite:
                warnings.warn(f"{files[name].path}: {name} holds numbers that are not finite, or beyond 2^40: fetch it "
                              "again, or expect nonsense", stacklevel=4)
    return model


def _dtype(folder: Path, raw: dict, given: torch.dtype | str | None) -> torch.dtype | None:
    """What the caller or config.json says; None if neither does."""
    wanted = given or next((part[key] for part, key in _dtype_keys(raw)), None)
    if wanted is None or isinstance(wanted, torch.dtype):
        return wanted
    names = {_name(dtype): dtype for dtype in DTYPES.values()}
    if not isinstance(wanted, str) or wanted not in names:
        raise ValueError(f"{folder}: dtype {wanted!r} is not one of {', '.join(names)}")
    return names[wanted]


def _dtype_keys(config: dict) -> list[tuple[dict, str]]:
    """(dictionary, key) of each place where a config.json says its dtype, the one that counts first."""
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    return [(part, key) for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]


def name_dtype(config: dict, dtype: torch.dtype) -> None:
    """Write this dtype wherever a config.json says one."""
    for part, key in _dtype_keys(config):
        part[key] = _name(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_of(files: dict[str, TensorFile], layout: Layout) -> torch.dtype:
    embedding = layout.name("embed_tokens.weight")
    return files[embedding].dtype(embedding) if embedding in files else torch.float32


def _own_head(files: dict[str, TensorFile], layout: Layout) -> bool:
    """Does the file of a model that calls itself tied hold a head that differs from its embedding?"""
    names = layout.name("lm_head.weight"), layout.name("embed_tokens.weight")
    if not all(name in files for name in names):
        return False
    head, embedding = (files[name].entries[name] for name in names)
    if head.shape != embedding.shape:
        return True
    chunks = zip(*(files[name].chunks(name) for name in names), strict=True)
    return not all(torch.equal(a, b) for (_, a), (_, b) in chunks)


def _check_sizes(folder: Path, config: DecoderConfig, files: dict[str, TensorFile]) -> None:
    """Are there files for a decoder of this size? ValueError, before anything is made as large as config.json says."""
    there = sum(file.entries[name].size for name, file in files.items())
    most = config.d_model * max(config.vocab, config.d_ff, config.n_heads * config.head_dim)
    if most > max(there, 1 << 24) or config.n_layers > max(len(files), 100):
        raise ValueError(f"{folder}: config.json asks for {config.n_layers:,} layers and a matrix of {most:,} numbers, "
                         f"but the files hold {len(files):,} tensors of {there:,} bytes: fetch the folder again")


def _check(model: Decoder) -> None:
    """Does every tensor have its place, and every place its tensor? ValueError names what does not fit."""
    folder, layout, files = model.source.path, model.source.layout, model.source.files
    views = {layout.name(name): view for name, view in model.tensors()}
    spare = {layout.name("lm_head.weight"), *SCORE} if model.config.tied else set()
    left_over = sorted(n for n in files if n not in views and n not in spare and not re.search(layout.ignored, n))
    missing = sorted(set(views) - set(files))
    if missing or left_over:
        said = [f"{kind} {', '.join(which[:4])}" + (f" and {len(which) - 4} more" if len(which) > 4 else "")
                for kind, which in (("lacks", missing), ("has unexpected", left_over)) if which]
        raise ValueError(f"{folder} does not fit its config.json: it {' and '.join(said)}")
    for name, view in views.items():
        files[name].dtype(name)
        if (shape := files[name].entries[name].shape) != view.shape:
            raise ValueError(f"{files[name].path}: {name} has shape {list(shape)}, but config.json asks for "
                             f"{list(view.shape)}")


def named_tensors(model: Decoder, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """(the file's name, tensor in the file's order of rows) of all weights, adapters merged in one linear at a time.

    Where the model has 8 bits of them, they are read again from where it was loaded: what is written was not rounded.
    """
    adapted = lora.adapted(model)
    for canonical, view in model.tensors() if lora.is_int8(model) else model.tensors(lora.merged_weight):
        if view.dtype == torch.int8:
            view = _unrounded(model, canonical, view, adapted.get(canonical))
        yield layout.name(canonical), layout.rows_for_file(canonical, view)


@torch.no_grad()
def _unrounded(model: Decoder, canonical: str, view: Tensor, adapter: tuple[float, Tensor, Tensor] | None) -> Tensor:
    """W + scale B A of a linear whose weight the model has in 8 bits, W from its file."""
    name = model.source.layout.name(canonical)
    wide = torch.empty(view.shape, dtype=model.dtype, device=view.device)
    model.source.files[name].read_into(name, wide, model.source.layout.order(canonical))
    if adapter is None:
        return wide
    scale, A, B = adapter
    return (wide.to(A.dtype) + scale * (B @ A)).to(wide.dtype)


def save_model(model: Decoder, path: str | Path, config: dict) -> None:
    """Write config.json and model.safetensors under the names `config`'s family uses."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(named_tensors(model, decoder_config(config)[1]))
    write_shards(folder, tensors.items(), {name: t.nbytes for name, t in tensors.items()})
    write_json(folder / "config.json", config)


def export_merged(model: Decoder, path: str | Path, most_shard: int = MOST_SHARD) -> None:
    """Write a folder that transformers, vLLM and PEFT load: the model of `load_model`, its adapters merged in.

    Adapters beside weights of 8 bits are merged into those that the source's files hold, which were not rounded.
    Tensors stand under the source's names, in files of at most `most_shard` bytes (a larger tensor has one of its own);
    what the decoder does not use (a vision tower) and the tokenizer's files are copied; config.json is the source's,
    byte for byte unless the dtype or the tying of the head differs. It is written last and makes the folder whole.
    Raises ValueError for the source's own folder.
    """
    folder, source = Path(path), model.source
    if folder.resolve() == source.path.resolve():
        raise ValueError(f"{folder} is the folder that the model was loaded from: export it to another")
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    views = {source.layout.name(n): view for n, view in model.tensors()}
    others = {n: f for n, f in source.files.items() if n not in views}  # a vision tower, a tied head
    head, embedding = (source.layout.name(n) for n in ("lm_head.weight", "embed_tokens.weight"))
    sizes = {n: v.numel() * model.dtype.itemsize for n, v in views.items()} | {
        n: views[embedding].nbytes if n == head else f.entries[n].size for n, f in others.items()}
    stream = itertools.chain(named_tensors(model, source.layout), (
        (n, views[embedding].clone() if n == head else f.read(n)) for n, f in others.items()))
    write_shards(folder, stream, sizes, most_shard)
    copy_companions(source.path, folder)
    write_atomically(folder / "config.json", _exported_config(model))


def clear(folder: Path) -> None:
    """Take away what makes a folder a model, before another is written there."""
    for stale in (folder / "config.json", *folder.glob("model*.safetensors"), *folder.glob("model*.index.json")):
        stale.unlink(missing_ok=True)


def copy_companions(source: Path, folder: Path) -> None:
    """The tokenizer's files and what else stands beside a model."""
    beside = [file for file in source.iterdir() if file.name.startswith(COMPANIONS)]
    for file in [*beside, *source.glob("additional_chat_templates/*.jinja")]:
        to = folder / file.relative_to(source)
        if file.is_file():
            if to.parent != folder and to.parent.is_symlink():
                raise ValueError(f"{to.parent} is a link: nothing is written where it leads; take it away")
            to.parent.mkdir(exist_ok=True)
            write_atomically(to, file.read_bytes())


def _exported_config(model: Decoder) -> bytes:
    """The source's config.json with the dtype and the tying that the model has now; its own bytes if they agree."""
    path, raw = model.source.path / "config.json", model.source.config
    new = copy.deepcopy(raw)
    name_dtype(new, model.dtype)
    if decoder_config(raw)[0].tied != model.config.tied:
        new["tie_word_embeddings"] = model.config.tied
    return path.read_bytes() if new == raw else (json.dumps(new, indent=2) + "\n").encode()


def describe(model: Decoder) -> str:
    """For people: "llama, 538,880 parameters, float32"."""
    total = sum(p.numel() for m in model.modules() if isinstance(m, Linear | Norm) for p in (m.weight, m.bias)
                if p is not None)
    bits = ", linears in 8 bits" if lora.is_int8(model) else ""
    return f"{model.source.config['model_type']}, {total:,} parameters, {_name(model.dtype)}{bits}"
