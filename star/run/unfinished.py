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

KINDS = ("adapter", "moment1", "moment2")
COUNTED = tuple(f.name for f in fields(FinetuneStats) if f.name != "state")


def save(folder: Path, iteration: int, stats: FinetuneStats, model: Decoder) -> None:
    """Write a training down, in place of what was written before."""
    folder.mkdir(exist_ok=True)
    step, params = stats.state["step"], trainable(model)
    file = folder / f"step-{step:06d}.safetensors"
    parts = zip(KINDS, (list(params.values()), *stats.state["moments"]), strict=True)
    write_tensors(file, {f"{kind}.{name}": t for kind, part in parts for name, t in zip(params, part, strict=True)})
    losses = [loss if abs(loss) < float("inf") else None for loss in stats.losses]  # JSON has no NaN
    counted = {name: getattr(stats, name) for name in COUNTED} | {"losses": losses}
    write_json(folder / "training.json", {"iteration": iteration, "step": step, **counted, "names": list(params)})
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
        counted = {name: written[name] for name in COUNTED}
        step, losses = written["step"], [float("nan") if loss is None else float(loss) for loss in written["losses"]]
        if type(step) is not int or step != len(losses) or not isinstance(counted["skipped"], list):
            raise TypeError(f"step is {step!r}, with {len(losses)} losses")
        file, names = TensorFile(folder / f"step-{step:06d}.safetensors"), written["names"]
        adapters, *moments = ([file.read(f"{kind}.{name}") for name in names] for kind in KINDS)
    except (ValueError, KeyError, TypeError, OSError) as e:
        said = f"{e!r}" if isinstance(e, KeyError) else str(e)
        raise ValueError(f"{folder} is damaged ({said}): take the folder away, and this iteration's training begins "
                         "anew") from None
    stats = FinetuneStats(**counted | {"losses": losses}, state={"step": step, "moments": moments})
    return Training(dict(zip(names, adapters, strict=True)), stats)


def clear(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
