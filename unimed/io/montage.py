"""One picture of a volume's result: a row per target with key slices, outline, name, presence and slice numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, reorient
from unimed.io.overlay import (
    COLORS,
    NOTICE,
    contact_sheet,
    draw_regions,
    letter_px,
    text_strip,
    wrapped,
    write_image,
)
from unimed.io.result import Prediction, contradiction
from unimed.io.slices import VIEWS as PLANES
from unimed.io.windows import Window
from unimed.structures import Region

#: Slices shown per target, and the width of each in pixels.
SLICES, WIDTH = 5, 240
#: Targets shown; more would make a picture nobody looks at.
MOST_TARGETS = 12
#: Which way the slices of a plane are counted.
_COUNTED = {"axial": "from the feet up", "coronal": "from the front to the back", "sagittal": "from right to left"}


def key_slices(mask: np.ndarray, count: int = SLICES) -> list[int]:
    """Indices of slices (axis 0) that show a mask best: spread over where it is, with the one where it is largest.

    An empty mask gives slices spread over the volume.
    """
    areas = mask.reshape(len(mask), -1).sum(1)
    shown = np.flatnonzero(areas)
    if not len(shown):
        return sorted({int((2 * part + 1) * len(mask) / (2 * count)) for part in range(count)})
    places = np.linspace(0, len(shown) - 1, min(count, len(shown))).round().astype(int)
    chosen = shown[places].tolist()
    largest = int(areas.argmax())
    if largest not in chosen:
        nearest = min(range(len(chosen)), key=lambda place: abs(chosen[place] - largest))
        chosen[nearest] = largest
    return sorted(set(chosen))


def montage_of(path: str | Path, prediction: Prediction, array: np.ndarray, title: str | None = None) -> Path:
    """`write_montage` of a prediction, cut as its slices were.

    Args:
        array: the volume it is about.
        title: the text of the prediction by default.
    """
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    source = prediction.image
    # `view` says how slices were cut: "SPL axis 0", or "as stored, axis 1".
    view = source.view.split() if source is not None and source.view else ["SPL", "axis", "0"]
    plane = {orientation: plane for plane, orientation in PLANES.items()}.get(view[0], "axial")
    return write_montage(
        path, array, prediction.geometry or Geometry.pixels(), prediction.regions,
        None if source is None else source.window, plane=plane, axis=int(view[-1]),
        title=prediction.text if title is None else title,
    )  # fmt: skip


def write_montage(
    path: str | Path,
    array: np.ndarray,
    geometry: Geometry,
    regions: Sequence[Region],
    window: Window | None,
    *,
    plane: str = "axial",
    axis: int = 0,
    title: str = "",
) -> Path:
    """Write the montage of a volume's result as PNG.

    Args:
        array: (I, J, K) of any number type, in the grid of `geometry`.
        regions: with masks of the shape of `array`; those without are listed without slices.
        window: how grey values become 0..255.
        plane: how slices are cut where the directions are known. axis: along which they are cut elsewhere.
        title: above all, such as the question.
    """
    directed = geometry.is_physical and not geometry.header.get("orientation_assumed")
    if directed:
        turned, turned_geometry = reorient(array, geometry, PLANES[plane])
        spacing = turned_geometry.spacing
        counted = f"{plane} slices counted from 1, {_COUNTED[plane]}"
    else:
        turned, spacing = np.moveaxis(array, axis, 0), (1.0, 1.0, 1.0)
        counted = f"slices counted from 1 along axis {axis} as stored"

    def cut(mask: np.ndarray) -> np.ndarray:
        return reorient(mask, geometry, PLANES[plane])[0] if directed else np.moveaxis(mask, axis, 0)

    def row_of(mask: np.ndarray, number: int) -> np.ndarray:
        cells = [
            _cell(turned[place], mask[place], number, window, spacing, f"slice {place + 1} of {len(turned)}")
            for place in key_slices(mask)
        ]
        return contact_sheet([cells], note="")

    rows = []
    size = letter_px(SLICES * WIDTH) // 2 + 4
    for number, region in enumerate(regions[:MOST_TARGETS]):
        mask = np.zeros(turned.shape, bool) if region.mask is None else cut(region.mask)
        color = COLORS[number % len(COLORS)]
        rows.append((_heading(region, mask, geometry), color, row_of(mask, number)))
    if not regions:
        rows.append(("nothing is pointed at", (255, 255, 255), row_of(np.zeros(turned.shape, bool), 0)))
    width = max([SLICES * WIDTH // 2, *(row.shape[1] for _, _, row in rows)])
    parts = []
    for line in wrapped(title, width - 6, size) if title else ():
        parts.append(text_strip([(line, (255, 255, 255))], width, size))
    for heading, color, row in rows:
        parts.append(text_strip([(line, color) for line in wrapped(heading, width - 6, size)], width, size))
        parts.append(row)
    left_out = f"; {len(regions) - MOST_TARGETS} further targets are not shown" if len(regions) > MOST_TARGETS else ""
    gray = f"; {window}" if window is not None else ""
    return write_image(path, contact_sheet([[part] for part in parts] or [[np.zeros((1, width, 3), np.uint8)]],
                                             note=f"{counted}{gray}{left_out}; {NOTICE}"))  # fmt: skip


def _heading(region: Region, mask: np.ndarray, geometry: Geometry) -> str:
    voxels = int(mask.sum())
    parts = [] if region.presence is None else [f"presence {region.presence:.2f}"]
    parts += [f"{voxels} voxels"]
    if geometry.is_physical and voxels:
        parts.append(f"{voxels * geometry.voxel_volume / 1000:.3g} ml")
    known = Region(region.phrase, mask=mask, presence=region.presence)  # what has no mask has an empty one here
    parts += ["presence and mask contradict each other"] if region.remark or contradiction(known) else []
    return f"{region.phrase}: {', '.join(parts)}"


def _cell(plane, mask, number: int, window, spacing, caption: str) -> np.ndarray:
    """One slice with the outline of a target, scaled to `WIDTH` with square pixels."""
    from PIL import Image

    gray = np.ascontiguousarray(window(plane) if window is not None else plane)
    if gray.dtype != np.uint8:
        gray = gray.clip(0, 255).astype(np.uint8)
    height, width = gray.shape
    size = (WIDTH, int(np.clip(round(WIDTH * height * spacing[1] / (width * spacing[2])), 16, 3 * WIDTH)))
    gray = np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR))
    mask = np.asarray(Image.fromarray(np.ascontiguousarray(mask)).resize(size, Image.Resampling.NEAREST), dtype=bool)
    # The colour of the target is its number's in the list; those before it are drawn as nothing.
    blank = np.zeros(mask.shape, bool)
    regions = [*(Region("", mask=blank) for _ in range(number % len(COLORS))), Region("", mask=mask)]
    drawn = draw_regions(gray, regions, opacity=0.2, captions=False)
    letters = 12
    return np.concatenate([drawn, text_strip([(caption, (255, 255, 255))], WIDTH, letters)])
