"""What flows through the package: samples and their regions, cases to run. Results are in `unimed.io.result`."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from unimed.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Region:
    """A phrase and the place it points at.

    `mask` is bool, HxW or DxHxW in the grid of the source image. `box_xyxy_px` is in pixels of the original image,
    x2 and y2 exclusive. `presence` in [0, 1] is the probability that the thing is there at all; `confidence` in
    [0, 1] is about the place. `phrase_span` are character offsets (start, end) in the text of the owner. `label` is its
    number in label maps (by default its place among the regions, from 1), `prompt` what was asked where that is not the
    phrase, `p_value` how usual the mask looks for its target (K-S test of BiomedParse v1), `probability` its map
    [H, W], float32 in [0, 1], where a model was asked for it, `remark` what a reader must know.

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
    label: int | None = None
    prompt: str = ""
    p_value: float | None = None
    remark: str = ""
    probability: np.ndarray | None = field(default=None, repr=False)

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
class LabelRegion(Region):
    """A region of a label map that several share: where no mask is given it is made when asked for, and not kept.

    A volume with twenty targets takes the memory of one map instead of twenty.
    """

    label_map: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.label is None or self.label < 1 or self.label_map is None:
            raise ValueError(f"region {self.phrase!r}: a region of a label map needs the map and a label from 1 on")

    def _mask(self) -> np.ndarray:
        own = self.__dict__.get("own_mask")
        return self.label_map == self.label if own is None else own

    def _keep(self, mask: np.ndarray | None) -> None:
        self.__dict__["own_mask"] = mask

    mask = property(_mask, _keep)


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


@dataclass(frozen=True)
class Case:
    """One thing to do. `name` is unique within a run and decides whether the case is finished already."""

    name: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


def as_list(items: Iterable) -> list:
    """The items of a list, tuple, stacked array [N, ...], data set, lazy sequence or generator, each its own object.

    What is made while it is asked for may be made in the same place again; so such items are copied, and none of them
    can turn into another later.
    """
    if isinstance(items, list | tuple):
        return list(items)
    if hasattr(items, "__len__") and hasattr(items, "__getitem__") and not isinstance(items, Mapping):
        # By number: a data set of torch need not say where it ends.
        source, count = items, len(items)
        items = (source[index] for index in range(count))
    return [item.copy() if isinstance(item, np.ndarray) or hasattr(item, "tobytes") else item for item in items]


def identity(item) -> Hashable:
    """What tells an image from others: its path, or its content; the object itself where it is neither."""
    if isinstance(item, str | PurePath):
        return str(item)
    if isinstance(item, np.ndarray) and item.dtype != object:
        return item.shape, item.dtype.str, hashlib.sha1(np.ascontiguousarray(item)).hexdigest()
    if hasattr(item, "tobytes") and hasattr(item, "mode") and getattr(item, "palette", None) is None:
        return item.size, item.mode, hashlib.sha1(item.tobytes()).hexdigest()
    return id(item)
