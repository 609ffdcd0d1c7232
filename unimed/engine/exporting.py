"""`export`: a trained run as a Hugging Face folder that `unimed.load` and `AutoModel.from_pretrained` open."""

from __future__ import annotations

import json
from pathlib import Path

from unimed.engine import checkpoint as checkpoints
from unimed.engine.config import load_config
from unimed.engine.report import readable
from unimed.engine.strategy import Strategy, start_processes
from unimed.engine.testing import run_of
from unimed.engine.training import build_task
from unimed.evaluation.evaluating import scores_of
from unimed.files import atomic_folder
from unimed.markup import for_markdown


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
        (folder / "README.md").write_text(_card(settings, checkpoint, task, destination.name), encoding="utf-8")
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


def _card(settings, checkpoint, task, name: str) -> str:
    """Model card: what it was trained with, how it did where it was tested, and what it is not for."""
    lines = [
        "---",
        "library_name: unimed",
        f"tags: [{', '.join(task.card_tags)}]",
        "---",
        f"# {name}",
        "",
        "**Research use only.** Not a medical device; no output may be used for a diagnosis.",
        "",
        f"Trained {_length(settings, checkpoint)} with `{Path(settings.filename or 'a config').name}`.",
        "",
        "```python",
        "import unimed",
        f'model = unimed.load("{name}")  # this folder',
        task.card_example,
        "```",
    ]
    metrics = (run_of(checkpoint) or Path(checkpoint)) / "test" / "metrics.json"
    if metrics.is_file():
        found = scores_of(json.loads(metrics.read_text()))["summary"]
        numbers = [(key, value) for key, value in found.items() if isinstance(value, int | float)]
        lines += ["", "## Test", "", "| metric | value |", "|---|---|"]
        lines += [f"| {for_markdown(key)} | {readable(value)} |" for key, value in numbers]
    return "\n".join(lines) + "\n"


def _length(settings, checkpoint) -> str:
    """How long it was trained: the step of a checkpoint folder, else what the config says."""
    path = Path(checkpoint)
    if path.is_dir():
        return f"for {int(checkpoints.resolve(path).name[5:])} steps"
    return f"for {settings['max_steps']} steps" if settings["max_steps"] else f"for {settings['epochs']:g} epochs"
