"""Checkpoints of the published UniMed-CLIP trainer (`.pt`: weights, optimiser, scaler) to `ClipModel`.

Two thirds of such a file are optimiser state, and its learning rates are numpy scalars, which `torch.load` refuses
unless numpy's constructors are allowed by name; nothing else in it is rebuilt.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models import foreign
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, check_names, read_state_dict
from unimed.models.weights import fill

logger = logging.getLogger("unimed.models.checkpoints")
TEXT = "text_encoder."


def safe_globals() -> list:
    """The classes a published checkpoint names besides tensors: numpy scalars of its learning rates."""
    import codecs

    import numpy as np

    return [
        (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
        np._core.multiarray.scalar,
        np.dtype,
        type(np.dtype("float64")),
        codecs.encode,
    ]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a published `.pt` (or of a file of its weights alone) under open_clip's names.

    Raises:
        CheckpointError: see `read_state_dict`.
    """
    return rename(read_state_dict(path, safe_globals=safe_globals()))


def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of the published trainer -> names of open_clip."""
    renamed = {}
    for name, tensor in state.items():
        for prefix in ("module.", "_orig_mod."):
            name = name.removeprefix(prefix)
        if name.endswith("embeddings.position_ids"):
            continue  # a buffer of older transformers; made anew
        renamed["text." + name.removeprefix(TEXT) if name.startswith(TEXT) else name] = tensor
    return renamed


def recognises(path: Path) -> bool:
    """A single file whose names are those of the published trainer."""
    path = Path(path)
    if not path.is_file() or path.suffix not in (".pt", ".pth", ".bin", ".safetensors"):
        return False
    try:
        names = list(read_state_dict(path, safe_globals=safe_globals()))
    except (CheckpointError, OSError):
        return False
    bare = {name.removeprefix("module.") for name in names}
    return "visual.conv1.weight" in bare and f"{TEXT}proj.0.weight" in bare


def configuration(state: dict[str, torch.Tensor], text_config: dict | None = None, model_cfg: dict | None = None):
    """`ClipConfig` read off the shapes of the tensors.

    Args:
        text_config: configuration of the text encoder; else BiomedBERT's of that width.
        model_cfg: open_clip's; else heads of width 64 in the vision tower and the names of BiomedBERT.

    Raises:
        CheckpointError: a text encoder of another width than BiomedBERT's and no `text_config`.
    """
    from unimed.models.clip.configuration import BIOMED_BERT, ClipConfig, bert_config

    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = int((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    layers = {name.split(".")[3] for name in state if name.startswith("visual.transformer.resblocks.")}
    text_width = state["text.transformer.embeddings.word_embeddings.weight"].shape[1]
    size = {768: "base", 1024: "large"}.get(text_width)
    if text_config is None:
        if size is None:
            raise CheckpointError(
                f"the text encoder is {text_width} wide and not a BiomedBERT; give the folder of its configuration "
                "with --text-encoder"
            )
        text_config = bert_config(size)
    bert = BIOMED_BERT.format(size or "base")
    cfg = model_cfg or {
        "embed_dim": state["visual.proj"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {"image_size": grid * patch, "layers": len(layers), "width": width, "patch_size": patch},
        "text_cfg": {
            "hf_model_name": bert,
            "hf_tokenizer_name": bert,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    }
    return ClipConfig(model_cfg=cfg, text_config=text_config)


def beside(source: Path) -> list[Path]:
    """What is read beside a file: tokenizer and configuration."""
    found = [Path(source).parent / name for name in ("text_encoder", "open_clip_config.json")]
    return [path for path in found if path.exists()]


def add_arguments(parser) -> None:
    parser.add_argument("--text-encoder", help="folder of the text encoder's tokenizer and config.json")
    parser.add_argument("--config", help="open_clip_config.json, for a model of another build than the published ones")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="store in this type")


def convert(source, destination, text_encoder=None, config=None, dtype=None) -> ConversionReport:
    """Write safetensors, configuration and tokenizer that `unimed.load` opens without the network.

    Args:
        text_encoder: folder of the tokenizer; else `text_encoder/` beside the file, else the hub or its cache.
        config: open_clip_config.json; else one beside the file, else read off the tensors.

    Raises:
        CheckpointError: not this layout, or tensors that do not fit.
        OSError: no tokenizer is to be had.
    """
    source = Path(source)
    state = read_weights(source)
    beside = source.parent / "text_encoder"
    folder = Path(text_encoder) if text_encoder else beside if beside.is_dir() else None
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"--text-encoder {folder} is no folder")
    if config is None and (source.parent / "open_clip_config.json").is_file():
        config = source.parent / "open_clip_config.json"
    described = foreign.read_json(config) if config else {}
    text_config = None
    if folder is not None and (folder / "config.json").is_file():
        text_config = foreign.clean(foreign.read_json(folder / "config.json"))
    settings = configuration(state, text_config, described.get("model_cfg"))
    if "preprocess_cfg" in described:
        settings.preprocess_cfg |= described["preprocess_cfg"]
    report = ConversionReport("unimed_clip", str(source), str(destination))
    report.dropped = {"optimizer, scaler, epoch, name": "training state, of no use for predictions"}
    write_model(settings, state, Path(destination), report, folder, dtype)
    return report


def write_model(settings, state, destination: Path, report: ConversionReport, tokenizer=None, dtype=None) -> None:
    """Check every tensor, then write the folder whole or not at all.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    from unimed.models.clip import ClipModel, ClipProcessor

    state = {name: tensor for name, tensor in state.items() if not name.endswith("embeddings.position_ids")}
    with torch.device("meta"):
        found = check_names(ClipModel(settings).towers, state, report.layout, report.source)
    report.mapped, report.missing, report.unexpected = found.mapped, found.missing, found.unexpected
    report.shapes = found.shapes
    report.check()
    processor = ClipProcessor(settings, tokenizer)
    processor.tokenizer  # noqa: B018 - a tokenizer that is not to be had shall be known before anything is written
    model = ClipModel(settings)
    fill(model.towers, state, report.source)
    model.processor = processor
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
        report.notes.append(f"stored as {dtype}")
    with atomic_folder(destination) as folder:
        model.save_pretrained(folder)
