"""Gradient conflict and expert routing, recorded by hooks: which task uses which expert, whose gradients agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook

from unimed.data.mixture import seeded
from unimed.engine.strategy import world
from unimed.engine.stream import build_datasets, to_device
from unimed.files import append_json_line, write_atomic
from unimed.metrics.gradient_conflict import (
    conflict_share,
    direction_similarity,
    gram,
    magnitude_similarity,
    mean_off_diagonal,
)
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
        if runner.model.task_summary() is None:
            raise TypeError(f"RoutingHook needs a task with task_summary(), {type(runner.model).__name__} has none")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if (batch_idx + 1) % self.interval and batch_idx + 1 != runner.train_loop.max_iters:
            return
        summary = runner.model.task_summary()
        self._last |= summary
        if world()[0] == 0:
            append_json_line(Path(runner.work_dir) / "routing.jsonl", {"step": batch_idx + 1, **summary})

    def after_train(self, runner) -> None:
        cells = {tuple(k.split("/")[1:]): v for k, v in self._last.items() if k.startswith("routing/")}
        if not cells or world()[0]:
            return
        tasks = sorted({task for task, _ in cells})
        experts = sorted({expert for _, expert in cells}, key=lambda name: int(name.rsplit("_", 1)[1]))
        matrix = np.array([[cells.get((t, e), np.nan) for e in experts] for t in tasks])
        columns = [name.replace("_", " ") for name in experts]
        draw_matrix(matrix, tasks, columns, Path(runner.work_dir) / "routing.png", label="mean routing weight", low=0.0)


@HOOKS.register_module(name=["GradientConflictHook", "TugOfWarHook"])
class GradientConflictHook(Hook):
    """Do the gradients of tasks agree, module by module? On any config; training itself is not changed.

    Every `interval` steps the loss of each task is taken on the same samples of `train_data`, its gradient is compared
    with those of the others (`unimed.metrics.gradient_conflict`), and a line of `tug_of_war.jsonl` is written: per
    module direction and magnitude similarity, gradient norms, and norm, mean, deviation and relative way of its
    parameters since the run was started. A data set whose samples name no task counts as one. Heat maps of the
    last line are drawn at the end.

    Args:
        interval: steps between two lines; the first is before the first step.
        modules: prefixes of parameter names of the task's model, such as "connector" or
            "language_model.model.layers.0"; its direct children by default.
        samples_per_task, batch_size: how many samples speak for a task, and how many at once.

    Raises:
        ValueError: a module no trainable parameter belongs to, data with fewer than two tasks, or sharded parameters.
    """

    def __init__(
        self, interval: int = 100, modules: Sequence[str] = (), samples_per_task: int = 16, batch_size: int = 8
    ):
        self.interval, self.modules = interval, tuple(modules)
        self.samples_per_task, self.batch_size = samples_per_task, batch_size
        self._last: dict | None = None
        self._start: dict[str, torch.Tensor] = {}

    def before_train(self, runner) -> None:
        if runner.strategy.name == "fsdp2":
            raise ValueError("GradientConflictHook needs whole parameters; use strategy single, ddp or zero1")
        if runner.data_ranks != world()[1]:
            raise ValueError("GradientConflictHook measures on one rank; leave out context_parallel and strategy='tp'")
        if world()[0]:
            return
        self._groups = self._parameters(runner.model)
        self._batches = self._tasks(runner)
        step = runner.train_loop.iter
        if step == 0:
            (Path(runner.work_dir) / "tug_of_war.jsonl").unlink(missing_ok=True)
        self._measure(runner, step)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        step = batch_idx + 1
        if not world()[0] and (step % self.interval == 0 or step == runner.train_loop.max_iters):
            self._measure(runner, step)

    def after_train(self, runner) -> None:
        if self._last is None or world()[0]:
            return
        folder = Path(runner.work_dir)
        for module, found in self._last["modules"].items():
            for kind, low in (("direction", -1.0), ("magnitude", 0.0)):
                matrix = np.array(found[kind], dtype=float)
                path = folder / f"tug_of_war_{kind}_{module}.png"
                draw_matrix(matrix, self._last["tasks"], self._last["tasks"], path, f"{kind}, {module}", low, 1.0)

    def _parameters(self, task) -> dict[str, dict[str, torch.nn.Parameter]]:
        model = task if task.model is None else task.model
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        names = self.modules or tuple(name for name, _ in model.named_children())
        groups = {n: {k: p for k, p in learning.items() if k == n or k.startswith(f"{n}.")} for n in names}
        empty = [name for name in self.modules if not groups[name]]
        if empty:
            children = sorted({name.split(".")[0] for name in learning})
            raise ValueError(f"no trainable parameter begins with {empty[0]!r}; there are {', '.join(children)}")
        return {name: group for name, group in groups.items() if group}

    def _tasks(self, runner) -> dict[str, list]:
        """Batches of samples per task; the datasets are drawn from evenly, with fixed random numbers."""
        datasets, names, _, _ = build_datasets(runner.settings["train_data"])
        chosen: dict[str, list] = {}
        with seeded(runner.settings["seed"], 7):
            for dataset, name in zip(datasets, names, strict=True):
                # Neighbours are often alike, so samples are taken from all over the data set.
                places = np.unique(np.linspace(0, len(dataset) - 1, 4 * self.samples_per_task).astype(int))
                for place in places:
                    sample = dataset[int(place)]
                    group = chosen.setdefault(str(sample.labels.get("task") or name), [])
                    if len(group) < self.samples_per_task:
                        group.append(sample)
            if len(chosen) < 2:
                raise ValueError(f"tug-of-war needs two tasks at least, train_data holds {sorted(chosen)}")
            collator, size = runner.stream.collate.collator, self.batch_size
            return {
                task: [(collator(group[i : i + size]), len(group[i : i + size])) for i in range(0, len(group), size)]
                for task, group in chosen.items()
            }

    def _measure(self, runner, step: int) -> None:
        task, training = runner.model, runner.model.training
        strategy, device = runner.strategy, runner.strategy.device
        parameters = [(module, p) for module, group in self._groups.items() for p in group.values()]
        gradients: dict[str, dict[str, np.ndarray]] = {module: {} for module in self._groups}
        devices = [device] if device.type == "cuda" else []
        task.eval()
        with torch.random.fork_rng(devices), seeded(runner.settings["seed"], 8), torch.enable_grad():
            for name, batches in self._batches.items():
                total = sum(count for _, count in batches)
                sums = [torch.zeros_like(p, dtype=torch.float32) for _, p in parameters]
                for batch, count in batches:
                    with strategy.autocast():
                        loss = task(to_device(batch, device))["loss"]
                    # Not backward(): accumulated gradients and the hooks of DDP are left alone.
                    parts = torch.autograd.grad(loss, [p for _, p in parameters], allow_unused=True)
                    for sum_, part in zip(sums, parts, strict=True):
                        if part is not None:
                            sum_ += part.float() * (count / total)
                for module in self._groups:
                    flat = [s.flatten() for s, (owner, _) in zip(sums, parameters, strict=True) if owner == module]
                    gradients[module][name] = torch.cat(flat).cpu().numpy()
        task.train(training)
        record = {"step": step, "tasks": list(self._batches), "modules": {}}
        for module, group in self._groups.items():
            products = gram(gradients[module])
            direction, magnitude = direction_similarity(products), magnitude_similarity(products)
            record["modules"][module] = {
                "direction": _plain(direction),
                "magnitude": _plain(magnitude),
                "norms": np.sqrt(np.diag(products)).tolist(),
                "mean_direction": _plain(mean_off_diagonal(direction)),
                "mean_magnitude": _plain(mean_off_diagonal(magnitude)),
                "conflicts": _plain(conflict_share(direction)),
                "parameters": self._statistics(module, group),
            }
        self._last = record
        append_json_line(Path(runner.work_dir) / "tug_of_war.jsonl", record)

    def _statistics(self, module: str, group) -> dict[str, float]:
        flat = torch.cat([p.detach().float().flatten().cpu() for p in group.values()])
        start = self._start.setdefault(module, flat)
        return {
            "count": len(flat),
            "norm": float(flat.norm()),
            "mean": float(flat.mean()),
            "std": float(flat.std()),
            "max": float(flat.abs().max()),
            "moved": float((flat - start).norm() / start.norm().clamp(min=1e-12)),
        }


def _plain(value):
    """Lists and floats for JSON; NaN becomes None."""
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value.tolist()]
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if math.isnan(value) else value


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
    image = axes.imshow(matrix, vmin=low, vmax=high, cmap="coolwarm" if low == -1 else "viridis", aspect="auto")
    for row in range(len(rows)):
        for column in range(len(columns)):
            if not np.isnan(matrix[row, column]):
                axes.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", color="black",
                          bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, rotation=30)
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(image, label=label)
    return write_atomic(Path(path), lambda temporary: figure.savefig(temporary, dpi=150))
