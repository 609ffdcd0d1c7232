import numpy as np
import pytest
import torch
from native_models import tiny_config, tiny_processor
from published_folders import TINY_SAM2, publish  # noqa: E402
from sam2_models import backbone  # noqa: E402
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast  # noqa: E402

from unimed.models.checkpoints import sam2, unibiomed  # noqa: E402
from unimed.models.starting.grounded_parts import build_on_parts  # noqa: E402

TOKENS = {"llava": ["<image>"], "qwen2_5_vl": ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]}
TOKENS["internvl"] = ["<IMG_CONTEXT>", "<img>", "</img>"]


def byte_tokenizer(added):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    wrapped.add_tokens(added, special_tokens=True)
    return wrapped


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    _, tensors = publish(folder / "published")
    official = {n.removeprefix(unibiomed.SAM): t for n, t in tensors.items() if n.startswith(unibiomed.SAM)}
    torch.save({"model": official}, folder / "sam2_hiera_tiny.pt")
    return folder / "sam2_hiera_tiny.pt"


def save_vlm(kind, folder):
    tokenizer = byte_tokenizer(TOKENS[kind])
    image_id = tokenizer.convert_tokens_to_ids(TOKENS[kind][0])
    torch.manual_seed(0)
    vlm = AutoModelForImageTextToText.from_config(backbone(kind, len(tokenizer), image_id, tokenizer.pad_token_id))
    vlm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return vlm, tokenizer


@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_unified_configs_train_on_small_parts(size, sam_file, tmp_path, monkeypatch):
    """Experts, [SEG], [BOX], presence and pairs, on folders laid out as the published ones."""
    from data.tiny_sets import records

    from unimed.data.collate.grounded import GroundedCollator
    from unimed.engine.config import load_config
    from unimed.registry import DATASETS, TASKS

    save_vlm("internvl", tmp_path / "vlm")
    monkeypatch.setattr(sam2, "config_of", lambda official: unibiomed._tiny_mask_config(TINY_SAM2))
    config = load_config(f"configs/unified/internvl3_5_{size}b.py")
    options = config.task.to_dict()
    options["model"] |= dict(backbone=str(tmp_path / "vlm"), sam2=str(sam_file))
    options["connector"] |= dict(task_token_c=8)
    options["lora"] |= dict(r=4, lora_alpha=4)
    task = TASKS.build(options).train()
    samples = DATASETS.build(dict(type="RecordDataset", path=str(records(tmp_path / "own"))))
    samples = [sample for sample in samples if sample.labels["task"] in ("referring", "box", "caption", "vqa")]
    collate = GroundedCollator(task.processor, mask_target_size=64)
    optimizer = torch.optim.AdamW(task.train_parameters(), lr=1e-3)
    for _ in range(2):
        losses = task(collate(samples))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {"text", "dice", "bce", "presence", "box", "connector", "pairs"} <= set(losses)
    assert all(torch.isfinite(value) for value in losses.values())
    assert task.model.connector.num_experts == 5 and task.model.box_head is not None


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "internvl"])
def test_a_model_starts_from_a_folder_of_transformers(kind, sam_file, tmp_path, monkeypatch):
    vlm, tokenizer = save_vlm(kind, tmp_path / "vlm")
    monkeypatch.setattr(sam2, "config_of", lambda official: unibiomed._tiny_mask_config(TINY_SAM2))
    model = build_on_parts(tmp_path / "vlm", sam_file)
    rows = model.get_input_embeddings().weight
    assert torch.equal(rows[: len(tokenizer)], vlm.get_input_embeddings().weight)
    assert model.config.seg_token_id == len(tokenizer) and len(rows) == len(tokenizer) + 5
    picture = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    said = model.predict(picture, "What is region1?", regions=[(0, 0, 40, 40)], max_new_tokens=3)
    model.save_pretrained(tmp_path / "ours")
    import unimed

    again = unimed.load(tmp_path / "ours", device="cpu")
    assert again.predict(picture, "What is region1?", regions=[(0, 0, 40, 40)], max_new_tokens=3).text == said.text


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl", "internvl"])
def test_a_model_starts_from_a_folder_and_looks_through_its_own_forward_pass(kind, sam_file, tmp_path, monkeypatch):
    torch.manual_seed(0)
    processor = tiny_processor(kind)
    vlm = AutoModelForImageTextToText.from_config(tiny_config(kind, processor.tokenizer))
    vlm.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    monkeypatch.setattr(sam2, "config_of", lambda official: unibiomed._tiny_mask_config(TINY_SAM2))
    model = build_on_parts(tmp_path / "vlm", sam_file, box_head="point", native=kind == "internvl")
    assert model.box_head is not None and model.config.box_token_id is not None
    assert model.backbone.native and model.processor.native.family.name == kind
    assert model.config.seg_token_id == model.processor.tokenizer.convert_tokens_to_ids("[SEG]")
    held = model.backbone.vlm.get_input_embeddings().weight
    known = vlm.get_input_embeddings().weight
    assert torch.equal(held[: len(known)], known) and len(held) > len(known)
    picture = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="takes no regions"):
        model.predict(picture, "What is region1?", regions=[(0, 0, 40, 40)])
    model.save_pretrained(tmp_path / "ours")
    said = model.predict(picture, "What is there?", max_new_tokens=3)
    import unimed

    again = unimed.load(tmp_path / "ours", device="cpu")
    assert again.predict(picture, "What is there?", max_new_tokens=3).markup == said.markup


def test_a_family_that_does_not_fit_says_why(sam_file, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "florence2"}')
    with pytest.raises(ValueError, match="encoder-decoder"):
        build_on_parts(tmp_path, sam_file)
