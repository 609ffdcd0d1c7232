"""Recorded reference numbers: where they are, and how the small ones beside the tests stand for the large ones.

`tests/golden/whole` holds every large recording in small (see `tests/golden/record.py`): tensors that can be drawn
again are named by seed, long results are kept as samples with norms. Where the environment variable UNIMED_GOLDEN
names the folder of the large recordings, the same tests compare every number.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

SMALL = Path(__file__).parent / "golden"
WHOLE = SMALL / "whole"
INDEX = "index.json"


def recording(*parts):
    """Path of a recorded file that is kept as it is: a picture, a list, a configuration."""
    root = os.environ.get("UNIMED_GOLDEN")
    if root:
        return Path(root).joinpath(*parts)
    path = WHOLE.joinpath(*parts)
    return path if path.exists() else SMALL.joinpath(*parts)


def tensors(*parts):
    """All tensors of a recorded file by name; long ones are a `Sampled` where only the small recordings are there."""
    root = os.environ.get("UNIMED_GOLDEN")
    if root:
        return read_large(Path(root).joinpath(*parts))
    return read_small(WHOLE.joinpath(*parts).with_suffix(".npz"))


def read_large(path):
    """Tensors of a `.safetensors` or `.npz` file; texts stay numpy arrays."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: as_tensor(arrays[name]) for name in arrays.files}


def as_tensor(array):
    return array if array.dtype.kind in "US" else torch.from_numpy(array)


def read_small(path):
    """What `tests/golden/record.py` wrote, with everything drawn anew that is named by a seed or a recipe."""
    with np.load(path, allow_pickle=False) as arrays:
        index = json.loads(arrays[INDEX].tobytes())
        found = {name: as_tensor(arrays[name]) for name in arrays.files if name != INDEX}
    for name, entry in index["sampled"].items():
        found[name] = Sampled(entry["shape"], entry["lead"], found[name], found.pop(f"{name}#norms"), entry["largest"])
    for stream in index["drawn"]:
        found |= draw(stream)
    for name, (source, shape) in index["recipes"].items():
        found[name] = recipe(source, shape)
    return {name: found[name] for name in index["order"]}


def draw(stream):
    """Tensors of one random stream: {name: shift + scale * draw}, drawn one after another from a seed."""
    generator = torch.Generator().manual_seed(stream["seed"])
    found = {}
    for name, shape, kind, shift, scale in stream["tensors"]:
        values = (torch.randn if kind == "normal" else torch.rand)(shape, generator=generator)
        if name is not None:
            found[name] = values if (shift, scale) == (0, 1) else values * scale + shift
            if stream.get("sums"):
                theirs, ours = stream["sums"][name], float(found[name].double().sum())
                if abs(ours - theirs) > 1e-4 * (1 + values.numel() ** 0.5 * scale):
                    raise RuntimeError(f"this torch draws other numbers from seed {stream['seed']} ({name})")
    return found


def recorded_normal(name, shape):
    """Standard normal numbers that belong to a name; float32."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.tensor(generator.standard_normal(int(np.prod(shape))).reshape(shape), dtype=torch.float32)


def recipe(name, shape):
    """Weights that belong to a name, as the recordings of uMedGround were made."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = generator.standard_normal(int(np.prod(shape))).reshape(shape)
    if len(shape) >= 2:
        values = values / np.sqrt(np.prod(shape[1:]))
    else:
        values = 1 + 0.05 * values if name.endswith("weight") else 0.05 * values
    return torch.tensor(values, dtype=torch.float32)


class Sampled:
    """Some values of a long recorded tensor, and the norm of all of them.

    Args:
        shape: shape of the whole tensor.
        lead: how many leading axes are kept apart, so that the recording can be indexed along them.
        values: [*shape[:lead], samples], the values at `positions`.
        norms: [*shape[:lead]] Euclidean norms over the rest, float64.
        largest: largest absolute value of the whole tensor.
    """

    def __init__(self, shape, lead, values, norms, largest, back=None):
        self.shape, self.lead, self.values, self.norms, self.largest = torch.Size(shape), lead, values, norms, largest
        self._back = back or (lambda tensor: tensor)  # from the shape asked for to the recorded one

    @staticmethod
    def positions(size, samples):
        """The same well spread places of any tensor of `size` values."""
        return (torch.arange(samples, dtype=torch.int64) * 2654435761) % size

    @classmethod
    def of(cls, tensor, lead, samples):
        """A sample of a whole tensor."""
        rows = tensor.flatten(lead) if lead < tensor.dim() else tensor[..., None]
        places = cls.positions(rows.shape[-1], samples)
        norms = rows.double().norm(dim=-1)
        return cls(tensor.shape, lead, rows[..., places], norms, float(tensor.abs().max()))

    def __getitem__(self, index):
        taken = len(index) if isinstance(index, tuple) else 1
        if taken > self.lead:
            raise IndexError(f"a sample of {tuple(self.shape)} can be indexed along its first {self.lead} axes")
        return Sampled(self.shape[taken:], self.lead - taken, self.values[index], self.norms[index], self.largest)

    def _seen_as(self, shape, back):
        if self.lead:
            raise IndexError("a sample with leading axes has one shape only")
        return Sampled(shape, 0, self.values, self.norms, self.largest, lambda tensor: self._back(back(tensor)))

    def transpose(self, first, second):
        """The same values of the transposed tensor."""
        shape = list(self.shape)
        shape[first], shape[second] = shape[second], shape[first]
        return self._seen_as(shape, lambda tensor: tensor.transpose(first, second))

    def flatten(self, start=0):
        """The same values with all axes from `start` on made one."""
        shape = self.shape
        return self._seen_as([*shape[:start], shape[start:].numel()], lambda tensor: tensor.reshape(shape))

    def pick(self, tensor):
        """(values, norms) of another tensor of this shape, as they are kept here."""
        other = Sampled.of(self._back(tensor), self.lead, self.values.shape[-1])
        return other.values, other.norms
