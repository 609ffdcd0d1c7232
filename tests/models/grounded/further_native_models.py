"""Further families of image-text models with a few thousand random weights; importing this adds them to `EXAMPLES`."""

from native_models import (
    CLIP,
    EXAMPLES,
    EXPERTS,
    GLM_IDS,
    LINEAR,
    MROPE,
    NATIVE_SIZE,
    QWEN,
    QWEN_IDS,
    SIGLIP,
    TEXT,
    Example,
    square,
)

#: Keys and values of low rank, as DeepSeek 2 and 3 have them.
LATENT = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, head_dim=8,
              num_key_value_heads=2)  # fmt: skip
ROUTED = dict(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1,
              moe_intermediate_size=16)  # fmt: skip
SPARSE = dict(index_topk=2048, index_head_dim=16, index_n_heads=2)
PIXTRAL = dict(model_type="pixtral", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
               head_dim=8, image_size=56, patch_size=14)  # fmt: skip
SAM = dict(hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16,
           window_size=2, global_attn_indexes=[0], mlp_dim=16)  # fmt: skip
AUDIO = dict(encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16, output_dim=32,
             num_mel_bins=16)  # fmt: skip
SPARK = dict(patch_size=14, pos_emb_height=4, pos_emb_width=4, num_attention_heads=2, num_hidden_layers=2,
             hidden_size=16, intermediate_size=16, max_position_embeddings=16)  # fmt: skip

FURTHER = {
    "qwen4_exp": Example(
        TEXT | MROPE | LINEAR | EXPERTS
        | dict(layer_types=["linear_attention", "indexed_attention"], shared_expert_intermediate_size=16, hc_count=2,
               hc_lowrank=8, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=2048,
               indexer_compress_ratio=4),
        QWEN | dict(deepstack_visual_indexes=[0], num_position_embeddings=16), QWEN_IDS, NATIVE_SIZE,
    ),
    "cosmos3_omni": Example(
        TEXT | MROPE, QWEN | dict(deepstack_visual_indexes=[0], num_position_embeddings=16), QWEN_IDS, NATIVE_SIZE,
        processor_class="Qwen3VLProcessor", video_processor="Qwen3VLVideoProcessor",
    ),
    "cosmos3_edge": Example(
        TEXT | dict(rope_parameters=MROPE["rope_parameters"]),
        SIGLIP | dict(model_type="cosmos3_edge_vision", patch_size=14, num_patches=16),
        QWEN_IDS | dict(projector_hidden_size=32), NATIVE_SIZE | dict(patch_size=14),
    ),
    "qwen2_5_omni_thinker": Example(
        TEXT | MROPE, QWEN | dict(fullatt_block_indexes=[1], window_size=56),
        dict(image_token_index="<image>", video_token_index="<video>", audio_token_index="<audio>",
             audio_start_token_id="<boa>", vision_start_token_id="<vision>", audio_end_token_id="<eoa>",
             audio_config=AUDIO), NATIVE_SIZE,
        image_processor="Qwen2VLImageProcessor", video_processor="Qwen2VLVideoProcessor",
        feature_extractor="WhisperFeatureExtractor", processor_class="Qwen2_5OmniProcessor",
    ),
    "qwen3_omni_moe_thinker": Example(
        TEXT | MROPE | EXPERTS, QWEN | dict(deepstack_visual_indexes=[0], num_position_embeddings=16),
        dict(image_token_id="<image>", video_token_id="<video>", audio_token_id="<audio>",
             audio_start_token_id="<boa>", vision_start_token_id="<vision>",
             audio_config=AUDIO | dict(downsample_hidden_size=16)), NATIVE_SIZE,
        image_processor="Qwen2VLImageProcessor", video_processor="Qwen2VLVideoProcessor",
        feature_extractor="WhisperFeatureExtractor", processor_class="Qwen3OmniMoeProcessor",
    ),
    "pp_chart2table": Example(
        TEXT | dict(model_type="qwen2"),
        SAM | dict(image_size=256, patch_size=4, global_attn_indexes=[], window_size=4),
        dict(image_token_index="<imgpad>", image_seq_length=256), square(256),
    ),
    "kimi_k25": Example(
        TEXT | LATENT | ROUTED | dict(model_type="deepseek_v3", first_k_dense_replace=1, num_nextn_predict_layers=0),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14,
             pos_emb_height=4, pos_emb_width=4), QWEN_IDS | dict(projection_hidden_size=16),
        dict(size=dict(max_height=4, max_width=4), max_patches=16),
    ),
    "granite4_vision": Example(
        TEXT, SIGLIP | dict(hidden_size=64, num_hidden_layers=2),
        dict(image_token_index="<image>", spatial_target_layers=[0, 1, 0, 1],
             image_grid_pinpoints=[[28, 56], [56, 28]], downsample_rate="1/2",
             deepstack_layer_map=[[-1, 0]], image_seq_length=1, vision_feature_select_strategy="full",
             vision_feature_layer=-1,
             qformer_config=dict(model_type="blip_2_qformer", hidden_size=16, num_hidden_layers=1,
                                 num_attention_heads=2, intermediate_size=16, encoder_hidden_size=16,
                                 cross_attention_frequency=1)),
        dict(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28),
             image_grid_pinpoints=[[28, 56], [56, 28]]),
        dict(patch_size=14, vision_feature_select_strategy="full", num_additional_image_tokens=0,
             downsample_rate="1/2"),
    ),
    "minimax_m3_vl": Example(
        TEXT | dict(num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=32,
                    shared_intermediate_size=16, rotary_dim=8, index_n_heads=1, index_head_dim=16, index_block_size=16,
                    mlp_layer_types=["dense", "sparse"]),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56,
             patch_size=14), dict(image_token_index="]<]image[>[", video_token_index="]<]video[>[",
                                  projector_hidden_size=32), NATIVE_SIZE,
    ),
    "mistral_large4": Example(
        TEXT | LATENT | ROUTED | SPARSE | dict(first_k_dense_replace=1), PIXTRAL,
        dict(image_token_index="[IMG]", spatial_merge_size=2),
        dict(size=dict(longest_edge=56), patch_size=dict(height=28, width=28)),
        dict(patch_size=14, spatial_merge_size=2),
    ),
    "glm5_next": Example(
        TEXT | ROUTED | SPARSE
        | dict(kv_lora_rank=16, q_lora_rank=16, v_head_dim=16, qk_nope_head_dim=16, num_key_value_heads=2, head_dim=0,
               linear_head_dim=8, linear_num_heads=2, hc_mult=2, hc_sinkhorn_iters=2, index_kpool=4,
               layer_types=["linear_attention", "indexed_attention"]),
        QWEN | dict(image_size=56, intermediate_size=16, projection_intermediate_size=16), QWEN_IDS | GLM_IDS,
        dict(min_image_tokens=1, max_image_tokens=4),
    ),
    "dots3_note": Example(
        TEXT | LATENT | ROUTED | SPARSE | dict(shared_experts_intermediate_size=16),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14,
             moe_intermediate_size=16, num_local_experts=2, num_experts_per_tok=1, adapter_in_dim=16,
             adapter_out_dim=32, mlp_layer_types=["dense"]),
        dict(image_token_id="<|imgpad|>", video_token_id="<|video_pad|>", audio_token_id="<|audio_comp_pad|>",
             audio_config=dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                               feature_size=16, downsample_hidden_size=8, adapter_input_size=16, adapter_out_dim=32)),
        NATIVE_SIZE | dict(temporal_patch_size=1),
    ),
    "muse_glimmer": Example(
        TEXT, SPARK, dict(image_token_id="<|patch|>", video_token_id="<|video|>", out_hidden_size=64,
                          projector_hidden_size=32), dict(max_image_tokens=4),
    ),
    "muse_spark": Example(
        TEXT | dict(moe_intermediate_size=16, num_local_experts=4, num_experts_per_tok=2, moe_hidden_size=16), SPARK,
        dict(image_token_id="<image>", video_token_id="<video>", audio_token_id="<audio>", out_hidden_size=64,
             projector_hidden_size=32,
             audio_config=dict(patch_sizes=(16, 6, 5, 4), hidden_sizes=(8, 8, 8, 8), depths=(1, 1, 1, 1),
                               out_hidden_size=32)), dict(max_image_tokens=4),
    ),
    "inkling2": Example(
        TEXT | ROUTED | dict(unpadded_vocab_size=1, swa_num_attention_heads=2, swa_num_key_value_heads=1,
                             swa_head_dim=16, d_rel=4, rel_extent=64),
        dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14, posemb_grid_size=4,
             projection_hidden_dim=16, text_hidden_size=32), dict(image_token_id="<image>"), square(28),
    ),
    "inkling_mm_model": Example(
        TEXT | ROUTED | dict(swa_num_attention_heads=2, swa_num_key_value_heads=1, swa_head_dim=16, d_rel=4,
                             rel_extent=64, logits_mup_width_multiplier=1.0,
                             mlp_layer_types=["dense", "sparse"]),
        dict(text_hidden_size=32, patch_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
        dict(image_token_id="<image>", audio_token_id="<audio>", image_bos_token_id="<img>", audio_bos_token_id="<boa>",
             audio_config=dict(n_mel_bins=16, mel_vocab_size=16, text_hidden_size=32)), {},
        dict(image_bos_token="<img>", audio_bos_token="<boa>"),
    ),
    "step3p7": Example(
        TEXT | ROUTED | dict(share_expert_dim=16, sliding_window=64,
                             layer_types=["sliding_attention", "full_attention"]),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56,
             patch_size=14, mlp_ratio=1.0, max_position_embeddings=16), dict(image_token_id="<im_patch>"),
        square(56) | dict(patch_size=56, max_image_size=56),
    ),
    "minicpm_ocr": Example(
        TEXT | LINEAR | dict(layer_types=["linear_attention", "full_attention"]),
        dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=112,
             patch_size=14, insert_layer_id=0),
        dict(insert_layer_id=0, image_token_id="<image>", video_token_id="<video>"),
        dict(patch_size=14, scale_resolution=56, max_slice_nums=2),
    ),
    "video_llava": Example(
        TEXT | dict(model_type="llama"), CLIP,
        dict(image_token_index="<image>", video_token_index="<video>", image_seq_length=4),
        dict(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28)), dict(patch_size=14),
    ),
    "deepseek_vl_hybrid": Example(
        TEXT | dict(model_type="llama"), SIGLIP,
        dict(image_token_id="<image>", high_res_vision_config=SAM | dict(model_type="sam_vision_model")),
        square(28) | dict(min_size=4, high_res_size=dict(height=64, width=64)), dict(num_image_tokens=4),
    ),
    "deepseek_ocr2": Example(
        TEXT | ROUTED | dict(num_key_value_heads=2, mlp_layer_types=["dense", "sparse"]),
        dict(sam_config=SAM | dict(image_size=768, global_attn_indexes=[], downsample_channels=[16, 16]),
             encoder_config=TEXT | dict(num_key_value_heads=2, hidden_size=16, num_hidden_layers=1)),
        dict(image_token_id="<image>"), square(768) | dict(crop_to_patches=False),
    ),
    "unlimited_ocr": Example(
        TEXT | ROUTED | dict(num_key_value_heads=2),
        dict(sam_config=SAM | dict(downsample_channels=[16, 16]),
             encoder_config=dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 image_size=28, patch_size=14)),
        dict(image_token_id="<image>"), square(64) | dict(tile_size=64, crop_to_patches=False),
    ),
    "granite_docling": Example(
        TEXT, dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=64,
                   patch_size=16, out_hidden_size=32, scale_factor=4, use_fine_route=False),
        dict(image_token_id="<image>"), square(64) | dict(crop_to_patches=False), dict(image_seq_len=1),
    ),
}  # fmt: skip
EXAMPLES.update(FURTHER)
