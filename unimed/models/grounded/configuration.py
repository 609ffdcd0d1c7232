"""Configuration of a grounded multimodal language model."""

from __future__ import annotations

from transformers import PreTrainedConfig

from unimed.models import foreign
from unimed.registry import BACKBONES, DECODERS, registered

TUNING = ("full", "lora", "none")


class GroundedConfig(PreTrainedConfig):
    """Everything that shapes a `GroundedMLLM`; one class for the tiny test model and for the largest.

    Args:
        backbone_config: configuration of a transformers image-text model, or of a causal language model alone; the
            latter takes its image tokens from the encoder of the mask head.
        mask_config: configuration of the mask head, by its `model_type` one of `DECODERS` ("sam", "sam2_video",
            "medsam_lite", "unimed_light", ...); None for a model that writes boxes as text and paints nothing.
        connector: arguments of `build_connector`; None keeps the projector of the backbone.
        box_head: arguments of `build_box_head` such as `{"kind": "point"}`; None builds none.
        box_decoder: whether a [BOX] state prompts the decoder of the mask head first, whose output tokens the box head
            reads (uMedGround); otherwise the box head reads the state itself.
        language_box_head: also read a box off the projected state alone, as uMedGround does while training.
        prompt_state: "token", the state at [SEG] and [BOX], or "before", the state that predicts them (LISA and
            uMedGround).
        presence_head: whether a [SEG] state is also asked if the thing is there at all.
        image_token_id: id whose embedding is replaced by image tokens.
        seg_token_id, box_token_id: ids whose hidden states prompt the heads; -1 where the model has no [SEG].
        language_tuning: "full" trains the language model, "none" freezes it, "lora" puts adapters on it, which stay
            adapters in saved folders.
        lora: arguments of peft's `LoraConfig` where `language_tuning` is "lora".
        native: whether the backbone runs through its own forward pass although there is an adapter that feeds it with
            tiles (InternVL, LLaVA, Qwen2-VL, Qwen2.5-VL); other image-text models always do.
        vision_grid: side of the pooled grid of image tokens where they come from the mask head's encoder.
        vision_standardized: whether these have their channels standardized by a mean and a deviation that stand in the
            weights; `unimed.models.starting.grounded_small.standardize_vision` measures them. Features of an encoder
            that was made for something else may all look alike to a language model that starts from nothing.
    """

    model_type = "unimed_grounded"

    def __init__(
        self,
        backbone_config=None,
        mask_config=None,
        connector: dict | None = None,
        box_head: dict | None = None,
        presence_head: bool = True,
        image_token_id: int = 0,
        seg_token_id: int = 1,
        box_token_id: int | None = None,
        vision_grid: int = 8,
        vision_standardized: bool = False,
        native: bool = False,
        box_decoder: bool = False,
        language_box_head: bool = False,
        prompt_state: str = "token",
        language_tuning: str = "full",
        lora: dict | None = None,
        **kwargs,
    ):
        if language_tuning not in TUNING:
            raise ValueError(f"language_tuning {language_tuning!r} is not known; choose one of: {', '.join(TUNING)}")
        self.language_tuning, self.lora = language_tuning, lora
        if prompt_state not in ("token", "before"):
            raise ValueError(f"prompt_state must be 'token' or 'before', got {prompt_state!r}")
        self.box_decoder, self.language_box_head = box_decoder, language_box_head
        self.prompt_state = prompt_state
        self.backbone_config = as_config(backbone_config)
        self.mask_config = as_config(mask_config)
        self.connector = connector
        self.box_head = box_head
        self.presence_head = presence_head
        self.image_token_id = image_token_id
        self.seg_token_id = seg_token_id
        self.box_token_id = box_token_id
        self.vision_grid, self.native = vision_grid, native
        self.vision_standardized = vision_standardized
        # Tying is the business of the backbone, which does it itself.
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**foreign.clean(kwargs))

    def get_text_config(self, *args, **kwargs):
        return self if self.backbone_config is None else self.backbone_config.get_text_config()

    def to_dict(self):
        values = super().to_dict()
        for name in ("backbone_config", "mask_config"):
            config = getattr(self, name)
            values[name] = None if config is None else config.to_dict()
        return values


def as_config(value) -> PreTrainedConfig | None:
    """A configuration of ours, of transformers or of a plug-in, from itself or from its values with `model_type`."""
    if value is None or isinstance(value, PreTrainedConfig):
        return value
    # Our own types, and those of plug-ins, become known to transformers with what they configure.
    registered(BACKBONES), registered(DECODERS)
    return foreign.config_from(value)
