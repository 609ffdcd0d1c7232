"""Predictions in a file: one JSON line per case, masks as run lengths. They can be scored again without a model.

    {"case": "p1-3", "text": "A nodule.", "regions": [{"phrase": "nodule", "box_xyxy_px": [4, 5, 20, 30],
     "mask_rle": {"size": [64, 64], "counts": "..."}, "presence": 0.9}]}

`case` is the id of a sample; everything else may be left out. Masks have the grid of the image of the sample (HxW, or
DxHxW slices first), runs go column by column as in COCO, plain numbers or COCO's compressed text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from unimed.files import read_json_lines
from unimed.io.result import ClassProbabilities, Prediction
from unimed.io.rle import compress_counts, decode_mask, encode_mask
from unimed.structures import Region

#: What of a region is kept beside its mask.
_KEPT = tuple(field.name for field in fields(Region) if field.name not in ("mask", "probability", "phrase_span"))


class FrozenError(ValueError):
    """A file of predictions that cannot be read; file, line and field are named."""


def frozen(case: str, prediction: Prediction) -> dict:
    """A prediction as one line; what depends on the day (times, the name of the model) is left out."""
    regions = []
    for region in prediction.regions:
        entry = {name: getattr(region, name) for name in _KEPT}
        entry = {name: list(v) if isinstance(v, tuple) else v for name, v in entry.items() if v not in (None, "")}
        if region.mask is not None:
            runs = encode_mask(region.mask)
            entry["mask_rle"] = {"size": runs["size"], "counts": compress_counts(runs["counts"])}
        regions.append(entry)
    line = {"case": case, "text": prediction.text, "regions": regions}
    if prediction.markup and prediction.markup != prediction.text:
        line["markup"] = prediction.markup
    if prediction.classes is not None:
        line["classes"] = dict(zip(prediction.classes.labels, prediction.classes.probabilities, strict=True))
    return line


def thawed(line: Mapping, where: str = "", grid: Sequence[int] | None = None) -> Prediction:
    """The prediction of a line.

    Args:
        grid: shape its masks must have; told before anything is unpacked, since a few bytes may stand for any number
            of pixels.

    Raises:
        FrozenError: a field that is none, a box without area, run lengths that do not fit their size.
    """
    try:
        regions = []
        for entry in line.get("regions") or ():
            entry = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
            runs = entry.pop("mask_rle", None)
            if runs is not None and grid is not None and list(runs["size"]) != list(grid):
                raise ValueError(f"a mask is {list(runs['size'])}, the image {list(grid)}")
            if unknown := sorted(set(entry) - set(_KEPT)):
                raise ValueError(f"a region has no field {unknown[0]!r}; known are mask_rle, {', '.join(_KEPT)}")
            regions.append(Region(**{"phrase": "", **entry}, mask=None if runs is None else decode_mask(runs)))
        classes = None
        if line.get("classes"):
            values = tuple(float(value) for value in line["classes"].values())
            classes = ClassProbabilities(tuple(line["classes"]), values, values)
        text = str(line.get("text") or "")
        return Prediction(text, tuple(regions), markup=str(line.get("markup") or ""), classes=classes)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise FrozenError(f"{where or 'prediction'}: {error}") from error


def read_lines(path: str | Path) -> dict[str, dict]:
    """Case -> line of a file of predictions, masks still run lengths.

    Raises:
        FileNotFoundError: no such file. FrozenError: no JSON, no case, or a case twice.
    """
    path, found = Path(path), {}
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of predictions")
    for number, line in read_json_lines(path, error=FrozenError):
        case = line.get("case")
        if not isinstance(case, str) or not case:
            raise FrozenError(f"{path}:{number}: field 'case' (the id of a sample) is missing")
        if case in found:
            raise FrozenError(f"{path}:{number}: case {case!r} stands there twice")
        found[case] = line
    return found


class Frozen(Sequence[Prediction]):
    """Predictions, made of their lines when they are asked for: masks of many volumes need no memory."""

    def __init__(self, lines: Iterable[Mapping], where: str = ""):
        self.lines, self.where = list(lines), where

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Frozen(self.lines[index], self.where)
        line = self.lines[index]
        return thawed(line, f"{self.where}: case {line.get('case')}")

    def __iter__(self) -> Iterator[Prediction]:
        return (self[index] for index in range(len(self)))
