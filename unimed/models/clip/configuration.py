"""Configuration of a contrastive image-text model."""

from __future__ import annotations

from copy import deepcopy

from transformers import PreTrainedConfig

from unimed.models import foreign

#: What OpenAI's CLIP, UniMed-CLIP and BiomedCLIP normalise images with.
OPENAI_PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
#: Text tower and vision tower of the three published UniMed-CLIP models.
VARIANTS = {
    "unimed_clip_vit_b16": ("ViT-B-16", "base"),
    "unimed_clip_vit_l14_base_text_encoder": ("ViT-L-14-336", "base"),
    "unimed_clip_vit_l14_large_text_encoder": ("ViT-L-14-336", "large"),
}
_VISION = {
    "ViT-B-16": (512, {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}),
    "ViT-L-14-336": (768, {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14}),
}
BIOMED_BERT = "microsoft/BiomedNLP-BiomedBERT-{}-uncased-abstract"
_BERT_SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}


def bert_config(size: str) -> dict:
    """Configuration of BiomedBERT ("base" or "large"), so that a model can be built without the hub."""
    hidden, layers, heads, intermediate = _BERT_SIZES[size]
    return {
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": 30522,
    }


def variant(name: str) -> ClipConfig:
    """Configuration of a published UniMed-CLIP model (arXiv 2412.10372).

    Raises:
        ValueError: unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"no published model is called {name!r}; known are {', '.join(VARIANTS)}")
    vision, text = VARIANTS[name]
    embed_dim, vision_cfg = _VISION[vision]
    bert = BIOMED_BERT.format(text)
    return ClipConfig(
        model_cfg={
            "embed_dim": embed_dim,
            "quick_gelu": True,
            "vision_cfg": dict(vision_cfg),
            "text_cfg": {
                "hf_model_name": bert,
                "hf_tokenizer_name": bert,
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 256,
            },
        },
        text_config=bert_config(text),
    )


class ClipConfig(PreTrainedConfig):
    """Everything that shapes a `ClipModel`.

    Args:
        model_cfg: open_clip's model configuration (`embed_dim`, `vision_cfg`, `text_cfg`, ...).
        preprocess_cfg: open_clip's preprocessing configuration; OpenAI's numbers by default.
        text_config: configuration of the Hugging Face text tower, where `text_cfg` names one, so that building needs
            neither the hub nor a folder.
        tokenizer: name open_clip derives the tokenizer from where `text_cfg` names none ("siglip" in it chooses
            SigLIP's).

    Raises:
        ValueError: `model_cfg` without the three parts, or of a model that is not contrastive alone (CoCa).
    """

    model_type = "unimed_clip"

    def __init__(
        self,
        model_cfg: dict | None = None,
        preprocess_cfg: dict | None = None,
        text_config: dict | None = None,
        tokenizer: str = "",
        **kwargs,
    ):
        self.model_cfg = deepcopy(model_cfg) if model_cfg else None
        if self.model_cfg is not None:
            self.model_cfg, text_config = foreign.towers_configuration(self.model_cfg, text_config)
        if self.model_cfg is not None:
            missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(self.model_cfg)
            if missing:
                raise ValueError(f"model_cfg lacks {', '.join(sorted(missing))}")
            if "multimodal_cfg" in self.model_cfg:
                raise ValueError("model_cfg describes a CoCa model; only contrastive models are built here")
        self.preprocess_cfg = OPENAI_PREPROCESS | dict(preprocess_cfg or {})
        self.text_config = dict(text_config) if text_config else None
        self.tokenizer = tokenizer
        super().__init__(**foreign.clean(kwargs))

    @property
    def image_size(self) -> int | list[int]:
        """Side of the square the vision tower reads, in pixels (or height and width)."""
        return self.preprocess_cfg.get("size") or self.model_cfg["vision_cfg"].get("image_size", 224)

    @property
    def context_length(self) -> int:
        """Most tokens of a text, special tokens counted."""
        return self.model_cfg["text_cfg"].get("context_length", 77)
