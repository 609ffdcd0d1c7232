"""LLaVA v1 and v1.5 folders (`liuhaotian/llava-*`) to the names of transformers' own Llava.

LLaVA v1 has one linear layer between the image and the language model; transformers' Llava has two. The second becomes
the identity and the activation between them linear, which is exact.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models import foreign
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, build, read_state_dict
from unimed.models.weights import save_whole

IMAGE_TOKEN = "<image>"
RULES = [
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (r"^model\.vision_tower\.(?:vision_tower\.)?vision_model\.", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.mm_projector\.(weight|bias)$", r"model.multi_modal_projector.linear_1.\1"),
]
#: Buffers of old transformers versions; they are computed, not learned.
BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|position_ids)$")
_ROWS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
_TEXT_FIELDS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings rms_norm_eps bos_token_id eos_token_id"
).split()


def convert_state_dict(published: dict[str, torch.Tensor], extra_rows: int = 1) -> dict[str, torch.Tensor]:
    """Published tensors under the names of `LlavaForConditionalGeneration`.

    Args:
        extra_rows: rows of zeros put below the embeddings, for the image token that LLaVA does without.
    """
    state = {}
    for name, tensor in published.items():
        if BUFFERS.search(name):
            continue
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    for name in _ROWS:
        if name in state:
            rows = state[name]
            state[name] = torch.cat([rows, rows.new_zeros(extra_rows, rows.shape[1])])
    first = "model.multi_modal_projector.linear_1."
    if first + "weight" in state and "model.multi_modal_projector.linear_2.weight" not in state:
        like = state[first + "weight"]
        state["model.multi_modal_projector.linear_2.weight"] = torch.eye(
            len(like), dtype=like.dtype, device=like.device
        )
        state["model.multi_modal_projector.linear_2.bias"] = torch.zeros_like(state[first + "bias"])
    return state


def clip_state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of a CLIP folder (`openai/clip-vit-large-patch14`) as an un-merged LLaVA file names them.

    Raises:
        CheckpointError: no vision part in it.
    """
    tensors = read_state_dict(folder)
    vision = {n: t for n, t in tensors.items() if n.startswith("vision_model.") and not BUFFERS.search(n)}
    if not vision:
        raise CheckpointError(f"{folder}: no tensor begins with vision_model.; give a CLIP folder")
    return {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in vision.items()}


def backbone_config(published: dict, state: dict[str, torch.Tensor], clip: dict | None = None):
    """`LlavaConfig` for converted tensors.

    Args:
        published: `config.json` of the LLaVA folder; widths and depths are read off the tensors where it has none.
        state: converted tensors.
        clip: vision part of CLIP's `config.json`; ViT-L/14's heads of 64 where there is none.

    Raises:
        CheckpointError: no language model or no vision tower among the tensors.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    tower, text = "model.vision_tower.", "model.language_model."
    for name in (tower + "embeddings.class_embedding", text + "embed_tokens.weight"):
        if name not in state:
            raise CheckpointError(
                f"{name} is not among the tensors; merged files leave CLIP out, give its folder with --clip"
            )
    rows, width = state[text + "embed_tokens.weight"].shape
    fields = {name: published[name] for name in _TEXT_FIELDS if published.get(name) is not None}
    fields |= {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": state[text + "layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": _count(state, rf"{re.escape(text)}layers\.(\d+)\."),
    }
    # Heads of 128 in every Llama from 7B on.
    fields.setdefault("num_attention_heads", max(1, width // 128))
    heads = fields["num_attention_heads"]
    keys = state[text + "layers.0.self_attn.k_proj.weight"].shape[0]
    fields["num_key_value_heads"] = keys * heads // width
    theta = published.get("rope_theta", 10000.0)
    vision_width = state[tower + "embeddings.class_embedding"].shape[0]
    patch = state[tower + "embeddings.patch_embedding.weight"].shape[-1]
    places = state[tower + "embeddings.position_embedding.weight"].shape[0] - 1
    clip = {k: v for k, v in (clip or {}).items() if k in ("num_attention_heads", "hidden_act", "layer_norm_eps")}
    vision = CLIPVisionConfig(
        **{"num_attention_heads": max(1, vision_width // 64), "hidden_act": "quick_gelu"} | clip,
        hidden_size=vision_width,
        intermediate_size=state[tower + "encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_count(state, rf"{re.escape(tower)}encoder\.layers\.(\d+)\."),
        image_size=round(places**0.5) * patch,
        patch_size=patch,
        projection_dim=vision_width,
    )
    two_layers = published.get("mm_projector_type", "linear") != "linear"
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(
            **fields, rope_parameters={"rope_type": "default", "rope_theta": theta}, tie_word_embeddings=False
        ),
        image_token_index=rows - 1,
        projector_hidden_act="gelu" if two_layers else "linear",
        vision_feature_layer=published.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
        image_seq_length=places,
        tie_word_embeddings=False,
    )


def _count(state, pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))


def tensor_names(path: Path) -> set[str]:
    """Names in a folder's index, without reading tensors; empty where there is no index."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (Path(path) / index).is_file():
            return set(json.loads((Path(path) / index).read_text())["weight_map"])
    return set()


def read_config(folder: Path) -> dict:
    """`config.json` of a folder, empty where there is none."""
    path = Path(folder) / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def recognises(path: Path) -> bool:
    """A folder whose configuration names a vision tower as LLaVA did, without the grounding parts of LISA."""
    config = read_config(path) if Path(path).is_dir() else {}
    if "mm_vision_tower" not in config or config.get("model_type") == "sa2va_chat":
        return False
    grounding = ("LISAForCausalLM", "train_mask_decoder")
    names = tensor_names(path)
    return not (
        any(word in config.get("architectures", []) or word in config for word in grounding)
        or any(".text_hidden_fcs." in name for name in names)
    )


def add_arguments(parser) -> None:
    parser.add_argument(
        "--clip", type=Path, help="folder of openai/clip-vit-large-patch14, where the source lacks CLIP"
    )


def convert(source: Path, destination: Path, clip: Path | None = None) -> ConversionReport:
    """Write a LLaVA v1 folder as `LlavaForConditionalGeneration.from_pretrained` reads it.

    Raises:
        CheckpointError: no CLIP in it and none given, or missing or left-over tensors.
    """
    from transformers import LlavaForConditionalGeneration

    published, tensors = read_config(source), read_state_dict(source)
    clip_config = None
    if clip is not None:
        tensors |= clip_state_dict(clip)
        clip_config = read_config(clip).get("vision_config")
    tokenizer = foreign.tokenizer(source)
    rows = len(tensors["model.embed_tokens.weight"])
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    state = convert_state_dict(tensors, max(0, image_id + 1 - rows))
    config = backbone_config(published, state, clip_config)
    config.image_token_id = image_id
    dropped = {name: "computed, not learned" for name in tensors if BUFFERS.search(name)}
    model, report = build(LlavaForConditionalGeneration, config, state, "llava-v1", source, dropped=dropped)
    report.destination = str(destination)
    with atomic_folder(destination) as folder:
        save_whole(model, folder)
        tokenizer.save_pretrained(folder)
    return report
