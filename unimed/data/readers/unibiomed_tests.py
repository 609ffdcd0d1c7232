"""Test sets of UniBiomed's demos: their files as cases, one per annotation, image or (volume, expression)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from unimed.data.canonical import QUESTIONS as CANONICAL
from unimed.data.readers.unibiomed import TreeError, read_json
from unimed.files import resolve_inside
from unimed.names import distinct_names
from unimed.structures import Case

#: Fixed questions of the demos, in our own words but for those a published checkpoint knows. As in UniBiomed's demos
#: the question follows the image at once where masks are asked for, and else begins a line of its own.
QUESTIONS = {
    name: ("<image>" if name in ("segmentation", "disease") else "<image>\n") + CANONICAL[kind]
    for name, kind in {
        "segmentation": "segmentation", "disease": "disease", "report": "grounded_report", "vqa": "grounded_vqa",
        "region": "region", "region1": "region1", "caption": "marked_caption",
    }.items()
}  # fmt: skip


def within(folder: Path, name: str) -> Path:
    """`folder / name`, refused where it would lie outside of `folder`.

    Raises:
        TreeError: an absolute name, or one that leads out (links are resolved).
    """
    return resolve_inside(folder, name, error=TreeError)


def named_once(file_names: Iterable[str]) -> dict[str, str]:
    """A name per file: its stem, or its whole path without suffix where two files have the same stem."""
    return distinct_names(file_names)


def find_json(given: str | Path, *folders) -> Path:
    """The JSON itself, or the one of that name in a folder."""
    for path in (Path(given), *(Path(folder) / given for folder in folders if folder)):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{given}: no such file, neither here nor in {', '.join(map(str, folders))}")


def _image(folder: Path, split: str, name: str) -> Path:
    """Images lie in the folder given or in that of their split."""
    direct, below = within(folder, name), within(folder, str(Path(split) / name))
    return below if below.is_file() and not direct.is_file() else direct


def _mask(folder: Path, split: str, name: str) -> Path:
    """Masks lie in "<split>_mask" of a set, or in "<folder>_mask" beside a folder of images."""
    beside = within(folder.parent / f"{folder.name}_mask", name)
    return beside if beside.is_file() else within(folder / f"{split}_mask", name)


def annotations_of(path: Path, *needed: str) -> list[dict]:
    """Annotations of a COCO-like file, each with the `file_name` of its image.

    Raises:
        TreeError: no list of annotations, or one without a needed field (file and number are named).
    """
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("annotations"), list):
        raise TreeError(f"{path}: no list `annotations`; is this the test file of the set?")
    images = {entry.get("id"): entry.get("file_name") for entry in content.get("images", ())}
    found = []
    for number, annotation in enumerate(content["annotations"]):
        entry = {**annotation, "file_name": annotation.get("file_name") or images.get(annotation.get("image_id"))}
        if lacking := [name for name in ("file_name", *needed) if not entry.get(name)]:
            raise TreeError(f"{path}: annotation {number} lacks {', '.join(lacking)}")
        found.append(entry)
    return found


def sentence_of(annotation: Mapping, *keys: str) -> str:
    """The first sentence of an annotation under the first key it has."""
    first = annotation["sentences"][0]
    return str(next((first[key] for key in keys if first.get(key)), ""))


def segmentation_cases(folder, json_file, question: str | None = None) -> list[Case]:
    """One case per annotation, named by its mask file: "<image>Please segment {sent}.".

    Raises:
        TreeError: two annotations of one mask file that ask for different things.
    """
    folder, path = Path(folder), find_json(json_file, folder)
    cases: dict[str, Case] = {}
    for entry in annotations_of(path, "mask_file", "sentences"):
        split = entry.get("split") or path.stem
        phrase = sentence_of(entry, "sent", "raw")
        inputs = {
            "image": _image(folder, split, entry["file_name"]),
            "truth": _mask(folder, split, entry["mask_file"]),
            "phrase": phrase,
            "text": (question or QUESTIONS["segmentation"]).replace("{}", phrase),
            "out": str(Path(split) / entry["mask_file"]),
        }
        name = entry["mask_file"]
        if name in cases and cases[name].inputs != inputs:
            raise TreeError(
                f"{path}: mask file {name} is asked for as {cases[name].inputs['phrase']!r} and as {phrase!r}; "
                "one answer would overwrite the other"
            )
        cases[name] = Case(name, inputs)
    return list(cases.values())


def volume_cases(folder, json_file, question: str | None = None) -> list[Case]:
    """One case per (volume, expression) of `meta_test.json`, named VOLUME/EXPRESSION ID."""
    folder, path = Path(folder), find_json(json_file, folder)
    volumes = read_json(path).get("volumes") or {}
    if not volumes:
        raise TreeError(f"{path}: no `volumes`; is this the meta_test.json of the set?")
    cases, shown = [], {}
    for volume, entry in volumes.items():
        for identifier, expression in entry.get("expressions", {}).items():
            if len(expression["mask_file"]) != len(expression["img_file"]):
                raise TreeError(f"{path}: {volume}/{identifier} has not one mask per image of `img_file`")
            phrase = expression["exp"]
            # UniBiomed names the folder by the text; two expressions of one text would share it.
            label = phrase.replace("/", "_")
            if (volume, label) in shown:
                label = f"{label} ({identifier})"
            shown[volume, label] = True
            masks = {
                Path(image).name: within(folder, mask)
                for image, mask in zip(expression["img_file"], expression["mask_file"], strict=True)
            }
            text = (
                f"<image>{phrase}" if "?" in phrase else (question or QUESTIONS["segmentation"]).replace("{}", phrase)
            )
            cases.append(
                Case(
                    f"{volume}/{identifier}",
                    {
                        "slices": [within(folder / volume, Path(name).name) for name in entry["slices"]],
                        "truth": masks,
                        "phrase": phrase,
                        "text": text,
                        "out": str(within(Path(volume), label)),
                        "volume": volume,
                    },
                )
            )
    return cases


def disease_cases(folder, json_file, question: str | None = None) -> list[Case]:
    """One case per image of a disease set; the question does not name what is to be found."""
    folder, path = Path(folder), find_json(json_file, folder)
    entries = annotations_of(path)
    names = named_once(entry["file_name"] for entry in entries)
    split_of = {entry["file_name"]: entry.get("split") or path.stem for entry in entries}
    return [
        Case(
            name,
            {
                "image": _image(folder, split_of[file], file),
                "image_name": file,
                "text": question or QUESTIONS["disease"],
            },
        )
        for file, name in names.items()
    ]


def parse_cases(folder, json_file, kind: str, question: str | None = None) -> list[Case]:
    """One case per entry of RadGenome's `test_parse.json`: "report", or "vqa", which names the anatomy."""
    folder, path = Path(folder), find_json(json_file, folder)
    entries = read_json(path)
    if not isinstance(entries, Mapping):
        raise TreeError(f"{path}: expected {{id: entry}}; is this the *_parse.json of the set?")
    needed = ("image_file", "anatomy") if kind == "vqa" else ("image_file",)
    for identifier, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise TreeError(f"{path}: entry {identifier} is no {{field: value}}; is this the *_parse.json of the set?")
        if lacking := [name for name in needed if not entry.get(name)]:
            raise TreeError(f"{path}: entry {identifier} lacks {', '.join(lacking)}")
    cases = []
    for identifier, name in parse_names(entries).items():
        file = entries[identifier]["image_file"]
        text = (question or QUESTIONS[kind]).replace("{}", str(entries[identifier].get("anatomy", "")).lower())
        inputs = {"image": within(folder, file), "image_name": f"{name}{Path(file).suffix}", "text": text}
        cases.append(Case(name, inputs))
    return cases


def parse_names(entries: Mapping[str, Mapping]) -> dict[str, str]:
    """Names of the answers to a `*_parse.json`: stem of the image, and the id where several ask about one."""
    files = Counter(entry["image_file"] for entry in entries.values())
    names = named_once(files)
    return {
        identifier: names[entry["image_file"]]
        if files[entry["image_file"]] == 1
        else f"{names[entry['image_file']]}-{str(identifier).replace('/', '_')}"
        for identifier, entry in entries.items()
    }


def caption_cases(
    folder, json_file, question: str | None = None, limit: int | None = 1000, seed: int = 0
) -> list[Case]:
    """Images of MedTrinity in an order drawn from `seed`, the first `limit` of them; text only."""
    folder, path = Path(folder), find_json(json_file, folder)
    entries = annotations_of(path)
    names = named_once(entry["file_name"] for entry in entries)
    files = list(names)
    random.Random(seed).shuffle(files)
    split_of = {entry["file_name"]: entry.get("split") or path.stem for entry in entries}
    return [
        Case(
            names[file],
            {"image": _image(folder, split_of[file], file), "text": question or QUESTIONS["caption"]},
        )
        for file in files[:limit]
    ]


def region_cases(folder, json_file, question: str | None = None, framed: bool = True) -> list[Case]:
    """One case per region, named by the stem of its mask file.

    Args:
        framed: paint a green frame, as UniBiomed trains; False gives the mask itself as a region prompt.
    """
    folder, path = Path(folder), find_json(json_file, folder)
    entries = annotations_of(path, "mask_file")
    names = named_once(entry["mask_file"] for entry in entries)
    cases = {}
    for entry in entries:
        split = entry.get("split") or path.stem
        cases[names[entry["mask_file"]]] = Case(
            names[entry["mask_file"]],
            {
                "image": _image(folder, split, entry["file_name"]),
                "region": _mask(folder, split, entry["mask_file"]),
                "framed": framed,
                "text": question or QUESTIONS["region" if framed else "region1"],
            },
        )
    return list(cases.values())


def region_truth(annotation: Mapping) -> str:
    """What a region is: its caption where it has one, else its first sentence, lower case."""
    return str(annotation.get("caption") or sentence_of(annotation, "raw", "sent")).lower()
