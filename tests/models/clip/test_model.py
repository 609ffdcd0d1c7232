"""The public face: encode, classify, retrieve; and what it says to bad input."""

import json
import logging

import numpy as np
import pytest
import torch
from closeness import MODEL, assert_close
from models.clip.recorded import FOLDER, recorded
from PIL import Image

import unimed
from unimed.models.clip import ClipConfig, ClipModel, ClipProcessor
from unimed.models.clip.building import named_config

IMAGES = FOLDER / "pictures"


def test_zero_shot_and_saved_again(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = unimed.load(tmp_path / "saved", device="cpu")
    paths = [IMAGES / "rgb.png", IMAGES / "gray_L.png"]
    first, second = (
        model.zero_shot(paths, ["heart", "lung", "liver"]),
        again.zero_shot(paths[0], ["heart", "lung", "liver"]),
    )
    assert first[0].probabilities == pytest.approx(second.probabilities, abs=MODEL)
    assert sum(second.probabilities) == pytest.approx(1) and second.label == second.ranked()[0][0]
    scale = float(model.towers.logit_scale.detach().exp())
    expected = (scale * torch.tensor(second.similarities)).softmax(0)
    assert second.probabilities == pytest.approx(expected.tolist(), abs=MODEL)
    prediction = model.predict(paths[0], "heart, lung, liver")
    assert prediction.text == second.label


def test_published_demonstration_behind_a_switch(model):
    numbers = json.loads((FOLDER / "model_io.json").read_text())
    io = recorded()
    texts = [json.loads((FOLDER / "text.json").read_text())["texts"][i] for i in io["rows"].tolist()]
    labels = {str(i): [text] for i, text in enumerate(texts) if text.strip()}
    kept = [int(name) for name in labels]
    results = model.zero_shot(io["images"], labels, compat="reference")
    right = model.zero_shot(io["images"], labels)
    for old, new, row, other in zip(
        results, right, numbers["demo_probs_reference_snapshot_unnormalised_image"],
        numbers["demo_probs_2025_readme_normalised_scaled"], strict=True,
    ):  # fmt: skip
        for result, expected in ((old, row), (new, other)):
            part = np.array(expected)[kept]
            assert result.probabilities == pytest.approx((part / part.sum()).tolist(), abs=2e-5)
        assert old.label == new.label


def test_one_label_is_refused(model):
    with pytest.raises(ValueError, match="only one label"):
        model.zero_shot(IMAGES / "rgb.png", ["heart"])
    for labels, word in (([], "no label"), (["a", "a"], "twice"), ({"a": []}, "needs a prompt"), (["a", " "], "b")):
        with pytest.raises(ValueError, match=word if word != "b" else None):
            model.zero_shot(IMAGES / "rgb.png", labels, templates=["{}"])
    with pytest.raises(ValueError, match="template"):
        model.zero_shot(IMAGES / "rgb.png", ["a", "b"], templates=["no place"])


def test_a_text_too_long_is_named(model, caplog):
    with caplog.at_level(logging.WARNING):
        features = model.encode_text(["heart", "lung " * 400])
    assert "cut to 256 tokens: lung lung" in caplog.text and len(caplog.records) == 1
    assert_close(features[0], model.encode_text("heart")[0], relative=MODEL)


def test_order_and_batches_change_nothing(model):
    texts = ["lung", "a slide of melanoma in the left lung", "heart", "tumor"]
    together, alone = model.encode_text(texts), torch.cat([model.encode_text(t) for t in texts])
    assert_close(together, alone, relative=MODEL)
    assert_close(model.encode_text(texts, batch_size=2), alone, relative=MODEL)


@torch.no_grad()
def test_one_call_makes_what_forward_takes(model):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    inputs = model.processor(images=image, text=["a chest x-ray", "liver"], return_tensors="pt", padding=True)
    output = model(**inputs)
    assert output["image_features"].shape[0] == 1 and output["text_features"].shape[0] == 2
    torch.testing.assert_close(output["image_features"], model.image_features(model.processor.images([image])))
    with pytest.raises(ValueError, match="images, text"):
        model.processor()


def test_retrieve(model):
    texts = ["heart", "lung", "liver tumor", "normal slide"]
    found = model.retrieve("lung", texts, k=2)
    assert found[0][0] == (1, pytest.approx(1.0, abs=MODEL)) and len(found[0]) == 2
    pictures = [IMAGES / "rgb.png", IMAGES / "gray_L.png", IMAGES / "tall_rgb.png"]
    assert model.retrieve(pictures[1], pictures, k=1)[0][0][0] == 1
    assert len(model.retrieve(texts, model.encode_image(pictures))) == 4
    with pytest.raises(ValueError, match="gallery"):
        model.retrieve("lung", [])


def test_deep_values_are_windowed(model):
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    low = (ramp / 16).astype(np.uint8)
    deep, flat = model.encode_image(ramp), model.encode_image(low)
    assert float(torch.nn.functional.cosine_similarity(deep, flat)) > 0.99
    white = model.encode_image(np.full((64, 64), 255, np.uint8))
    assert float(torch.nn.functional.cosine_similarity(deep, white)) < 0.98
    lung = model.encode_image(ramp.astype(np.int16) - 1000, site="lung")
    assert not torch.allclose(lung, deep)


def test_bad_images(model, tmp_path):
    (tmp_path / "cut.png").write_bytes((IMAGES / "rgb.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.png"):
        model.encode_image(tmp_path / "cut.png")
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        model.encode_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="NaN"):
        model.encode_image(np.full((8, 8), np.nan))
    with pytest.raises(ValueError, match="not dict"):
        model.encode_image({})
    assert model.encode_image(Image.new("RGB", (1, 1))).shape == (1, 32)


def tiny(name, **text):
    config = named_config(name)
    config.model_cfg["vision_cfg"] = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
    config.model_cfg["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2} | text
    config.model_cfg["embed_dim"] = 32
    return ClipModel(config).eval()


def test_openai_style_text_tower(tmp_path):
    """Causal mask and tokenizer of open_clip itself; padded in full; buffers survive saving."""
    model = tiny("ViT-B-32-quickgelu")
    texts = ["a chest radiograph", "lung", "word " * 100]
    short, full = model.encode_text(texts[:2]), model.encode_text(texts[:2], padding="max_length")
    assert_close(short, full, relative=MODEL)
    assert model.processor.texts(texts)[1] == [2]
    assert model.processor.texts(texts[:2])[0].shape[1] == 77
    model.save_pretrained(tmp_path / "m")
    again = unimed.load(tmp_path / "m", device="cpu")
    assert_close(again.encode_text(texts), model.encode_text(texts), relative=MODEL)


def test_sigmoid_models(tmp_path):
    """SigLIP: every label has a probability of its own, so that one label is enough."""
    config = named_config("ViT-B-16-SigLIP")
    assert config.preprocess_cfg["resize_mode"] == "squash" and config.image_size == 224
    model = tiny("ViT-B-32-quickgelu")
    model.config.model_cfg |= {"init_logit_bias": -10, "custom_text": True}
    model = ClipModel(ClipConfig(**{k: getattr(model.config, k) for k in ("model_cfg", "preprocess_cfg", "tokenizer")}))
    result = model.eval().zero_shot(IMAGES / "rgb.png", ["heart"])
    assert result.kind == "sigmoid" and 0 < result.probabilities[0] < 0.5


def test_siglip_reads_its_padding(folder):
    """Its text tower has no mask over padding and reads the last place: texts are always padded in full."""
    config = named_config("ViT-B-16-SigLIP")
    config.model_cfg |= {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    }
    config.model_cfg["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "vocab_size": 200, "proj_type": "none"}
    model = ClipModel(config).eval()
    model.processor = ClipProcessor(config, folder / "tokenizer")
    ids, cut = model.processor.texts(["lung", "heart " * 100])
    assert ids.shape == (2, 64) and cut == [1]
    assert model.sigmoid and model.zero_shot(IMAGES / "tall_rgb.png", ["heart"]).kind == "sigmoid"


def test_by_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no model"):
        unimed.load("open_clip:ViT-B-99")
    with pytest.raises(ValueError, match="laion"):
        unimed.load("open_clip:ViT-B-32/nothing")
    # The weights of a name are open_clip's download; here a small file takes its place.
    import open_clip

    from unimed.models.checkpoints import open_clip_names as named

    donor = tiny("ViT-B-32-quickgelu")
    torch.save({"state_dict": donor.towers.state_dict()}, tmp_path / "weights.pt")
    monkeypatch.setattr(
        named, "named_config", lambda name: ClipConfig(**donor.config.to_dict() | {"_name_or_path": ""})
    )
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *words, **options: str(tmp_path / "weights.pt"))
    model = unimed.load("open_clip:ViT-B-32/laion2b_s34b_b79k", device="cpu")
    assert torch.equal(model.towers.visual.proj, donor.towers.visual.proj) and not model.training


def test_from_the_hub(tmp_path, monkeypatch, folder):
    """As BiomedCLIP is published; a folder here takes the place of the download."""
    import shutil

    import huggingface_hub
    from safetensors.torch import load_file, save_file

    source = tmp_path / "snapshot"
    shutil.copytree(folder / "tokenizer", source)
    described = json.loads((FOLDER / "model" / "open_clip_config.json").read_text())
    described["model_cfg"]["text_cfg"]["hf_model_name"] = "owner/text"
    shutil.copy(FOLDER / "model" / "text_encoder" / "config.json", source)
    (source / "open_clip_config.json").write_text(json.dumps(described))
    state = load_file(folder / "model.safetensors")
    save_file({n.removeprefix("towers."): t for n, t in state.items()}, source / "open_clip_model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *words, **options: str(source))
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    model = unimed.load("hf-hub:owner/name", device="cpu")
    io = recorded()
    assert_close(model.encode_image(io["images"], normalize=False), io["image_features_raw"], relative=MODEL)


@pytest.mark.parametrize("tokens", [1, 10**6])
def test_how_many_images_a_cpu_reads_at_once_changes_no_feature(model, tokens, monkeypatch):
    from unimed.models.clip import modeling

    images = torch.randn(5, 3, model.config.image_size, model.config.image_size)
    apart = torch.cat([model.encode_image(one[None]) for one in images])
    read = []
    monkeypatch.setattr(modeling, "TOKENS_AT_ONCE", tokens)
    hook = model.towers.visual.register_forward_pre_hook(lambda module, given: read.append(len(given[0])))
    together = model.encode_image(images, batch_size=4)
    hook.remove()
    assert read == ([1] * 5 if tokens == 1 else [4, 1])
    assert_close(together, apart, relative=MODEL)
