import json

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from unimed.models.checkpoints.reading import CheckpointError
from unimed.models.checkpoints.tokenizers import read_without_remote_code
from unimed.models.checkpoints.unibiomed import grounded_processor

WORDS = [
    "the liver in abdomen CT is large",
    "please segment the tumor",
    "a  b",
    "It is [SEG].",
    "<|user|>\nhello<|end|>",
]


def folder_with(tmp_path, prefix):
    """A folder as InternLM2 publishes its tokenizer: SentencePiece file, settings with auto_map, Python beside it."""
    (tmp_path / "corpus.txt").write_text("\n".join(WORDS * 40))
    SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=330,
        model_type="bpe", byte_fallback=True, add_dummy_prefix=prefix, remove_extra_whitespaces=False,
        normalization_rule_name="identity", character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "tokenizer_class": "InternLM2Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "added_tokens_decoder": {"330": {"content": "<IMG_CONTEXT>", "special": True}, "331": {"content": "[SEG]"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenization_internlm2.py").write_text("raise SystemExit('this must never run')")
    return tmp_path


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_is_read_without_its_code(prefix, tmp_path):
    folder = folder_with(tmp_path, prefix)
    tokenizer = read_without_remote_code(folder)
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in [word for word in WORDS if "[SEG]" not in word] + ["  two spaces\n\nand µm, 肝臓", "x"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == pieces.encode(text) and tokenizer.decode(ids) == text
    assert tokenizer("a[SEG]", add_special_tokens=False)["input_ids"] == [*pieces.encode("a"), 331]
    assert tokenizer.bos_token_id == 1 and tokenizer.eos_token_id == 2
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == 330
    published = {"vision_config": {"image_size": 448, "patch_size": 14}, "llm_config": {"model_type": "internlm2"}}
    processor = grounded_processor(published, tokenizer)
    assert processor.encode_prompt([("user", "a"), ("assistant", "b"), ("user", "c")], 0).count(1) == 1
    assert (
        processor.encode_prompt([("user", "a")], 0)[0]
        == 1
        == processor.encode_example((("user", "a"), ("", "b")), 0)[0][0]
    )


def test_damaged_folders_are_named(tmp_path):
    folder = folder_with(tmp_path, True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {"400": {"content": "[SEG]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="id 400"):
        read_without_remote_code(folder)
    (folder / "tokenizer.model").write_bytes(b"no tokenizer")
    with pytest.raises(CheckpointError, match="SentencePiece"):
        read_without_remote_code(folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        read_without_remote_code(folder)
