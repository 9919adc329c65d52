"""LoRA adapters on disk, in PEFT's layout: `adapter_config.json` + `adapter_model.safetensors`.

Tensors are `base_model.model.` + the module's path in the base's files + `.lora_A.weight` (r, in) | `.lora_B.weight`
(out, r). What PEFT can do beyond plain LoRA (DoRA, fully trained modules, embeddings) is refused by name.
"""

import json
from pathlib import Path

import torch

from checkpoints.families import source_name
from checkpoints.weights import open_tensors, read_json, write_atomically, write_tensors
from star import lora
from star.decoder import Decoder

PREFIX = "base_model.model."


def save_adapter(model: Decoder, path: str | Path) -> None:
    """Write the model's adapters into a folder. The config is written last: it makes the folder whole."""
    modules = list(lora.lora_modules(model))
    if not modules:
        raise ValueError("the model has no adapters to save: add_lora first")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, parts, ranks = {}, set(), set()
    for module_path, module in modules:
        for part, A, B in module.adapters():
            name = PREFIX + source_name(f"{module_path.rpartition('.')[0]}.{part}", model.source.names)
            tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
            parts.add(part)
            ranks.add(A.shape[0])
    assert len(ranks) == 1, f"{ranks=}"
    rank = ranks.pop()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model.source.path),
        "r": rank, "lora_alpha": modules[0][1].scale * rank, "target_modules": sorted(parts), "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None, "use_rslora": False,
        "use_dora": False,
    }
    write_tensors(folder / "adapter_model.safetensors", tensors)
    write_atomically(folder / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())


def load_adapter(model: Decoder, path: str | Path) -> None:
    """Put the adapters of a PEFT folder on the model, live at once; adapters it has are replaced.

    Raises FileNotFoundError or ValueError for a folder that is not there, is damaged, uses more than plain LoRA, or
    does not fit this model. The model is untouched then.
    """
    folder = Path(path)
    config = read_json(folder / "adapter_config.json")
    refused = [k for k in ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern") if config.get(k)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or refused:
        raise ValueError(f"{folder}: only plain LoRA is supported, this is {config.get('peft_type')} with {refused}")
    if not isinstance(config.get("r"), int) or not isinstance(config.get("lora_alpha"), int | float):
        raise ValueError(f"{folder}/adapter_config.json lacks a number 'r' or 'lora_alpha'")
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {folder}")
    with open_tensors(file) as f:
        found = {name: f.get_tensor(name) for name in list(f.keys())}
    ranks, pairs = {}, {}
    shapes = {name.removesuffix(".weight"): view.shape for name, view in model.tensors()}
    for part in lora.linear_parts(model):
        name = PREFIX + source_name(part, model.source.names)
        A, B = found.pop(f"{name}.lora_A.weight", None), found.pop(f"{name}.lora_B.weight", None)
        if A is None and B is None:
            continue
        rank, (out, n_in) = config["r"], shapes[part]
        if A is None or B is None or A.shape != (rank, n_in) or B.shape != (out, rank):
            raise ValueError(f"{file}: {name} does not fit a linear of shape [{out}, {n_in}] at rank {rank}: "
                             "it was made for another base model")
        ranks[part], pairs[part] = rank, (A, B)
    if found or not pairs:
        stray = next(iter(found), "no tensor")
        raise ValueError(f"{file} was made for another base model: {stray} has no place in this one")
    lora.remove_lora(model)
    lora.attach(model, ranks, config["lora_alpha"] / (config["r"] ** (0.5 if config.get("use_rslora") else 1)))
    with torch.no_grad():
        for path_, module in lora.lora_modules(model):
            for part, A, B in module.adapters():
                a, b = pairs[f"{path_.rpartition('.')[0]}.{part}"]
                A.copy_(a)
                B.copy_(b)
