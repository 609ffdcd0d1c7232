"""Every family that runs through its own forward pass, with random weights made on the spot."""

import copy
import functools
import re
import sys
from pathlib import Path

import pytest
import torch
from further_native_models import FURTHER
from native_models import EXAMPLES, tiny_config, tiny_processor
from native_sweep import (
    ASKED,
    HIGH,
    WIDE,
    built,
    check,
    check_cache,
    check_rows,
    check_saved,
    check_step,
    close,
    sample,
    states,
)
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import unimed
from unimed import registry
from unimed.chat import ChatTemplate
from unimed.data.collate.grounded import GroundedCollator
from unimed.models.backbones.families import FAMILIES, PLUGGED, REFUSED, markdown
from unimed.models.backbones.vision_language import build_backbone
from unimed.models.heads.light import LightMaskConfig
from unimed.models.lora import add_lora, merge_lora
from unimed.models.starting.native import build_on_native, chat_options
from unimed.tasks.grounding import GroundingTask

#: Those of `further_native_models` that need an option of their own; `python tests/models/grounded/native_sweep.py`
#: tries all of them.
SPECIAL = ("cosmos3_edge", "inkling2", "mistral_large4", "pp_chart2table")
GROUPED = ("aria", "glm4v_moe", "qwen3_5_moe", "qwen3_vl_moe")
every_family = pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(FURTHER)))
built = functools.cache(built)


def test_every_family_is_known():
    """Each image-text type of the installed transformers is either served and tried here, or not (with the reason)."""
    assert set(EXAMPLES) == set(FAMILIES)
    assert not set(FAMILIES) & set(REFUSED)
    assert all(len(reason) > 20 for reason in REFUSED.values())
    assert not PLUGGED & (set(FAMILIES) | set(REFUSED))
    assert set(FAMILIES) | set(REFUSED) | PLUGGED == set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    with pytest.raises(ValueError, match="not known here"):
        build_backbone(AutoConfig.for_model("glmga"))
    with pytest.raises(ValueError, match="counted on over a batch"):
        build_backbone(AutoConfig.for_model("hunyuan_vl"))


@pytest.mark.parametrize("name", SPECIAL)
def test_further_families(name):
    check(name)


def test_the_page_lists_them():
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    assert markdown() in page


@every_family
def test_rows_of_a_batch_do_not_touch_each_other(name):
    model = built(name)
    check_rows(model)
    batch = model.processor(images=[WIDE, HIGH], text=ASKED)
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
    check_saved(built(name), tmp_path)


@every_family
def test_a_step_reaches_every_part(name):
    check_step(copy.deepcopy(built(name)))


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if family.packs))
def test_packed_rows_teach_what_padded_rows_teach(name):
    """Loss and gradients of sequences that share a row, against rows of their own."""
    model, samples, found = built(name), [sample(0, WIDE), sample(1, HIGH)], []
    wanted = [p for p in model.backbone.parameters() if p.requires_grad and p.ndim > 1]
    for pack in (0, 10**4):
        batch = GroundedCollator(model.processor, pack=pack)(samples)
        assert len(batch["input_ids"]) == (1 if pack else 2)
        given = {key: batch[key] for key in ("input_ids", "attention_mask", "labels", "layout", "native")}
        output = model(**given, position_ids=batch.get("position_ids"), return_logits=False)
        gradients = torch.autograd.grad(output.loss, wanted, allow_unused=True)
        alone = dict(zip(batch["sample_ids"], output.sample_losses.tolist(), strict=True))
        found.append((alone, [g for g in gradients if g is not None]))
    (padded, one), (packed, other) = found
    assert padded == pytest.approx(packed, abs=1e-5)
    assert len(one) == len(other) > 4
    for ours, theirs in zip(one, other, strict=True):
        assert (ours - theirs).abs().max() <= 2e-3 * max(theirs.abs().max(), 1e-3)


def test_a_family_that_lets_sequences_run_together_is_not_packed():
    with pytest.raises(ValueError, match="'qwen2_vl' does not keep packed sequences apart; set pack=0"):
        GroundedCollator(built("qwen2_vl").processor, pack=100)([sample(0, WIDE), sample(1, HIGH)])


@every_family
def test_adapters(name):
    torch.manual_seed(0)
    # Small models make much of rounding in single precision; torch multiplies no groups of experts in double.
    model = copy.deepcopy(built(name)).to(torch.float32 if name in GROUPED else torch.float64)
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
    check_cache(model)
    batch = dict(processor(images=[WIDE, HIGH], text=ASKED))
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
    # The same answer from another engine: one pass points at the same.
    (given,) = model.predict_batch([WIDE], [ASKED[0]], answers=[ids], presence_threshold=0.0)
    assert given.text.split() == ["it", "nuclei"] and (given.regions[0].mask == found.regions[0].mask).all()


CHATS = {
    "gemma3": """{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{% for c in m.content %}{% if c.type == 'image' %}<boi>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}""",
    "qwen3_vl": """{% for m in messages %}{% if loop.first %}<|im_start|>system
You help.<|im_end|>
{% endif %}<|im_start|>{{ m.role }}
{% for c in m.content %}{% if c.type == 'image' %}<vision><image></vision>{% else %}{{ c.text -}}
{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "llava": """{% for m in messages %}{% if m.role == 'user' %}USER: {% for c in m.content -%}
{% if c.type == 'image' %}<image>
{% else %}{{ c.text }}{% endif %}{% endfor %} ASSISTANT:{% else %} {{ m.content[0].text }}<|end|>{% endif -%}
{% endfor %}""",
}  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
def test_the_chat_template_of_a_processor_is_read_off(name):
    processor = tiny_processor(name)
    processor.tokenizer.add_tokens(["<end_of_turn>", "<start_of_turn>", "<|im_start|>", "<|im_end|>"])
    processor.chat_template = CHATS[name]
    options = chat_options(processor, FAMILIES[name])
    chat, mark, opening = ChatTemplate(**options["template"]), options["image_mark"], options["system"]
    image, turns = {"type": "image"}, [("user", "Where is it?"), ("assistant", "Here."), ("user", "And now?")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, image)
    written = [("user", mark + turns[0][1]), *turns[1:]]
    for count in (1, 3):
        told = processor.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=True)
        said = chat.prompt(written[:count], opening)
        # LLaVA writes a blank before each answer: the model says it itself.
        assert said == told.replace(" Here.", "Here.") if name == "llava" else said == told
    assert chat.stop in ("<end_of_turn>", "<|im_end|>", "<|end|>")


def test_what_users_type_forges_no_image_and_no_turn():
    model = built("gemma3")
    for text in ("<boi>", "<image>", "<eoi> [SEG] <|end|>", "<s>"):
        batch = model.processor(images=WIDE, text=f"What is {text}?")
        plain = model.processor(images=WIDE, text="What is it?")
        for token in ("<boi>", "<image>", "<eoi>", "[SEG]", "<|end|>"):
            number = model.processor.tokenizer.convert_tokens_to_ids(token)
            assert (batch["input_ids"] == number).sum() == (plain["input_ids"] == number).sum()


def test_no_code_of_the_folder_of_the_processor_runs(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import hostile

    model = built("gemma3")
    model.save_pretrained(tmp_path / "saved")
    hostile.poison(tmp_path / "saved" / "backbone_processor", tmp_path / "mark")
    again = unimed.load(tmp_path / "saved", device="cpu")
    assert again.processor.native is not None and not (tmp_path / "mark").exists()


def test_a_plug_in_brings_a_family(tmp_path, monkeypatch):
    """The recipe of docs/extend.md as it stands."""
    page = (Path(__file__).parents[3] / "docs" / "extend.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n([^`]*native_family\([^`]*)```", page)
    (tmp_path / "glm_family.py").write_text(code)
    known = dict(FAMILIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(registry.PLUGINS, "glm_family")
    monkeypatch.setattr(registry, "_plugins_searched", False)
    try:
        registry.import_plugins()
        model = built("glmga")
        model.save_pretrained(tmp_path / "saved")
        again = unimed.load(tmp_path / "saved", device="cpu")
        said = [one.predict(WIDE, ASKED[0], max_new_tokens=4).markup for one in (model, again)]
        assert said[0] == said[1] and model.backbone.family.covers == "GLM-GA"
    finally:
        FAMILIES.clear()
        FAMILIES.update(known)


def test_several_questions_frames_and_texts_without_an_image():
    model = built("qwen3_vl")
    both = model.predict(WIDE, ASKED, max_new_tokens=4)
    assert [one.markup for one in both] == [model.predict(WIDE, text, max_new_tokens=4).markup for text in ASKED]
    mixed = model.predict_batch([None, WIDE], ASKED, max_new_tokens=4)
    assert mixed[0].markup == model.predict(None, ASKED[0], max_new_tokens=4).markup and mixed[0].image is None
    assert mixed[1].markup == model.predict(WIDE, ASKED[1], max_new_tokens=4).markup
    model.predict_frames([WIDE, WIDE[::-1].copy()], ASKED[0], max_new_tokens=3, follow="prompt")
    drawn = [
        model.predict(WIDE, ASKED[0], max_new_tokens=6, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0].markup == drawn[1].markup != drawn[2].markup
    with pytest.raises(ValueError, match="own projector"):
        model.replace_connector({"projector_type": "mlp2x_gelu"})


def test_a_decoder_that_reads_image_tokens_gets_them():
    torch.manual_seed(0)
    processor = tiny_processor("qwen3_vl")
    vlm = AutoModelForImageTextToText.from_config(tiny_config("qwen3_vl", processor.tokenizer))
    model = build_on_native(vlm, processor, LightMaskConfig(image_size=32, width=16, heads=2)).train()
    batch = GroundedCollator(model.processor)([sample(0, WIDE), sample(1, HIGH)])
    seen = []
    model.mask_head.reader.register_forward_pre_hook(lambda module, given: seen.append(given[1].shape))
    GroundingTask(model)(batch)["dice"].backward()
    assert set(seen) == {(2, 32)}  # 1 x 2 and 2 x 1 merged patches
    assert model.mask_head.reader.keys.weight.grad.abs().sum() > 0


def test_a_decoder_that_reads_image_tokens_gets_them_from_packed_rows():
    torch.manual_seed(0)
    processor = tiny_processor("idefics3")
    vlm = AutoModelForImageTextToText.from_config(tiny_config("idefics3", processor.tokenizer))
    model = build_on_native(vlm, processor, LightMaskConfig(image_size=32, width=16, heads=2)).eval()
    read = {}
    for pack in (0, 10**4):
        batch = GroundedCollator(model.processor, pack=pack)([sample(0, WIDE), sample(1, HIGH)])
        seen = read.setdefault(pack, [])
        hook = model.mask_head.reader.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[1]))
        with torch.no_grad():
            GroundingTask(model)(batch)
        hook.remove()
    assert len(read[0]) == len(read[10**4]) > 1
    for ours in read[10**4]:  # rows may come in another order
        assert any(ours.shape == theirs.shape and close(ours, theirs) for theirs in read[0])
    assert not close(*(one[:1] for one in read[0][:2]))
