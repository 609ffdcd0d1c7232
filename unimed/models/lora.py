"""Low-rank adapters on a language model (LoRA, arXiv 2106.09685; on a quantised one QLoRA, 2305.14314), by peft."""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

#: Four-bit formats of bitsandbytes.
QUANTISED = ("nf4", "fp4")


def add_lora(language_model: nn.Module, options: dict) -> None:
    """Freeze a language model and put adapters on its linear layers, in place.

    Args:
        options: arguments of peft's `LoraConfig`; rank 16, alpha 32 and all linear layers where it says nothing. And
            `quantize`: "nf4" or "fp4" keeps the frozen weights of these layers in four bits (QLoRA).

    Raises:
        ImportError: `quantize` without bitsandbytes.
        ValueError: an unknown format.
    """
    options = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"} | dict(options)
    quantize = options.pop("quantize", None)
    language_model.requires_grad_(False)
    if options["target_modules"] == "all-linear":
        names = {name.split(".")[-1] for name, m in language_model.named_modules() if isinstance(m, nn.Linear)}
        options["target_modules"] = sorted(names)
    config = LoraConfig(**options)
    if quantize is not None:
        _quantize(language_model, tuple(config.target_modules), quantize)
    inject_adapter_in_model(config, language_model)


def _quantize(language_model: nn.Module, targets: tuple[str, ...], kind: str) -> None:
    if kind not in QUANTISED:
        raise ValueError(f"lora quantize={kind!r} is not known; choose one of: {', '.join(QUANTISED)}")
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            f"lora quantize={kind!r} needs bitsandbytes: `pip install unimed[quant]`; without `quantize` the frozen "
            "weights keep their precision (plain LoRA)"
        ) from error
    for name, layer in list(language_model.named_modules()):
        if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets:
            quantised = bitsandbytes.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=layer.weight.dtype,
                quant_type=kind,
            )
            quantised.load_state_dict(layer.state_dict())
            quantised.requires_grad_(False)
            # Moving to a device is what quantises; on the CPU it is done at once.
            language_model.set_submodule(name, quantised.to(layer.weight.device))
    language_model.is_loaded_in_4bit = True  # how peft knows which adapter fits


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add every adapter to the weight it stands on and take it out, in place. Four-bit weights become numbers again."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            if getattr(base.weight, "quant_state", None) is not None:
                base = _restored(base)
                for adapter in layer.active_adapters:
                    base.weight += layer.get_delta_weight(adapter).to(base.weight)
            else:
                layer.merge()
            model.set_submodule(name, base)


def _restored(layer: nn.Module) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=weight.dtype)
    linear.weight.copy_(weight)
    if layer.bias is not None:
        linear.bias.copy_(layer.bias)
    return linear.to(weight.device)
