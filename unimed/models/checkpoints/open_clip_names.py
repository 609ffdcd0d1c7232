"""Models by a name: `open_clip:NAME[/WEIGHTS]` and `hf-hub:OWNER/NAME` in open_clip's layout."""

from __future__ import annotations

from pathlib import Path

from unimed.models.checkpoints.cache import converted
from unimed.models.clip.building import named_config
from unimed.models.clip.modeling import ClipModel
from unimed.models.clip.processing import ClipProcessor

PREFIXES = ("open_clip:", "hf-hub:")


def load_named(name: str) -> ClipModel | Path:
    """A model of open_clip by its name, or the converted folder of a hub repository in open_clip's layout.

    `open_clip:ViT-B-16-SigLIP/webli` takes those weights (fetched by open_clip); without a slash the weights are
    random, for training from nothing. `hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224` is fetched,
    converted once and kept in the cache folder.

    Raises:
        ValueError: unknown name or weights.
        OSError: weights, tokenizer or repository cannot be had.
    """
    prefix = next(p for p in PREFIXES if name.startswith(p))
    rest = name.removeprefix(prefix)
    if prefix == "hf-hub:":
        return _from_hub(rest)
    import open_clip

    architecture, _, weights = rest.partition("/")
    config = named_config(architecture)
    if weights:
        known = open_clip.list_pretrained_tags_by_model(architecture)
        if weights not in known:
            raise ValueError(f"open_clip has no weights {weights!r} for {architecture}; known are {', '.join(known)}")
        preprocess = open_clip.get_pretrained_cfg(architecture, weights)
        chosen = {k: preprocess[k] for k in ("mean", "std", "interpolation", "resize_mode") if preprocess.get(k)}
        config.preprocess_cfg |= {k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()}
        if preprocess.get("quick_gelu"):
            config.model_cfg["quick_gelu"] = True
    model = ClipModel(config)
    model.processor = ClipProcessor(config)
    if weights:
        path = open_clip.download_pretrained(open_clip.get_pretrained_cfg(architecture, weights))
        open_clip.load_checkpoint(model.towers, path, strict=True, weights_only=True)
    return model


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    from unimed.models.checkpoints import open_clip as layout

    patterns = ["open_clip_config.json", *layout.WEIGHTS, "*.txt", "tokenizer*.json", "special_tokens_map.json"]
    return converted(snapshot_download(repository, allow_patterns=patterns), "open_clip", layout)
