"""Published UniBiomed and Sa2VA folders (InternVL 2.5 + SAM 2), and their training files, to `GroundedMLLM`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models import foreign
from unimed.models.checkpoints import internvl, reading, sam2
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, read_state_dict
from unimed.tokens import PHRASE_END, PHRASE_START, REGION_END, REGION_START, SEG_TOKEN

SAM = "grounding_encoder.sam2_model."
PROJECTION = "text_hidden_fcs."
#: In the order in which they are appended to the tokenizer of the language model.
ADDED_TOKENS = (SEG_TOKEN, PHRASE_START, PHRASE_END, REGION_START, REGION_END)
#: Names by which a training file of either project is known.
_TRAINING = ("mllm.model.", "grounding_encoder.", "text_hidden_fcs.")


def recognises(path: Path) -> bool:
    """A folder whose configuration says `sa2va_chat`. (A training file needs to be told its base: `convert`.)"""
    config = Path(path) / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "sa2va_chat"


def add_arguments(parser) -> None:
    """Options of `tools/convert.py --from unibiomed`."""
    parser.add_argument(
        "--base",
        help="only for a training file (iter_N.pth): the folder it started from, OpenGVLab/InternVL2_5-* or a "
        "published UniBiomed or Sa2VA folder",
    )
    parser.add_argument("--sam2", help="only for a training file on InternVL: sam2_hiera_large.pt")
    parser.add_argument(
        "--lora-scale", type=float, help="only for a training file: lora_alpha / r of its run (default 2, as published)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default float32)")


def convert_state_dict(published: dict[str, torch.Tensor], text_config: dict) -> dict[str, torch.Tensor]:
    """Published tensors under the names of `GroundedMLLM`; every one is kept."""
    sam = {name.removeprefix(SAM): tensor for name, tensor in published.items() if name.startswith(SAM)}
    projection = {name.removeprefix(PROJECTION): t for name, t in published.items() if name.startswith(PROJECTION)}
    rest = {name: t for name, t in published.items() if not name.startswith((SAM, PROJECTION))}
    state = {f"backbone.vlm.{name}": t for name, t in internvl.convert_state_dict(rest, text_config).items()}
    state |= {f"mask_head.sam.{name}": t for name, t in sam2.convert_state_dict(sam).items()}
    state |= {f"seg_projection.{name}": t for name, t in projection.items()}
    return state


def grounded_config(published: dict, tokenizer, mask_config=None, presence_head: bool = False):
    """`GroundedConfig` of a published folder; SAM 2 is hiera-large unless `mask_config` says otherwise."""
    from unimed.models.grounded.configuration import GroundedConfig

    image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    return GroundedConfig(
        backbone_config=internvl.backbone_config(published, image_token_id),
        mask_config=mask_config or sam2.sam2_video_config(144, **sam2.HIERA[144, 48]),
        presence_head=presence_head,
        image_token_id=image_token_id,
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
    )


def grounded_processor(published: dict, tokenizer, mask_size: int = 1024):
    """The processor of a published folder: tiles of 448 px, at most 12 of them, and its chat template."""
    from unimed.models.grounded.processing import GroundedProcessor

    size = published.get("force_image_size") or published["vision_config"]["image_size"]
    per_side = int(size // published["vision_config"]["patch_size"] * published.get("downsample_ratio", 0.5))
    return GroundedProcessor(
        tokenizer,
        template=published.get("template", "phi3_chat"),
        tokens_per_tile=per_side**2,
        tile_size=size,
        max_tiles=12,
        mask_size=mask_size,
        dialect="unibiomed",
        # InternLM2 begins with its <s>; Qwen2 has no such token.
        bos=tokenizer.bos_token_id is not None and "qwen" not in published["llm_config"].get("model_type", ""),
    )


def build(source, base=None, sam2=None, lora_scale: float = 2.0, dtype: str = "float32"):
    """A published folder, or a training file with its `base`, as a `GroundedMLLM` with its processor.

    Returns:
        the model and the report of its tensors.

    Raises:
        CheckpointError: missing or left-over tensors, each named; a tokenizer without the grounding tokens; a training
            file without `base`.
    """
    source = Path(source)
    notes: list[str] = []
    if recognises(source):
        folder, state = source, read_state_dict(source)
    else:
        state = read_state_dict(source)
        if not any(name.startswith(_TRAINING) for name in state):
            raise CheckpointError(
                f"{source}: neither a published folder (config.json of model_type sa2va_chat) nor a training file "
                f"(names such as mllm.model...); its first names are {', '.join(list(state)[:5])}"
            )
        if base is None:
            raise CheckpointError(
                f"{source}: a training file holds only what was trained; give --base, the folder it started from"
            )
        folder = Path(base)
        state, notes = with_base(state, folder, sam2, lora_scale, source)
    published = foreign.read_json(folder / "config.json")
    tokenizer = read_tokenizer(folder, added=() if folder == source else ADDED_TOKENS)
    if folder != source:
        notes += _make_room(published, state, len(tokenizer))
    model, report = assemble(published, tokenizer, state, source, dtype)
    report.notes += notes
    return model, report


#: Embeddings and heads of the language models of InternVL 2.5, under published names.
EMBEDDINGS = (
    "language_model.model.embed_tokens.weight language_model.lm_head.weight "
    "language_model.model.tok_embeddings.weight language_model.output.weight"
).split()


def with_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """An embedding table [V, D] with `rows` rows: new ones are the mean of the old, those without a token are cut."""
    if rows <= len(table):
        return table[:rows]
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def _make_room(published: dict, state: dict, tokens: int) -> list[str]:
    """One number of rows for the embeddings, the head and the configuration, so that every token has one.

    A run that trained the new tokens brings tables that are longer than those of its base. In place.

    Returns:
        notes for the report, where rows had to be made.
    """
    tables = [name for name in EMBEDDINGS if name in state]
    rows = max([tokens, *(len(state[name]) for name in tables)])
    short = [name for name in tables if len(state[name]) < rows]
    for name in short:
        state[name] = with_rows(state[name], rows)
    published["llm_config"] = {**published["llm_config"], "vocab_size": rows}
    return [f"{name}: rows of new tokens are the mean of the others; the run did not train them" for name in short]


def assemble(published: dict, tokenizer, state: dict, source, dtype: str = "float32", new: dict | None = None):
    """A `GroundedMLLM` of tensors under published names, and the report of its tensors.

    Args:
        new: tensors of parts that start untrained, under our names.

    Raises:
        CheckpointError: see `build`.
    """
    from unimed.models.grounded.modeling import GroundedMLLM

    for token in (SEG_TOKEN, "<IMG_CONTEXT>"):
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise CheckpointError(f"{source}: the tokenizer does not know {token}; is its added_tokens file there?")
    if "tiny_sam2" in published:
        mask_config = _tiny_mask_config(published["tiny_sam2"])
    else:
        mask_config = sam2.config_of({n.removeprefix(SAM): t for n, t in state.items() if n.startswith(SAM)})
    new = new or {}
    config = grounded_config(published, tokenizer, mask_config, presence_head="presence_head.weight" in new)
    # One number type throughout: published files mix them.
    wanted = getattr(torch, dtype)
    converted = convert_state_dict(state, published["llm_config"]) | new
    converted = {name: tensor.to(wanted) for name, tensor in converted.items()}
    model, report = reading.build(GroundedMLLM, config, converted, "unibiomed", source, wanted)
    model.processor = grounded_processor(published, tokenizer, config.mask_config.image_size)
    return model, report


def with_base(trained: dict, base: Path, sam2_file, lora_scale: float, source) -> tuple[dict, list[str]]:
    """Tensors of a training file put onto those it started from, all under published names.

    Raises:
        CheckpointError: a tensor of the training file has no place, or SAM 2 is in neither.
    """
    from unimed.models.checkpoints.unibiomed_training import merge_training

    kind = (
        json.loads((base / "config.json").read_text()).get("model_type") if (base / "config.json").is_file() else None
    )
    if kind not in ("internvl_chat", "sa2va_chat"):
        raise CheckpointError(f"{base}: --base is a folder of InternVL 2.5, UniBiomed or Sa2VA, this says {kind!r}")
    state = read_state_dict(base)
    if sam2_file is not None:
        state |= {SAM + name: tensor for name, tensor in read_state_dict(sam2_file).items()}
    if not any(name.startswith(SAM + "image_encoder.") for name in state):
        raise CheckpointError(
            f"{source}: neither it nor {base} holds the image encoder of SAM 2; give --sam2 sam2_hiera_large.pt"
        )
    return merge_training(trained, state, lora_scale, source)


def read_tokenizer(folder: Path, added=()):
    """The tokenizer of a published folder, without its remote code, and with `added` tokens appended where missing."""
    from unimed.models.checkpoints.tokenizers import read_without_remote_code

    tokenizer = read_without_remote_code(folder)
    known = tokenizer.get_vocab()
    if missing := [token for token in added if token not in known]:
        tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def convert(source: Path, destination: Path, **options) -> ConversionReport:
    """Write a published folder or a training file as one that `unimed.load` and `AutoModel.from_pretrained` open.

    Args:
        options: `base`, `sam2`, `lora_scale` and `dtype` of `build`.
    """
    with atomic_folder(destination) as folder:
        model, report = build(source, **options)
        model.save_pretrained(folder)
    report.destination = str(destination)
    return report


def _tiny_mask_config(tiny: dict):
    hiera = tiny["hiera"]
    return sam2.sam2_video_config(
        hiera["embed_dim"],
        blocks=hiera["stages"],
        heads=hiera["num_heads"],
        global_blocks=hiera["global_att_blocks"],
        windows=hiera["window_spec"],
        background=hiera["window_pos_embed_bkg_spatial_size"],
        hidden_dim=tiny["d_model"],
        image_size=tiny["image_size"],
        memory_layers=tiny["mem_attn_layers"],
        memory_feed_forward=tiny["mem_attn_ff"],
        memory_dim=tiny["mem_dim"],
        decoder_mlp=tiny["decoder_mlp"],
        iou_hidden=tiny["iou_hidden"],
    )
