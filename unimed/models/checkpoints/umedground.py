"""uMedGround: merged folders, and state dicts of a DeepSpeed run whose adapters are not merged.

No trained uMedGround was published; these are the layouts its code writes. Two tokenizers are met: with [BOX] as a
token of its own (merged folders and older runs), and without (the released training script), where the piece " ["
stood for it. The rows of the embeddings tell them apart.
"""

from __future__ import annotations

from pathlib import Path

from unimed.files import atomic_folder
from unimed.models.checkpoints import lisa, llava_v1
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport

#: Length the longer side of a picture gets in SAM's square, of 1024.
CONTENT = 640
KINDS = ("mhp", "umhp", "uncertain", "point")
#: What stood for [BOX] in runs of the released script: SentencePiece's " [".
PIECE = "\u2581["


def token_ids(tokenizer, rows: int, source="") -> tuple[dict[str, int], str]:
    """Ids of the image and of [BOX], and how [BOX] is spelled; the tokenizer gets the tokens it lacks.

    Args:
        rows: of the embeddings in the checkpoint.

    Raises:
        CheckpointError: the rows fit neither layout.
    """
    known = tokenizer.convert_tokens_to_ids("[BOX]") not in (None, tokenizer.unk_token_id)
    missing = rows - len(tokenizer)
    if known or missing == 3:
        tokenizer.add_tokens(["[BOX]", "<im_start>", "<im_end>"], special_tokens=True)
        spelled = "[BOX]"
    elif missing in (0, 2):
        tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
        spelled = PIECE
    else:
        raise CheckpointError(
            f"{source}: {rows} rows of embeddings for a tokenizer of {len(tokenizer)}; uMedGround adds 3 tokens "
            "([BOX], <im_start>, <im_end>) or 2 (without [BOX]). Is --base the model the run started from?"
        )
    tokenizer.add_tokens([llava_v1.IMAGE_TOKEN], special_tokens=True)
    ids = {
        "image": tokenizer.convert_tokens_to_ids(llava_v1.IMAGE_TOKEN),
        "box": tokenizer.convert_tokens_to_ids(spelled),
    }
    return ids, spelled


def recognises(path: Path) -> bool:
    """A merged folder whose index names the box head."""
    path = Path(path)
    names = llava_v1.tensor_names(path) if path.is_dir() else set()
    return any("bbox_prediction_head" in name for name in names)


def add_arguments(parser) -> None:
    lisa.add_arguments(parser)
    parser.add_argument("--kind", choices=KINDS, help="how the run trained its box head (mhp)")


def build(
    source: Path,
    clip: Path | None = None,
    base: Path | None = None,
    lora_alpha: float = 16.0,
    kind: str = "mhp",
):
    """Model in memory and report; see `convert`."""
    if kind not in KINDS:
        raise CheckpointError(f"kind {kind!r} is not known; choose one of: {', '.join(KINDS)}")
    merged, published, tokenizer, clip_config = lisa.read_parts(source, base, clip, lora_alpha)
    if "model.embed_tokens.weight" not in merged:
        raise CheckpointError(f"{source}: no model.embed_tokens.weight; is this a whole state dict of uMedGround?")
    ids, spelled = token_ids(tokenizer, len(merged["model.embed_tokens.weight"]), source)
    head = {"kind": kind} if kind == "point" else {"kind": kind, "tokens": True}
    model, report = lisa.build(merged, published, tokenizer, clip_config, ids, head, "umedground", source)
    size = model.config.mask_config.vision_config.image_size
    model.processor = lisa.grounded_processor(
        tokenizer,
        model.config,
        content=CONTENT * size // 1024,
        phrase_style="sentence",
        box_token=spelled,
    )
    if spelled == PIECE:
        report.notes.append("trained without a [BOX] token: the piece ' [' stands for it, as in the released script")
    return model, report


def convert(
    source: Path,
    destination: Path,
    clip: Path | None = None,
    base: Path | None = None,
    lora_alpha: float = 16.0,
    kind: str = "mhp",
) -> ConversionReport:
    """Write a uMedGround as a folder that `unimed.load` opens.

    Args:
        source: merged folder, or `pytorch_model.bin` (or its folder of shards) that zero_to_fp32 wrote.
        clip: folder of CLIP ViT-L/14, needed for merged folders.
        base: folder of the LLaVA model a bare state dict was trained from: its tokenizer and configuration.
        lora_alpha: of adapters that are not merged.
        kind: how the box head was trained; it decides what is answered, h0 alone ("point") or the mean of three.

    Raises:
        CheckpointError: parts that have to be given are missing, or tensors are missing or left over.
    """
    model, report = build(source, clip, base, lora_alpha, kind)
    with atomic_folder(destination) as folder:
        model.save_pretrained(folder)
    report.destination = str(destination)
    return report
