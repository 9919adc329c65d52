"""A training under way, on disk: a stop in the middle of one loses the steps since it was last written down.

    training/step-000120.safetensors   adapters and AdamW's two moments
    training/training.json             its iteration and what was counted so far; written last, it makes the other whole
"""

import shutil
from dataclasses import fields
from pathlib import Path

from checkpoints.files import TensorFile, read_json, write_json, write_tensors
from star.decoder import Decoder
from star.finetune import FinetuneStats
from star.loop import Training
from star.lora import trainable
from star.run.ledger import size_and_checksum
from star.run.measured import number, whole

KINDS = ("adapter", "moment1", "moment2")
COUNTED = tuple(f.name for f in fields(FinetuneStats) if f.name != "state")
FITS = {"losses": lambda x: isinstance(x, float), "skipped": whole, "target_tokens": whole, "tokens": whole,
        "seconds": number, "lowered": lambda x: x is None or (whole(x) and x > 0)}


def save(folder: Path, iteration: int, stats: FinetuneStats, model: Decoder) -> None:
    """Write a training down, in place of what was written before."""
    folder.mkdir(exist_ok=True)
    step, params = stats.state["step"], trainable(model)
    file = folder / f"step-{step:06d}.safetensors"
    parts = zip(KINDS, (list(params.values()), *stats.state["moments"]), strict=True)
    write_tensors(file, {f"{kind}.{name}": t for kind, part in parts for name, t in zip(params, part, strict=True)})
    losses = [loss if abs(loss) < float("inf") else None for loss in stats.losses]  # JSON has no NaN
    counted = {name: getattr(stats, name) for name in COUNTED} | {"losses": losses}
    write_json(folder / "training.json", {"iteration": iteration, "step": step, **counted, "names": list(params),
                                          "file": size_and_checksum(file)})
    for old in folder.glob("step-*.safetensors"):
        if old != file:
            old.unlink()


def load(folder: Path, iteration: int) -> Training | None:
    """The training of this iteration, if one was written down. ValueError for a damaged one."""
    if not (folder / "training.json").is_file():
        return None
    try:
        written = read_json(folder / "training.json")
        if written.get("iteration") != iteration:
            return None
        counted, step = {name: written[name] for name in COUNTED}, written["step"]
        counted["losses"] = [float("nan") if loss is None else loss for loss in written["losses"]]
        for name, value in counted.items():
            if not (all(map(FITS[name], value)) if name in ("losses", "skipped") else FITS[name](value)):
                raise ValueError(f"its {name} is {str(value)[:60]}")
        if step != len(counted["losses"]):
            raise ValueError(f"it says {str(step)[:60]} steps and has {len(counted['losses'])} losses")
        file = TensorFile(folder / f"step-{step:06d}.safetensors")
        if size_and_checksum(file.path) != written["file"]:
            raise ValueError(f"{file.path.name} is not as it was written")
        parts = [{name: file.read(f"{kind}.{name}") for name in written["names"]} for kind in KINDS]
    except (ValueError, KeyError, TypeError, OSError) as e:
        said = f"{e!r}" if isinstance(e, KeyError) else str(e)
        raise ValueError(f"{folder} is damaged ({said}): take the folder away, and this iteration's training begins "
                         "anew") from None
    if not all(t.isfinite().all() for part in parts for t in part.values()) or any(
            (t < 0).any() for t in parts[2].values()):
        raise ValueError(f"{folder} holds numbers that no training leaves: take the folder away")
    return Training(FinetuneStats(**counted), parts[0], parts[1:])


def clear(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
