"""Grounded models from published parts: an InternVL 2.5 folder and an official SAM 2 file, joined as UniBiomed does."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from unimed.models.grounded.modeling import GroundedMLLM
from unimed.tokens import BOX_TOKEN, GROUNDING_TOKENS


def build_on_parts(internvl, sam2, *, presence_head: bool = False, seed: int = 0) -> GroundedMLLM:
    """A grounded model to be trained: eyes, language model and mask decoder are published, what joins them is new.

    The grounding tokens are added to the tokenizer; their embeddings start as the mean of all others. Everything is in
    float32.

    Args:
        internvl: folder of `OpenGVLab/InternVL2_5-*` as published.
        sam2: `sam2_hiera_*.pt` or `sam2.1_hiera_*.pt` as published.
        presence_head: also ask the state of a [SEG] whether the thing is there (UniBiomed does not).
        seed: of the projection of [SEG] states and of the presence head.

    Raises:
        FileNotFoundError: a part is not there.
        CheckpointError: a part is no such checkpoint, or has missing or left-over tensors; each is named.
    """
    from transformers import AutoTokenizer

    from unimed.models.checkpoints import internvl as internvl_layout
    from unimed.models.checkpoints import sam2 as sam2_layout
    from unimed.models.checkpoints.reading import CheckpointError, read_state_dict
    from unimed.models.checkpoints.unibiomed import grounded_config, grounded_processor

    internvl, sam2 = Path(internvl), Path(sam2)
    for path, what in ((internvl / "config.json", "an InternVL 2.5 folder"), (sam2, "an official SAM 2 file")):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {what} is needed here, see pretrained/README.md")
    if not internvl_layout.recognises(internvl):
        raise CheckpointError(f"{internvl}: its config.json is not of a published InternVL (`internvl_chat`)")
    published = json.loads((internvl / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(internvl)
    tokenizer.add_tokens([token for token in GROUNDING_TOKENS if token != BOX_TOKEN], special_tokens=True)
    state = internvl_layout.convert_state_dict(read_state_dict(internvl), published["llm_config"])
    rows = max(len(tokenizer), len(state["lm_head.weight"]))
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        state[name] = _with_rows(state[name].float(), rows)
    published["llm_config"] = {**published["llm_config"], "vocab_size": rows}
    published["template"] = "phi3_chat"
    official = read_state_dict(sam2)
    config = grounded_config(published, tokenizer, sam2_layout.config_of(official))
    config.presence_head = presence_head
    loaded = {f"backbone.vlm.{name}": tensor for name, tensor in state.items()}
    loaded |= {f"mask_head.sam.{name}": tensor for name, tensor in sam2_layout.convert_state_dict(official).items()}
    with torch.device("meta"):
        skeleton = GroundedMLLM(config)
    report = sam2_layout.check_names(skeleton, loaded, "parts", internvl, "")
    report.missing = [name for name in report.missing if not name.startswith(("seg_projection.", "presence_head."))]
    report.check()
    torch.manual_seed(seed)
    # What is new is drawn by torch's own rules, on a copy small enough to be thrown away.
    new = {f"seg_projection.{n}": t for n, t in type(skeleton.seg_projection)(
        skeleton.backbone.hidden_dim, skeleton.mask_head.prompt_dim).state_dict().items()}  # fmt: skip
    if presence_head:
        head = torch.nn.Linear(skeleton.backbone.hidden_dim, 1)
        new |= {f"presence_head.{name}": tensor for name, tensor in head.state_dict().items()}
    model = GroundedMLLM.from_pretrained(
        None, config=config, state_dict={name: tensor.float() for name, tensor in (loaded | new).items()}
    )
    model.processor = grounded_processor(published, tokenizer, config.mask_config.image_size)
    return model


def _with_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """An embedding table [V, D] grown to `rows` by the mean of what it has."""
    if rows <= len(table):
        return table
    return torch.cat([table, table.mean(dim=0, keepdim=True).expand(rows - len(table), -1)])
