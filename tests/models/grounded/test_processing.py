"""One call makes what collator, predictor and users feed to the model."""

import numpy as np
import pytest
import torch
from sam2_models import say, tiny_sam2_model
from small_models import teach, tiny_model
from transformers import AutoProcessor

from unimed.models.grounded.processing import PromptError

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, size, dtype=np.uint8) for size in ((60, 90, 3), (100, 40, 3))]
KINDS = ["small", "internvl", "llava", "qwen2_5_vl"]


def model_of(kind):
    return tiny_model() if kind == "small" else tiny_sam2_model(kind)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_two_lines_of_a_hugging_face_user(kind, tmp_path):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(images=IMAGES[0], text="Segment the nuclei.", return_tensors="pt").to("cpu")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) > 0
    ids = model.generate(**inputs, max_new_tokens=5)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(ids[:, :length], inputs["input_ids"]) and length < ids.shape[1] <= length + 5
    said = model.predict(IMAGES[0], "Segment the nuclei.", max_new_tokens=5)
    assert processor.parse(ids[0, length:].tolist()).text == said.text
    drawn = [
        model.generate(**inputs, max_new_tokens=4, do_sample=True, generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    ]
    assert torch.equal(*drawn)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_are_what_they_are_alone(kind):
    model = model_of(kind)
    frames = [IMAGES[0], IMAGES[0][::-1].copy()]
    images = [IMAGES[0], None, IMAGES[1], IMAGES[0], frames]
    texts = ["Segment the nuclei.", "hello", "what is it", "another question about this", "and here?"]
    regions = [[(0, 0, 30, 30)], None, None, None, None]
    together = model.processor(images=images, text=texts, regions=regions)
    assert len(together["mask_pixel_values"]) == 3, "an image given twice is there once"
    rows = model.generate(**together, max_new_tokens=4, return_dict_in_generate=True).rows
    for image, text, given, row in zip(images, texts, regions, rows, strict=True):
        one = model.processor(images=[image], text=text, regions=given)
        assert model.generate(**one, max_new_tokens=4)[0, one["input_ids"].shape[1] :].tolist() == row.ids
    # A forward pass over the same tensors sees the same, whichever side is padded.
    states = model(**together).hidden[:, -1]
    for place, (image, text, given) in enumerate(zip(images, texts, regions, strict=True)):
        alone = model(**model.processor(images=[image], text=text, regions=given)).hidden[0, -1]
        torch.testing.assert_close(states[place], alone, atol=2e-4, rtol=1e-3)


def test_a_conversation_that_ends_with_an_answer_has_labels():
    model = tiny_model()
    turns = [("user", "segment it"), ("assistant", "It is [SEG].")]
    written = [{"role": "user", "content": "segment it"}, {"role": "assistant", "content": "It is [SEG]."}]
    batch = model.processor(images=IMAGES[0], text=turns)
    assert torch.equal(model.processor(images=IMAGES[0], text=written)["input_ids"], batch["input_ids"])
    learnt = batch["labels"][batch["labels"] != -100].tolist()
    assert model.processor.parse(learnt).targets[0].token == "[SEG]"
    output = model(**batch)
    assert output.loss > 0 and output.masks.logits.shape[0] == 1
    several = model.processor(images=IMAGES, text=[turns, turns])
    assert several["labels"].shape[0] == 2 and several["attention_mask"][:, 0].all()


def test_ids_and_text_are_parsed_alike():
    model = tiny_model()
    text = "I see <p> two nuclei </p> [SEG] and [BOX]."
    ids = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.processor.parse(text) == model.processor.parse(ids) == model.processor.parse(torch.tensor(ids))
    assert [(t.token, t.phrase) for t in model.processor.parse(text).targets] == [
        ("[SEG]", "two nuclei"),
        ("[BOX]", "two nuclei"),
    ]


def test_generated_ids_end_with_padding_behind_the_answer():
    model = tiny_model()
    teach(model, model.processor.tokenizer("no.<|end|>", add_special_tokens=False)["input_ids"])
    inputs = model.processor(images=IMAGES[0], text="is it there?")
    ids = model.generate(**inputs, max_new_tokens=30)
    assert ids.shape[1] < inputs["input_ids"].shape[1] + 30
    assert ids[0, -1] == model.processor.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(images=IMAGES[0]), PromptError, "give `text`"),
        (dict(images=IMAGES, text="a"), PromptError, "2 images for 1 texts"),
        (dict(images=IMAGES, text=["a", "b"], regions=[None]), PromptError, "1 lists of regions for 2 texts"),
        (dict(images=IMAGES[0], text=[["a"]]), PromptError, "a turn is"),
        (dict(images=IMAGES[0], text="a", return_tensors="np"), ValueError, "return_tensors"),
        (dict(text="region1?", regions=[(0, 0, 5, 5)]), PromptError, "without an image"),
    ],
)
def test_calls_that_make_no_sense_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        tiny_model().processor(**arguments)


def test_generate_says_what_it_cannot_do():
    model = say(tiny_sam2_model(), "x")
    inputs = model.processor(images=IMAGES[0], text="what")
    with pytest.raises(ValueError, match="does not know num_beams"):
        model.generate(**inputs, num_beams=4)
    turns = [("user", "what"), ("assistant", "x")]
    right = model.processor(images=IMAGES, text=[turns, [("user", "what is it"), ("assistant", "x")]])
    with pytest.raises(ValueError, match="padded on the right"):
        model.generate(input_ids=right["input_ids"], attention_mask=right["attention_mask"])
    small = tiny_model()
    inputs = small.processor(images=IMAGES[0], text="what", mask_images=False)
    with pytest.raises(ValueError, match="mask_pixel_values"):
        small(**inputs)


def test_the_dialect_is_saved_with_the_model(tmp_path):
    from unimed.models.dialects import build_dialect
    from unimed.registry import RegistryError

    model = tiny_model()
    assert model.processor.dialect.name == "grounded"
    model.processor.dialect = build_dialect({"type": "uni_med", "box_token": True})
    model.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.dialect.to_dict() == model.processor.dialect.to_dict()
    parsed = again.parse("it lies at {<10><20><50><60>}.")
    assert parsed.text == "it lies at {<10><20><50><60>}." and parsed.targets[0].box_fraction == (0.1, 0.2, 0.5, 0.6)
    again.dialect = build_dialect("internvl")
    parsed = again.parse("The <ref>liver</ref><box>[[100, 200, 500, 600]]</box> is large.")
    assert parsed.text == "The liver is large." and parsed.targets[0].phrase == "liver"
    with pytest.raises(RegistryError, match="did you mean 'uni_med'"):
        build_dialect("uni_mad")


def test_boxes_written_in_an_answer_become_regions():
    from unimed.models.dialects import build_dialect

    model = tiny_model()
    model.processor.dialect = build_dialect("uni_med")
    teach(model, model.processor.tokenizer("{<10><20><50><60>}<|end|>", add_special_tokens=False)["input_ids"])
    (region,) = model.predict(IMAGES[0], "[refer] where is the liver").regions
    assert region.box_xyxy_px == pytest.approx((9, 12, 45, 36)) and region.phrase == "liver"
