"""Tokenizers of published folders, read without the Python files that come with some of them."""

from __future__ import annotations

from pathlib import Path

from unimed.models import foreign
from unimed.models.checkpoints.reading import CheckpointError


def read_without_remote_code(folder: Path):
    """The tokenizer of a folder.

    InternLM2 publishes its tokenizer as a SentencePiece file with Python code; the file is read here, the code never.

    Raises:
        CheckpointError: no tokenizer file that can be read.
    """
    folder = Path(folder)
    settings = folder / "tokenizer_config.json"
    told = foreign.read_json(settings) if settings.is_file() else {}
    if "auto_map" in told and not (folder / "tokenizer.json").is_file():
        if not (folder / "tokenizer.model").is_file():
            raise CheckpointError(f"{folder}: neither tokenizer.json nor tokenizer.model is there; download it again")
        return _from_sentencepiece(folder, told)
    return foreign.tokenizer(folder)


#: Written both ways when a tokenizer is rebuilt; what differs there would differ in every answer.
_PROBES = (
    "Please segment the liver in CT.",
    "<|user|>\nWhat  is it?<|end|>\n",
    " 3 x 4 mm\u00b2, \u809d\u81d3 \U0001fac1",
)


def _from_sentencepiece(folder: Path, told: dict):
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import generate_merges

    file = str(folder / "tokenizer.model")
    try:
        pieces = SentencePieceProcessor(model_file=file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file}: no SentencePiece file ({error})") from error
    scored = [(pieces.id_to_piece(index), pieces.get_score(index)) for index in range(len(pieces))]
    vocabulary = {piece: index for index, (piece, _) in enumerate(scored)}
    merges = generate_merges(vocabulary, scored)
    unknown = pieces.id_to_piece(pieces.unk_id())
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefixed = pieces.encode("a", out_type=str)[0].startswith("\u2581")
    steps = [normalizers.Prepend("\u2581")] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    decoding = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(decoding + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
    for probe in _PROBES:
        if tokenizer.encode(probe, add_special_tokens=False).ids != pieces.encode(probe):
            raise CheckpointError(f"{file}: cannot be rebuilt without its Python code; {probe!r} is cut otherwise")
    named = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = told.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if value:
            named[name] = value
    named = {"unk_token": unknown, "bos_token": "<s>", "eos_token": "</s>"} | named
    tokenizer.add_special_tokens(
        [pieces.id_to_piece(index) for index in range(len(pieces)) if pieces.is_control(index)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    for index, entry in sorted((int(key), value) for key, value in told.get("added_tokens_decoder", {}).items()):
        word = entry["content"]
        token = AddedToken(word, special=entry.get("special", True), normalized=False)
        wrapped.add_tokens([token], special_tokens=token.special)
        if wrapped.convert_tokens_to_ids(word) != index:
            raise CheckpointError(f"{folder}: token {word!r} should have id {index}; tokenizer_config.json is damaged")
    return wrapped
