"""`demo_parse3D.py` and `demo_parse2D.py` as a user types them, with a small real model."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import small_volumes
from PIL import Image

from unimed.commands.biomedparse import parse_2d, parse_3d
from unimed.geometry import Geometry
from unimed.io.read import read
from unimed.io.write import write_nifti
from unimed.models.starting.boltzformer import build_small

GEOMETRY = Geometry([[-1, 0, 0, 5], [0, 0, 2, 6], [0, 1, 0, 7], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_small(["liver", "spleen"], image_size=64).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 4), dtype=np.uint8)
    write_nifti(tmp_path / "in" / "a.nii.gz", noise, GEOMETRY)
    write_nifti(tmp_path / "in" / "b.nii.gz", noise[..., :1].astype(np.int16) * 4, GEOMETRY)
    write_nifti(tmp_path / "in" / "bad.nii.gz", np.zeros((4, 4, 4, 2), np.uint8), GEOMETRY)
    table = {"1": "liver", "300": ["spleen", "the spleen"], "instance_label": 0}
    np.savez(tmp_path / "in" / "c.npz", imgs=noise.transpose(2, 0, 1), spacing=np.ones(3), text_prompts=np.array(table))
    return tmp_path


def test_a_folder_of_volumes_is_resumable_and_faults_are_named(model, folder, capsys):
    arguments = [str(folder / "in"), "--model", model, "--out", str(folder / "out"), "--prompts", "liver", "spleen"]
    arguments += ["--threshold", "0.1", "--formats", "nifti", "npz", "json"]
    assert parse_3d(arguments) == 2  # one of four failed
    captured = capsys.readouterr()
    assert "3 volumes, 0 of them before, 1 failed" in captured.out and "bad: ReadError" in captured.err
    labels, geometry = read(folder / "out" / "a.nii.gz")
    assert labels.shape == (30, 40, 4) and np.allclose(geometry.affine, GEOMETRY.affine)
    assert np.load(folder / "out" / "c.npz")["segs"].shape == (4, 30, 40)
    assert json.loads((folder / "out" / "b.json").read_text())["intensity"].startswith("percentiles")
    stamp = (folder / "out" / "a.nii.gz").stat().st_mtime_ns
    assert parse_3d(arguments) == 2 and "3 of them before" in capsys.readouterr().out
    assert (folder / "out" / "a.nii.gz").stat().st_mtime_ns == stamp
    assert parse_3d([*arguments, "--seed", "1"]) == 1
    assert "results of other settings" in capsys.readouterr().err
    assert [p.name for p in (folder / "out").glob(".*")] in ([], [".names.jsonl"])


def test_a_target_without_voxels_is_explained(model, folder, capsys):
    arguments = [str(folder / "in" / "a.nii.gz"), "--model", model, "--out", str(folder / "twice"), "--threshold", "0"]
    assert parse_3d([*arguments, "--prompts", "liver", "liver"]) == 0
    said = capsys.readouterr().out
    assert "liver: presence" in said and "gave way to a more confident target" in said
    written = json.loads((folder / "twice" / "a.json").read_text())
    assert [bool(target.get("remark")) for target in written["targets"]].count(True) == 1
    assert (folder / "twice" / "a.png").is_file(), "a montage"


def test_prompts_of_the_file(model, folder, capsys):
    arguments = [
        str(folder / "in" / "c.npz"),
        "--model",
        model,
        "--out",
        str(folder / "out"),
        "--formats",
        "npz",
        "json",
    ]
    assert parse_3d(arguments) == 0
    assert [t["label"] for t in json.loads((folder / "out" / "c.json").read_text())["targets"]] == [1, 300]
    assert np.load(folder / "out" / "c.npz")["segs"].dtype == np.uint16


def test_a_dicom_series_comes_back_as_dicom(model, tmp_path):
    pytest.importorskip("highdicom")
    place = Path(__file__).parents[1] / "io" / "test_dicom_seg.py"
    specification = importlib.util.spec_from_file_location("dicom_seg_test", place)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.write_series(tmp_path / "ct")
    arguments = [
        str(tmp_path),
        "--model",
        model,
        "--out",
        str(tmp_path / "out"),
        "--prompts",
        "liver",
        "--threshold",
        "0",
    ]
    assert parse_3d([*arguments, "--formats", "dicom-seg", "nifti", "json"]) == 0
    summary = json.loads((tmp_path / "out" / "ct.json").read_text())
    assert summary["intensity"] == "CT window soft tissue [-160, 240]"
    labels, geometry = read(tmp_path / "out" / "ct.nii.gz")
    assert np.allclose(geometry.affine, read(tmp_path / "ct")[1].affine, atol=1e-4)
    import highdicom

    seg = highdicom.seg.segread(tmp_path / "out" / "ct.seg.dcm")
    assert seg.SegmentSequence[0].SegmentLabel == "liver" and labels.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.nii"], "no such file"),
        (["in/a.nii.gz"], "--prompts"),
        (["in/a.nii.gz", "--prompts", "liver", "--formats", "tiff"], "unknown format"),
        (["in/a.nii.gz", "--prompts", "liver", "--model", "nothing"], "nothing"),
        (["in", "--prompts", "liver", "--formats", "dicom-seg"], "needs a DICOM series"),
        (["in/a.nii.gz", "--prompts", "  "], "prompt 1 is empty"),
        (["in/b.nii.gz", "--prompts", "liver", "--modality", "CT", "--site", "knee"], "no CT window for site 'knee'"),
    ],
)
def test_faults_are_one_line_and_nothing_is_written(model, folder, capsys, arguments, message):
    source, *rest = arguments
    options = ["--model", model] if "--model" not in rest else []
    assert parse_3d([str(folder / source), "--out", str(folder / "out"), *options, *rest]) == 1
    assert message in capsys.readouterr().err
    assert not [p for p in (folder / "out").rglob("*") if p.suffix not in (".json", ".jsonl")]


def test_series_phase_and_irregular_slices_are_chosen(model, tmp_path, capsys):
    grid = small_volumes.grid((1, 1, 3))
    values = np.random.default_rng(0).integers(0, 900, (24, 20, 5)).astype(np.int16)
    phases = [small_volumes.slices(values, grid, SeriesNumber=7, TriggerTime=str(t)) for t in (0, 50)]
    small_volumes.save(tmp_path / "in", [*phases[0], *phases[1]], [f"{k:02d}" for k in range(10)])
    other = small_volumes.slices(values, grid, SeriesNumber=8, SeriesInstanceUID="1.2.8", SeriesDescription="holes")
    small_volumes.save(tmp_path / "in", other[:2] + other[3:], [f"h{k}" for k in range(4)])
    common = [str(tmp_path / "in"), "--model", model, "--prompts", "liver", "--out"]
    assert parse_3d([*common, str(tmp_path / "a")]) == 1
    assert "2 DICOM series" in (told := capsys.readouterr().err) and "'holes'" in told and "--series" in told
    assert parse_3d([*common, str(tmp_path / "b"), "--series", "7"]) == 1
    assert "2 phases" in (told := capsys.readouterr().err) and "1: TriggerTime 50" in told
    assert parse_3d([*common, str(tmp_path / "c"), "--series", "7", "--phase", "1"]) == 0
    assert read(tmp_path / "c" / "in.nii.gz")[0].shape == (24, 20, 5)
    assert "phase 1 of 2 taken" in " ".join(json.loads((tmp_path / "c" / "in.json").read_text())["steps"])
    assert parse_3d([*common, str(tmp_path / "d"), "--series", "holes"]) == 1
    assert "a slice is missing" in capsys.readouterr().err
    assert parse_3d([*common, str(tmp_path / "e"), "--series", "holes", "--irregular", "resample"]) == 0
    assert read(tmp_path / "e" / "in.nii.gz")[0].shape == (24, 20, 5)
    assert "resampled from 4 slices to 5" in " ".join(json.loads((tmp_path / "e" / "in.json").read_text())["steps"])


@pytest.mark.parametrize("overlap", ["keep", "combine", "nms"])
def test_the_demo_and_predict_say_the_same(model, tmp_path, overlap):
    import unimed

    noise = np.random.default_rng(2).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--model", model, "--out", str(tmp_path / "out"), "--overlap", overlap]
    assert parse_2d([*arguments, "--prompts", "liver", "spleen", "--threshold", "0.3"]) == 0
    told = unimed.load(model, device="cpu").predict(
        str(tmp_path / "a.png"), "liver[SEP]spleen", presence_threshold=0.3, overlap=overlap
    )
    (path,) = told.save(tmp_path / "mine", "a")
    demo, mine = (json.loads(p.read_text()) for p in (tmp_path / "out" / "a.json", path))
    for values in (demo, mine):
        values.pop("timing_s"), values.pop("source_id", None)
    assert demo == mine and demo["text"].startswith(("Found", "Not found"))


def test_pictures(model, tmp_path, capsys):
    for name in ("p_X-Ray_chest.png", "other.png"):
        noise = np.random.default_rng(1).integers(0, 255, (40, 50), dtype=np.uint8)
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "in" / name)
    arguments = [str(tmp_path / "in"), "--model", model, "--out", str(tmp_path / "out"), "--threshold", "0"]
    assert parse_2d([*arguments, "--prompts", "left lung", "heart"]) == 0
    assert {"other.json", "other.png", "p_X-Ray_chest.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    shown = np.asarray(Image.open(tmp_path / "out" / "other-mask1.png"))
    row = next(row for row in map(json.loads, open(tmp_path / "out" / "cases.jsonl")) if row["case"] == "other")
    assert shown.shape == (40, 50) and (shown > 0).sum() == row["found"][1]["pixels"]
    assert row["found"][1]["mask_file"] == "other-mask1.png"
    regions = json.loads((tmp_path / "out" / "other.json").read_text())["regions"]
    assert [r["phrase"] for r in regions] == ["left lung", "heart"] and regions[0]["mask_rle"]["size"] == [40, 50]
    arguments[arguments.index("--out") + 1] = str(tmp_path / "known")
    assert parse_2d([*arguments, "--recognise"]) == 2  # nothing says what "other" shows
    assert "other: TargetError" in capsys.readouterr().err
    row = json.loads((tmp_path / "known" / "p_X-Ray_chest-found.json").read_text())
    assert set(row) >= {"found", "hierarchy"}
    assert parse_2d(arguments) == 1 and "--recognize" in capsys.readouterr().err


def test_dicom_files_of_any_name_in_a_folder_are_pictures(model, tmp_path, capsys):
    import image_files

    for name in ("a.dcm", "b.IMA", "1.2.840.7"):
        image_files.dicom(tmp_path / "in" / name)
    assert parse_2d([str(tmp_path / "in"), "--model", model, "--out", str(tmp_path / "out"), "--prompts", "liver"]) == 0
    assert "3 images" in capsys.readouterr().out


def test_what_the_reader_did_with_a_volume_is_printed(model, tmp_path, capsys):
    values = small_volumes.slices(np.random.default_rng(0).integers(0, 99, (12, 10, 5)), small_volumes.grid((1, 1, 2)))
    small_volumes.save(tmp_path / "ct", [one for k, one in enumerate(values) if k != 2])
    arguments = [str(tmp_path / "ct"), "--model", model, "--out", str(tmp_path / "out"), "--prompts", "liver"]
    assert parse_3d([*arguments, "--irregular", "resample"]) == 0
    assert "resampled from 4 slices to 5" in capsys.readouterr().out
