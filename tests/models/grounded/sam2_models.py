"""Grounded models of a few thousand parameters with a SAM 2 of the same size, on every family of backbones."""

import torch
from small_models import TEXTS
from transformers import InternVLConfig, LlavaConfig, Qwen2_5_VLConfig, Qwen2VLConfig

from unimed.models.backbones.eva import EvaLanguageConfig
from unimed.models.checkpoints.sam2 import sam2_video_config
from unimed.models.grounded import GroundedConfig, GroundedMLLM, GroundedProcessor
from unimed.models.starting.grounded_small import train_tokenizer
from unimed.tokens import IMAGE_PLACEHOLDER, SEG_TOKEN

TEXT = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def tiny_sam2(image_size=128, version="2.0"):
    return sam2_video_config(
        8, [1, 1, 2, 1], 1, [3], [8, 4, 4, 4], [7, 7],
        hidden_dim=64, image_size=image_size, memory_layers=1, memory_feed_forward=32, memory_dim=64,
        decoder_mlp=32, iou_hidden=32, version=version,
    )  # fmt: skip


def backbone(kind, vocabulary, image_id, pad):
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=pad)
    if kind == "qwen2_vl":
        vision = dict(depth=2, embed_dim=16, hidden_size=32, mlp_ratio=1, num_heads=2)
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        text = dict(model_type="qwen2_vl_text", vocab_size=vocabulary, rope_parameters=rope, **TEXT, **ids)
        return Qwen2VLConfig(vision_config=vision, text_config=text, image_token_id=image_id, tie_word_embeddings=False)
    if kind == "unimed_eva_language":
        eva = dict(image_size=28, patch_size=14, dim=16, depth=1, heads=2, mlp_hidden=32)
        text = dict(model_type="llama", vocab_size=vocabulary, **TEXT, **ids)
        return EvaLanguageConfig(eva=eva, text_config=text)
    if kind == "qwen2_5_vl":
        vision = dict(depth=2, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32,
                      fullatt_block_indexes=[1], window_size=56)  # fmt: skip
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        text = dict(model_type="qwen2_5_vl_text", vocab_size=vocabulary, rope_parameters=rope, **TEXT, **ids)
        return Qwen2_5_VLConfig(
            vision_config=vision, text_config=text, image_token_id=image_id, tie_word_embeddings=False
        )
    kinds = {"internvl": "qwen2", "llava": "llama", "internvl_phi3": "phi3", "internvl_llama": "llama"}
    text = dict(model_type=kinds[kind], vocab_size=vocabulary, tie_word_embeddings=False, **TEXT, **ids)
    if kind == "llava":
        vision = dict(model_type="clip_vision_model", hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                      num_attention_heads=2, image_size=56, patch_size=14)  # fmt: skip
        return LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_id)
    vision = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    return InternVLConfig(vision_config=vision, text_config=text, image_token_id=image_id, tie_word_embeddings=False)


def tiny_sam2_model(kind="internvl", presence_head=False, seed=0, mask_config=None):
    tokenizer = train_tokenizer([*TEXTS, "There are 2 part regions in the picture: region1, region2."])
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    torch.manual_seed(seed)
    config = GroundedConfig(
        backbone_config=backbone(kind, len(tokenizer), image_id, tokenizer.pad_token_id),
        mask_config=mask_config or tiny_sam2(),
        presence_head=presence_head,
        image_token_id=image_id,
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
    )
    model = GroundedMLLM(config).eval()
    native = dict(native_pixels=(28 * 28, 28 * 28 * 16), image_start="", image_end="")
    tiles = dict(tile_size=56, tokens_per_tile=16 if kind == "llava" else 4, max_tiles=1 if kind == "llava" else 4)
    model.processor = GroundedProcessor(
        tokenizer, template="question_answer", image_token=IMAGE_PLACEHOLDER, max_prompt_tokens=2000,
        mask_size=model.mask_head.image_size,
        **({"image_start": "", "image_end": ""} | tiles if kind != "qwen2_5_vl" else native),
    )  # fmt: skip
    return model


def say(model, text):
    """Make every answer this text, by a bias so large that no state can argue; any batch size."""
    ids = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    class Scripted(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.weight = head.weight
            self.step = 0

        def forward(self, hidden):
            logits = torch.zeros(*hidden.shape[:-1], self.weight.shape[0], device=hidden.device)
            logits[..., ids[self.step % len(ids)]] = 1
            self.step += 1
            return logits

    model.prompt_lookup_num_tokens = 0  # a token for every pass
    model.backbone.vlm.lm_head = Scripted(model.lm_head)
    return model
