"""Readers of phrase-and-box data: layouts, frames, zero, one and many boxes, leaks, and everything that is refused."""

import json

import numpy as np
import pytest
import torch
from golden_files import SMALL
from PIL import Image

from unimed.data.collate.grounded import GroundedCollator
from unimed.data.readers.umedground_formats import place_of
from unimed.data.readers.umedground_records import GroundingDataError, LeakError, part_of
from unimed.models.dialects import umedground as grounding_text
from unimed.registry import DATASETS

RECORDED = json.loads((SMALL / "umedground" / "conversations.json").read_text())
PATH = "files/p10/p1000000{n}/s5000000{n}/a.png"


@pytest.fixture
def root(tmp_path):
    for number in range(1, 5):
        file = tmp_path / PATH.format(n=number)
        file.parent.mkdir(parents=True)
        Image.fromarray(np.full((640, 640), 30 * number, dtype=np.uint8)).save(file)
    return tmp_path


def mrg(root, name="set_train.pth", **changes):
    content = {
        "image_paths": [PATH.format(n=1), PATH.format(n=2)],
        "bboxes": [(64, 128, 100, 50), [(10, 20, 30, 40), (300, 20, 30, 40), (5, 6, 7, 8)]],
        "phrases": ["heart is enlarged", ["effusion", "effusion", "opacity"]],
        "all_reports": [["The heart is enlarged."], "Effusions. Opacity."],
    }
    torch.save(content | changes, root / name)
    return root / name


def build(root, path, **options):
    said = []
    options = {"format": "mrg", "report_counts": said.append} | options
    return DATASETS.build(dict(type="MedicalGroundingDataset", path=str(path), images=str(root), **options)), said


def test_mrg_files_with_one_and_many_boxes(root):
    dataset, said = build(root, mrg(root))
    assert len(dataset) == 2 and "read 2, kept 2, refused 0" in said[0]
    sample = dataset[0]
    assert sample.regions[0].box_xyxy_px == (64, 128, 164, 178) and sample.patient_id == "10000001"
    assert sample.conversation[0][1].startswith("The heart is enlarged. Please")
    assert sample.conversation[1][1] == "<p> heart is enlarged </p> [BOX]."
    many = dataset[1]
    assert many.conversation[1][1] == "<p> effusion </p> [BOX] [BOX]. <p> opacity </p> [BOX]."
    assert [region.phrase for region in many.regions] == ["effusion", "effusion", "opacity"]
    start, end = many.regions[2].phrase_span
    assert many.conversation[1][1][start:end] == "opacity"
    # Visiting a sample again changes nothing (in the released loader boxes drift).
    assert dataset[1].regions[1].box_xyxy_px == many.regions[1].box_xyxy_px == (300, 20, 330, 60)
    phrase, _ = build(root, mrg(root), ask="phrase")
    assert phrase[1].labels["text"] == "effusion. opacity."


def test_text_fields_of_questions_and_classes(root):
    file = mrg(root, Answer_all=["Is it large? yes", "Where? left"], class_all=["Cardiomegaly", ["Effusion"]])
    dataset, _ = build(root, file, text_key="Answer_all")
    assert dataset[0].labels["kind"] == "vqa" and dataset[0].labels["text"] == "Is it large? yes"
    dataset, _ = build(root, file, text_key="class_all")
    assert dataset[1].labels["kind"] == "class" and dataset[1].labels["text"] == "Effusion"
    with pytest.raises(GroundingDataError, match="no text field nothing"):
        build(root, file, text_key="nothing")


def test_boxes_are_in_pixels_of_the_image_on_disk(root):
    Image.fromarray(np.zeros((320, 1280), dtype=np.uint8)).save(root / PATH.format(n=1))
    file = mrg(root)
    dataset, _ = build(root, file)
    with pytest.raises(GroundingDataError, match=r"set_train.pth: record 0:.*1280 x 320 px.*640 x 640.*stretch"):
        dataset[0]
    stretched, _ = build(root, file, resized="stretch")
    assert stretched[0].regions[0].box_xyxy_px == (128, 64, 328, 89)
    # 1280 x 320 in a square of 640: 640 x 160 with 240 rows of black above.
    boxes = [(64, 260, 100, 50), (10, 20, 30, 40)]
    letterboxed, _ = build(root, mrg(root, bboxes=boxes, phrases=["a", "b"]), resized="letterbox")
    assert letterboxed[0].regions[0].box_xyxy_px == (128, 40, 328, 140)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((600, 10, 100, 50), "lies outside its image of 640 x 640"),
        ((10, 10, -5, 50), "x2 <= x1"),
        ((10, 10, 0, 50), "x2 <= x1"),
        ((float("nan"), 10, 5, 50), "NaN"),
        ((1, 2, 3), "not enough values|3"),
        ([], "has no box"),
    ],
)
def test_bad_boxes_are_refused_by_name_and_counted(root, box, message):
    file = mrg(root, bboxes=[box, (10, 20, 30, 40)], phrases=["heart", "lung"])
    dataset, said = build(root, file, require_boxes=True)
    assert len(dataset) == 1 and "read 2, kept 1, refused 1" in said[0]
    assert "record 0:files" in dataset.counts.refused[0]
    with pytest.raises(GroundingDataError, match=f"set_train.pth: record 0:files.*({message})"):
        build(root, file, require_boxes=True, strict=True)


def test_a_phrase_without_a_box_has_no_place(root):
    file = mrg(root, bboxes=[[], (10, 20, 30, 40)], phrases=["pneumothorax", "lung"])
    dataset, said = build(root, file)
    assert "kept 2" in said[0]
    sample = dataset[0]
    assert sample.conversation[1][1] == "<p> pneumothorax </p> is not visible."
    assert sample.regions[0].presence == 0 and sample.regions[0].box_xyxy_px is None


def test_unusable_files_are_named(root):
    torch.save({"image_paths": []}, root / "a_train.pth")
    with pytest.raises(GroundingDataError, match="a_train.pth: an MRG file is a dictionary"):
        build(root, root / "a_train.pth")
    (root / "b_train.pth").write_bytes(b"junk")
    with pytest.raises(GroundingDataError, match="b_train.pth: cannot be read"):
        build(root, root / "b_train.pth")
    with pytest.raises(GroundingDataError, match="different lengths"):
        build(root, mrg(root, phrases=["x"]))
    with pytest.raises(GroundingDataError, match="no record is left"):
        build(root, mrg(root, bboxes=[(1, 1, 0, 0)] * 2, phrases=["a", "b"]))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build(root, root / "nowhere.pth")
    with pytest.raises(GroundingDataError, match="format must be one of"):
        build(root, mrg(root), format="coco")
    dataset, _ = build(root, mrg(root, image_paths=["../x.png", "missing.png"]))
    with pytest.raises(GroundingDataError, match="leads out of"):
        dataset[0]
    with pytest.raises(GroundingDataError, match="missing.png is missing"):
        dataset[1]


def test_patients_of_training_are_found_in_the_test(root):
    mrg(root)
    images = [PATH.format(n=2), PATH.format(n=3)]
    test = mrg(root, "set_test.pth", image_paths=images, bboxes=[(1, 2, 30, 40)] * 2, phrases=["a", "b"])
    with pytest.raises(LeakError, match=r"1 of 2 records \(1 patients\).*leak='drop'"):
        build(root, test, split="test")
    with pytest.raises(LeakError):
        build(root, root / "set_{split}.pth", split="test")
    dropped, said = build(root, test, split="test", leak="drop")
    assert len(dropped) == 1 and "kept 1" in said[0] and "left out" in said[0]
    assert len(build(root, test, split="test", leak="allow")[0]) == 2
    other = mrg(root, "other_train.pth", image_paths=[PATH.format(n=4)] * 2)
    assert len(build(root, test, split="test", against=[str(other)])[0]) == 2
    with pytest.raises(FileNotFoundError, match="none.pth"):
        build(root, test, split="test", against=[str(root / "none.pth")])


def test_ms_cxr_reads_its_own_file(root):
    image = {"id": 7, "file_name": "a.png", "path": PATH.format(n=1), "height": 640, "width": 640}
    annotation = {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "label_text": "large heart"}
    content = {
        "images": [image, image | {"id": 8, "path": PATH.format(n=2)}],
        "annotations": [
            annotation,
            annotation | {"bbox": [50, 60, 70, 80]},
            annotation | {"image_id": 8, "label_text": "effusion"},
            annotation | {"image_id": 9},
        ],
        "categories": [{"id": 1, "name": "Cardiomegaly"}],
    }
    file = root / "ms_cxr_train.json"
    file.write_text(json.dumps(content))
    dataset, said = build(root, file, format="ms_cxr")
    assert "read 3, kept 2, refused 1" in said[0] and "not in `images`" in said[0]
    sample = dataset[0]
    assert len(sample.regions) == 2 and sample.labels["classes"] == ["Cardiomegaly"]
    assert sample.labels["kind"] == "phrase" and sample.labels["text"] == "large heart."
    (root / "reports" / "p10" / "p10000001").mkdir(parents=True)
    (root / "reports" / "p10" / "p10000001" / "s50000001.txt").write_text("FINDINGS:\n Large heart.")
    dataset, said = build(root, file, format="ms_cxr", reports=str(root / "reports"))
    assert dataset[0].labels["text"] == "FINDINGS: Large heart." and "s50000002.txt is missing" in said[0]
    file.write_text("{")
    with pytest.raises(GroundingDataError, match="not JSON"):
        build(root, file, format="ms_cxr")


def test_chestxray8_is_split_by_patient(root):
    lines = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]
    for patient in range(40):
        (root / f"{patient:08d}_000.png").symlink_to(root / PATH.format(n=1))
        lines += [f"{patient:08d}_000.png,Atelectasis,100,100,200,150,,"]
        lines += [f"{patient:08d}_001.png,Cardiomegaly,400,500,200,150,,"]
    lines.append("00000001_002.png,Mass,left,1,2,3,,")
    file = root / "BBox_List_2017.csv"
    file.write_text("\n".join(lines))
    parts = {split: build(root, file, format="chestxray8", split=split)[0] for split in ("train", "val", "test")}
    patients = {split: {record.patient_id for record in part.records} for split, part in parts.items()}
    assert sum(len(part) for part in parts.values()) == 80
    assert len(patients["train"]) > len(patients["test"]) > 0
    assert not patients["train"] & patients["test"] and not patients["train"] & patients["val"]
    record = next(r for r in parts["train"].records if r.image.endswith("_000.png"))
    assert record.phrases[0] == ("Atelectasis position: right top", [(100, 100, 300, 250)])
    assert parts["train"].counts.refused and "record 82" in parts["train"].counts.refused[0]
    assert part_of(record, (0.7, 0.1, 0.2)) == 0
    dataset = build(root, file, format="chestxray8", split="train", resized="stretch")[0]
    index = next(i for i, r in enumerate(dataset.records) if r.image.endswith("_000.png"))
    assert np.allclose(dataset[index].regions[0].box_xyxy_px, np.array([100, 100, 300, 250]) * 0.625)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((100, 500, 200, 600), "right"),
        ((700, 700, 900, 900), "left bottom"),
        ((450, 100, 550, 200), "middle top"),
        ((450, 700, 550, 800), "bottom"),
    ],
)
def test_places_are_worded_as_published(box, words):
    assert place_of("Mass", box, 1024) == f"Mass position: {words}"
    assert place_of("Cardiomegaly", box, 1024) == "Cardiomegaly"


def test_questions_of_ones_own(root):
    row = {
        "id": "q1", "image": PATH.format(n=1), "frame_hw": [640, 640], "question": "Where is the effusion?",
        "answer": "left", "phrases": [{"phrase": "effusion", "boxes_xyxy_px": [[1, 2, 30, 40]]}],
    }  # fmt: skip
    classes = row | {"id": "c1", "classes": ["Edema", "Mass"]}
    del classes["question"]
    file = root / "own_train.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in (row, classes, {"id": "x"}, row)))
    dataset, said = build(root, file, format="questions")
    assert "read 4, kept 2, refused 2" in said[0] and "used twice" in said[0]
    assert dataset[0].labels["text"] == "Where is the effusion? left" and dataset[0].labels["kind"] == "vqa"
    assert dataset[1].labels["text"] == "Edema, Mass." and dataset[1].labels["kind"] == "class"


def test_published_wording_holds_every_recorded_conversation():
    templates = RECORDED["templates"]
    assert [q.replace("<image>\n{sent} ", "") for q in templates["train_questions"]] == list(grounding_text.QUESTIONS)
    assert templates["answers"] == list(grounding_text.ENDINGS)
    seen = 0
    for case in RECORDED["cases"]:
        if not case["tag"].startswith("llava_v1/train") or not case["box_added"]:
            continue
        text = case["conversation"]
        asked, said = text.split(" USER: ")[1].removesuffix("</s>").split(" ASSISTANT: ")
        wording = next(i for i, q in enumerate(grounding_text.QUESTIONS) if asked.endswith(q))
        report = asked.removeprefix("<image>\n").removesuffix(f" {grounding_text.QUESTIONS[wording]}")
        assert grounding_text.question(report, wording, published=True, training=True) == asked
        seen += 1
        if "multi" in case["tag"]:
            continue
        phrase, ending = next(
            (said.removesuffix(f". {e}"), e) for e in sorted(grounding_text.ENDINGS, key=len, reverse=True)
            if said.endswith(e)
        )  # fmt: skip
        assert grounding_text.answer([(phrase, 1)], "published", [ending])[0] == said
    assert seen == 12


def test_samples_become_batches(root):
    from small_models import tiny_model

    model = tiny_model("point")
    dataset, _ = build(root, mrg(root))
    batch = GroundedCollator(model.processor)([dataset[0], dataset[1]])
    assert batch["boxes_xyxy"].shape == (4, 4) and batch["box_groups"].tolist() == [0, 1, 1, 2]
    assert torch.allclose(batch["boxes_xyxy"][0], torch.tensor([64, 128, 164, 178]) / 640)
