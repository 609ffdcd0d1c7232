"""What a model says of an image or volume and where it points: one result for every family, in memory and on disk."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unimed.files import FolderLock
from unimed.geometry import Geometry
from unimed.io.images import ImageSource
from unimed.io.overlay import draw_regions
from unimed.io.rle import compress_counts, decode_mask, encode_mask
from unimed.names import ResultNames
from unimed.structures import LabelRegion, Region

NOTICE = "research use only"
#: What a region holds that no JSON number or text is, or that stands in JSON in another form.
_ARRAYS = ("mask", "label_map", "probability")


class NothingToWriteError(ValueError):
    """Nothing was found that a format could hold: an answer, but no file of it."""


@dataclass(frozen=True, eq=False)
class ClassProbabilities:
    """How well each label fits an image. `probabilities` sum to 1 over the labels ("softmax") or are each label's own
    ("sigmoid"); they compare the labels given and are no probabilities of a disease. Of a volume they are the means
    over its slices, and `per_slice` [slices, labels] are those of each slice. Research use only."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    similarities: tuple[float, ...]
    kind: str = "softmax"
    per_slice: np.ndarray | None = None

    @property
    def label(self) -> str:
        """The label that fits best."""
        return self.labels[int(np.argmax(self.similarities if self.per_slice is None else self.probabilities))]

    def ranked(self) -> list[tuple[str, float]]:
        """(label, probability), best first."""
        return sorted(zip(self.labels, self.probabilities, strict=True), key=lambda pair: -pair[1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {
            "label": self.label,
            "probabilities": dict(zip(self.labels, self.probabilities, strict=True)),
            "similarities": dict(zip(self.labels, self.similarities, strict=True)),
            "kind": self.kind,
            "notice": NOTICE,
        }
        return values | ({} if self.per_slice is None else {"per_slice": np.round(self.per_slice, 6).tolist()})


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image or volume and where it points. Research use only.

    Attributes:
        text: what a person reads. markup: the same with its markers (`<p>`, `[SEG]`, stop word), where the model speaks
            in markers.
        regions: what it points at; masks are bool, HxW or in the shape of a volume, in the grid of the source.
        geometry: of the source. image: where it came from and what was done to it (`image.steps`).
        timing_s: step -> seconds. model_reference: folder or hub id.
        labels: integers in the shape of a volume; 0 is nothing, else the `label` of a region.
        existence: [regions, slices] in [0, 1], for models that judge slice by slice.
        slices_left_out: slices of a volume that a model did not look at, as asked for (`stride`); their existence is 0.
        instances: int32 numbers of single objects in the shape of the source, only where asked for; 0 is nothing.
        classes: how well labels fit, for models that compare an image with texts.
        features: arrays that were compared, by name, where a task keeps them.
    """

    text: str
    regions: tuple[Region, ...] = ()
    geometry: Geometry | None = None
    timing_s: Mapping[str, float] = field(default_factory=dict)
    model_reference: str = ""
    markup: str = ""
    image: ImageSource | None = None
    labels: np.ndarray | None = None
    existence: np.ndarray | None = None
    instances: np.ndarray | None = None
    classes: ClassProbabilities | None = None
    features: Mapping[str, Any] = field(default_factory=dict)
    slices_left_out: tuple[int, ...] = ()

    @property
    def prompts(self) -> dict[int, str]:
        """Label -> what it stands for, of all regions; labels are places from 1 where regions carry none."""
        return {label: region.phrase for label, region in _labeled(self)}

    @property
    def presence(self) -> dict[int, float | None]:
        """Label -> probability that it is there at all, where the model judges that."""
        return {label: region.presence for label, region in _labeled(self)}

    def mask(self, label: int) -> np.ndarray | None:
        """The mask of the region with a label.

        Raises:
            KeyError: there is none.
        """
        return dict(_labeled(self))[label].mask

    def voxels(self) -> dict[int, int]:
        """Label -> number of pixels or voxels of its mask; 0 without a mask."""
        if self.labels is None:
            return {label: 0 if r.mask is None else int(r.mask.sum()) for label, r in _labeled(self)}
        counts = np.zeros(int(max((0, *self.prompts))) + 1, dtype=np.int64)
        for plane in self.labels:  # counting makes 64-bit copies, of one plane at a time
            counts += np.bincount(plane.ravel(), minlength=len(counts))[: len(counts)]
        return {label: int(counts[label]) for label in self.prompts}

    @property
    def is_volume(self) -> bool:
        """Whether masks have three axes."""
        return self.labels is not None or any(_dimensions(region) == 3 for region in self.regions)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts for JSON; the keys are in docs/results.md.

        Masks stand as COCO run lengths with their shape (3D ones as COCO's compressed text), those of a label map in
        the files of the label map. A region whose presence and mask contradict each other says so as `remark`.
        """
        values = {
            "text": self.text,
            "regions": [self._plain(region) for region in self.regions],
            "timing_s": dict(self.timing_s),
            "model": without_folders(self.model_reference),
            **({} if self.image is None else {"image": self.image.to_dict()}),
            **({} if not self.markup else {"markup": self.markup}),
            **({} if self.classes is None else self.classes.to_dict()),
            "notice": NOTICE,
        }
        return values | (self._volume() if self.is_volume else {})

    def _plain(self, region: Region) -> dict[str, Any]:
        values = {name: getattr(region, name) for name in type(region).__dataclass_fields__ if name not in _ARRAYS}
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v not in (None, "")}
        values |= {"remark": remark} if (remark := region.remark or contradiction(region)) else {}
        # What a slice-wise model finds may be many masks of a large volume: its label map or masks are files.
        if self.existence is not None or isinstance(region, LabelRegion) or region.mask is None:
            return values
        runs = encode_mask(region.mask)
        if region.mask.ndim == 3:
            runs["counts"] = compress_counts(runs["counts"])
        return values | {"mask_rle": runs}

    def _volume(self) -> dict[str, Any]:
        """What was found in a volume, target by target, and how it was read."""
        grid = self.geometry
        millilitres = grid.voxel_volume / 1000 if grid is not None and grid.is_physical else None
        found, targets = self.voxels(), []
        for row, (label, region) in enumerate(_labeled(self)):
            target = {"label": label, "prompt": region.prompt or region.phrase}
            target["presence"] = None if region.presence is None else round(region.presence, 4)
            target["voxels"] = found[label]
            target["volume_ml"] = None if millilitres is None else round(found[label] * millilitres, 3)
            if self.existence is not None:
                target["slices"] = int((self.existence[row] > 0.5).sum())
            target |= {"remark": region.remark} if region.remark else {}
            targets.append(target)
        window = None if self.image is None else self.image.window
        return {
            "targets": targets,
            "instances": None if self.instances is None else int(len(np.unique(self.instances)) - 1),
            "intensity": "" if window is None else "; ".join([str(window), *([window.remark] * bool(window.remark))]),
            "view": "" if self.image is None else self.image.view,
            **({"slices_left_out": list(self.slices_left_out)} if self.slices_left_out else {}),
            "steps": [] if self.geometry is None else list(self.geometry.steps),
            "seconds": round(sum(self.timing_s.values()), 3),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], geometry: Geometry | None = None) -> Prediction:
        """The prediction of a JSON file, as far as JSON holds it: masks of label maps lie in files of their own.

        Raises:
            ValueError, KeyError: values that no `to_dict` wrote.
        """
        regions = []
        for told in values["regions"]:
            entry: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
            mask = entry.pop("mask_rle", None)
            for name in ("voxels", "volume_ml"):
                entry.pop(name, None)
            if isinstance(entry.get("label"), Mapping):
                entry["label"] = entry["label"]["value"]
            regions.append(Region(**entry, mask=None if mask is None else decode_mask(mask)))
        classes = None
        if "probabilities" in values:
            chances, likeness = values["probabilities"], values["similarities"]
            slices = values.get("per_slice")
            classes = ClassProbabilities(
                tuple(chances), tuple(chances.values()), tuple(likeness.values()), values["kind"],
                None if slices is None else np.asarray(slices, dtype=np.float32),
            )  # fmt: skip
        image = values.get("image")
        if image is not None:
            image = ImageSource(image["name"], tuple(image["steps"]), shape=tuple(image["shape"]))
        return cls(
            values["text"], tuple(regions), geometry, values["timing_s"], values["model"], values.get("markup", ""),
            image, classes=classes,
        )  # fmt: skip

    def plot(self, image: np.ndarray):
        """The regions drawn over `image` (HxW or HxWx3, uint8), as a PIL image."""
        from PIL import Image

        return Image.fromarray(draw_regions(image, self.regions))

    def save(
        self,
        folder,
        name: str | None = None,
        formats=("json",),
        image: np.ndarray | None = None,
        *,
        deidentified: bool = False,
        **options,
    ) -> list[Path]:
        """Write the prediction; each file appears whole or not at all, and none where one of them cannot be written.

        Args:
            folder: made where it is not there.
            name: of the files without suffix; what bears it already is replaced. By default that of the image, and
                predictions of other images, or other predictions of this one, get names of their own.
            formats: one or more names of writers (docs/results.md): "json", "png" (overlay; needs `image`),
                "mask-png", "nifti", "nrrd", "npz", "dicom-seg", "dicom-sr", "html", "unibiomed", "biomedparse-npz".
            image: what the overlay is drawn on: HxW or HxWx3 uint8, or the volume (I, J, K) of any number type.
            deidentified: write nothing of the patient and no name of the source, and UIDs of other value. The text and
                the phrases of the model stay as they are, and so does `name`.
            options: of single formats, see docs/clinic.md; each goes to those that know it.

        Returns:
            the paths written.

        Raises:
            ValueError: unknown format or option, what a format needs is not there, or a name that is no file name.
        """
        saved = _nameless(self) if deidentified else self
        formats = tuple(dict.fromkeys([formats] if isinstance(formats, str) else formats))
        writers = [writer_of(form) for form in formats]
        if name is not None and Path(name).name != name:
            raise ValueError(f"name {name!r} must be a plain file name")
        # What cannot be written stops here, before half of the formats are.
        given = _options_of(writers, options | ({"deidentified": True} if deidentified else {}))
        made = [
            writer(saved, image=image, formats=formats, **known) for writer, known in zip(writers, given, strict=True)
        ]
        files = [file for one in made for file in one.items()]
        if {"dicom-seg", "dicom-sr"} <= set(formats):  # the report brings the segmentation that it refers to
            extra = max(n for n, (suffix, _) in enumerate(files) if suffix == ".seg.dcm")
            files = [file for n, file in enumerate(files) if n != extra or file[0] not in dict(files[:n])]
        suffixes = [suffix for suffix, _ in files]
        if twice := sorted({suffix for suffix in suffixes if suffixes.count(suffix) > 1}):
            raise ValueError(f"formats {', '.join(formats)}: several write NAME{twice[0]}; use several folders")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if name is not None:
            return _written(folder, name, files)
        # Processes that name and write in one folder take turns, so that none takes the name of another's result.
        with FolderLock(folder, "saving", file=".saving.lock", wait_s=60):
            return _written(folder, default_name(saved, folder), files)


def _written(folder: Path, name: str, files) -> list[Path]:
    """Write {suffix: writer} pairs, JSON last: it names the label map beside it."""
    files_last = sorted(files, key=lambda file: file[0] == ".json")
    paths = {suffix: write(folder / f"{name}{suffix}") for suffix, write in files_last}
    return [paths[suffix] for suffix, _ in files]


def contradiction(region: Region, threshold: float = 0.5) -> str:
    """What a reader must know where the presence of a region and its mask say different things; "" where they agree."""
    if region.presence is None or isinstance(region, LabelRegion) or region.mask is None:
        return ""
    drawn = bool(region.mask.any())
    if region.presence >= threshold and not drawn:
        return f"presence {region.presence:.2f} but the mask is empty"
    if region.presence < threshold and drawn:
        return f"presence {region.presence:.2f} but there is a mask"
    return ""


def _nameless(prediction: Prediction) -> Prediction:
    """A prediction without the name of its source and without what readers tell of its files and series."""
    geometry, image = prediction.geometry, prediction.image
    if geometry is not None:
        header = dict(geometry.header) | {"steps": ()}
        geometry = Geometry(geometry.affine, geometry.source_format, geometry.is_physical, header)
    if image is not None:
        image = replace(image, name="", steps=())
    return replace(prediction, geometry=geometry, image=image)


def _options_of(writers, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What of the options each writer knows.

    Raises:
        ValueError: an option that none of them knows.
    """
    known = []
    for writer in writers:
        parameters = inspect.signature(writer).parameters.items()
        known.append({name for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY})
    everywhere = {"deidentified"}.union(*known)
    if surplus := sorted(set(options) - everywhere):
        raise ValueError(f"options {', '.join(surplus)}: no format asked for has them; known are {sorted(everywhere)}")
    return [{name: value for name, value in options.items() if name in names} for names in known]


def writer_of(form: str):
    """The registered writer of a format. No other name is looked at: callers of a server choose this one.

    Raises:
        ValueError: unknown, with the known ones and the closest.
    """
    from unimed.registry import WRITERS, did_you_mean, registered

    known = registered(WRITERS)
    if form not in known:
        raise ValueError(f"unknown format {form!r}{did_you_mean(form, known)} Valid choices: {sorted(known)}")
    return known[form]


def _labeled(prediction: Prediction) -> list[tuple[int, Region]]:
    return [
        (place if region.label is None else region.label, region)
        for place, region in enumerate(prediction.regions, start=1)
    ]


def _dimensions(region: Region) -> int:
    if isinstance(region, LabelRegion):
        return 0 if region.label_map is None else region.label_map.ndim
    return 0 if region.mask is None else region.mask.ndim


def without_folders(reference: str) -> str:
    """The name of a model without the folders it lies in, which tell of a user; ids of the hub stay as they are."""
    return Path(reference).name if os.path.isabs(reference) or reference.startswith(("~", ".")) else reference


#: (folder, image) -> {digest of a prediction: number among those saved by this process}.
_saved: dict[tuple[str, str], dict[bytes, int]] = {}


def default_name(prediction: Prediction, folder) -> str:
    """A name that no other prediction has in `folder`: that of its image where it has one.

    Several predictions of one image are numbered in the order this process saves them.
    """
    source = prediction.image.name if prediction.image is not None else ""
    digest = hashlib.sha256(repr((prediction.text, prediction.markup)).encode("utf-8", "surrogatepass"))
    for region in prediction.regions:
        digest.update(repr((region.phrase, region.box_xyxy_px)).encode("utf-8", "surrogatepass"))
        if prediction.labels is None and region.mask is not None:
            digest.update(repr(region.mask.shape).encode() + np.packbits(region.mask).tobytes())
    if prediction.labels is not None:
        digest.update(np.ascontiguousarray(prediction.labels).data)
    numbers = _saved.setdefault((os.path.abspath(folder), source), {})
    number = numbers.setdefault(digest.digest(), len(numbers) + 1)
    variant = str(number) if number > 1 else ""
    return ResultNames(folder)(source or digest.digest(), variant, "" if source else "prediction")


def drawn_regions(prediction: Prediction) -> list[tuple[int, Region]]:
    """(label, region) of the regions that have a mask.

    Raises:
        NothingToWriteError: no region has a mask. ValueError: masks differ in shape.
    """
    drawn = [(label, region) for label, region in _labeled(prediction) if _dimensions(region)]
    if not drawn:
        raise NothingToWriteError("the prediction holds no mask to write; formats 'json' and 'png' need none")
    if prediction.labels is None and len(shapes := {_mask_of(region).shape for _, region in drawn}) > 1:
        raise ValueError(f"masks differ in shape: {sorted(shapes)}")
    return drawn


def _mask_of(region: Region) -> np.ndarray:
    if region.mask is None:
        raise NothingToWriteError(f"region {region.phrase!r} has no mask")
    return region.mask


def label_map(prediction: Prediction) -> np.ndarray:
    """One integer per pixel: 0 for nothing, else the label of a region; where regions overlap the later one wins.

    Raises:
        ValueError: see `drawn_regions`.
    """
    drawn = drawn_regions(prediction)
    if prediction.labels is not None:
        return prediction.labels
    largest = max(label for label, _ in drawn)
    labels = np.zeros(_mask_of(drawn[0][1]).shape, dtype=np.uint8 if largest < 256 else np.uint16)
    for label, region in drawn:
        labels[_mask_of(region)] = label
    return labels


def overlapping(prediction: Prediction) -> bool:
    """Whether some pixel belongs to several regions, which no label map can hold."""
    if prediction.labels is not None:
        return False
    counts: np.ndarray | None = None
    for _, region in drawn_regions(prediction):
        mask = _mask_of(region)
        counts = mask.astype(np.uint8) if counts is None else counts + mask
        if counts.max() > 1:
            return True
    return False
