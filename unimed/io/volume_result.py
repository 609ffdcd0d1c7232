"""What a text-prompted model finds in a volume, in memory and on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unimed.files import json_text, write_text
from unimed.geometry import Geometry
from unimed.io.result import Prediction, without_folders
from unimed.io.windows import Window
from unimed.io.write import write_npz, write_volume
from unimed.names import source_of
from unimed.structures import Region

FORMATS = ("nifti", "npz", "json", "dicom-seg")


@dataclass(frozen=True, eq=False)
class VolumeSegmentation:
    """What was found in a volume, in the grid of its source.

    Attributes:
        labels: integers of the shape of the source; 0 is nothing, else the label of a prompt.
        prompts: label -> text. presence: label -> highest existence over the slices, in [0, 1].
        existence: [P, slices] in [0, 1], rows in the order of `prompts`.
        masks: label -> bool map, only where overlaps were kept; `labels` then shows the last of them.
        instances: int32 numbers of single objects, only where asked for; 0 is nothing.
        intensity, view: how grey values were mapped and slices were cut, in words.
        seconds: reading not included. threshold: least existence; overlap: who gets a voxel that several claim.
        window: how grey values were mapped, for pictures.
    """

    labels: np.ndarray
    prompts: Mapping[int, str]
    presence: Mapping[int, float]
    existence: np.ndarray
    geometry: Geometry
    intensity: str
    view: str
    masks: Mapping[int, np.ndarray] = field(default_factory=dict)
    instances: np.ndarray | None = None
    seconds: float = 0.0
    model_reference: str = ""
    threshold: float = 0.5
    overlap: str = "nms"
    window: Window | None = None

    def mask(self, label: int) -> np.ndarray:
        """Bool mask of one prompt, in the grid of the source."""
        return self.masks[label] if self.masks else self.labels == label

    def voxels(self) -> dict[int, int]:
        """Label -> number of voxels."""
        if self.masks:
            return {label: int(self.masks[label].sum()) for label in self.prompts}
        counts = np.zeros(max(self.prompts) + 1, dtype=np.int64)
        for plane in self.labels:  # counting makes 64-bit copies, of one plane at a time
            counts += np.bincount(plane.ravel(), minlength=len(counts))
        return {label: int(counts[label]) for label in self.prompts}

    def prediction(self) -> Prediction:
        """The same as regions with masks; takes one bool map per prompt."""
        found = self.voxels()
        regions = [
            Region(text, mask=self.mask(label) if found[label] else None, presence=self.presence[label])
            for label, text in self.prompts.items()
        ]
        return Prediction("", tuple(regions), self.geometry, {"segment": self.seconds}, self.model_reference)

    def remark(self, label: int, voxels: int) -> str:
        """What a reader must know where the presence of a target and its mask say different things."""
        presence = self.presence[label]
        if voxels and presence < self.threshold:
            return f"presence {presence:.2f} but there is a mask"
        if voxels or presence < self.threshold:
            return ""
        gave_way = "" if self.overlap == "keep" else " or gave way to a more confident target (--overlap keep shows it)"
        return f"presence {presence:.2f} but no voxel: its mask is empty{gave_way}"

    def summary(self) -> dict:
        """Plain numbers for JSON: what was asked, found, and how."""
        millilitres = self.geometry.voxel_volume / 1000 if self.geometry.is_physical else None
        found = self.voxels()
        return {
            "targets": [
                {
                    "label": label,
                    "prompt": text,
                    "presence": round(self.presence[label], 4),
                    "voxels": found[label],
                    "volume_ml": None if millilitres is None else round(found[label] * millilitres, 3),
                    "slices": int((self.existence[row] > 0.5).sum()),
                }
                | ({"remark": remark} if (remark := self.remark(label, found[label])) else {})
                for row, (label, text) in enumerate(self.prompts.items())
            ],
            "instances": None if self.instances is None else int(len(np.unique(self.instances)) - 1),
            "intensity": self.intensity,
            "view": self.view,
            "steps": list(self.geometry.steps),
            "seconds": round(self.seconds, 3),
            "model": without_folders(self.model_reference),
            "notice": "research use only",
        }

    def save(self, folder, name: str, formats: Sequence[str] = ("nifti", "json")) -> list[Path]:
        """Write the result; see `unimed.inference.volume_files.save_volume`."""
        return save_volume(self, folder, name, formats)


def save_volume(result: VolumeSegmentation, folder, name: str, formats: Sequence[str]) -> list[Path]:
    """Write a result; every file appears whole or not at all.

    nifti: `NAME.nii.gz`, the label map in the geometry of the source (one `NAME-LABEL.nii.gz` per target where
        overlaps were kept; `NAME-instances.nii.gz` where instances were numbered). A sheared grid, which ITK cannot
        open as NIfTI, becomes `NAME.nrrd`.
    npz: `NAME.npz` with `segs` as the challenge wants it (labels, or numbers of instances), `existence`,
        `text_prompts` as JSON text, and `masks` where overlaps were kept.
    dicom-seg: `NAME.seg.dcm` for a DICOM series in which something was found.
    json: `NAME.json`, what was asked, found and how.

    Raises:
        ValueError: unknown format or a name that is no plain file name; DicomSegError: the source is no DICOM series.
    """
    if unknown := [form for form in formats if form not in FORMATS]:
        raise ValueError(f"unknown formats {unknown}; known are {', '.join(FORMATS)}")
    if Path(name).name != name:
        raise ValueError(f"name {name!r} must be a plain file name")
    folder, written = Path(folder), []
    for form in formats:
        if form == "nifti":
            maps = {f"{name}-{label}": mask for label, mask in result.masks.items()} or {name: result.labels}
            if result.instances is not None:
                maps[f"{name}-instances"] = result.instances
            written += [write_volume(folder / f"{stem}.nii.gz", m, result.geometry) for stem, m in maps.items()]
        elif form == "npz":
            arrays = {
                "segs": result.labels if result.instances is None else result.instances,
                "existence": result.existence,
                "text_prompts": np.array(json.dumps({str(k): v for k, v in result.prompts.items()})),
            }
            if result.masks:
                arrays["masks"] = np.stack(list(result.masks.values()))
            written.append(write_npz(folder / f"{name}.npz", arrays))
        elif form == "dicom-seg":
            if not result.labels.any() and not any(mask.any() for mask in result.masks.values()):
                continue  # the standard knows no empty segmentation; the JSON says that nothing was found
            from unimed.io.dicom_seg import write_dicom_seg

            masks = list(result.masks.values()) or None
            written.append(
                write_dicom_seg(
                    folder / f"{name}.seg.dcm",
                    result.labels,
                    result.geometry,
                    result.prompts,
                    algorithm=Path(result.model_reference).name or "unimed",
                    masks=masks,
                )
            )
        else:
            values = result.summary() | ({"source_id": source} if (source := source_of(folder, name)) else {})
            written.append(write_text(folder / f"{name}.json", json_text(values)))
    return written
