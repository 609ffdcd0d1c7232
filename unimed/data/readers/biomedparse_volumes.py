"""Volumes of the CVPR 2025 format with their prompts, for scoring in 3D while a model is trained in 2D."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unimed.data.readers.unibiomed import TreeError
from unimed.files import resolve_inside
from unimed.io.challenge import read_labels, read_prompts
from unimed.io.read import read
from unimed.registry import DATASETS
from unimed.structures import Region, Sample


@DATASETS.register_module()
class ParseVolumes:
    """One sample per `*.npz`: its image DxHxW, and a region for every prompt, absent where its label is nowhere.

    Args:
        root: folder of files with `imgs` and `text_prompts`.
        truth: folder of files of the same names with `gts`; None: `gts` lie in the same files.
        prompts: most prompts per volume, the lowest labels; None for all.
        limit: keep only the first so many volumes.

    For sets of instances `labels["instances"]` is the map that numbers them, and the one region is all of them.

    Raises:
        FileNotFoundError: no such folder. TreeError: no file in it, a truth that is missing or of another shape.
        ReadError: on access, a file that is damaged or would have to be unpickled.
    """

    def __init__(self, root, truth=None, prompts: int | None = None, limit: int | None = None):
        self.root, self.truth, self.prompts = Path(root), Path(truth) if truth else None, prompts
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder")
        names = sorted(path.name for path in self.root.glob("*.npz"))[:limit]
        self.files = [resolve_inside(self.root, name, error=TreeError) for name in names]
        if not self.files:
            raise TreeError(f"{self.root}: holds no *.npz")
        missing = [f.name for f in self.files if self.truth and not (self.truth / f.name).is_file()]
        if missing:
            raise TreeError(f"{self.truth}: no truth for {', '.join(missing[:5])}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.files[index]
        image, geometry = read(path)
        labels, _ = read_labels(self.truth / path.name if self.truth else path)
        if labels.shape != image.shape:
            raise TreeError(f"{path}: truth is {labels.shape}, its image {image.shape}")
        prompts = read_prompts(path)
        regions = []
        for label, phrase in list(prompts.first().items())[: self.prompts]:
            mask = labels > 0 if prompts.instances else labels == label
            there = bool(mask.any())
            regions.append(Region(phrase, mask=mask if there else None, presence=float(there)))
        return Sample(
            images=(image,),
            geometry=geometry,
            sample_id=path.stem,
            modality=path.stem.split("_")[0],
            regions=tuple(regions),
            labels={"task": "parse"} | ({"instances": labels.astype(np.int32)} if prompts.instances else {}),
            source=self.root.name,
            label_origin="data set",
        )
