"""Official SAM 2 files (`sam2_hiera_*.pt`, `sam2.1_hiera_*.pt`) to the names of transformers' `Sam2VideoModel`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models.checkpoints.reading import (  # noqa: F401 - check_names lay here first
    CheckpointError,
    ConversionReport,
    build,
    check_names,
    read_state_dict,
)
from unimed.models.weights import save_whole

_NECK_ORDER = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
_TWO_LAYERS = {"0": "proj_in", "1": "proj_out"}
_MASK_DOWNSCALING = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
_UPSCALING = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
_FUSER = {"dwconv": "depthwise_conv", "norm": "layer_norm", "pwconv1": "pointwise_conv1", "pwconv2": "pointwise_conv2"}
_THREE_LAYER_HEADS = r"iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+"

#: (pattern, replacement) applied in this order to every official name.
RULES = [
    (r"^image_encoder\.trunk\.patch_embed\.proj\.", "vision_encoder.backbone.patch_embed.projection."),
    (r"^image_encoder\.trunk\.(pos_embed(?:_window)?)$", r"vision_encoder.backbone.\1"),
    (r"^image_encoder\.trunk\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.backbone.blocks.\1.layer_norm\2."),
    (
        r"^image_encoder\.trunk\.blocks\.(\d+)\.mlp\.layers\.([01])\.",
        lambda m: f"vision_encoder.backbone.blocks.{m[1]}.mlp.{_TWO_LAYERS[m[2]]}.",
    ),
    (r"^image_encoder\.trunk\.blocks\.", "vision_encoder.backbone.blocks."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (
        r"^sam_prompt_encoder\.mask_downscaling\.(\d)\.",
        lambda m: f"prompt_encoder.mask_embed.{_MASK_DOWNSCALING[m[1]]}.",
    ),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (
        r"^sam_mask_decoder\.transformer\.layers\.(\d+)\.norm([1-4])\.",
        r"mask_decoder.transformer.layers.\1.layer_norm\2.",
    ),
    (
        r"^sam_mask_decoder\.transformer\.layers\.(\d+)\.mlp\.layers\.([01])\.",
        lambda m: f"mask_decoder.transformer.layers.{m[1]}.mlp.{_TWO_LAYERS[m[2]]}.",
    ),
    (r"^sam_mask_decoder\.output_upscaling\.([013])\.", lambda m: f"mask_decoder.{_UPSCALING[m[1]]}."),
    (
        rf"^sam_mask_decoder\.({_THREE_LAYER_HEADS})\.layers\.([012])\.",
        lambda m: f"mask_decoder.{m[1]}.{_NECK_ORDER[m[2]]}.",
    ),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^obj_ptr_proj\.layers\.([012])\.", lambda m: f"object_pointer_proj.{_NECK_ORDER[m[1]]}."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
    (r"^memory_attention\.layers\.(\d+)\.norm([123])\.", r"memory_attention.layers.\1.layer_norm\2."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    # Before the generic rule for attention output projections, which ends with the same words.
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (
        r"^memory_encoder\.fuser\.layers\.(\d+)\.(dwconv|norm|pwconv1|pwconv2)\.",
        lambda m: f"memory_encoder.memory_fuser.layers.{m[1]}.{_FUSER[m[2]]}.",
    ),
    # UniBiomed and Sa2VA renamed the layer scale because transformers rewrites names with "gamma".
    (r"^memory_encoder\.fuser\.layers\.(\d+)\.(?:g_weight|gamma)$", r"memory_encoder.memory_fuser.layers.\1.scale"),
    (
        r"^memory_encoder\.mask_downsampler\.encoder\.(\d|1[01])\.",
        lambda m: (
            f"memory_encoder.mask_downsampler.layers.{int(m[1]) // 3}.{'conv' if int(m[1]) % 3 == 0 else 'layer_norm'}."
        ),
    ),
    (r"^memory_encoder\.mask_downsampler\.encoder\.12\.", "memory_encoder.mask_downsampler.final_conv."),
    (r"\.out_proj\.", ".o_proj."),
]

#: Hiera sizes by (embedding width, number of blocks).
HIERA = {
    (96, 12): dict(blocks=[1, 2, 7, 2], heads=1, global_blocks=[5, 7, 9], windows=[8, 4, 14, 7], background=[7, 7]),
    (96, 16): dict(blocks=[1, 2, 11, 2], heads=1, global_blocks=[7, 10, 13], windows=[8, 4, 14, 7], background=[7, 7]),
    (112, 24): dict(
        blocks=[2, 3, 16, 3], heads=2, global_blocks=[12, 16, 20], windows=[8, 4, 14, 7], background=[14, 14]
    ),
    (144, 48): dict(
        blocks=[2, 6, 36, 4], heads=2, global_blocks=[23, 33, 43], windows=[8, 4, 16, 8], background=[7, 7]
    ),
}


def rename(name: str) -> str:
    """Official name of one tensor -> name in `Sam2VideoModel`."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def convert_state_dict(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor of an official SAM 2 model under its name in `Sam2VideoModel`; values are not changed.

    The four point embeddings become one table, and the random matrix of the position code is stored twice because
    transformers keeps it in two places.
    """
    state = {}
    points = {}
    for name, tensor in official.items():
        if point := re.fullmatch(r"sam_prompt_encoder\.point_embeddings\.(\d)\.weight", name):
            points[int(point[1])] = tensor
        elif name == "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix":
            state["prompt_encoder.shared_embedding.positional_embedding"] = tensor
            # A second storage: safetensors refuses two names for one memory.
            state["shared_image_embedding.positional_embedding"] = tensor.clone()
        else:
            state[rename(name)] = tensor
    if points:
        state["prompt_encoder.point_embed.weight"] = torch.cat([points[index] for index in sorted(points)])
    return state


def sam2_video_config(
    embed_dim: int,
    blocks: list[int],
    heads: int,
    global_blocks: list[int],
    windows: list[int],
    background: list[int],
    *,
    version: str = "2.0",
    hidden_dim: int = 256,
    image_size: int = 1024,
    memory_layers: int = 4,
    memory_feed_forward: int = 2048,
    memory_dim: int = 64,
    decoder_mlp: int = 2048,
    iou_hidden: int = 256,
):
    """Configuration of transformers' SAM 2 from the numbers of an official configuration.

    `version` "2.1" switches on the two additions of SAM 2.1 (occlusion embedding, temporal code of object pointers).
    """
    from transformers import Sam2VideoConfig

    dims = [embed_dim * 2**stage for stage in range(4)]
    grid = image_size // 16
    newer = version == "2.1"
    return Sam2VideoConfig(
        vision_config=dict(
            model_type="sam2_vision_model",
            backbone_config=dict(
                model_type="sam2_hiera_det_model",
                hidden_size=embed_dim,
                num_attention_heads=heads,
                image_size=[image_size, image_size],
                blocks_per_stage=blocks,
                embed_dim_per_stage=dims,
                num_attention_heads_per_stage=[heads * 2**stage for stage in range(4)],
                window_size_per_stage=windows,
                global_attention_blocks=global_blocks,
                window_positional_embedding_background_size=background,
            ),
            backbone_channel_list=dims[::-1],
            backbone_feature_sizes=[[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
            fpn_hidden_size=hidden_dim,
            fpn_top_down_levels=[2, 3],
        ),
        prompt_encoder_config=dict(hidden_size=hidden_dim, image_size=image_size),
        mask_decoder_config=dict(hidden_size=hidden_dim, mlp_dim=decoder_mlp, iou_head_hidden_dim=iou_hidden),
        image_size=image_size,
        enable_occlusion_spatial_embedding=newer,
        enable_temporal_pos_encoding_for_object_pointers=newer,
        memory_attention_hidden_size=hidden_dim,
        memory_attention_num_layers=memory_layers,
        memory_attention_feed_forward_hidden_size=memory_feed_forward,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=hidden_dim,
        memory_encoder_output_channels=memory_dim,
        mask_downsampler_embed_dim=hidden_dim,
        memory_fuser_embed_dim=hidden_dim,
        memory_fuser_intermediate_dim=4 * hidden_dim,
    )


def config_of(official: dict[str, torch.Tensor]):
    """The published configuration that fits the tensors.

    Raises:
        CheckpointError: no published SAM 2 size has this width and depth.
    """
    patch = "image_encoder.trunk.patch_embed.proj.weight"
    if patch not in official:
        raise CheckpointError(f"no SAM 2 image encoder among the tensors ({patch} is not there)")
    width = official[patch].shape[0]
    depth = 1 + max(int(m[1]) for name in official if (m := re.match(r"image_encoder\.trunk\.blocks\.(\d+)\.", name)))
    if (width, depth) not in HIERA:
        raise CheckpointError(f"no published SAM 2 is {width} wide and {depth} blocks deep; known are {sorted(HIERA)}")
    version = "2.1" if "no_obj_embed_spatial" in official else "2.0"
    return sam2_video_config(width, **HIERA[width, depth], version=version)


def recognises(path: Path) -> bool:
    """A file with "sam2" in its name and tensors of the official layout (or SAM 2.1's)."""
    path = Path(path)
    return path.is_file() and path.suffix in (".pt", ".pth") and re.search(r"sam2", path.name) is not None


def convert(source: Path, destination: Path) -> ConversionReport:
    """Write an official file as a folder that `Sam2VideoModel.from_pretrained` opens.

    Raises:
        CheckpointError: unreadable, of no published size, or with missing or left-over tensors.
    """
    from transformers import Sam2VideoModel

    official = read_state_dict(source)
    config = config_of(official)
    state = convert_state_dict(official)
    model, report = build(Sam2VideoModel, config, state, "sam2", source)
    report.destination = str(destination)
    with atomic_folder(destination) as folder:
        save_whole(model, folder)
    return report
