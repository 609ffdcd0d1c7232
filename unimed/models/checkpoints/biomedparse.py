"""BiomedParse v2 (`biomedparse_v2.ckpt`, Apache-2.0) to the names of `BoltzFormerModel`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, read_state_dict

_PREDICTOR = "sem_seg_head.predictor."
_TEXT = _PREDICTOR + "language_encoder."
_BACKBONE = (
    (r"^backbone\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^backbone\.patch_embed\.norm\.", "backbone.embeddings.norm."),
    (r"^backbone\.norm(\d)\.", r"backbone.norms.\1."),
    (r"^backbone\.layers\.(\d+)\.downsample\.proj\.", r"backbone.stages.\1.downsample.projection."),
    (r"^backbone\.layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.stages.\1.layers.\2."),
    (r"^backbone\.layers\.(\d+)\.", r"backbone.stages.\1."),
    (r"\.modulation\.f\.", ".modulation.projection_in."),
    (r"\.modulation\.h\.", ".modulation.projection_context."),
    (r"\.modulation\.proj\.", ".modulation.projection_out."),
)
_TOWER = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))


def rename(state: dict[str, torch.Tensor], tower: str = "text.tower.") -> dict[str, torch.Tensor]:
    """Published names and tensors -> those of `BoltzFormerModel`; packed text projections are split in three."""
    result = {}
    for name, tensor in state.items():
        if name.startswith("backbone."):
            for pattern, replacement in _BACKBONE:
                name = re.sub(pattern, replacement, name)
            result[name] = tensor
        elif name.startswith("sem_seg_head.pixel_decoder."):
            name = name.removeprefix("sem_seg_head.").replace("transformer.encoder.layers.", "encoder.")
            result[name] = tensor
        elif name.startswith(_TEXT + "encoder_transformer."):
            inner = name.removeprefix(_TEXT + "encoder_transformer.")
            result.update(_rename_tower(tower, inner, tensor))
        elif name.startswith(_TEXT):
            result["text." + name.removeprefix(_TEXT)] = tensor
        elif name.startswith(_PREDICTOR):
            result["decoder." + name.removeprefix(_PREDICTOR)] = tensor
        else:
            result[name] = tensor
    return result


def _rename_tower(tower: str, inner: str, tensor) -> dict[str, torch.Tensor]:
    if inner in _TOWER:
        return {tower + _TOWER[inner]: tensor}
    match = re.fullmatch(r"resblocks\.(\d+)\.(.+)", inner)
    if match is None:
        return {tower + inner: tensor}
    place, rest = f"{tower}encoder.layers.{match[1]}.", match[2]
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {
            f"{place}self_attn.{part}_proj.{kind}": piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)
        }
    for old, new in _BLOCK:
        rest = re.sub(rf"^{re.escape(old)}\.", new + ".", rest)
    return {place + re.sub(r"^attn\.", "self_attn.", rest): tensor}


def load_into(model, state: dict[str, torch.Tensor], source: str = "") -> ConversionReport:
    """Fill a `BoltzFormerModel` with published tensors, every one accounted for.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    report = ConversionReport(layout="biomedparse", source=str(source), destination="")
    plain = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.")
        if name.startswith("loss_function."):
            report.dropped[name] = "weight of the training loss"
        else:
            plain[name] = tensor
    wanted = model.state_dict()
    tower = "text.tower.text_model." if any(k.startswith("text.tower.text_model.") for k in wanted) else "text.tower."
    renamed = rename(plain, tower)
    # transformers keeps the index of positions as a buffer in some versions; it is not learned.
    needed = {name for name in wanted if not name.endswith("position_ids")}
    report.mapped = len(needed & renamed.keys())
    report.missing, report.unexpected = sorted(needed - renamed.keys()), sorted(renamed.keys() - needed)
    report.check()
    for name, tensor in renamed.items():
        if wanted[name].shape != tensor.shape:
            raise CheckpointError(f"{source}: {name} is {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}")
    model.load_state_dict(renamed, strict=False)
    return report


def recognises(path: Path) -> bool:
    """A file named like the published one."""
    path = Path(path)
    return path.is_file() and re.search(r"biomedparse_v2.*\.(ckpt|pt|safetensors)$", path.name) is not None


def convert(source: Path, destination: Path, config=None) -> ConversionReport:
    """Write the published v2 file as a folder for `AutoModel.from_pretrained`.

    Args:
        config: `BoltzFormerConfig`; None: the published sizes.

    Raises:
        CheckpointError: a download pointer instead of weights, or keys or shapes that are not those of the model.
    """
    from unimed.models.boltzformer import BoltzFormerConfig, BoltzFormerModel

    source, destination = Path(source), Path(destination)
    if source.exists() and source.is_file() and source.stat().st_size < 1024:
        raise CheckpointError(f"{source}: {source.stat().st_size} bytes, a pointer or failed download; fetch it again")
    model = BoltzFormerModel(config or BoltzFormerConfig())
    report = load_into(model, read_state_dict(source), str(source))
    model.save_pretrained(destination)
    report.destination = str(destination)
    return report
