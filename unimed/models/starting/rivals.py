"""What a user would run instead of this package, built for comparisons of speed with random weights."""

from __future__ import annotations

import importlib.util

import torch


def random_llama(width: int, layers: int, vocabulary: int = 2000):
    """Llama-shaped `LlamaForCausalLM`, at the default sizes of `unimed speed all` about SmolLM2-135M."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def open_clip_transform(processor):
    """open_clip's own transform for evaluation, as a user of a model of this size has it; None without open_clip."""
    if not importlib.util.find_spec("open_clip"):
        return None
    from open_clip.transform import image_transform

    return image_transform(processor.size, False, tuple(processor.mean), tuple(processor.std))


def random_sam2(**sizes):
    """Our SAM 2.1 head with random weights.

    Args:
        sizes: of `unimed.models.checkpoints.sam2.sam2_video_config`; by default those of SAM 2.1 tiny.
    """
    from unimed.models.checkpoints.sam2 import HIERA, sam2_video_config
    from unimed.models.heads.sam2 import Sam2MaskHead

    config = sam2_video_config(**(sizes or {"embed_dim": 96, **HIERA[96, 12]}), version="2.1")
    head = Sam2MaskHead(config).eval()
    _randomize(head)
    return head


def sam2_of_transformers(head):
    """`Sam2Model` with the weights of a head of ours."""
    from transformers import Sam2Config, Sam2Model

    config = head.config
    model = Sam2Model(Sam2Config(
        vision_config=config.vision_config, prompt_encoder_config=config.prompt_encoder_config,
        mask_decoder_config=config.mask_decoder_config,
    )).eval()  # fmt: skip
    wanted = set(model.state_dict())
    model.load_state_dict({name: value for name, value in head.sam.state_dict().items() if name in wanted})
    return model


def sam2_predictor(head):
    """`SAM2ImagePredictor` of the sam2 package, SAM 2.1 tiny; the head of ours gets its weights, which are random.

    Raises:
        ImportError: sam2 is not installed.
    """
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    from unimed.models.checkpoints.sam2 import convert_state_dict

    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
    _randomize(model)
    head.sam.load_state_dict(convert_state_dict(model.state_dict()))
    return SAM2ImagePredictor(model)


def _randomize(model) -> None:
    """Random values everywhere: biases and codes of positions begin as zeros, which would hide differences."""
    torch.manual_seed(0)
    for value in model.requires_grad_(False).parameters():
        torch.nn.init.normal_(value.data, std=0.02)
