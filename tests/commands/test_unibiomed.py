"""Every demo and metric script on a drawn tree with a tiny untrained model: files, scores, resuming, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import tiny_model

from unimed.commands import unibiomed as demos
from unimed.data.prepare.biomed_shapes import build
from unimed.io.answers import read_answer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tree") / "biomed")


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


class Speaks:
    """A model whose answers are given: says `markup` of every image and shows the brightest pixels of it."""

    def __init__(self, model, markup):
        self.model, self.markup, self.asked = model, markup, []

    def predict_batch(self, images, texts, **options):
        from unimed.io.images import load as load_image
        from unimed.io.result import Prediction
        from unimed.structures import Region

        found = []
        for image, text in zip(images, texts, strict=True):
            self.asked.append(text)
            bright = load_image(image).rgb[..., 0] > 120
            regions = (Region("shape", mask=bright),) if "[SEG]" in self.markup else ()
            found.append(Prediction("text", regions, markup=self.markup))
        return found

    def predict_frames(self, frames, text, compat=None, max_new_tokens=0, **options):
        from unimed.io.result import Prediction
        from unimed.structures import Region

        masks = np.stack([np.asarray(frame) > 120 for frame in frames])
        return Prediction("text", (Region("shape", mask=masks),), markup=self.markup)

    def predict(self, image, text, max_new_tokens=0):
        import dataclasses

        (found,) = self.predict_batch([image], [text])
        return dataclasses.replace(found, geometry=image.geometry)


@pytest.fixture
def speak(monkeypatch):
    def use(markup):
        model = Speaks(None, markup)
        monkeypatch.setattr(demos, "_load", lambda args: model)
        return model

    return use


def test_segmentation_of_a_set(tree, tmp_path, speak, capsys):
    model = speak("It is [SEG].<|end|>")
    arguments = ["--val_folder", str(tree / "Shapes"), "--work-dir", str(tmp_path), "--overlays", "2"]
    assert demos.segment_2d(arguments) == 0
    assert model.asked[0] == "<image>Please segment disc in drawn image."
    written = sorted(path.name for path in (tmp_path / "test").iterdir())
    assert written == [f"ptest{k}_1_{('disc', 'square')[k % 2]}.png" for k in range(4)]
    picture = np.asarray(Image.open(tmp_path / "test" / written[0]))
    assert picture.dtype == np.uint8 and set(np.unique(picture)) == {0, 255}
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["mean"]["mean_dice"] == pytest.approx(1, abs=1e-5) and results[written[0]]["IoU"] == 1
    assert len(list((tmp_path / "overlays").iterdir())) == 2
    assert "dice_mean_over_cases" in (tmp_path / "summary.md").read_text()
    asked = len(model.asked)
    assert demos.segment_2d(arguments) == 0 and len(model.asked) == asked  # finished before
    assert "4 answered, 4 of them before, 0 failed" in capsys.readouterr().out


def test_a_broken_image_is_named_and_costs_the_exit_code(tree, tmp_path, speak, capsys):
    import shutil

    copy = shutil.copytree(tree / "Shapes", tmp_path / "set")
    (copy / "test" / "ptest1_1.png").write_bytes(b"\x89PNG broken")
    (copy / "test" / "ptest2_1.png").unlink()
    speak("[SEG]")
    assert demos.segment_2d(["--val_folder", str(copy), "--work-dir", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert "2 answered, 0 of them before, 2 failed" in output.out
    assert "ptest1_1.png: damaged" in output.err and "ptest2_1.png: no such file" in output.err
    assert len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == 2


def test_processes_share_a_set_and_finish_what_others_left(tree, tmp_path, speak, monkeypatch, capsys):
    model = speak("[SEG]")
    monkeypatch.setattr(demos, "_all_done", lambda args: True)
    arguments = ["--val_folder", str(tree / "Shapes"), "--work-dir", str(tmp_path), "--launcher", "pytorch"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert demos.segment_2d(arguments) == 0 and len(model.asked) == 2
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert demos.segment_2d(arguments) == 0 and len(model.asked) == 4
    assert "4 answered, 2 of them before, 0 failed" in capsys.readouterr().out
    assert demos.segment_2d([*arguments, "--max_new_tokens", "7"]) == 1  # other settings do not mix
    assert demos.segment_2d([*arguments, "--max_new_tokens", "7", "--restart"]) == 0 and len(model.asked) == 8


def test_a_json_cannot_lead_out_of_the_folder(tree, tmp_path, speak, capsys):
    content = json.loads((tree / "Shapes" / "test.json").read_text())
    content["annotations"][0]["mask_file"] = "../../evil.png"
    (tmp_path / "test.json").write_text(json.dumps(content))
    speak("[SEG]")
    arguments = ["--val_folder", str(tree / "Shapes"), "--val_json", str(tmp_path / "test.json")]
    assert demos.segment_2d([*arguments, "--work-dir", str(tmp_path / "out")]) == 1
    assert "leads out of" in capsys.readouterr().err and not (tmp_path / "evil.png").exists()


def test_segmentation_of_volumes(tree, tmp_path, speak):
    speak("[SEG].<|end|>")
    arguments = ["--val_folder", str(tree / "3D" / "Shapes"), "--work-dir", str(tmp_path)]
    assert demos.segment_3d(arguments) == 0
    slices = sorted((tmp_path / "vtest0" / "disc in drawn volume").iterdir())
    assert [path.name for path in slices] == [f"vtest0-s{k}.png" for k in range(8)]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["vtest0"]["disc in drawn volume"]["dice"] == 1


@pytest.mark.parametrize(
    ("demo", "markup", "data", "metric"),
    [
        ("disease", "It is [SEG]. bright disc in drawn image.<|end|>", "Disease/Disc", "disease"),
        ("GRG", "<p> bright disc. a bright disc is drawn. </p> [SEG]<|end|>", "RadGenome", "grg"),
        ("GVQA", "<p> bright disc. </p> [SEG]<|end|>", "RadGenome", "gvqa"),
        ("Medtrinity", "a bright disc on the left side.<|end|>", "MedTrinity", "medtrinity"),
        ("RegionCap", "disc in drawn image<|end|>", "Shapes", "region"),
    ],
)
def test_answers_and_their_metrics(tree, tmp_path, speak, demo, markup, data, metric):
    model = speak(markup)
    out, folder = tmp_path / "answers", tree / data
    folder = folder / "test" if demo == "RegionCap" else folder  # a folder of images, as its users give it
    assert demos.answers(demo, ["--data_path", str(folder), "--save_dir", str(out)]) == 0
    files = sorted(out.iterdir())
    assert len(files) == 4 and all(text.startswith("<image>") for text in model.asked)
    answer = read_answer(files[0])
    assert answer["image_id"] == files[0].stem and "[SEG]" not in answer["caption"]
    with_masks = demo in ("disease", "GRG", "GVQA")
    assert len(list((tmp_path / "answers_mask").iterdir())) == 4 if with_masks else "pred_masks" in answer
    name = "test_parse.json" if demo in ("GRG", "GVQA") else "test.json"
    truth = ["--json_path", str(tree / data / name), "--no_java"]
    assert demos.metrics(metric, ["--prediction_dir", str(out), *truth]) == 0
    published = (tmp_path / "answers.txt").read_text()
    assert ("Accuracy" in published) == (metric in ("disease", "gvqa", "region"))
    if demo == "RegionCap":
        assert (tmp_path / "answers_accuracy_0.500.json").is_file()  # half of the shapes are discs
    if demo == "disease":
        assert "Mean Dice (mDice) across all images: 1.000" in published
    files[0].unlink()
    assert demos.metrics(metric, ["--prediction_dir", str(out), *truth]) == 2


def test_several_questions_about_one_image(tree, tmp_path, speak):
    content = json.loads((tree / "RadGenome" / "test_parse.json").read_text())
    content["again"] = content["rtest0"] | {"anatomy": "left half"}
    (tmp_path / "test_parse.json").write_text(json.dumps(content))
    model = speak("<p> bright disc. </p> [SEG]<|end|>")
    path = str(tmp_path / "test_parse.json")
    data = ["--data_path", str(tree / "RadGenome"), "--json_path", path, "--save_dir", str(tmp_path / "out")]
    assert demos.answers("GVQA", data) == 0
    assert sorted(p.stem for p in (tmp_path / "out").iterdir())[:2] == ["rtest0_1-again", "rtest0_1-rtest0"]
    assert any("left half" in text for text in model.asked)
    scores = ["--prediction_dir", str(tmp_path / "out"), "--json_path", path, "--no_java"]
    assert demos.metrics("gvqa", [*scores, "--mask_dir", str(tree / "RadGenome")]) == 0
    assert len((tmp_path / "out_scores" / "scores.jsonl").read_text().splitlines()) == 5


def test_one_image_by_script_with_a_saved_model(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    command = [sys.executable, str(ROOT / "demo" / "demo_seg2D.py"), "--image", "x.png", "--text", "where is it?"]
    command += ["--model_path", "model", "--work-dir", "out", "--max_new_tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "Research use only" in done.stdout and (tmp_path / "out" / "x.json").is_file()
    assert (tmp_path / "out" / "x.png").is_file()


def test_a_volume_and_a_slice_keep_their_place_in_the_patient(tmp_path, speak):
    import nibabel

    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    volume = np.random.default_rng(0).integers(0, 100, (20, 24, 6)).astype(np.int16)
    volume[4:9, 15:20, 2:4] = 1000
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "v.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume[..., 2:3], affine), tmp_path / "s.nii.gz")
    speak("[SEG]")
    arguments = ["--text", "segment it", "--work-dir", str(tmp_path / "out")]
    assert demos.segment_3d(["--volume", str(tmp_path / "v.nii.gz"), *arguments]) == 0
    assert demos.segment_2d(["--image", str(tmp_path / "s.nii.gz"), *arguments]) == 0
    # A result beside its source would bear the same name.
    before = (tmp_path / "v.nii.gz").read_bytes()
    beside = ["--text", "segment it", "--work-dir", str(tmp_path)]
    assert demos.segment_3d(["--volume", str(tmp_path / "v.nii.gz"), *beside]) == 1
    assert demos.segment_2d(["--image", str(tmp_path / "s.nii.gz"), *beside]) == 1
    assert (tmp_path / "v.nii.gz").read_bytes() == before and not (tmp_path / "v.json").exists()
    for name, truth in (("v", volume > 500), ("s", volume[..., 2:3] > 500)):
        saved = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        # The slice is saved as it was shown; both are compared in one orientation.
        ours = nibabel.as_closest_canonical(saved)
        theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(truth.astype(np.uint8), affine))
        assert np.array_equal(ours.get_fdata() > 0, theirs.get_fdata() > 0)
        assert np.allclose(ours.affine, theirs.affine)
    shown = np.asarray(Image.open(tmp_path / "out" / "s-mask0.png")) > 0
    assert shown.shape == (24, 20) and shown[4:9, 4:9].all()  # rows to the back, columns to the left


def test_what_is_missing_is_named(tmp_path, capsys, tree):
    for arguments, words in [
        ([], "--val_folder"),
        (["--image", "x.png"], "needs --text"),
        (["--image", "gone.png", "--text", "x"], "gone.png: no such file"),
        (["--val_folder", str(tree / "ShapeX"), "--work-dir", str(tmp_path)], "test.json"),
        (["--val_folder", str(tree / "Shapes"), "--work-dir", str(tmp_path), "--model_path", "/no/model"], "/no/model"),
    ]:
        assert demos.segment_2d(arguments) == 1
        assert words in capsys.readouterr().err
    arguments = ["--data_path", str(tree / "Shapes"), "--json_path", "test.json", "--save_dir", str(tmp_path / "o")]
    assert demos.answers("GRG", arguments) == 1
    assert "is this the *_parse.json" in capsys.readouterr().err
    assert demos.metrics("grg", ["--prediction_dir", str(tmp_path / "no"), "--json_path", "x.json"]) == 1
    assert "run the demo first" in capsys.readouterr().err


def test_names_with_dots_give_results_of_their_own(tmp_path, capsys):
    from unimed.models.starting.grounded_small import build_tiny

    build_tiny(["Segment the liver."]).save_pretrained(tmp_path / "model")
    options = ["--text", "Segment the liver.", "--model_path", str(tmp_path / "model"), "--max_new_tokens", "2"]
    names = ["1.2.840.1.png", "1.2.840.2.png", "a.png", "a.bmp", "A.png", "deep/a.png"]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for number, name in enumerate([*names, *names]):
        Image.new("L", (32, 32), 10 * (number % len(names))).save(tmp_path / "in" / name)
        arguments = ["--image", str(tmp_path / "in" / name), *options, "--work-dir", str(tmp_path / "out")]
        assert demos.segment_2d(arguments) == 0
    found = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert found == {"1.2.840.1.json", "1.2.840.2.json", "a.json", "a.bmp.json", "A.png.json", "deep-a.json"}
