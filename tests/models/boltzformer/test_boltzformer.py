"""BoltzFormer in small: what a prompt's mask depends on, and what it must not depend on."""

import json

import pytest
import torch
from closeness import MODEL, assert_close
from golden_files import SMALL

import unimed
from unimed.models.boltzformer import BoltzFormerConfig, BoltzFormerModel
from unimed.models.boltzformer.sampling import CountedDraws, item_key
from unimed.models.boltzformer.tokenizing import train_tokenizer
from unimed.models.starting.boltzformer import build_small

PROMPTS = ["left kidney", "liver tumor in abdominal CT", "spleen"]


@pytest.fixture(scope="module")
def model():
    return build_small(PROMPTS, image_size=64)


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


def attended(model, monkeypatch):
    """The sampled masks of the following calls, in a list."""
    seen, original = [], type(model.decoder).attention_mask

    def recording(self, *args):
        seen.append(original(self, *args))
        return seen[-1]

    monkeypatch.setattr(type(model.decoder), "attention_mask", recording)
    return seen


@pytest.mark.parametrize("group", [1, 2])
def test_slice_groups_change_no_sampled_position(model, images, group, monkeypatch):
    masks = attended(model, monkeypatch)
    whole = model.segment_slices(images, PROMPTS, seed=3)
    together = [mask.unflatten(0, (5, 3)) for mask in masks]
    masks.clear()
    parts = [
        model.segment_slices(images[i : i + group], PROMPTS, seed=3, slice_numbers=range(i, min(i + group, 5)))
        for i in range(0, 5, group)
    ]
    layers = model.config.decoder_layers
    for layer, mask in enumerate(together):
        assert torch.equal(mask, torch.cat(masks[layer::layers]).unflatten(0, (5, 3)))
    assert_close(torch.cat([part.mask_logits for part in parts]), whole.mask_logits, relative=MODEL)
    assert_close(torch.cat([part.existence for part in parts]), whole.existence, relative=MODEL)


@pytest.mark.parametrize("side", [64, 96])
def test_masks_between_layers_are_drawn_small_and_nothing_changes(model, side, monkeypatch):
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2)) * 255
    seen = attended(model, monkeypatch)
    sizes, draw = [], type(model.decoder).mask_logits
    monkeypatch.setattr(
        type(model.decoder), "mask_logits",
        lambda self, queries, maps, layout: (sizes.append(maps.shape[-1]), draw(self, queries, maps, layout))[1],
    )  # fmt: skip
    small = model.segment_slices(images, PROMPTS)
    assert [side // size for size in sizes] == [32, 16, 8, 32, 4]
    monkeypatch.setattr(type(model.decoder), "_shrinks_first", lambda self, maps: False)
    large = model.segment_slices(images, PROMPTS)
    assert {side // size for size in sizes[5:]} == {4}
    layers = len(seen) // 2
    assert layers and all(torch.equal(ours, theirs) for ours, theirs in zip(seen[:layers], seen[layers:], strict=True))
    assert_close(small.mask_logits, large.mask_logits)
    assert_close(small.existence, large.existence)


def test_a_prompt_does_not_depend_on_its_neighbours(model, images, monkeypatch):
    masks = attended(model, monkeypatch)
    whole = model.segment_slices(images[:2], PROMPTS, seed=3)
    together = [mask.unflatten(0, (2, 3)) for mask in masks]
    masks.clear()
    alone = [model.segment_slices(images[:2], [prompt], seed=3) for prompt in PROMPTS]
    for layer, mask in enumerate(together):
        assert torch.equal(mask, torch.stack(masks[layer :: model.config.decoder_layers], 1))
    assert_close(torch.cat([one.mask_logits for one in alone], 1), whole.mask_logits, relative=MODEL)
    backwards = model.segment_slices(images[:2], PROMPTS[::-1], seed=3)
    assert_close(backwards.mask_logits.flip(1), whole.mask_logits, relative=MODEL)


def test_seed_and_slice_number_decide_what_is_drawn(model, images):
    first = model.segment_slices(images[:1], PROMPTS, seed=3).mask_logits
    assert torch.equal(first, model.segment_slices(images[:1], PROMPTS, seed=3).mask_logits)
    assert not torch.allclose(first, model.segment_slices(images[:1], PROMPTS, seed=4).mask_logits, atol=1e-4)
    moved = model.segment_slices(images[:1], PROMPTS, seed=3, slice_numbers=[9]).mask_logits
    assert not torch.allclose(first, moved, atol=1e-4)
    free = [model.segment_slices(images[:1], PROMPTS, seed=None).mask_logits for _ in range(2)]
    assert not torch.allclose(*free, atol=1e-4)


def test_expectation_needs_no_seed(images):
    model = build_small(PROMPTS, attention="expectation")
    free = [model.segment_slices(images[:1], PROMPTS, seed=seed).mask_logits for seed in (None, 5)]
    assert torch.equal(*free)


def test_published_padding_makes_prompts_depend_on_each_other(images):
    model = build_small(PROMPTS, compat="reference")
    together = model.segment_slices(images[:1], PROMPTS, seed=3).mask_logits[:, :1]
    assert not torch.allclose(together, model.segment_slices(images[:1], PROMPTS[:1], seed=3).mask_logits, atol=1e-4)


def test_a_prompt_is_encoded_once_and_anew_when_weights_change(images):
    model, calls = build_small(PROMPTS), []
    model.text.tower.register_forward_hook(lambda *_: calls.append(1))
    model.segment_slices(images[:1], PROMPTS)
    model.segment_slices(images[1:2], PROMPTS[::-1])
    assert len(calls) == len(PROMPTS)
    before = model.encode_prompts(PROMPTS).tokens
    with torch.no_grad():
        model.text.lang_proj.mul_(2)
    assert torch.allclose(model.encode_prompts(PROMPTS).tokens, 2 * before, rtol=1e-4)
    assert model.double().encode_prompts(PROMPTS).tokens.dtype == torch.float64


def test_images_are_encoded_once_for_any_number_of_prompts(model, images):
    calls = []
    hook = model.backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        features = model.encode_images(images[:2])
    for prompt in PROMPTS:
        model.segment_slices(features, [prompt])
    hook.remove()
    assert len(calls) == 2
    assert torch.equal(features.select([1]).mask_features[0], features.mask_features[1])


def test_uneven_prompts_equal_each_image_alone(model, images):
    first, second = model.tokenize(PROMPTS[:2]), model.tokenize(PROMPTS[2:])
    batch = model.tokenize(PROMPTS)
    with torch.no_grad():
        both = model(images[:2], **batch, num_prompts=[2, 1], seed=0)
        one = model(images[:1], **first, seed=0, places=[0])
        two = model(images[1:2], **second, seed=0, places=[1])
    assert_close(both.masks, torch.cat([one.masks, two.masks]), relative=MODEL)
    assert_close(both.existence, torch.cat([one.existence, two.existence]), relative=MODEL)


def test_draws_are_uniform_and_unlike_each_other():
    keys = [item_key(0, place, (1, 2, 3)) for place in range(4)]
    draws = CountedDraws(keys)
    numbers = torch.stack([draws(layer, (4, 8, 16, 64)) for layer in range(-1, 3)])
    assert 0 <= numbers.min() and numbers.max() < 1
    counts = torch.histc(numbers, 64, 0, 1) / numbers.numel() * 64
    assert (counts - 1).abs().max() < 0.06  # four standard deviations are 0.045
    rows = numbers.flatten(2).flatten(0, 1)
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.05
    shifted = torch.corrcoef(torch.stack([rows.flatten()[1:], rows.flatten()[:-1]]))[0, 1]
    assert abs(shifted) < 0.01
    assert torch.equal(CountedDraws(keys[2:3])(1, (1, 8, 16, 64))[0], numbers[2, 2])


def test_saved_and_loaded(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    again = unimed.load(tmp_path, device="cpu")
    expected = model.segment_slices(images[:1], PROMPTS, seed=3)
    found = again.segment_slices(images[:1], PROMPTS, seed=3)
    assert torch.equal(found.mask_logits, expected.mask_logits)
    assert torch.equal(found.existence, expected.existence)


@pytest.mark.parametrize("prompts", [[], [""], ["a[SEP]b"], "liver", [3]])
def test_bad_prompts_are_named(model, images, prompts):
    with pytest.raises(ValueError, match=r"prompt"):
        model.segment_slices(images[:1], prompts)


def test_bad_images_and_settings_are_named(model, images):
    with pytest.raises(ValueError, match=r"\[S, 3, H, W\]"):
        model.segment_slices(images[:, :1], PROMPTS)
    with pytest.raises(ValueError, match="places"):
        model.segment_slices(images, PROMPTS, slice_numbers=[0])
    with pytest.raises(ValueError, match="num_prompts"):
        model(images, **model.tokenize(PROMPTS), num_prompts=[3, 0, 0, 0, 0])
    for change in ({"attention": "random"}, {"compat": "other"}, {"edge_queries": 6}, {"channels": "grey"}):
        with pytest.raises(ValueError):
            BoltzFormerConfig.tiny(**change)


def test_clip_tokens_are_the_recorded_ones():
    model = BoltzFormerModel(BoltzFormerConfig.tiny(text_vocab_size=49408, text_length=77))
    for case in json.loads((SMALL / "biomedparse" / "clip_tokens.json").read_text()):
        if case["text"]:
            batch = model.tokenize([case["text"]])
            assert batch["input_ids"][0].tolist() == case["ids"], case["text"]


def test_small_tokenizers_spell_what_they_do_not_know():
    tokenizer = train_tokenizer(["left kidney", "liver"] * 3, 540)
    assert len(tokenizer) <= 540
    assert tokenizer.tokenize("left kidney") == ["left</w>", "kidney</w>"]
    assert len(tokenizer.tokenize("zyx")) == 3
    ids = tokenizer(["liver", "é?"])["input_ids"]
    assert all(row[-1] == max(row) == len(tokenizer) - 1 for row in ids)


def test_half_precision_and_gradient_free_copies(model, images):
    import copy

    half = copy.deepcopy(model).to(torch.bfloat16)
    half.tokenizer = model.tokenizer
    exact, rough = model.segment_slices(images[:2], PROMPTS), half.segment_slices(images[:2], PROMPTS)
    assert rough.mask_logits.dtype == torch.float32 and rough.mask_logits.isfinite().all()
    assert (exact.existence - rough.existence).abs().max() < 0.05
