"""What UniBiomed and Sa2VA save while they train: only the trained tensors, the language model as LoRA."""

from __future__ import annotations

import re

import torch

from unimed.models.checkpoints.reading import CheckpointError, ConversionReport

_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight$")


def published_name(name: str) -> str:
    """Name of a tensor in a training file -> its name in a published folder (LoRA suffixes stay)."""
    name = name.removeprefix("mllm.model.").replace("base_model.model.", "", 1)
    name = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
    return re.sub(r"(fuser\.layers\.\d+)\.gamma$", r"\1.g_weight", name)


def merge_training(
    trained: dict[str, torch.Tensor], base: dict[str, torch.Tensor], scale: float, source
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Put trained tensors onto those they started from: W + scale * B @ A for adapters, the tensor itself otherwise.

    Args:
        trained: as saved, names of the training run.
        base: published names; embeddings and head may have fewer rows than the trained ones.
        scale: lora_alpha / r of the run.

    Returns:
        all tensors under published names, and notes for the report.

    Raises:
        CheckpointError: a trained tensor has no place in the base, an adapter is half there or does not fit; named.
    """
    merged = {published_name(name): tensor for name, tensor in base.items()}
    report = ConversionReport("unibiomed", str(source), "")
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    replaced = 0
    for name, tensor in trained.items():
        target = published_name(name)
        if found := _LORA.match(target):
            adapters.setdefault(found[1], {})[found[2]] = tensor
        elif ".original_module." in target:
            continue  # peft keeps the untrained weight beside the trained one
        elif target in merged or target.startswith("text_hidden_fcs."):
            merged[target] = tensor
            replaced += 1
        else:
            report.unexpected.append(name)
    for target, pair in adapters.items():
        weight = f"{target}.weight"
        if weight not in merged:
            report.unexpected.append(f"{target}.lora_A (the base has no {weight})")
        elif len(pair) < 2:
            report.missing.append(f"{target}.lora_{'B' if 'A' in pair else 'A'}")
        elif merged[weight].shape != (len(pair["B"]), pair["A"].shape[1]):
            shape = (len(pair["B"]), pair["A"].shape[1])
            report.shapes.append(f"{target}.lora_B @ lora_A: {shape} instead of {tuple(merged[weight].shape)}")
        else:
            merged[weight] = merged[weight].float() + scale * (pair["B"].float() @ pair["A"].float())
    report.check()
    if not any(name.startswith("text_hidden_fcs.") for name in merged):
        raise CheckpointError(f"{source}: no text_hidden_fcs.*, the projection of [SEG]; the file is not whole")
    return merged, [f"{replaced} trained tensors and {len(adapters)} adapters (scale {scale:g}) put onto the base"]
