"""A grounded model from published parts: an image-text model and SAM 2, with an untrained [SEG] between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from unimed.models import foreign
from unimed.models.backbones.families import FAMILIES, REFUSED
from unimed.models.backbones.vision_language import startable
from unimed.models.checkpoints import reading, unibiomed
from unimed.models.checkpoints import sam2 as sam2_layout
from unimed.models.checkpoints.reading import CheckpointError, read_state_dict
from unimed.models.checkpoints.tokenizers import read_without_remote_code
from unimed.models.grounded.configuration import GroundedConfig
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.grounded.processing import GroundedProcessor
from unimed.models.heads.box_heads import build_box_head
from unimed.models.heads.mask import PromptProjection
from unimed.models.starting.native import prepare
from unimed.tokens import BOX_TOKEN


def build_on_parts(
    backbone,
    sam2,
    *,
    presence_head: bool = False,
    box_head: str | None = None,
    connector: Mapping | None = None,
    template: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    native: bool = False,
) -> GroundedMLLM:
    """A grounded model to be trained: vision encoder, language model and mask decoder are published, the rest is new.

    The grounding tokens are appended to the tokenizer; their embeddings start as the mean of all others.

    Args:
        backbone: OpenGVLab/InternVL2_5-* as published, or a folder of transformers' own layout: InternVL, LLaVA,
            Qwen2-VL, Qwen2.5-VL or another type that `BACKBONES` knows how to start from, or one of
            `unimed.models.backbones.families`, which runs through its own forward pass.
        sam2: `sam2_hiera_*.pt` or `sam2.1_hiera_*.pt` as published.
        presence_head: also ask the state of a [SEG] whether the thing is there (UniBiomed does not).
        box_head: kind of the head that reads [BOX], which becomes a token then; for folders as transformers writes
            them.
        connector: arguments of `build_connector` for a new connector in the place of the published projector.
        template: name of a chat template; that of the family by default ("phi3_chat" on published InternVL folders, as
            UniBiomed and Sa2VA train).
        native: let the model run through its own forward pass also where `BACKBONES` has an adapter.
        seed: of the projection of [SEG] states and of the presence head.

    Raises:
        FileNotFoundError: a part is not there.
        CheckpointError: a part is of no known family, or has missing or left-over tensors; each is named.
    """
    backbone, sam2 = Path(backbone), Path(sam2)
    for path, what in ((backbone / "config.json", "an image-text folder"), (sam2, "an official SAM 2 file")):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {what} is needed here, see pretrained/README.md")
    published = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    kind = published.get("model_type")
    native = native or kind not in startable()
    if kind != "internvl_chat" and native and kind not in FAMILIES:
        raise CheckpointError(
            f"{backbone}: no way to start from a model of type {kind!r}; known are internvl_chat (as published) and "
            f"{', '.join(sorted({*startable(), *FAMILIES}))} (as transformers writes them)"
            + (f"; {REFUSED[kind]}" if kind in REFUSED else "")
        )
    official = read_state_dict(sam2)
    if kind != "internvl_chat":
        heads = dict(presence_head=presence_head, box_head=box_head)
        begin = _begin_native if native else _begin_with_tiles
        mask_config = sam2_layout.config_of(official)
        begun = begin(backbone, kind, mask_config, heads, template, getattr(torch, dtype))
        model = _on_transformers_model(backbone, kind, *begun, official, heads, seed, getattr(torch, dtype))
        return _with_connector(model, connector)
    if box_head is not None:
        raise CheckpointError(
            f"{backbone}: box_head={box_head!r} needs a folder as transformers writes it (OpenGVLab/*-HF); the "
            "published InternVL layout is that of UniBiomed, which has no [BOX]"
        )
    tokenizer = unibiomed.read_tokenizer(backbone, added=unibiomed.ADDED_TOKENS)
    state = read_state_dict(backbone) | {unibiomed.SAM + name: tensor for name, tensor in official.items()}
    for name in set(unibiomed.EMBEDDINGS) & set(state):
        state[name] = unibiomed.with_rows(state[name], len(tokenizer))
    published["llm_config"] = {**published["llm_config"], "vocab_size": len(tokenizer)}
    published["template"] = template or "phi3_chat"
    new = _untrained(published["llm_config"]["hidden_size"], _prompt_width(official), presence_head, seed)
    return _with_connector(unibiomed.assemble(published, tokenizer, state, backbone, dtype, new)[0], connector)


def _with_connector(model: GroundedMLLM, connector: Mapping | None) -> GroundedMLLM:
    if connector is not None:
        model.replace_connector(dict(connector))
    return model


def _untrained(hidden_dim: int, prompt_dim: int, presence_head: bool, seed: int) -> dict[str, torch.Tensor]:
    """Weights of the parts that no published file holds before the first training, drawn by torch's own rules."""
    torch.manual_seed(seed)
    projection = PromptProjection(hidden_dim, prompt_dim).state_dict()
    new = {f"seg_projection.{name}": tensor for name, tensor in projection.items()}
    if presence_head:
        new |= {f"presence_head.{name}": tensor for name, tensor in nn.Linear(hidden_dim, 1).state_dict().items()}
    return new


def _prompt_width(official: dict) -> int:
    name = "sam_mask_decoder.mask_tokens.weight"
    if name not in official:
        raise CheckpointError(f"no SAM 2 mask decoder among the tensors ({name} is not there)")
    return official[name].shape[1]


def _begin_native(backbone: Path, kind: str, mask_config, heads, template, dtype):
    """The image-text model of a folder, a processor and a configuration for it; the model looks through its own."""
    from transformers import AutoModelForImageTextToText

    processor = foreign.auto_processor(backbone)
    vlm = foreign.model(AutoModelForImageTextToText, backbone, dtype=dtype)
    return vlm, *prepare(vlm, processor, mask_config, template)


def _begin_with_tiles(backbone: Path, kind: str, mask_config, heads, template, dtype):
    """As `_begin_native`, for an adapter that feeds the vision part with tiles."""
    from transformers import AutoModelForImageTextToText

    tokenizer = read_without_remote_code(backbone)
    vlm = foreign.model(AutoModelForImageTextToText, backbone, dtype=dtype)
    added = [*unibiomed.ADDED_TOKENS, *([BOX_TOKEN] if heads["box_head"] else [])]
    tokenizer.add_tokens(added, special_tokens=True)
    if len(tokenizer) > vlm.get_input_embeddings().num_embeddings:
        vlm.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    # The head is untied: the grounding tokens are read and said in different ways.
    vlm.config.tie_word_embeddings = vlm.config.get_text_config().tie_word_embeddings = False
    options = startable()[kind].processor_options(vlm.config, backbone)
    config = GroundedConfig(
        backbone_config=vlm.config,
        mask_config=mask_config,
        image_token_id=tokenizer.convert_tokens_to_ids(options["image_token"]),
        seg_token_id=tokenizer.convert_tokens_to_ids(unibiomed.SEG_TOKEN),
        box_token_id=tokenizer.convert_tokens_to_ids(BOX_TOKEN),
    )
    options["template"] = template or options["template"]
    processor = GroundedProcessor(tokenizer, mask_size=mask_config.image_size, **options)
    return vlm, processor, config


def _on_transformers_model(backbone: Path, kind: str, vlm, processor, config, official, heads, seed, dtype):
    box_head, presence_head = heads["box_head"], heads["presence_head"]
    config.presence_head = presence_head
    config.box_head = {"kind": box_head} if box_head else None
    config.box_token_id = config.box_token_id if box_head else None
    state = {f"backbone.vlm.{name}": tensor.clone() for name, tensor in vlm.state_dict().items()}
    state |= {f"mask_head.sam.{name}": tensor for name, tensor in sam2_layout.convert_state_dict(official).items()}
    state |= _untrained(vlm.config.get_text_config().hidden_size, _prompt_width(official), presence_head, seed)
    if box_head:
        boxes = build_box_head(box_head, vlm.config.get_text_config().hidden_size)
        state |= {f"box_head.{name}": tensor for name, tensor in boxes.state_dict().items()}
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    model, _ = reading.build(GroundedMLLM, config, state, kind, backbone, dtype)
    model.processor = processor
    return model
