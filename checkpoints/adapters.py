"""LoRA adapters on disk, in PEFT's layout: `adapter_config.json` + `adapter_model.safetensors`.

Tensors are `base_model.model.` + the module's path in the base + `.lora_A.weight` (r, in) | `.lora_B.weight` (out, r);
W' = W + s B A with s = alpha / r, or alpha / sqrt(r) with use_rslora; rank_pattern and alpha_pattern override r and
alpha by module. What PEFT can do beyond that (DoRA, fully trained modules, embeddings, ...) is refused by name.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.families import Layout
from checkpoints.files import TensorFile, read_json, write_json, write_tensors
from star import lora
from star.decoder import Decoder

PREFIX = "base_model.model."
BEYOND = ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "layer_replication", "trainable_token_indices",
          "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
          "velora_config", "monteclora_config", "megatron_config")  # settings of PEFT that change what is computed
NEW_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's weights


def adapters(model: Decoder) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(part, A (r, in), B (out, r)) of each adapted linear: "layers.0.self_attn.q_proj", ..., as `linear_parts`."""
    for path, module in lora.lora_modules(model):
        for part, A, B in module.adapters():
            yield f"{path.rpartition('.')[0]}.{part}", A, B


def _keys(module: str) -> list[str]:
    """What the file calls A and B of a module."""
    return [f"{PREFIX}{module}.lora_{letter}.weight" for letter in "AB"]


def save_adapter(model: Decoder, path: str | Path) -> None:
    """Write the model's adapters into a folder. The config is written last: it makes the folder whole.

    Where parts have several ranks, rank_pattern and alpha_pattern say so. ValueError if there are no adapters.
    """
    scale = next((module.scale for _, module in lora.lora_modules(model)), None)
    if scale is None:
        raise ValueError("the model has no adapters to save: add_lora first")
    folder, layout = Path(path), model.source.layout
    folder.mkdir(parents=True, exist_ok=True)
    tensors, ranks = {}, {}
    for part, A, B in adapters(model):
        name = layout.module_names(part)[0]
        tensors |= zip(_keys(name), (A, layout.rows_for_file(part, B)), strict=True)
        ranks[name] = A.shape[0]
    rank = Counter(ranks.values()).most_common(1)[0][0]
    odd = {name: r for name, r in ranks.items() if r != rank}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model.source.path),
        "r": rank, "lora_alpha": _whole(scale * rank), "target_modules": _targets(list(ranks), model, layout),
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None,
        "use_rslora": False, "use_dora": False, "rank_pattern": odd,
        "alpha_pattern": {name: _whole(scale * r) for name, r in odd.items()},
    }
    write_tensors(folder / "adapter_model.safetensors", tensors)
    write_json(folder / "adapter_config.json", config)


def _whole(x: float) -> int | float:
    return int(x) if x == int(x) else x


def _targets(names: list[str], model: Decoder, layout: Layout) -> list[str]:
    """Last words of the adapted modules where each stands for one module in every block, else their whole paths.

    Last words would also hit a vision tower's modules, which are called the same.
    """
    words = Counter(name.rpartition(".")[2] for name in names)
    everywhere = set(words.values()) == {model.config.n_layers} and not layout.module_root
    return sorted(words) if everywhere else sorted(names)


def load_adapter(model: Decoder, path: str | Path) -> None:
    """Put the adapters of a PEFT folder on the model, live at once; adapters it has are replaced.

    Raises FileNotFoundError or ValueError for a folder that is not there, is damaged, uses more than plain LoRA, or
    does not fit this model. The model is untouched then.
    """
    folder, layout = Path(path), model.source.layout
    config = _read_config(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {folder}" + (
            "; adapter_model.bin can run code and is not read: save it again as safetensors"
            if (folder / "adapter_model.bin").is_file() else ""))
    tensors = TensorFile(file)
    left = dict.fromkeys(tensors.entries)
    shapes = {name.removesuffix(".weight"): view.shape for name, view in model.tensors()}
    ranks, pairs = {}, {}
    for part in lora.linear_parts(model):
        name = next((n for n in layout.module_names(part) if any(key in left for key in _keys(n))), None)
        if name is None:
            continue
        rank, scale = _rank_and_scale(config, name)
        keys = _keys(name)
        out, n_in = shapes[part]
        found = [tensors.entries[key].shape if key in tensors else None for key in keys]
        if found != [(rank, n_in), (out, rank)]:
            raise ValueError(f"{file}: {name} does not fit a linear of shape [{out}, {n_in}] at rank {rank}: it was "
                             "made for another base model")
        A, B = (tensors.read(key) for key in keys)
        order = layout.order(part)
        ranks[part], pairs[part] = rank, (A, B if order is None else B[order], scale)
        for key in keys:
            del left[key]
    if left or not pairs:
        stray = next(iter(left), "no tensor")
        if "lora_embedding" in stray or "lm_head" in stray or "embed" in stray:
            raise ValueError(f"{file} adapts the embedding or the head ({stray}), which is not supported: only the "
                             "linears of the blocks are")
        raise ValueError(f"{file} was made for another base model: {stray} has no place in this one")
    _attach(model, ranks, pairs, config)


def _attach(
    model: Decoder, ranks: dict[str, int], pairs: dict[str, tuple[Tensor, Tensor, float]], config: dict
) -> None:
    """All adapters of a model have one scale; a module whose scale differs gets the quotient into its B."""
    scale = _rank_and_scale(config | {"rank_pattern": {}, "alpha_pattern": {}}, "")[1]
    lora.remove_lora(model)
    lora.attach(model, ranks, scale)
    with torch.no_grad():
        for part, A, B in adapters(model):
            a, b, own = pairs[part]
            A.copy_(a)
            B.copy_(b if own == scale else b.to(B.dtype) * (own / scale))


def _read_config(folder: Path) -> dict:
    config = read_json(folder / "adapter_config.json")
    beyond = [k for k in BEYOND if config.get(k)] + ["bias"] * (config.get("bias", "none") != "none")
    if config.get("peft_type") != "LORA" or beyond:
        what = f"LoRA with {', '.join(beyond)}" if beyond else config.get("peft_type")
        raise ValueError(f"{folder}: only plain LoRA is supported, this is {what}")
    if str(config.get("init_lora_weights", "")).lower().startswith(NEW_BASE):
        raise ValueError(f"{folder}: only plain LoRA is supported, and {config['init_lora_weights']} changes the base: "
                         "convert it to plain LoRA with PEFT")
    if type(config.get("r")) is not int or type(config.get("lora_alpha")) not in (int, float) or config["r"] < 1:
        raise ValueError(f"{folder}/adapter_config.json lacks a number 'r' or 'lora_alpha'")
    for pattern, kinds in (("rank_pattern", (int,)), ("alpha_pattern", (int, float))):
        for key, value in (config.get(pattern) or {}).items():
            where = f"{folder}/adapter_config.json: {pattern} has {key!r}: {value!r}"
            if type(value) not in kinds or value <= 0:
                raise ValueError(f"{where}; it must be a positive number")
            try:
                re.compile(key)
            except re.error as e:
                raise ValueError(f"{where}, and {key!r} is no regular expression ({e})") from None
    return config


def _rank_and_scale(config: dict, name: str) -> tuple[int, float]:
    """Of one module. A pattern's key is a regular expression for the end of a module's path; the first match counts."""
    def of(pattern: str, default: float) -> float:
        entries = (config.get(pattern) or {}).items()
        return next((value for key, value in entries if re.match(rf"(.*\.)?({key})$", name)), default)

    rank = of("rank_pattern", config["r"])
    return rank, of("alpha_pattern", config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)
