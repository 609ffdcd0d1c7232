"""A uMedGround to train: from a LLaVA, CLIP and SAM as published, or a small one from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from unimed.files import read_json_lines
from unimed.models import foreign
from unimed.models.checkpoints import lisa, llava_v1, sam
from unimed.models.checkpoints.reading import CheckpointError, read_state_dict
from unimed.models.grounded.configuration import GroundedConfig
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.heads.box_heads import box_head_options
from unimed.models.starting.grounded_small import train_tokenizer
from unimed.models.weights import fill
from unimed.tokens import BOX_TOKEN, IMAGE_PLACEHOLDER, PHRASE_END, PHRASE_START

#: Parts that no published file holds: they start untrained.
UNTRAINED = ("seg_projection.", "box_head.", "language_box_head.")


def build_from_parts(
    llava: str | Path,
    sam_weights: str | Path,
    clip: str | Path | None = None,
    *,
    box_head: str | dict = "mhp",
    language_box_head: bool = False,
    template: str = "llava_v1",
    style: str = "tags",
    mask_content: int | None = None,
    tile_fit: str = "pad",
    max_prompt_tokens: int = 2048,
    seed: int = 0,
) -> GroundedMLLM:
    """LLaVA v1 or v1.5, CLIP and SAM joined, with new tokens, projection and box head; everything else is pretrained.

    Args:
        llava: LLaVA folder as published (liuhaotian/llava-llama-2-13b-chat-lightning-preview, ...).
        sam_weights: SAM or MedSAM `.pth` of any size.
        clip: folder of openai/clip-vit-large-patch14, where the LLaVA folder lacks CLIP.
        box_head: kind or arguments, see `unimed.models.heads.box_heads`.
        language_box_head: the published second head on the language state (it helps nothing while it is frozen).
        template: "llava_v1" or "llava_llama_2"; the same in training and prediction.
        style: of answers, "tags" or "published".
        mask_content: length the longer side gets in SAM's square; all of it by default, 640 as published.
        tile_fit: "pad" shows CLIP the whole image, "crop" its middle as published.

    Raises:
        CheckpointError: CLIP or another part is missing.
    """
    merged, clip_config = read_state_dict(llava), None
    if clip is not None:
        clip_config = llava_v1.read_config(Path(clip)).get("vision_config")
        merged |= llava_v1.clip_state_dict(Path(clip))
    tokenizer = foreign.tokenizer(llava)
    added = [BOX_TOKEN, "<im_start>", "<im_end>", IMAGE_PLACEHOLDER]
    added += [PHRASE_START, PHRASE_END] if style == "tags" else []
    tokenizer.add_tokens(added, special_tokens=True)
    if "model.embed_tokens.weight" not in merged:
        raise CheckpointError(f"{llava}: no model.embed_tokens.weight; is this a LLaVA folder?")
    state = llava_v1.convert_state_dict(merged, max(0, len(tokenizer) - len(merged["model.embed_tokens.weight"])))
    state = {name: tensor.float() for name, tensor in state.items()}
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        # New tokens start as the mean of the known ones, as LLaVA began its own.
        known = len(merged[name.replace("model.language_model.", "model.")])
        state[name][known:] = state[name][:known].mean(dim=0)
    backbone = llava_v1.backbone_config(llava_v1.read_config(Path(llava)), state, clip_config)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    backbone.image_token_id = image_id
    official = read_state_dict(sam_weights)
    mask_config = sam.config_of(official)
    mask_config.predicts_masks = False
    config = GroundedConfig(
        backbone_config=backbone,
        mask_config=mask_config,
        box_head=box_head_options(box_head),
        box_decoder=True,
        language_box_head=language_box_head,
        presence_head=False,
        image_token_id=image_id,
        seg_token_id=-1,
        box_token_id=tokenizer.convert_tokens_to_ids(BOX_TOKEN),
        prompt_state="before",
    )
    torch.manual_seed(seed)
    model = GroundedMLLM(config)
    weights = {f"backbone.vlm.{name}": tensor for name, tensor in state.items()}
    for name, tensor in sam.convert_state_dict(official).items():
        if not name.startswith(sam.MASK_PARTS):
            weights[f"mask_head.sam.{name}"] = tensor.float()
    fill(model, weights, f"{llava}, {sam_weights}", UNTRAINED)
    model.processor = lisa.grounded_processor(
        tokenizer,
        config,
        content=mask_content,
        template=template,
        tile_fit=tile_fit,
        phrase_style="tags" if style == "tags" else "sentence",
        max_prompt_tokens=max_prompt_tokens,
    )
    return model


def texts_of(path: str | Path) -> list[str]:
    """Questions and answers of a file of records, and the words of report grounding."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of records; `tools/prepare_data.py sample` makes the sample set")
    texts = ["Please divide this report into phrases and output bounding boxes. is not visible. key detection find"]
    for _, record in read_json_lines(path):
        texts.append(f"question: {record.get('question', '')} answer: {record.get('answer', '')}")
    return texts


def build_small_umedground(
    texts: Iterable[str] | str | Path,
    *,
    image_size: int = 128,
    sam_dim: int = 64,
    sam_layers: int = 4,
    clip_size: int = 112,
    clip_dim: int = 64,
    hidden_dim: int = 128,
    layers: int = 3,
    heads: int = 4,
    vocabulary: int = 600,
    box_head: str | dict = "rwta",
    style: str = "tags",
    seed: int = 0,
) -> GroundedMLLM:
    """The published architecture with about two million parameters that start from nothing: all of it learns.

    Args:
        texts: questions and answers it will see, or a file of records; the tokenizer is learnt from them.
        image_size: side of SAM's square, a multiple of 8.
        clip_size: side of CLIP's square, a multiple of 14.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SamConfig

    tokenizer = train_tokenizer(texts_of(texts) if isinstance(texts, str | Path) else texts, vocabulary)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    backbone = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=clip_dim, intermediate_size=2 * clip_dim, num_hidden_layers=3, num_attention_heads=4,
            image_size=clip_size, patch_size=14, projection_dim=clip_dim,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=hidden_dim, intermediate_size=3 * hidden_dim,
            num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=1024,
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=image_id,
        image_seq_length=(clip_size // 14) ** 2,
        tie_word_embeddings=False,
    )  # fmt: skip
    mask_config = SamConfig(
        vision_config=dict(
            hidden_size=sam_dim, output_channels=sam_dim, num_hidden_layers=sam_layers, num_attention_heads=4,
            image_size=image_size, patch_size=8, mlp_dim=2 * sam_dim, window_size=8,
            global_attn_indexes=[i for i in range(sam_layers) if i % 2], num_pos_feats=sam_dim // 2,
        ),
        prompt_encoder_config=dict(hidden_size=sam_dim, image_size=image_size, patch_size=8, mask_input_channels=4),
        mask_decoder_config=dict(
            hidden_size=sam_dim, mlp_dim=2 * sam_dim, num_attention_heads=4, iou_head_hidden_dim=32,
            layer_norm_eps=1e-5,
        ),
    )  # fmt: skip
    # transformers draws SAM's encoder with 1e-10, which only a checkpoint can repair.
    mask_config.vision_config.initializer_range = 0.02
    mask_config.predicts_masks = False
    torch.manual_seed(seed)
    config = GroundedConfig(
        backbone_config=backbone,
        mask_config=mask_config,
        box_head=box_head_options(box_head),
        box_decoder=True,
        presence_head=False,
        image_token_id=image_id,
        seg_token_id=-1,
        box_token_id=tokenizer.convert_tokens_to_ids(BOX_TOKEN),
        prompt_state="before",
    )
    model = GroundedMLLM(config)
    model.processor = lisa.grounded_processor(
        tokenizer,
        config,
        image_start="",
        image_end="",
        template="question_answer",
        system="",
        bos=False,
        separate_tokens=False,
        tile_fit="pad",
        phrase_style="tags" if style == "tags" else "sentence",
        max_prompt_tokens=900,
    )
    return model
