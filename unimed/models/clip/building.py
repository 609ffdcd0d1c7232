"""Towers by open_clip, from a configuration alone: no hub, no weights."""

from __future__ import annotations

import difflib
import json
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from unimed.models import foreign
from unimed.models.clip.configuration import ClipConfig, bert_config


def build_towers(config: ClipConfig) -> nn.Module:
    """open_clip's `CLIP` or `CustomTextCLIP` with fresh weights.

    A Hugging Face text tower is built from `config.text_config`.

    Raises:
        ValueError: `text_cfg` names a Hugging Face model, but `text_config` is missing.
    """
    from open_clip.model import CLIP, CustomTextCLIP

    options = deepcopy(config.model_cfg)
    custom = options.pop("custom_text", False)
    text = options["text_cfg"]
    if "hf_model_name" not in text:
        return (CustomTextCLIP if custom else CLIP)(**options)
    if config.text_config is None:
        raise ValueError(f"text tower {text['hf_model_name']!r} has no text_config to be built from")
    with tempfile.TemporaryDirectory() as folder:
        # open_clip takes a name or a folder only. A type of numbers written in it would outlive the one asked for.
        plain = {k: v for k, v in config.text_config.items() if k not in ("dtype", "torch_dtype")}
        (Path(folder) / "config.json").write_text(json.dumps(plain))
        options["text_cfg"] = text | {"hf_model_name": folder, "hf_model_pretrained": False}
        return CustomTextCLIP(**options)


def named_config(name: str) -> ClipConfig:
    """Configuration of an open_clip model by its name ("ViT-B-16-quickgelu", "ViT-B-16-SigLIP").

    Raises:
        ValueError: unknown name; the closest known one is given.
    """
    import open_clip

    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise ValueError(f"open_clip knows no model {name!r}; the closest are {', '.join(close) or 'none'}")
    preprocess = {}
    if "siglip" in name.lower():
        # open_clip keeps these beside the weights, not beside the model.
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    return ClipConfig(
        model_cfg=model_cfg,
        preprocess_cfg=preprocess,
        text_config=text_config_of(model_cfg["text_cfg"]),
        tokenizer=name,
    )


def text_config_of(text_cfg: dict, folder=None) -> dict | None:
    """Configuration of the Hugging Face text tower `text_cfg` names; None where it names none.

    Looked for in `folder`, among the numbers of BiomedBERT, then by the hub (or its cache).

    Raises:
        ValueError: it is nowhere.
    """
    name = text_cfg.get("hf_model_name")
    if not name:
        return None
    if folder is not None and (Path(folder) / "config.json").is_file():
        return foreign.clean(foreign.read_json(Path(folder) / "config.json"))
    if "BiomedBERT" in name or "PubMedBERT" in name or "BiomedNLP" in name:
        return bert_config("large" if "-large-" in name else "base")
    try:
        return foreign.config(foreign.hub_name(name, "hf_model_name")).to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(f"the configuration of text tower {name!r} is neither here nor on the hub") from error


def resize_positions(
    table: torch.Tensor, grid: tuple[int, int], compat: str | None = None, prefix_tokens: int = 1
) -> torch.Tensor:
    """Position embeddings [prefix + old grid, width] on another grid [prefix + rows * columns, width].

    Bicubic. By default with antialias and pixel centres aligned (open_clip 3); `compat="reference"` aligns corners and
    has no antialias, as UniMed-CLIP started its L/14 towers. The two differ by up to 0.2.
    """
    prefix, places = table[:prefix_tokens], table[prefix_tokens:]
    side = int(len(places) ** 0.5)
    if (side, side) == tuple(grid):
        return table
    places = places.T.reshape(1, -1, side, side)
    reference = compat == "reference"
    places = nn.functional.interpolate(
        places, size=grid, mode="bicubic", align_corners=reference, antialias=not reference
    )
    return torch.cat([prefix, places.flatten(2)[0].T])


def vision_start(model: nn.Module, state: dict[str, torch.Tensor], compat: str | None = None) -> list[str]:
    """Start the vision tower from the vision weights of another CLIP, such as MetaCLIP's.

    Text weights are left out; `logit_scale` too, unless `compat="reference"` (the published runs took it over). The
    position embeddings are resized where the grids differ.

    Args:
        model: open_clip's towers.
        state: names of open_clip (`visual.`...); wrappers taken off.

    Returns:
        names of `state` that were not used.

    Raises:
        ValueError: a tensor of the tower is missing or has another shape.
    """
    mine = {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
    own = model.visual.state_dict()
    missing = sorted(set(own) - set(mine))
    if missing:
        raise ValueError(f"{len(missing)} tensors of the vision tower are not in the file, first {missing[0]!r}")
    if "positional_embedding" in own and mine["positional_embedding"].shape != own["positional_embedding"].shape:
        grid = model.visual.grid_size
        mine["positional_embedding"] = resize_positions(mine["positional_embedding"].float(), grid, compat)
    for name, tensor in own.items():
        if tensor.shape != mine[name].shape:
            raise ValueError(
                f"visual.{name} has shape {tuple(mine[name].shape)}, the tower needs {tuple(tensor.shape)}"
            )
    model.visual.load_state_dict({name: mine[name] for name in own})
    used = {f"visual.{name}" for name in own}
    if compat == "reference" and "logit_scale" in state:
        with torch.no_grad():
            model.logit_scale.copy_(state["logit_scale"].reshape(model.logit_scale.shape))
        used.add("logit_scale")
    return sorted(set(state) - used)
