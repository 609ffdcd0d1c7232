"""A file as the published trainer writes it, with its EVA and Llama files, becomes a folder of ours."""

import json
import shutil

import pytest
import torch
from closeness import MODEL, assert_close
from golden_files import tensors
from models.uni_med.recorded import CONNECTOR, FULL, VISION, batch_of, recorded_model
from safetensors.torch import load_file, save_file

import unimed
from unimed.models.checkpoints import uni_med
from unimed.models.checkpoints.reading import CheckpointError

SIZES = {name: value for name, value in VISION.items() if name != "image_size"}


@pytest.fixture
def published(tmp_path):
    """(trained .pth, eva file, llama folder) of the recorded weights; the encoder has a block too many and a head."""
    state = load_file(FULL / "weights.safetensors")
    base = "llm_model.base_model.model."
    llama = tmp_path / "llama"
    llama.mkdir()
    language = {
        n.removeprefix(base).replace(".base_layer", ""): t
        for n, t in state.items()
        if n.startswith(base) and "lora_" not in n
    }
    save_file(language, llama / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(FULL / "tokenizer.model", llama)
    shutil.copy(FULL / "llm_config.json", llama / "config.json")
    eva = {n.removeprefix("visual_encoder."): t for n, t in state.items() if n.startswith("visual_encoder.")}
    eva |= {n.replace("blocks.2.", "blocks.3."): t for n, t in eva.items() if n.startswith("blocks.2.")}
    torch.save(eva | {"norm.weight": torch.ones(32), "head.weight": torch.ones(3, 32)}, tmp_path / "eva_vit_g.pth")
    keep = ("llm_proj.", "router.", "task_tokens.", "ln_vision.")
    trained = {n: t for n, t in state.items() if n.startswith(keep) or "lora_" in n or "inv_freq" in n}
    trained |= {n.replace("llm_proj.", "moe_layers."): t for n, t in trained.items() if n.startswith("llm_proj.")}
    config = {"model": CONNECTOR | {"has_moe": True, "image_size": 112, "lora_alpha": 16, "max_txt_len": 64}}
    torch.save({"model": trained, "config": config, "epoch": 0}, tmp_path / "checkpoint_0.pth")
    return tmp_path / "checkpoint_0.pth", tmp_path / "eva_vit_g.pth", llama


def test_the_converted_folder_computes_the_same(published, tmp_path):
    trained, eva, llama = published
    assert uni_med.recognises(trained)
    assert not uni_med.recognises(eva)
    report = uni_med.convert(trained, tmp_path / "out", llama=llama, eva=eva, vision=SIZES)
    assert not report.missing and not report.unexpected
    model, original = unimed.load(tmp_path / "out", device="cpu"), recorded_model()
    images = tensors("uni_med", "full", "io.safetensors")["images"]
    batch = batch_of("vqa", images)
    with torch.no_grad():
        assert_close(model(**batch).logits, original(**batch).logits, relative=MODEL)
    assert model.processor.tokens_per_tile == 16
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["layout"] == "uni_med"


def test_what_is_missing_is_named(published, tmp_path):
    trained, eva, llama = published
    with pytest.raises(CheckpointError, match="give llama="):
        uni_med.convert(trained, tmp_path / "out", eva=eva)
    with pytest.raises(CheckpointError, match="give eva="):
        uni_med.convert(trained, tmp_path / "out", llama=llama)
    whole = torch.load(trained, weights_only=True)
    del whole["model"]["router.fc2.bias"]
    torch.save(whole, trained)
    with pytest.raises(CheckpointError, match="router.fc2.bias"):
        uni_med.convert(trained, tmp_path / "out", llama=llama, eva=eva, vision=SIZES)
    whole["model"]["router.fc2.bias"] = torch.zeros(6)
    torch.save(whole, trained)
    with pytest.raises(CheckpointError, match=r"router.fc2.bias: \(6,\) instead of \(5,\)"):
        uni_med.convert(trained, tmp_path / "out", llama=llama, eva=eva, vision=SIZES)
    whole["model"]["moe_layers.0.0.bias"] = torch.ones(32)
    torch.save(whole, trained)
    with pytest.raises(CheckpointError, match="stored twice"):
        uni_med.convert(trained, tmp_path / "out", llama=llama, eva=eva, vision=SIZES)
    assert not (tmp_path / "out").exists()


def test_a_new_model_of_its_parts(published, tmp_path):
    from unimed.tasks.grounding import GroundingTask

    _, eva, llama = published
    parts = {"type": "UniMed", "llama": str(llama), "eva": str(eva), "vision": VISION, "lora": {"r": 2}}
    task = GroundingTask(parts, connector=CONNECTOR)
    original = recorded_model()
    images = tensors("uni_med", "full", "io.safetensors")["images"]
    with torch.no_grad():
        features = task.model.eval().backbone.visual_encoder(images[:1])
    assert_close(features, original.backbone.visual_encoder(images[:1]), relative=MODEL)
    language = task.model.backbone.lm.state_dict()
    for name, tensor in original.backbone.lm.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(language[name], tensor), name
    learning = {n for n, p in task.model.named_parameters() if p.requires_grad}
    assert all(n.startswith("connector.") or "lora_" in n for n in learning)
    with pytest.raises(FileNotFoundError, match="no folder of a language model"):
        GroundingTask(parts | {"llama": str(tmp_path / "gone")})
