"""Low-rank adapters on a language model (LoRA, arXiv 2106.09685; on a quantised one QLoRA, 2305.14314), by peft.

Every option that is taken gives the same logits before merging, after it, and after export and load; options for which
that cannot hold are refused by name before training starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import re

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

#: Four-bit formats of bitsandbytes.
QUANTIZED = ("nf4", "fp4")
#: Ways to draw the first weights that need neither data nor another checkpoint.
INITIALISATIONS = (True, False, "gaussian", "olora", "pissa", "orthogonal")
#: Options of peft's `LoraConfig` that are refused where they are set -> why, and what to do instead.
REFUSED = {
    "auto_mapping": "peft fills it itself",
    "base_model_name_or_path": "adapters are merged on export, so no base is looked up",
    "revision": "adapters are merged on export, so no base is looked up",
    "inference_mode": "adapters of a training have to learn; leave it out",
    "megatron_config": "the layers are torch's, not Megatron's",
    "layer_replication": "it changes the number of layers, which the exported configuration does not know",
    "loftq_config": "it needs a quantised copy; use quantize='nf4'",
    "eva_config": "it draws first weights from data; use init_lora_weights=True or 'pissa'",
    "corda_config": "it draws first weights from data; use init_lora_weights=True or 'pissa'",
    "lora_ga_config": "it draws first weights from data; use init_lora_weights=True or 'pissa'",
    "velora_config": "its adapters cannot be merged into plain weights",
    "alora_invocation_tokens": "adapters that are active after certain tokens cannot be merged into weights",
    "use_qalora": "it is for weights in GPTQ's format; use quantize='nf4'",
    "monteclora_config": "its adapters are random at every pass and cannot be merged into weights",
    "target_parameters": "give modules with target_modules",
    "use_bdlora": "its adapters are split over ranks; every strategy here keeps them whole",
    "arrow_config": "a router between adapters cannot be merged into weights",
    "kasa_config": "it changes the base weights, which a checkpoint of the adapters does not hold",
    "ensure_weight_tying": "the head lies outside the language model that gets adapters; task.trainable trains it",
}


def add_lora(language_model: nn.Module, options: dict) -> None:
    """Freeze a language model and put adapters on its linear layers, in place.

    Args:
        options: arguments of peft's `LoraConfig`; rank 16, alpha 32 and all linear layers where it says nothing. And
            `quantize`: "nf4" or "fp4" keeps the frozen weights of these layers in four bits (QLoRA).

    Raises:
        ImportError: `quantize` without bitsandbytes.
        ValueError: an unknown option or format, an option whose adapters cannot be merged into the weights
            (`REFUSED`), or a name of a module that the model does not have; the option is named.
    """
    options = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"} | dict(options)
    quantize = options.pop("quantize", None)
    _check_options(options, quantize)
    if options["target_modules"] == "all-linear":
        # A router that is a linear layer with more in its forward pass gives no plain tensor that could be added to.
        plain = [n for n, m in language_model.named_modules() if getattr(type(m), "forward", 0) is nn.Linear.forward]
        names = {name.split(".")[-1] for name in plain}
        options["target_modules"] = sorted(names - set(options.get("modules_to_save") or ()))
    for name in ("target_modules", "modules_to_save"):
        _check_modules(language_model, name, options.get(name))
    _check_tokens(language_model, options.get("trainable_token_indices"))
    config = LoraConfig(**options)
    if options.get("lora_bias"):
        _check_bias(language_model, config.target_modules)
    language_model.requires_grad_(False)
    if quantize is not None:
        _quantize(language_model, tuple(config.target_modules), quantize)
    try:
        inject_adapter_in_model(config, language_model)
    except (AttributeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"lora {options}: these options do not go together ({error})") from error


def _check_options(options: dict, quantize) -> None:
    known = {field.name: field for field in dataclasses.fields(LoraConfig)}
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"lora has no option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        if name in REFUSED and value:
            raise ValueError(f"lora {name}={value!r} is not supported: {REFUSED[name]}")
    first = options.get("init_lora_weights", True)
    if first not in INITIALISATIONS:
        choices = ", ".join(map(repr, INITIALISATIONS))
        raise ValueError(f"lora init_lora_weights={first!r} is not supported; choose one of: {choices}")
    for name in ("use_dora", "lora_bias", "modules_to_save"):
        if quantize is not None and options.get(name):
            raise ValueError(f"lora {name} and quantize do not go together; leave one of them out")
    if (
        quantize is not None
        and isinstance(options["target_modules"], str)
        and options["target_modules"] != "all-linear"
    ):
        raise ValueError("lora quantize needs target_modules as a list of names")


def _check_modules(language_model: nn.Module, option: str, wanted) -> None:
    """Raises ValueError for names that no module has: peft passes over them without a word."""
    names = [name for name, _ in language_model.named_modules() if name]
    if isinstance(wanted, str):
        missing = [] if any(re.fullmatch(wanted, name) for name in names) else [wanted]
    else:
        missing = [w for w in wanted or () if not any(name == w or name.endswith(f".{w}") for name in names)]
    if missing:
        last = sorted({name.split(".")[-1] for name in names if not name.split(".")[-1].isdigit()})
        outside = "; the head lies outside: name it in task.learn instead" if "lm_head" in missing else ""
        raise ValueError(f"lora {option}: no module is called {missing[0]!r}{outside}. Known are {', '.join(last)}")


def _check_tokens(language_model: nn.Module, wanted) -> None:
    if not wanted:
        return
    tables = wanted if isinstance(wanted, dict) else {"embed_tokens": wanted}
    for name, indices in tables.items():
        _check_modules(language_model, "trainable_token_indices", [name])
        for path, module in language_model.named_modules():
            if path == name or path.endswith(f".{name}"):
                rows = len(module.weight)
                wrong = [index for index in indices if not 0 <= index < rows]
                if wrong:
                    raise ValueError(f"lora trainable_token_indices: {name} has {rows} rows, there is no {wrong[0]}")


def _check_bias(language_model: nn.Module, targets) -> None:
    for name, layer in language_model.named_modules():
        matched = re.fullmatch(targets, name) if isinstance(targets, str) else name.split(".")[-1] in targets
        if matched and getattr(layer, "bias", None) is None:
            raise ValueError(
                f"lora lora_bias: {name} has no bias that one could be merged into; name in target_modules only layers "
                "with a bias"
            )


def _quantize(language_model: nn.Module, targets: tuple[str, ...], kind: str) -> None:
    if kind not in QUANTIZED:
        raise ValueError(f"lora quantize={kind!r} is not known; choose one of: {', '.join(QUANTIZED)}")
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            f"lora quantize={kind!r} needs bitsandbytes: `pip install unimed[quant]`; without `quantize` the frozen "
            "weights keep their precision (plain LoRA)"
        ) from error
    for name, layer in list(language_model.named_modules()):
        if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets:
            quantized = bitsandbytes.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=layer.weight.dtype,
                quant_type=kind,
            )
            quantized.load_state_dict(layer.state_dict())
            quantized.requires_grad_(False)
            # Moving to a device is what quantises; on the CPU it is done at once.
            language_model.set_submodule(name, quantized.to(layer.weight.device))
    language_model.is_loaded_in_4bit = True  # how peft knows which adapter fits


#: What stands in the names of parameters as long as an adapter is there.
_TRACES = ("lora_", ".base_layer.", ".original_module.", ".modules_to_save.", ".token_adapter.", "trainable_tokens_")


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add every adapter to the weight it stands on and take it out, in place. Four-bit weights become numbers again.

    Trained copies (`modules_to_save`) and trained rows (`trainable_token_indices`) take the place of what they were
    made from. Where a weight was tied to another outside the adapters (embeddings and head), the two part and the
    configurations say so, because the other one was not trained.

    Raises:
        RuntimeError: something of an adapter is left; nothing must be exported then.
    """
    _untie(model)
    done: list[str] = []
    for name, layer in list(model.named_modules()):
        if any(name.startswith(f"{inside}.") for inside in done):
            continue  # parts of an adapter that is gone
        if isinstance(layer, AuxiliaryTrainingWrapper):
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        elif isinstance(layer, BaseTunerLayer):
            plain = layer.get_base_layer()
            if getattr(getattr(plain, "weight", None), "quant_state", None) is not None:
                plain = _restored(plain)
                for adapter in layer.active_adapters:
                    plain.weight += layer.get_delta_weight(adapter).to(plain.weight)
            else:
                layer.merge()
                plain = layer.get_base_layer()
        else:
            continue
        model.set_submodule(name, plain)
        done.append(name)
    for module in model.modules():
        module.__dict__.pop("peft_config", None)
    if left := [name for name in model.state_dict() if any(trace in f".{name}" for trace in _TRACES)]:
        raise RuntimeError(f"{len(left)} tensors of adapters were not merged, first {left[0]!r}")


def _untie(model: nn.Module) -> None:
    """Give every weight that an adapter stands on memory of its own."""
    adapted = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    inside = {id(p) for layer in adapted for p in layer.parameters()}
    outside = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        for parameter in module._parameters.values()
        if parameter is not None and id(parameter) in inside
        and not any(module is part for layer in adapted for part in layer.modules())
    }  # fmt: skip
    if not outside:
        return
    for layer in adapted:
        for part in layer.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and id(parameter) in outside:
                    part._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=parameter.requires_grad)
    for module in model.modules():
        if (config := getattr(module, "config", None)) is not None and hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = False
        if hasattr(module, "all_tied_weights_keys"):
            tied = module.all_tied_weights_keys
            own = dict(module.named_parameters(remove_duplicate=False))
            module.all_tied_weights_keys = {
                target: source for target, source in tied.items() if own.get(target) is own.get(source)
            }


def _restored(layer: nn.Module) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=weight.dtype)
    linear.weight.copy_(weight)
    if layer.bias is not None:
        linear.bias.copy_(layer.bias)
    return linear.to(weight.device)
