"""`export`: a trained run as a Hugging Face folder that `unimed.load` and `AutoModel.from_pretrained` open."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from unimed.data.licenses import UNKNOWN, Source, data_source, published, read_sources, write_sources
from unimed.engine import checkpoint as checkpoints
from unimed.engine.config import load_config
from unimed.engine.report import readable
from unimed.engine.strategy import Strategy, start_processes
from unimed.engine.testing import run_of
from unimed.engine.training import build_task
from unimed.evaluation.evaluating import scores_of
from unimed.files import atomic_folder, write_text
from unimed.models.cards import model_card


def export(config, checkpoint, destination, cfg_options=None) -> Path:
    """Write the model of a run.

    Args:
        config: the config it was trained with.
        checkpoint: a step folder, a run folder (its newest), or a weight file.
        destination: a folder that is not there yet; it appears whole or not at all.

    Raises:
        FileExistsError: `destination` is there.
        CheckpointError: the checkpoint is not there or damaged.
        ValueError: the task has nothing to export, or the checkpoint lacks something that was trained.
        WeightsError: what was written does not hold what the model holds; nothing is left then.
    """
    destination = Path(destination)
    if destination.exists():
        raise FileExistsError(f"{destination} is there already; remove it or choose another folder")
    settings = load_config(config, cfg_options)
    if not Path(checkpoint).exists():
        raise checkpoints.CheckpointError(f"{checkpoint} does not exist; give a run folder, a step folder or weights")
    task = build_task(settings)
    strategy = Strategy("single", task, start_processes("cpu"), "fp32")
    strategy.load_trained(checkpoints.load_weights(checkpoint), checkpoint)
    task.eval()
    with atomic_folder(destination) as folder:
        task.export(folder)
        _read_back(task, folder)
        sources = sources_of(settings)
        write_sources(folder, sources)
        write_text(folder / "README.md", _card(settings, checkpoint, task, destination.name, sources))
    return destination


def _read_back(task, folder: Path) -> None:
    """Open what was written and compare every tensor with the model in memory.

    Raises:
        WeightsError: the folder does not open, or holds other numbers.
    """
    from unimed.models.auto import load
    from unimed.models.weights import refuse_other_numbers

    if task.model is not None:
        refuse_other_numbers(task.model, load(folder, device="cpu"), folder)


def _card(settings, checkpoint, task, name: str, sources: Sequence[Source] = ()) -> str:
    """Model card: what it was trained with, how it did where it was tested, and what it is not for."""
    origin = f"Trained {_length(settings, checkpoint)} with `{Path(settings.filename or 'a config').name}`."
    folder = (run_of(checkpoint) or Path(checkpoint)) / "test"
    return model_card(name, tags=task.card_tags, example=task.card_example, sources=sources, origin=origin,
                      **measured(folder, name))  # fmt: skip


def measured(folder: Path, name: str) -> dict:
    """What a test wrote, as arguments of `model_card`: a summary, its tables, and results for the model index."""
    if not (folder / "metrics.json").is_file():
        return {}
    from huggingface_hub import EvalResult

    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    summary = scores_of(found)["summary"]
    numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    results = [
        EvalResult(
            task_type="image-text-to-text", dataset_type="unimed", dataset_name="test data of the run",
            metric_type=key.rpartition("/")[2], metric_name=key, metric_value=round(value, 6),
        )
        for key, value in numbers.items() if not isinstance(value, bool) and math.isfinite(value)
    ]  # fmt: skip
    page = folder / "metrics.md"
    lines = page.read_text(encoding="utf-8").splitlines() if page.is_file() and "tables" in found else []
    # The last line names the command, whose paths are the user's.
    tables = "\n".join(line for line in lines if "Reproduce: `" not in line)
    return {"summary": {key: readable(value) for key, value in numbers.items()}, "tables": tables, "results": results}


def sources_of(settings) -> list[Source]:
    """Parts of a trained model: those of the model it started from, and the prepared sets it was trained on."""
    task = settings["task"] or {}
    start = task.get("model")
    found: list[Source] = []
    if isinstance(start, str) and Path(start).is_dir():
        found = read_sources(start) or [published("weights it started from", start)]
    elif start is not None:
        kind = str(start.get("type", "a model")) if isinstance(start, Mapping) else Path(str(start)).name
        drawn = isinstance(start, Mapping) and kind.startswith(("Small", "Tiny"))
        terms = ("none needed", "drawn at random") if drawn else (UNKNOWN, "")
        found = [Source("weights it started from", kind, *terms)]
    for place, split in sorted(_folders(settings["train_data"])):
        found.append(data_source(place, split))
    return found


def _folders(entry) -> set[tuple[str, str]]:
    """(folder, split) of every prepared set named in a data entry, at any depth."""
    if isinstance(entry, Mapping):
        own = {(entry["path"], str(entry.get("split", "train")))} if isinstance(entry.get("path"), str) else set()
        return own.union(*(_folders(value) for value in entry.values()))
    if isinstance(entry, list | tuple):
        return set().union(*(_folders(value) for value in entry))
    return set()


def _length(settings, checkpoint) -> str:
    """How long it was trained: the step of a checkpoint folder, else what the config says."""
    path = Path(checkpoint)
    if path.is_dir():
        return f"for {int(checkpoints.resolve(path).name[5:])} steps"
    return f"for {settings['max_steps']} steps" if settings["max_steps"] else f"for {settings['epochs']:g} epochs"
