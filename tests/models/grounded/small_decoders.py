"""A small configuration of every mask decoder of the package."""

import torch
from transformers import (
    EdgeTamConfig,
    EdgeTamVisionConfig,
    Sam2Config,
    Sam3TrackerConfig,
    SamConfig,
    SamHQConfig,
)

from unimed.models.boltzformer.prompted import BoltzFormerDecoderConfig
from unimed.models.checkpoints.sam2 import sam2_video_config
from unimed.models.heads.light import LightMaskConfig
from unimed.models.heads.medsam_lite import MedSamLiteConfig
from unimed.models.heads.volumetric import VolumetricMaskConfig


def lively(decoder):
    """Weights that keep the scale of what passes: with those of transformers so small a model answers nothing."""
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
    return decoder


VIT = dict(hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
           mlp_dim=32, window_size=4, global_attn_indexes=[1], num_pos_feats=16)  # fmt: skip
DECODER = dict(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, layer_norm_eps=1e-5)
PROMPT = dict(hidden_size=32, image_size=64, patch_size=8, mask_input_channels=4)


def small_medsam_lite():
    return MedSamLiteConfig(
        image_size=32, embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
        window_sizes=(4, 4, 4, 4), hidden_dim=32, decoder_mlp=32, text_width=16,
    )  # fmt: skip


def small_sam():
    return SamConfig(vision_config=VIT, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER)


def small_sam_hq():
    return SamHQConfig(
        vision_config=VIT, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER | {"vit_dim": VIT["hidden_size"]}
    )


def small_sam2_video():
    return sam2_video_config(
        16, [1, 1, 2, 1], 1, [3], [8, 4, 4, 4], [7, 7], hidden_dim=64, image_size=128, memory_layers=1,
        memory_feed_forward=64, memory_dim=64, decoder_mlp=64, iou_hidden=32,
    )  # fmt: skip


def tracked(side, patch):
    prompt = dict(hidden_size=32, image_size=side, patch_size=patch, mask_input_channels=4)
    decoder = dict(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)
    return dict(prompt_encoder_config=prompt, mask_decoder_config=decoder)


def small_sam2():
    backbone = dict(
        model_type="sam2_hiera_det_model", hidden_size=8, num_attention_heads=1, image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        global_attention_blocks=[3], window_size_per_stage=[8, 4, 4, 2],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = dict(model_type="sam2_vision_model", backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8],
                  backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=32)  # fmt: skip
    return Sam2Config(vision_config=vision, **tracked(64, 16))


def small_sam3_tracker():
    backbone = dict(model_type="sam3_vit_model", hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                    num_attention_heads=2, image_size=56, pretrain_image_size=56, patch_size=14, window_size=2,
                    global_attn_indexes=[1])  # fmt: skip
    vision = dict(model_type="sam3_vision_model", backbone_config=backbone, fpn_hidden_size=32,
                  backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], scale_factors=[4.0, 2.0, 1.0, 0.5])  # fmt: skip
    return Sam3TrackerConfig(vision_config=vision, **tracked(56, 14))


def small_edgetam():
    backbone = dict(model_type="timm_wrapper", architecture="resnet10t", do_pooling=False, num_classes=0,
                    label_names=[],
                    model_args=dict(in_chans=3, features_only=True, out_indices=[1, 2, 3, 4]))  # fmt: skip
    vision = EdgeTamVisionConfig(
        backbone_config=backbone, backbone_channel_list=[512, 256, 128, 64],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=32,
    )  # fmt: skip
    return EdgeTamConfig(vision_config=vision, **tracked(64, 16))


def small_light():
    return LightMaskConfig(image_size=32, width=16, heads=2)


def small_volumetric():
    return VolumetricMaskConfig(image_size=32, widths=(8, 16, 24), prompt_width=16, window=4)


def small_boltzformer():
    return BoltzFormerDecoderConfig.tiny(num_queries=4, edge_queries=0, image_size=64, attention="masked")


DECODER_EXAMPLES = {
    "unimed_volumetric": small_volumetric,
    "unimed_boltzformer_decoder": small_boltzformer,
    "edgetam": small_edgetam,
    "medsam_lite": small_medsam_lite,
    "sam": small_sam,
    "sam2": small_sam2,
    "sam2_video": small_sam2_video,
    "sam3_tracker": small_sam3_tracker,
    "sam_hq": small_sam_hq,
    "unimed_light": small_light,
}
