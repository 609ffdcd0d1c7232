"""Readers of the folder tree that UniBiomed trains on (`data/Biomed`), each yielding `Sample`.

ROOT/train.json, train/, train_mask/            2D segmentation, disease and region sets (COCO-like)
ROOT/train.json with `caption`                  MedTrinity and region captions
ROOT/train_parse.json                           RadGenome reports (GRG) and questions (GVQA)
ROOT/meta_train.json, VOLUME/SLICE              3D sets
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.io.read import ReadError, read
from unimed.registry import DATASETS
from unimed.structures import Geometry, Region, Sample
from unimed.tokens import PHRASE_END, PHRASE_START, SEG_TOKEN

KINDS = ("segmentation", "disease", "region")
QUESTIONS = {
    "segmentation": "Please segment {}.",
    "disease": "Is any abnormality visible in this image? Answer with interleaved segmentation masks.",
    "region": "What is region1 in this image?",
    "caption": "Describe this image in detail.",
    "report": "Describe the abnormality and report it. Highlight the region with interleaved segmentation masks.",
    "vqa": "What is the abnormality of the {}? Answer with interleaved segmentation masks.",
}
NO_FINDINGS = "no findings"


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
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TreeError(f"{path}: not JSON ({error.msg}, line {error.lineno})") from error


def load_image(path: Path) -> np.ndarray:
    """Picture as uint8 HxW or HxWx3; errors as `unimed.io.read.read`."""
    array, _ = read(path)
    return array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)


def load_mask(path: Path, shape: tuple[int, int], resize: bool) -> np.ndarray:
    """First channel > 0 as bool HxW.

    Args:
        shape: (H, W) of the image.
        resize: bring a mask of another size to that of the image (nearest); else it is an error.

    Raises:
        TreeError: wrong size while `resize` is False.
    """
    mask = read(path)[0]
    mask = (mask if mask.ndim == 2 else mask[..., 0]) > 0
    if mask.shape != tuple(shape):
        if not resize:
            raise TreeError(
                f"{path}: mask is {mask.shape}, its image {tuple(shape)}; repair it or set resize_masks=True"
            )
        from PIL import Image

        picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(shape[::-1], Image.Resampling.NEAREST)
        mask = np.asarray(picture) > 0
    return mask


class _Tree:
    """What all readers share: a root, a split, a name for the samples, and how errors are worded."""

    def __init__(self, root, split: str, resize_masks: bool = False):
        self.root = Path(root)
        self.split = split
        self.resize_masks = resize_masks
        self.name = self.root.name
        self.items: list = []

    def __len__(self) -> int:
        return len(self.items)

    def _sample(self, identifier, images, question, answer, regions=(), task="", label=None, geometry=None, **labels):
        return Sample(
            images=tuple(images),
            geometry=geometry or Geometry.pixels(source_format="picture"),
            sample_id=f"{self.name}/{self.split}/{identifier}",
            conversation=(("user", question), ("assistant", answer)),
            regions=tuple(regions),
            labels={"task": task, "label": label, "choices": None, "site": "", **labels},
            source=str(self.name),
            label_origin="data set",
        )


@DATASETS.register_module()
class BiomedDataset(_Tree):
    """2D segmentation, disease and region sets: one sample per annotation.

    Args:
        root: folder with `train.json`, `train/`, `train_mask/` (and `test`).
        kind: "segmentation" (the phrase is asked for), "disease" (the phrase is the answer) or "region" (the mask is
            given and the phrase is the answer; UniBiomed paints a green box instead, which is not done here).
        sentence: "first", or "random": one of the annotation's sentences per epoch, drawn from `seed`, the epoch
            (`set_epoch`) and the index. UniBiomed draws once when it loads.
        resize_masks: see `load_mask`.
        limit: keep only the first so many annotations.

    Raises:
        FileNotFoundError, TreeError: on construction for the JSON; on access for missing, damaged or empty files.
    """

    def __init__(
        self,
        root,
        split: str = "train",
        kind: str = "segmentation",
        sentence: str = "first",
        seed: int = 0,
        resize_masks: bool = False,
        limit: int | None = None,
    ):
        super().__init__(root, split, resize_masks)
        if kind not in KINDS:
            raise TreeError(f"unknown kind {kind!r}; known are {', '.join(KINDS)}")
        if sentence not in ("first", "random"):
            raise TreeError(f"unknown sentence {sentence!r}; known are first, random")
        self.kind, self.sentence, self.seed, self.epoch = kind, sentence, seed, 0
        path = self.root / f"{split}.json"
        content = read_json(path)
        images = {entry["id"]: entry for entry in content.get("images", ())}
        for number, annotation in enumerate(content.get("annotations", ())[:limit]):
            image = images.get(annotation.get("image_id"))
            file_name = annotation.get("file_name") or (image or {}).get("file_name")
            if file_name is None or "mask_file" not in annotation or not annotation.get("sentences"):
                raise TreeError(f"{path}: annotation {number} lacks file_name (or image_id), mask_file or sentences")
            self.items.append((annotation.get("id", number), file_name, annotation))

    def set_epoch(self, epoch: int) -> None:
        """Draw other sentences from now on (only with `sentence="random"`)."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        identifier, file_name, annotation = self.items[index]
        image = load_image(self.root / self.split / file_name)
        path = self.root / f"{self.split}_mask" / annotation["mask_file"]
        mask = load_mask(path, image.shape[:2], self.resize_masks)
        if not mask.any():
            raise TreeError(f"{path}: mask is empty; remove the annotation or repair the mask")
        sentences = annotation["sentences"]
        chosen = sentences[0]
        if self.sentence == "random":
            chosen = random.Random(f"{self.seed}/{self.epoch}/{index}").choice(sentences)
        phrase = str(chosen.get("raw") or chosen.get("sent")).lower().rstrip(".")
        if self.kind == "segmentation":
            question, answer, task = QUESTIONS["segmentation"].format(phrase), f"It is {SEG_TOKEN}.", "referring"
        elif self.kind == "disease":
            question, answer, task = QUESTIONS["disease"], f"It is {SEG_TOKEN}. {phrase}.", "report"
        else:
            question, answer, task = QUESTIONS["region"], f"{phrase}.", "region"
        start = answer.find(phrase)
        span = (start, start + len(phrase)) if start >= 0 else None
        region = Region(phrase, mask=mask, presence=1.0, phrase_span=span)
        return self._sample(identifier, (image,), question, answer, (region,), task, label=phrase)


@DATASETS.register_module()
class MedTrinityDataset(_Tree):
    """Long captions: `train.json` with annotations of `file_name` and `caption`, images below `root`.

    With `masks`, "train_mask/<mask_file>" of an annotation is the region the caption speaks of (RegionCap).
    """

    def __init__(self, root, split="train", masks: bool = False, resize_masks: bool = False, limit: int | None = None):
        super().__init__(root, split, resize_masks)
        self.masks = masks
        path = self.root / f"{split}.json"
        for number, annotation in enumerate(read_json(path).get("annotations", ())[:limit]):
            if missing := [k for k in ("file_name", "caption", *(["mask_file"] * masks)) if not annotation.get(k)]:
                raise TreeError(f"{path}: annotation {number} lacks {', '.join(missing)}")
            self.items.append((annotation.get("id", number), annotation))

    def __getitem__(self, index: int) -> Sample:
        identifier, annotation = self.items[index]
        path = self.root / annotation["file_name"]
        if not path.is_file():  # region sets keep their images in a folder per split
            path = self.root / self.split / annotation["file_name"]
        image, regions = load_image(path), ()
        if self.masks:
            mask = load_mask(
                self.root / f"{self.split}_mask" / annotation["mask_file"], image.shape[:2], self.resize_masks
            )
            regions = (Region("region1", mask=mask, presence=1.0),)
        task = "region" if self.masks else "caption"
        return self._sample(identifier, (image,), QUESTIONS[task], annotation["caption"], regions, task)


@DATASETS.register_module()
class RadGenomeDataset(_Tree):
    """Chest CT with grounded text: `train_parse.json`, id -> abnormality, report, anatomy, image_file, mask_file.

    Args:
        kind: "report" (GRG) or "vqa" (GVQA, which names the anatomy).

    An item whose abnormality holds "no findings" has a region with `presence` 0 and no [SEG]; UniBiomed trains it with
    a [SEG] and an all-zero mask.
    """

    def __init__(self, root, split="train", kind="report", resize_masks: bool = False, limit: int | None = None):
        super().__init__(root, split, resize_masks)
        if kind not in ("report", "vqa"):
            raise TreeError(f"unknown kind {kind!r}; known are report, vqa")
        self.kind = kind
        path = self.root / f"{split}_parse.json"
        for identifier, entry in list(read_json(path).items())[:limit]:
            needed = ("abnormality", "image_file", "mask_file", "report" if kind == "report" else "anatomy")
            if missing := [name for name in needed if name not in entry]:
                raise TreeError(f"{path}: entry {identifier} lacks {', '.join(missing)}")
            self.items.append((identifier, entry))

    def __getitem__(self, index: int) -> Sample:
        identifier, entry = self.items[index]
        image = load_image(self.root / entry["image_file"])
        phrase = str(entry["abnormality"]).lower().strip().rstrip(".") + "."
        if self.kind == "report":
            phrase = f"{phrase} {str(entry['report']).lower().strip()}"
        question = QUESTIONS[self.kind].format(str(entry.get("anatomy", "")).lower())
        if NO_FINDINGS in phrase:
            region = Region(phrase, presence=0.0)
            answer = phrase
        else:
            path = self.root / entry["mask_file"]
            mask = load_mask(path, image.shape[:2], self.resize_masks)
            if not mask.any():
                raise TreeError(f"{path}: mask is empty although the abnormality is {entry['abnormality']!r}")
            start = len(PHRASE_START) + 1
            region = Region(phrase, mask=mask, presence=1.0, phrase_span=(start, start + len(phrase)))
            answer = f"{PHRASE_START} {phrase} {PHRASE_END} {SEG_TOKEN}"
        label = str(entry["abnormality"]).lower()
        return self._sample(identifier, (image,), question, answer, (region,), self.kind, label=label)


@DATASETS.register_module()
class BiomedVolumeDataset(_Tree):
    """3D sets: one sample per (volume, expression), slices in the order of `meta_train.json`.

    Args:
        slices: take this many slices spread evenly over the volume; all if None. UniBiomed draws ten at random among
            those that show the object, so that its training never sees a slice without it; here all may be taken.

    Every slice counts: one without a mask file is a slice without the object. Masks are matched to slices by the
    pairs of `img_file` and `mask_file`, not by prefixes of names (s1 and s10 would collide).
    """

    def __init__(self, root, split="train", slices: int | None = None, resize_masks=False, limit: int | None = None):
        super().__init__(root, split, resize_masks)
        self.slices = slices
        path = self.root / f"meta_{split}.json"
        for volume, entry in read_json(path).get("volumes", {}).items():
            for identifier, expression in entry.get("expressions", {}).items():
                if len(expression["mask_file"]) != len(expression["img_file"]):
                    raise TreeError(
                        f"{path}: {volume}/{identifier} lists {len(expression['img_file'])} images and "
                        f"{len(expression['mask_file'])} masks; they are pairs"
                    )
                self.items.append((volume, identifier, entry["slices"], expression))
        self.items = self.items[:limit]

    def __getitem__(self, index: int) -> Sample:
        volume, identifier, names, expression = self.items[index]
        pairs = zip(expression["img_file"], expression["mask_file"], strict=True)
        masks = {Path(image).name: mask for image, mask in pairs}
        if unknown := sorted(set(masks) - {Path(name).name for name in names}):
            raise TreeError(f"{self.root}: {volume}/{identifier} has a mask for {unknown[0]}, which is no slice of it")
        chosen: Sequence[str] = names
        if self.slices is not None and self.slices < len(names):
            chosen = [names[i] for i in np.linspace(0, len(names) - 1, self.slices).round().astype(int)]
        images, planes = [], []
        for name in chosen:
            image = load_image(self.root / volume / Path(name).name)
            if images and image.shape != images[0].shape:
                raise TreeError(f"{self.root / volume / name}: slice is {image.shape}, the first {images[0].shape}")
            mask = masks.get(Path(name).name)
            images.append(image)
            planes.append(
                load_mask(self.root / mask, image.shape[:2], self.resize_masks)
                if mask
                else np.zeros(image.shape[:2], bool)
            )
        phrase = expression["exp"]
        question = phrase if "?" in phrase else QUESTIONS["segmentation"].format(phrase.rstrip("."))
        mask = np.stack(planes)
        stack = np.stack([image if image.ndim == 2 else image[..., 0] for image in images])
        region = Region(phrase, mask=mask if mask.any() else None, presence=float(mask.any()))
        answer = f"It is {SEG_TOKEN}." if mask.any() else f"There is no {phrase.rstrip('.')} here."
        return self._sample(f"{volume}/{identifier}", (stack,), question, answer, (region,), "volume", label=phrase)


def sets_below(root: str | Path) -> list[tuple[Path, str]]:
    """Folders of a tree that hold a set, with its form: "coco", "radgenome" or "volume"."""
    forms = {"train.json": "coco", "test.json": "coco", "meta_train.json": "volume", "meta_test.json": "volume"}
    forms |= {"train_parse.json": "radgenome", "test_parse.json": "radgenome"}
    found = {(path.parent, forms[path.name]) for path in Path(root).rglob("*.json") if path.name in forms}
    return sorted(found, key=lambda entry: (str(entry[0]), entry[1]))


def dataset_for(folder: Path, form: str, split: str):
    """The reader that fits a folder, or None if it has no such split.

    Raises:
        ReadError, TreeError, FileNotFoundError: as the readers.
    """
    name = {"coco": f"{split}.json", "radgenome": f"{split}_parse.json", "volume": f"meta_{split}.json"}[form]
    if not (folder / name).is_file():
        return None
    if form == "radgenome":
        return RadGenomeDataset(folder, split)
    if form == "volume":
        return BiomedVolumeDataset(folder, split)
    annotations = read_json(folder / name).get("annotations", ())
    if annotations and "caption" in annotations[0] and "sentences" not in annotations[0]:
        return MedTrinityDataset(folder, split, masks="mask_file" in annotations[0])
    disease = re.search(r"(^|/)Disease/", f"{folder.as_posix()}/")
    return BiomedDataset(folder, split, kind="disease" if disease else "segmentation")


#: What reading one sample may raise for reasons that lie in the data.
DATA_ERRORS = (ReadError, TreeError, FileNotFoundError, ValueError, KeyError)
