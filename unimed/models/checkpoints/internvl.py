"""InternVL 2.5 with remote code (`OpenGVLab/InternVL2_5-*`) to the names of transformers' own InternVL."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, build, read_state_dict
from unimed.models.weights import save_whole

_LAYER = r"^vision_model\.encoder\.layers\.(\d+)\."
_VISION = "model.vision_tower.encoder.layer"
_PROJECTOR = {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}

RULES = [
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (_LAYER + r"attn\.proj\.", rf"{_VISION}.\1.attention.projection_layer."),
    (_LAYER + r"attn\.([qk])_norm\.", rf"{_VISION}.\1.attention.\2_norm."),
    (_LAYER + r"mlp\.", rf"{_VISION}.\1.mlp."),
    (_LAYER + r"norm1\.", rf"{_VISION}.\1.layernorm_before."),
    (_LAYER + r"norm2\.", rf"{_VISION}.\1.layernorm_after."),
    (_LAYER + r"ls([12])$", rf"{_VISION}.\1.lambda_\2"),
    (r"^mlp1\.([013])\.", lambda match: f"model.multi_modal_projector.{_PROJECTOR[match[1]]}."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
]
#: InternLM2 names -> Llama names, beside the fused query-key-value matrix.
INTERNLM2_RULES = [
    (r"^(language_model\.)?model\.tok_embeddings\.", r"\1model.embed_tokens."),
    (r"^(language_model\.)?output\.", r"\1lm_head."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
]
#: Fields of a published language model configuration that its transformers class knows too.
_SHARED_TEXT_FIELDS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings rms_norm_eps attention_dropout bos_token_id eos_token_id pad_token_id"
).split()


def _apply(rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def internlm2_to_llama(state: dict[str, torch.Tensor], heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    """InternLM2 tensors under Llama names. The fused `wqkv` holds, per key-value head, its queries, key and value."""
    out = {}
    for name, tensor in state.items():
        if name.endswith(".attention.wqkv.weight"):
            groups = heads // kv_heads
            fused = tensor.reshape(kv_heads, groups + 2, -1, tensor.shape[-1])
            base = name.removesuffix("attention.wqkv.weight") + "self_attn."
            out[base + "q_proj.weight"] = fused[:, :groups].reshape(-1, tensor.shape[-1])
            out[base + "k_proj.weight"] = fused[:, -2].reshape(-1, tensor.shape[-1])
            out[base + "v_proj.weight"] = fused[:, -1].reshape(-1, tensor.shape[-1])
        else:
            out[_apply(INTERNLM2_RULES, name)] = tensor
    return out


def convert_state_dict(state: dict[str, torch.Tensor], text_config: dict) -> dict[str, torch.Tensor]:
    """Published InternVL tensors under the names of `InternVLForConditionalGeneration`."""
    if text_config.get("model_type") == "internlm2":
        state = internlm2_to_llama(state, text_config["num_attention_heads"], text_config["num_key_value_heads"])
    out = {}
    for name, tensor in state.items():
        fused = re.match(_LAYER + r"attn\.qkv\.(weight|bias)$", name)
        if fused:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{_VISION}.{fused[1]}.attention.{letter}_proj.{fused[2]}"] = part.clone()
        else:
            out[_apply(RULES, name)] = tensor
    return out


def text_config_of(published: dict):
    """transformers' configuration of a published language model.

    Raises:
        CheckpointError: a language model transformers has no class for.
    """
    from transformers import AutoConfig

    kind = published.get("model_type") or str(published.get("architectures", [""])[0]).lower()
    fields = {name: published[name] for name in _SHARED_TEXT_FIELDS if name in published}
    scaling = dict(published.get("rope_scaling") or {})
    rope_type = scaling.pop("type", None) or scaling.pop("rope_type", None) or "default"
    # Phi-3 called its way of scaling "su" at first.
    rope = {"rope_type": {"su": "longrope"}.get(rope_type, rope_type), "rope_theta": published.get("rope_theta", 1e4)}
    fields["rope_parameters"] = rope | {name: value for name, value in scaling.items() if name != "rope_type"}
    fields["tie_word_embeddings"] = bool(published.get("tie_word_embeddings", False))
    if "qwen2" in kind:
        return AutoConfig.for_model("qwen2", **fields)
    if "internlm2" in kind:
        return AutoConfig.for_model("llama", **fields, attention_bias=bool(published.get("bias", False)))
    if "phi3" in kind:
        more = ("original_max_position_embeddings", "sliding_window", "resid_pdrop", "embd_pdrop")
        return AutoConfig.for_model("phi3", **fields, **{name: published[name] for name in more if name in published})
    if "qwen3" in kind:
        return AutoConfig.for_model("qwen3", **fields, head_dim=published.get("head_dim", 128))
    if "llama" in kind:
        return AutoConfig.for_model("llama", **fields)
    raise CheckpointError(
        f"no transformers class for language model {kind!r}; known are qwen2, qwen3, internlm2, phi3, llama"
    )


def backbone_config(published: dict, image_token_id: int):
    """`InternVLConfig` from the `config.json` of a published InternVL, UniBiomed or Sa2VA folder."""
    from transformers import InternVLConfig

    vision = published["vision_config"]
    return InternVLConfig(
        vision_config=dict(
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            num_hidden_layers=vision["num_hidden_layers"],
            num_attention_heads=vision["num_attention_heads"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            attention_bias=vision.get("qkv_bias", True),
            use_qk_norm=vision.get("qk_normalization", False),
            norm_type=vision.get("norm_type", "layer_norm"),
            layer_norm_eps=vision.get("layer_norm_eps", 1e-6),
            hidden_act=vision.get("hidden_act", "gelu"),
            # Mean pooling is how transformers says "no final norm".
            use_mean_pooling=True,
        ),
        text_config=text_config_of(published["llm_config"]),
        image_token_id=image_token_id,
        downsample_ratio=published.get("downsample_ratio", 0.5),
        vision_feature_layer=published.get("select_layer", -1),
        tie_word_embeddings=False,
    )


def recognises(path: Path) -> bool:
    """A folder whose configuration says `internvl_chat`."""
    config = Path(path) / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "internvl_chat"


def convert(source: Path, destination: Path) -> ConversionReport:
    """Write a published InternVL folder as `InternVLForConditionalGeneration.from_pretrained` reads it.

    Raises:
        CheckpointError: missing or left-over tensors, or an unknown language model.
    """
    from transformers import InternVLForConditionalGeneration

    from unimed.models.checkpoints.tokenizers import read_without_remote_code

    if not recognises(source):
        raise CheckpointError(f"{source}: no published InternVL folder (config.json of model_type internvl_chat)")
    published = json.loads((Path(source) / "config.json").read_text())
    tokenizer = read_without_remote_code(source)
    config = backbone_config(published, tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    state = convert_state_dict(read_state_dict(source), published["llm_config"])
    model, report = build(InternVLForConditionalGeneration, config, state, "internvl", source)
    report.destination = str(destination)
    with atomic_folder(destination) as folder:
        save_whole(model, folder)
        tokenizer.save_pretrained(folder)
    return report
