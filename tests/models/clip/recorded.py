"""The recorded tiny model, converted as a user would."""

import json
from pathlib import Path

import torch
from golden_files import SMALL
from safetensors.torch import load_file

from unimed.models.checkpoints import unimed_clip
from unimed.models.clip import ClipModel

FOLDER = SMALL / "unimed_clip"
TEXTS = json.loads((FOLDER / "text.json").read_text())


def converted(tmp_path) -> Path:
    target = Path(tmp_path) / "converted"
    if not target.exists():
        unimed_clip.convert(FOLDER / "model" / "train_checkpoint.pt", target)
    return target


def model(tmp_path) -> ClipModel:
    return ClipModel.from_pretrained(converted(tmp_path)).eval()


def recorded(name="model_io"):
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return {key: value.long() if value.dtype == torch.int16 else value for key, value in tensors.items()}
