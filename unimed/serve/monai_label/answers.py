"""From predictions to what MONAI Label's clients read: numbered label maps, NRRD files, multipart answers."""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, lps_to_ras
from unimed.inference.asking import Source
from unimed.io.read import read
from unimed.io.result import Prediction, label_map
from unimed.io.seg_nrrd import as_seg_nrrd
from unimed.io.write import write_nrrd
from unimed.serve.problems import Problem
from unimed.structures import Region

#: Segments for what is asked in free words: Slicer makes its segments of the labels that it knows beforehand.
TARGETS = tuple(f"target {n}" for n in range(1, 9))


@dataclass(frozen=True, eq=False)
class Labeled:
    """A label map (I, J, K) uint8 in the grid of the stored image, what its numbers stand for, and the text.

    `names` are those that the client knows, `phrases` what was said, by number; `presence` likewise.
    """

    array: np.ndarray
    geometry: Geometry
    names: Mapping[str, int]
    phrases: Mapping[int, str]
    presence: Mapping[int, float | None]
    prediction: Prediction
    uncertainty: float | None = None


def numbered(known: Sequence[str]) -> dict[str, int]:
    """{name: number} of the labels of a model: the known ones, then those for free words."""
    names = [*known, *(name for name in TARGETS if name not in known)]
    return {name: number for number, name in enumerate(names[:255], 1)}


def labeled(source: Source, found: Sequence[Prediction], known: Sequence[str]) -> Labeled:
    """The predictions for one source as one label map.

    Regions of a known name get its number, others the next one of `TARGETS`; equal phrases share one. A region that is
    not there (presence below 0.5) keeps its number with no voxel. Where regions overlap the later one wins.

    Raises:
        Problem: 400, more phrases than numbers.
    """
    numbers = numbered(known)
    by_name = {name.casefold(): number for name, number in numbers.items()}
    free = [numbers[name] for name in TARGETS if name in numbers]
    phrases: dict[int, str] = {}
    presence: dict[int, float | None] = {}
    merged: dict[int, Region] = {}
    for region in (region for one in found for region in one.regions):
        if region.mask is None:
            continue
        phrase = region.phrase.strip() or "region"
        number = by_name.get(phrase.casefold())
        if number is None:
            if not free:
                raise Problem(400, f"more than {len(TARGETS)} things that have no label; ask for fewer", param="params")
            number = by_name[phrase.casefold()] = free.pop(0)
        absent = region.presence is not None and region.presence < 0.5
        mask = np.zeros_like(region.mask) if absent else region.mask
        if number in merged:
            mask = merged[number].mask | mask
        merged[number] = replace(region, phrase=phrase, mask=mask, label=number)
        phrases[number] = phrase
        presence[number] = max(filter(None, (presence.get(number), region.presence)), default=region.presence)
    text = "\n".join(one.text for one in found if one.text)
    regions = [_stored(merged[number], source) for number in sorted(merged)]
    geometry = grid_of(source)
    made = Prediction(text, tuple(regions), geometry, model_reference=found[0].model_reference if found else "")
    array = label_map(made).astype(np.uint8) if regions else np.zeros(shape_of(source), np.uint8)
    return Labeled(array, geometry, numbers, phrases, presence, made, uncertainty(found))


def uncertainty(found: Sequence[Prediction]) -> float | None:
    """How unsure a model is of an image, 0 to 1: of its least sure region the larger of the entropy of its presence
    (bits) and 1 minus its confidence; None where it tells neither."""
    doubts = []
    for region in (region for one in found for region in one.regions):
        each = []
        if region.presence is not None:
            p = min(max(float(region.presence), 1e-9), 1 - 1e-9)
            each.append(-p * math.log2(p) - (1 - p) * math.log2(1 - p))
        if region.confidence is not None and (region.presence is None or region.presence >= 0.5):
            each.append(1 - float(region.confidence))
        if each:
            doubts.append(max(each))
    return round(max(doubts), 6) if doubts else None


def shape_of(source: Source) -> tuple[int, int, int]:
    """Of the label map of a source: pictures are volumes of one slice, columns first."""
    if source.is_volume:
        return source.content.array.shape
    shape = source.content.source.shape
    return shape if len(shape) == 3 and source.content.source.geometry.is_physical else (shape[1], shape[0], 1)


def grid_of(source: Source) -> Geometry:
    """Geometry of the label map of a source; a picture lies as ITK puts it, with pixels of 1 mm."""
    if source.is_volume:
        return source.content.geometry
    found = source.content.source.geometry
    return found if found.is_physical else Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]), "picture")


def _stored(region: Region, source: Source) -> Region:
    if source.is_volume:
        return region
    mask = source.content.to_source(region.mask)
    return replace(region, mask=mask.T[..., None] if mask.ndim == 2 else mask, box_xyxy_px=None, probability=None)


def file_of(made: Labeled, kind: str = ".nrrd", *, raw: bool = False) -> bytes:
    """The bytes of a result: `.nrrd` (one label map) or `.seg.nrrd` (overlaps, names, colors, codes).

    Args:
        raw: not compressed, and slices in the order of viewers that read the bytes and not the geometry.
    """
    array, geometry = made.array, made.geometry
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"result{kind}"
        if kind == ".seg.nrrd" and made.prediction.regions:
            for write in as_seg_nrrd(made.prediction).values():
                write(path)
        else:
            if raw:
                array, geometry = viewer_order(array, geometry)
            write_nrrd(path.with_name("result.nrrd"), array, geometry, encoding="raw" if raw else "gzip")
            path = path.with_name("result.nrrd")
        return path.read_bytes()


def viewer_order(array: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
    """An array (columns, rows, slices) with its slices ascending along row times column direction, in LPS."""
    axes = lps_to_ras(geometry.affine)[:3, :3]
    if np.dot(np.cross(axes[:, 0], axes[:, 1]), axes[:, 2]) >= 0:
        return array, geometry
    turned = np.array(geometry.affine)
    turned[:3, 3] += turned[:3, 2] * (array.shape[2] - 1)
    turned[:3, 2] *= -1
    return array[..., ::-1], replace(geometry, affine=turned)


def from_viewer(content: bytes, source: Source) -> bytes:
    """The raw bytes of a viewer's label (uint8, columns fastest, slices as `viewer_order`) as an NRRD file.

    Raises:
        Problem: 400, another number of voxels.
    """
    shape, geometry = shape_of(source), grid_of(source)
    if len(content) != int(np.prod(shape)):
        raise Problem(400, f"the label has {len(content)} voxels, the image {int(np.prod(shape))}", param="label")
    array = np.frombuffer(content, np.uint8).reshape(shape, order="F")
    turned = viewer_order(array, geometry)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = write_nrrd(Path(folder) / "label.nrrd", array, turned)
        return path.read_bytes()


def image_file(source: Source) -> tuple[str, bytes]:
    """(suffix, content) of an image that is a folder of slices: one NRRD in the grid of its labels."""
    array = source.content.array if source.is_volume else source.content.to_source(source.content.pixels)
    array = array.T[..., None] if array.ndim == 2 else array
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    with tempfile.TemporaryDirectory() as folder:
        return ".nrrd", write_nrrd(Path(folder) / "image.nrrd", array, grid_of(source)).read_bytes()


def read_label(path: Path) -> np.ndarray:
    """A submitted label as (I, J, K) uint8 numbers; layers of a `.seg.nrrd` are laid over one another.

    Raises:
        ValueError: not three axes, or numbers beyond 255.
    """
    array, _ = read(path)
    array = array.T[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.min() < 0 or array.max() > 255:
        raise ValueError(f"{path.name}: a label map has three axes of numbers from 0 to 255")
    return array.astype(np.uint8)


def check_label(content: bytes, suffix: str, source: Source) -> None:
    """That a submitted file is a label map of its image, before it takes the place of an earlier one.

    Raises:
        Problem: 400, no file that can be read as one, or one of another shape.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"label{suffix}"
        path.write_bytes(content)
        try:
            shape = read_label(path).shape
        except (ValueError, OSError) as error:
            raise Problem(400, str(error).replace(f"{folder}/", ""), param="label") from error
    if shape != shape_of(source):
        raise Problem(400, f"a label has the shape {shape}, its image {shape_of(source)}", param="label")


def multipart(values: Mapping, name: str, content: bytes) -> tuple[bytes, str]:
    """(body, content type) of the part `params` (JSON, no file name) and the part `image` (a file)."""
    boundary = secrets.token_hex(16)
    head = 'Content-Disposition: form-data; name="{}"{}\r\nContent-Type: {}\r\n\r\n'
    parts = [
        (head.format("params", "", "application/json").encode(), json.dumps(values).encode()),
        (head.format("image", f'; filename="{name}"', "application/octet-stream").encode(), content),
    ]
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + top + data + b"\r\n" for top, data in parts)
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
