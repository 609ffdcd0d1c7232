"""SAM and MedSAM files (`sam_vit_h_4b8939.pth`, `medsam_vit_b.pth`, ...) to transformers' SAM.

All sizes are read off the tensors, so a ViT of any size converts whatever its file is called.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, build, read_state_dict
from unimed.models.weights import save_whole

_MLP = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
RULES = [
    (r"^image_encoder\.", "vision_encoder."),
    (r"^(vision_encoder)\.patch_embed\.proj\.", r"\1.patch_embed.projection."),
    (r"^(vision_encoder)\.blocks\.(\d+)\.norm([12])\.", r"\1.layers.\2.layer_norm\3."),
    (r"^(vision_encoder)\.blocks\.", r"\1.layers."),
    (r"^(vision_encoder)\.neck\.0\.", r"\1.neck.conv1."),
    (r"^(vision_encoder)\.neck\.1\.", r"\1.neck.layer_norm1."),
    (r"^(vision_encoder)\.neck\.2\.", r"\1.neck.conv2."),
    (r"^(vision_encoder)\.neck\.3\.", r"\1.neck.layer_norm2."),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^mask_decoder\.transformer\.layers\.(\d+)\.norm([1-4])\.", r"mask_decoder.transformer.layers.\1.layer_norm\2."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (
        r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.([012])\.",
        lambda match: f"{match[1]}.{_MLP[match[2]]}.",
    ),
]
_FOURIER = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_SHARED = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
#: Parts of the mask decoder that uMedGround removed.
MASK_PARTS = ("mask_decoder.upscale_", "mask_decoder.output_hypernetworks_mlps.")


def fold_encoder_lora(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the encoder adapters of uMedGround's `--lora_sam_rank` (first and last third of qkv, no factor) to qkv."""
    state, adapters = {}, {}
    for name, tensor in official.items():
        if found := re.match(r"(.*\.attn\.qkv)\.linear_([ab])_([qv])\.weight$", name):
            adapters.setdefault(found[1], {})[found[2] + found[3]] = tensor
        else:
            state[re.sub(r"\.attn\.qkv\.qkv\.", ".attn.qkv.", name)] = tensor
    for base, parts in adapters.items():
        weight = state[f"{base}.weight"].clone()
        third = weight.shape[0] // 3
        weight[:third] += (parts["bq"].float() @ parts["aq"].float()).to(weight.dtype)
        weight[-third:] += (parts["bv"].float() @ parts["av"].float()).to(weight.dtype)
        state[f"{base}.weight"] = weight
    return state


def convert_state_dict(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official tensors under the names of `SamModel`; names it does not know stay as they are."""
    state = {}
    for name, tensor in fold_encoder_lora(official).items():
        if name == _FOURIER:
            # Each its own memory: of two names for one, only one would be saved.
            state |= {shared: tensor.clone() for shared in _SHARED}
            continue
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    return state


def config_of(official: dict[str, torch.Tensor]):
    """`SamConfig` that fits the tensors.

    Raises:
        CheckpointError: no SAM image encoder among them.
    """
    from transformers import SamConfig

    patch = official.get("image_encoder.patch_embed.proj.weight")
    if patch is None or "image_encoder.pos_embed" not in official:
        raise CheckpointError("no SAM image encoder among the tensors (image_encoder.patch_embed.proj is not there)")
    width, _, patch_size, _ = patch.shape
    grid = official["image_encoder.pos_embed"].shape[1]
    depth = _count(official, r"image_encoder\.blocks\.(\d+)\.")
    spans = [(official[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape[0] + 1) // 2 for i in range(depth)]
    head = official["image_encoder.blocks.0.attn.rel_pos_h"].shape[1]
    windows = {span for span in spans if span != grid}
    dim = official["mask_decoder.iou_token.weight"].shape[1]
    masks = official["mask_decoder.mask_tokens.weight"].shape[0]
    iou = "mask_decoder.iou_prediction_head.layers."
    layer = "mask_decoder.transformer.layers.0."
    return SamConfig(
        vision_config=dict(
            hidden_size=width,
            output_channels=dim,
            num_hidden_layers=depth,
            num_attention_heads=width // head,
            image_size=grid * patch_size,
            patch_size=patch_size,
            mlp_dim=official["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
            window_size=windows.pop() if windows else grid,
            global_attn_indexes=[i for i, span in enumerate(spans) if span == grid],
            num_pos_feats=dim // 2,
        ),
        prompt_encoder_config=dict(
            hidden_size=dim,
            image_size=grid * patch_size,
            patch_size=patch_size,
            mask_input_channels=official["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        mask_decoder_config=dict(
            hidden_size=dim,
            mlp_dim=official[layer + "mlp.lin1.weight"].shape[0],
            num_hidden_layers=_count(official, r"mask_decoder\.transformer\.layers\.(\d+)\."),
            attention_downsample_rate=dim // official[layer + "cross_attn_token_to_image.q_proj.weight"].shape[0],
            num_multimask_outputs=masks - 1,
            iou_head_hidden_dim=official[iou + "0.weight"].shape[0],
            iou_head_depth=_count(official, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
            # The published two-way blocks use 1e-5; transformers' default of 1e-6 moves tokens by 2e-4.
            layer_norm_eps=1e-5,
        ),
    )


def _count(state, pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))


def recognises(path: Path) -> bool:
    """A `.pth` file whose name begins with "sam_" or "medsam_vit"."""
    path = Path(path)
    return path.is_file() and path.suffix == ".pth" and re.match(r"(sam|medsam)_vit", path.name) is not None


def convert(source: Path, destination: Path) -> ConversionReport:
    """Write an official file as a folder that `SamModel.from_pretrained` opens.

    Raises:
        CheckpointError: unreadable, or with missing or left-over tensors.
    """
    from transformers import SamModel

    official = read_state_dict(source)
    config = config_of(official)
    state = convert_state_dict(official)
    # Both codes of places are in the file, as in ours; see `SamMaskHead`.
    config.tie_word_embeddings = False
    model, report = build(SamModel, config, state, "sam", source)
    report.destination = str(destination)
    with atomic_folder(destination) as folder:
        save_whole(model, folder)
    return report
