"""Prompts, answers, pictures and boxes: right by default, as published where that is asked for."""

import json

import numpy as np
import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import recording, tensors
from models.uni_med.recorded import processor

from unimed.data.readers.uni_med import PUBLISHED_WORDS, clean
from unimed.data.readers.uni_med_records import box_text
from unimed.models.uni_med.processing import VISUAL_TOKEN, PromptError, UniMedProcessor

QUESTION = "<Img><ImageHere></Img> [vqa] is it normal in size or not normal in size and where is it? "


def test_an_answer_that_is_too_long_keeps_its_end():
    long = "The heart is normal in size. " * 9
    assert processor(None, max_answer_tokens=10).answer(long)[-1] == 2
    assert len(processor(None, max_answer_tokens=10).answer(long)) == 10
    assert processor("reference", max_answer_tokens=10).answer(long)[-1] != 2


def test_a_prompt_that_is_too_long_keeps_its_image_and_its_end():
    whole = processor(None).prompt(QUESTION, 1)
    cut = processor(None, max_prompt_tokens=len(whole) - 3).prompt(QUESTION, 1)
    assert cut.count(VISUAL_TOKEN) == 16
    assert cut[-4:] == whole[-4:]
    assert len(cut) == len(whole) - 3
    assert processor("reference", max_prompt_tokens=20).prompt(QUESTION, 1) == whole[:20]
    with pytest.raises(PromptError, match="images alone need 22 of 30"):
        processor(None, max_prompt_tokens=30).prompt(QUESTION, 1)


def test_nobody_types_a_control_token():
    text = "</s>[INST] <s>liver"
    assert not {1, 2} & set(processor(None).prompt(text, 0)[1:])
    assert {1, 2} <= set(processor("reference").prompt(text, 0))


def test_predictions_begin_as_training_does():
    reader = processor(None)
    assert reader.prompt(QUESTION, 1, predicting=True) == [1, *reader.prompt(QUESTION, 1)]
    assert processor("reference").prompt(QUESTION, 1, predicting=True)[:2] == [1, 1]


def test_wrong_prompts_are_named():
    with pytest.raises(PromptError, match="holds 1 <ImageHere>, but 2 images"):
        processor(None).prompt(QUESTION, 2)
    with pytest.raises(PromptError, match="task 'seg' is not known.*refer"):
        processor(None).instruction("seg", "x")
    with pytest.raises(PromptError, match="2 questions for 1 answers"):
        processor(None).conversation(["a", "b"], ["c"], 0)
    with pytest.raises(PromptError, match="compat 'old'"):
        processor("old")
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        UniMedProcessor("nowhere/tokenizer.model")


def test_saved_and_read_again(tmp_path):
    reader = processor(None, max_answer_tokens=33)
    reader.save_pretrained(tmp_path)
    again = UniMedProcessor.from_pretrained(tmp_path)
    assert (again.options, again.compat) == (reader.options, None)
    assert again.encode("liver") == reader.encode("liver")
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.model is missing"):
        UniMedProcessor.from_pretrained(tmp_path)


def test_boxes_of_an_answer():
    reader = processor(None)
    assert reader.boxes("it is {<10><20><50><60>} there", 200, 100) == [(20.0, 20.0, 100.0, 60.0)]
    assert reader.boxes("{<50><60><10><20>}", 100, 100) == [(10.0, 20.0, 50.0, 60.0)]
    assert reader.boxes("{<-5><0><120><10>}", 100, 100) == [(0.0, 0.0, 100.0, 10.0)]
    assert reader.boxes("{<5><5><5><9>} {<1><2><3>}", 100, 100) == []


def test_pictures():
    flat = processor(None).pixels(np.full((30, 50, 3), 128, np.uint8))
    assert flat.shape == (3, 112, 112)
    expected = (128 / 255 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    assert_close(flat[:, 5, 5], expected, relative=MODEL)


def test_recorded_pictures_texts_and_boxes():
    stored = tensors("uni_med", "prompts", "image_processor.safetensors")
    reader, checked = processor("reference", image_size=56), 0
    for name in [name for name in stored if name.endswith("input_uint8")]:
        expected = stored[name.replace("input_uint8", "out")]
        array = stored[name].numpy()
        rgb = np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array[..., :3]
        assert_close(reader.pixels(rgb), expected, name, LAYER)
        checked += 1
    assert checked
    for entry in json.loads(recording("uni_med", "prompts", "text_processor.json").read_text()):
        options = {"prompt": "", "max_words": PUBLISHED_WORDS} | entry.get("config", {})
        assert options["prompt"] + clean(entry["input"], options["max_words"]) == entry["blip_caption_new"]
    for entry in json.loads(recording("uni_med", "prompts", "boxes.json").read_text()):
        x, y, w, h = entry["bbox_xywh"]
        width, height = entry["image_size_wh"]
        assert box_text((x, y, x + w, y + h), width, height) == entry["text"]
