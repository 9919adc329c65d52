"""A run for TensorBoard: every number of an iteration as it ends, and rationales as they come.

Needs the extra `tensorboard`. Files lie in the run's folder, tensorboard/; nothing reads them back here.
"""

from pathlib import Path

from star.problem import Chunk, Event, Finished
from star.run.folder import Run
from star.text import visible

EACH_CHUNK = 3  # rationales of a chunk that are written
INDENT = "\n    "  # a block of code to TensorBoard's markdown, which ends lines at "\r" too: text of a model stays text


def summary_writer() -> type:
    """torch's writer. ImportError, one line, where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise ImportError(f"--tensorboard needs the package tensorboard ({e}): pip install -e '.[tensorboard]'"
                          ) from None
    return SummaryWriter


class Board:
    """Writes what the loop's events say."""

    def __init__(self, writer: type, folder: Path, iteration: int):
        """iteration: the last one that is finished; what an earlier, stopped run wrote behind it is left out."""
        self.writer, self.count = writer(str(folder / "tensorboard"), purge_step=iteration + 1), 0

    def show(self, event: Event, run: Run) -> None:
        if isinstance(event, Chunk):
            for g, p in list(zip(event.generations, event.problems, strict=True))[:EACH_CHUNK]:
                said = f"{g.problem}: {p.question}\n\n{g.text}\n\n-> {g.verdict} (says {g.answer}; right is {p.answer})"
                code = "".join(f"{INDENT}{visible(line)}" for line in said.splitlines())
                self.writer.add_text(f"rationales {g.iteration:03d}/{g.phase}", code, self.count)
                self.count += 1
        elif isinstance(event, Finished):
            rates = {name: run.timings[name] for name in ("sampled_tokens_per_s", "trained_tokens_per_s", "seconds")}
            rates["use"] = run.timings.get("use", {})
            for name, value in numbers(event.metrics | rates):
                self.writer.add_scalar(name, value, event.iteration)
            self.writer.flush()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_) -> None:
        self.writer.close()


def numbers(metrics: dict, prefix: str = "") -> list[tuple[str, float]]:
    """("accuracy/2-digit", 0.5) of {"accuracy": {"2-digit": 0.5}}; lists and texts are left out."""
    found = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            found += numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "iteration":
            found.append((prefix + str(name), float(value)))
    return found
