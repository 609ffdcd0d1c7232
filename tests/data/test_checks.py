"""What makes a sample unusable is found before training, by the road that training takes."""

import json

import numpy as np
import pytest
from PIL import Image

from unimed.commands.prepare import collate_of
from unimed.data.checks import check, grouped, sample_problems
from unimed.data.readers.records import RecordDataset
from unimed.geometry import Geometry
from unimed.structures import Sample


@pytest.fixture(scope="module")
def collate():
    return collate_of()


def record(**changes):
    region = dict(phrase="it", mask="m.png", present=True, phrase_span=[4, 6])
    text = dict(question="Segment it.", answer="<p> it </p> [SEG].")
    return dict(id="a", task="referring", image="i.png", patient_id="p", regions=[region]) | text | changes


def folder(root, *records, image=None, mask=None):
    (root / "records").mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8) if image is None else image
    (noise if isinstance(noise, Image.Image) else Image.fromarray(noise)).save(root / "i.png")
    square = np.zeros((32, 32), np.uint8)
    square[9:20, 9:20] = 255
    mask = square if mask is None else mask
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(root / "m.png")
    lines = [json.dumps(one) for one in records or (record(),)]
    (root / "records" / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    return root


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(question=""), "question is empty"),
        (dict(question="  <image> "), "question is empty"),
        (dict(question="<image> <image> Segment it."), "more than once"),
        (dict(question="Segment \ud800 it."), "surrogate"),
    ],
)
def test_what_only_the_collator_would_find(tmp_path, collate, changes, words):
    folder(tmp_path, record(**changes))
    report = check(tmp_path, collate=collate)
    assert not report.ok and any(kind == "unusable" and words in what for _, kind, what in report.problems)
    assert "a: " in report.problems[0][2] and "\n" not in report.problems[0][2]


def test_what_no_model_can_use_is_found_without_one(tmp_path):
    for changes in (dict(question=""), dict(question="<image><image>x"), dict(question="\udc00")):
        assert not check(folder(tmp_path, record(**changes))).ok


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16),
        np.random.default_rng(0).integers(0, 255, (32, 32, 4), dtype=np.uint8),
        Image.fromarray(np.zeros((32, 32), np.uint8)).convert("P"),
        Image.fromarray(np.eye(32) > 0),
    ],
    ids=["16 bit", "opacity", "palette", "1 bit"],
)
def test_pictures_of_every_kind_train(tmp_path, collate, image):
    root = folder(tmp_path, image=image)
    assert check(root, collate=collate).ok
    assert collate([RecordDataset(root)[0]])["mask_pixel_values"].shape[0] == 1


def test_pictures_no_model_can_read(tmp_path, collate):
    root = folder(tmp_path, record(image="i.tif"))
    pages = [Image.fromarray(np.zeros((32, 32), np.uint8))] * 3
    pages[0].save(root / "i.tif", save_all=True, append_images=pages[1:])
    assert "3 pages" in check(root, collate=collate).problems[0][2]
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(root / "i.tif")
    assert "NaN" in check(root, collate=collate).problems[0][2]


def labels():
    values = np.zeros((32, 32), np.uint8)
    values[5:9, 5:9], values[15:25, 15:25] = 1, 2
    return values


def palette():
    picture = Image.fromarray(labels(), mode="P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    return picture


@pytest.mark.parametrize(
    ("mask", "words", "pixels"),
    [
        (labels(), "2 labels (1, 2)", 116),
        (palette(), "2 palette entries (1, 2)", 116),
        (np.dstack([0 * labels(), labels(), labels() * 9]), "2 colours", 116),
        (np.where(labels() > 0, 0, 255).astype(np.uint8), "may be inverted", 32 * 32 - 116),
    ],
    ids=["labels", "palette", "colours", "inverted"],
)
def test_masks_that_should_be_looked_at(tmp_path, mask, words, pixels):
    root = folder(tmp_path, mask=mask)
    report = check(root)
    assert report.ok and any(words in remark and "m.png" in remark for remark in report.remarks)
    assert RecordDataset(root)[0].regions[0].mask.sum() == pixels
    region = dict(phrase="it", mask="m.png", mask_label=2, present=True, phrase_span=[4, 6])
    if words.startswith("2 labels") or words.startswith("2 palette"):
        root = folder(tmp_path, record(regions=[region]), mask=mask)
        assert RecordDataset(root)[0].regions[0].mask.sum() == 100 and not check(root).remarks


def test_remarks_of_one_kind_are_one_line():
    noted = [("train", f"record {k}: mask m{k}.png: {k + 2} labels (1, 2); all of them count") for k in range(5)]
    noted.append(("train", "record 9: mask x.png: a JPEG: cut at half"))
    said = grouped(noted)
    assert len(said) == 2 and "record 0" in said[0] and "4 more of this kind" in said[0]


def test_boxes_beside_a_turned_picture_are_remarked(tmp_path):
    picture = Image.fromarray(np.zeros((20, 32), np.uint8))
    picture.getexif()[274] = 6
    region = dict(phrase="it", box_xyxy_px=[1, 2, 10, 12], present=True, phrase_span=[4, 6])
    root = folder(tmp_path, record(answer="<p> it </p> [BOX].", regions=[region]), image=picture)
    picture.save(root / "i.png", exif=picture.getexif())
    assert any("EXIF orientation 6; boxes" in remark for remark in check(root).remarks)


@pytest.mark.parametrize("values", [np.full((4, 4), np.nan), np.zeros((0, 4)), np.zeros((4, 4), complex)])
def test_samples_of_any_reader(values):
    sample = Sample((values,), Geometry.pixels(), "s", conversation=(("user", "What?"), ("assistant", "A.")))
    assert sample_problems(sample)[0].startswith("s: ")
