"""Contestants that have answered already: a file of predictions, and folders of label maps as segmenters write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unimed.evaluation.contestants.base import Contestant, ContestantError, grid_of
from unimed.evaluation.harness.frozen import read_lines, thawed
from unimed.files import read_json
from unimed.geometry import GeometryError, align
from unimed.identity import content_digest
from unimed.io.masks import whole_numbers
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.metrics.text import normal_form
from unimed.registry import CONTESTANTS
from unimed.structures import Region, Sample

#: Suffixes of label maps, in the order in which they are looked for.
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png")


@CONTESTANTS.register_module("predictions")
class PredictionsFile(Contestant):
    """`predictions:FILE`: JSON lines with texts, boxes and masks as run lengths (`unimed.evaluation.harness.frozen`).

    Raises:
        ContestantError: on asking, a case the file does not hold.
    """

    def __init__(self, reference="", settings=None):
        super().__init__(reference, settings)
        self.lines = read_lines(reference)

    def identity(self) -> Mapping:
        return {"content": content_digest(self.reference), "predictions": len(self.lines)}

    def answer(self, samples: Sequence[Sample]) -> list[Prediction]:
        return [self.answer_case(sample) for sample in samples]

    def answer_case(self, sample: Sample) -> Prediction:
        if sample.sample_id not in self.lines:
            raise ContestantError(f"{self.reference}: holds no case {sample.sample_id!r}")
        grid = grid_of(sample) if sample.images else None
        return thawed(self.lines[sample.sample_id], f"{self.reference}: case {sample.sample_id}", grid)


@CONTESTANTS.register_module("labels")
class LabelFolder(Contestant):
    """`labels:FOLDER`: masks of a segmenter that was run before.

    Either `CASE.nii.gz` label maps with the `dataset.json` of nnU-Net beside them ({"labels": {name: number}}, or the
    older {number: name}), or a folder per case with a file per structure as TotalSegmentator writes them
    (`CASE/liver.nii.gz`, also below `CASE/segmentations/`). A phrase is answered by the structure whose name has the
    same words; one of no name there is answered with an empty mask.

    Raises:
        FileNotFoundError: no folder. ContestantError: no dataset.json beside label maps, on asking no file of a case,
            or another grid than the image.
    """

    def __init__(self, reference="", settings=None):
        super().__init__(reference, settings)
        self.folder = Path(reference)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{reference}: no such folder of label maps")
        self.numbers = self._numbers()

    def _numbers(self) -> dict[str, int]:
        path = self.folder / "dataset.json"
        if not path.is_file():
            if any(one.is_file() and one.name.endswith(SUFFIXES) for one in self.folder.iterdir()):
                raise ContestantError(
                    f"{self.folder}: label maps need nnU-Net's dataset.json beside them (labels: names)"
                )
            return {}
        labels = read_json(path, error=ContestantError).get("labels")
        if not isinstance(labels, Mapping):
            raise ContestantError(f"{path}: holds no 'labels'")
        pairs = [(v, k) if str(k).isdigit() else (k, v) for k, v in labels.items()]
        try:
            return {spoken(str(name)): int(number) for name, number in pairs if int(number)}
        except (TypeError, ValueError):
            raise ContestantError(f"{path}: regions of several labels are not read; give one number per name") from None

    def identity(self) -> Mapping:
        return {"content": content_digest(self.reference)}

    def answer(self, samples: Sequence[Sample]) -> list[Prediction]:
        return [self.answer_case(sample) for sample in samples]

    def answer_case(self, sample: Sample) -> Prediction:
        read_mask = self._of_map(sample) if self.numbers else self._of_files(sample)
        regions = []
        for region in sample.regions:
            mask = read_mask(spoken(region.phrase))
            regions.append(Region(region.phrase, mask=mask, presence=float(mask.any())))
        return Prediction("", tuple(regions))

    def _of_map(self, sample: Sample):
        path = self._first([self.folder / f"{sample.sample_id}{suffix}" for suffix in SUFFIXES], sample)
        labels = self._aligned(path, sample)
        return lambda name: labels == self.numbers[name] if name in self.numbers else np.zeros(labels.shape, bool)

    def _of_files(self, sample: Sample):
        places = [self.folder / sample.sample_id / "segmentations", self.folder / sample.sample_id]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None or self.folder.resolve() not in folder.resolve().parents:
            raise ContestantError(f"{self.folder}: no folder of case {sample.sample_id!r}")
        files = {spoken(_stem(path)): path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)}
        shape = grid_of(sample)

        def mask(name: str) -> np.ndarray:
            return self._aligned(files[name], sample) > 0 if name in files else np.zeros(shape, bool)

        return mask

    def _first(self, paths: Sequence[Path], sample: Sample) -> Path:
        found = next((path for path in paths if path.is_file()), None)
        if found is None or self.folder.resolve() not in found.resolve().parents:
            raise ContestantError(f"{self.folder}: no label map of case {sample.sample_id!r} ({paths[0].name}, ...)")
        return found

    def _aligned(self, path: Path, sample: Sample) -> np.ndarray:
        values, geometry = read(path)
        values, shape = whole_numbers(values, str(path)), grid_of(sample)
        try:
            if len(shape) == 2 and values.ndim == 3:
                values = values.any(axis=2).astype(np.uint8) if values.shape[2] == 3 else values[..., 0]
            elif len(shape) == 3:
                values = align(values, geometry, sample.geometry, shape)[0]
        except GeometryError as error:
            raise ContestantError(f"{path}: {error}") from error
        if values.shape != shape:
            raise ContestantError(f"{path}: the label map is {values.shape}, the image {shape}")
        return values


def spoken(name: str) -> str:
    """The words of the name of a structure: `kidney_left` and "left kidney" are the same."""
    return " ".join(sorted(normal_form(name.replace("_", " ").replace("-", " ")).split()))


def _stem(path: Path) -> str:
    return next(path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix))
