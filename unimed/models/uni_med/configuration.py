"""Configuration of Uni-Med."""

from __future__ import annotations

from transformers import PreTrainedConfig

from unimed.models import foreign

#: EVA-CLIP ViT-g/14 without its last block, as Uni-Med, BLIP-2 and MiniGPT-v2 use it.
EVA_VIT_G = {"image_size": 224, "patch_size": 14, "dim": 1408, "depth": 39, "heads": 16, "mlp_hidden": 6144}
#: What Uni-Med trains with.
PUBLISHED_CONNECTOR = {
    "projector_type": "moe_mlp",
    "num_experts": 5,
    "resample_method": "projection",
    "resample_rate": 4,
    "router_method": "router_task_token",
    "router_type": "soft",
    "num_task_tokens": 1,
    "task_token_c": 5632,
}
TUNING = ("lora", "full", "none")


class UniMedConfig(PreTrainedConfig):
    """Everything that shapes a `UniMedModel` (Uni-Med, arXiv 2409.17508).

    Args:
        vision: image_size, patch_size, dim, depth, heads and mlp_hidden of the encoder; EVA-ViT-g by default.
        connector: arguments of `build_connector`.
        text_config: configuration of a causal language model, Llama-2 as published.
        sft_type: "lora" puts adapters on the language model, "full" trains it whole, "none" freezes it.
        lora: arguments of peft's `LoraConfig` where `sft_type` is "lora".
        freeze_vision: whether encoder and `ln_vision` stay as they are.

    Raises:
        ValueError: an unknown `sft_type` or key of `vision`.
    """

    model_type = "unimed_uni_med"

    def __init__(
        self,
        vision: dict | None = None,
        connector: dict | None = None,
        text_config=None,
        sft_type: str = "lora",
        lora: dict | None = None,
        freeze_vision: bool = True,
        **kwargs,
    ):
        unknown = sorted(set(vision or {}) - set(EVA_VIT_G))
        if unknown:
            raise ValueError(f"unknown keys of vision: {unknown}; known are {', '.join(EVA_VIT_G)}")
        if sft_type not in TUNING:
            raise ValueError(f"sft_type {sft_type!r} is not known; choose one of: {', '.join(TUNING)}")
        self.vision = EVA_VIT_G | dict(vision or {})
        self.connector = dict(connector or PUBLISHED_CONNECTOR)
        if text_config is None or isinstance(text_config, PreTrainedConfig):
            self.text_config = text_config
        else:
            self.text_config = foreign.config_from(text_config)
        self.sft_type = sft_type
        self.lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05} if lora is None else dict(lora)
        self.freeze_vision = freeze_vision
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**foreign.clean(kwargs))

    def get_text_config(self, *args, **kwargs):
        return self if self.text_config is None else self.text_config

    def to_dict(self):
        values = super().to_dict()
        values["text_config"] = None if self.text_config is None else self.text_config.to_dict()
        return values
