"""Hooks that watch tasks pull at shared weights: who uses which expert, whose gradients agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook

from unimed.engine.strategy import world
from unimed.io.write import write_whole
from unimed.registry import HOOKS


@HOOKS.register_module()
class RoutingHook(Hook):
    """Loss and routing weights of each task, as lines of `routing.jsonl` and, at the end, as a heat map.

    Args:
        interval: steps between two lines.

    It asks the task for `task_summary()` and draws what it holds under "routing/<task>/expert_<number>". Numbers are
    those of the first rank.
    """

    def __init__(self, interval: int = 50):
        self.interval = interval
        self._last: dict[str, float] = {}

    def before_train(self, runner) -> None:
        if not hasattr(runner.model, "task_summary"):
            raise TypeError(f"RoutingHook needs a task with task_summary(), {type(runner.model).__name__} has none")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if (batch_idx + 1) % self.interval and batch_idx + 1 != runner.train_loop.max_iters:
            return
        summary = runner.model.task_summary()
        self._last |= summary
        if world()[0] == 0:
            with open(Path(runner.work_dir) / "routing.jsonl", "a") as file:
                file.write(json.dumps({"step": batch_idx + 1, **summary}) + "\n")

    def after_train(self, runner) -> None:
        cells = {tuple(k.split("/")[1:]): v for k, v in self._last.items() if k.startswith("routing/")}
        if not cells or world()[0]:
            return
        tasks = sorted({task for task, _ in cells})
        experts = sorted({expert for _, expert in cells}, key=lambda name: int(name.rsplit("_", 1)[1]))
        matrix = np.array([[cells.get((t, e), np.nan) for e in experts] for t in tasks])
        columns = [name.replace("_", " ") for name in experts]
        draw_matrix(matrix, tasks, columns, Path(runner.work_dir) / "routing.png", label="mean routing weight", low=0.0)


def draw_matrix(
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    path: str | Path,
    label: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Path:
    """Heat map of a matrix [R, C] with its numbers, written whole to `path` (PNG, PDF or SVG); NaN cells stay empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.0 + 0.8 * len(columns), 1.2 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(matrix, vmin=low, vmax=high, cmap="coolwarm" if low == -1 else "viridis", aspect="auto")
    for row in range(len(rows)):
        for column in range(len(columns)):
            if not np.isnan(matrix[row, column]):
                axes.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", color="black",
                          bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, rotation=30)
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(picture, label=label)
    return write_whole(Path(path), lambda temporary: figure.savefig(temporary, dpi=150))
