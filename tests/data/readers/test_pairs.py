"""Pairs of the record format: all texts of an image are its captions; crops, captions and groups of a batch."""

import json
import random

import pytest
import torch
from data.readers.test_shards import png
from models.clip.recorded import converted

from unimed.data.readers.pairs import ImageTextCollator, ImageTextRecords, plain_text
from unimed.models.clip import ClipProcessor


@pytest.fixture()
def records(tmp_path):
    base = {"modality": "CT", "patient_id": "p", "question": "Describe."}
    rows = [
        {"id": "1", "task": "caption", "image": "a.png", "answer": "CT of the chest.", "site": "chest"},
        {"id": "2", "task": "report", "image": "a.png", "answer": "There are 2 <p> nodules </p> [SEG], both small.",
         "site": "chest", "regions": [{"phrase": "nodules", "mask": "m.png"}]},
        {"id": "3", "task": "vqa", "image": "a.png", "answer": "no"},
        {"id": "4", "task": "caption", "image": "b.png", "answer": "CT of the chest.", "site": ""},
    ]  # fmt: skip
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "train.jsonl").write_text("".join(json.dumps(base | row) + "\n" for row in rows))
    for number, name in enumerate(("a", "b", "m")):
        (tmp_path / f"{name}.png").write_bytes(png(90 * number + 10, (40, 36)))
    return tmp_path


def test_all_texts_of_an_image(records):
    data = ImageTextRecords(records, templates=["{modality} of the {site}"], label="{modality}")
    assert len(data) == 2
    first, second = data[0], data[1]
    assert first.labels["captions"] == ("CT of the chest.", "There are 2 nodules, both small.", "CT of the chest")
    assert second.labels["captions"] == ("CT of the chest.",)  # a template with an empty field is left out
    assert first.labels["label"] == "CT" and first.sample_id == "a.png" and first.regions == ()
    assert plain_text("<p> a </p> [BOX]. [SEG]") == "a."


def test_a_batch(records, tmp_path):
    processor = ClipProcessor.from_pretrained(converted(tmp_path / "model"))
    data = ImageTextRecords(records)
    random.seed(0)
    torch.manual_seed(0)
    batch = ImageTextCollator(processor)([data[1], data[1], data[0]])
    assert batch["images"].shape == (3, 3, 32, 32) and batch["images"].dtype == torch.uint8
    assert batch["groups"][0] == batch["groups"][1] and batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["sample_ids"] == ["b.png", "b.png", "a.png"] and batch["cut"] == []
    plain = ImageTextCollator(processor, scale=None)([data[0]])
    assert torch.equal(plain["images"][0], processor.image(data[0].images[0]))
    long = data[0].__class__(**{**vars(data[1]), "labels": {"captions": ("lung " * 300,)}})
    assert ImageTextCollator(processor)([long])["cut"] == ["b.png"]
