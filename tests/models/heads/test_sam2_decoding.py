"""SAM 2's mask decoder with projections on the side of the tokens: the numbers of transformers' module."""

import pytest
import torch

from unimed.models.checkpoints.sam2 import sam2_video_config
from unimed.models.heads import sam2_decoding
from unimed.models.heads.sam2 import Sam2MaskHead


def random_head():
    config = sam2_video_config(
        16, [1, 1, 1, 1], 2, [], [8, 4, 4, 4], [7, 7], hidden_dim=32, image_size=128, memory_layers=1,
        memory_feed_forward=32, memory_dim=16, decoder_mlp=32, iou_hidden=32,
    )  # fmt: skip
    head = Sam2MaskHead(config).eval()
    torch.manual_seed(0)
    for value in head.parameters():  # biases begin as zeros
        torch.nn.init.normal_(value.data, std=0.2)
    return head


def test_every_prompt_gives_the_numbers_of_the_module(monkeypatch):
    head = random_head()
    index, boxes = torch.zeros(3, dtype=torch.long), torch.tensor([[8.0, 8, 60, 70], [0, 0, 127, 127], [90, 4, 99, 9]])
    vectors, points = torch.randn(3, head.prompt_dim), torch.rand(2, 3, 2) * 128
    served = []

    def noted(*given):
        served.append(serves(*given))
        return served[-1]

    serves = sam2_decoding.serves
    monkeypatch.setattr(sam2_decoding, "serves", noted)
    with torch.no_grad():
        features = head.encode(torch.randn(1, 3, 128, 128))

    def decoded():
        yield head.decode_boxes(features, index, boxes)
        yield head.decode(features, index, vectors)
        for multimask in (True, False):
            yield head.decode_points(features, points, torch.ones(2, 3, dtype=torch.long), multimask)

    with torch.no_grad():
        found = list(decoded())
    assert served == [True] * 4
    given = list(decoded())  # with gradients: transformers' module
    assert served[4:] == [False] * 4
    for ours, theirs in zip(found, given, strict=True):
        for name in ("logits", "iou", "object_logits", "candidates", "candidate_iou", "pointers"):
            one, other = getattr(ours, name), getattr(theirs, name).detach()
            assert one.shape == other.shape
            assert float((one - other).abs().max() / other.abs().max()) < 1e-5, name


@pytest.mark.parametrize("threshold", [0.0, 0.9, 2.0])
def test_an_unsteady_mask_gives_way_to_the_best_of_three(threshold):
    """Thresholds that no, some and all single masks fall below."""
    head = random_head()
    decoder = head.sam.mask_decoder
    decoder.dynamic_multimask_stability_thresh = threshold
    masks, quality = torch.randn(6, 4, 8, 8), torch.rand(6, 4)
    masks[:3] *= 100
    theirs = decoder._dynamic_multimask_via_stability(masks[None], quality[None])
    ours = sam2_decoding._stable(decoder, masks, quality)
    assert all(torch.equal(one, other[0]) for one, other in zip(ours, theirs, strict=True))


def test_what_it_leaves_to_the_module():
    head = random_head()
    decoder, embedding, sparse = head.sam.mask_decoder, torch.randn(1, 32, 8, 8), torch.randn(1, 2, 3, 32)
    assert not sam2_decoding.serves(decoder, embedding, sparse)
    with torch.no_grad():
        assert sam2_decoding.serves(decoder, embedding, sparse)
        assert not sam2_decoding.serves(decoder, embedding.expand(2, -1, -1, -1), sparse)
        assert not sam2_decoding.serves(decoder, embedding, torch.randn(1, 2, 30, 32))
        assert not sam2_decoding.serves(decoder, embedding.to("meta"), sparse)
        assert not sam2_decoding.serves(decoder.train(), embedding, sparse)
        assert not sam2_decoding.serves(decoder.eval().bfloat16(), embedding.bfloat16(), sparse)
