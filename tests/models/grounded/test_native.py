"""Every family that runs through its own forward pass, with random weights made on the spot."""

import copy
import functools

import numpy as np
import pytest
import torch
from native_models import EXAMPLES, tiny_config, tiny_processor
from PIL import Image
from small_models import tiny_mask_config
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import unimed
from unimed.data.collate.grounded import GroundedCollator
from unimed.geometry import Geometry
from unimed.models.backbones.families import FAMILIES, REFUSED, UNTRIED
from unimed.models.backbones.vision_language import build_backbone
from unimed.models.lora import add_lora, merge_lora
from unimed.models.starting.native import build_on_native
from unimed.structures import Region, Sample
from unimed.tasks.grounding import GroundingTask

DRAW = np.random.default_rng(0)
WIDE, HIGH = (DRAW.integers(0, 255, size, dtype=np.uint8) for size in ((40, 60, 3), (64, 40, 3)))
ASKED = ["Segment the nuclei.", "What is in this picture, and where?"]
every_family = pytest.mark.parametrize("name", sorted(FAMILIES))


@functools.cache
def built(name):
    torch.manual_seed(0)
    processor = tiny_processor(name)
    vlm = AutoModelForImageTextToText.from_config(tiny_config(name, processor.tokenizer))
    with torch.no_grad():
        said = {id(parameter) for parameter in vlm.get_decoder().parameters()}
        for parameter in vlm.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)  # gates that start from nothing would hide the image
            elif parameter.ndim > 1 and id(parameter) not in said:
                parameter.normal_(std=parameter[0].numel() ** -0.5)  # and so would the small numbers of a first draw
    return build_on_native(vlm, processor, tiny_mask_config()).eval()


def states(model, batch):
    """Hidden states and logits of the tokens of each row, without padding."""
    with torch.no_grad():
        output = model(**batch)
    inside = batch["attention_mask"].bool()
    return [(h[i], v[i]) for h, v, i in zip(output.hidden, output.logits, inside, strict=True)]


def close(one, other):
    """Equal but for rounding, seen against the size of what is compared."""
    return (one - other).abs().max() <= 1e-4 * max(1.0, other.abs().max())


def test_every_family_is_known():
    """Each image-text type of the installed transformers is either served and tried here, or not (with the reason)."""
    assert set(EXAMPLES) == set(FAMILIES)
    assert not set(FAMILIES) & set(REFUSED)
    assert all(len(reason) > 20 for reason in REFUSED.values())
    assert not UNTRIED & (set(FAMILIES) | set(REFUSED))
    assert set(FAMILIES) | set(REFUSED) | UNTRIED == set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    with pytest.raises(ValueError, match="not been tried"):
        build_backbone(AutoConfig.for_model("hunyuan_vl"))


@every_family
def test_rows_of_a_batch_do_not_touch_each_other(name):
    model = built(name)
    batch = model.processor(images=[WIDE, HIGH], text=ASKED)
    together = states(model, batch)
    for row, (image, text) in enumerate(zip((WIDE, HIGH), ASKED, strict=True)):
        alone = states(model, model.processor(images=image, text=text))[0]
        assert all(close(a, b) for a, b in zip(together[row], alone, strict=True))
    # Nothing above would hold for a model that does not look.
    blind = states(model, model.processor(images=np.zeros_like(WIDE), text=ASKED[0]))[0]
    assert not torch.allclose(blind[0][-1], together[0][0][-1], atol=1e-6)
    # The filled-up inputs are those that the processor of the model makes of both at once.
    native = model.processor.native
    texts = [model.processor.opening + model.processor.chat.prompt(
        [("user", model.processor.question(text, 1))], model.processor.system) for text in ASKED]  # fmt: skip
    pictures = [Image.fromarray(image) for image in (WIDE, HIGH)]
    own = native.processor(
        images=[[picture] for picture in pictures] if native.family.nested else pictures, text=texts,
        return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
    )  # fmt: skip
    assert torch.equal(own["input_ids"], batch["input_ids"])
    for key, value in batch["native"].items():
        assert value.shape == own[key].shape and torch.allclose(value.double(), own[key].double()), key


@every_family
def test_saved_and_loaded(name, tmp_path):
    model = built(name)
    model.save_pretrained(tmp_path)
    again = unimed.load(tmp_path, device="cpu")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    before, after = (states(m, m.processor(images=HIGH, text=ASKED[1]))[0] for m in (model, again))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def sample(number, image):
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[5:20, 8:30] = True
    regions = (Region("nuclei", mask=mask), Region("nuclei", box_xyxy_px=(8.0, 5.0, 30.0, 20.0)))
    answer = "<p> nuclei </p> [SEG]." if number == 0 else "<p> nuclei </p> [SEG] at [BOX]."
    return Sample(
        images=(image,), geometry=Geometry.pixels(), sample_id=str(number), regions=regions[: number + 1],
        labels={"task": "referring"}, conversation=(("user", ASKED[0]), ("assistant", answer)),
    )  # fmt: skip


@every_family
def test_a_step_reaches_every_part(name):
    model = copy.deepcopy(built(name)).train()
    task = GroundingTask(model)
    batch = GroundedCollator(model.processor)([sample(0, WIDE), sample(1, HIGH)])
    losses = task(batch)
    assert {"text", "dice", "bce", "presence", "box"} <= losses.keys()
    assert all(torch.isfinite(value) for value in losses.values())
    # What points must teach the language model, and what it looks with, on its own.
    (losses["dice"] + losses["bce"] + losses["box"]).backward()
    decoder = {id(p) for p in model.language_model.parameters()}
    reached = {True: 0, False: 0}
    for parameter in model.backbone.vlm.parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all()
            reached[id(parameter) in decoder] += bool(parameter.grad.abs().sum() > 0)
    assert reached[True] >= 5 and reached[False] >= 2, reached
    before = [p.detach().clone() for p in model.language_model.parameters()]
    losses = task(batch)
    losses["loss"].backward()
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.language_model.parameters(), strict=True))


@every_family
def test_adapters(name):
    model = copy.deepcopy(built(name))
    batch = model.processor(images=WIDE, text=ASKED[0])
    before = states(model, batch)[0]
    add_lora(model.language_model, {"r": 2})
    learnt = [n for n, p in model.language_model.named_parameters() if p.requires_grad]
    assert learnt and all("lora_" in n for n in learnt)
    assert close(states(model, batch)[0][1], before[1])  # new adapters change nothing
    torch.manual_seed(1)
    with torch.no_grad():
        for n, p in model.language_model.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.1)
    adapted = states(model, batch)[0]
    assert not close(adapted[1], before[1])
    merge_lora(model)
    assert not [n for n in model.state_dict() if "lora_" in n]
    assert all(close(a, b) for a, b in zip(states(model, batch)[0], adapted, strict=True))


class Scripted(torch.nn.Module):
    """A head that says these tokens, whatever it hears."""

    def __init__(self, head, ids):
        super().__init__()
        self.weight, self.ids, self.step = head.weight, ids, 0

    def forward(self, hidden):
        logits = torch.zeros(*hidden.shape[:-1], len(self.weight))
        logits[..., self.ids[min(self.step, len(self.ids) - 1)]] = 1
        self.step += 1
        return logits


@every_family
def test_answers(name):
    model = built(name)
    processor = model.processor
    batch = dict(processor(images=[WIDE, HIGH], text=ASKED))
    cached, anew = (
        model.generate(**batch, max_new_tokens=5, use_cache=use, return_dict_in_generate=True) for use in (True, False)
    )
    assert torch.equal(cached.sequences, anew.sequences)
    # A scripted answer: text, mask and box come out, by the states that a pass over the whole text has at its tokens.
    head = model.lm_head
    ids = processor.tokenizer("it <p> nuclei </p> [SEG] [BOX]", add_special_tokens=False)["input_ids"]
    model.backbone.vlm.set_output_embeddings(Scripted(head, [*ids, processor.stop_ids[0]]))
    try:
        for cache in (True, False):
            model.lm_head.step = 0
            (first, second) = model.generate(
                **batch, max_new_tokens=len(ids), use_cache=cache, return_dict_in_generate=True
            ).rows
            assert first.ids == second.ids == ids and first.state_ids == [
                model.config.seg_token_id,
                model.config.box_token_id,
            ]
            model.backbone.vlm.set_output_embeddings(head)
            whole = processor(images=WIDE, text=[("user", ASKED[0]), ("assistant", "it <p> nuclei </p> [SEG] [BOX]")])
            with torch.no_grad():
                read = model(**whole).hidden[0]
            for token, state in zip(first.state_ids, first.states, strict=True):
                place = torch.nonzero(whole["input_ids"][0] == token)[-1, 0]
                assert close(state, read[place])
            model.backbone.vlm.set_output_embeddings(Scripted(head, [*ids, processor.stop_ids[0]]))
        found = model.predict(WIDE, ASKED[0], max_new_tokens=20, presence_threshold=0.0)
    finally:
        model.backbone.vlm.set_output_embeddings(head)
    assert found.text.split() == ["it", "nuclei"]
    assert found.regions[0].phrase == "nuclei" and found.regions[0].mask.shape == WIDE.shape[:2]
    assert 0 <= found.regions[0].presence <= 1 and found.regions[0].mask.dtype == bool
