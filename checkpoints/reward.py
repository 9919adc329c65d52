"""Judges on disk: a decoder's folder with `score.weight` in it, as of transformers' `XForSequenceClassification`.

Also reads NVIDIA's Llama-Nemotron-Reward-HF layout, a causal model whose logit of id 0 is the score. What a score means
and how rows are read is star/reward. `config.json` may say under "star_judge", which transformers passes over, by which
weights the labels add up and in which prompt format the judge was trained.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.families import decoder_config
from checkpoints.files import TensorFile, tensor_files, write_atomically, write_shards
from checkpoints.weights import (
    SCORE,
    clear,
    copy_companions,
    fill,
    load_config,
    name_dtype,
    named_tensors,
    outline,
)
from star.decoder import DecoderConfig
from star.reward import ATTRIBUTES, FORMATS, RewardModel, is_score

OASST = ("quality", "toxicity", "humor", "creativity")  # the slots of NVIDIA's nine that its later judges leave unused
GENERIC = {1: ("reward",), 5: ATTRIBUTES, 9: (*OASST, *ATTRIBUTES)}  # by the head's width, where names say nothing
PADS = {"gemma": 0, "gemma2": 0, "gemma3": 0, "gemma3_text": 0, "ministral3": 11, "smollm3": 128_004, "phi3": 32_000,
        "olmo2": 1, "olmo3": 1}  # if not given
CLASSES = {"llama": "Llama", "mistral": "Mistral", "ministral3": "Ministral3", "qwen2": "Qwen2", "qwen3": "Qwen3",
           "smollm3": "SmolLM3", "gemma": "Gemma", "gemma2": "Gemma2", "gemma3": "Gemma3", "gemma3_text": "Gemma3Text",
           "falcon": "Falcon", "RefinedWeb": "Falcon", "RefinedWebModel": "Falcon", "nemotron": "Nemotron",
           "granite": "Granite", "granitemoehybrid": "GraniteMoeHybrid", "gptj": "GPTJ", "gpt_neox": "GPTNeoX",
           "phi3": "Phi3", "olmo2": "Olmo2", "olmo3": "Olmo3", "mistral3": "Mistral3"}  # fmt: skip


def load_reward_model(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str | None = None
                      ) -> RewardModel:
    """The judge stored in a folder: `.score(rows of token ids)` -> (N, labels) float32, `.labels`.

    A head of any width, with or without bias; its names from id2label, or by its width; read at the token that
    pad_token_id decides. Without a score head, a causal model whose head is not its embedding scores by its logit of
    id 0 at the last token. dtype: of the decoder, None as it is stored; the head is float32 at least. Raises
    FileNotFoundError or ValueError with the folder for what is missing, damaged or no judge.
    """
    return fill_reward_model(outline_reward_model(path, dtype), device)


def outline_reward_model(path: str | Path, dtype: torch.dtype | str | None = None) -> RewardModel:
    """The judge of a folder without its decoder's weights: what it is, how it is asked and what it would need."""
    folder = Path(path)
    raw, config, _ = load_config(folder)
    files = tensor_files(folder)
    kind = ", ".join(map(str, raw.get("architectures") or [])) if isinstance(raw.get("architectures"), list) else ""
    if "score.weight" not in files and "SequenceClassification" in kind:
        raise ValueError(f"{folder} calls itself {kind}, but holds no score.weight: fetch it again")
    weights, format = _own(folder, raw, files)
    if "score.weight" not in files:
        return _by_logit(folder, raw, dtype, weights, format)
    head, bias = (_numbers(files[name], name) if name in files else None for name in SCORE)
    if head.ndim != 2 or not len(head) or head.shape[1] != config.d_model:
        raise ValueError(f"{folder}: score.weight has shape {list(head.shape)}; it must be [labels, {config.d_model}]")
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"{folder}: score.bias has shape {list(bias.shape)} beside {len(head)} labels")
    labels, pad_id = _labels(folder, raw, len(head)), pad_of(folder, raw)
    return RewardModel(outline(folder, dtype, judge=True), head, labels, bias, pad_id, weights, format)


def fill_reward_model(judge: RewardModel, device: str | torch.device) -> RewardModel:
    """Give the outline of a judge its weights on `device`, in the dtype that its decoder has now."""
    fill(judge.model, device)
    if judge.logit:
        weight, bias = judge.model.head()
        judge.head, judge.bias = weight[:1].detach(), None if bias is None else bias[:1].detach()
    wide = {"device": device, "dtype": torch.promote_types(judge.model.dtype, torch.float32)}
    judge.head = judge.head.to(**wide)
    judge.bias = None if judge.bias is None else judge.bias.to(**wide)
    return judge


def _by_logit(folder: Path, raw: dict, dtype: torch.dtype | str | None, weights: tuple[float, ...] | None,
              format: str | None) -> RewardModel:
    """hf.co/nvidia/Llama-3.1-Nemotron-70B-Reward-HF: logits[last token, id 0], whatever the config's pad id is."""
    model = outline(folder, dtype)
    if model.config.tied:
        raise ValueError(f"{folder} is no judge: it has no score head, and id 0 is a word of its tied vocabulary. A "
                         "likelihood judge needs no head: --reward-by likelihood")
    return RewardModel(model, model.head()[0][:1], ["reward"], None, None, weights, format, logit=True)


def _numbers(file: TensorFile, name: str) -> Tensor:
    numbers = file.read(name)
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"{file.path}: {name} holds numbers that are not finite: fetch it again")
    return numbers


def _labels(folder: Path, raw: dict, width: int) -> list[str]:
    """A name a row of the head: the config's own, unless it has none or transformers' LABEL_0, LABEL_1, ..."""
    given = raw.get("id2label") or {}
    numbered = isinstance(given, dict) and all(k.isdecimal() for k in given)
    names = [str(given[k]) for k in sorted(given, key=int)] if numbered else None
    if names is None or len(set(names)) < len(names):
        raise ValueError(f"{folder}/config.json: id2label must give each row of the head a name of its own; it is "
                         f"{json.dumps(given)[:100]}")
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return list(GENERIC.get(width) or (f"label {i}" for i in range(width)))
    if odd := [name for name in names if not name.isprintable() or not name]:
        raise ValueError(f"{folder}/config.json: id2label has the name {odd[0]!r}, which cannot be printed: rename it")
    if len(names) != width:
        raise ValueError(f"{folder}/config.json names {len(names)} labels, but score.weight has {width} rows")
    return names


def pad_of(folder: Path, raw: dict) -> int | None:
    """The id that the reference takes for padding: the config's, else its class's own default."""
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    pad = text.get("pad_token_id", PADS.get(raw["model_type"]))
    if pad is not None and type(pad) is not int:
        raise ValueError(f"{folder}/config.json has 'pad_token_id': {pad!r}; it must be a token id or null")
    return pad


def _own(folder: Path, raw: dict, files: dict[str, TensorFile]) -> tuple[tuple[float, ...] | None, str | None]:
    """(weights, format) that the folder recommends under "star_judge"; None where it says nothing."""
    said = raw.get("star_judge") or {}
    where = f"{folder}/config.json: star_judge"
    if not isinstance(said, dict):
        raise ValueError(f"{where} is {json.dumps(said)[:60]}; it must be an object with weights, format")
    weights, format = said.get("weights"), said.get("format")
    if format is not None and format not in FORMATS:
        raise ValueError(f"{where} has format {format!r}; it must be one of {', '.join(FORMATS)}")
    if weights is None:
        return None, format
    width = (files["score.weight"].entries["score.weight"].shape or (1,))[0] if "score.weight" in files else 1
    if not (isinstance(weights, list) and len(weights) == width and all(map(is_score, weights)) and any(weights)):
        raise ValueError(f"{where} has weights {json.dumps(weights)[:100]}; it must have {width} finite numbers, one a "
                         "label, not all 0")
    return tuple(float(w) for w in weights), format


def save_reward_model(judge: RewardModel, path: str | Path, config: dict | None = None) -> None:
    """Write a folder that `load_reward_model` and transformers' AutoModelForSequenceClassification read.

    Adapters are merged in, the head is stored in float32, the tokenizer's files are copied. A Granite is written as the
    Llama that computes the same, since transformers has no classifier for it (nor for a dense Granite 4, whose folder
    only this project reads). config: the decoder's config.json where it was not loaded from a folder. Raises ValueError
    for the source's own folder, and for a judge that is a causal model's logit.
    """
    model, folder = judge.model, Path(path)
    source = getattr(model, "source", None) if config is None else None
    if judge.logit:
        raise ValueError(f"{folder}: this judge is a causal model's logit of id 0: copy its folder instead")
    if source is not None and folder.resolve() == source.path.resolve():
        raise ValueError(f"{folder} is the folder that the judge was loaded from: save it to another")
    raw = _classifier_config(judge, config or source.config)
    layout, factors = source.layout if source else decoder_config(raw)[1], {}
    if raw["model_type"] == "granite":
        raw, factors = _as_llama(raw, model.config)
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    left_out = {layout.name(f"lm_head.{kind}") for kind in ("weight", "bias")} | set(SCORE)
    views = {layout.name(name): view for name, view in model.tensors()}
    others = {n: f for n, f in (source.files if source else {}).items() if n not in views.keys() | left_out}
    scores = {name: t.detach() for name, t in zip(SCORE, (judge.head, judge.bias), strict=True) if t is not None}
    scores = {name: t.float() for name, t in scores.items()}

    def stream() -> Iterator[tuple[str, Tensor]]:
        for name, t in named_tensors(model, layout):
            factor = factors.get(name.split(".")[-2], 1.0)
            if name not in left_out:
                yield name, t if factor == 1 else (t.double() * factor).to(t.dtype)
        yield from ((n, f.read(n)) for n, f in others.items())  # a vision tower
        yield from scores.items()

    sizes = {n: v.nbytes for n, v in views.items() if n not in left_out}
    sizes |= {n: f.entries[n].size for n, f in others.items()} | {n: t.nbytes for n, t in scores.items()}
    write_shards(folder, stream(), sizes)
    if source is not None:
        copy_companions(source.path, folder)
    write_atomically(folder / "config.json", (json.dumps(raw, indent=2) + "\n").encode())


def _as_llama(raw: dict, c: DecoderConfig) -> tuple[dict, dict[str, float]]:
    """(config.json, what to multiply the weights of each kind of linear by) of a Granite without multipliers."""
    factors = {"embed_tokens": c.embed_scale, "q_proj": c.attn_scale * c.head_dim**0.5, "o_proj": c.residual_scale,
               "down_proj": c.residual_scale}
    kept = {k: v for k, v in raw.items() if not k.endswith("_multiplier") and k != "logits_scaling"}
    return kept | {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, factors


def _classifier_config(judge: RewardModel, config: dict) -> dict:
    """The decoder's config.json as that of a sequence classifier with these labels."""
    raw = copy.deepcopy(config)
    for key in ("num_labels", "problem_type", "star_judge", "auto_map"):
        raw.pop(key, None)
    raw["architectures"] = [CLASSES[raw["model_type"]] + "ForSequenceClassification"]
    raw["id2label"] = {str(i): label for i, label in enumerate(judge.labels)}
    raw["label2id"] = {label: i for i, label in enumerate(judge.labels)}
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    text["pad_token_id"] = judge.pad_id
    name_dtype(raw, judge.model.dtype)
    own = {"weights": judge.weights and [float(w) for w in judge.weights], "format": judge.format}
    if any(v is not None for v in own.values()):
        raw["star_judge"] = {k: v for k, v in own.items() if v is not None}
    return raw
