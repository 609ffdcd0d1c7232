"""The volumetric decoder: slices are seen together, windows join, deep supervision trains, a model answers with it."""

import numpy as np
import pytest
import torch
from small_decoders import small_volumetric
from small_models import TEXTS, teach

from unimed.data.collate.grounded import GroundedCollator
from unimed.geometry import Geometry
from unimed.losses.segmentation import mask_losses
from unimed.metrics.masks import dice
from unimed.models.grounded.processing import PromptError
from unimed.models.heads.mask import build_mask_decoder, concatenate
from unimed.models.heads.volumetric import VolumetricMaskConfig
from unimed.registry import TASKS
from unimed.structures import Region, Sample

SIZES = dict(image_size=32, widths=(8, 16, 24), prompt_width=16)


def marked_volume(generator, side=12, depth=6):
    """The same blob in every slice and a mark in one; wanted is the blob in the marked slice and its two neighbors."""
    mark = int(generator.integers(1, depth - 1))
    volume, truth = np.zeros((depth, side, side), np.float32), np.zeros((depth, side, side), bool)
    volume[:, 3:9, 3:9] = 0.6
    volume[mark, 5:7, 5:7] = 1
    truth[mark - 1 : mark + 2, 3:9, 3:9] = True
    volume += generator.normal(0, 0.02, volume.shape).astype(np.float32)
    return torch.from_numpy(volume)[:, None].expand(-1, 3, -1, -1).contiguous(), truth


def learned(together: bool, steps=150):
    """Mean Dice on new volumes of a decoder that sees slices together, or each alone."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    decoder = build_mask_decoder(VolumetricMaskConfig(image_size=12, widths=(16, 24), prompt_width=8)).train()
    prompt = torch.ones(1, 8)
    optimizer = torch.optim.Adam(decoder.parameters(), 5e-3)

    def masks(pixels):
        if together:
            return decoder.decode_stack(pixels, prompt)
        return decoder.decode(decoder.encode(pixels), torch.arange(len(pixels)), prompt.expand(len(pixels), -1))

    for _ in range(steps):
        loss = torch.zeros(())
        for pixels, truth in (marked_volume(generator), marked_volume(generator)):
            loss = loss + sum(mask_losses(masks(pixels).logits, torch.from_numpy(truth).float(), None).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    scores = []
    for _ in range(6):
        pixels, truth = marked_volume(generator)
        with torch.no_grad():
            scores.append(dice(masks(pixels).logits.numpy() > 0, truth))
    return float(np.mean(scores))


def test_slices_seen_together_tell_what_no_slice_alone_can():
    volumetric, slicewise = learned(True), learned(False, steps=50)
    print(f"Dice volumetric {volumetric:.3f}, slice by slice {slicewise:.3f}")
    assert volumetric > 0.8 and volumetric > slicewise + 0.15


@torch.no_grad()
def test_windows_slide_and_join():
    torch.manual_seed(0)
    decoder = build_mask_decoder(small_volumetric()).eval()
    pixels, prompts = torch.rand(11, 3, 32, 32), torch.randn(2, 16)
    output = decoder.decode_stack(pixels, prompts)
    assert output.logits.shape == (22, 32, 32) and torch.isfinite(output.logits).all()
    alone = decoder.decode_stack(pixels, prompts[1:])
    torch.testing.assert_close(alone.logits, output.logits[11:], rtol=1e-4, atol=1e-5)
    short = decoder.decode_stack(pixels[:3], prompts)
    assert short.deep_logits.shape == (6, 1, 32, 32) and decoder.decode_stack(pixels, prompts).deep_logits is None
    joined = concatenate([decoder.decode_stack(part, prompts) for part in (pixels[:3], pixels)])
    assert len(joined.logits) == 28 and joined.deep_logits is None  # volumes of a batch have other lengths
    with pytest.raises(ValueError, match="multiple"):
        VolumetricMaskConfig(**SIZES | {"image_size": 30})


def test_a_window_of_one_slice_sees_no_neighbors():
    torch.manual_seed(0)
    together = build_mask_decoder(small_volumetric()).eval()
    alone = build_mask_decoder(VolumetricMaskConfig(**SIZES, window=1, overlap=0.0, boxes=False))
    alone.load_state_dict(together.state_dict())
    assert together.learns_boxes and not alone.learns_boxes
    pixels, prompts = torch.rand(4, 3, 32, 32), torch.randn(2, 16)
    each = alone.decode(alone.encode(pixels), torch.arange(4), prompts[:1].expand(4, -1)).logits
    for one in (alone.train(), alone.eval()):
        with torch.no_grad():
            output = one.decode_stack(pixels, prompts)
        torch.testing.assert_close(output.logits[:4], each, rtol=1e-4, atol=1e-5)
        assert len(output.logits) == 8
    assert not torch.allclose(together.decode_stack(pixels, prompts).logits[:4], each, atol=1e-3)


def volume_sample():
    generator = np.random.default_rng(1)
    array, mask = generator.integers(0, 60, (5, 32, 32)).astype(np.uint8), np.zeros((5, 32, 32), bool)
    mask[1:4, 8:20, 10:24] = True
    array[mask] = 220
    return Sample(
        (array,), Geometry.pixels(), "v", conversation=(("user", "Segment the nuclei."),
        ("assistant", "<p> nuclei </p> [SEG].")), regions=(Region("nuclei", mask=mask, presence=1.0),),
        labels={"task": "volume"}, patient_id="p",
    )  # fmt: skip


def test_a_model_learns_a_volume_and_answers_with_it(tmp_path):
    model = dict(
        type="SmallGroundedMLLM", texts=TEXTS, hidden_dim=32, layers=1, heads=2, vision_grid=2, box_head=None,
        mask_config=small_volumetric(),
    )  # fmt: skip
    task = TASKS.build(dict(type="GroundingTask", model=model)).train()
    sample = volume_sample()
    batch = GroundedCollator(task.processor)([sample])
    optimizer, seen = torch.optim.Adam(task.parameters(), 1e-2), []
    for _ in range(25):
        losses = task(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append(float(losses["dice"].detach()))
    assert seen[-1] < 0.5 * seen[0], seen
    task.export(tmp_path / "out")
    import unimed

    def answer(model, **options):
        ids = model.processor.tokenizer("<p> nuclei </p> [SEG]", add_special_tokens=False)["input_ids"]
        teach(model, [*ids, *model.processor.stop_ids])
        return model.predict_frames(list(sample.images[0]), "Segment the nuclei.", **options).regions[0].mask

    mask = answer(unimed.load(tmp_path / "out", device="cpu"))
    assert mask.shape == (5, 32, 32)
    assert (mask == answer(unimed.load(tmp_path / "out", device="cpu"), follow="volume")).all()
    with pytest.raises(PromptError, match="one by one"):
        from small_models import tiny_model

        tiny_model().predict_frames(list(sample.images[0]), "Segment the nuclei.", follow="volume")
