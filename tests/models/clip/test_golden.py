"""Features, logits, loss, gradients, token ids and pictures of the published code, on its tiny recorded model."""

import json

import numpy as np
import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import recording, tensors
from models.clip.recorded import FOLDER, TEXTS, recorded

from unimed.io.images import load
from unimed.models.clip import ClipConfig, ClipModel, ClipProcessor, variant
from unimed.models.clip.building import build_towers, named_config, resize_positions, vision_start


def test_features_and_logits(model):
    io = recorded()
    image, text = model.encode_image(io["images"], normalize=False), model.encode_text(TEXTS["texts"], normalize=False)
    assert_close(image, io["image_features_raw"], "image features", MODEL)
    assert_close(text, io["all_text_features_raw"], "text features", MODEL)
    padded = model.encode_text(TEXTS["texts"], normalize=False, padding="max_length")
    assert_close(padded, io["all_text_features_raw"], "padded text features", MODEL)
    logits = (
        model.towers.logit_scale.exp()
        * torch.nn.functional.normalize(image)
        @ torch.nn.functional.normalize(text[io["rows"]]).T
    )
    assert_close(logits, io["logits_per_image"], "logits", MODEL)


def test_loss_and_gradients(model):
    from unimed.losses.contrastive import clip_loss

    io, numbers = recorded(), json.loads((FOLDER / "model_io.json").read_text())
    model.zero_grad()
    out = model(io["images"], io["all_token_ids"][io["rows"]])
    for name in ("image_features", "text_features"):
        out[name].retain_grad()
    loss = clip_loss(out["image_features"], out["text_features"], out["logit_scale"])
    loss.backward()
    assert loss.item() == pytest.approx(float(io["loss"]), rel=MODEL)
    assert_close(out["image_features"].grad, io["grad_image_features"], "gradient of the image features", MODEL)
    assert_close(out["text_features"].grad, io["grad_text_features"], "gradient of the text features", MODEL)
    norms = {n.replace("text.", "text_encoder.", 1) if n.startswith("text.") else n: p.grad.norm()
             for n, p in model.towers.named_parameters()}  # fmt: skip
    assert set(norms) == set(numbers["grad_norms"])
    # Some gradients are zero but for rounding, such as that of a key's bias.
    rounding = LAYER * max(numbers["grad_norms"].values())
    for name, expected in numbers["grad_norms"].items():
        assert float(norms[name]) == pytest.approx(expected, rel=MODEL, abs=rounding), name
    model.zero_grad()


def test_token_ids(folder):
    processor = ClipProcessor.from_pretrained(folder)
    ids, cut = processor.texts(TEXTS["texts"], "max_length")
    assert ids.shape == (11, 256)
    for row, expected in zip(ids, TEXTS["ids_256"], strict=True):
        assert row[row != 0].tolist() == expected["trimmed"]
    shorter, _ = processor.texts(TEXTS["texts"])
    assert (shorter == ids[:, : shorter.shape[1]]).all() and not ids[:, shorter.shape[1] :].any()
    assert [TEXTS["texts"][i][:5] for i in cut] == [t[:5] for t in TEXTS["texts"] if len(t.split()) >= 255]
    assert [processor.tokenizer.clean_fn(text) for text in TEXTS["texts"]] == TEXTS["cleaned_whitespace"]


@pytest.mark.parametrize(
    ("recording", "options"),
    [
        ("ids_16", {}),
        ("ids_16_strip_sep", {"strip_sep_token": True}),
        ("ids_16_clean_lower", {"clean": "lower"}),
        ("ids_16_clean_canonicalize", {"clean": "canonicalize"}),
    ],
)
def test_other_ways_to_tokenize(folder, recording, options):
    config = ClipConfig.from_pretrained(folder)
    config.model_cfg["text_cfg"] |= {"context_length": 16, "tokenizer_kwargs": options}
    ids, _ = ClipProcessor(config, folder / "tokenizer").texts(TEXTS["texts"], "max_length")
    assert ids.tolist() == TEXTS[recording]


def as_published(name):
    """The published readers drop the opacity; by default what is transparent is black."""
    return load(FOLDER / "pictures" / name, compat="reference" if name == "rgba.png" else None)


@pytest.mark.parametrize("name", ["rgb.png", "palette_P.png", "rgba.png"])
def test_pictures_are_rgb_first(folder, name):
    ours = ClipProcessor.from_pretrained(folder).image(as_published(name))
    expected = recorded("preprocess")[f"{name.split('.')[0]}.eval32.rgb_first"]
    assert_close(ours, expected, relative=MODEL)


def test_reference_order_behind_a_switch(folder):
    reference = ClipProcessor.from_pretrained(folder, compat="reference")
    expected = recorded("preprocess")["palette_P.eval32.reference_resize_then_rgb"]
    assert_close(reference.image(FOLDER / "pictures" / "palette_P.png"), expected, relative=MODEL)


def test_sixteen_bit_is_windowed_not_clipped_to_white(folder):
    path = FOLDER / "pictures" / "gray_I16.tiff"
    white = recorded("preprocess")["gray_I16.eval32.reference_resize_then_rgb"]
    ours = ClipProcessor.from_pretrained(folder).image(path)
    assert (white == white.amax(dim=(1, 2), keepdim=True)).float().mean() > 0.9  # what the published order makes of it
    assert (ours == ours.amax(dim=(1, 2), keepdim=True)).float().mean() < 0.1
    assert float(ours.std()) > 3 * float(white.std())


def test_every_recorded_picture(folder):
    preprocess = json.loads(recording("unimed_clip", "preprocess", "preprocess.json").read_text())
    recorded_pictures, compared = tensors("unimed_clip", "preprocess", "preprocess.safetensors"), 0
    for compat, order in (("reference", "reference_resize_then_rgb"), (None, "rgb_first")):
        for name, entry in preprocess["images"].items():
            if name == "gray_I16":
                continue
            path = FOLDER / "pictures" / entry["file"] if compat else as_published(entry["file"])
            ours = ClipProcessor.from_pretrained(folder, compat=compat).image(path)
            assert_close(ours, recorded_pictures[f"{name}.eval32.{order}"], f"{name} {order}", LAYER)
            big = ClipConfig(**json.loads((FOLDER / "model" / "open_clip_config.json").read_text()))
            big.preprocess_cfg["size"] = 224
            ours = ClipProcessor(big, compat=compat).image(path)[:, :8, :8]
            assert_close(ours, recorded_pictures[f"{name}.eval224.{order}.crop8_topleft"], f"{name} at 224", LAYER)
            compared += 2
    assert compared == 28


def test_training_crops(folder):
    processor = ClipProcessor.from_pretrained(folder)
    for seed in range(3):
        torch.manual_seed(seed)
        crop = processor.train_image(FOLDER / "pictures" / "rgb.png")
        assert (crop == recorded("preprocess")[f"rgb.train32.seed{seed}.uint8"]).all()
    image = processor.normalize(crop[None])
    assert image.dtype == torch.float32 and float(image.abs().max()) < 3


def test_quick_gelu_matters(folder, model):
    io, expected = recorded(), recorded("model_io_gelu_variant")["image_features_raw_exact_gelu"]
    exact = ClipConfig.from_pretrained(folder)
    exact.model_cfg["quick_gelu"] = False
    towers = build_towers(exact).eval()
    towers.load_state_dict(model.towers.state_dict())
    with torch.no_grad():
        features = towers.encode_image(io["images"])
    assert_close(features, expected, relative=MODEL)
    assert float((features - io["image_features_raw"]).abs().max()) > 1e-2


def test_dropout_is_off_after_loading(folder, model):
    config = ClipConfig.from_pretrained(folder)
    config.text_config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    other = ClipModel(config).eval()
    other.load_state_dict(model.state_dict())
    io = recorded()
    with torch.no_grad():
        assert_close(other.text_features(io["all_token_ids"], False), io["all_text_features_raw"], relative=MODEL)


@pytest.mark.parametrize("grid", [(6, 6), (3, 3)])
def test_position_tables_on_other_grids(grid):
    tables = recorded("pos_embed_resize")
    word = {(6, 6): "up_6x6", (3, 3): "down_3x3"}[grid]
    assert_close(resize_positions(tables["source_4x4"], grid), tables[f"upstream_{word}"], relative=MODEL)
    assert_close(resize_positions(tables["source_4x4"], grid, "reference"), tables[f"fork_{word}"], relative=MODEL)


@pytest.mark.parametrize("name", ["unimed_clip_vit_b16", "unimed_clip_vit_l14_base_text_encoder",
                                  "unimed_clip_vit_l14_large_text_encoder"])  # fmt: skip
def test_published_key_lists(name):
    """Every tensor of the three published files has a place of its shape, and no place is left empty."""
    from unimed.models.checkpoints.unimed_clip import rename

    manifest = json.loads((FOLDER / "manifests" / f"{name}.json").read_text())
    published = {f"module.{key}": tuple(shape) for key, shape in manifest["keys"].items()}
    with torch.device("meta"):
        own = {key: tuple(t.shape) for key, t in build_towers(variant(name)).state_dict().items()}
    assert rename(published) == own
    assert sum(int(np.prod(shape)) for shape in own.values()) == manifest["n_params"]


def test_the_configuration_is_read_off_the_tensors():
    from unimed.models.checkpoints.unimed_clip import configuration, rename

    for name in ("unimed_clip_vit_b16", "unimed_clip_vit_l14_large_text_encoder"):
        manifest = json.loads((FOLDER / "manifests" / f"{name}.json").read_text())
        state = {key: torch.empty(shape, device="meta") for key, shape in manifest["keys"].items()}
        read, expected = configuration(rename(state)), variant(name)
        assert (read.model_cfg, read.text_config) == (expected.model_cfg, expected.text_config)


def test_start_from_another_vision_tower(model):
    """As from MetaCLIP: vision weights on a larger grid, text weights unused, the scale kept unless asked."""
    state = {n: t.clone() for n, t in model.towers.state_dict().items() if n.startswith("visual.")}
    state |= {"logit_scale": torch.tensor(4.0), "token_embedding.weight": torch.zeros(3, 4)}
    config = ClipConfig(**model.config.to_dict() | {"_name_or_path": ""})
    config.model_cfg["vision_cfg"]["image_size"] = 48
    towers = build_towers(config)
    before = float(towers.logit_scale.detach())
    assert vision_start(towers, state) == ["logit_scale", "token_embedding.weight"]
    assert float(towers.logit_scale.detach()) == before
    expected = recorded("pos_embed_resize")
    assert towers.visual.positional_embedding.shape == expected["upstream_up_6x6"].shape
    assert vision_start(towers, state, "reference") == ["token_embedding.weight"]
    assert float(towers.logit_scale.detach()) == 4.0
    with pytest.raises(ValueError, match="conv1.weight"):
        vision_start(towers, {n: t for n, t in state.items() if "conv1" not in n})


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="ViT-B-16"):
        named_config("ViT-B16")
    with pytest.raises(ValueError, match="unimed_clip_vit_b16"):
        variant("b16")
