"""Tensors of a checkpoint file or folder, without running anything that is stored in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from unimed.models.weights import WeightsError, build_whole, index_files
from unimed.pickles import refuse_dangerous

#: Keys under which trainers wrap the tensors of a model.
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")


class CheckpointError(WeightsError):
    """A checkpoint that cannot be read safely, or whose keys are not those of its layout.

    `report` is the whole `ConversionReport` where keys are wrong, None otherwise.
    """

    def __init__(self, message: str, report: ConversionReport | None = None):
        super().__init__(message)
        self.report = report


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
    shapes: list[str] = field(default_factory=list)  # "key: shape instead of shape"

    def to_dict(self) -> dict:
        return asdict(self)

    def check(self, most: int = 40):
        """Raises:
        CheckpointError: a tensor is missing, left over or of another shape. Up to `most` of each kind are named in
            the message, all of them in the report of the error (`tools/convert.py --report`).
        """
        wrong = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.shapes}
        if any(wrong.values()):
            told = "; ".join(f"{len(names)} {kind}{_listed(names, most)}" for kind, names in wrong.items() if names)
            raise CheckpointError(
                f"{self.source}: not a whole {self.layout!r} checkpoint: {told}. Is it of this layout and this size?",
                self,
            )


def check_names(model, state, layout, source, destination="") -> ConversionReport:
    """Compare names and shapes of `state` with those of `model`; buffers that are not saved do not count."""
    wanted = model.state_dict()
    return ConversionReport(
        layout=layout,
        source=str(source),
        destination=str(destination),
        mapped=len(wanted.keys() & state.keys()),
        missing=sorted(wanted.keys() - state.keys()),
        unexpected=sorted(state.keys() - wanted.keys()),
        shapes=[
            f"{name}: {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in state and state[name].shape != tensor.shape
        ],
    )


def build(kind, config, state, layout: str, source, dtype=None, dropped=None):
    """A model of `kind` that holds every tensor of `state`, and the report of them.

    Args:
        kind: model class, ours or transformers'.
        dtype: of the weights; torch's default where it is None.
        dropped: what of the source is left out on purpose, with the reason.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    with torch.device("meta"):
        skeleton = kind(config)
    report = check_names(skeleton, state, layout, source)
    report.dropped = dict(dropped or {})
    report.check()
    return build_whole(kind, config, state, source, dtype), report


def _listed(names: list[str], most: int) -> str:
    rest = f", and {len(names) - most} more (see --report)" if len(names) > most else ""
    return " (" + ", ".join(names[:most]) + rest + ")"


#: How files begin that are easily taken for weights.
_BEGINNINGS = {
    b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"II*\0": "a TIFF image", b"MM\0*": "a TIFF image",
    b"GIF8": "a GIF image", b"BM": "a BMP image", b"%PDF": "a PDF", b"\x1f\x8b": "a gzip file", b"NRRD": "an NRRD file",
    b"\x5c\x01\0\0": "a NIfTI file",
    b"version https://git-lfs": "a Git LFS pointer (fetch the file with `git lfs pull`)",
    b"<!DOCTYPE": "a web page", b"<!doctype": "a web page", b"<html": "a web page",
}  # fmt: skip


def other_kind(path: Path) -> str:
    """What a file is that is plainly no checkpoint and no configuration; "" where nothing tells."""
    if not path.is_file():
        return ""
    with open(path, "rb") as stream:
        start = stream.read(132)
    if start[128:] == b"DICM":
        return "a DICOM file"
    return next((kind for begin, kind in _BEGINNINGS.items() if start.startswith(begin)), "")


def read_state_dict(path, unwrap: bool = True, mmap: bool = True, safe_globals=()) -> dict[str, torch.Tensor]:
    """Tensors by name of a `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt` file, or of a folder of shards.

    Pickled files go through `torch.load(weights_only=True)`: only tensors, plain containers and the classes listed in
    `safe_globals` are rebuilt. With `unwrap`, one layer of a trainer's wrapping ("state_dict", "model", ...) is
    taken off.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: truncated, holds other objects than tensors, names a shard that is missing, or, with the
            extra `scan`, names dangerous code.
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
    refuse_dangerous(path, CheckpointError)
    try:
        with torch.serialization.safe_globals(list(safe_globals)):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike
        if kind := other_kind(path):
            raise CheckpointError(f"{path}: {kind}, not a checkpoint; give the published weight file") from error
        # torch's own text goes on to recommend weights_only=False, which is the one thing not to do here.
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as plain tensors ({reason}). "
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


#: Where DeepSpeed keeps the weights of a run whose optimizer is sharded (ZeRO 1 and 2).
ZERO_WEIGHTS = "mp_rank_00_model_states.pt"


def _read_folder(path: Path, **options) -> dict[str, torch.Tensor]:
    zero = [*path.glob(ZERO_WEIGHTS), *path.glob(f"*/{ZERO_WEIGHTS}")]
    if zero:
        return read_state_dict(zero[0], **options)
    try:
        shards = [name for name in index_files(path) if not name.endswith(".json")]
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    if not shards:
        raise CheckpointError(f"{path}: neither model.safetensors nor pytorch_model.bin (nor their index) is there")
    tensors = {}
    for shard in shards:
        tensors.update(read_state_dict(path / shard, **options))
    return tensors
