"""The decoder for language vectors: what depends on the words is computed for each of them, the rest once."""

import pytest
import torch
from small_models import tiny_mask_config

from unimed.models.heads.mask import build_mask_decoder
from unimed.models.heads.medsam_lite import MedSamLiteConfig


def head_of(scales):
    torch.manual_seed(0)
    config = tiny_mask_config()
    config.prompt_scales = scales
    return build_mask_decoder(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_words_count_at_the_finest_scales_alone(scales):
    head = head_of(scales)
    features = head.encode(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    prompts = torch.randn(5, head.prompt_dim, generator=torch.Generator().manual_seed(2))
    index = torch.tensor([0, 0, 1, 0, 1])
    together = head.decode(features, index, prompts).logits
    for row in range(5):
        alone = head.decode(features, index[row : row + 1], prompts[row : row + 1]).logits
        assert torch.allclose(together[row], alone[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3), "other words, other mask"
    film = [name for name, _ in head.text_decoder.named_parameters() if name.endswith("film.weight")]
    assert len(film) == {1: 1, 2: 2, 3: 4}[scales]

    runs = []
    head.text_decoder.coarse[1].conv1.register_forward_hook(lambda *seen: runs.append(len(seen[1][0])))
    head.decode(features.select(0), torch.zeros(4, dtype=torch.long), prompts[:4])
    assert runs == [4 if scales == 3 else 1]


def test_scales_are_saved_and_checked():
    assert MedSamLiteConfig().prompt_scales == 3, "older folders do not name it"
    assert MedSamLiteConfig.from_dict(MedSamLiteConfig(prompt_scales=1).to_dict()).prompt_scales == 1
    with pytest.raises(ValueError, match="prompt_scales"):
        MedSamLiteConfig(prompt_scales=0)
