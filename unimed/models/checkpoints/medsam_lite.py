"""LiteMedSAM (`lite_medsam.pth`, bowang-lab, Apache-2.0) to the names of `MedSamLiteMaskHead`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from unimed.models.backbones.tiny_vit import rename_encoder
from unimed.models.checkpoints.reading import ConversionReport, check_names, read_state_dict
from unimed.models.weights import fill

#: Part of the head that the published file does not hold: the decoder for language vectors.
UNTRAINED = ("text_decoder.",)
_DOWNSCALING = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
_UPSCALING = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
_MLP = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}


def rename(name: str) -> str:
    """Official name -> name in `MedSamLiteMaskHead`; decoder and prompts are those of transformers' SAM."""
    if name.startswith("image_encoder."):
        inner = name.removeprefix("image_encoder.")
        return "encoder." + (inner if inner.startswith("neck.") else rename_encoder(inner))
    name = name.replace(
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.shared_embedding.positional_embedding",
    )
    name = re.sub(r"prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed.", name)
    name = re.sub(
        r"prompt_encoder\.mask_downscaling\.(\d)\.", lambda m: f"prompt_encoder.mask_embed.{_DOWNSCALING[m[1]]}.", name
    )
    name = re.sub(r"transformer\.norm_final_attn\.", "transformer.layer_norm_final_attn.", name)
    name = re.sub(r"(transformer\.layers\.\d+)\.norm([1-4])\.", r"\1.layer_norm\2.", name)
    name = re.sub(r"mask_decoder\.output_upscaling\.([013])\.", lambda m: f"mask_decoder.{_UPSCALING[m[1]]}.", name)
    return re.sub(
        r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.([012])\.",
        lambda m: f"{m[1]}.{_MLP[m[2]]}.",
        name,
    )


def load_into(head, source: Path) -> ConversionReport:
    """Fill a `MedSamLiteMaskHead` from the official file; its decoder for language vectors keeps its own weights.

    Raises:
        CheckpointError: unreadable, or a tensor is missing, left over or of another shape.
    """
    state = {rename(name): tensor for name, tensor in read_state_dict(source).items()}
    report = check_names(head, state, "medsam_lite", source)
    report.missing = [name for name in report.missing if not name.startswith(UNTRAINED)]
    report.check()
    fill(head, state, source, UNTRAINED)
    return report


def recognises(path: Path) -> bool:
    """A file named like the published one."""
    return Path(path).is_file() and re.search(r"lite_?medsam|medsam_?lite", Path(path).name) is not None


def convert(source: Path, destination: Path, image_size: int = 128) -> ConversionReport:
    """Write the official file as safetensors and configuration.

    Args:
        image_size: side the encoder will be used at, 128 or 256.
    """
    from safetensors.torch import save_file

    from unimed.files import atomic_folder
    from unimed.models.heads.medsam_lite import MedSamLiteConfig, MedSamLiteMaskHead

    config = MedSamLiteConfig(image_size=image_size)
    head = MedSamLiteMaskHead(config)
    report = load_into(head, source)
    report.destination = str(destination)
    tensors = {name: t.contiguous() for name, t in head.state_dict().items() if not name.startswith(UNTRAINED)}
    with atomic_folder(destination) as folder:
        save_file(tensors, folder / "model.safetensors")
        config.save_pretrained(folder)
    return report


def load_converted(head, folder: Path) -> None:
    """Fill a head from a folder written by `convert`."""
    tensors = read_state_dict(Path(folder) / "model.safetensors")
    tensors = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in tensors.items()}
    fill(head, tensors, folder, UNTRAINED)
