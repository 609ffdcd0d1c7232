"""Low-rank adapters on a language model (LoRA, arXiv 2106.09685), by peft."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn


def add_lora(language_model: nn.Module, options: dict) -> None:
    """Freeze a language model and put adapters on its linear layers, in place.

    Args:
        options: arguments of peft's `LoraConfig`; rank 16, alpha 32 and all linear layers where it says nothing.
    """
    options = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"} | dict(options)
    language_model.requires_grad_(False)
    if options["target_modules"] == "all-linear":
        names = {name.split(".")[-1] for name, m in language_model.named_modules() if isinstance(m, nn.Linear)}
        options["target_modules"] = sorted(names)
    inject_adapter_in_model(LoraConfig(**options), language_model)


def merge_lora(model: nn.Module) -> None:
    """Add every adapter to the weight it stands on and take it out, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
