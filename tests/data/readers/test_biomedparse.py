"""BiomedParse's PNG format: names, the checks before writing, and the samples that come out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unimed.commands.common import Parser
from unimed.data.prepare import biomedparse
from unimed.data.readers.biomedparse import BiomedParseDataset, tied
from unimed.data.readers.biomedparse_names import FileNameError, mask_file_name, parse_image_name, parse_mask_name
from unimed.data.readers.unibiomed import TreeError
from unimed.registry import DATASETS


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def mask_of(*rows, shape=(16, 20)):
    mask = np.zeros(shape, np.uint8)
    mask[slice(*rows)] = 255
    return mask


@pytest.fixture
def folder(tmp_path):
    for split, names in {"train": ("p1", "p2"), "test": ("p3",)}.items():
        for name in names:
            noise = np.random.default_rng(ord(name[1])).integers(0, 255, (16, 20))
            picture(tmp_path / split / f"{name}_CT_abdomen.png", noise)
            picture(tmp_path / f"{split}_mask" / f"{name}_CT_abdomen_left+kidney.png", mask_of(2, 6))
    picture(tmp_path / "train_mask/p2_CT_abdomen_liver.png", mask_of(8, 14))
    return tmp_path


def prepare(folder, *options):
    parser = Parser("")
    biomedparse.add_arguments(parser)
    return biomedparse.run(parser.parse_args([str(folder), *options]))


def test_names():
    name = parse_mask_name("Part_1_516_pathology_breast_neoplastic+cells.png")
    assert (name.image, name.modality, name.site, name.target) == (
        "Part_1_516",
        "pathology",
        "breast",
        "neoplastic cells",
    )
    assert name.prompt == "neoplastic cells in breast pathology"
    assert mask_file_name(f"{name.stem}.png", name.target) == "Part_1_516_pathology_breast_neoplastic+cells.png"
    assert parse_image_name("a_b_MRI-T1-Gd_brain.png").modality == "MRI-T1-Gd"
    for bad in ("a_CT.png", "a_CT_.png", "a_CT_lung.jpg"):
        with pytest.raises(FileNameError):
            parse_image_name(bad)
    for bad in ("CT_lung_tumor.png", "a_CT_lung_lung tumor.png", "a_CT_lung_+.png"):
        with pytest.raises(FileNameError):
            parse_mask_name(bad)


def test_json_as_published(folder):
    assert prepare(folder, "--patient-pattern", "^([^_]+)_") == 0
    content = json.loads((folder / "train.json").read_text())
    assert {"info", "licenses", "images", "categories", "annotations"} <= set(content)
    first = content["annotations"][0]
    assert first["file_name"] == "p1_CT_abdomen.png" and first["mask_file"] == "p1_CT_abdomen_left+kidney.png"
    assert first["sentences"] == [
        {"raw": "left kidney in abdomen CT", "sent": "left kidney in abdomen CT", "sent_id": 0}
    ]
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert names[first["category_id"]] == "kidney" and names[content["annotations"][2]["category_id"]] == "liver"
    assert content["images"][0] == {
        "file_name": "p1_CT_abdomen.png", "height": 16, "width": 20, "id": 0, "patient_id": "p1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("break_it", "kind", "message"),
    [
        (lambda f: picture(f / "train/case.png", mask_of(1, 2)), "name", "[IMAGE]_[MODALITY]_[SITE].png"),
        (lambda f: picture(f / "train_mask/p9_CT_abdomen_liver.png", mask_of(1, 2)), "missing file", "no image p9"),
        (lambda f: picture(f / "train_mask/p1_CT_abdomen_liver.png", mask_of(0, 0)), "mask", "empty"),
        (lambda f: picture(f / "train_mask/p1_CT_abdomen_liver.png", mask_of(1, 2, shape=(9, 9))), "mask", "(9, 9)"),
        (
            lambda f: picture(f / "train_mask/p1_CT_abdomen_liver.png", np.arange(320).reshape(16, 20) % 9),
            "mask",
            "binary",
        ),
        (
            lambda f: picture(f / "train_mask/p1_CT_abdomen_LEFT+kidney.png", mask_of(1, 2)),
            "duplicate",
            "is there twice",
        ),
        (lambda f: (f / "train/p1_CT_abdomen.png").rename(f / "test/x_CT_abdomen.png"), "missing file", "no image p1"),
        (lambda f: picture(f / "test/p1_CT_abdomen.png", np.eye(16, 20)), "patient leakage", "is in test, train"),
        (lambda f: (f / "train/p1_CT_abdomen.png").write_bytes(b"\x89PNG rest"), "unreadable", "damaged"),
    ],
)
def test_faults_are_named_and_nothing_is_written(folder, capsys, break_it, kind, message):
    break_it(folder)
    assert prepare(folder, "--patient-pattern", "^([^_]+)_") == 1
    out = capsys.readouterr().out
    assert any(f": {kind}: " in line and message in line for line in out.splitlines()), out
    assert not list(folder.glob("*.json"))


def test_identical_pixels_are_found_and_bad_files_can_be_left_out(folder, capsys):
    (folder / "test/copy_CT_abdomen.png").write_bytes((folder / "train/p1_CT_abdomen.png").read_bytes())
    picture(folder / "train_mask/p1_CT_abdomen_spleen.png", mask_of(0, 0))
    assert prepare(folder) == 1 and "identical pixels" in capsys.readouterr().out
    assert prepare(folder, "--skip-bad") == 0
    targets = {a["target"] for a in json.loads((folder / "train.json").read_text())["annotations"]}
    assert targets == {"left kidney", "liver"}


def test_no_pairs_of_folders(tmp_path, capsys):
    assert prepare(tmp_path) == 1 and "SPLIT_mask" in capsys.readouterr().err
    assert prepare(tmp_path / "gone") == 1


def test_samples(folder):
    prepare(folder)
    dataset = DATASETS.build(dict(type="BiomedParseDataset", root=folder, patient_pattern="^([^_]+)_"))
    sample = dataset[1]
    assert sample.images[0].shape == (16, 20) and sample.modality == "CT" and sample.patient_id == "p2"
    assert [r.phrase for r in sample.regions] == ["left kidney in abdomen CT", "liver in abdomen CT"]
    assert sample.regions[1].mask[8:14].all() and not sample.regions[1].mask[:8].any()
    answer = sample.conversation[1][1]
    assert [answer[slice(*r.phrase_span)] for r in sample.regions] == [r.phrase for r in sample.regions]


def test_absent_prompts_are_drawn_by_seed_epoch_and_index(folder):
    prepare(folder)
    dataset = BiomedParseDataset(folder, prompts=4, absent=0.5, seed=3)
    first = [dataset[i].labels["targets"] for i in range(2)]
    assert first == [dataset[i].labels["targets"] for i in range(2)]
    drawn = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        assert len(sample.regions) == 4
        for region, target in zip(sample.regions, sample.labels["targets"], strict=True):
            assert region.presence == (target == "left kidney") == (region.mask is not None)
            drawn.add(target)
    assert drawn == {"left kidney", "liver"}
    with pytest.raises(TreeError, match="probability"):
        BiomedParseDataset(folder, absent=2)


def test_what_may_be_there_is_never_called_absent():
    assert tied("kidney", ["left kidney"]) and tied("left kidney", ["kidney"]) and tied("tumor", ["tumor core"])
    assert not tied("right kidney", ["left kidney"]) and not tied("liver", ["left kidney", "spleen"])


def test_faults_of_the_json_are_named(folder):
    prepare(folder)
    path = Path(folder / "train.json")
    content = json.loads(path.read_text())
    content["annotations"][0]["sentences"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(TreeError, match="annotation 0 lacks"):
        BiomedParseDataset(folder)
    with pytest.raises(FileNotFoundError, match="val.json"):
        BiomedParseDataset(folder, "val")
