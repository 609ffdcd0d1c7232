"""LISA folders and uMedGround's runs share one layout: LLaVA v1, a SAM, and a projection between them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models import foreign
from unimed.models.checkpoints import llava_v1, reading, sam
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, read_state_dict

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: System line that LLaVA v1, LISA and uMedGround train with.
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_VISUAL, _PROJECTION = "model.visual_model.", "model.text_hidden_fcs.0."
_UNUSED = "unused: a second head that no published path reads"


def merge_lora(state: dict[str, torch.Tensor], alpha: float = 16.0) -> dict[str, torch.Tensor]:
    """A state dict as peft wraps it, with every adapter added to its weight: W + (alpha / rank) B A.

    Wrapping prefixes go; the base weight may be called `q_proj.weight` (peft 0.4) or `q_proj.base_layer.weight`.

    Raises:
        CheckpointError: an adapter without its other half or without a weight to stand on.
    """
    plain, adapters = {}, {}
    for name, tensor in state.items():
        name = re.sub(r"^(?:module\.)?base_model\.model\.", "", name)
        if found := re.match(r"(.*)\.lora_([AB])\.(?:default\.)?weight$", name):
            adapters.setdefault(found[1], {})[found[2]] = tensor
        else:
            plain[name.replace(".base_layer.", ".")] = tensor
    for base, halves in adapters.items():
        if set(halves) != {"A", "B"} or f"{base}.weight" not in plain:
            raise CheckpointError(f"adapter {base}: found {sorted(halves)}, and the weight it stands on must be there")
        weight, rank = plain[f"{base}.weight"], halves["A"].shape[0]
        delta = (alpha / rank) * (halves["B"].float() @ halves["A"].float())
        plain[f"{base}.weight"] = (weight.float() + delta).to(weight.dtype)
    return plain


def convert_state_dict(merged: dict[str, torch.Tensor], extra_rows: int = 1) -> dict[str, torch.Tensor]:
    """Merged tensors under the names of `GroundedMLLM`; what no model part is made for keeps a name of its own."""
    visual = {n.removeprefix(_VISUAL): t for n, t in merged.items() if n.startswith(_VISUAL)}
    rest = {n: t for n, t in merged.items() if not n.startswith((_VISUAL, _PROJECTION, "bbox_prediction_head."))}
    state = {f"backbone.vlm.{n}": t for n, t in llava_v1.convert_state_dict(rest, extra_rows).items()}
    state |= {f"seg_projection.{n[len(_PROJECTION) :]}": t for n, t in merged.items() if n.startswith(_PROJECTION)}
    head = r"^mask_decoder\.bbox_prediction_head\.layers\.(\d)\."
    for name, tensor in sam.convert_state_dict(visual).items():
        if re.match(head, name):
            # ReLUs are modules here, so layers count by two.
            name = re.sub(head, lambda found: f"box_head.layers.{2 * int(found[1])}.", name)
        else:
            name = f"mask_head.sam.{name}"
        state[name] = tensor
    for name, tensor in merged.items():
        if found := re.match(r"^bbox_prediction_head\.layers\.(\d)\.(.*)$", name):
            state[f"language_box_head.layers.{2 * int(found[1])}.{found[2]}"] = tensor
    return state


def grounded_config(published: dict, merged, state, clip: dict | None, ids: dict[str, int], box_head: dict | None):
    """`GroundedConfig` for converted tensors.

    Args:
        published: `config.json` of the run or of its base model.
        merged, state: tensors before and after `convert_state_dict`.
        clip: vision part of CLIP's `config.json`.
        ids: "image", and "seg" or "box".
        box_head: arguments of `build_box_head`, None for LISA.
    """
    from unimed.models.grounded.configuration import GroundedConfig

    prefix = "backbone.vlm."
    backbone = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    visual = {n.removeprefix(_VISUAL): t for n, t in merged.items() if n.startswith(_VISUAL)}
    mask_config = sam.config_of(sam.fold_encoder_lora(visual))
    mask_config.predicts_masks = any(name.startswith("mask_decoder.output_upscaling.") for name in visual)
    return GroundedConfig(
        backbone_config=llava_v1.backbone_config(published, backbone, clip),
        mask_config=mask_config,
        box_head=box_head,
        box_decoder=box_head is not None,
        language_box_head=box_head is not None and "language_box_head.layers.0.weight" in state,
        presence_head=False,
        image_token_id=ids["image"],
        seg_token_id=ids.get("seg", -1),
        box_token_id=ids.get("box"),
        prompt_state="before",
    )


def build(merged, published: dict, tokenizer, clip_config, ids, box_head, layout: str, source):
    """Model in memory and report.

    Args:
        merged: tensors with plain names, CLIP's among them.
        tokenizer: knows every token already; rows for those without one are added as zeros.

    Raises:
        CheckpointError: missing or left-over tensors; each is named.
    """
    from unimed.models.grounded.modeling import GroundedMLLM

    if "model.embed_tokens.weight" not in merged:
        raise CheckpointError(f"{source}: no model.embed_tokens.weight; is this a whole state dict of {layout}?")
    rows = len(merged["model.embed_tokens.weight"])
    state = convert_state_dict(merged, max(0, ids["image"] + 1 - rows))
    # One number type throughout, that of the language model: trainers mix them, and 13 B parameters should not grow.
    dtype = state["backbone.vlm.lm_head.weight"].dtype
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    dropped = {n: _UNUSED for n in state if n.startswith("mask_head.sam.mask_decoder.bbox_prediction_head_drop.")}
    state = {name: tensor for name, tensor in state.items() if name not in dropped}
    config = grounded_config(published, merged, state, clip_config, ids, box_head)
    dropped |= {n: "computed, not learned" for n in merged if llava_v1.BUFFERS.search(n)}
    model, report = reading.build(GroundedMLLM, config, state, layout, source, dtype, dropped)
    model.processor = grounded_processor(tokenizer, config)
    return model, report


def grounded_processor(tokenizer, config, content: int | None = None, **changes):
    """Processor of a LISA-like model: CLIP's middle crop, SAM's padded square, Llama's tokens piece by piece."""
    from unimed.models.grounded.processing import GroundedProcessor

    vision = config.backbone_config.vision_config
    size = config.mask_config.vision_config.image_size
    options = dict(
        template="llava_v1",
        image_start="<im_start>",
        image_token=llava_v1.IMAGE_TOKEN,
        image_end="<im_end>",
        tokens_per_tile=(vision.image_size // vision.patch_size) ** 2,
        tile_size=vision.image_size,
        max_tiles=1,
        tile_fit="crop",
        tile_mean=CLIP_MEAN,
        tile_std=CLIP_STD,
        mask_size=size,
        mask_fit="pad",
        mask_content=content,
        system=SYSTEM,
        bos=True,
        separate_tokens=True,
        max_prompt_tokens=2048,
    )
    return GroundedProcessor(tokenizer, **options | changes)


def read_parts(source: Path, base: Path | None, clip: Path | None, lora_alpha: float):
    """Merged tensors with CLIP's, configuration, tokenizer and CLIP's configuration of a file or folder."""
    source = Path(source)
    folder = source if source.is_dir() and (source / "config.json").is_file() else base
    if folder is None:
        raise CheckpointError(
            f"{source}: a state dict alone knows neither its tokenizer nor its sizes; "
            "give the folder of the LLaVA model it was trained from with --base"
        )
    merged, clip_config = merge_lora(read_state_dict(source), lora_alpha), None
    if clip is not None:
        clip_config = llava_v1.read_config(clip).get("vision_config")
        if not any(name.startswith("model.vision_tower.") for name in merged):
            merged |= llava_v1.clip_state_dict(clip)
    if not any(name.startswith("model.vision_tower.") for name in merged):
        raise CheckpointError(
            f"{source}: CLIP is not in it, as in every merged folder; "
            "give the folder of openai/clip-vit-large-patch14 with --clip"
        )
    return merged, llava_v1.read_config(folder), foreign.tokenizer(folder), clip_config


def recognises(path: Path) -> bool:
    """A folder of a LISA: its configuration or index names LISA's parts, and there is no box head."""
    path = Path(path)
    config = llava_v1.read_config(path) if path.is_dir() else {}
    names = llava_v1.tensor_names(path) if path.is_dir() else set()
    if any("bbox_prediction_head" in name for name in names):
        return False
    return "LISAForCausalLM" in config.get("architectures", []) or any(".text_hidden_fcs." in name for name in names)


def add_arguments(parser) -> None:
    parser.add_argument(
        "--clip", type=Path, help="folder of openai/clip-vit-large-patch14, where the source lacks CLIP"
    )
    parser.add_argument("--base", type=Path, help="folder of the LLaVA model a bare state dict was trained from")
    parser.add_argument("--lora-alpha", type=float, help="alpha of adapters that are not merged (16)")


def convert(
    source: Path, destination: Path, clip: Path | None = None, base: Path | None = None, lora_alpha: float = 16.0
) -> ConversionReport:
    """Write a LISA folder, or the state dict of one that was not merged, as `unimed.load` opens it.

    Raises:
        CheckpointError: parts that have to be given are missing, or tensors are missing or left over.
    """
    merged, published, tokenizer, clip_config = read_parts(source, base, clip, lora_alpha)
    tokenizer.add_tokens(["[SEG]", "<im_start>", "<im_end>", llava_v1.IMAGE_TOKEN], special_tokens=True)
    ids = {
        "image": tokenizer.convert_tokens_to_ids(llava_v1.IMAGE_TOKEN),
        "seg": tokenizer.convert_tokens_to_ids("[SEG]"),
    }
    model, report = build(merged, published, tokenizer, clip_config, ids, None, "lisa", source)
    with atomic_folder(destination) as folder:
        model.save_pretrained(folder)
    report.destination = str(destination)
    return report
