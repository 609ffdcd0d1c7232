"""Models without weights: the shape of what a config names, on the meta device, to be planned with before a download.

Shapes of published parts come from their `config.json` where that file is there, else from a table of this package.
The tokenizer is a stand-in of a few hundred entries; the vocabulary of the model keeps its size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from unimed.models import foreign
from unimed.models.backbones.vision_language import startable
from unimed.models.checkpoints.sam2 import HIERA, sam2_video_config
from unimed.models.grounded.configuration import GroundedConfig
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.grounded.processing import GroundedProcessor
from unimed.models.starting.grounded_small import train_tokenizer
from unimed.models.starting.skeleton_families import (
    ShapeError,
    skeleton_clip,
    skeleton_umedground,
    skeleton_uni_med,
    table_of_shapes,
)
from unimed.tokens import BOX_TOKEN, SEG_TOKEN


def skeleton_of_parts(
    backbone: str,
    sam2: str,
    *,
    presence_head: bool = False,
    box_head: str | None = None,
    connector: Mapping | None = None,
    template: str | None = None,
    **_,
) -> GroundedMLLM:
    """What `build_on_parts` would build, on the meta device.

    Args:
        backbone: folder or name of the image-text model; its `config.json` is read where it is there.
        sam2: file or name of the official SAM 2 checkpoint, whose size is taken from the name.

    Raises:
        ShapeError: neither a `config.json` nor a name of the table; known names are listed.
    """
    config = _backbone_config(Path(backbone))
    kind = config.model_type
    if kind not in startable():
        raise ShapeError(f"{backbone}: a model of type {kind!r} cannot be planned; known are {sorted(startable())}")
    options = startable()[kind].processor_options(config, Path(backbone))
    kept = [options[name] for name in ("image_start", "image_token", "image_end") if options.get(name)]
    tokenizer = train_tokenizer(["Segment what is shown. It is [SEG]."], 600)
    tokenizer.add_tokens([token for token in kept if token], special_tokens=True)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    grounded = GroundedConfig(
        backbone_config=config,
        mask_config=_mask_config(Path(sam2)),
        presence_head=presence_head,
        box_head={"kind": box_head} if box_head else None,
        image_token_id=tokenizer.convert_tokens_to_ids(options["image_token"]),
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
        box_token_id=tokenizer.convert_tokens_to_ids(BOX_TOKEN) if box_head else None,
    )
    options["template"] = template or options["template"]
    with torch.device("meta"):
        model = GroundedMLLM(grounded)
        model.processor = GroundedProcessor(tokenizer, mask_size=grounded.mask_config.image_size, **options)
        if connector is not None:
            model.replace_connector(dict(connector))
    return model


def skeleton(spec: str | Mapping) -> nn.Module | None:
    """The model of `task.model` on the meta device; None where it has to be built as the config says.

    Args:
        spec: described, see `unimed.models.building.described`.
    """
    if not isinstance(spec, Mapping):
        return None
    given = {key: value for key, value in spec.items() if key != "type"}
    if spec.get("type") == "GroundedMLLM":
        return skeleton_of_parts(**given)
    if spec.get("type") == "UMedGround":
        return skeleton_umedground(**given)
    if spec.get("type") == "UniMed":
        return skeleton_uni_med(**given)
    if spec.get("type") == "Clip":
        return skeleton_clip(given["variant"], given.get("sigmoid", False))
    return None


def _backbone_config(path: Path):
    from transformers import InternVLConfig

    if (path / "config.json").is_file():
        read = foreign.config(path)
        if read.model_type != "internvl_chat":
            return read
    table = table_of_shapes()
    name = re.sub(r"-(hf|HF)$", "", path.name)
    if name not in table["backbones"]:
        known = ", ".join(table["backbones"])
        raise ShapeError(f"{path}/config.json is not there, and {name!r} is not in the table of shapes: {known}")
    vision, text = table["backbones"][name]
    return InternVLConfig(
        vision_config=table["vision"][vision],
        text_config=table["text"][text] | {"tie_word_embeddings": False, "max_position_embeddings": 32768},
    )


def _mask_config(path: Path):
    table = table_of_shapes()
    found = re.search(r"sam2(\.1)?_hiera_(tiny|small|base_plus|large|t|s|b\+|l)\b", path.name)
    if found is None:
        raise ShapeError(f"{path}: the size of SAM 2 is not in the name; known are sam2_hiera_{{tiny,…,large}}.pt")
    size = {"t": "tiny", "s": "small", "b+": "base_plus", "l": "large"}.get(found[2], found[2])
    return sam2_video_config(*_first(table["sam2"][size]), version="2.1" if found[1] else "2.0")


def _first(key) -> tuple:
    shape = HIERA[tuple(key)]
    return key[0], shape["blocks"], shape["heads"], shape["global_blocks"], shape["windows"], shape["background"]
