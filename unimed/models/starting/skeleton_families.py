"""Models without weights of the further families: uMedGround, Uni-Med and UniMed-CLIP on the meta device."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch

from unimed.models import foreign
from unimed.models.checkpoints import lisa, llava_v1
from unimed.models.checkpoints.uni_med import model_config, processor_of
from unimed.models.clip import ClipModel, ClipProcessor, variant
from unimed.models.grounded.configuration import GroundedConfig
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.grounded.pieces import PieceTokenizer
from unimed.models.heads.box_heads import box_head_options
from unimed.models.starting import uni_med
from unimed.models.starting.clip import write_tokenizer
from unimed.models.starting.grounded_small import train_tokenizer
from unimed.tokens import BOX_TOKEN, IMAGE_PLACEHOLDER, PHRASE_END, PHRASE_START

_TEXTS = ["Segment the disc. It is <p> disc </p> [BOX] shown."]


class ShapeError(ValueError):
    """The shape of a part is not known."""


def table_of_shapes() -> dict:
    """Shapes of published parts by name."""
    return json.loads(resources.files("unimed.models").joinpath("manifests/shapes.json").read_text(encoding="utf-8"))


def skeleton_umedground(
    llava: str,
    sam_weights: str,
    clip: str | None = None,
    *,
    box_head: str | Mapping = "mhp",
    language_box_head: bool = False,
    template: str = "llava_v1",
    style: str = "tags",
    mask_content: int | None = None,
    tile_fit: str = "pad",
    max_prompt_tokens: int = 2048,
    **_,
) -> GroundedMLLM:
    """What `umedground.build_from_parts` would build.

    Raises:
        ShapeError: neither a `config.json` of the LLaVA nor a name of the table; no size in the name of SAM's file.
    """
    from transformers import CLIPVisionConfig, LlavaConfig

    tokenizer = train_tokenizer(_TEXTS, 600)
    added = [BOX_TOKEN, "<im_start>", "<im_end>", IMAGE_PLACEHOLDER]
    tokenizer.add_tokens(added + ([PHRASE_START, PHRASE_END] if style == "tags" else []), special_tokens=True)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    text = _language(Path(llava), "llava")
    text.vocab_size += 6
    shapes = table_of_shapes()["clip"]
    published = llava_v1.read_config(Path(llava)) if (Path(llava) / "config.json").is_file() else {}
    tower = "336" if "336" in str(published.get("mm_vision_tower", clip or "")) else "224"
    vision = CLIPVisionConfig(**shapes[tower])
    backbone = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, tie_word_embeddings=False,
        projector_hidden_act="gelu" if published.get("mm_projector_type", "linear") != "linear" else "linear",
        vision_feature_layer=-2, vision_feature_select_strategy="default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )  # fmt: skip
    mask_config = _sam_config(Path(sam_weights))
    config = GroundedConfig(
        backbone_config=backbone, mask_config=mask_config, box_head=box_head_options(box_head), box_decoder=True,
        language_box_head=language_box_head, presence_head=False, image_token_id=image_id, seg_token_id=-1,
        box_token_id=tokenizer.convert_tokens_to_ids(BOX_TOKEN), prompt_state="before",
    )  # fmt: skip
    with torch.device("meta"):
        model = GroundedMLLM(config)
        model.processor = lisa.grounded_processor(
            tokenizer, config, content=mask_content, template=template, tile_fit=tile_fit,
            phrase_style="tags" if style == "tags" else "sentence", max_prompt_tokens=max_prompt_tokens,
        )  # fmt: skip
    return model


def skeleton_uni_med(
    llama: str,
    eva: str | None = None,
    connector: Mapping | None = None,
    sft_type: str = "lora",
    lora: Mapping | None = None,
    vision: Mapping | None = None,
    freeze_vision: bool = True,
    **prompts,
) -> GroundedMLLM:
    """What `checkpoints.uni_med.build_from_parts` would build.

    Raises:
        ShapeError: neither a `config.json` of the language model nor a name of the table.
    """
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05} | dict(lora or {})
    text = _language(Path(llama), "llama")
    with torch.device("meta"):
        config = model_config(vision, connector, text, sft_type, lora, freeze_vision)
        model = GroundedMLLM(config)
    tokenizer = PieceTokenizer.of(uni_med.train_tokenizer(_TEXTS * 50, 400))
    model.processor = processor_of(tokenizer, config, **prompts)
    return model


def skeleton_clip(variant_name: str, sigmoid: bool = False) -> ClipModel:
    """Towers of a published UniMed-CLIP.

    Raises:
        ValueError: an unknown name.
    """
    config = variant(variant_name)
    if sigmoid:
        config.model_cfg.setdefault("init_logit_bias", -10.0)
    with torch.device("meta"):
        model = ClipModel(config)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(_TEXTS, folder)
        model.processor = ClipProcessor(config, folder)
        model.processor.texts(_TEXTS)  # read while the folder is there
    return model


def _language(path: Path, kind: str):
    """`LlamaConfig` of a folder, or of a name of the table."""
    from transformers import LlamaConfig

    if (path / "config.json").is_file():
        if kind == "llama":
            return foreign.config(path)
        read = llava_v1.read_config(path)
        fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                  "num_key_value_heads")  # fmt: skip
        return LlamaConfig(**{name: read[name] for name in fields if name in read}, tie_word_embeddings=False)
    table = table_of_shapes()
    if path.name not in table[kind]:
        known = ", ".join(table[kind])
        raise ShapeError(f"{path}/config.json is not there, and {path.name!r} is not in the table of shapes: {known}")
    return LlamaConfig(**table["text"][table[kind][path.name]] | {"tie_word_embeddings": False})


def _sam_config(path: Path):
    from transformers import SamConfig

    found = re.search(r"vit_?([blh])(?![a-z])", path.name.lower())
    if found is None:
        raise ShapeError(f"{path}: the size of SAM is not in the name; known are vit_b, vit_l and vit_h")
    config = SamConfig(vision_config=table_of_shapes()["sam"][found[1]])
    config.predicts_masks = False
    return config
