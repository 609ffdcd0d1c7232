"""Prompts, ids and labels of uMedGround: 110 recorded conversations, and phrases back from answers."""

import json

import pytest
from golden_files import SMALL
from transformers import PreTrainedTokenizerFast

from unimed.models.grounded.llava_text import published_example, sentence_phrase, separate_ids
from unimed.models.grounded.processing import GroundedProcessor

GOLDEN = SMALL / "umedground"
RECORDED = json.loads((GOLDEN / "conversations.json").read_text())["cases"]


def llama(box: bool):
    """The pieces of Llama 2 that the recorded conversations are made of, under their own ids."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "llama_pieces.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_tokens((["[BOX]"] if box else []) + ["<im_start>", "<im_end>"], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("box", [False, True])
def test_ids_and_labels_equal_the_recorded_ones(box):
    tokenizer = llama(box)
    first = tokenizer.convert_tokens_to_ids("[BOX]" if box else "<im_start>")
    cases = [case for case in RECORDED if case["box_added"] == box]
    assert len(cases) == 55
    for case in cases:
        ids, labels = published_example(tokenizer, case["text"])
        # Added tokens follow the last piece: 32000 in the whole vocabulary, earlier in this part of it.
        added = range(first, first + 3)
        moved = [32000 + i - first if i in added else i for i in ids]
        assert moved == case["ids"], case["tag"]
        expected = [-100] * case["first_label"] + ids[case["first_label"] :]
        assert labels == expected, case["tag"]
        if box:
            # The state before each [BOX], 255 places later because the image takes 256.
            states = [place - 1 + 255 for place, i in enumerate(ids) if i == first]
            assert states == case["states"], case["tag"]


def test_broken_conversations_are_refused():
    tokenizer = llama(True)
    with pytest.raises(ValueError, match="once"):
        published_example(tokenizer, "no image ASSISTANT: x")
    with pytest.raises(ValueError, match="before the answer"):
        published_example(tokenizer, "<image> and nothing said")


def test_the_processor_cuts_text_the_same_way():
    tokenizer = llama(True)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    case = next(c for c in RECORDED if c["box_added"] and c["tag"] == "llava_v1/train/single/seed0")
    system, rest = case["text"].split(" USER: ", 1)
    question, answer = rest.split(" ASSISTANT: ")
    processor = GroundedProcessor(
        tokenizer, template="llava_v1", image_start="<im_start>", image_token="<image>", image_end="<im_end>",
        tokens_per_tile=1, tile_size=224, system=system, bos=True, separate_tokens=True, phrase_style="sentence",
    )  # fmt: skip
    question = question.replace("<im_start><image><im_end>", "<image>")
    ids, labels = processor.encode_example((("user", question), ("assistant", answer.removesuffix("</s>"))), 1)
    published, learnt = published_example(tokenizer, case["text"])
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert ids == [image if i == -200 else i for i in published] and labels == learnt
    # Predicting begins with exactly what training saw before the answer.
    assert processor.encode_prompt([("user", question)], 1) == ids[: labels.count(-100)]
    parsed = processor.parse([i for i in labels if i != -100])
    assert [(target.token, target.phrase) for target in parsed.targets] == [
        ("[BOX]", "Patchy opacity in the right lower lobe")
    ]
    with pytest.raises(ValueError, match="phrase_style"):
        GroundedProcessor(tokenizer, phrase_style="words")


def test_phrases_of_sentences():
    text = "heart is enlarged. It is . small effusion. The detection result is . "
    first = sentence_phrase("heart is enlarged. It is", 0)
    assert "heart is enlarged. It is"[slice(*first)] == "heart is enlarged"
    start = text.index(" small")
    assert text[slice(*sentence_phrase(text[: text.index(" . ", 40)], start))] == "small effusion"
    assert sentence_phrase("done. ", 5) is None
    assert separate_ids(llama(True), "") == []
