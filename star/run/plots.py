"""Pictures of runs: accuracy over iterations, and what each iteration trained on. Needs matplotlib, and says so.

It reads metrics and writes PNG files; it measures nothing.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from checkpoints.files import write_atomically
from star.tasks.records import clip

MOST_GROUPS = 20  # curves beside each other; of more the mean alone


def figure(width: float):
    """An empty figure. ImportError names the extra where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'star-from-scratch[plot]'") from None
    return Figure(figsize=(width, 4), layout="constrained")


def save(drawing, path: Path) -> None:
    """Atomically. Characters that matplotlib's font lacks are boxes, and no reason to warn."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        drawing.savefig(data, dpi=110, format="png")
    write_atomically(path, data.getvalue())


def named(group: str) -> str:
    """A group's name in a legend: "$" begins no formula there, nor does "_" hide it."""
    return " " * group.startswith("_") + clip(group, 24).replace("$", r"\$")


def curves(path: Path, metrics: Sequence[dict]) -> None:
    """Held-out accuracy by group (where there are no answers, the mean reward), and how many problems each iteration
    solved, with and without a hint."""
    drawing = figure(11)
    left, right = drawing.subplots(1, 2)
    iterations, rated = [m["iteration"] for m in metrics], "reward" in metrics[0]
    kind, unit = ("reward", 1) if rated else ("accuracy", 100)
    measured = [m for m in metrics if kind in m]
    groups = ["mean"] if rated else list(metrics[0]["accuracy"])
    for group in groups if len(groups) <= MOST_GROUPS else ["mean"]:
        style = {"color": "black", "linewidth": 2.5} if group == "mean" else {"marker": "o", "markersize": 4}
        shares = [unit * m[kind][group] for m in measured]
        left.plot([m["iteration"] for m in measured], shares, label=named(group), **style)
    left.set(title=f"held-out {kind}", xlabel="iteration", ylabel="" if rated else "%", xticks=iterations)
    if not rated:
        left.set_ylim(-3, 103)
    tried = [m for m in metrics if "solved" in m]
    bottom = [0] * len(tried)
    parts = {"solved unaided": [m["solved"] - m["rationalized_problems"] for m in tried],
             "only with the hint": [m["rationalized_problems"] for m in tried],
             "dropped": [m["problems"] - m["solved"] for m in tried]}
    parts = {"answers trained on": [m["examples"] for m in tried]} if rated else parts
    for (label, heights), color in zip(parts.items(), ("#2a6fbb", "#f2a541", "#cccccc"), strict=False):
        right.bar([m["iteration"] for m in tried], heights, bottom=bottom, label=label, color=color)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    right.set(xlabel="iteration", ylabel="" if rated else "problems", xticks=iterations[1:])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    right.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.99))
    save(drawing, path)


def arms(path: Path, metrics: dict[tuple[str, int], list[dict]], seeds: Sequence[int]) -> None:
    """Runs of several arms and seeds, metrics[arm, seed]: the arms' means with the range over seeds, and each by group.
    """
    names = list(dict.fromkeys(arm for arm, _ in metrics))
    drawing = figure(5 * (1 + len(names)))
    whole, *by_group = drawing.subplots(1, 1 + len(names))
    iterations = [r["iteration"] for r in metrics[names[0], seeds[0]]]

    def curve(axes, arm: str, group: str, label: str, **style) -> None:
        values = [[100 * r["accuracy"][group] for r in metrics[arm, s]] for s in seeds]
        low, high = [min(v) for v in zip(*values, strict=True)], [max(v) for v in zip(*values, strict=True)]
        (line,) = axes.plot(iterations, [sum(v) / len(v) for v in zip(*values, strict=True)], label=label, **style)
        axes.fill_between(iterations, low, high, alpha=0.2, color=line.get_color(), linewidth=0)

    for arm, style in zip(names, ({"color": "C0"}, {"color": "C3", "linestyle": "--"}), strict=True):
        curve(whole, arm, "mean", f"{arm} rationalization", linewidth=2.5, **style)
    whole.set_title("mean over all groups")
    for axes, arm in zip(by_group, names, strict=True):
        for group in (g for g in metrics[arm, seeds[0]][0]["accuracy"] if g != "mean"):
            curve(axes, arm, group, named(group), marker="o", markersize=3)
        axes.set_title(f"{arm} rationalization, by group")
    for axes in (whole, *by_group):
        axes.set(xlabel="iteration", ylabel="held-out accuracy, %", ylim=(-3, 103), xticks=iterations)
        axes.legend(fontsize="small", loc="lower right")
    save(drawing, path)
