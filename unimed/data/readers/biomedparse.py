"""Reader of BiomedParse's training format: images, masks and the JSON that `prepare_data.py biomedparse` writes.

Two forms share it: one mask file per target (`images`, `annotations` with `sentences`), and slices of volumes with one
label map each (`class_prompts`, `annotations` with `class_ids`).
"""

from __future__ import annotations

import random
import re
from collections import defaultdict, deque
from pathlib import Path

import numpy as np

from unimed.data.readers.biomedparse_names import FileNameError, parse_image_name
from unimed.data.readers.unibiomed import TreeError, read_json
from unimed.data.wordings.biomedparse_targets import lineage
from unimed.files import resolve_inside
from unimed.geometry import Geometry
from unimed.io.errors import MaskError
from unimed.io.images import Image
from unimed.io.images import load as load_image
from unimed.io.masks import RESIZED, load_labels, load_mask
from unimed.registry import DATASETS
from unimed.structures import Region, Sample
from unimed.tokens import PHRASE_END, PHRASE_START, SEG_TOKEN


@DATASETS.register_module()
class BiomedParseDataset:
    """One sample per image, with a region per prompt: a mask where the target is there, `presence` 0 where it is not.

    Args:
        root: folder with `SPLIT.json`, `SPLIT/` and `SPLIT_mask/`.
        prompts: how many to draw per sample, for training; None gives every target once, for tests.
        absent: probability that a drawn prompt is of a target that is not there. None takes present and absent ones
            alike, as the published trainer does for slices of volumes. With `prompts=None` any number above 0 or None
            adds the absent ones. Absent are targets that occur elsewhere in the split with the same modality and site,
            unless hierarchy or wording ties them to a present one ("kidney" is not absent where "left kidney" is).
        sentence: "first", or "random": one of a target's wordings.
        seed: with `set_epoch` and the index it decides every draw.
        patient_pattern: regular expression, its group is the patient in a file name.
        resize_masks: bring masks of another size to that of the image instead of refusing them.
        limit: keep only the first so many images.
        modality: keep only images whose modality begins so ("MRI" keeps "MRI-FLAIR"); all if "".

    Images are uint8, HxW or HxWx3; slices of volumes come as (slice, previous, next) in the last axis. `labels` hold
    `task`, `site`, `targets` (one name per region) and, for sets of instances, `instances`: the map that numbers them.

    Raises:
        FileNotFoundError, TreeError: on construction for the JSON, on access for images and masks.
    """

    def __init__(
        self,
        root,
        split: str = "train",
        prompts: int | None = None,
        absent: float | None = 0.0,
        sentence: str = "first",
        seed: int = 0,
        patient_pattern: str | None = None,
        resize_masks: bool = False,
        limit: int | None = None,
        modality: str = "",
    ):
        if prompts is not None and prompts < 1:
            raise TreeError(f"prompts must be at least 1 or None, got {prompts}")
        if absent is not None and not 0 <= absent <= 1:
            raise TreeError(f"absent is a probability, got {absent}")
        if sentence not in ("first", "random"):
            raise TreeError(f"unknown sentence {sentence!r}; known are first, random")
        self.root, self.split, self.prompts, self.absent = Path(root), split, prompts, absent
        self.sentence, self.seed, self.epoch, self.resize_masks = sentence, seed, 0, resize_masks
        self.patient = re.compile(patient_pattern) if patient_pattern else None
        #: What the masks read last should be looked at for; the checker collects it.
        self.remarks: deque[str] = deque(maxlen=1000)
        self.file = self.root / f"{split}.json"
        content = read_json(self.file)
        self.of_volumes = "class_prompts" in content
        items = (_volume_items if self.of_volumes else _image_items)(self.file, content)
        self.items = [item for item in items if item["group"][0].lower().startswith(modality.lower())][:limit]
        if not self.items:
            raise TreeError(
                f"{self.file}: no annotation{f' of {modality}' if modality else ''}; an empty set cannot be read"
            )
        self.wordings: dict[tuple, dict[str, list[str]]] = defaultdict(dict)
        for item in self.items:
            for target, words in item["words"].items():
                known = self.wordings[item["group"]].setdefault(target, [])
                known += [word for word in words if word not in known]

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        """Draw other prompts from now on (only with `prompts` or `sentence="random"`)."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        draw = random.Random(f"{self.seed}/{self.epoch}/{index}")
        source = load_image(self._place(f"{self.split}/{item['file']}"), modality=item["group"][0])
        image = source.pixels
        if self.of_volumes and image.ndim == 3:
            image = np.ascontiguousarray(image[..., ::-1])  # stored as (next, previous, slice)
        masks, instances = self._masks(item, source)
        regions, targets = [], []
        for target in self._chosen(item, list(masks), draw):
            words = item["words"].get(target) or self.wordings[item["group"]][target]
            phrase = words[0] if self.sentence == "first" else draw.choice(words)
            mask = masks.get(target)
            regions.append(Region(phrase, mask=mask, presence=float(mask is not None)))
            targets.append(target)
        labels = {"task": "parse", "label": None, "choices": None, "site": item["group"][1], "targets": tuple(targets)}
        if instances is not None:
            labels["instances"] = instances
        found = self.patient.search(item["file"]) if self.patient else None
        answer, regions = _answer(regions)
        question = f"Please segment {', '.join(region.phrase for region in regions)}."
        return Sample(
            images=(image,),
            geometry=Geometry.pixels(source_format="image"),
            sample_id=f"{self.root.name}/{self.split}/{item['file']}",
            modality=item["group"][0],
            conversation=(("user", question), ("assistant", answer)) if regions else (),
            regions=regions,
            labels=labels,
            patient_id=found.group(1) if found else item.get("patient", ""),
            source=self.root.name,
            label_origin="data set",
        )

    def _place(self, name: str) -> Path:
        return resolve_inside(self.root, name, where=str(self.file), error=TreeError)

    def _masks(self, item, image: Image) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        if not self.of_volumes:
            masks = {}
            for target, file in item["masks"].items():
                path = self._place(f"{self.split}_mask/{file}")
                try:
                    mask, remarks = load_mask(path, image=image, resize=self.resize_masks)
                except MaskError as error:
                    raise TreeError(str(error)) from error
                self.remarks.extend(f"{path}: {one}" for one in remarks if one != RESIZED)
                if mask.any():
                    masks[target] = mask
            return masks, None
        try:
            labels, _ = load_labels(self._place(f"{self.split}_mask/{item['mask']}"), shape=image.rgb.shape[:2])
        except MaskError as error:
            raise TreeError(str(error)) from error
        if item["instances"]:
            mask = labels > 0
            return ({"1": mask} if mask.any() else {}), labels
        present = set(np.unique(labels).tolist())
        return {t: labels == int(t) for t in item["words"] if int(t) in present}, None

    def _chosen(self, item, present: list[str], draw: random.Random) -> list[str]:
        everything = self.wordings[item["group"]]
        missing = [t for t in everything if t not in present and (self.of_volumes or not tied(t, present))]
        if self.prompts is None:
            return present + (missing if self.absent != 0 else [])
        if self.absent is None:
            pool = present + missing
            return _some(pool, self.prompts, draw)
        count = sum(draw.random() < self.absent for _ in range(self.prompts))
        count = 0 if not missing else self.prompts if not present else count
        return _some(present, self.prompts - count, draw) + _some(missing, count, draw)


def tied(target: str, others) -> bool:
    """Whether a target may be there because one of `others` is: same name, above or below it, or sharing its words."""
    words = set(target.lower().split())
    for other in others:
        theirs = set(other.lower().split())
        if words <= theirs or theirs <= words:
            return True
        mine, line = lineage(target), lineage(other)
        if (line and target in line) or (mine and other in mine):
            return True
    return False


def _some(pool: list[str], count: int, draw: random.Random) -> list[str]:
    """`count` of the pool without repeats while it lasts; else every one, and then some again."""
    if not pool:
        return []
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += draw.sample(pool, min(len(pool), count - len(chosen)))
    return chosen


def _answer(regions: list[Region]) -> tuple[str, tuple[Region, ...]]:
    """Present phrases with their tokens, then what is missing; and the regions with the places of their phrases."""
    answer, placed = "", []
    for region in regions:
        if region.presence:
            start = len(answer) + len(PHRASE_START) + 1
            answer += f"{PHRASE_START} {region.phrase} {PHRASE_END} {SEG_TOKEN}. "
        else:
            start = len(answer) + len("There is no ")
            answer += f"There is no {region.phrase}. "
        span = (start, start + len(region.phrase))
        placed.append(Region(region.phrase, mask=region.mask, presence=region.presence, phrase_span=span))
    return answer.strip(), tuple(placed)


def _image_items(path: Path, content) -> list[dict]:
    images = {entry["id"]: entry for entry in content.get("images", ())}
    items: dict[str, dict] = {}
    for number, annotation in enumerate(content.get("annotations", ())):
        image = images.get(annotation.get("image_id"), {})
        file = annotation.get("file_name") or image.get("file_name")
        sentences = annotation.get("sentences") or ()
        words = [str(s.get("sent") or s.get("raw")) for s in sentences if s.get("sent") or s.get("raw")]
        if file is None or "mask_file" not in annotation or not words:
            raise TreeError(f"{path}: annotation {number} lacks file_name (or image_id), mask_file or sentences")
        if any("[SEP]" in word for word in words):
            raise TreeError(f"{path}: annotation {number} has [SEP] in a sentence; it separates prompts")
        try:
            parts = parse_image_name(file)
            group = (annotation.get("modality") or parts.modality, annotation.get("site") or parts.site)
        except FileNameError as error:
            group = (annotation.get("modality", ""), annotation.get("site", ""))
            if not all(group):
                raise TreeError(f"{path}: annotation {number}: {error}") from error
        # Without a name of its own an annotation goes by its wording, less what says where it is.
        target = annotation.get("target") or words[0].split(" in ")[0]
        item = items.setdefault(file, {"file": file, "group": group, "masks": {}, "words": {}})
        if target in item["masks"]:
            raise TreeError(f"{path}: annotation {number} repeats target {target!r} of {file}")
        item["patient"] = image.get("patient_id", "")
        item["masks"][target], item["words"][target] = annotation["mask_file"], words
    return list(items.values())


def _volume_items(path: Path, content) -> list[dict]:
    table = content["class_prompts"]
    items = []
    for number, annotation in enumerate(content.get("annotations", ())):
        if missing := [key for key in ("file_name", "mask_file") if key not in annotation]:
            raise TreeError(f"{path}: annotation {number} lacks {', '.join(missing)}")
        prompts = table.get(annotation.get("dataset"), table)
        words = {
            str(key): [value] if isinstance(value, str) else list(value)
            for key, value in prompts.items()
            if str(key).isdigit()
        }
        if not words:
            raise TreeError(f"{path}: class_prompts hold no prompt for annotation {number}")
        instances = bool(annotation.get("instance_label", prompts.get("instance_label", 0)))
        items.append(
            {
                "file": annotation["file_name"],
                "mask": annotation["mask_file"],
                "group": (annotation.get("modality", ""), annotation.get("dataset", "")),
                "words": words,
                "instances": instances,
                "patient": annotation.get("patient_id", ""),
            }
        )
    return items
