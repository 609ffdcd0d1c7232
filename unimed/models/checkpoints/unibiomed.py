"""Published UniBiomed and Sa2VA folders (InternVL 2.5 + SAM 2) to `GroundedMLLM`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from unimed.models.checkpoints import internvl, sam2
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, read_state_dict

_SAM = "grounding_encoder.sam2_model."
_PROJECTION = "text_hidden_fcs."


def recognises(path: Path) -> bool:
    """A folder whose configuration says `sa2va_chat`."""
    config = Path(path) / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "sa2va_chat"


def convert_state_dict(published: dict[str, torch.Tensor], text_config: dict) -> dict[str, torch.Tensor]:
    """Published tensors under the names of `GroundedMLLM`; every one is kept."""
    sam = {name.removeprefix(_SAM): tensor for name, tensor in published.items() if name.startswith(_SAM)}
    projection = {name.removeprefix(_PROJECTION): t for name, t in published.items() if name.startswith(_PROJECTION)}
    rest = {name: t for name, t in published.items() if not name.startswith((_SAM, _PROJECTION))}
    state = {f"backbone.vlm.{name}": t for name, t in internvl.convert_state_dict(rest, text_config).items()}
    state |= {f"mask_head.sam.{name}": t for name, t in sam2.convert_state_dict(sam).items()}
    state |= {f"seg_projection.{name}": t for name, t in projection.items()}
    return state


def grounded_config(published: dict, tokenizer, mask_config=None):
    """`GroundedConfig` of a published folder; SAM 2 is hiera-large unless `mask_config` says otherwise."""
    from unimed.models.grounded.configuration import GroundedConfig

    image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    return GroundedConfig(
        backbone_config=internvl.backbone_config(published, image_token_id),
        mask_config=mask_config or sam2.sam2_video_config(144, **sam2.HIERA[144, 48]),
        presence_head=False,
        image_token_id=image_token_id,
        seg_token_id=tokenizer.convert_tokens_to_ids("[SEG]"),
    )


def grounded_processor(published: dict, tokenizer, mask_size: int = 1024):
    """The processor of a published folder: tiles of 448 px, at most 12 of them, and its chat template."""
    from unimed.models.grounded.processing import GroundedProcessor

    size = published.get("force_image_size") or published["vision_config"]["image_size"]
    per_side = int(size // published["vision_config"]["patch_size"] * published.get("downsample_ratio", 0.5))
    return GroundedProcessor(
        tokenizer,
        template=published.get("template", "phi3_chat"),
        tokens_per_tile=per_side**2,
        tile_size=size,
        max_tiles=12,
        mask_size=mask_size,
    )


def build(source: Path, mask_config=None, device="cpu"):
    """The published folder as a `GroundedMLLM` with its processor, and the report of its tensors.

    Raises:
        CheckpointError: missing or left-over tensors; each is named.
    """
    from transformers import AutoTokenizer

    from unimed.models.grounded.modeling import GroundedMLLM

    source = Path(source)
    published = json.loads((source / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(source)
    for token in ("[SEG]", "<IMG_CONTEXT>"):
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise CheckpointError(f"{source}: the tokenizer does not know {token}; is its added_tokens file there?")
    if mask_config is None and "tiny_sam2" in published:
        mask_config = _tiny_mask_config(published["tiny_sam2"])
    config = grounded_config(published, tokenizer, mask_config)
    # One number type throughout: published files mix them.
    state = {n: t.float() for n, t in convert_state_dict(read_state_dict(source), published["llm_config"]).items()}
    with torch.device("meta"):
        skeleton = GroundedMLLM(config)
    report = sam2.check_names(skeleton, state, "unibiomed", source, "")
    report.check()
    model = GroundedMLLM.from_pretrained(None, config=config, state_dict=state).eval()
    model.processor = grounded_processor(published, tokenizer, config.mask_config.image_size)
    return model, report


def convert(source: Path, destination: Path) -> ConversionReport:
    """Write a published folder as one that `unimed.load` and `AutoModel.from_pretrained` open."""
    model, report = build(source)
    model.save_pretrained(destination)
    report.destination = str(destination)
    return report


def _tiny_mask_config(tiny: dict):
    hiera = tiny["hiera"]
    return sam2.sam2_video_config(
        hiera["embed_dim"],
        blocks=hiera["stages"],
        heads=hiera["num_heads"],
        global_blocks=hiera["global_att_blocks"],
        windows=hiera["window_spec"],
        background=hiera["window_pos_embed_bkg_spatial_size"],
        hidden_dim=tiny["d_model"],
        image_size=tiny["image_size"],
        memory_layers=tiny["mem_attn_layers"],
        memory_feed_forward=tiny["mem_attn_ff"],
        memory_dim=tiny["mem_dim"],
        decoder_mlp=tiny["decoder_mlp"],
        iou_hidden=tiny["iou_hidden"],
    )
