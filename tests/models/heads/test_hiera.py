"""SAM 2's image encoder in tiles: the numbers of transformers' module."""

import pytest
import torch

from unimed.models.checkpoints.sam2 import sam2_video_config
from unimed.models.heads import hiera
from unimed.models.heads.sam2 import Sam2MaskHead


def random_head(windows, blocks, global_blocks):
    config = sam2_video_config(
        16, blocks, 2, global_blocks, windows, [7, 7], hidden_dim=32, image_size=256, memory_layers=1,
        memory_feed_forward=32, memory_dim=16, decoder_mlp=32, iou_hidden=32,
    )  # fmt: skip
    head = Sam2MaskHead(config).eval()
    torch.manual_seed(0)
    for value in head.parameters():  # biases and position codes begin as zeros
        torch.nn.init.normal_(value.data, std=0.2)
    return head


# Windows of 6 need padding, in blocks that pool and in others; a global first block leaves nothing to tiles.
@pytest.mark.parametrize(
    ("windows", "blocks", "global_blocks"),
    [([8, 4, 6, 4], [1, 2, 3, 1], [4]), ([8, 6, 2, 4], [2, 1, 2, 2], []), ([16, 4, 8, 4], [1, 1, 2, 1], [0])],
)
@pytest.mark.parametrize("tokens", [64, 1024])
def test_tiles_give_the_numbers_of_the_module(windows, blocks, global_blocks, tokens, monkeypatch):
    monkeypatch.setattr(hiera, "TILE_TOKENS", tokens)
    monkeypatch.setattr(hiera, "CHUNK_ROWS", tokens)
    head = random_head(windows, blocks, global_blocks)
    pixels = torch.randn(2, 3, 256, 256)
    given = head.encode(pixels)  # with gradients: transformers' module
    with torch.no_grad():
        assert hiera.serves(head.sam.vision_encoder, pixels)
        found = head.encode(pixels)
    for ours, theirs in zip((found.embedding, *found.high_resolution), (given.embedding, *given.high_resolution),
                            strict=True):  # fmt: skip
        assert ours.shape == theirs.shape
        theirs = theirs.detach()
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


def test_what_it_leaves_to_the_module():
    head = random_head([8, 4, 6, 4], [1, 1, 2, 1], [])
    encoder, pixels = head.sam.vision_encoder, torch.randn(1, 3, 256, 256)
    assert not hiera.serves(encoder, pixels)
    with torch.no_grad():
        assert hiera.serves(encoder, pixels)
        assert not hiera.serves(encoder, torch.randn(1, 3, 144, 144))
        assert not hiera.serves(encoder, pixels.to("meta"))
        assert not hiera.serves(encoder.train(), pixels)
        assert not hiera.serves(encoder.eval().bfloat16(), pixels)
