"""Decoder weights on disk: `config.json` + `model.safetensors`, or shards behind their index. Reads and writes them.

Strict: a tensor that is missing, left over or of another shape is an error that names it. Nothing is unpickled and
nothing is downloaded. The model is built without memory and filled tensor by tensor.
"""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from checkpoints.families import decoder_config, source_name
from star import lora
from star.decoder import Decoder

IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")  # buffers that old files hold and no model needs
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Source:
    """Where a model came from: what is needed to write it, or its adapters, under the names it had."""

    path: Path
    config: dict  # config.json as it stands
    names: dict[str, str]  # the decoder's word -> the file's word


def read_json(path: Path) -> dict:
    """The object in a JSON file. FileNotFoundError or ValueError names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not an object")
    return data


def write_atomically(path: Path, data: bytes) -> None:
    """All of it or nothing: a reader never sees half a file, whenever the program is stopped."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    _put(temporary, path)


def _put(temporary: Path, path: Path) -> None:
    """Rename a finished file into its place, once the disk has it."""
    with open(temporary, "rb") as f:
        os.fsync(f.fileno())
    os.replace(temporary, path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    _put(temporary, path)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it. The index decides where there is one; other files are not looked at."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        path = folder / "model.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"no model.safetensors and no model.safetensors.index.json in {folder}")
        with open_tensors(path) as f:
            return dict.fromkeys(f.keys(), path)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names")
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names the file {name!r}, which is not in its folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"shard {name} is missing in {folder}; {index.name} lists it: fetch it again")
    return {tensor: folder / name for tensor, name in weight_map.items()}


def open_tensors(path: Path):
    """safe_open for torch on the CPU; ValueError names a file that is cut short or no safetensors file."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path} is damaged or cut short ({e}): fetch it again") from None


def load_model(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str | None = None) -> Decoder:
    """The decoder stored in a folder, on `device`.

    dtype None: what config.json says, else what the tensors are. Raises FileNotFoundError or ValueError, with file and
    tensor, for a folder, config or weights that are missing, damaged or do not fit together.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}: it must hold config.json and model.safetensors")
    raw = read_json(folder / "config.json")
    try:
        config, names = decoder_config(raw)
    except ValueError as e:
        raise ValueError(f"{folder}: {e}") from None
    files = tensor_files(folder)
    config = replace(config, tied=config.tied and not _own_head(files, names))
    with torch.device("meta"):
        model = Decoder(config)
    wanted = dtype or raw.get("torch_dtype") or raw.get("dtype") or _dtype_of(files, names)
    if isinstance(wanted, str) and wanted not in DTYPES:
        raise ValueError(f"{folder}: dtype {wanted!r} is not one of {', '.join(DTYPES)}")
    model.to(DTYPES[wanted] if isinstance(wanted, str) else wanted).to_empty(device=device)
    _fill(model, names, files)
    model.source = Source(folder, raw, names)
    return model


def _read(path: Path, name: str) -> Tensor:
    with open_tensors(path) as f:
        return f.get_tensor(name)


def _dtype_of(files: dict[str, Path], names: dict[str, str]) -> torch.dtype:
    embedding = source_name("embed_tokens.weight", names)
    return _read(files[embedding], embedding).dtype if embedding in files else torch.float32


def _own_head(files: dict[str, Path], names: dict[str, str]) -> bool:
    """Does the file of a model that calls itself tied hold a head that differs from its embedding?"""
    embedding = source_name("embed_tokens.weight", names)
    if "lm_head.weight" not in files or embedding not in files:
        return False
    return not torch.equal(_read(files["lm_head.weight"], "lm_head.weight"), _read(files[embedding], embedding))


def _fill(model: Decoder, names: dict[str, str], files: dict[str, Path]) -> None:
    views = {source_name(name, names): view for name, view in model.tensors()}
    spare = {"lm_head.weight"} if model.config.tied else set()
    unexpected = sorted(n for n in files if n not in views and n not in spare and not IGNORED.search(n))
    missing = sorted(set(views) - set(files))
    if missing or unexpected:
        said = [f"{kind} {', '.join(which[:4])}" + (f" and {len(which) - 4} more" if len(which) > 4 else "")
                for kind, which in (("lacks", missing), ("has unexpected", unexpected)) if which]
        folder = next(iter(files.values())).parent if files else "the file"
        raise ValueError(f"{folder} does not fit its config.json: it {' and '.join(said)}")
    for path in sorted(set(files.values())):
        with open_tensors(path) as f:
            inside = set(f.keys())
            for name in (n for n, p in files.items() if p == path and n in views):
                if name not in inside:
                    raise ValueError(f"{path} lacks the tensor {name} that the index promises")
                tensor, view = f.get_tensor(name), views[name]
                if tensor.shape != view.shape:
                    raise ValueError(f"{path}: {name} has shape {list(tensor.shape)}, but config.json asks for "
                                     f"{list(view.shape)}")
                if not tensor.is_floating_point():
                    raise ValueError(f"{path}: {name} is {tensor.dtype}; quantised weights are not supported")
                view.copy_(tensor)


def save_model(model: Decoder, path: str | Path, config: dict) -> None:
    """Write config.json and model.safetensors under the names `config`'s family uses."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    names = decoder_config(config)[1]
    write_tensors(folder / "model.safetensors", {source_name(n, names): t for n, t in model.tensors()})
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def export_merged(model: Decoder, path: str | Path) -> None:
    """A folder with adapters merged into the weights, under the source's names and with its tokenizer files.

    transformers and vLLM load it. The model must come from `load_model`.
    """
    merged = lora.merged(model) if any(lora.lora_modules(model)) else model
    save_model(merged, path, model.source.config | {"tie_word_embeddings": model.config.tied})
    for file in model.source.path.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "generation_config", "chat_template")):
            write_atomically(Path(path) / file.name, file.read_bytes())


def describe(model: Decoder) -> str:
    """For people: "llama, 538,880 parameters, float32"."""
    total = sum(t.numel() for _, t in model.tensors())
    return f"{model.source.config['model_type']}, {total:,} parameters, {str(model.dtype).removeprefix('torch.')}"
