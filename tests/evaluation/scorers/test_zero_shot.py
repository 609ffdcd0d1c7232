"""Sets evaluated from files, features kept by content, demo and page, averaged weights, the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import MODEL, assert_close
from data.readers.test_shards import png
from data.readers.test_zero_shot_sets import make_set
from golden_files import tensors
from models.clip.recorded import FOLDER, converted
from PIL import Image
from safetensors.torch import load_file

from unimed.commands.clip import clip
from unimed.commands.zero_shot import zero_shot as zero_shot_demo
from unimed.data.readers.zero_shot_sets import ZeroShotSetError, catalog
from unimed.evaluation.feature_cache import FeatureCache, model_fingerprint
from unimed.evaluation.scorers import zero_shot
from unimed.evaluation.tables import read_cases
from unimed.models.clip import ClipModel
from unimed.models.clip.averaging import average_folders, interpolate
from unimed.models.clip.modeling import TEMPLATES, class_normalize

ROOT = Path(__file__).parents[3]
IMAGES = FOLDER / "pictures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(folder):
    return ClipModel.from_pretrained(folder).eval()


def test_recorded_classifiers(model):
    """Weights from prompts, from templates with synonyms, from unequal counts, and z-scored over the classes."""
    recorded = json.loads((FOLDER / "zeroshot.json").read_text())["prompts"]
    kept = load_file(FOLDER / "zeroshot.safetensors")
    made = {
        "dict_prompts.weights": model.classifier(recorded["dict"]),
        "dict_prompts.weights_classnorm": model.classifier(recorded["dict"], class_norm=True),
        "template_labels.weights": model.classifier(recorded["labels_with_synonyms"], recorded["templates"]),
        "ragged.weights": model.classifier(recorded["ragged"]),
    }
    for name, (_, weights) in made.items():
        assert_close(weights, kept[name], name, MODEL)


def test_recorded_end_to_end(model):
    kept = tensors("unimed_clip", "zeroshot.safetensors")
    recorded = json.loads((FOLDER / "zeroshot.json").read_text())
    _, weights = model.classifier(recorded["prompts"]["dict"])
    similarity = model.encode_image(kept["e2e.images"]) @ weights.T
    assert_close(similarity, kept["e2e.similarity"], "similarity", MODEL)
    hits = (similarity.argmax(1) == kept["e2e.targets"]).float().mean()
    assert 100 * float(hits) == pytest.approx(recorded["e2e_accuracy_multiclass"], abs=1e-4)
    _, weights = model.classifier(recorded["prompts"]["dict"], class_norm=True)
    mean, std = model.class_statistics(recorded["prompts"]["dict"])
    assert_close(mean, kept["dict_prompts.classnorm_mean"], "mean of the classes", MODEL)
    assert_close(std, kept["dict_prompts.classnorm_std"], "deviation of the classes", MODEL)
    images = class_normalize(model.encode_image(kept["e2e.images"], normalize=False), mean, std)
    hits = ((images @ weights.T).argmax(1) == kept["e2e.targets"]).float().mean()
    assert 100 * float(hits) == pytest.approx(recorded["e2e_accuracy_multiclass_classnorm"], abs=1e-4)


def test_class_norm_is_one_computation_in_every_place(model, tmp_path):
    """The raw image features are shifted and scaled by the classes' statistics before they are compared."""
    paths, labels = [IMAGES / "rgb.png", IMAGES / "gray_L.png"], ["lung", "heart", "liver"]
    _, similarity = FeatureCache(model, tmp_path).similarity(paths, labels, class_norm=True)
    names, weights = model.classifier(labels, class_norm=True)
    text = torch.stack([model.encode_text([t.format(label) for t in TEMPLATES]).mean(0) for label in labels])
    shifted = (model.encode_image(paths, normalize=False) - text.mean(0)) / text.std(0)
    expected = torch.nn.functional.normalize(shifted, dim=-1) @ weights.T
    assert np.abs(similarity - expected.numpy()).max() < 1e-5
    for row, one in zip(expected, model.zero_shot(paths, labels, class_norm=True), strict=True):
        assert one.similarities == pytest.approx(row.tolist(), abs=1e-5) and one.label == names[int(row.argmax())]
    plain = FeatureCache(model, None).similarity(paths, labels)[1]
    assert np.abs(plain - similarity).max() > 0.01


@pytest.mark.parametrize("name", ["acl_mri", "rsna_pneumonia", "BACH"])
def test_a_set_from_files(model, tmp_path, name):
    one = catalog()[name]
    make_set(one, tmp_path)
    cache = FeatureCache(model, tmp_path / "cache")
    row, cases = zero_shot.evaluate_set(cache, one, tmp_path, resamples=20)
    assert row["images"] == len(cases) == 2 * len(one.classes)
    assert row["prompts"] == ("published" if name == "BACH" else "own")
    assert row["metric"] == one.headline and 0 <= row["headline"].value <= 1
    again, _ = zero_shot.evaluate_set(FeatureCache(model, tmp_path / "cache"), one, tmp_path, resamples=20)
    assert again["accuracy"] == row["accuracy"]
    if name == "rsna_pneumonia":
        assert zero_shot.overlap_notes([row], catalog())[0].startswith("rsna_pneumonia: RSNA images")
        prompts, _ = zero_shot.prompts_for(one, None, "reference")
        assert [len(texts) for texts in prompts.values()] == [1, 1]
        with pytest.raises(ZeroShotSetError, match="no prompts for class 'Pneumonia'"):
            zero_shot.prompts_for(one, {name: {"Normal": ["a"]}})


def test_features_are_kept_by_content(model, folder, tmp_path):
    first = FeatureCache(model, tmp_path)
    paths = [IMAGES / "rgb.png", IMAGES / "gray_L.png"]
    features = first.encode(paths)
    copy = tmp_path / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    second = FeatureCache(model, tmp_path)
    assert np.array_equal(second.encode([copy, paths[1]]), features) and (second.hits, second.misses) == (2, 0)
    copy.write_bytes(paths[1].read_bytes())  # the same name, another picture
    assert np.array_equal(second.encode([copy])[0], features[1])
    assert_close(features, model.encode_image(paths), relative=MODEL)
    other = ClipModel.from_pretrained(folder).eval()
    with torch.no_grad():
        other.towers.visual.proj.add_(1e-3)
    assert model_fingerprint(other) != model_fingerprint(model)
    assert FeatureCache(other, tmp_path).known == {}
    for part in next(tmp_path.glob("*-*"), next(p for p in tmp_path.iterdir() if p.is_dir())).glob("*.npz"):
        part.write_bytes(b"damaged")
    assert FeatureCache(model, tmp_path).known == {}


def test_averages_between_two_models(model, folder, tmp_path):
    state = model.state_dict()
    tuned = {name: tensor + 0.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    assert torch.equal(interpolate(state, tuned, 0.0)["towers.visual.proj"], state["towers.visual.proj"])
    half = interpolate(state, tuned, 0.5)["towers.visual.proj"]
    assert_close(half, state["towers.visual.proj"] + 0.25, relative=MODEL)
    with pytest.raises(ValueError, match="alpha"):
        interpolate(state, tuned, 1.5)
    with pytest.raises(ValueError, match="one of the two"):
        interpolate(state, {}, 0.5)
    other = ClipModel.from_pretrained(folder)
    other.load_state_dict(tuned)
    other.save_pretrained(tmp_path / "tuned")
    average_folders(folder, tmp_path / "tuned", tmp_path / "mean", 0.5)
    mean = ClipModel.from_pretrained(tmp_path / "mean")
    assert_close(mean.towers.visual.proj, half, relative=MODEL)
    with pytest.raises(FileExistsError):
        average_folders(folder, tmp_path / "tuned", tmp_path / "mean")


def test_the_demo(folder, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.png").write_bytes((IMAGES / "rgb.png").read_bytes()[:300])
    deep = np.linspace(0, 4000, 900).reshape(30, 30).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "in" / "deep.tif")
    words = ["--model_path", folder, "--images", tmp_path / "in", IMAGES / "rgb.png", "--labels", "lung|heart",
             "a liver, inflamed", "--work-dir", tmp_path / "out", "--device", "cpu"]  # fmt: skip
    assert zero_shot_demo([str(word) for word in words]) == 2  # one file is broken
    shown = capsys.readouterr()
    assert (
        "failed: cut" in shown.err and "a liver, inflamed" in shown.out and "no probabilities of a disease" in shown.out
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "cases.jsonl").read_text().splitlines()]
    assert {row["case"] for row in rows} == {"deep", "rgb"}
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    plots = sorted(p.name for p in (tmp_path / "out" / "plots").iterdir())
    assert plots == ["deep.png", "rgb.png"]
    assert Image.open(tmp_path / "out" / "plots" / "rgb.png").size[0] > 500
    first, rest = ["--model_path", str(folder)], ["--work-dir", str(tmp_path / "x"), "--device", "cpu"]
    assert zero_shot_demo([*first, "--images", str(IMAGES / "rgb.png"), "--labels", "alone", *rest]) == 1
    assert "only one label" in capsys.readouterr().err
    assert zero_shot_demo([*first, "--images", str(tmp_path / "gone"), "--labels", "a", "b", *rest]) == 1
    assert "gone" in capsys.readouterr().err


def test_the_command_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    one = catalog()["acl_mri"]
    make_set(one, tmp_path / "data" / "acl_mri", per_class=4)
    (tmp_path / "data" / "BACH").mkdir()
    words = ["zero-shot", folder, "--data", tmp_path / "data", "--out", tmp_path / "out", "--cache", tmp_path / "c",
             "--resamples", "20"]  # fmt: skip
    assert clip(list(map(str, words))) == 2  # one set cannot be read, the other is scored all the same
    shown = capsys.readouterr()
    assert "failed: BACH" in shown.err and "acl_mri" in shown.out and "Prompts marked own" in shown.out
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["sets"][0]["images"] == 8
    assert len((tmp_path / "out" / "cases.jsonl").read_text().splitlines()) == 8
    for name, grey in (("dark", 30), ("bright", 200)):
        for number in range(4):
            path = tmp_path / "own" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(grey + number))
    own = tmp_path / "own"
    assert clip(["zero-shot", str(folder), "--data", str(own), "--labels", "--resamples", "20"]) == 0
    pytest.importorskip("sklearn")
    probe = ["probe", str(folder), "--train", str(own), "--test", str(own), "--shots", "1", "2"]
    assert clip([*probe, "--out", str(tmp_path / "probed")]) == 0
    rows = read_cases(tmp_path / "probed" / "cases.jsonl")
    lines = json.loads((tmp_path / "probed" / "scores.json").read_text())["frozen features"]
    for line in (line for line in lines if line["method"] in ("zero-shot", "linear probe")):
        right = [row["correct"] for row in rows if row["task"] == line["method"]]
        assert right and np.mean(right) == pytest.approx(line["accuracy"])
    shown = capsys.readouterr().out
    assert "linear probe" in shown and "few-shot from the text" in shown
    assert clip(["average", str(folder), str(folder), str(tmp_path / "curve"), "--curve", str(own)]) == 0
    assert (tmp_path / "curve" / "table.md").is_file()
    assert clip(["overlap", str(own), str(own / "dark")]) == 0
    assert "equal bytes" in capsys.readouterr().out
    from data.readers.test_shards import shard

    shard(tmp_path / "s", 1)
    command = ["retrieval", str(folder), "--shards", str(tmp_path / "s" / "*.tar"), "--resamples", "20"]
    assert clip([*command, "--out", str(tmp_path / "found")]) == 0
    assert "chance_R@1" in capsys.readouterr().out
    line = json.loads((tmp_path / "found" / "scores.json").read_text())["retrieval"][0]
    rows = [row for row in read_cases(tmp_path / "found" / "cases.jsonl") if row["target"] == "image_to_text"]
    assert len(rows) == line["queries"] and {row["kind"] for row in rows} == {"retrieval"}
    assert np.mean([row["rank"] == 1 for row in rows]) == pytest.approx(line["R@1"]["value"])
    assert clip(["speed", str(folder), str(own)]) == 0
    assert "from the cache" in capsys.readouterr().out
    assert clip(["zero-shot", str(folder), "--data", str(tmp_path / "none")]) == 1


def test_the_page(model):
    from unimed.serve.zero_shot import build_page, classify

    shown = classify(model, str(IMAGES / "rgb.png"), "lung\nheart\n")
    assert set(shown) == {"lung", "heart"} and sum(shown.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="choose an image"):
        classify(model, None, "a\nb")
    with pytest.raises(ValueError, match="only one label"):
        classify(model, str(IMAGES / "rgb.png"), "lung")
    pytest.importorskip("gradio")
    page = build_page({"tiny": lambda: model})
    endpoints = page.get_api_info()["named_endpoints"]
    assert "/zero_shot" in endpoints
    with pytest.raises(ValueError, match="at least one model"):
        build_page({})
