"""What the values of label maps and the colors of color maps are called."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from unimed.data.prepare.pairing import FolderError
from unimed.files import read_json
from unimed.io.errors import MaskError
from unimed.io.masks import load_labels
from unimed.io.raster import decode, shown

#: Names of a value or color that is left out: background, and what nnU-Net calls it.
LEFT_OUT = ("background", "ignore")


class Names:
    """What values and colors of label maps are called; `phrase` is for masks whose names say nothing."""

    def __init__(self, phrase: str = "", values: dict | None = None):
        values = values or {}
        self.phrase, self.known = phrase, set(values)
        self.values = {value: name for value, name in values.items() if name.lower() not in LEFT_OUT}

    def refuse_unknown(self, path: Path, volume: bool) -> None:
        """
        Raises:
            MaskError: a label map or color map holds a value that has no name.
        """
        if any(isinstance(value, tuple) for value in self.known):
            raster = decode(str(path), name=str(path))
            pixels = shown(raster)
            if raster.lossy or pixels.ndim == 2:
                return  # edges of a JPEG have colors of their own; a gray map is refused where a color is looked up
            found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
            colors = [tuple(map(int, color)) for color in found]
            unknown = [(bytes(c).hex(), int(n)) for c, n in zip(colors, counts, strict=True) if any(c)]
            unknown = [(text, n) for text, n in unknown if tuple(bytes.fromhex(text)) not in self.known]
            kind, flag = "color", "--colors"
        else:
            labels = load_labels(path)[0]
            found, counts = np.unique(labels, return_counts=True)
            unknown = [(str(v), int(n)) for v, n in zip(found, counts, strict=True) if v and int(v) not in self.known]
            kind, flag = "label", "--labels"
        if unknown:
            most, count = max(unknown, key=lambda one: one[1])
            more = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
            raise MaskError(
                f"{path}: {kind} {most} ({count} {'voxels' if volume else 'pixels'}){more} without a name; "
                f"add {flag} {most}=NAME, or {most}=background to leave it out"
            )

    @classmethod
    def of(cls, args) -> Names:
        values: dict = {}
        given = args.labels or []
        if len(given) == 1 and given[0].lower().endswith(".json"):
            held = read_json(given[0], error=FolderError)
            held = held.get("labels", held)
            for one, other in held.items():
                name, value = (one, other) if isinstance(other, int) else (other, one)
                if str(value) != "0":
                    values[_whole(value, given[0])] = str(name).replace("_", " ")
        else:
            for entry in given:
                value, _, name = entry.partition("=")
                values[_whole(value, f"--labels {entry}")] = _named(name, f"--labels {entry}")
        for entry in args.colors or []:
            color, _, name = entry.partition("=")
            color = color.removeprefix("#")
            if not re.fullmatch("[0-9a-fA-F]{6}", color):
                raise FolderError(f"--colors {entry}: write a color as RRGGBB, e.g. ff0000=tumor")
            values[tuple(bytes.fromhex(color))] = _named(name, f"--colors {entry}")
        return cls(args.phrase, values)


def _whole(value, where: str) -> int:
    if not str(value).isdigit():
        raise FolderError(f"{where}: {value!r} is no whole number; write 1=liver 2=kidney")
    return int(value)


def _named(name: str, where: str) -> str:
    if not name.strip():
        raise FolderError(f"{where}: says no name; write VALUE=NAME")
    return name.strip()
