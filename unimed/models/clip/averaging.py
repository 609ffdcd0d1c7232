"""WiSE-FT: weights between those a model started from and those it was tuned to (arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models.weights import fill


def interpolate(
    first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], alpha: float
) -> dict[str, torch.Tensor]:
    """(1 - alpha) * first + alpha * second, tensor by tensor, in float32, kept in the type of `second`.

    Raises:
        ValueError: alpha outside [0, 1], or tensors that do not fit.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    odd = sorted(set(first) ^ set(second))
    if odd:
        raise ValueError(f"{len(odd)} tensors are in one of the two models only, first {odd[0]!r}")
    wrong = [name for name in first if first[name].shape != second[name].shape]
    if wrong:
        raise ValueError(f"{wrong[0]}: shapes {tuple(first[wrong[0]].shape)} and {tuple(second[wrong[0]].shape)}")
    return {
        name: torch.lerp(first[name].float(), tensor.float(), alpha).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in second.items()
    }


def average_folders(first: str | Path, second: str | Path, destination: str | Path, alpha: float = 0.5) -> Path:
    """Write the model between two folders, with the tokenizer of the second.

    Raises:
        FileExistsError: `destination` is there.
        ValueError: as `interpolate`.
    """
    from unimed.models.clip.modeling import ClipModel

    destination = Path(destination)
    if destination.exists():
        raise FileExistsError(f"{destination} is already there; choose another name or remove it")
    start, model = ClipModel.from_pretrained(first), ClipModel.from_pretrained(second)
    fill(model, interpolate(start.state_dict(), model.state_dict(), alpha), first)
    with atomic_folder(destination) as folder:
        model.save_pretrained(folder)
    return destination
