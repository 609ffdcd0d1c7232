"""Tensors of a checkpoint file or folder, without running anything that is stored in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

#: Keys under which trainers wrap the tensors of a model.
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read safely, or whose keys are not those of its layout."""


@dataclass
class ConversionReport:
    """What became of every tensor of a checkpoint."""

    layout: str
    source: str
    destination: str
    mapped: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)  # key -> reason
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)

    def check(self):
        """Raises:
        CheckpointError: a tensor is missing or left over; every one is named.
        """
        if self.missing or self.unexpected:
            raise CheckpointError(
                f"{self.source}: {len(self.missing)} missing {self.missing[:8]}, "
                f"{len(self.unexpected)} unexpected {self.unexpected[:8]} for layout {self.layout!r}"
            )


def read_state_dict(path, unwrap: bool = True, mmap: bool = True, safe_globals=()) -> dict[str, torch.Tensor]:
    """Tensors by name of a `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt` file, or of a folder of shards.

    Pickled files go through `torch.load(weights_only=True)`: only tensors, plain containers and the classes listed in
    `safe_globals` are rebuilt. With `unwrap`, one layer of a trainer's wrapping ("state_dict", "model", ...) is
    taken off.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: truncated, holds other objects than tensors, or names a shard that is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.is_dir():
        return _read_folder(path, unwrap=unwrap, mmap=mmap, safe_globals=safe_globals)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    try:
        with torch.serialization.safe_globals(list(safe_globals)):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike
        raise CheckpointError(
            f"{path}: cannot be read as plain tensors ({str(error).splitlines()[0]}). "
            "The file is damaged or holds Python objects, which are never executed here"
        ) from error
    while unwrap and isinstance(state, dict):
        inner = [key for key in WRAPPERS if isinstance(state.get(key), dict)]
        if not inner or any(isinstance(value, torch.Tensor) for value in state.values()):
            break
        state = state[inner[0]]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a dictionary of tensors")
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor")
    return tensors


def _read_folder(path: Path, **options) -> dict[str, torch.Tensor]:
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / index_name).exists():
            shards = sorted(set(json.loads((path / index_name).read_text())["weight_map"].values()))
            break
    else:
        shards = [name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()][:1]
    if not shards:
        raise CheckpointError(f"{path}: neither model.safetensors nor pytorch_model.bin (nor their index) is there")
    tensors = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{path}: the index names {shard!r}, which is not a file of this folder")
        if not (path / shard).exists():
            raise CheckpointError(f"{path}: shard {shard} is missing; download it again")
        tensors.update(read_state_dict(path / shard, **options))
    return tensors
