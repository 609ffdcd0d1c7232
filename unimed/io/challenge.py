"""NPZ files of the CVPR 2025 text-prompted 3D challenge: `imgs`, `gts`, `spacing`, `text_prompts`, `segs`."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unimed.files import read_json
from unimed.io.limits import ReadError
from unimed.io.npz import members, names_in, spacing_of

#: A prompt table is a few kB; more than this is no prompt table.
MAX_PROMPT_BYTES = 2**20
#: What numpy writes around a dictionary that it stores as an array of one object.
_ENVELOPE = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True)
class Prompts:
    """What a file asks for: `texts` maps the label number to its wordings; `instances` says that the labels of the
    truth number the instances of the one target "1" instead."""

    texts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    instances: bool = False

    def first(self) -> dict[int, str]:
        """Label number -> first wording, in ascending order."""
        return {label: self.texts[label][0] for label in sorted(self.texts)}


def read_prompts(path: str | Path) -> Prompts:
    """`text_prompts` of an NPZ, or a JSON file of the same content; nothing a file names is imported or run.

    The published files hold the table as a pickled dictionary. It is read by an unpickler that knows numpy's envelope
    by name only, puts an inert holder in its place, and refuses everything else.

    Raises:
        FileNotFoundError: no such file.
        ReadError: no prompts in it, a table that names other classes, or one that does not map numbers to texts.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".json":
        return parse_prompts(read_json(path, error=ReadError), path)
    try:
        with zipfile.ZipFile(path) as archive:
            if "text_prompts.npy" not in archive.namelist():
                raise ReadError(f"{path}: holds no `text_prompts`; say what to look for with --prompts")
            if archive.getinfo("text_prompts.npy").file_size > MAX_PROMPT_BYTES:
                raise ReadError(f"{path}: `text_prompts` is larger than {MAX_PROMPT_BYTES} bytes, no table of prompts")
            table = _plain_object(archive.read("text_prompts.npy"))
    except (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, TypeError,
            AttributeError) as error:  # fmt: skip
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"{path}: `text_prompts` cannot be read without running it ({error})") from error
    return parse_prompts(table, path)


def parse_prompts(table, where: str | Path = "prompts") -> Prompts:
    """{"1": text or list of texts, ..., "instance_label": 0 or 1} as `Prompts`; `where` is named in errors.

    Raises:
        ReadError: no mapping, keys that are no positive numbers, texts that are empty.
    """
    if not isinstance(table, Mapping):
        raise ReadError(f"{where}: prompts must map label numbers to texts, found {type(table).__name__}")
    texts = {}
    for key, value in table.items():
        if key == "instance_label":
            continue
        wordings = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not str(key).isdigit() or int(key) < 1:
            raise ReadError(f"{where}: prompt key {key!r} is no positive label number")
        if not wordings or not all(isinstance(text, str) and text.strip() for text in wordings):
            raise ReadError(f"{where}: prompt {key} must be a text or a list of texts, none of them empty")
        texts[int(key)] = wordings
    if not texts:
        raise ReadError(f"{where}: the table of prompts is empty; name at least one target")
    return Prompts(texts, instances=bool(table.get("instance_label", 0)))


def read_labels(path: str | Path, key: str | None = None) -> tuple[np.ndarray, tuple[float, float, float] | None]:
    """A label map (D, H, W) of integers from an NPZ: `gts` or `segs`; and the spacing in mm along its axes, if any.

    Raises:
        FileNotFoundError: no such file.
        ReadError: damaged, pickled, of another type or shape, or without such an array.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    held = names_in(path)
    names = [key] if key else [name for name in ("gts", "segs", "labels") if name in held]
    if not names or names[0] not in held:
        raise ReadError(f"{path}: no array `{key or 'gts'}` or `segs`; found {', '.join(held)}")
    found = members(path, (names[0], "spacing"))
    labels, spacing = found[names[0]], found.get("spacing")
    if labels.ndim not in (2, 3) or labels.dtype.kind not in "iub":
        raise ReadError(
            f"{path}: `{names[0]}` must be integers of two or three axes, found {labels.dtype} {labels.shape}"
        )
    if spacing is None:
        return labels, None
    return labels, tuple(float(v) for v in spacing_of(path, spacing)[::-1])


class _Holder:
    """Stands where numpy's array and type would be, and keeps what the file says of them."""

    state = ()

    def __setstate__(self, state):
        self.state = state


class _Inert(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ENVELOPE:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return lambda *_: _Holder()


def _plain_object(content: bytes):
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.kind in "US" and shape == ():
        return json.loads(str(np.load(io.BytesIO(content), allow_pickle=False)))
    if dtype.kind != "O" or shape not in ((), (1,)):
        raise ValueError(f"expected one dictionary, found {dtype} {shape}")
    holder = _Inert(stream).load()
    if not isinstance(holder, _Holder) or len(holder.state) != 5 or len(holder.state[4]) != 1:
        raise ValueError("expected one dictionary")
    return holder.state[4][0]
