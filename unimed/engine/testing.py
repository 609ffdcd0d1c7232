"""`evaluate`: a checkpoint on `test_data`, with per-case lines, a table and overlays."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from unimed.data.mixture import DataError
from unimed.engine import checkpoint as checkpoints
from unimed.engine.config import ConfigError, load_config
from unimed.engine.errors import traceback_kept_in
from unimed.engine.report import readable
from unimed.engine.strategy import Strategy, start_processes, world
from unimed.engine.stream import build_datasets
from unimed.engine.training import build_task, only_writer, run_folder
from unimed.evaluation.cases import project
from unimed.evaluation.evaluating import scores_of
from unimed.evaluation.tables import markdown_table, write_cases
from unimed.files import plain, write_atomic
from unimed.io.result import contradiction
from unimed.progress import Progress, stage


def evaluate(config, checkpoint=None, work_dir=None, cfg_options: Mapping | None = None) -> dict:
    """Predict and score every sample of `test_data`.

    Args:
        config: path of a python config, a mapping, or an mmengine Config.
        checkpoint: a step folder, a run folder (its newest), or a weight file; None takes the newest in `work_dir`, and
            where that has none the weights the task was built with.
        work_dir: where `cases.jsonl`, `metrics.json`, `metrics.md` and `overlay.png` go; else the folder `test` of the
            run that `checkpoint` lies in, or that the config names.
        cfg_options: dotted keys that replace config values.

    Returns:
        what `task.score(samples, predictions)` found, as `scores_of` shapes it: "summary", "tables", "cases".

    Raises:
        ConfigError: the config is wrong or has no test_data.
        CheckpointError: the checkpoint is not there or damaged.
    """
    settings = load_config(config, cfg_options)
    if not settings["test_data"]:
        raise ConfigError(f"{settings.filename or 'the config'} has no test_data")
    if checkpoint is not None and not Path(checkpoint).exists():
        raise checkpoints.CheckpointError(f"{checkpoint} does not exist; give a run folder, a step folder or weights")
    run = run_of(checkpoint) if work_dir is None else Path(work_dir)
    run = run_folder(settings, None) if run is None else run
    folder = run / "test" if work_dir is None else run
    folder.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", 0))
    with traceback_kept_in(folder, rank), only_writer(folder, "testing", rank):
        return _evaluate(settings, checkpoint, run, folder)


def run_of(checkpoint) -> Path | None:
    """The run folder that a run or step folder belongs to: its results stay together."""
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.is_file() and path.parent.parent.name == "checkpoints":
        path = path.parent  # a weight file of a step
    if path is None or not path.is_dir():
        return None
    if (path / "checkpoints").is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else None


def _evaluate(settings, checkpoint, run: Path, folder: Path) -> dict:
    device = start_processes(settings["device"], settings["guards"]["hang_timeout_s"])
    with stage("building the model"):
        task = build_task(settings)
    strategy = Strategy("single", task, device, settings["precision"])
    if checkpoint is None and checkpoints.find(run / "checkpoints"):
        checkpoint = run
    if checkpoint is not None:
        strategy.load_trained(checkpoints.load_weights(checkpoint), checkpoint)
    task.eval()
    with stage("reading test_data"):
        samples = read_all(settings["test_data"], "test_data")
    rank, size = world()
    chosen = list(range(rank, len(samples), size))
    predictions, step = {}, settings["test_batch_size"]
    with torch.no_grad(), strategy.autocast(), Progress("sample", len(chosen)) as progress:
        for start in range(0, len(chosen), step):
            numbers = chosen[start : start + step]
            made = task.predict_samples([samples[n] for n in numbers])
            if len(made) != len(numbers):
                raise ValueError(f"predict_samples gave {len(made)} predictions for {len(numbers)} samples")
            predictions.update(zip(numbers, made, strict=True))
            progress.step(len(numbers))
    if size > 1:
        parts = [None] * size
        dist.all_gather_object(parts, predictions)
        predictions = {number: prediction for part in parts for number, prediction in part.items()}
    ordered = [predictions[number] for number in range(len(samples))]
    with project(folder), stage("scoring"):
        metrics = scores_of(task.score(samples, ordered, **_training_samples(task, settings)))
    if rank == 0:
        _write(folder, samples, ordered, metrics, settings, checkpoint)
    return metrics


def _training_samples(task, settings) -> dict:
    """`{"train": samples}` for tasks that put baselines made of training data beside their scores."""
    if not task.scores_against_training_data or not settings["train_data"]:
        return {}
    return {"train": read_all(settings["train_data"], "train_data")}


def read_all(entry: Mapping, key: str) -> list:
    """Every sample of a data entry.

    Raises:
        DataError: one cannot be read; all count in a score, so none is left out.
    """
    datasets, names, _, _ = build_datasets(entry)
    samples = []
    for dataset, name in zip(datasets, names, strict=True):
        for index in range(len(dataset)):
            try:
                samples.append(dataset[index])
            except Exception as error:
                raise DataError(f"{key}: {name}[{index}] cannot be read: {type(error).__name__}: {error}") from error
    return samples


def _write(folder: Path, samples, predictions, metrics, settings, checkpoint) -> None:
    write_cases(folder / "cases.jsonl", (_case(s, p) for s, p in zip(samples, predictions, strict=True)))
    if metrics["cases"]:
        write_cases(folder / "scores.jsonl", metrics["cases"])
    numbers = plain({name: value for name, value in metrics.items() if name != "cases"})
    write_atomic(folder / "metrics.json", lambda temporary: temporary.write_text(json.dumps(numbers, indent=1)))
    name = settings.filename or "CONFIG"
    command = f"bash tools/dist.sh test {name} 1" + (f" --checkpoint {checkpoint}" if checkpoint else "")
    table = markdown(metrics) + f"\n{len(samples)} samples. Reproduce: `{command}`\n"
    write_atomic(folder / "metrics.md", lambda temporary: temporary.write_text(table))
    sheet = overlay_sheet(samples, predictions, settings["overlay_cases"])
    if sheet is not None:
        from PIL import Image

        write_atomic(folder / "overlay.png", lambda temporary: Image.fromarray(sheet).save(temporary, format="PNG"))


def markdown(metrics: Mapping) -> str:
    """Metrics as markdown: their "tables" one after another, or one table with a row per number of the summary."""
    if metrics["tables"]:
        return "\n".join(f"### {name}\n\n{markdown_table(rows)}" for name, rows in metrics["tables"].items())
    rows = ["| metric | value |", "|---|---|"]
    for name, value in _rows(_plain(metrics["summary"])):
        rows.append(f"| {name} | {value} |")
    return "\n".join(rows) + "\n"


def _rows(metrics, prefix=""):
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name} / ")
        elif isinstance(value, list):
            yield name, ", ".join(readable(v) if isinstance(v, float) else str(v) for v in value)
        else:
            yield name, readable(value) if isinstance(value, float) else value


def _case(sample, prediction) -> dict:
    """One line of `cases.jsonl`: what was asked, answered and true. No patient id: it decides splits and is nobody's to
    read."""

    def regions_of(owner) -> list[dict]:
        return [
            {
                "phrase": region.phrase,
                "box_xyxy_px": region.box_xyxy_px,
                "presence": region.presence,
                "confidence": region.confidence,
                "mask_pixels": None if region.mask is None else int(region.mask.sum()),
            }
            | ({"remark": remark} if (remark := contradiction(region)) else {})
            for region in owner.regions
        ]

    texts = {role: text for role, text in reversed(sample.conversation)}  # the first of each role
    return _plain(
        {
            "sample_id": sample.sample_id,
            "source": sample.source,
            "task": sample.labels.get("task"),
            "question": texts.get("user"),
            "truth": texts.get("assistant"),
            "text": prediction.text,
            "true_regions": regions_of(sample),
            "regions": regions_of(prediction),
        }
    )


def overlay_sheet(samples, predictions, count: int, width: int = 320) -> np.ndarray | None:
    """Truth above, prediction below, each named, for `count` 2D cases with regions, spread over all; None without any.

    Everything is scaled to `width` before it is drawn, so that captions are of one size. uint8 HxWx3.
    """
    from unimed.io.images import load
    from unimed.io.overlay import contact_sheet, image_with_captions, scale_to_width

    eligible = []
    for sample, prediction in zip(samples, predictions, strict=True):
        image = sample.images[0] if sample.images else None
        flat = image is not None and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
        if flat and (sample.regions or prediction.regions):
            eligible.append((image, sample, prediction))
    pairs = []
    for place in np.unique(np.linspace(0, len(eligible) - 1, min(count, len(eligible))).round().astype(int)):
        image, sample, prediction = eligible[place]
        image = load(image).pixels
        pairs.append(
            [
                image_with_captions(*scale_to_width(image, owner.regions, width), title=f"{kind}: {sample.sample_id}")
                for kind, owner in (("truth", sample), ("prediction", prediction))
            ]
        )
    if not pairs:
        return None
    rows = []
    for start in range(0, len(pairs), 4):
        part = pairs[start : start + 4]
        rows += [[pair[0] for pair in part], [pair[1] for pair in part]]
    return contact_sheet(rows, note="upper row truth, lower row prediction; research use only")


def _plain(value):
    """Numbers, lists and dicts that JSON can hold; NaN and Inf become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
