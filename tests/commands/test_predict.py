"""`unimed predict` over sources and families, and what it prints and writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from cohorts import tree
from models.clip.recorded import converted
from PIL import Image
from small_models import tiny_model

from unimed.commands.cli import main
from unimed.commands.predict import sources_and_texts
from unimed.geometry import Geometry
from unimed.inference.asking import SourceError, find_sources, looks_like_a_path
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.io.rle import decode_mask
from unimed.io.write import write_nifti
from unimed.structures import Region

GRID = Geometry(np.diag([-1.0, -1, 3, 1]))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from unimed.models.starting import boltzformer, uni_med

    root = tmp_path_factory.mktemp("predict")
    tiny_model().save_pretrained(root / "grounded")
    boltzformer.build_small(["liver", "spleen"], image_size=64).save_pretrained(root / "parser")
    uni_med.build_small(
        ["is it normal? yes no"] * 4, image_size=56, vision_dim=32, vision_layers=1, hidden_dim=32, layers=1,
        vocabulary=310,
    ).save_pretrained(root / "answers")  # fmt: skip
    converted(root).rename(root / "contrastive")
    rng = np.random.default_rng(0)
    (root / "in" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/a.png"):
        Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)).save(root / "in" / name)
    values = rng.integers(-1000, 900, (32, 30, 5)).astype(np.int16)
    write_nifti(root / "in" / "ct.nii.gz", values, GRID)
    write_nifti(root / "in" / "slice.nii.gz", values[..., :1], GRID)
    return root


@pytest.mark.parametrize("family", ["grounded", "parser", "answers", "contrastive"])
def test_images_volumes_and_folders_for_every_family(place, tmp_path, capsys, family):
    arguments = ["predict", str(place / family), str(place / "in"), "liver", "spleen", "--out", str(tmp_path)]
    code = main([*arguments, "--max-new-tokens", "2", "--json", "--modality", "CT", "--site", "abdomen"])
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert code == 0 and len(rows) == 4, captured.err
    assert {row["source"] for row in rows} >= {"a.png", "slice.nii.gz", "ct.nii.gz"}
    for row in rows:
        for answer in row["answers"]:
            assert all((tmp_path / name).is_file() for name in answer.get("files", ()))
    if family in ("grounded", "parser"):
        assert (tmp_path / "ct-0.png").is_file() and (tmp_path / "ct-1.json").stat().st_size < 10_000
        assert any("abdomen" in step for row in rows if row["source"] == "ct.nii.gz" for step in row["steps"])
    if family == "parser":
        labels, geometry = read(tmp_path / "ct-0.nii.gz")
        assert labels.shape == (32, 30, 5) and np.allclose(geometry.affine, GRID.affine)
    if family == "contrastive":
        assert all(abs(sum(row["answers"][0]["probabilities"].values()) - 1) < 1e-5 for row in rows)


def test_a_ct_of_unknown_kind_says_that_percentiles_were_used_and_what_to_give(place, tmp_path, capsys):
    arguments = ["predict", str(place / "grounded"), "liver", "--out", str(tmp_path), "--max-new-tokens", "1"]
    values = np.random.default_rng(0).integers(-300, 300, (16, 16, 4)).astype(np.int16)
    write_nifti(tmp_path / "in" / "body.nii.gz", values, GRID)
    arguments.insert(2, str(tmp_path / "in" / "body.nii.gz"))
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "percentiles 0.5 and 99.5" in said and "give --site, --modality CT or --window" in said
    assert main([*arguments, "--window", "40", "400"]) == 0
    said = capsys.readouterr().out
    assert "window [-160, 240]" in said and "give --site" not in said


def test_presence_without_a_mask_is_said(place, tmp_path, capsys, monkeypatch):
    empty = np.zeros((20, 30), bool)
    regions = (Region("lesion", mask=empty, presence=0.97), Region("brain", mask=~empty, presence=0.02))
    model = type(tiny_model())
    monkeypatch.setattr(model, "predict", lambda *_, **__: [Prediction("here", regions)])
    source = str(place / "in" / "a.png")
    assert main(["predict", str(place / "grounded"), source, "what", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "lesion: 0 pixels, presence 0.97, contradictory: presence 0.97 but the mask is empty" in said
    assert "brain: 600 pixels, presence 0.02, contradictory: presence 0.02 but there is a mask" in said
    written = json.loads((tmp_path / "a-0.json").read_text())["regions"]
    assert written[0]["remark"] == "presence 0.97 but the mask is empty" and "mask_rle" in written[0]


def test_words_are_parted_into_sources_and_questions(place, monkeypatch):
    monkeypatch.chdir(place / "in")
    assert sources_and_texts(["a.png", "deep", "what is it?", "a.png"], []) == (
        [Path("a.png"), Path("deep/a.png")], ["what is it?", "a.png"]
    )  # fmt: skip
    assert sources_and_texts(["a.png", "ct.nii.gz"], ["what"])[1] == ["what"]
    with pytest.raises(FileNotFoundError, match="b.png"):
        sources_and_texts(["a.png", "b.png", "what"], [])
    with pytest.raises(FileNotFoundError, match="liver"):
        sources_and_texts(["a.png", "liver"], ["what"])
    with pytest.raises(SourceError, match="no question"):
        sources_and_texts(["a.png", "deep"], [])
    assert [looks_like_a_path(w) for w in ("a.png", "x/y", "liver", "is it a.png?", "left lung", "1.5 cm")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


def test_a_study_is_one_volume_among_images(place, tmp_path):
    import small_volumes

    values = np.random.default_rng(0).integers(0, 900, (12, 10, 4)).astype(np.int16)
    small_volumes.save(tmp_path / "ct", small_volumes.slices(values, small_volumes.grid((1, 1, 3))), list("abcd"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    assert find_sources([tmp_path]) == [tmp_path / "ct", tmp_path / "x.png"]


def test_json_of_volumes_is_small_and_keeps_every_voxel(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.random((128, 128, 15)) > 0.5, np.zeros((128, 128, 15), bool)]
    masks[1][20:90, 30:100, 3:12] = True
    apart = Prediction("x", (Region("a", mask=masks[1] & masks[0]), Region("b", mask=~masks[1])), GRID)
    apart.save(tmp_path, "both", ("nifti", "json"))
    written = json.loads((tmp_path / "both.json").read_text())["regions"]
    assert (tmp_path / "both.json").stat().st_size < 2_000
    labels = read(tmp_path / "both.nii.gz")[0]
    for entry, region in zip(written, apart.regions, strict=True):
        assert ((labels == entry["label"]["value"]) == region.mask).all() and entry["voxels"] == region.mask.sum()
        assert entry["label"]["file"] == "both.nii.gz"
    # A label map cannot hold overlaps; alone the JSON holds everything.
    over = Prediction("x", (Region("a", mask=masks[1]), Region("b", mask=masks[1])), GRID)
    for name, formats in (("over", ("nifti", "json")), ("alone", ("json",))):
        over.save(tmp_path, name, formats)
        entry = json.loads((tmp_path / f"{name}.json").read_text())["regions"][0]
        assert (decode_mask(entry["mask_rle"]) == masks[1]).all()
        assert (tmp_path / f"{name}.json").stat().st_size < 10_000


def test_every_file_of_a_folder_of_x_rays_is_an_image_whatever_it_is_called(tmp_path):
    import image_files
    import small_volumes

    from unimed.inference.asking import open_source
    from unimed.io.images import is_image_file

    names = ["a.dcm", "b.IMA", "c", "1.2.840.7"]
    paths = [image_files.dicom(tmp_path / "xr" / name, SeriesInstanceUID=f"1.2.{k}") for k, name in enumerate(names)]
    (tmp_path / "xr" / "notes").write_text("no image")
    assert find_sources([tmp_path / "xr"]) == sorted(paths)
    assert not any(open_source(path).is_volume for path in paths)
    assert sorted(p for p in (tmp_path / "xr").iterdir() if is_image_file(p)) == sorted(paths)
    # An object of many placed frames is a volume, also where it is called by its UID.
    values = np.random.default_rng(0).integers(0, 900, (12, 10, 4)).astype(np.int16)
    made = small_volumes.enhanced(values, small_volumes.grid((1, 1, 3)))
    (path,) = small_volumes.save(tmp_path / "ct", [made], ["1.2.840.9"])
    assert open_source(path).is_volume


def test_what_the_reader_did_with_a_volume_is_printed_and_kept_with_the_answer(place, tmp_path, capsys):
    import nibabel

    values = np.random.default_rng(0).integers(-300, 300, (16, 16, 4)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([800.0, 800, 2500, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "small.nii.gz")
    assert main(
        ["predict", str(place / "grounded"), str(tmp_path / "small.nii.gz"), "liver", "--out", str(tmp_path / "out"),
         "--max-new-tokens", "1"]
    ) == 0  # fmt: skip
    assert "micrometres converted to millimetres" in capsys.readouterr().out
    assert "micrometres converted to millimetres" in json.loads((tmp_path / "out" / "small-0.json").read_text())[
        "image"]["steps"]  # fmt: skip


def test_a_dicom_series_gets_the_files_of_a_hospital(place, tmp_path, capsys):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    from clinical import ct_series, dicom_errors, found_in, identifying

    _, geometry = ct_series(tmp_path / "ct", (16, 16, 4))
    formats = ["--formats", "dicom-seg", "dicom-sr", "html", "fhir", "labels"]
    arguments = ["predict", str(place / "parser"), str(tmp_path / "ct"), "left kidney [SEP] liver cyst", *formats]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--site", "abdomen"]) == 0
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names >= {f"ct-0.{end}" for end in ("seg.dcm", "sr.dcm", "html", "fhir.json", "labels.tsv", "json")}
    assert dicom_errors(tmp_path / "a" / "ct-0.seg.dcm") == dicom_errors(tmp_path / "a" / "ct-0.sr.dcm") == []
    assert main([*arguments, "--out", str(tmp_path / "b"), "--site", "abdomen", "--deidentified"]) == 0
    texts = identifying(pydicom.dcmread(geometry.header["files"][0]))
    written = [path for path in (tmp_path / "b").iterdir() if path.is_file()]
    assert written and all(found_in(path.read_bytes(), texts) == [] for path in written)
    assert main(["predict", *arguments[1:3], "liver", "--formats", "dicom-sg", "--out", str(tmp_path / "c")]) == 1
    assert "did you mean 'dicom-seg'" in capsys.readouterr().err


def test_a_cohort_asks_every_source_and_keeps_what_failed_as_rows(place, tmp_path, capsys):
    (place / "in" / "broken.png").write_bytes(b"no image")
    try:
        words = ["predict", str(place / "parser"), str(place / "in"), "liver", "--out", str(tmp_path / "a")]
        code = main([*words, "--engine", "local", "--rows", "jsonl", "--part-rows", "2", "--site", "abdomen"])
        said = capsys.readouterr()
        assert code == 2 and "5 of 5 rows" in said.out and "1 without an answer" in said.out, said.err
        job = {"model": str(place / "parser"), "sources": [str(place / "in")], "texts": "liver", "engine": "local",
               "rows": "jsonl", "part_rows": 2, "site": "abdomen", "restart": False,
               "out": str(tmp_path / "b")}  # fmt: skip
        (tmp_path / "job.json").write_text(json.dumps(job))
        assert main(["predict", "--job", str(tmp_path / "job.json"), "--out", str(tmp_path / "c")]) == 2
        assert tree(tmp_path / "a") == tree(tmp_path / "c") and not (tmp_path / "b").exists()
        rows = [json.loads(line) for path in sorted((tmp_path / "a" / "rows").iterdir()) for line in path.open()]
        assert [row["source"] for row in rows] == ["a.png", "broken.png", "ct.nii.gz", "deep/a.png", "slice.nii.gz"]
        assert "broken.png" in rows[1]["error"] and [row["error"] for row in rows].count(None) == 4
        assert all((tmp_path / "a" / name).is_file() for row in rows for name in row["files"])
        assert any(name.endswith("00000002-ct-0.nii.gz") for name in rows[2]["files"])
    finally:
        (place / "in" / "broken.png").unlink()


def test_images_of_a_folder_are_asked_together_and_answered_as_one_by_one(place, tmp_path, capsys, monkeypatch):
    from unimed.models.grounded.modeling import GroundedMLLM

    rng = np.random.default_rng(3)
    for number, size in enumerate([(20, 30), (64, 40), (33, 33)]):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    asked, usual = [], GroundedMLLM._decode

    def counted(self, inputs, *rest, **options):
        asked.append(len(inputs["input_ids"]))
        return usual(self, inputs, *rest, **options)

    monkeypatch.setattr(GroundedMLLM, "_decode", counted)
    found = {}
    for size in ("1", "4"):
        asked.clear()
        code = main(["predict", str(place / "grounded"), str(tmp_path / "in"), "liver", "where is it?", "--out",
                     str(tmp_path / size), "--max-new-tokens", "4", "--json", "--batch-size", size])  # fmt: skip
        captured = capsys.readouterr()
        assert code == 2 and "broken" in captured.err
        rows = [json.loads(line) for line in captured.out.splitlines()]
        found[size] = {row["source"]: [answer["text"] for answer in row["answers"]] for row in rows}
        assert len(rows) == 3
    assert found["1"] == found["4"]
    (tmp_path / "in" / "broken.png").unlink()
    asked.clear()
    main(["predict", str(place / "grounded"), str(tmp_path / "in"), "liver", "where is it?", "--out",
          str(tmp_path / "all"), "--max-new-tokens", "4", "--json", "--batch-size", "6"])  # fmt: skip
    assert asked == [6], "three images with two questions are one batch"
