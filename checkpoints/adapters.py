"""LoRA adapters on disk, in PEFT's layout: `adapter_config.json` + `adapter_model.safetensors`.

Tensors are `base_model.model.` + the module's path in the base + `.lora_A.weight` (r, in) | `.lora_B.weight` (out, r);
W' = W + s B A with s = alpha / r, or alpha / sqrt(r) with use_rslora; rank_pattern and alpha_pattern override r and
alpha by module. What PEFT can do beyond that (DoRA, fully trained modules, embeddings, ...) is refused by name.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.files import TensorFile, read_json, write_json, write_tensors
from checkpoints.layout import Layout
from checkpoints.patterns import check
from star import lora
from star.decoder import Decoder

PREFIX = "base_model.model."
BEYOND = ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "layer_replication", "trainable_token_indices",
          "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
          "velora_config", "monteclora_config", "megatron_config")  # settings of PEFT that change what is computed
OUTSIDE = "{} adapts the embedding or the head ({}), which is not supported: only the linears of the blocks are"
MOST = 1e6  # of an alpha; PEFT's users take 8 to 1024
END, LAYER = r"(.*\.)?({})$", r"(?:^|.*?\.){}\.(\d+)\."  # where PEFT looks for patterns in a module's path
WILD = re.compile(r"(?:[*+{?].*){4}|\)[*+{]|[*+}?][*+{]", re.S)  # expressions that Python's own `re` may try for hours
MOST_SECONDS = 0.5  # that one of those is tried on one name
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

    Raises FileNotFoundError or ValueError for a folder that is not there, is damaged or incomplete, uses more than
    plain LoRA, or does not fit this model. The model is untouched then. Warns of adapters on what is not read (a vision
    tower).
    """
    folder, layout = Path(path), model.source.layout
    config = _read_config(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {folder}" + (
            "; adapter_model.bin can run code and is not read: save it again as safetensors"
            if (folder / "adapter_model.bin").is_file() else ""))
    tensors = TensorFile(file)
    names = _module_names(model, tensors)
    _check_keys(tensors, names.values(), layout)
    outside = [layout.name(f"{part}.weight").removesuffix(".weight") for part in ("lm_head", "embed_tokens")]
    _check_targets(tensors, names.values(), outside, config)
    shapes, ranks, pairs = lora.linear_parts(model), {}, {}
    for part, name in names.items():
        if _keys(name)[0] in tensors:
            rank, scale = _rank_and_scale(config, name)
            A, B = _pair(tensors, name, rank, shapes[part])
            order = layout.order(part)
            ranks[part], pairs[part] = rank, (A, B if order is None else B[order], scale)
    _attach(model, ranks, pairs, config["file"])


def _module_names(model: Decoder, tensors: TensorFile) -> dict[str, str]:
    """part of the decoder -> its module's path in this file: all paths begin as those that the file has."""
    ways = {part: model.source.layout.module_names(part) for part in lora.linear_parts(model)}
    used = next((i for names in ways.values() for i, n in enumerate(names) if any(k in tensors for k in _keys(n))), 0)
    return {part: names[used] for part, names in ways.items()}


def _check_keys(tensors: TensorFile, names: Collection[str], layout: Layout) -> None:
    """Has every tensor a place in the model? ValueError names one that has none, and why; warns of a vision tower's."""
    places = {key for name in names for key in _keys(name)}
    left = [key for key in tensors.entries if key not in places]
    unread = [key for key in left if re.search(layout.ignored, key.removeprefix(PREFIX))]
    stray = next((key for key in left if key not in unread), None)
    if stray is None:
        if len(unread) == len(tensors.entries):
            raise ValueError(f"{tensors.path} holds no adapter" + (
                f" of the text model, which alone is read: {unread[0]}, ..." if unread else ": fetch it again"))
        if unread:
            warnings.warn(f"{tensors.path}: {len(unread)} tensors adapt what is not read here ({unread[0]}, ...): they "
                          "are left out, the text model alone is adapted", stacklevel=3)
        return
    if "lora_embedding" in stray or "lm_head" in stray or "embed" in stray:
        raise ValueError(OUTSIDE.format(tensors.path, stray))
    if "lora_magnitude" in stray:
        raise ValueError(f"{tensors.path} is DoRA ({stray}): only plain LoRA is supported")
    if re.search(r"lora_[AB]\.(?!weight$)\w+\.weight$", stray):
        raise ValueError(f"{tensors.path} has the adapter's own name in its keys ({stray}): save it with PEFT's "
                         "save_pretrained")
    raise ValueError(f"{tensors.path}: {stray} has no place in this model: it was made for another base model")


def _check_targets(tensors: TensorFile, names: Collection[str], outside: list[str], config: dict) -> None:
    """Does the file hold what the config says it adapts? ValueError names what is lost, and what is there unsaid.

    Without target_modules, what it has in one layer must stand in all.
    """
    said = tensors.path.with_name("adapter_config.json")
    halves = {name: [key for key in _keys(name) if key in tensors] for name in names}
    kinds = sorted({name.rpartition(".")[2] for name, found in halves.items() if found})
    config = config | {"target_modules": config.get("target_modules") or kinds}
    targeted = {name for name in (*names, *outside) if _targeted(config, name)}
    if targeted & set(outside) and str(config["target_modules"]).lower() != "all-linear":
        raise ValueError(OUTSIDE.format(said, min(targeted & set(outside))))
    lost = [name for name in names if name in targeted and not halves[name]]
    if lost:
        raise ValueError(f"{tensors.path} lacks {lost[0]}" + (f" and {len(lost) - 1} more" if lost[1:] else "") +
                         f", adapted by target_modules in {said}: fetch it again")
    for name, found in halves.items():
        if len(found) == 1:
            raise ValueError(f"{tensors.path} lacks {next(k for k in _keys(name) if k not in found)}: fetch it again")
        if found and name not in targeted:
            raise ValueError(f"{tensors.path} holds adapters of {name}, which {said} leaves out (target_modules, "
                             "exclude_modules or layers_to_transform): PEFT would not load them; correct one of them")


def _match(expression: str, name: str, config: dict, whole: bool = False) -> re.Match | None:
    """re.match, or fullmatch, in a limited time. ValueError names the expression that takes longer."""
    file, how = config.get("file", "adapter_config.json"), "fullmatch" if whole else "match"
    if not WILD.search(expression):
        return getattr(re, how)(expression, name)
    try:
        import regex
    except ImportError:
        raise ValueError(f"{file}: the expression {expression[:60]!r} needs the package regex: pip install -e "
                         "'.[models]'") from None
    try:
        return getattr(regex, how)(expression, name, timeout=MOST_SECONDS)
    except regex.error as e:
        raise ValueError(f"{file}: {expression[:60]!r} is no regular expression ({e})") from None
    except TimeoutError:
        raise ValueError(f"{file}: the expression {expression[:60]!r} was tried on {name} for {MOST_SECONDS} s without "
                         "an end: write a simpler one") from None


def _targeted(config: dict, name: str) -> bool:
    """PEFT's rule for one module's path."""
    def among(which: str | list[str]) -> bool:
        if isinstance(which, str):
            return _match(which, name, config, whole=True) is not None
        return any(name == word or name.endswith(f".{word}") for word in which)

    targets, layers = config["target_modules"], config.get("layers_to_transform")
    if config.get("exclude_modules") and among(config["exclude_modules"]):
        return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return True
    if isinstance(targets, str) or name in targets or layers in (None, []) or not among(targets):
        return among(targets)
    patterns = config.get("layers_pattern") or r"[^.]*"
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = (_match(LAYER.format(pattern), name, config) for pattern in patterns)
    layer = next((int(match[1]) for match in found if match), None)
    return layer in (layers if isinstance(layers, list) else [layers])


def _pair(tensors: TensorFile, name: str, rank: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) of a module. ValueError if they do not fit, or hold what is no number."""
    (out, n_in), (a, b) = shape, (tensors.entries[key].shape for key in _keys(name))
    if a[1:] != (n_in,) or b[:1] != (out,) or len(b) != 2:
        raise ValueError(f"{tensors.path}: {name} has shapes {list(a)} and {list(b)}, which do not fit a linear of "
                         f"shape [{out}, {n_in}]: it was made for another base model")
    if (a[0], b[1]) != (rank, rank):
        raise ValueError(f"{tensors.path}: {name} has ranks {a[0]} and {b[1]} where adapter_config.json says {rank}")
    pair = torch.empty(a, dtype=tensors.dtype(_keys(name)[0])), torch.empty(b, dtype=tensors.dtype(_keys(name)[1]))
    for key, tensor in zip(_keys(name), pair, strict=True):
        if not tensors.read_into(key, tensor) or not tensor.float().isfinite().all():
            raise ValueError(f"{tensors.path}: {key} holds numbers that are not finite in float32, or beyond 2^40: "
                             "fetch it again")
    return pair


def _attach(model: Decoder, ranks: dict[str, int], pairs: dict[str, tuple[Tensor, Tensor, float]], file: Path) -> None:
    """All adapters of a model have one scale, the commonest: a module whose scale differs gets the quotient into its B.

    ValueError for a B that float32 does not hold then.
    """
    scale, scaled = (Counter(own for *_, own in pairs.values() if own).most_common(1) or [(0.0, 0)])[0][0], {}
    for part, (a, b, own) in pairs.items():
        scaled[part] = a, b if own == scale else b.float() * (own / scale)
        if not scaled[part][1].isfinite().all():
            raise ValueError(f"{file}: alpha / r is {own:g} for {part} and {scale:g} for most, and float32 does not "
                             "hold B times their quotient: correct lora_alpha or alpha_pattern")
    there = {f"{path.rpartition('.')[0]}.{part}": (rank, module.scale) for path, module in lora.lora_modules(model)
             for part, rank in module.ranks.items() if rank}
    if there != {part: (rank, scale) for part, rank in ranks.items()}:
        if model.sharded:  # its modules stay as they are
            raise ValueError(f"{file}: ranks, alpha or modules are not those that the model has, whose weights are "
                             "shared out over several processes: start with these, or without --shard")
        lora.remove_lora(model)
        lora.attach(model, ranks, scale)
    with torch.no_grad():
        for part, A, B in adapters(model):
            a, b = scaled[part]
            A.copy_(a)
            B.copy_(b)


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
    if not abs(config["lora_alpha"]) < MOST:
        raise ValueError(f"{folder}/adapter_config.json has lora_alpha: {str(config['lora_alpha'])[:20]}; it must be a "
                         "number that float32 holds")
    for pattern, kinds in (("rank_pattern", (int,)), ("alpha_pattern", (int, float))):
        if not isinstance(config.get(pattern) or {}, dict):
            raise ValueError(f"{folder}/adapter_config.json: {pattern} is {config[pattern]!r}; it must be an object")
        for key, value in (config.get(pattern) or {}).items():
            where = f"{folder}/adapter_config.json: {pattern} has {key!r}: {repr(value)[:20]}"
            if type(value) not in kinds or not 0 < value < MOST:
                raise ValueError(f"{where}; it must be a positive number")
            try:
                check(key, END)
            except ValueError as e:
                raise ValueError(f"{where[:300]}, and that is no regular expression ({e})") from None
    if not isinstance(config.get("use_rslora"), bool | None):
        raise ValueError(f"{folder}/adapter_config.json has use_rslora: {config['use_rslora']!r}; it must be true or "
                         "false")
    _check_names(folder, config)
    return config | {"file": folder / "adapter_config.json"}


def _check_names(folder: Path, config: dict) -> None:
    """Are target_modules, and what narrows them down, of the kinds that PEFT knows? ValueError says which is not."""
    for key, kind in (("target_modules", str), ("exclude_modules", str), ("layers_pattern", str),
                      ("layers_to_transform", int)):
        value = config.get(key)
        if key == "target_modules" and value in ([], ""):
            raise ValueError(f"{folder}/adapter_config.json has target_modules: {value!r}, which adapts nothing; it "
                             "must name modules")
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(v) is kind for v in values):
            raise ValueError(f"{folder}/adapter_config.json has {key}: {value!r}; it must be a "
                             f"{'number' if kind is int else 'name'} or a list of them")
        if key == "layers_pattern" or type(value) is str:
            try:
                for value in values:
                    check(value, LAYER if key == "layers_pattern" else "{}")
            except ValueError as e:
                raise ValueError(f"{folder}/adapter_config.json: {key} is no regular expression ({e})") from None


def _rank_and_scale(config: dict, name: str) -> tuple[int, float]:
    """Of one module. A pattern's key is a regular expression for the end of a module's path; the first match counts."""
    def of(pattern: str, default: float) -> float:
        entries = (config.get(pattern) or {}).items()
        return next((value for key, value in entries if _match(END.format(key), name, config)), default)

    rank = of("rank_pattern", config["r"])
    return rank, of("alpha_pattern", config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)
