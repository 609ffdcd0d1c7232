"""No reader and no packer reads a file outside of its data folder, whatever the data say and wherever links lead."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimed.data.prepare.pairs.sources import SOURCES
from unimed.data.prepare.repack import write_arrow, write_shards
from unimed.data.readers import unibiomed_tests
from unimed.data.readers.records import RecordDataset
from unimed.data.readers.zero_shot_sets import chosen, read_set
from unimed.evaluation.scorers.prediction_folders import score_answers
from unimed.registry import DATASETS

SIZE, SECRET = 32, 77
NAMES = {
    "parent": "../elsewhere/secret.png",
    "deep": "x/../../elsewhere/secret.png",
    "absolute": "{outside}/secret.png",
    "link": "link.png",
    "folder link": "linked/secret.png",
    "windows": "..\\elsewhere\\secret.png",
}


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def built(**config):
    dataset = DATASETS.build({name: str(v) if isinstance(v, Path) else v for name, v in config.items()})
    return [dataset[index] for index in range(len(dataset))]


def record(**changes):
    return {
        "id": "a",
        "task": "vqa",
        "image": "fine.png",
        "question": "Q?",
        "answer": "A.",
        "patient_id": "p",
    } | changes


def records(root, name, **changes):
    line = record(image=name) if not changes else record(task="referring", answer="<p> x </p> [SEG].", **changes)
    (root / "records").mkdir(exist_ok=True)
    (root / "records" / "train.jsonl").write_text(json.dumps(line))
    return root


def masked(root, name):
    return records(root, name, regions=[{"phrase": "x", "mask": name, "present": True, "phrase_span": [4, 5]}])


def coco(root, image, mask, **more):
    sentence = [{"raw": "liver in abdomen CT", "sent": "liver in abdomen CT"}]
    annotation = {"id": 1, "image_id": 1, "file_name": image, "mask_file": mask, "sentences": sentence} | more
    dump(root / "train.json", {"images": [{"id": 1, "file_name": image}], "annotations": [annotation]})
    return root


def radgenome(root, image, mask):
    entry = {"abnormality": "mass", "report": "r", "anatomy": "lung", "image_file": image, "mask_file": mask}
    dump(root / "train_parse.json", {"1": entry})
    return root


def volumes(root, mask="fine.png", volume="."):
    expression = {"exp": "liver", "img_file": ["v/secret.png"], "mask_file": [mask]}
    dump(root / "meta_train.json", {"volumes": {volume: {"slices": ["secret.png"], "expressions": {"0": expression}}}})
    return root


def grounding(root, name):
    content = {"image_paths": [name], "bboxes": [(1, 1, 5, 5)], "phrases": ["x"], "all_reports": ["x."]}
    torch.save(content, root / "set.pth")
    return built(type="MedicalGroundingDataset", path=root / "set.pth", images=root, format="mrg", resized="stretch")


def slake(root, name):
    (root / "train.txt").write_text("one\n")
    entry = {"img_name": name, "question": "Q", "answer": "A", "q_lang": "en", "answer_type": "OPEN"}
    dump(root / "imgs/one/question.json", [entry])
    return built(type="SlakeVQADataset", root=root)


def slake_boxes(root, name):
    (root / "train.txt").write_text(f"{name.rpartition('/')[0] or name}\n")
    return built(type="SlakeBoxDataset", root=root)


def path_vqa(root, name):
    entry = {"img_id": name[:-4], "sent": "q", "label": {"yes": 1}, "question_id": 1, "answer_type": "yes/no"}
    (root / "p.pkl").write_bytes(pickle.dumps([entry]))
    return built(type="PathVQADataset", annotations=root / "p.pkl", image_root=root)


def mimic(root, name):
    dump(root / "m.json", {"train": [{"image_path": [name], "report": "r"}], "val": [], "test": []})
    return built(type="MimicReportDataset", annotations=root / "m.json", image_root=root)


def medpix(root, name):
    with open(root / "t.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["name", "context", "type"], [name, "c", "caption"]])
    return built(type="MedPixDataset", table=root / "t.csv", image_dir=root)


def zero_shot(root, name):
    with open(root / "test_fold1.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label"], [name, "no"]])
    return read_set(chosen(["acl_mri"])[0], root)[0]


def openi(root, name):
    dump(root / "filter_cap.json", {"annotations": [{"image_id": name, "caption": "c"}]})
    (source,) = (one for one in SOURCES.values() if one.name == "openi")
    return [pair.image for pair in source.read(root, None, False)]


def packed(write):
    def pack(root, name):
        dataset = RecordDataset(records(root, name), "train")
        write(dataset, root / "packed")
        return [path for path in (root / "packed").rglob("*") if path.is_file()]

    return pack


def asked(cases):
    return [value for case in cases for value in case.inputs.values() if isinstance(value, Path)]


def answers(root, name):
    dump(root / "train.json", {"annotations": [{"file_name": name.replace("png", "txt"), "caption": "c"}]})
    return score_answers(root, root / "train.json", kind="medtrinity")


DOORS = {
    "records: image": lambda root, name: built(type="RecordDataset", path=records(root, name)),
    "records: mask": lambda root, name: built(type="RecordDataset", path=masked(root, name)),
    "pairs: image": lambda root, name: built(type="ImageTextRecords", path=records(root, name), tasks=["vqa"]),
    "unibiomed: image": lambda root, name: built(type="BiomedDataset", root=coco(root, name, "fine.png")),
    "unibiomed: mask": lambda root, name: built(type="BiomedDataset", root=coco(root, "fine.png", name)),
    "medtrinity: image": lambda root, name: built(type="MedTrinityDataset", root=coco(root, name, "", caption="c")),
    "medtrinity: mask": lambda root, name: built(
        type="MedTrinityDataset", root=coco(root, "fine.png", name, caption="c"), masks=True
    ),
    "radgenome: image": lambda root, name: built(type="RadGenomeDataset", root=radgenome(root, name, "fine.png")),
    "radgenome: mask": lambda root, name: built(type="RadGenomeDataset", root=radgenome(root, "fine.png", name)),
    "volumes: mask": lambda root, name: built(type="BiomedVolumeDataset", root=volumes(root, name)),
    "volumes: folder": lambda root, name: built(
        type="BiomedVolumeDataset", root=volumes(root, volume=name.removesuffix("/secret.png"))
    ),
    "tests: image": lambda root, name: asked(
        unibiomed_tests.segmentation_cases(coco(root, name, "fine.png"), "train.json")
    ),
    "tests: mask": lambda root, name: asked(
        unibiomed_tests.segmentation_cases(coco(root, "fine.png", name), "train.json")
    ),
    "tests: disease": lambda root, name: asked(unibiomed_tests.disease_cases(coco(root, name, ""), "train.json")),
    "tests: entries": lambda root, name: asked(
        unibiomed_tests.parse_cases(radgenome(root, name, ""), "train_parse.json", "report")
    ),
    "biomedparse: image": lambda root, name: built(
        type="BiomedParseDataset", root=coco(root, name, "fine.png", modality="CT", site="abdomen")
    ),
    "biomedparse: mask": lambda root, name: built(
        type="BiomedParseDataset", root=coco(root, "fine.png", name, modality="CT", site="abdomen")
    ),
    "umedground: image": grounding,
    "slake: image": slake,
    "slake: folder": slake_boxes,
    "path vqa: image": path_vqa,
    "mimic: image": mimic,
    "medpix: image": medpix,
    "zero-shot: image": zero_shot,
    "sources: image": openi,
    "repack: shards": packed(lambda dataset, folder: write_shards(dataset, folder, "train")),
    "repack: arrow": packed(write_arrow),
    "scorer: answer": answers,
}


@pytest.fixture
def tree(tmp_path):
    """A data folder with an image, a folder beside it with a secret, and links from the first to the second."""
    root, outside = tmp_path / "data", tmp_path / "elsewhere"
    outside.mkdir()
    dump(outside / "secret.txt", {"caption": "secret", "pred_masks": []})
    dump(outside / "secret.txt.json", {"caption": "secret", "pred_masks": []})
    dump(outside / "detection.json", [{"x": [1, 1, 5, 5]}])
    dump(outside / "question.json", [])
    places = ("", "train", "train_mask", "imgs", "files", "x", "..", "imgs/one")
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        if place != "..":
            Image.new("L", (SIZE, SIZE), 10).save(root / place / "fine.png")
            (root / place / "link.png").symlink_to(outside / "secret.png")
            (root / place / "link.jpg").symlink_to(outside / "secret.png")
            (root / place / "link.txt.json").symlink_to(outside / "secret.txt.json")
            (root / place / "linked").symlink_to(outside)
    for name in ("secret.png", "secret.jpg", "source.jpg"):
        Image.new("L", (SIZE, SIZE), SECRET).save(outside / name, format="PNG")
    return root, outside


def seen(things, outside):
    """Whether a sample, a path or a packed file holds the secret."""
    for thing in things:
        if isinstance(thing, Path):
            if thing.suffix in (".tar", ".arrow"):
                if (outside / "secret.png").read_bytes() in thing.read_bytes():
                    return True
            elif thing.is_file() and thing.resolve().is_relative_to(outside):
                return True
        elif hasattr(thing, "images"):
            if any((np.asarray(image) == SECRET).all() for image in thing.images):
                return True
            if any(region.mask is not None for region in thing.regions):
                return True
        elif thing["predicted"] is not None:
            return True
    return False


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("door", DOORS)
def test_nothing_outside_is_read(tree, door, kind):
    root, outside = tree
    name = NAMES[kind].format(outside=outside)
    try:
        found = DOORS[door](root, name)
    except (ValueError, FileNotFoundError):  # a named error of the reader, or the name means nothing inside
        return
    rows = getattr(found, "rows", found)
    assert not seen(rows, outside), f"{door} read the secret by {name}"


@pytest.mark.parametrize("door", [d for d in DOORS if not d.endswith(("folder", "answer", "mask"))])
def test_what_lies_inside_is_read(tree, door):
    root, outside = tree
    for place in ("", "train", "imgs", "files"):
        Image.new("L", (SIZE, SIZE), SECRET).save(root / place / "train_fine.png", format="PNG")
        Image.new("L", (SIZE, SIZE), SECRET).save(root / place / "train_fine.jpg", format="PNG")
    (root / "fine.png").unlink()
    Image.new("L", (SIZE, SIZE), 10).save(root / "fine.png")
    found = DOORS[door](root, "train_fine.png")
    assert found
