"""One road from whatever a user calls an image to what a model sees: 8-bit RGB, what was done, and the way back.

`load` takes a path, bytes, a PIL image, an array, a pydicom dataset, a slice of a volume or an `Image`. Training,
checking, prediction, demonstrations and serving all go through it, so that a picture looks the same to each of them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unimed.geometry import Geometry, axis_assignment, reorient
from unimed.io import raster
from unimed.io.errors import ImageError, ReadError, WindowError
from unimed.io.limits import head_of, refuse_large_file, refuse_placeholder
from unimed.io.read import may_be_dicom, read, read_bytes
from unimed.io.slices import VIEWS
from unimed.io.tensors import array_of, is_tensor
from unimed.io.turns import INVERSE, turned_back
from unimed.io.windows import Window, choose_window, color_to_uint8

#: Changes whenever the pixels of some image do, so that what was computed from the old ones is computed again.
ROAD_VERSION = 2


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Where an image comes from and what was done to it; without its pixels, so that results can keep it.

    Attributes:
        name: of the file, "" for an array.
        steps: what was done to the stored values, in words and in order.
        window: how grey values were mapped; None for colour.
        shape: of the stored array: (H, W), or (I, J, K) for a slice in a volume format.
        geometry: of the stored array. orientation: EXIF orientation that was applied to a picture.
        place: index of the axial slice where one was cut out of a volume.
        view: of a volume, how its slices were cut, in words.
    """

    name: str = ""
    steps: tuple[str, ...] = ()
    window: Window | None = None
    shape: tuple[int, ...] = ()
    geometry: Geometry = field(default_factory=Geometry.pixels)
    orientation: int = 1
    place: int | None = None
    view: str = ""

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {"name": Path(self.name).name if self.name else "", "steps": list(self.steps), "shape": list(self.shape)}


@dataclass(frozen=True, eq=False)
class Image:
    """`rgb` is HxWx3 uint8; `geometry` belongs to its rows and columns; `source` says what was done and leads back."""

    rgb: np.ndarray
    geometry: Geometry = field(default_factory=Geometry.pixels)
    source: ImageSource = field(default_factory=ImageSource)
    is_gray: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def steps(self) -> tuple[str, ...]:
        """What was done to the stored values, in words and in order."""
        return self.source.steps

    @property
    def window(self) -> Window | None:
        return self.source.window

    @property
    def pixels(self) -> np.ndarray:
        """HxW where the image is grey, else HxWx3; uint8."""
        return np.ascontiguousarray(self.rgb[..., 0]) if self.is_gray else self.rgb

    def to_source(self, mask: np.ndarray) -> np.ndarray:
        """A mask or map HxW of `rgb` in the grid of the stored array (`source.shape`).

        Raises:
            ValueError: it is not of the size of `rgb`.
        """
        if mask.shape != self.rgb.shape[:2]:
            raise ValueError(f"{self.name or 'image'}: a mask of {mask.shape} for an image of {self.rgb.shape[:2]}")
        if len(self.source.shape) < 3:
            return np.ascontiguousarray(turned_back(mask, self.source.orientation))
        if self.source.place is None:
            return np.ascontiguousarray(reorient(mask[..., None], self.geometry, self.source.geometry.orientation)[0])
        whole = np.zeros(self.source.shape, mask.dtype)
        view, _ = reorient(whole, self.source.geometry, self.geometry.orientation)
        view[..., self.source.place] = mask
        return whole

    def points_to_source(self, points_xy: Sequence) -> np.ndarray:
        """Points (x, y) in pixels of `rgb` (0, 0 is the centre of the first) as indices into the stored array.

        Returns:
            [N, 2] (row, column) for a picture, [N, 3] for a slice in a volume format.
        """
        points = np.asarray(points_xy, dtype=np.float64).reshape(-1, 2)
        if len(self.source.shape) >= 3:
            grid = np.column_stack([points[:, 1], points[:, 0], np.zeros(len(points)), np.ones(len(points))])
            return (grid @ (np.linalg.inv(self.source.geometry.affine) @ self.geometry.affine).T)[:, :3]
        height, width = self.rgb.shape[:2]
        rows, columns = points[:, 1], points[:, 0]
        back = INVERSE[self.source.orientation]
        if back in (5, 6, 7, 8):
            rows, columns, height, width = columns, rows, width, height
        if back in (2, 3, 6, 7):
            columns = width - 1 - columns
        if back in (3, 4, 7, 8):
            rows = height - 1 - rows
        return np.column_stack([rows, columns])

    def box_to_source(self, box_xyxy_px: Sequence[float]) -> tuple[float, float, float, float]:
        """A box of `rgb` in pixels of the stored picture, xyxy; x2 and y2 exclusive.

        Raises:
            ValueError: the source is a volume format; use `points_to_source`.
        """
        if len(self.source.shape) >= 3:
            raise ValueError("a slice of a volume has no stored box of two axes; use points_to_source")
        x1, y1, x2, y2 = box_xyxy_px
        corners = self.points_to_source([(x1 - 0.5, y1 - 0.5), (x2 - 0.5, y2 - 0.5)]) + 0.5
        (top, left), (bottom, right) = corners.min(0), corners.max(0)
        return float(left), float(top), float(right), float(bottom)


def is_image_file(path: Path, suffixes: Sequence[str] = ()) -> bool:
    """Whether a file is a picture or DICOM: by its suffix, DICOM also by its mark, whatever it is called.

    Args:
        suffixes: further ones that count, in lower case.
    """
    name = path.name.lower()
    if name.startswith(".") or path.is_dir():
        return False
    return name.endswith((*raster.SUFFIXES, *suffixes)) or may_be_dicom(path)


def load(
    source,
    *,
    site: str = "",
    modality: str = "",
    window: tuple[float, float] | str | None = None,
    percentiles: tuple[float, float] | None = None,
    windows: Mapping[str, tuple[float, float]] | None = None,
    ignore_zero: bool | None = None,
    page: int | None = None,
    frame: int | None = None,
    compat: str | None = None,
    name: str = "",
) -> Image:
    """Whatever is an image as 8-bit RGB.

    Grey values of 8 bit stay as they are, deeper ones are windowed (`windows.choose_window`, which also says in which
    order); grey values stored with white as zero are inverted, palettes looked up, transparent parts put on black,
    pictures turned as EXIF says and slices as radiologists see them (the patient's left on the right, front or head
    up).

    Args:
        source: path, bytes or open binary file, PIL image, array (HxW, HxWx1, 1xHxW, HxWx3, HxWx4), pydicom dataset,
            (array, `Geometry`) as `unimed.read` gives them, a tensor of torch (see `array_of`), or an `Image`, which is
            returned as it is.
        site, modality, window, percentiles, windows, ignore_zero: see `choose_window`.
        page, frame: index from 0 of a page of a TIFF, of a picture of an animation, of a frame of a cine, of an axial
            slice of a volume. Several without it are an error that says how many; of an animation the first is taken.
        compat: "reference" as the published readers of pictures: first page, no EXIF turn, no opacity, and deep values
            cut to their upper 8 bits.
        name: for messages, where the source has none.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ReadError: the file cannot be read, or has several pages.
        ImageError: no pixels, NaN or Inf, a volume, an unknown site or an unknown type of source.
    """
    if isinstance(source, Image):
        return source
    if compat not in (None, "reference"):
        raise ValueError(f"compat {compat!r} is not known; choose 'reference' or leave it out")
    if page is not None and frame is not None and page != frame:
        raise ImageError(f"{name or 'image'}: page {page} and frame {frame} are both given; give one")
    index = page if page is not None else frame
    array, geometry, name, steps = read_source(source, index, compat, name)
    options: dict[str, Any] = dict(
        site=site, modality=modality, window=window, percentiles=percentiles, windows=windows
    )
    options["ignore_zero"] = ignore_zero
    return finished(array, geometry, name, steps, index, compat, options)


def load_stack(sources: Sequence, chosen: Sequence[int] | None = None, **options) -> list[Image]:
    """The pictures of one volume, slice by slice, with one window for all of them.

    Args:
        sources: as of `load`, at least one.
        chosen: indices of those that are wanted; of 8 bit no other is read then. The window is that of all.
        options: as of `load`.

    Raises:
        ImageError: pictures of different sizes; and what `load` raises.
    """
    compat = options.pop("compat", None)
    index = options.pop("page", options.pop("frame", None))
    wanted = list(range(len(sources)) if chosen is None else chosen)
    read_all = {place: _as_read(sources[place], index, compat) for place in wanted}
    common = None
    first = next(iter(read_all.values()))[0] if read_all else np.empty(0)
    for array, _, name, _ in read_all.values():
        if array.shape[:2] != first.shape[:2]:
            raise ImageError(f"{name or 'slice'}: slice is {array.shape[:2]}, the first {first.shape[:2]}")
    deep = any(array.ndim == 2 and array.dtype != np.uint8 for array, *_ in read_all.values())
    if deep and compat is None:
        whole = [read_all[k] if k in read_all else _as_read(sources[k], index, None) for k in range(len(sources))]
        if all(array.shape == first.shape for array, *_ in whole):
            try:
                common = choose_window(np.stack([array for array, *_ in whole]), whole[0][1], **options)
            except WindowError as error:
                raise ImageError(f"{whole[0][2] or 'slices'}: {error}") from error
    images = []
    for place in wanted:
        if isinstance(sources[place], Image):
            images.append(sources[place])
            continue
        array, geometry, name, steps = read_all[place]
        images.append(finished(array, geometry, name, steps, index, compat, options, common))
    return images


def _as_read(source, index, compat):
    if isinstance(source, Image):
        return source.pixels, source.source.geometry, source.name, list(source.steps)
    return read_source(source, index, compat)


# -- from a source to an array ----------------------------------------------------------------------------------------
def read_source(
    source, index=None, compat=None, name: str = "", **choices
) -> tuple[np.ndarray, Geometry, str, list[str]]:
    """(array as stored, its geometry, name, steps) of a source of `load`; nothing is windowed yet.

    Pictures are upright by now, see the header's `orientation`.

    Args:
        index: page of a TIFF or picture of an animation.
        choices: `series`, `phase`, `irregular` of `unimed.io.read.read`.

    Raises:
        as `load`.
    """
    from PIL import Image as Pillow

    if isinstance(source, (str, Path)):
        name = name or str(source)
        if str(source).lower().endswith(raster.SUFFIXES) and Path(source).is_file():
            return _image(str(source), index, compat, name)
        return *read(source, **choices), name, []
    if isinstance(source, Pillow.Image):
        return _image(source, index, compat, name or str(getattr(source, "filename", "") or ""))
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Geometry):
        return np.asarray(source[0]), source[1], name, []
    if isinstance(source, np.ndarray):
        return source, Geometry.pixels(), name, []
    if is_tensor(source):
        return array_of(source, name), Geometry.pixels(), name, []
    if type(source).__module__.split(".")[0] == "pydicom":
        return *read_bytes(_bytes_of(source), name or "the DICOM dataset"), name, []
    if hasattr(source, "read"):
        source.seek(0)
        name, source = name or str(getattr(source, "name", "")), source.read()
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        if data[128:132] == b"DICM":
            return *read_bytes(data, name or "the stored bytes"), name, []
        return _image(data, index, compat, name)
    raise ImageError(
        f"an image is a path, bytes, a PIL image, an array, a tensor, a DICOM dataset or (array, Geometry), "
        f"not {type(source).__name__}"
    )


def _image(source, index, compat, name):
    if isinstance(source, str):
        if Path(source).stat().st_size == 0:
            raise ReadError(f"{name}: the file is empty")
        refuse_large_file(Path(source))
        refuse_placeholder(name, head_of(Path(source)))
    elif isinstance(source, bytes):
        refuse_placeholder(name, source[:512])
    decoded = raster.decode(source, page=index, compat=compat, name=name)
    header = {"orientation": decoded.orientation, "bits": decoded.bits}
    geometry = Geometry.pixels(source_format="image", header=header)
    return raster.shown(decoded, compat), geometry, name, list(raster.steps_of(decoded, compat))


def _bytes_of(dataset) -> bytes:
    """A dataset as a DICOM file in memory, so that it takes the road of files."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    copy = type(dataset)(dataset) if not hasattr(dataset, "file_meta") else dataset
    if getattr(copy, "file_meta", None) is None or "TransferSyntaxUID" not in copy.file_meta:
        copy.file_meta = getattr(copy, "file_meta", None) or FileMetaDataset()
        copy.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    try:
        copy.save_as(stream, enforce_file_format=True)
    except Exception as error:  # pydicom raises whatever the element does
        raise ReadError(f"the DICOM dataset cannot be read ({type(error).__name__}: {error})") from error
    return stream.getvalue()


# -- from an array to the image ---------------------------------------------------------------------------------------
def finished(array, geometry, name, steps, index, compat, options, window=None) -> Image:
    """What `read_source` gave as an `Image`; `options` are those of `choose_window`, which `window` overrules."""
    label, stored = name or "array", geometry
    if array.size == 0:
        raise ImageError(f"{label}: the image has no pixels")
    if array.dtype.kind not in "iufb":
        raise ImageError(f"{label}: pixels must be numbers, got {array.dtype}")
    orientation, place, steps = int(stored.header.get("orientation", 1)), None, [*steps, *stored.steps]
    if stored.source_format == "image":
        plane = array
        shape = array.shape[:2][::-1] if orientation in (5, 6, 7, 8) else array.shape[:2]
    else:
        plane, geometry, shape, place = _plane(array, stored, index, label)
        if place is not None:
            steps.append(f"slice {place} of {_count(array, stored)}")
        elif index is not None:
            steps.append(f"frame {index} of {len(array)}")
        if stored.is_physical and geometry.orientation != stored.orientation:
            steps.append(f"turned from {stored.orientation} to {geometry.orientation} (rows, columns, slices)")
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        raise ImageError(f"{label}: the image holds NaN or Inf")
    gray = plane.ndim == 2
    if compat == "reference" and plane.dtype.kind == "u" and plane.dtype != np.uint8:
        steps.append("cut to the upper 8 bits")
        window, plane = None, (plane >> 8).astype(np.uint8)
    elif gray:
        try:
            # One window for all slices of a volume: it is chosen by the whole, whichever slice is shown.
            window = window or choose_window(array, stored, **options)
        except WindowError as error:
            raise ImageError(f"{label}: {error}") from error
        steps += window.steps
        plane = window(plane)
    else:
        plane, scaled = color_to_uint8(plane)
        steps += [scaled] if scaled else []
    rgb = np.repeat(plane[..., None], 3, axis=2) if gray else plane
    source = ImageSource(name, tuple(steps), window, tuple(shape), stored, orientation, place)
    return Image(np.ascontiguousarray(rgb), geometry, source, gray)


def _count(array, geometry) -> int:
    if geometry.is_physical and array.ndim == 3:
        return reorient(array, geometry, "PLS")[0].shape[2]
    return len(array)


def _plane(array, geometry, index, label: str):
    """One plane (H, W) or (H, W, 3), its geometry, the stored shape, and where it was cut out of a volume."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    shape = array.shape
    if geometry.is_physical and array.ndim == 3:
        plane, shown, place = radiological_slice(array, geometry, index, label)
        return plane, shown, shape, place
    if geometry.is_physical and array.ndim == 4 and shape[-1] in (3, 4):
        planes = [radiological_slice(array[..., channel], geometry, index, label) for channel in range(3)]
        return np.stack([plane for plane, _, _ in planes], -1), planes[0][1], shape[:3], planes[0][2]
    if array.ndim == 4 and shape[-1] in (3, 4):
        array = array[_frame(len(array), index, label)][..., :3]
        return array, geometry, array.shape[:2], None
    if array.ndim == 3 and shape[-1] in (3, 4) and not (geometry.source_format == "dicom" and shape[-1] == 4):
        return _on_black(array), geometry, shape[:2], None
    if array.ndim == 3 and 1 in (shape[0], shape[-1]):
        array = array[..., 0] if shape[-1] == 1 else array[0]
        return array, geometry, array.shape, None
    if array.ndim == 3:
        return array[_frame(len(array), index, label)], geometry, shape[1:], None
    if array.ndim == 2:
        return array, geometry, shape, None
    raise ImageError(f"{label}: shape {shape} is no image")


def _on_black(array: np.ndarray) -> np.ndarray:
    if array.shape[-1] == 3:
        return array
    if array.dtype == np.uint8:
        return np.rint(array[..., :3] * (array[..., 3:] / 255)).astype(np.uint8)
    return array[..., :3]


def _frame(count: int, index, label: str) -> int:
    if index is None and count > 1:
        raise ImageError(
            f"{label}: a volume or cine of {count} frames is no image; say which one with frame= (0 to {count - 1}), "
            "or hand all of them to model.predict as a volume (array, Geometry)"
        )
    if not 0 <= (index or 0) < count:
        raise ImageError(f"{label}: no frame {index}; there are {count}, 0 to {count - 1}")
    return index or 0


def radiological_slice(array, geometry, index, label: str):
    """One slice of a volume format as (rows, columns) the way a radiologist sees it, with the geometry of these."""
    if 1 in array.shape:
        thin = len(array.shape) - 1 - array.shape[::-1].index(1)
        patient_axis = axis_assignment(geometry.affine)[thin][0]
        if index not in (None, 0):
            raise ImageError(f"{label}: no frame {index}; there is one, frame 0")
        place = None
    else:
        if index is None:
            raise ImageError(
                f"{label}: shape {array.shape} is a volume, which model.predict takes whole; give frame= for one "
                "axial slice"
            )
        patient_axis, place = 2, index
    # VIEWS give (slices, rows, columns); here the slices come last.
    view = VIEWS[tuple(VIEWS)[patient_axis]]
    shown, shown_geometry = reorient(array, geometry, view[1:] + view[0])
    if place is None:
        return np.ascontiguousarray(shown[..., 0]), shown_geometry, None
    place = _frame(shown.shape[2], place, label)
    affine = shown_geometry.affine.copy()
    affine[:3, 3] += place * affine[:3, 2]
    return np.ascontiguousarray(shown[..., place]), replace(shown_geometry, affine=affine), place


__all__ = ["Image", "ImageError", "ImageSource", "ReadError", "load", "load_stack"]
