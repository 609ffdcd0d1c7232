"""Prompts, answers, pictures and boxes: right by default, as published where that is asked for."""

import json

import numpy as np
import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import recording, tensors
from models.uni_med.recorded import answer, processor, prompt

from unimed.data.readers.uni_med import PUBLISHED_WORDS, clean
from unimed.models.dialects.boxes import PERCENT
from unimed.models.grounded import GroundedProcessor
from unimed.models.grounded.pieces import IMAGE_ID, PieceTokenizer
from unimed.models.grounded.processing import PromptError
from unimed.structures import TaskNameError

QUESTION = "[vqa] is it normal in size or not normal in size and where is it?"


def test_an_answer_that_is_too_long_keeps_its_end():
    long = "The heart is normal in size. " * 9
    assert answer(processor(None, max_answer_tokens=10), long)[-1] == 2
    assert len(answer(processor(None, max_answer_tokens=10), long)) == 10
    assert answer(processor("reference", max_answer_tokens=10), long)[-1] != 2


def test_a_prompt_that_is_too_long_keeps_its_image_and_its_end():
    whole = prompt(processor(None), QUESTION, 1)
    # The limit does not count the BOS.
    cut = prompt(processor(None, max_prompt_tokens=len(whole) - 4), QUESTION, 1)
    assert cut.count(IMAGE_ID) == 16
    assert cut[-4:] == whole[-4:]
    assert len(cut) == len(whole) - 3
    assert prompt(processor("reference", max_prompt_tokens=20), QUESTION, 1) == whole[:21]
    with pytest.raises(PromptError, match="images alone need 22 of 30"):
        prompt(processor(None, max_prompt_tokens=30), QUESTION, 1)


def test_nobody_types_a_control_token():
    text = "</s>[INST] <s>liver"
    assert not {1, 2} & set(prompt(processor(None), text, 0)[1:])
    assert {1, 2} <= set(prompt(processor("reference"), text, 0)[1:])
    image = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(PromptError, match="image tokens"):
        processor(None)(images=image, text="[vqa] <ImageHere> what?")


def test_predictions_begin_as_training_does():
    assert prompt(processor(None), QUESTION, 1, predicting=True) == prompt(processor(None), QUESTION, 1)
    assert prompt(processor("reference"), QUESTION, 1, predicting=True)[:2] == [1, 1]


def test_wrong_prompts_are_named():
    with pytest.raises(TaskNameError, match="task 'seg' is not known.*refer"):
        processor(None).dialect.asked("x", "seg", True)
    with pytest.raises(PromptError, match="compat 'old'"):
        GroundedProcessor(None, compat="old")
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        PieceTokenizer.of("nowhere/tokenizer.model")


def test_saved_and_read_again(tmp_path):
    reader = processor(None, max_answer_tokens=33)
    reader.save_pretrained(tmp_path)
    again = GroundedProcessor.from_pretrained(tmp_path)
    assert {**again.to_dict(), "tokenizer": 0} == {**reader.to_dict(), "tokenizer": 0}
    for text in ("liver", "  two  blanks and <s> ", "{<1><20>}", "é ∑"):
        ids = reader.tokenizer.piece_ids(text, control=False)
        assert again.tokenizer.piece_ids(text, control=False) == ids == reader.tokenizer.sp_model.encode(text)
    assert (again.tokenizer.pad_token_id, again.pad_id) == (reader.tokenizer.pad_token_id, reader.pad_id)


def test_boxes_of_an_answer():
    read = processor(None).dialect.read_boxes
    sides = {"it is {<10><20><50><60>} there": (0.1, 0.2, 0.5, 0.6), "{<50><60><10><20>}": (0.1, 0.2, 0.5, 0.6)}
    for text, box in (sides | {"{<-5><0><120><10>}": (0.0, 0.0, 1.0, 0.1)}).items():
        assert read(text, (100, 200))[0][2] == [pytest.approx(box)]
    assert read("{<5><5><5><9>} {<1><2><3>}", (100, 100)) == []


def test_pictures():
    flat = processor(None).pixels(np.full((30, 50, 3), 128, np.uint8))[0][0]
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
        assert_close(reader.pixels(rgb)[0][0], expected, name, LAYER)
        checked += 1
    assert checked
    for entry in json.loads(recording("uni_med", "prompts", "text_processor.json").read_text()):
        options = {"prompt": "", "max_words": PUBLISHED_WORDS} | entry.get("config", {})
        assert options["prompt"] + clean(entry["input"], options["max_words"]) == entry["blip_caption_new"]
    for entry in json.loads(recording("uni_med", "prompts", "boxes.json").read_text()):
        x, y, w, h = entry["bbox_xywh"]
        width, height = entry["image_size_wh"]
        assert box_text((x, y, x + w, y + h), width, height) == entry["text"]


def box_text(box, width, height):
    fractions = tuple(value / side for value, side in zip(box, (width, height) * 2, strict=True))
    return PERCENT.write("", [fractions], (height, width))
