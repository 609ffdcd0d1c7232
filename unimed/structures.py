"""The four things that flow through the house. Everything else is a step between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class GeometryError(ValueError):
    """A geometry that maps no voxel to a place: not 4x4, not finite, or singular."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of an array lie in the patient.

    `affine` is 4x4 and maps voxel indices (i, j, k), the axes of the array in order, to patient millimetres
    in RAS+ (x to the Right, y to the Anterior, z to the Superior), as in NIfTI. `header` keeps what a writer may
    need of the source and is never interpreted here. `is_physical` is False for images whose format
    carries no spacing (PNG, JPEG): their unit is the pixel.

    Raises:
        GeometryError: the affine is not 4x4, holds NaN or Inf, or is singular.
    """

    affine: np.ndarray
    source_format: str = ""
    is_physical: bool = True
    header: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise GeometryError(f"affine must be 4x4, got shape {affine.shape}")
        if not np.isfinite(affine).all():
            raise GeometryError("affine holds NaN or Inf")
        if not np.allclose(affine[3], (0, 0, 0, 1)):
            raise GeometryError(f"the last row of an affine must be 0 0 0 1, got {affine[3].tolist()}")
        scale = np.linalg.norm(affine[:3, :3], axis=0)
        # The determinant is compared with the product of the column lengths, so that small voxels are no reason
        # to refuse and parallel axes always are.
        if (scale == 0).any() or abs(np.linalg.det(affine[:3, :3] / scale)) < 1e-6:
            raise GeometryError("affine is singular: two axes point the same way or one has no length")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def pixels(cls, source_format: str = "", header: Mapping[str, Any] | None = None) -> Geometry:
        """Geometry of an image without physical spacing: identity affine, unit pixels."""
        return cls(np.eye(4), source_format=source_format, is_physical=False, header=header or {})

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each array axis, in mm (pixels where `is_physical` is False)."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """Three letters: the patient direction in which each array axis grows, e.g. "RAS" or "LPS"."""
        from unimed.io.geometry import axis_codes

        return axis_codes(self.affine)


@dataclass(frozen=True, eq=False)
class Region:
    """A phrase and the place it points at.

    `mask` is bool, HxW or DxHxW in the grid of the source image. `box_xyxy_px` is in pixels of the original image,
    x2 and y2 exclusive. `presence` in [0, 1] is the probability that the thing is there at all; `confidence` in
    [0, 1] is about the place. `phrase_span` are character offsets (start, end) in the text of the owner.

    Raises:
        ValueError: mask not bool or not 2D/3D, box not finite or without area, probability outside [0, 1].
    """

    phrase: str
    mask: np.ndarray | None = None
    box_xyxy_px: tuple[float, float, float, float] | None = None
    presence: float | None = None
    confidence: float | None = None
    box_std_px: tuple[float, float, float, float] | None = None
    box_outer_xyxy_px: tuple[float, float, float, float] | None = None
    box_inner_xyxy_px: tuple[float, float, float, float] | None = None
    phrase_span: tuple[int, int] | None = None

    def __post_init__(self):
        if self.mask is not None and (self.mask.dtype != np.bool_ or self.mask.ndim not in (2, 3)):
            raise ValueError(
                f"region {self.phrase!r}: mask must be bool and 2D or 3D, got {self.mask.dtype} {self.mask.shape}"
            )
        if self.box_xyxy_px is not None:
            x1, y1, x2, y2 = self.box_xyxy_px
            if not np.isfinite(self.box_xyxy_px).all() or x2 <= x1 or y2 <= y1:
                raise ValueError(f"region {self.phrase!r}: box_xyxy_px {self.box_xyxy_px} has no area or is not finite")
        for name in ("presence", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"region {self.phrase!r}: {name} must lie in [0, 1], got {value}")


@dataclass(frozen=True, eq=False)
class Sample:
    """One training or test record, whatever its files looked like.

    `images` are arrays HxW, HxWx3 or DxHxW. `conversation` is a tuple of (role, text) pairs. `label_origin` says who
    made the labels (an expert, a threshold, a template). `patient_id` decides splits and never appears in logs.
    """

    images: tuple[np.ndarray, ...]
    geometry: Geometry
    sample_id: str
    modality: str = ""
    conversation: tuple[tuple[str, str], ...] = ()
    regions: tuple[Region, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    patient_id: str = field(default="", repr=False)
    source: str = ""
    licence: str = ""
    label_origin: str = ""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image and where it points. Research use only.

    `timing_s` maps step names to seconds; `markup` is the answer with its markers (`<p>`, `[SEG]`, stop word), where
    the model speaks in markers.
    """

    text: str
    regions: tuple[Region, ...] = ()
    geometry: Geometry | None = None
    timing_s: Mapping[str, float] = field(default_factory=dict)
    model_reference: str = ""
    markup: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON; masks as COCO run lengths with their [height, width] counts."""
        from unimed.io.rle import encode_mask

        def plain(region: Region) -> dict[str, Any]:
            values = {name: getattr(region, name) for name in Region.__dataclass_fields__ if name != "mask"}
            values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
            return values | ({} if region.mask is None else {"mask_rle": encode_mask(region.mask)})

        return {
            "text": self.text,
            "regions": [plain(region) for region in self.regions],
            "timing_s": dict(self.timing_s),
            "model": self.model_reference,
            "notice": "research use only",
        }

    def plot(self, image: np.ndarray):
        """The regions drawn over `image` (HxW or HxWx3, uint8), as a PIL image."""
        from PIL import Image

        from unimed.io.overlay import draw_regions

        return Image.fromarray(draw_regions(image, self.regions))

    def save(self, folder, name: str = "prediction", formats=("json",), image: np.ndarray | None = None) -> list:
        """Write the prediction; each file appears whole or not at all.

        Args:
            folder: made where it is not there.
            formats: of "json", "png" (overlay; needs `image`), "nifti" and "npz" (one label map, label k is region k),
                "dicom-seg" (beside the DICOM series that the geometry comes from; overlaps are kept).
            image: HxW or HxWx3 uint8, what the overlay is drawn on.

        Returns:
            the paths written.

        Raises:
            ValueError: unknown format, or "png" without `image`, or a label map without masks.
        """
        from unimed.io.prediction import save_prediction

        return save_prediction(self, folder, name, formats, image)
