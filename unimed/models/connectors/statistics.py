"""Routing statistics: which task uses which expert, counted during a run and drawn afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch


class RoutingStatistics:
    """Mean routing weights per task over any number of batches."""

    def __init__(self, tasks: Sequence[str], experts: int):
        self.tasks = tuple(tasks)
        self._sums = torch.zeros(len(self.tasks), experts, dtype=torch.float64)
        self._counts = torch.zeros(len(self.tasks), dtype=torch.float64)

    def update(self, routing: torch.Tensor, task: torch.Tensor) -> None:
        """`routing` [B, M, E] and `task` [B], ids in the order of `tasks`."""
        task = task.detach().cpu()
        self._sums.index_add_(0, task, routing.detach().double().mean(1).cpu())
        self._counts.index_add_(0, task, torch.ones(len(task), dtype=torch.float64))

    def matrix(self) -> torch.Tensor:
        """[T, E]: the mean weights, NaN for a task that was never seen."""
        return self._sums / self._counts.masked_fill(self._counts == 0, math.nan)[:, None]

    def scalars(self) -> dict[str, float]:
        """{"routing/<task>/expert_<e>": mean weight} of the tasks that were seen, for a log."""
        return {
            f"routing/{task}/expert_{e}": float(value)
            for task, row, count in zip(self.tasks, self.matrix(), self._counts, strict=True)
            if count
            for e, value in enumerate(row)
        }

    def reset(self) -> None:
        self._sums.zero_()
        self._counts.zero_()


def draw_routing(matrix: torch.Tensor, tasks: Sequence[str], path: str | Path) -> Path:
    """Heat map of mean routing weights [T, E], tasks down and experts across, written to `path` (PNG, PDF or SVG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, experts = matrix.shape
    figure = Figure(figsize=(1.5 + 0.8 * experts, 1.2 + 0.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(matrix, vmin=0, cmap="viridis", aspect="auto")
    middle = float(torch.nan_to_num(matrix).max()) / 2
    for row in range(rows):
        for e in range(experts):
            value = float(matrix[row, e])
            axes.text(e, row, f"{value:.2f}", ha="center", va="center", color="white" if value < middle else "black")
    axes.set_xticks(range(experts), [f"expert {e}" for e in range(experts)])
    axes.set_yticks(range(rows), tasks)
    figure.colorbar(image, label="mean routing weight")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
