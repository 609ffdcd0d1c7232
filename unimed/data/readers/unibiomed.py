"""Readers of the folder tree that UniBiomed trains on (`data/Biomed`), each yielding `Sample`.

ROOT/train.json, train/, train_mask/            2D segmentation, disease and region sets (COCO-like)
ROOT/train.json with `caption`                  MedTrinity and region captions
ROOT/train_parse.json                           RadGenome reports (GRG) and questions (GVQA)
ROOT/meta_train.json, VOLUME/SLICE              3D sets
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.data import canonical
from unimed.files import read_json as read_json_file
from unimed.files import resolve_inside
from unimed.geometry import Geometry
from unimed.io.errors import ImageError, MaskError, ReadError
from unimed.io.images import Image, load_stack
from unimed.io.images import load as load_image
from unimed.io.masks import RESIZED, load_mask
from unimed.io.region_box import draw_box
from unimed.io.volume_slices import choose_slices
from unimed.registry import DATASETS, renames
from unimed.structures import Intent, Region, Sample

KINDS = ("segmentation", "disease", "region")
#: How a region is shown: by a green frame painted on the image, or by its mask (the image tokens under it).
REGION_STYLES = ("box", "tokens")
NO_FINDINGS = "no findings"
#: Tokens a sample takes, roughly, for grouping by length: up to 13 tiles, ten slices of one tile each.
TILED_TOKENS, SLICE_TOKENS = 2000, 260


class TreeError(ValueError):
    """A tree that does not hold what its JSON promises; the message names the file and the remedy."""


def read_json(path: Path):
    """The content of a JSON file.

    Raises:
        FileNotFoundError: not there; the message lists the sets that lie beside it.
        TreeError: not JSON.
    """
    if not path.is_file():
        near = path.parent if path.parent.is_dir() else path.parent.parent
        found = ", ".join(sorted(p.name for p in near.iterdir())[:12]) if near.is_dir() else "nothing"
        raise FileNotFoundError(f"{path}: no such file; {near} holds {found or 'nothing'}")
    return read_json_file(path, error=TreeError)


@renames(wording="prompt_style", at_least="min_samples")
class _Tree:
    """What all readers share.

    Args:
        root: folder of the set.
        split: "train" or "test".
        prompt_style: "fixed", or "random": questions and answers are drawn from their pools each time a sample is
            read, by the global `random`, which training seeds per sample and epoch. UniBiomed draws the sentence once
            for all.
        pools: a JSON file of wordings in place of ours, see docs/unibiomed.md.
        resize_masks: bring masks of another size to that of their image (nearest) instead of refusing them.
        limit: keep only the first so many records.
        min_samples: repeat a set of fewer samples as often as fits into this number (UniBiomed: 5000, regions 3000).
        repeats: repeat the set so often (UniBiomed: 2 for reports and questions, 10 for volumes).
        compat: "reference" repeats choices of UniBiomed that the default mends; each reader says which. Pictures are
            then read as published readers do (`unimed.io.images.load`), and of masks the first channel counts.
    """

    tokens_about = TILED_TOKENS

    def __init__(
        self,
        root,
        split: str = "train",
        prompt_style: str = "fixed",
        pools: str | None = None,
        resize_masks: bool = False,
        limit: int | None = None,
        min_samples: int | None = None,
        repeats: int = 1,
        compat: str | None = None,
    ):
        _known("prompt_style", prompt_style, ("fixed", "random"))
        _known("compat", compat, (None, "reference"))
        self.root = Path(root)
        self.split = split
        self.drawn, self.pools, self.resize_masks = prompt_style == "random", pools, resize_masks
        self.limit, self.min_samples, self.repeats, self.compat = limit, min_samples, repeats, compat
        self.name = self.root.name
        self.items: list = []
        #: What the masks read last should be looked at for; the checker collects it.
        self.remarks: deque[str] = deque(maxlen=1000)

    def __len__(self) -> int:
        count = len(self.items)
        often = max(1, self.min_samples // count) if self.min_samples and count else 1
        return count * often * self.repeats

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.root}: no sample {index}; there are {len(self)}")
        return self.read(*self.items[index % len(self.items)])

    def length_of(self, index: int) -> int:
        """Tokens of a sample, roughly: samples of one kind are of like length."""
        return self.tokens_about

    def _intent(self, kind: str, subject: str = "", answer_kind: str = "", answer_subject: str = "") -> Intent:
        return Intent(kind, subject, answer_kind, answer_subject, self.drawn, self.pools, compat=self.compat)

    def _sample(self, identifier, images, intent, answer=None, regions=(), task="", label=None, **labels):
        answer = canonical.answer(intent) if answer is None else answer
        return Sample(
            images=tuple(images),
            geometry=Geometry.pixels(source_format="image"),
            sample_id=f"{self.name}/{self.split}/{identifier}",
            conversation=(("user", canonical.question(intent)), ("assistant", answer)),
            intent=intent,
            regions=tuple(canonical.with_span(region, answer) for region in regions),
            labels={"task": task, "label": label, "choices": None, "site": "", **labels},
            source=str(self.name),
            label_origin="data set",
        )

    def _region_sample(
        self, identifier, image: np.ndarray, mask, pool: str, answer: str, region_style: str, label=None
    ):
        """A question about a region that is given: painted on the image, or as its mask."""
        if region_style == "box":
            predicted = draw_box(image, mask, random if self.drawn else None)
            return self._sample(identifier, (predicted,), self._intent(pool), answer, (), "region", label)
        region = Region(label or "region1", mask=mask, presence=1.0)
        intent = self._intent(pool.replace("region", "region1"), "region1")
        return self._sample(identifier, (image,), intent, answer, (region,), "region", label)

    def _place(self, name: str, identifier) -> Path:
        """A file that an annotation names, within the set.

        Raises:
            TreeError: it lies outside.
        """
        return resolve_inside(self.root, name, where=f"{self.root}: {self.split} {identifier}", error=TreeError)

    def _image(self, name: str, identifier) -> Image:
        return load_image(self._place(name, identifier), compat=self.compat)

    def _any_mask(self, name: str, identifier, image: Image) -> np.ndarray:
        path = self._place(name, identifier)
        try:
            mask, remarks = load_mask(path, image=image, resize=self.resize_masks, compat=self.compat)
        except MaskError as error:
            raise TreeError(str(error)) from error
        self.remarks.extend(f"{path}: {one}" for one in remarks if one != RESIZED)
        return mask

    def _mask(self, name: str, identifier, image: Image) -> np.ndarray:
        mask = self._any_mask(name, identifier, image)
        if not mask.any():
            raise TreeError(f"{self._place(name, identifier)}: mask is empty; remove the annotation or repair the mask")
        return mask


def _known(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise TreeError(f"unknown {name} {value!r}; known are {', '.join(map(str, known))}")
    return value


@DATASETS.register_module()
@renames(shown_by="region_style")
class BiomedDataset(_Tree):
    """2D segmentation, disease and region sets: one sample per annotation.

    Args:
        root: folder with `train.json`, `train/`, `train_mask/` (and `test`).
        kind: "segmentation" (the phrase is asked for), "disease" (the phrase is the answer) or "region" (the place is
            given and the phrase is the answer).
        sentence: "first", or "random" among the sentences of the annotation, drawn as `prompt_style` says.
        region_style: how a region is given, one of `REGION_STYLES`. UniBiomed paints a box.
        others: see `_Tree`.

    A disease annotation of "no findings" has a region with `presence` 0 and no [SEG]; compat "reference" gives it a
    [SEG] and an all-zero mask, as UniBiomed trains.

    Raises:
        FileNotFoundError, TreeError: on construction for the JSON; on access for missing, damaged or empty files.
    """

    def __init__(
        self,
        root,
        split: str = "train",
        kind: str = "segmentation",
        sentence: str = "first",
        region_style: str = "tokens",
        **others,
    ):
        super().__init__(root, split, **others)
        self.kind = _known("kind", kind, KINDS)
        self.sentence = _known("sentence", sentence, ("first", "random"))
        self.region_style = _known("region_style", region_style, REGION_STYLES)
        path = self.root / f"{split}.json"
        content = read_json(path)
        images = {entry["id"]: entry for entry in content.get("images", ())}
        for number, annotation in enumerate(content.get("annotations", ())[: self.limit]):
            image = images.get(annotation.get("image_id"))
            file_name = annotation.get("file_name") or (image or {}).get("file_name")
            sentences = annotation.get("sentences") or ()
            if not file_name or not annotation.get("mask_file") or not sentences:
                raise TreeError(f"{path}: annotation {number} lacks file_name (or image_id), mask_file or sentences")
            if not all(entry.get("raw") or entry.get("sent") for entry in sentences):
                raise TreeError(f"{path}: annotation {number} has a sentence with neither `raw` nor `sent`")
            self.items.append((annotation.get("id", number), file_name, annotation))

    def read(self, identifier, file_name: str, annotation: dict) -> Sample:
        source = self._image(f"{self.split}/{file_name}", identifier)
        image = source.pixels
        sentences = annotation["sentences"]
        chosen = random.choice(sentences) if self.sentence == "random" else sentences[0]
        phrase = str(chosen.get("raw") or chosen.get("sent")).lower().strip()
        if self.kind != "region":
            phrase = phrase.rstrip(".")
        if self.kind == "disease" and NO_FINDINGS in phrase:
            return self._nothing_found(identifier, image, phrase)
        mask = self._mask(f"{self.split}_mask/{annotation['mask_file']}", identifier, source)
        if self.kind == "region":
            return self._region_sample(identifier, image, mask, "region", phrase, self.region_style, phrase)
        if self.kind == "segmentation":
            intent = self._intent("segmentation", phrase, "segmentation")
        else:
            intent = self._intent("disease", "", "disease", phrase)
        region = Region(phrase, mask=mask, presence=1.0)
        task = "referring" if self.kind == "segmentation" else "report"
        return self._sample(identifier, (image,), intent, None, (region,), task, label=phrase)

    def _nothing_found(self, identifier, image: np.ndarray, phrase: str) -> Sample:
        region = Region(phrase, presence=0.0)
        if self.compat == "reference":
            intent, answer = self._intent("disease", "", "disease", phrase), None
        else:
            intent, answer = self._intent("disease"), f"{phrase}."
        return self._sample(identifier, (image,), intent, answer, (region,), "report", label=phrase)


@DATASETS.register_module()
@renames(shown_by="region_style")
class MedTrinityDataset(_Tree):
    """Long captions: `train.json` with annotations of `file_name` and `caption`, images below `root`.

    Args:
        masks: "train_mask/<mask_file>" of an annotation is the region the caption speaks of (region descriptions).
        region_style: how that region is given, one of `REGION_STYLES`.
        others: see `_Tree`.
    """

    tokens_about = TILED_TOKENS

    def __init__(self, root, split: str = "train", masks: bool = False, region_style: str = "tokens", **others):
        super().__init__(root, split, **others)
        self.masks, self.region_style = masks, _known("region_style", region_style, REGION_STYLES)
        path = self.root / f"{split}.json"
        for number, annotation in enumerate(read_json(path).get("annotations", ())[: self.limit]):
            if missing := [k for k in ("file_name", "caption", *(["mask_file"] * masks)) if not annotation.get(k)]:
                raise TreeError(f"{path}: annotation {number} lacks {', '.join(missing)}")
            self.items.append((annotation.get("id", number), annotation))

    def read(self, identifier, annotation: dict) -> Sample:
        path = self._place(annotation["file_name"], identifier)
        if not path.is_file():  # region sets keep their images in a folder per split
            path = self._place(f"{self.split}/{annotation['file_name']}", identifier)
        source = load_image(path, compat=self.compat)
        image, caption = source.pixels, annotation["caption"]
        if self.masks:
            mask = self._mask(f"{self.split}_mask/{annotation['mask_file']}", identifier, source)
            return self._region_sample(identifier, image, mask, "region_caption", caption, self.region_style)
        return self._sample(identifier, (image,), self._intent("marked_caption"), caption, (), "caption")


@DATASETS.register_module()
class RadGenomeDataset(_Tree):
    """Chest CT with grounded text: `train_parse.json`, id -> abnormality, report, anatomy, image_file, mask_file.

    Args:
        kind: "report" (GRG) or "vqa" (GVQA, which names the anatomy).
        others: see `_Tree`.

    An item whose abnormality holds "no findings" has a region with `presence` 0 and no [SEG]; compat "reference" gives
    it a [SEG] and an all-zero mask, as UniBiomed trains.
    """

    def __init__(self, root, split: str = "train", kind: str = "report", **others):
        super().__init__(root, split, **others)
        self.kind = _known("kind", kind, ("report", "vqa"))
        path = self.root / f"{split}_parse.json"
        for identifier, entry in list(read_json(path).items())[: self.limit]:
            needed = ("abnormality", "image_file", "mask_file", "report" if kind == "report" else "anatomy")
            if missing := [name for name in needed if name not in entry]:
                raise TreeError(f"{path}: entry {identifier} lacks {', '.join(missing)}")
            self.items.append((identifier, entry))

    def read(self, identifier, entry: dict) -> Sample:
        source = self._image(entry["image_file"], identifier)
        image = source.pixels
        phrase = str(entry["abnormality"]).lower().strip().rstrip(".") + "."
        if self.kind == "report":
            phrase = f"{phrase} {str(entry['report']).lower().strip()}"
        kind, anatomy = f"grounded_{self.kind}", str(entry.get("anatomy", "")).lower()
        intent, answer = self._intent(kind, anatomy, "grounded", phrase), None
        if NO_FINDINGS in str(entry["abnormality"]).lower():
            region = Region(phrase, presence=0.0)
            if self.compat != "reference":
                intent, answer = self._intent(kind, anatomy), phrase
        else:
            region = Region(phrase, mask=self._mask(entry["mask_file"], identifier, source), presence=1.0)
        label = str(entry["abnormality"]).lower()
        return self._sample(identifier, (image,), intent, answer, (region,), self.kind, label=label)


@DATASETS.register_module()
@renames(with_object="foreground_fraction")
class BiomedVolumeDataset(_Tree):
    """3D sets: one sample per (volume, expression), slices in the order of `meta_train.json`.

    Args:
        slices: take this many slices; all if None. They lie evenly over the volume with prompt_style "fixed" and are
            drawn at random with "random".
        foreground_fraction: of the slices, that shall show the object, where there are that many. UniBiomed takes only
            such slices (1.0), so that its training never sees a slice without the object.
        others: see `_Tree`.

    Masks are matched to slices by the pairs of `img_file` and `mask_file`, not by prefixes of names (s1 and s10 would
    collide); a slice without a mask file is one without the object.
    """

    def __init__(
        self, root, split: str = "train", slices: int | None = None, foreground_fraction: float = 0.0, **others
    ):
        super().__init__(root, split, **others)
        self.slices, self.foreground_fraction = slices, foreground_fraction
        self.tokens_about = SLICE_TOKENS * (slices or 10)
        path = self.root / f"meta_{split}.json"
        for volume, entry in read_json(path).get("volumes", {}).items():
            for identifier, expression in entry.get("expressions", {}).items():
                if missing := [name for name in ("exp", "img_file", "mask_file") if name not in expression]:
                    raise TreeError(f"{path}: {volume}/{identifier} lacks {', '.join(missing)}")
                if len(expression["mask_file"]) != len(expression["img_file"]):
                    raise TreeError(
                        f"{path}: {volume}/{identifier} lists {len(expression['img_file'])} images and "
                        f"{len(expression['mask_file'])} masks; they are pairs"
                    )
                self.items.append((volume, identifier, entry["slices"], expression))
        self.items = self.items[: self.limit]

    def read(self, volume: str, identifier: str, names: list[str], expression: dict) -> Sample:
        pairs = zip(expression["img_file"], expression["mask_file"], strict=True)
        masks = {Path(image).name: mask for image, mask in pairs}
        files = [Path(name).name for name in names]
        if unknown := sorted(set(masks) - set(files)):
            raise TreeError(f"{self.root}: {volume}/{identifier} has a mask for {unknown[0]}, which is no slice of it")
        shows = [name in masks for name in files]
        chosen, where = (
            choose_slices(shows, self.slices, self.foreground_fraction, self.drawn),
            f"{volume}/{identifier}",
        )
        try:
            # All slices of a volume share a window, whichever of them are taken.
            paths = [self._place(f"{volume}/{name}", where) for name in files]
            images = load_stack(paths, chosen=chosen, compat=self.compat)
        except ImageError as error:
            raise TreeError(str(error)) from error
        planes = []
        for index, image in zip(chosen, images, strict=True):
            plane = np.zeros(image.rgb.shape[:2], bool)
            if files[index] in masks:
                plane = self._any_mask(masks[files[index]], where, image)
            planes.append(plane)
        phrase = expression["exp"].strip()
        name = phrase.rstrip(".?")
        mask = np.stack(planes)
        stack = np.stack([image.rgb[..., 0] for image in images])
        region = Region(name, mask=mask if mask.any() else None, presence=float(mask.any()))
        kind, subject = ("question", phrase) if "?" in phrase else ("segmentation", name)
        intent, answer = self._intent(kind, subject, "segmentation"), None
        if not mask.any():
            intent, answer = self._intent(kind, subject), f"There is no {name} here."
        return self._sample(f"{volume}/{identifier}", (stack,), intent, answer, (region,), "volume", label=name)


def sets_below(root: str | Path) -> list[tuple[Path, str]]:
    """Folders of a tree that hold a set, with its form: "coco", "radgenome" or "volume"."""
    forms = {"train.json": "coco", "test.json": "coco", "meta_train.json": "volume", "meta_test.json": "volume"}
    forms |= {"train_parse.json": "radgenome", "test_parse.json": "radgenome"}
    found = {(path.parent, forms[path.name]) for path in Path(root).rglob("*.json") if path.name in forms}
    return sorted(found, key=lambda entry: (str(entry[0]), entry[1]))


def dataset_for(folder: Path, form: str, split: str, limit: int | None = None):
    """The reader that fits a folder, or None if it has no such split; `limit` as in the readers.

    Raises:
        ReadError, TreeError, FileNotFoundError: as the readers.
    """
    name = {"coco": f"{split}.json", "radgenome": f"{split}_parse.json", "volume": f"meta_{split}.json"}[form]
    if not (folder / name).is_file():
        return None
    if form == "radgenome":
        return RadGenomeDataset(folder, split, limit=limit)
    if form == "volume":
        return BiomedVolumeDataset(folder, split, limit=limit)
    annotations = read_json(folder / name).get("annotations", ())
    if annotations and "caption" in annotations[0] and "sentences" not in annotations[0]:
        return MedTrinityDataset(folder, split, masks="mask_file" in annotations[0], limit=limit)
    disease = re.search(r"(^|/)Disease/", f"{folder.as_posix()}/")
    return BiomedDataset(folder, split, kind="disease" if disease else "segmentation", limit=limit)


#: What reading one sample may raise for reasons that lie in the data.
DATA_ERRORS = (ReadError, TreeError, FileNotFoundError, ValueError, KeyError)
