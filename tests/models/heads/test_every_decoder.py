"""Every registered mask decoder in a grounded model: it trains, is saved and loaded, and answers alike in any batch."""

import numpy as np
import pytest
import torch
from closeness import assert_close
from small_decoders import DECODER_EXAMPLES, lively
from small_models import TEXTS, teach

import unimed
from unimed.losses.segmentation import mask_losses
from unimed.models.heads.mask import build_mask_decoder
from unimed.models.starting.grounded_small import build_small


def grounded(name):
    model = build_small(
        TEXTS, hidden_dim=32, layers=1, heads=2, vision_grid=2, mask_config=DECODER_EXAMPLES[name](), box_head=None
    )
    lively(model.mask_head)
    return model.eval()


def answering(model):
    ids = model.processor.tokenizer("<p> nuclei </p> [SEG]", add_special_tokens=False)["input_ids"]
    return teach(model, [*ids, *model.processor.stop_ids])


def masks_of(output):
    """All masks that one is chosen from: which is chosen may turn on the last digit of their quality."""
    return output.logits if output.candidates is None else output.candidates


@pytest.mark.parametrize("name", DECODER_EXAMPLES)
def test_a_training_step_lowers_the_loss(name):
    torch.manual_seed(0)
    decoder = lively(build_mask_decoder(DECODER_EXAMPLES[name]())).train()
    side = decoder.image_size
    prompts = torch.nn.Parameter(torch.randn(2, decoder.prompt_dim))
    pixels, target = torch.rand(2, 3, side, side), torch.zeros(2, side, side)
    target[:, : side // 2] = 1
    weights = [prompts, *(weight for weight in decoder.parameters() if weight.requires_grad)]
    optimizer = torch.optim.Adam(weights, 2e-3)
    seen = []
    for _ in range(8):
        output = decoder.decode(decoder.encode(pixels), torch.arange(2), prompts)
        loss = sum(mask_losses(output.logits, target, None).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.97 * seen[0], seen


@pytest.mark.parametrize("name", DECODER_EXAMPLES)
def test_saved_and_loaded_it_predicts_the_same(name, tmp_path):
    model = grounded(name)
    image = np.random.default_rng(0).integers(0, 255, (40, 52, 3), dtype=np.uint8)
    model.save_pretrained(tmp_path)
    first = answering(model).predict(image, "Segment the nuclei.").regions[0]
    again = answering(unimed.load(tmp_path, device="cpu")).predict(image, "Segment the nuclei.").regions[0]
    assert first.mask.shape == (40, 52) and (first.mask == again.mask).all()
    assert first.confidence == again.confidence and first.presence == again.presence


@torch.no_grad()
@pytest.mark.parametrize("name", DECODER_EXAMPLES)
def test_neighbours_do_not_matter(name):
    torch.manual_seed(0)
    decoder = lively(build_mask_decoder(DECODER_EXAMPLES[name]())).eval()
    side = decoder.image_size
    pixels, prompts = torch.rand(3, 3, side, side), torch.randn(5, decoder.prompt_dim)
    index = torch.tensor([2, 0, 1, 0, 2])
    together = decoder.decode(decoder.encode(pixels), index, prompts)
    for row in range(5):
        one = decoder.encode(pixels[index[row]][None])
        alone = decoder.decode(one, torch.zeros(1, dtype=torch.long), prompts[row][None])
        assert_close(alone.logits[0], together.logits[row], name, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", DECODER_EXAMPLES)
def test_bfloat16(name):
    torch.manual_seed(0)
    decoder = lively(build_mask_decoder(DECODER_EXAMPLES[name]())).eval()
    side = decoder.image_size
    pixels, prompts = torch.rand(1, 3, side, side), torch.randn(2, decoder.prompt_dim)
    index = torch.zeros(2, dtype=torch.long)
    exact = masks_of(decoder.decode(decoder.encode(pixels), index, prompts))
    decoder = decoder.bfloat16()
    features = decoder.encode(pixels)
    rounded = masks_of(decoder.decode(features, index, prompts.bfloat16()))
    boxes = decoder.decode_boxes(features, index, torch.tensor([[2.0, 3.0, 20.0, 22.0]]).repeat(2, 1))
    assert rounded.dtype == torch.bfloat16 and boxes.logits.isfinite().all()
    assert torch.corrcoef(torch.stack([rounded.float().flatten(), exact.flatten()]))[0, 1] > 0.95
