"""Text-prompted segmentation of whole volumes: slices in groups, label maps written as they come (BiomedParse v2)."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from unimed.data.wordings.biomedparse_targets import site_of
from unimed.geometry import Geometry
from unimed.io.slices import SliceGrid, to_view, with_neighbours
from unimed.io.volume_result import VolumeSegmentation
from unimed.io.windows import Window, check_site, choose_window, modality_of
from unimed.progress import Progress

DEFAULT_SLICE_BATCH = 4


class PromptError(ValueError):
    """A list of prompts that cannot be asked: none, an empty one, labels that repeat."""


def check_prompts(prompts: Mapping[int, str] | Sequence[str]) -> dict[int, str]:
    """Label -> text in ascending order; a list is numbered from 1.

    Raises:
        PromptError: none, empty, or a label below 1 or above 65535.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    table = dict(prompts) if isinstance(prompts, Mapping) else dict(enumerate(prompts, 1))
    if not table:
        raise PromptError("no prompt: name at least one thing to look for")
    for label, text in table.items():
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"prompt {label} is empty; name a thing to look for")
        if not 1 <= int(label) <= 65535:
            raise PromptError(f"label {label} of {text!r} must lie in 1..65535")
    return {int(label): table[label] for label in sorted(table, key=int)}


def segment_volume(
    model,
    array: np.ndarray,
    geometry: Geometry,
    prompts: Mapping[int, str] | Sequence[str],
    *,
    modality: str = "",
    site: str = "",
    view: str | None = None,
    window: Window | tuple[float, float] | str | None = None,
    percentiles: tuple[float, float] | None = None,
    threshold: float = 0.5,
    overlap: str = "nms",
    instances: bool = False,
    slice_batch: int = DEFAULT_SLICE_BATCH,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> VolumeSegmentation:
    """Find what the prompts name in a volume.

    Prompts are encoded once, image features once per slice. Besides the volume and its label map only one group of
    slices is in memory, so the depth of the volume does not matter.

    Args:
        model: offers `encode_prompts`, `segment_slices`, `config.image_size`, as `BoltzFormerModel`.
        array: (I, J, K) numbers in the grid of `geometry`.
        prompts: texts, numbered from 1, or label -> text.
        modality, site, window, percentiles: choose the grey values, see `io.windows.choose_window`; a `Window` is taken
            as it is. CT without a site goes by that the prompts agree on. The windows are those of the model.
        view: along which direction slices are cut, see `io.slices.to_view`.
        threshold: least existence for a target to be drawn on a slice.
        overlap: "nms": a prompt that repeats a surer one on a slice is dropped, then each voxel goes to the most
            probable target (published); "argmax": the second step alone; "keep": masks may overlap.
        instances: number single objects, kept apart by the edges the model draws, where it draws any.
        slice_batch: slices worked on together. seed: of the sampling; results do not depend on `slice_batch`.
        progress: called with (slices done, slices in all).

    Raises:
        PromptError, WindowError, ValueError: see the functions named above.
    """
    import torch

    from unimed.models.boltzformer.postprocessing import OVERLAPS, present_probability, upsample

    prompts = check_prompts(prompts)
    if overlap not in OVERLAPS:
        raise ValueError(f"unknown overlap {overlap!r}; known are {', '.join(OVERLAPS)}")
    if slice_batch < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"slice_batch must be at least 1 and threshold in [0, 1], got {slice_batch} and {threshold}")
    windows = getattr(model.config, "ct_windows", None)
    check_site(site, windows)
    begin = time.perf_counter()
    array = _three_axes(array)
    turned, turned_geometry, axis = to_view(array, geometry, view)
    mapping = window
    if not isinstance(window, Window):
        mapping = choose_window(
            turned, geometry, window=window, percentiles=percentiles, modality=modality,
            site=site or _site_of(prompts, geometry, modality), windows=windows,
        )  # fmt: skip
    grid = SliceGrid(turned.shape, axis, model.config.image_size)
    ids, depth = list(prompts), grid.depth
    labels = _Planes(np.uint8 if max(ids) < 256 else np.uint16)
    masks = {label: _Planes(bool) for label in ids} if overlap == "keep" else {}
    edges = _Planes(bool)
    existence = np.zeros((len(ids), depth), dtype=np.float32)
    features = model.encode_prompts(list(prompts.values()))

    for start in _counted(range(0, depth, slice_batch), depth):
        stop = min(start + slice_batch, depth)
        first, last = max(start - 1, 0), min(stop + 1, depth)
        planes = grid.prepare(_grey(mapping(grid.planes(turned, first, last))))
        images = with_neighbours(planes, first, start, stop, depth).float().clamp(0, 255)
        output = model.segment_slices(images, features, seed=seed, slice_numbers=range(start, stop))
        for offset in range(stop - start):
            there = output.existence[offset]
            there = torch.where(there.isnan(), torch.ones_like(there), there)
            probability = present_probability(
                upsample(output.mask_logits[offset], grid.size), there, threshold=threshold, overlap=overlap
            )
            existence[:, start + offset] = there.float().cpu().numpy()
            drawn = _merged(probability, ids, overlap)
            labels.add(start + offset, grid.restore(drawn[None].cpu()))
            for row, mask in enumerate(masks.values()):
                plane = (probability[row : row + 1] > 0.5).to(torch.uint8)
                mask.add(start + offset, grid.restore(plane.cpu()))
            if instances and output.edge_logits is not None:
                lines = upsample(output.edge_logits[offset], grid.size).sigmoid() > 0.5
                line = (lines & (probability > 0.5)).any(0)[None].to(torch.uint8)
                edges.add(start + offset, grid.restore(line.cpu()))
        if progress:
            progress(stop, depth)

    def whole(planes: _Planes) -> np.ndarray:
        target = np.zeros(array.shape, dtype=planes.dtype)
        seen = to_view(target, geometry, view)[0]  # a view: what is put into it lands in the grid of the source
        for z, plane in planes.read(grid.plane):
            grid.put(seen, plane, z)
        return target

    # Until now only one group of slices and packed planes were in memory; the network's work is over.
    drawn_labels = whole(labels)
    return VolumeSegmentation(
        labels=drawn_labels,
        prompts=prompts,
        presence={label: float(existence[row].max()) for row, label in enumerate(ids)},
        existence=existence,
        geometry=geometry,
        intensity="; ".join([str(mapping), *([mapping.remark] if mapping.remark else [])]),
        view=f"{turned_geometry.orientation} axis {axis}" if geometry.is_physical else f"as stored, axis {axis}",
        masks={label: whole(planes) for label, planes in masks.items()},
        instances=number_instances(drawn_labels, whole(edges)) if instances else None,
        seconds=time.perf_counter() - begin,
        model_reference=str(getattr(model.config, "_name_or_path", "") or ""),
        threshold=threshold,
        overlap=overlap,
        window=mapping,
    )


def _site_of(prompts: Mapping[int, str], geometry: Geometry, modality: str) -> str:
    """The site that the prompts agree on, where it chooses a CT window."""
    kind = modality_of(modality) or modality_of(str(geometry.header.get("modality", "")))
    return site_of(tuple(prompts.values())) or "" if kind == "CT" else ""


def _counted(starts: range, depth: int) -> Iterator[int]:
    """The first slices of groups, with their progress."""
    with Progress("slice", depth) as progress:
        for start in starts:
            progress.at(start)
            yield start


class _Planes:
    """Label planes of slices, packed: they are mostly of one value, and a deep volume has many of them."""

    def __init__(self, dtype):
        self.dtype, self.packed = np.dtype(dtype), {}

    def add(self, z: int, plane: np.ndarray) -> None:
        if plane.any():
            self.packed[z] = zlib.compress(np.ascontiguousarray(plane, dtype=self.dtype).tobytes(), 1)

    def read(self, shape: tuple[int, int]):
        for z, packed in self.packed.items():
            yield z, np.frombuffer(zlib.decompress(packed), dtype=self.dtype).reshape(1, *shape)


def number_instances(labels: np.ndarray, edges: np.ndarray | None = None, compat: str | None = None) -> np.ndarray:
    """Objects that touch by a face, kept apart by edge voxels, numbered from 1; int32 in the shape of `labels`.

    Interiors (no edge) are numbered, then grow within their target until they meet; what has no interior is an object
    of its own. `compat="reference"` grows by one voxel and drops what is left, as published.
    """
    from skimage.measure import label
    from skimage.segmentation import expand_labels, watershed

    if edges is None or not edges.any():
        return label(labels, connectivity=1).astype(np.int32)
    numbers = label(np.where(edges, 0, labels), connectivity=1).astype(np.int32)
    if compat == "reference":
        return np.where(labels > 0, expand_labels(numbers, distance=1), 0).astype(np.int32)
    result = np.zeros(labels.shape, np.int32)
    for target in np.unique(labels[labels > 0]):
        inside = labels == target
        # On a flat landscape the watershed grows all interiors at the same pace.
        grown = watershed(np.zeros(labels.shape, np.uint8), np.where(inside, numbers, 0), mask=inside)
        thin = label(inside & (grown == 0), connectivity=1)
        result[inside] = np.where(grown > 0, grown, thin + numbers.max() + result.max())[inside]
    return np.unique(result, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def _merged(probability, ids, overlap):
    from unimed.models.boltzformer.postprocessing import merge

    if overlap != "keep":
        return merge(probability, ids)
    import torch

    drawn = torch.zeros_like(probability[0], dtype=torch.long)
    for row, label in enumerate(ids):
        drawn[probability[row] > 0.5] = label
    return drawn


def _three_axes(array: np.ndarray) -> np.ndarray:
    """Trailing axes of one entry are dropped, as files of one phase have them."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or min(array.shape) < 1:
        raise ValueError(f"a volume has three axes, got shape {array.shape}; give one phase or channel of it")
    return array


def _grey(planes: np.ndarray) -> np.ndarray:
    if planes.dtype != np.uint8 and planes.size and (planes.min() < 0 or planes.max() > 255):
        raise ValueError(f"grey values from {planes.min():g} to {planes.max():g} are not in 0..255; map them first")
    return planes
