"""How a volume becomes square slices of one size, and label maps of slices become a volume again (BiomedParse v2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unimed.geometry import Geometry, axis_assignment, reorient

#: Patient axis a slice is cut across -> orientation of (slices, rows, columns) in which a radiologist looks at it.
VIEWS = {"sagittal": "LIP", "coronal": "PIL", "axial": "SPL"}


def choose_axis(shape: tuple[int, ...]) -> int:
    """Axis to cut slices along: the first where the other two are about equally long, else the shortest.

    "About" means that they differ by less than half of their mean; of equally short axes the first is taken.
    """
    _, rows, columns = shape
    if 2 * abs(rows - columns) / (rows + columns) < 0.5:
        return 0
    return int(np.argmin(shape))


def to_view(array: np.ndarray, geometry: Geometry, view: str | None = None) -> tuple[np.ndarray, Geometry, int]:
    """A volume turned to how it is looked at, as a view of the same memory.

    Args:
        array: (I, J, K) in the grid of `geometry`.
        view: one of `VIEWS`, "stored" to leave the axes as they are, or None to choose: the axis of `choose_axis` in
            the axial order. A grid without known directions is left as stored.

    Returns:
        (array, its geometry, axis along which slices are cut).

    Raises:
        ValueError: unknown view, one that needs directions where there are none, or not three axes.
    """
    if array.ndim != 3:
        raise ValueError(f"a volume has three axes, got shape {array.shape}; give one phase or channel of it")
    if view not in (None, "stored", *VIEWS):
        raise ValueError(f"unknown view {view!r}; known are stored, {', '.join(VIEWS)}")
    directed = geometry.is_physical and not geometry.header.get("orientation_assumed")
    if not directed and view not in (None, "stored"):
        raise ValueError(f"view {view!r} needs the directions of the axes, which this format does not carry")
    if view == "stored" or not directed:
        return array, geometry, choose_axis(array.shape)
    if view is None:
        axial, turned = reorient(array, geometry, VIEWS["axial"])
        patient_axis = axis_assignment(turned.affine)[choose_axis(axial.shape)][0]
        view = tuple(VIEWS)[patient_axis]
    array, geometry = reorient(array, geometry, VIEWS[view])
    return array, geometry, 0


@dataclass(frozen=True)
class SliceGrid:
    """Slices of a volume, zero-padded to squares and resized to `size` px.

    Args:
        shape: of the volume. axis: along which slices are cut. size: side of the resized slices in px.
        compat: None, or "reference" for the padding of the published slice export, which leaves odd differences one
            pixel short of a square (see `pad`).
    """

    shape: tuple[int, int, int]
    axis: int
    size: int
    compat: str | None = None

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.shape[self.axis]

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns of a slice before padding."""
        rows, columns = (extent for axis, extent in enumerate(self.shape) if axis != self.axis)
        return rows, columns

    @property
    def pad(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels added before and after rows and columns; the remainder of an odd difference comes after."""
        rows, columns = self.plane
        side = max(rows, columns)
        pads = []
        for extent in (rows, columns):
            before = (side - extent) // 2
            pads.append((before, before if self.compat == "reference" else side - extent - before))
        return tuple(pads)

    def planes(self, array: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Slices start..stop-1 as (n, rows, columns), a view of `array`."""
        return np.moveaxis(array, self.axis, 0)[start:stop]

    def prepare(self, planes: np.ndarray, smooth: bool = False):
        """(n, rows, columns) to a tensor (n, size, size), padded and resized with bicubic weights.

        uint8 stays uint8 and is rounded twice on the way, once per direction, as the published weights saw it;
        float becomes float32 and may overshoot its range.

        Args:
            smooth: with antialiasing.
        """
        import torch
        from torch.nn import functional as F

        padded = np.pad(planes, ((0, 0), *self.pad))
        if padded.dtype not in (np.uint8, np.float32):
            padded = padded.astype(np.float32)
        tensor = torch.from_numpy(padded)
        if tensor.shape[-2:] == (self.size, self.size):
            return tensor
        options = dict(mode="bicubic", align_corners=False, antialias=smooth)
        return F.interpolate(tensor[None], size=(self.size, self.size), **options)[0]

    def cut(self, squares):
        """(n, side, side) -> (n, rows, columns): what was added to make a square goes."""
        (top, _), (left, _) = self.pad
        rows, columns = self.plane
        return squares[:, top : top + rows, left : left + columns]

    def restore(self, labels) -> np.ndarray:
        """Label maps (n, size, size) back to (n, rows, columns): nearest, then the padding is cut off.

        Raises:
            ValueError: a label above 2^24, which float32 cannot hold.
        """
        import torch
        from torch.nn import functional as F

        labels = torch.as_tensor(labels)
        (top, bottom), (left, right) = self.pad
        rows, columns = self.plane
        padded = (rows + top + bottom, columns + left + right)
        if labels.numel() and int(labels.max()) > 2**24:
            raise ValueError("labels above 2^24 cannot be resized")
        if tuple(labels.shape[-2:]) != padded:
            labels = F.interpolate(labels[:, None].float(), size=padded, mode="nearest")[:, 0].to(labels.dtype)
        return self.cut(labels).numpy()

    def put(self, target: np.ndarray, planes: np.ndarray, start: int) -> None:
        """Write planes (n, rows, columns) as slices from `start` on into `target`, a volume of `shape`."""
        np.moveaxis(target, self.axis, 0)[start : start + len(planes)] = planes


def with_neighbors(planes, first: int, start: int, stop: int, depth: int):
    """Three channels per slice: itself, the one before, the one after.

    At both ends the one existing neighbour stands for both; a single slice is taken three times.

    Args:
        planes: tensor (n, H, W), slices first..first+n-1 of a volume of `depth` slices; holds the neighbours needed.
        start, stop: slices to build.

    Returns:
        tensor (stop - start, 3, H, W).
    """
    import torch

    if depth == 1:
        return planes[[0] * 3][None]
    rows = []
    for z in range(start, stop):
        before, after = (z - 1 if z > 0 else z + 1), (z + 1 if z < depth - 1 else z - 1)
        rows.append([z - first, before - first, after - first])
    return planes[torch.tensor(rows)]
