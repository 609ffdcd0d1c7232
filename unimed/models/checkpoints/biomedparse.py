"""BiomedParse's `biomedparse_v2.ckpt` and `biomedparse_v1.pt` (Apache-2.0) to the names of `unimed.models.boltzformer`.

Which of the two a file is, and every size, is read off its tensors; only numbers of heads leave no trace in them.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, build, check_names, read_state_dict
from unimed.models.weights import fill

_HEAD, _PREDICTOR = "sem_seg_head.", "sem_seg_head.predictor."
#: Where the text tower lies: v2, then v1.
_TEXTS = (
    (_PREDICTOR + "language_encoder.encoder_transformer.", _PREDICTOR + "language_encoder."),
    (_PREDICTOR + "lang_encoder.lang_encoder.", _PREDICTOR + "lang_encoder."),
)
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
#: Tensors that no mask depends on -> why.
_DROPPED = (
    (r"^loss_function\.|^criterion\.", "weight of a training loss"),
    (r"lang_encoder\.biomed_encoder\.", "BiomedBERT, which v1 carries along and never asks"),
    (r"predictor\.(pn_indicator|mask_sptial_embed|spatial_embed|spatial_featured)\b", "prompts by clicks, not by text"),
    (r"^dilation_kernel$", "thickens strokes of clicks"),
)
_UPSAMPLER = ("output_deconv.", "layer_norm.", "output_conv.", "output_conv2.")
_PIXELS = ("pixel_mean", "pixel_std")


def version_of(state: dict[str, torch.Tensor]) -> int:
    """1 or 2, by the names of the query embeddings.

    Raises:
        CheckpointError: neither.
    """
    for version, name in ((2, "query_feat_.weight"), (1, "query_feat.weight")):
        if _PREDICTOR + name in state:
            return version
    raise CheckpointError(f"no {_PREDICTOR}query_feat(_).weight: these are not the tensors of BiomedParse v1 or v2")


def plain_names(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors without the trainer's prefix, names that are left out with the reason)."""
    kept, dropped = {}, {}
    for name, tensor in state.items():
        name = name.removeprefix("model.")
        reason = next((reason for pattern, reason in _DROPPED if re.search(pattern, name)), None)
        if reason is None:
            kept[name] = tensor
        else:
            dropped[name] = reason
    return kept, dropped


def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published names and tensors -> those of our models; packed text projections are split in three."""
    result = {}
    for name, tensor in state.items():
        tower = next((t for t, _ in _TEXTS if name.startswith(t)), None)
        text = next((t for _, t in _TEXTS if name.startswith(t)), None)
        if name.startswith("backbone."):
            for pattern, replacement in _BACKBONE:
                name = re.sub(pattern, replacement, name)
            result[name] = tensor
        elif name.startswith(_HEAD + "pixel_decoder."):
            result[name.removeprefix(_HEAD).replace("transformer.encoder.layers.", "encoder.")] = tensor
        elif tower:
            result.update(_rename_tower(name.removeprefix(tower), tensor))
        elif text:
            result["text." + name.removeprefix(text)] = tensor
        elif name.startswith(_UPSAMPLER):
            result["upsampler." + name] = tensor
        elif name.startswith(_PREDICTOR):
            result["decoder." + name.removeprefix(_PREDICTOR)] = tensor
        else:
            result[name] = tensor
    return result


def _rename_tower(inner: str, tensor) -> dict[str, torch.Tensor]:
    if inner in _TOWER:
        return {"text.tower." + _TOWER[inner]: tensor}
    match = re.fullmatch(r"resblocks\.(\d+)\.(.+)", inner)
    if match is None:
        return {"text.tower." + inner: tensor}
    place, rest = f"text.tower.encoder.layers.{match[1]}.", match[2]
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{place}self_attn.{part}_proj.{kind}": piece.clone() for part, piece in parts}
    for old, new in _BLOCK:
        rest = re.sub(rf"^{re.escape(old)}\.", new + ".", rest)
    return {place + re.sub(r"^attn\.", "self_attn.", rest): tensor}


def sizes_of(state: dict[str, torch.Tensor]) -> dict:
    """Arguments of the configuration that the shapes of published tensors tell."""

    def count(pattern):
        return 1 + max((int(m[1]) for m in (re.match(pattern, name) for name in state) if m), default=-1)

    def shape(name):
        if name not in state:
            raise CheckpointError(f"tensor {name} is missing; is the file whole?")
        return state[name].shape

    tower, text = _TEXTS[2 - version_of(state)]
    stages = range(count(r"backbone\.layers\.(\d+)\."))
    first = [f"backbone.layers.{i}.blocks.0.modulation." for i in stages]
    queries = "query_feat_.weight" if version_of(state) == 2 else "query_feat.weight"
    vocabulary, text_width = shape(tower + "token_embedding.weight")
    encoder = _HEAD + "pixel_decoder.transformer.encoder.layers."
    return dict(
        embed_dim=shape("backbone.patch_embed.proj.weight")[0],
        depths=[count(rf"backbone\.layers\.{i}\.blocks\.(\d+)\.") for i in stages],
        focal_levels=[shape(name + "f.bias")[0] - 2 * shape(name + "proj.bias")[0] - 1 for name in first],
        focal_windows=[shape(name + "focal_layers.0.0.weight")[-1] for name in first],
        hidden_size=shape(text + "lang_proj")[1],
        encoder_layers=count(re.escape(encoder) + r"(\d+)\."),
        decoder_layers=count(re.escape(_PREDICTOR) + r"transformer_ffn_layers\.(\d+)\."),
        ffn_size=shape(_PREDICTOR + "transformer_ffn_layers.0.linear1.weight")[0],
        num_queries=shape(_PREDICTOR + queries)[0],
        text_vocab_size=vocabulary,
        text_hidden_size=text_width,
        text_layers=count(re.escape(tower) + r"resblocks\.(\d+)\."),
        text_length=shape(tower + "positional_embedding")[0],
    )


def skeleton(state: dict[str, torch.Tensor], **changes):
    """The model that published tensors (plain names) belong to, without memory for weights."""
    from unimed.models.boltzformer import BiomedParseV1Config, BiomedParseV1Model, BoltzFormerConfig, BoltzFormerModel

    sizes = sizes_of(state) | changes
    with torch.device("meta"):
        if version_of(state) == 1:
            return BiomedParseV1Model(BiomedParseV1Config(**sizes))
        if "channels" not in sizes and "pixel_mean" in state:
            # One mean for all channels is that of grey slices; colours have one each.
            sizes["channels"] = "slices" if len(set(state["pixel_mean"].flatten().tolist())) == 1 else "rgb"
        sizes.setdefault("learned_upsampling", any(name.startswith(_UPSAMPLER) for name in state))
        return BoltzFormerModel(BoltzFormerConfig(**sizes))


def load_into(model, state: dict[str, torch.Tensor], source: str = "") -> ConversionReport:
    """Fill a model with published tensors, every one accounted for.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
        WeightsError: a part of the model has no memory (such as `skeleton`).
    """
    renamed, dropped, notes = translate(state)
    report = check_names(model, renamed, "biomedparse", source)
    report.dropped, report.notes = dropped, notes
    report.check()
    fill(model, renamed, source)
    return report


def translate(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str]]:
    """(published tensors under our names, what is left out with the reason, notes for the report)."""
    plain, dropped = plain_names(state)
    renamed, notes = rename(plain), []
    if version_of(plain) == 1 and not any(name in renamed for name in _PIXELS):
        from unimed.models.boltzformer.modeling import RGB_MEAN, RGB_STD

        renamed |= {n: torch.tensor(v).view(1, 3, 1, 1) for n, v in zip(_PIXELS, (RGB_MEAN, RGB_STD), strict=True)}
        notes.append("v1 files hold no pixel mean; those of ImageNet are written")
    return renamed, dropped, notes


def recognises(path: Path) -> bool:
    """A file with "biomedparse" in its name."""
    path = Path(path)
    suffixes = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
    return path.is_file() and path.suffix in suffixes and "biomedparse" in path.name.lower()


def add_arguments(parser) -> None:
    parser.add_argument("--compat", choices=["reference"], help="prompts influence each other, as published")
    parser.add_argument("--edge-queries", type=int, help="queries that draw edges, v2 only (published: 4)")
    parser.add_argument("--num-heads", type=int, help="attention heads of decoder and encoder (published: 8)")
    parser.add_argument("--text-heads", type=int, help="attention heads of the text tower (published: 8)")
    parser.add_argument("--image-size", type=int, help="side of the images, px (published: 512 for v2, 1024 for v1)")


def convert(source: Path, destination: Path, **changes) -> ConversionReport:
    """Write a published file as a folder for `unimed.load`; it appears whole or not at all.

    Args:
        changes: to `BoltzFormerConfig` or `BiomedParseV1Config`, for files of other than the published settings.

    Raises:
        CheckpointError: a download pointer instead of weights, Python objects that would have to be executed, or keys
            or shapes that are not those of the model.
    """
    source, destination = Path(source), Path(destination)
    if source.is_file() and source.stat().st_size < 1024:
        raise CheckpointError(f"{source}: {source.stat().st_size} bytes, a pointer or failed download; fetch it again")
    state = read_state_dict(source)
    try:
        plain, _ = plain_names(state)
        if changes.get("edge_queries") and version_of(plain) == 1:
            raise CheckpointError("v1 has no edge queries; leave --edge-queries out")
        model = skeleton(plain, **changes)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    renamed, dropped, notes = translate(state)
    model, report = build(type(model), model.config, renamed, "biomedparse", source, dropped=dropped)
    report.notes += notes
    with atomic_folder(destination) as folder:
        model.save_pretrained(folder)
    report.destination = str(destination)
    return report
