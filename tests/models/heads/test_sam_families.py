"""The adapter over transformers' SAM-like models gives their own masks where they are asked in their own way."""

import pytest
import torch
from closeness import assert_close
from small_decoders import DECODER_EXAMPLES, lively

from unimed.models.heads.mask import build_mask_decoder
from unimed.models.heads.sam_families import FAMILIES


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.config.model_type)
def test_masks_of_boxes_are_those_of_transformers(family):
    torch.manual_seed(0)
    decoder = lively(build_mask_decoder(DECODER_EXAMPLES[family.config.model_type]())).eval()
    if family.config.model_type == "sam3_tracker":
        # transformers' image model adds this to a fourth map that it never reads; its video model, as published, to
        # the third, and so do we.
        decoder.sam.no_memory_embedding.zero_()
    side = decoder.image_size
    pixels = torch.rand(1, 3, side, side)
    boxes = torch.tensor([[2.0, 3.0, 20.0, 22.0], [10.0, 4.0, 44.0, 50.0]])
    ours = decoder.decode_boxes(decoder.encode(pixels), torch.zeros(2, dtype=torch.long), boxes)
    theirs = decoder.sam(pixel_values=pixels, input_boxes=boxes[None], multimask_output=False)
    assert_close(ours.logits, theirs.pred_masks[0, :, 0], "masks", 1e-5)
    assert_close(ours.iou, theirs.iou_scores[0, :, 0], "quality", 1e-5)
    if family.pyramid:
        assert_close(ours.object_logits, theirs.object_score_logits.flatten(), "presence", 1e-5)


@torch.no_grad()
def test_the_words_choose_the_mask():
    torch.manual_seed(0)
    decoder = lively(build_mask_decoder(DECODER_EXAMPLES["sam2"]())).eval()
    features = decoder.encode(torch.rand(1, 3, 64, 64))
    output = decoder.decode(features, torch.zeros(2, dtype=torch.long), torch.randn(2, decoder.prompt_dim))
    assert not torch.equal(output.logits[0], output.logits[1])
    assert torch.equal(output.iou, output.candidate_iou.amax(dim=1)) and output.candidates.shape[1] == 3
