"""Text-prompted segmentation of whole volumes: slices in groups, label maps written as they come (BiomedParse v2)."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from unimed.data.wordings.biomedparse_targets import site_of
from unimed.geometry import Geometry
from unimed.io.images import ImageSource
from unimed.io.result import Prediction
from unimed.io.slices import SliceGrid, to_view, with_neighbors
from unimed.io.volumes import Volume
from unimed.io.windows import Window, check_site, choose_window, modality_of
from unimed.models.boltzformer import economy
from unimed.models.boltzformer.postprocessing import OVERLAPS, merge, present_probability, there_by_existence, upsample
from unimed.models.boltzformer.recognition import sentence
from unimed.models.boltzformer.tokenizing import labeled_prompts
from unimed.progress import Progress
from unimed.structures import LabelRegion, Region

DEFAULT_SLICE_BATCH = 4
#: Logit outside of what the network saw.
_NOWHERE = -50.0


def segment_volume(
    model, array: np.ndarray, geometry: Geometry, prompts: Mapping[int, str] | Sequence[str], **options
) -> Prediction:
    """Find what the prompts name in a volume.

    Args:
        model: offers `encode_prompts`, `segment_slices`, `config.image_size`, as `BoltzFormerModel`.
        array: (I, J, K) numbers in the grid of `geometry`.
        prompts: texts, numbered from 1, or label -> text.
        options: of `segment_groups`.

    Raises:
        PromptError: no prompt, an empty one, a label that no label map holds; and what `segment_groups` raises.
    """
    return segment_groups(model, Volume(array, geometry), [labeled_prompts(prompts)], **options)[0]


@torch.no_grad()
def segment_groups(
    model,
    volume: Volume,
    groups: Sequence[Mapping[int, str]],
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
    stride: int = 1,
    crop: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Find what groups of prompts name in a volume; prompts of different groups do not influence each other.

    Prompts are encoded once, image features once per slice. Besides the volume and its label maps only one group of
    slices is in memory, so the depth of the volume does not matter.

    Args:
        groups: label -> text each.
        modality, site, window, percentiles: choose the grey values, see `io.windows.choose_window`; a `Window` is taken
            as it is. CT without a site goes by that the prompts of a group agree on. Windows are those of the model.
        view: along which direction slices are cut, see `io.slices.to_view`.
        threshold: least existence for a target to be drawn on a slice.
        overlap: "nms": a prompt that repeats a surer one on a slice is dropped, then each voxel goes to the most
            probable target (published); "argmax": the second step alone; "keep": masks may overlap.
        instances: number single objects, kept apart by the edges the model draws, where it draws any.
        slice_batch: slices worked on together. seed: of the sampling; results do not depend on `slice_batch`.
        stride: look at every so many slices first, then for the borders of what is there, and leave out the rest and
            slices of one grey value: their existence is 0, and `slices_left_out` names them. See `economy.Looking` for
            when the answer is that of all slices; a target thinner than `stride` slices may be missed. 1 looks at all.
        crop: cut the air around the body away before the network sees a slice; answers change a little, because the
            network sees less of the surroundings.
        progress: called with (slices done, slices in all).

    Returns:
        a prediction per group: `labels` in the grid of the source, regions with the highest existence over the slices
        as presence, and `existence` [prompts, slices]. With "keep" every region has a mask of its own instead of
        `labels`.

    Raises:
        WindowError, ValueError: see the functions named above.
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"unknown overlap {overlap!r}; known are {', '.join(OVERLAPS)}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if slice_batch < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"slice_batch must be at least 1 and threshold in [0, 1], got {slice_batch} and {threshold}")
    windows = getattr(model.config, "ct_windows", None)
    check_site(site, windows)
    array, geometry = _three_axes(volume.array), volume.geometry
    turned, turned_geometry, axis = to_view(array, geometry, view)
    by_site: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        by_site.setdefault(site or _site_of(group, geometry, modality), []).append(number)
    results: list = [None] * len(groups)
    for chosen, members in by_site.items():
        begin = time.perf_counter()
        mapping = window
        if not isinstance(window, Window):
            mapping = choose_window(
                turned,
                geometry,
                window=window,
                percentiles=percentiles,
                modality=modality,
                site=chosen,
                windows=windows,
            )
        grid = SliceGrid(turned.shape, axis, model.config.image_size)
        drawings = [_Drawing(groups[number], grid.depth, overlap, instances, threshold) for number in members]
        looking = economy.Looking(grid.depth, stride)
        economical = dict(looking=looking, crop=crop, slice_batch=slice_batch, seed=seed, progress=progress)
        for z, logits, existence, edges, whole in _slices(model, turned, mapping, grid, drawings, **economical):
            first, shown = 0, set()
            for drawing in drawings:
                rows = slice(first, first + len(drawing.ids))
                lines = None if edges is None else edges[rows]
                shown |= {first + row for row in drawing.add(z, grid, logits[rows], existence[rows], lines, whole)}
                first = rows.stop
            looking.note(z, shown)
        described_view = (
            f"{turned_geometry.orientation} axis {axis}" if geometry.is_physical else f"as stored, axis {axis}"
        )
        source = ImageSource(
            volume.name, (*geometry.steps, *mapping.steps), mapping, volume.array.shape, geometry, view=described_view
        )

        def stacked(planes: _Planes, grid=grid) -> np.ndarray:
            target = np.zeros(array.shape, dtype=planes.dtype)
            seen = to_view(target, geometry, view)[0]  # a view: what is put into it lands in the grid of the source
            for z, plane in planes.read(grid.plane):
                grid.put(seen, plane, z)
            return target

        # Until now only one group of slices and packed planes were in memory; the network's work is over.
        seconds = (time.perf_counter() - begin) / len(members)
        for number, drawing in zip(members, drawings, strict=True):
            found = drawing.prediction(stacked, model, geometry, source, seconds)
            results[number] = replace(found, slices_left_out=looking.left_out)
    return results


def _slices(model, turned, mapping, grid: SliceGrid, drawings, *, looking, crop, slice_batch: int, seed: int, progress):
    """(slice, mask logits [P, h, w], existence [P] (NaN where a model has none), edge logits or None, enlargement).

    In order where all slices are looked at; the caller notes in `looking` what each of them shows. The last entry takes
    logits [n, h, w] to the size of the grid, which is worth its time only for those that are drawn.
    """
    features = model.encode_prompts([text for drawing in drawings for text in drawing.prompts.values()])
    depth, done = grid.depth, 0

    def prepared(first: int, stop: int):
        return grid.prepare(_gray(mapping(grid.planes(turned, first, stop))))

    window = economy.body(lambda z: prepared(z, z + 1)[0].numpy(), depth, grid.size) if crop else None
    with Progress("slice", depth) as counted:
        while wanted := looking.following():
            if looking.stride > 1:
                flat = {z for z in wanted if economy.is_flat(grid.planes(turned, z, z + 1))}
                wanted = [z for z in wanted if z not in flat]
                for z in flat:
                    looking.skip(z)
            for part in economy.groups(wanted, slice_batch):
                counted.at(done)
                yield from _group(model, prepared, grid, features, part, window, seed)
                done += len(part)
                if progress:
                    progress(done, depth)
        if progress and done < depth:
            progress(depth, depth)


def _group(model, prepared, grid: SliceGrid, features, numbers: list[int], window, seed: int):
    """The slices `numbers`, worked on together."""
    depth, parts, begin = grid.depth, [], 0
    while begin < len(numbers):
        end = begin + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            end += 1
        start, stop = numbers[begin], numbers[end - 1] + 1
        first, last = max(start - 1, 0), min(stop + 1, depth)
        parts.append(with_neighbors(prepared(first, last), first, start, stop, depth))
        begin = end
    images = torch.cat(parts).float().clamp(0, 255)
    top, bottom, left, right = window or (0, grid.size, 0, grid.size)
    images = images[:, :, top:bottom, left:right]
    output = model.segment_slices(images, features, seed=seed, slice_numbers=numbers)

    def whole(logits):
        """In the size of the grid; nothing is where nobody looked."""
        around = (left, grid.size - right, top, grid.size - bottom)
        return F.pad(upsample(logits, (bottom - top, right - left)), around, value=_NOWHERE)

    for place, z in enumerate(numbers):
        edges = None if output.edge_logits is None else output.edge_logits[place]
        yield z, output.mask_logits[place], output.existence[place], edges, whole


class _Drawing:
    """What is found for one group of prompts, slice by slice."""

    def __init__(self, prompts: Mapping[int, str], depth: int, overlap: str, instances: bool, threshold: float):
        self.prompts, self.ids, self.overlap, self.instances = prompts, list(prompts), overlap, instances
        self.threshold = threshold
        self.labels = _Planes(np.uint8 if max(self.ids) < 256 else np.uint16)
        self.masks = {label: _Planes(bool) for label in self.ids} if overlap == "keep" else {}
        self.edges = _Planes(bool)
        self.existence = np.zeros((len(self.ids), depth), dtype=np.float32)
        self.judged = True

    def add(self, z: int, grid: SliceGrid, logits, existence, edges, whole) -> list[int]:
        """Draw a slice; returns the rows of the targets that exist there."""
        self.judged = self.judged and not bool(existence.isnan().any())
        there = torch.where(existence.isnan(), torch.ones_like(existence), existence)
        self.existence[:, z] = there.float().cpu().numpy()
        # Absent targets do not take part in anything, so they are not enlarged either.
        rows = there_by_existence(there, threshold=self.threshold, overlap=self.overlap)
        if not rows:
            return rows
        # Less than any existence, as all of them have passed.
        probability = present_probability(whole(logits[rows]), there[rows], threshold=-1.0, overlap=self.overlap)
        ids = [self.ids[row] for row in rows]
        if self.masks:
            for label, mask in zip(ids, (probability > 0.5).to(torch.uint8), strict=True):
                self.masks[label].add(z, grid.restore(mask[None].cpu()))
        if not self.masks or self.instances:
            self.labels.add(z, grid.restore(_merged(probability, ids, self.overlap)[None].cpu()))
        if self.instances and edges is not None:
            line = ((whole(edges[rows]).sigmoid() > 0.5) & (probability > 0.5)).any(0)[None].to(torch.uint8)
            self.edges.add(z, grid.restore(line.cpu()))
        return rows

    def prediction(self, stacked, model, geometry: Geometry, source: ImageSource, seconds: float) -> Prediction:
        labels = stacked(self.labels) if not self.masks or self.instances else None
        instances = number_instances(labels, stacked(self.edges)) if self.instances else None
        labels = None if self.masks else labels
        regions = []
        for row, (label, text) in enumerate(self.prompts.items()):
            presence = float(self.existence[row].max()) if self.judged else None
            if self.masks:
                regions.append(Region(text, mask=stacked(self.masks[label]), presence=presence, label=label))
            else:
                regions.append(LabelRegion(text, presence=presence, label=label, label_map=labels))
        name = str(getattr(model.config, "_name_or_path", "") or "")
        result = Prediction(
            "", tuple(regions), geometry, {"segment": seconds}, name, image=source, labels=labels,
            existence=self.existence, instances=instances,
        )  # fmt: skip
        sizes = list(result.voxels().values())
        for region, size in zip(regions, sizes, strict=True):
            # Not by `replace`, which would make the mask of a region of a label map.
            object.__setattr__(region, "remark", self._remark(region.presence, size))
        return replace(result, text=sentence(regions, sizes))

    def _remark(self, presence: float | None, voxels: int) -> str:
        """What a reader must know where the presence of a target and its mask say different things."""
        if presence is None or (presence >= self.threshold) == bool(voxels):
            return ""
        if voxels:
            return f"presence {presence:.2f} but there is a mask"
        gave_way = "" if self.overlap == "keep" else " or gave way to a more confident target (--overlap keep shows it)"
        return f"presence {presence:.2f} but no voxel: its mask is empty{gave_way}"


def _site_of(prompts: Mapping[int, str], geometry: Geometry, modality: str) -> str:
    """The site that the prompts agree on, where it chooses a CT window."""
    kind = modality_of(modality) or modality_of(str(geometry.header.get("modality", "")))
    return site_of(tuple(prompts.values())) or "" if kind == "CT" else ""


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
    if overlap != "keep":
        return merge(probability, ids)
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


def _gray(planes: np.ndarray) -> np.ndarray:
    if planes.dtype != np.uint8 and planes.size and (planes.min() < 0 or planes.max() > 255):
        raise ValueError(f"grey values from {planes.min():g} to {planes.max():g} are not in 0..255; map them first")
    return planes
