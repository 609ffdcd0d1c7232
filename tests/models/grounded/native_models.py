"""Image-text models of transformers with a few thousand random weights, and their own processors, made on the spot."""

import functools
from dataclasses import dataclass, field

import transformers
from small_models import TEXTS
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from unimed.models.starting.grounded_small import train_tokenizer

#: How processors call their tokens -> how these are spelled here; `id` makes numbers of them in configurations.
NAMED = {
    "image_token": "<image>", "video_token": "<video>", "boi_token": "<boi>", "eoi_token": "<eoi>",
    "vision_start_token": "<vision>", "vision_end_token": "</vision>", "image_start_token": "<img>",
    "image_end_token": "</img>", "start_image_token": "<img>", "end_image_token": "</img>",
    "context_image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>", "audio_token": "<audio>",
    "boa_token": "<boa>", "eoa_token": "<eoa>", "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "video_start_token": "<vid>", "video_end_token": "</vid>", "img_line_break_token": "<line>",
    "image_thumbnail_token": "<thumbnail>",
}  # fmt: skip
SPELLED = """[IMG] [IMG_BREAK] [IMG_END] <|image|> <|image_start|> <|image_end|> <|tile_x_separator|>
<|tile_y_separator|> <|patch|> <|START_OF_IMG|> <|END_OF_IMG|> <|IMG_PATCH|> <|IMG_LINE_BREAK|> TILE TILE_GLOBAL
<im_start> <im_end> <im_patch> <im_col> <low_res_im_start> <im_low> <row_1_col_1> <row_1_col_2> <row_2_col_1>
<row_2_col_2> <|img_thumbnail|> <|img_row_1_col_1|> <|img_row_1_col_2|> <IMG_CONTEXT>""".split()

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
QWEN_IDS = dict(image_token_id="<image>", video_token_id="<video>", vision_start_token_id="<vision>",
                vision_end_token_id="</vision>")  # fmt: skip
NATIVE_SIZE = dict(size=dict(shortest_edge=28 * 28, longest_edge=56 * 56))
LINEAR = dict(linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
              linear_num_value_heads=2)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)


def square(side):
    return dict(size=dict(height=side, width=side))


@dataclass
class Example:
    """Sizes of a family: `text` and `vision` configurations, other fields (a text is the token whose id is meant), and
    arguments of the image processor and of the processor."""

    text: dict
    vision: dict | None
    fields: dict = field(default_factory=dict)
    image: dict = field(default_factory=dict)
    processor: dict = field(default_factory=dict)
    image_processor: str | None = None
    video_processor: str | None = None
    processor_class: str | None = None


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
}  # fmt: skip


@functools.cache
def _vocabulary():
    learnt = train_tokenizer(TEXTS, 300)
    learnt.add_tokens([*NAMED.values(), *SPELLED, "<s>"], special_tokens=True)
    return learnt.backend_tokenizer.to_str()


def tokenizer():
    """Bytes, the words of the test texts, and every token that a processor here may ask for."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()), pad_token="<|pad|>", eos_token="<|end|>", bos_token="<s>",
        extra_special_tokens=dict(NAMED),
    )  # fmt: skip


def numbered(values, words):
    """Fields with the ids of the tokens that texts mean."""
    return {k: words.convert_tokens_to_ids(v) if isinstance(v, str) and "<" in v else v for k, v in values.items()}


def tiny_processor(name):
    """The processor of a family, by its own classes."""
    example, words = EXAMPLES[name], tokenizer()
    kind = getattr(transformers, example.processor_class or PROCESSOR_MAPPING_NAMES[name])
    parts = dict(tokenizer=words, image_processor=_part(IMAGE_PROCESSOR_MAPPING_NAMES, example.image_processor or name)(
        **example.image))  # fmt: skip
    if "video_processor" in kind.get_attributes():
        parts["video_processor"] = _part(VIDEO_PROCESSOR_MAPPING_NAMES, example.video_processor or name)()
    if "feature_extractor" in kind.get_attributes():
        parts["feature_extractor"] = _part(FEATURE_EXTRACTOR_MAPPING_NAMES, name)()
    return kind(**parts, **example.processor)


def _part(names, name):
    found = names.get(name, name)
    return getattr(transformers, found if isinstance(found, str) else found.get("torchvision") or found["pil"])


def tiny_config(name, words):
    """The configuration of a family for a tokenizer."""
    example = EXAMPLES[name]
    parts = dict(text_config=example.text | {"vocab_size": len(words)})
    if example.vision is not None:
        parts["vision_config"] = example.vision
    return AutoConfig.for_model(name, **parts, **numbered(example.fields, words))
