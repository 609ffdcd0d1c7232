"""Folders that were saved while Uni-Med was a family of its own (`model_type` "unimed_uni_med"), opened as what it is
now: a `GroundedMLLM` on EVA-ViT. Saving writes the present form."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import AutoConfig, AutoModel, PreTrainedConfig

from unimed.files import read_json
from unimed.models import foreign
from unimed.models.checkpoints.reading import read_state_dict
from unimed.models.checkpoints.uni_med import model_config, processor_of
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.grounded.pieces import PieceTokenizer

PROCESSOR_FILE = "uni_med_processor.json"


class SavedUniMedConfig(PreTrainedConfig):
    """The fields of the former configuration: vision, connector, text_config, sft_type, lora, freeze_vision."""

    model_type = "unimed_uni_med"

    def __init__(self, text_config=None, **fields):
        if text_config is not None and not isinstance(text_config, PreTrainedConfig):
            values = dict(text_config)
            text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.text_config = text_config
        super().__init__(**fields)

    def get_text_config(self, *args, **kwargs):
        return self if self.text_config is None else self.text_config

    def grounded(self):
        """The present configuration."""
        named = {name: getattr(self, name) for name in ("sft_type", "lora", "freeze_vision") if hasattr(self, name)}
        return model_config(getattr(self, "vision", None), getattr(self, "connector", None), self.text_config, **named)


def renamed(name: str) -> str:
    """Former name of a tensor -> its present one."""
    name = re.sub(r"^language_model\.", "backbone.lm.", name)
    return re.sub(r"^(visual_encoder|ln_vision)\.", r"backbone.\1.", name)


class SavedUniMed(GroundedMLLM):
    """Opens a former folder; what comes out is a `GroundedMLLM`."""

    config_class = SavedUniMedConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        folder = Path(pretrained_model_name_or_path)
        config = config or SavedUniMedConfig.from_dict(foreign.clean(foreign.read_json(folder / "config.json")))
        state = {renamed(name): tensor for name, tensor in read_state_dict(folder).items()}
        options = {name: kwargs[name] for name in ("dtype", "attn_implementation") if name in kwargs}
        if options.get("dtype") == "auto":
            options["dtype"] = next(t.dtype for t in state.values() if t.is_floating_point())
        model = GroundedMLLM.from_pretrained(
            None, config=config.grounded(), state_dict=state, called=str(folder), **options
        )
        values = read_json(folder / PROCESSOR_FILE)
        known = ("chat_template", "end_symbol", "max_answer_tokens", "max_prompt_tokens", "compat")
        prompts = {name: values[name] for name in known if name in values}
        model.processor = processor_of(PieceTokenizer.of(folder / "tokenizer.model"), model.config, **prompts)
        return (model, {}) if kwargs.get("output_loading_info") else model


AutoConfig.register("unimed_uni_med", SavedUniMedConfig)
AutoModel.register(SavedUniMedConfig, SavedUniMed)
