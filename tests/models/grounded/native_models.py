"""Image-text models of transformers with a few thousand random weights, and their own processors, made on the spot."""

import functools
from dataclasses import dataclass, field

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

#: How processors call their tokens -> how these are spelled here; `id` makes numbers of them in configurations.
NAMED = {
    "image_token": "<image>", "video_token": "<video>", "boi_token": "<boi>", "eoi_token": "<eoi>",
    "vision_start_token": "<vision>", "vision_end_token": "</vision>", "vision_bos_token": "<vision>",
    "vision_eos_token": "</vision>", "audio_bos_token": "<boa>", "audio_eos_token": "<eoa>",
    "image_start_token": "<img>",
    "image_end_token": "</img>", "start_image_token": "<img>", "end_image_token": "</img>",
    "context_image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>", "audio_token": "<audio>",
    "boa_token": "<boa>", "eoa_token": "<eoa>", "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "video_start_token": "<vid>", "video_end_token": "</vid>", "img_line_break_token": "<line>",
    "image_thumbnail_token": "<thumbnail>", "image_boundary_token": "<boundary>", "image_break_token": "<break>",
}  # fmt: skip
COMPASS = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>", "vision_start_token": "<|VISION_START|>",
           "vision_end_token": "<|VISION_END|>"}  # fmt: skip
SPELLED = (
    """[IMG] [IMG_BREAK] [IMG_END] <|image|> <|image_start|> <|image_end|> <|tile_x_separator|>
<|tile_y_separator|> <|patch|> <|START_OF_IMG|> <|END_OF_IMG|> <|IMG_PATCH|> <|IMG_LINE_BREAK|> <imgpad>
<IMG_ATOM> <IMG_START> <IMG_GRID> <IMG_END> <IMG_COL> <IMG_ROW> <|image_pad|> <|video_pad|> TILE TILE_GLOBAL
<im_start> <im_end> <im_patch> <im_col> <low_res_im_start> <im_low> <row_1_col_1> <row_1_col_2> <row_2_col_1>
<row_2_col_2> <|img_thumbnail|> <|img_row_1_col_1|> <|img_row_1_col_2|> <IMG_CONTEXT> <|imgpad|> <|audio_comp_pad|>
<|video|> ]<]image[>[ ]<]video[>[""".split()
    + ["]<]start of image[>[", "]<]end of image[>["]
)

TEXT = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, max_position_embeddings=2048, pad_token_id=0, bos_token_id=None, eos_token_id=None,
            tie_word_embeddings=False)  # fmt: skip
SIGLIP = dict(model_type="siglip_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=2,
              num_attention_heads=2, image_size=28, patch_size=14)  # fmt: skip
CLIP = SIGLIP | dict(model_type="clip_vision_model", projection_dim=16)
#: Of the Qwen family: frames, rows and columns of patches.
QWEN = dict(depth=2, num_heads=2, hidden_size=16, intermediate_size=16, patch_size=14, spatial_merge_size=2,
            temporal_patch_size=2, out_hidden_size=32)  # fmt: skip
MROPE = dict(rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0})
WHOLE_MROPE = dict(rope_parameters=MROPE["rope_parameters"] | {"partial_rotary_factor": 1.0})
QWEN_IDS = dict(image_token_id="<image>", video_token_id="<video>", vision_start_token_id="<vision>",
                vision_end_token_id="</vision>")  # fmt: skip
GLM_IDS = dict(image_start_token_id="<img>", image_end_token_id="</img>", video_start_token_id="<vid>",
               video_end_token_id="</vid>")  # fmt: skip
NATIVE_SIZE = dict(size=dict(shortest_edge=28 * 28, longest_edge=56 * 56))
LINEAR = dict(linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
              linear_num_value_heads=2)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)


def square(side):
    return dict(size=dict(height=side, width=side))


@dataclass
class Example:
    """Sizes of a family: `text` and `vision` configurations, other fields (a text is the token whose id is meant), and
    arguments of the image processor and of the processor; `tokens` changes `NAMED`."""

    text: dict
    vision: dict | None
    fields: dict = field(default_factory=dict)
    image: dict = field(default_factory=dict)
    processor: dict = field(default_factory=dict)
    image_processor: str | None = None
    video_processor: str | None = None
    feature_extractor: str | None = None
    processor_class: str | None = None
    tokens: dict = field(default_factory=dict)


EXAMPLES = {
    "internvl": Example(
        TEXT | dict(model_type="qwen2"),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=[28, 28]),
        dict(image_token_id="<image>", image_seq_length=1), square(28), dict(image_seq_length=1),
    ),
    "qwen2_vl": Example(
        TEXT | MROPE | dict(model_type="qwen2_vl_text"), QWEN | dict(embed_dim=16, hidden_size=32), QWEN_IDS,
        NATIVE_SIZE,
    ),
    "qwen2_5_vl": Example(
        TEXT | MROPE | dict(model_type="qwen2_5_vl_text"), QWEN | dict(fullatt_block_indexes=[1], window_size=56),
        QWEN_IDS, NATIVE_SIZE,
    ),
    "qwen3_vl": Example(
        TEXT | MROPE, QWEN | dict(deepstack_visual_indexes=[0], num_position_embeddings=16), QWEN_IDS, NATIVE_SIZE
    ),
    "qwen3_vl_moe": Example(
        TEXT | MROPE | EXPERTS | dict(num_local_experts=4),
        QWEN | dict(deepstack_visual_indexes=[0], num_position_embeddings=16), QWEN_IDS, NATIVE_SIZE,
        image_processor="Qwen2VLImageProcessor",
    ),
    "qwen3_5": Example(
        TEXT | MROPE | LINEAR | dict(layer_types=["linear_attention", "full_attention"]),
        QWEN | dict(num_position_embeddings=16), QWEN_IDS, NATIVE_SIZE,
    ),
    "qwen3_5_moe": Example(
        TEXT | MROPE | LINEAR | EXPERTS
        | dict(layer_types=["linear_attention", "full_attention"], shared_expert_intermediate_size=16),
        QWEN | dict(num_position_embeddings=16), QWEN_IDS, NATIVE_SIZE,
    ),
    "gemma3": Example(
        TEXT | dict(layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=16), SIGLIP,
        dict(image_token_index="<image>", boi_token_index="<boi>", eoi_token_index="<eoi>", mm_tokens_per_image=4,
             tie_word_embeddings=False),
        square(28), dict(image_seq_length=4),
    ),
    "paligemma": Example(
        TEXT | dict(model_type="gemma2", layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=16),
        SIGLIP | dict(projection_dim=32),
        dict(image_token_index="<image>", projection_dim=32, hidden_size=32), square(28) | dict(image_seq_length=4),
    ),
    "llava": Example(
        TEXT | dict(model_type="llama"), CLIP, dict(image_token_index="<image>", image_seq_length=4),
        dict(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28)),
        dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1),
    ),
    "llava_next": Example(
        TEXT | dict(model_type="mistral"), CLIP,
        dict(image_token_index="<image>", image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]),
        dict(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28),
             image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]),
        dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1),
    ),
    "llava_onevision": Example(
        TEXT | dict(model_type="qwen2"), SIGLIP | dict(vision_use_head=False),
        dict(image_token_index="<image>", video_token_index="<video>",
             image_grid_pinpoints=[[28, 28], [28, 56], [56, 56]]),
        square(28) | dict(image_grid_pinpoints=[[28, 28], [28, 56], [56, 56]]),
        dict(num_image_tokens=4, vision_feature_select_strategy="full"),
    ),
    "smolvlm": Example(
        TEXT | dict(model_type="llama"), dict(SIGLIP, model_type="smolvlm_vision"),
        dict(image_token_id="<image>", scale_factor=2),
        dict(size=dict(longest_edge=56), max_image_size=dict(longest_edge=28)), dict(image_seq_len=1),
    ),
    "idefics3": Example(
        TEXT | dict(model_type="llama"), dict(SIGLIP, model_type="idefics3_vision"),
        dict(image_token_id="<image>", scale_factor=2),
        dict(size=dict(longest_edge=56), max_image_size=dict(longest_edge=28)), dict(image_seq_len=1),
    ),
    "gemma4": Example(
        TEXT | dict(layer_types=["sliding_attention", "full_attention"], vocab_size_per_layer_input=0,
                    hidden_size_per_layer_input=8, use_bidirectional_attention="vision"),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
             head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=64),
        dict(image_token_id="<image>", boi_token_id="<boi>", eoi_token_id="<eoi>", video_token_id="<video>",
             audio_token_id="<audio>", boa_token_id="<boa>", audio_config=None),
        dict(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70),
    ),
    "gemma4_unified": Example(
        TEXT | dict(layer_types=["sliding_attention", "full_attention"], use_bidirectional_attention="vision"),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
             head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=64),
        dict(image_token_id="<image>", boi_token_id="<boi>", eoi_token_id="<eoi>", video_token_id="<video>",
             audio_token_id="<audio>", boa_token_id="<boa>", audio_config=None),
        dict(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70),
    ),
    "idefics2": Example(
        TEXT | dict(model_type="mistral"), dict(SIGLIP, model_type="idefics2_vision"),
        dict(image_token_id="<image>", perceiver_config=dict(
            hidden_size=32, resampler_n_latents=3, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8,
            num_key_value_heads=1)),
        dict(size=dict(shortest_edge=14, longest_edge=28)), dict(image_seq_len=3),
    ),
    "lfm2_vl": Example(
        TEXT | dict(model_type="lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
                    full_attn_idxs=None),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14,
             num_patches=16),
        dict(image_token_id="<image>", projector_hidden_size=32),
        dict(encoder_patch_size=14, min_image_tokens=1, max_image_tokens=4, max_num_patches=16, tile_size=28,
            min_tiles=1, max_tiles=2,
             do_image_splitting=False),
    ),
    "llama4": Example(
        TEXT | dict(intermediate_size_mlp=32, num_local_experts=2, layer_types=["chunked_attention", "full_attention"],
                    no_rope_layers=[1, 0], moe_layers=[1]),
        dict(hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28,
             patch_size=14, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16),
        dict(image_token_index="<|patch|>", boi_token_index="<boi>", eoi_token_index="<eoi>"),
        square(28) | dict(max_patches=2), dict(patch_size=14, pixel_shuffle_ratio=0.5),
    ),
    "mistral3": Example(
        TEXT | dict(model_type="mistral"),
        dict(model_type="pixtral", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
             head_dim=8, image_size=56, patch_size=14),
        dict(image_token_index="[IMG]", spatial_merge_size=2),
        dict(size=dict(longest_edge=56), patch_size=dict(height=28, width=28)), dict(patch_size=14,
            spatial_merge_size=2),
    ),
    "glm4v": Example(
        TEXT | WHOLE_MROPE,
        QWEN | dict(image_size=56), QWEN_IDS | GLM_IDS, NATIVE_SIZE,
    ),
    "glm46v": Example(
        TEXT | WHOLE_MROPE | dict(model_type="glm4v_text"), QWEN | dict(image_size=56), QWEN_IDS | GLM_IDS, NATIVE_SIZE,
    ),
    "glm4v_moe": Example(
        TEXT | WHOLE_MROPE | dict(num_experts_per_tok=2, n_routed_experts=4, moe_intermediate_size=16,
            first_k_dense_replace=1),
        QWEN | dict(image_size=56), QWEN_IDS | GLM_IDS, NATIVE_SIZE, image_processor="Glm4vImageProcessor",
        video_processor="Glm4vVideoProcessor",
    ),
    "aya_vision": Example(
        TEXT | dict(model_type="cohere2", layer_types=["sliding_attention", "full_attention"]),
        SIGLIP, dict(image_token_index="<|IMG_PATCH|>", downsample_factor=2, alignment_intermediate_size=32),
            square(28),
        dict(patch_size=14, img_size=28, downsample_factor=2),
    ),
    "cohere2_vision": Example(
        TEXT | dict(model_type="cohere2", layer_types=["sliding_attention", "full_attention"]),
        SIGLIP | dict(image_size=56), dict(image_token_id="<image>", downsample_factor=2,
            alignment_intermediate_size=32),
        square(56) | dict(patch_size=2),
    ),
    "janus": Example(
        TEXT | dict(model_type="llama"),
        dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2.0,
             projection_dim=32, depth=2, num_image_tokens=4),
        dict(image_token_id="<image>", vq_config=dict(embed_dim=4, num_embeddings=16, latent_channels=4,
             base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, num_patches=2, projection_dim=32,
             image_token_embed_dim=32)),
        square(28) | dict(min_size=4), dict(num_image_tokens=4),
    ),
    "deepseek_vl": Example(
        TEXT | dict(model_type="llama"), SIGLIP, dict(image_token_id="<image>"), square(28) | dict(min_size=4),
        dict(num_image_tokens=4),
    ),
    "video_llama_3": Example(
        TEXT | dict(model_type="qwen2"),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14),
        dict(image_token_id="<image>", video_token_id="<video>"), NATIVE_SIZE | dict(patch_size=14),
    ),
    "ovis2": Example(
        TEXT | dict(model_type="qwen2"),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
             patch_size=14, vocab_size=32, hidden_stride=1),
        dict(image_token_id="<IMG_ATOM>", hidden_size=32, vocab_size=400, visual_indicator_token_ids=[20, 21, 22, 23,
            24]),
        square(28), dict(image_seq_length=4),
    ),
    "fast_vlm": Example(
        TEXT | dict(model_type="qwen2"),
        dict(model_type="timm_wrapper", architecture="fastvit_mci3", do_pooling=True, global_pool="avg",
             hidden_size=64, num_classes=0, model_args=dict(
                 inference_mode=False, layers=[1, 1, 1, 1], embed_dims=[8, 8, 16, 32], mlp_ratios=[1, 1, 1, 1], )),
        dict(image_token_index="<image>", image_seq_length=4), dict(size=dict(height=64, width=64),
            crop_size=dict(height=64, width=64)),
        dict(patch_size=32, vision_feature_select_strategy="full", num_additional_image_tokens=0),
        image_processor="CLIPImageProcessor", processor_class="LlavaProcessor",
    ),
    "perception_lm": Example(
        TEXT | dict(model_type="llama"),
        dict(model_type="timm_wrapper", architecture="vit_pe_core_large_patch14_336", do_pooling=False, num_classes=0,
             model_args=dict(embed_dim=16, depth=1, num_heads=2, img_size=(28, 28), global_pool="",
                 use_post_transformer_norm=False,
                             init_values=0.1, ref_feat_shape=(2, 2))),
        dict(image_token_id="<image>", video_token_id="<video>", projector_pooling_ratio=1),
        dict(size=dict(height=28, width=28), tile_size=28, max_num_tiles=2), dict(patch_size=14, pooling_ratio=1),
    ),
    "molmo2": Example(
        TEXT | dict(additional_vocab_size=0),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             head_dim=8, image_size=[28, 28], patch_size=14, num_position_embeddings=4),
        dict(image_start_token_id="<im_start>", low_res_image_start_token_id="<low_res_im_start>",
             image_end_token_id="<im_end>", image_patch_id="<im_patch>", image_col_id="<im_col>",
             adapter_config=dict(vision_feature_layer=[-1, -2], hidden_size=16, num_attention_heads=2,
                                 num_key_value_heads=2, head_dim=8, intermediate_size=16, text_hidden_size=32)),
        square(28) | dict(patch_size=14, max_crops=2, overlap_margins=[0, 0]),
    ),
    "minicpmv4_6": Example(
        TEXT | LINEAR | dict(layer_types=["linear_attention", "full_attention"]),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=112,
             patch_size=14, insert_layer_id=0),
        dict(insert_layer_id=0, image_size=112, patch_size=14, image_token_id="<image>", video_token_id="<video>"),
        dict(patch_size=14, scale_resolution=56, max_slice_nums=2),
    ),
    "aria": Example(
        TEXT | dict(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        dict(SIGLIP, model_type="idefics3_vision", image_size=980, patch_size=98),
        dict(image_token_index="<image>", projector_patch_to_query_dict={100: 2}), {}, dict(size_conversion={980: 2}),
    ),
    "got_ocr2": Example(
        TEXT | dict(model_type="qwen2"),
        dict(hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64,
            patch_size=1,
             window_size=4, global_attn_indexes=[], mlp_dim=16),
        dict(image_token_index="<imgpad>", image_seq_length=1), square(64),
    ),
    "exaone4_5": Example(
        TEXT | dict(model_type="exaone4", layer_types=["sliding_attention", "full_attention"],
            sliding_window_pattern=2),
        QWEN | dict(fullatt_block_indexes=[1], window_size=56, num_key_value_heads=2), QWEN_IDS, NATIVE_SIZE,
    ),
    "vipllava": Example(
        TEXT | dict(model_type="llama"), CLIP | dict(num_hidden_layers=2),
        dict(image_token_index="<image>", image_seq_length=4, vision_feature_layers=[-1, -2]),
        dict(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28)),
        dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1),
    ),
    "cohere_compass": Example(
        TEXT | dict(layer_types=["sliding_attention", "full_attention"], rope_parameters=dict.fromkeys(
            ["sliding_attention", "full_attention"], MROPE["rope_parameters"])),
        QWEN | dict(deepstack_visual_indexes=[0], num_position_embeddings=16), {f"{name}_id": token for name,
            token in COMPASS.items()}, NATIVE_SIZE, tokens=COMPASS,
    ),
    "lighton_ocr": Example(
        TEXT | dict(model_type="qwen3"),
        dict(model_type="pixtral", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
             head_dim=8, image_size=56, patch_size=14),
        dict(image_token_id="<image>", spatial_merge_size=2),
        dict(size=dict(longest_edge=56), patch_size=dict(height=28, width=28)), dict(patch_size=14,
            spatial_merge_size=2),
    ),
    "qianfan_ocr": Example(
        TEXT | dict(model_type="qwen3"),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=[28, 28],
             patch_size=[14, 14]),
        dict(image_token_id="<image>", image_seq_length=1), square(28), dict(image_seq_length=1),
    ),
    "paddleocr_vl": Example(
        TEXT | MROPE, dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            image_size=56,
                           patch_size=14, spatial_merge_size=2), QWEN_IDS,
        NATIVE_SIZE,
    ),
    "hyperclovax_vision_v2": Example(
        TEXT | dict(model_type="hyperclovax"), QWEN | dict(fullatt_block_indexes=[1], window_size=56), QWEN_IDS,
            NATIVE_SIZE,
    ),
    "glm_ocr": Example(
        TEXT | WHOLE_MROPE, QWEN | dict(image_size=56), QWEN_IDS | GLM_IDS, NATIVE_SIZE,
        image_processor="Glm46VImageProcessor", video_processor="Glm46VVideoProcessor",
            processor_class="Glm46VProcessor",
    ),
    "llava_next_video": Example(
        TEXT | dict(model_type="llama"), CLIP,
        dict(image_token_index="<image>", video_token_index="<video>", image_grid_pinpoints=[[28, 56], [56, 28], [56,
            56]]),
        dict(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28),
             image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]),
        dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1),
    ),
    "lfm3_vl": Example(
        TEXT | dict(model_type="lfm3", layer_types=["conv", "full_attention"], conv_L_cache=3),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            patch_size=14,
             spatial_merge_size=2, temporal_patch_size=2, layer_types=["conv", "full_attention"]),
        QWEN_IDS | dict(projector_hidden_size=32), NATIVE_SIZE,
    ),
    "minicpmv4_7": Example(
        TEXT | LINEAR | dict(layer_types=["linear_attention", "full_attention"]),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=112,
             patch_size=14, insert_layer_id=0),
        dict(insert_layer_id=0, image_size=112, patch_size=14, image_token_id="<image>", video_token_id="<video>"),
        dict(patch_size=14, scale_resolution=56, max_slice_nums=2),
    ),
}  # fmt: skip
#: A type that is not among the families, for the recipe of docs/extend.md.
OTHERS = {
    "glmga": Example(
        TEXT | WHOLE_MROPE | dict(model_type="glm4v_text"), QWEN | dict(image_size=56), QWEN_IDS | GLM_IDS, NATIVE_SIZE,
        video_processor="Glm46VVideoProcessor", processor_class="Glm46VProcessor",
    ),
}  # fmt: skip


@functools.cache
def _vocabulary():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(["<|pad|>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|end|>", "<s>", *NAMED.values(), *SPELLED, *COMPASS.values()])
    return tokenizer.to_str()


def tokenizer(**tokens):
    """Bytes, and every token that a processor here may ask for."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()), pad_token="<|pad|>", eos_token="<|end|>", bos_token="<s>",
        extra_special_tokens=NAMED | tokens,
    )  # fmt: skip


def numbered(values, words):
    """Fields with the ids of the tokens that texts mean."""
    known = words.get_added_vocab()
    return {k: known.get(v, v) if isinstance(v, str) else v for k, v in values.items()}


def tiny_processor(name):
    """The processor of a family, by its own classes."""
    example = (EXAMPLES | OTHERS)[name]
    words = tokenizer(**example.tokens)
    kind = getattr(transformers, example.processor_class or PROCESSOR_MAPPING_NAMES[name])
    parts = dict(tokenizer=words, image_processor=_part(IMAGE_PROCESSOR_MAPPING_NAMES, example.image_processor or name)(
        **example.image))  # fmt: skip
    if "video_processor" in kind.get_attributes():
        parts["video_processor"] = _part(VIDEO_PROCESSOR_MAPPING_NAMES, example.video_processor or name)()
    if "feature_extractor" in kind.get_attributes():
        parts["feature_extractor"] = _part(FEATURE_EXTRACTOR_MAPPING_NAMES, example.feature_extractor or name)()
    return kind(**parts, **example.processor)


def _part(names, name):
    found = names.get(name, name)
    return getattr(transformers, found if isinstance(found, str) else found.get("torchvision") or found["pil"])


def tiny_config(name, words):
    """The configuration of a family for a tokenizer."""
    example = (EXAMPLES | OTHERS)[name]
    sizes = {key: len(words) for key in ["vocab_size", *example.text] if key.startswith(("vocab_size", "unpadded"))}
    parts = dict(text_config=example.text | sizes)
    if example.vision is not None:
        parts["vision_config"] = example.vision
    return AutoConfig.for_model(name, **parts, **numbered(example.fields, words))
