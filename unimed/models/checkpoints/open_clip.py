"""Folders in open_clip's layout (`open_clip_config.json` beside the weights), as BiomedCLIP is published."""

from __future__ import annotations

from pathlib import Path

from unimed.models import foreign
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, read_state_dict
from unimed.models.checkpoints.unimed_clip import write_model

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def recognises(path: Path) -> bool:
    """A folder with `open_clip_config.json` and weights of one of open_clip's names."""
    path = Path(path)
    return (path / "open_clip_config.json").is_file() and any((path / name).is_file() for name in WEIGHTS)


def add_arguments(parser) -> None:
    parser.add_argument("--text-encoder", help="folder of the text encoder's config.json, if it is no BiomedBERT")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="store in this type")


def convert(source, destination, text_encoder=None, dtype=None) -> ConversionReport:
    """Write safetensors, configuration and tokenizer that `unimed.load` opens without the network.

    Raises:
        CheckpointError: no configuration, no weights, or tensors that do not fit.
        OSError, ValueError: tokenizer or text configuration are not to be had.
    """
    from unimed.models.clip.building import text_config_of
    from unimed.models.clip.configuration import ClipConfig

    source = Path(source)
    described = foreign.read_json(source / "open_clip_config.json")
    model_cfg = described.get("model_cfg", described)
    found = [source / name for name in WEIGHTS if (source / name).is_file()]
    if not found:
        raise CheckpointError(f"{source}: none of {', '.join(WEIGHTS)} is there")
    state = read_state_dict(found[0])
    if (
        "hf_model_name" not in model_cfg["text_cfg"]
        and model_cfg.get("custom_text")
        and "token_embedding.weight" in state
    ):
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    settings = ClipConfig(
        model_cfg=model_cfg,
        preprocess_cfg=described.get("preprocess_cfg"),
        text_config=text_config_of(model_cfg["text_cfg"], text_encoder),
    )
    has_tokenizer = any((source / name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer.model"))
    report = ConversionReport("open_clip", str(source), str(destination))
    write_model(settings, state, Path(destination), report, source if has_tokenizer else text_encoder, dtype)
    return report
