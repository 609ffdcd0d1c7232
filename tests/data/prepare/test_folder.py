"""Folders as people have them become records that the checker finds nothing in."""

import csv
import json

import nibabel
import numpy as np
import pydicom
import pytest
from clinical import ct_series
from PIL import Image

from unimed.commands import prepare as verbs
from unimed.data.checks import check
from unimed.data.prepare.folder import assign_splits
from unimed.data.prepare.pairing import FolderError, ImageFile, owner_of
from unimed.data.readers.records import RecordDataset, read_records
from unimed.io.read import read


def png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def draw(seed):
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 255, (40, 32), np.uint8), np.zeros((40, 32), np.uint8)
    mask[5 : 12 + seed, 4:14] = 1
    return image, mask


def prepare(*arguments):
    return verbs.prepare(["folder", *map(str, arguments)], "unimed prepare")


def records_of(folder):
    return [
        record for split in ("train", "val", "test") for record in read_records(folder / "records" / f"{split}.jsonl")
    ]


LAYOUTS = {
    "same name": (lambda n: f"p{n // 2}_{n}.png", ["--phrase", "effusion"]),
    "name goes on": (lambda n: f"p{n // 2}_{n}_pleural_effusion.png", []),
    "plain end": (lambda n: f"p{n // 2}_{n}-mask.png", ["--phrase", "effusion"]),
    "folder per finding": (lambda n: f"pleural_effusion/p{n // 2}_{n}.png", []),
    "folder and plain end": (lambda n: f"pleural_effusion/p{n // 2}_{n}_seg.png", []),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_find_their_images(layout, tmp_path):
    name_of, options = LAYOUTS[layout]
    for n in range(8):
        image, mask = draw(n)
        png(tmp_path / "images" / f"p{n // 2}_{n}.png", image)
        png(tmp_path / "masks" / name_of(n), mask * 255)
    out = tmp_path / "out"
    pattern = ["--patient-pattern", r"^(p\d)"]
    assert prepare(tmp_path / "images", tmp_path / "masks", "--out", out, *options, *pattern) == 0
    assert check(out).ok
    found = records_of(out)
    assert len(found) == 16 and {r["regions"][0]["phrase"] for r in found} <= {"effusion", "pleural effusion"}
    splits = {}
    for record in found:
        splits.setdefault(record["patient_id"], set()).add(record["split"])
    assert len(splits) == 4 and all(len(split) == 1 for split in splits.values())
    assert {s for split in splits.values() for s in split} == {"train", "val", "test"}
    for split in ("train", "val", "test"):
        for sample in RecordDataset(out, split, ["referring"]):
            number = int(sample.sample_id.split("-")[0].split("_")[1])
            assert np.array_equal(sample.regions[0].mask, draw(number)[1] > 0)
            assert np.array_equal(np.asarray(sample.images[0]), draw(number)[0])


def test_labels_colors_and_what_is_absent(tmp_path):
    for n in range(4):
        image, mask = draw(n)
        png(tmp_path / "i" / f"{n}.png", image)
        if n % 2:
            mask[30:35, 20:25] = 2
        png(tmp_path / "m" / f"{n}.png", mask)
        png(tmp_path / "c" / f"{n}.png", np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[mask])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "liver_tumor": 2}}))
    for folder, options in (
        ("m", ["--labels", "1=liver", "2=liver tumor"]),
        ("m", ["--labels", tmp_path / "dataset.json"]),
        ("c", ["--colors", "#ff0000=liver", "00ff00=liver tumor"]),
    ):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert prepare(tmp_path / "i", tmp_path / folder, "--out", out, *options) == 0
        assert check(out).ok
        found = records_of(out)
        absent = [r for r in found if r["task"] == "absent"]
        assert {r["regions"][0]["phrase"] for r in absent} == {"liver tumor"} and len(absent) == 2
        tumors = [r for r in found if r["task"] == "box" and r["regions"][0]["phrase"] == "liver tumor"]
        assert [r["regions"][0]["box_xyxy_px"] for r in tumors] == [[20, 30, 25, 35]] * 2


def test_a_value_without_a_name_is_refused(tmp_path, capsys):
    image, mask = draw(0)
    mask[30:33, 20:22] = 2
    png(tmp_path / "i" / "a.png", image)
    png(tmp_path / "m" / "a.png", mask)
    png(tmp_path / "c" / "a.png", np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[mask])
    for folder, named, message in (
        ("m", ["--labels", "1=liver"], "label 2 (6 pixels) without a name; add --labels 2=NAME"),
        ("c", ["--colors", "ff0000=liver"], "color 00ff00 (6 pixels) without a name; add --colors 00ff00=NAME"),
    ):
        arguments = (tmp_path / "i", tmp_path / folder, "--out", tmp_path / f"out-{folder}", *named)
        assert prepare(*arguments) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / folder / 'a.png'}: {message}" in error and error.count("\n") == 1
        other = "2=Background" if folder == "m" else "00ff00=background"
        assert prepare(*arguments, other) == 0
        assert {r["regions"][0]["phrase"] for r in records_of(tmp_path / f"out-{folder}")} == {"liver"}


def test_dicom_slices_and_series_know_their_patients(tmp_path, capsys):
    for n in range(4):
        for folder, name in (("series", f"case{n}"), ("single", "")):
            path = tmp_path / folder / name
            ct_series(path / "study" if name else path / str(n), PatientID=f"Secret-{n // 2}")
        labels = np.zeros((9, 7, 6), np.uint8)
        labels[2:5, 1:4, 2:4] = 1
        volume, geometry = read(tmp_path / "series" / f"case{n}")
        assert volume.shape == labels.shape
        (tmp_path / "masks").mkdir(exist_ok=True)
        affine = np.diag([-1, -1, 1, 1]) @ geometry.affine if not n else geometry.affine
        nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "masks" / f"case{n}.nii.gz")
    arguments = [tmp_path / "series", tmp_path / "masks", "--out", tmp_path / "out", "--phrase", "liver"]
    assert prepare(*arguments) == 1  # the first mask lies elsewhere in the patient
    assert "case0.nii.gz" in capsys.readouterr().err
    assert prepare(*arguments, "--skip-bad") == 2
    assert "2 patients were told apart by the headers of DICOM files" in capsys.readouterr().out
    found = records_of(tmp_path / "out")
    assert {r["patient_id"] for r in found} == {"dicom-patient-1", "dicom-patient-2"} and len(found) == 3
    assert all("Secret" not in json.dumps(r) for r in found)
    assert {kind for _, kind, *_ in check(tmp_path / "out").problems} <= {"duplicate"}  # one phantom, four times
    sample = next(s for split in ("train", "val", "test") for s in RecordDataset(tmp_path / "out", split))
    assert sample.regions[0].mask.sum() == 18

    for n in range(4):
        (slice_file,) = sorted((tmp_path / "single" / str(n)).iterdir())[:1]
        rows = pydicom.dcmread(slice_file)
        (tmp_path / "images").mkdir(exist_ok=True)
        slice_file.rename(tmp_path / "images" / f"IM{n}")  # as scanners name them
        mask = np.zeros((rows.Rows, rows.Columns), np.uint8)
        mask[1:4, 2:5] = 1
        png(tmp_path / "flat" / f"IM{n}.png", mask)
    out = tmp_path / "slices"
    assert prepare(tmp_path / "images", tmp_path / "flat", "--out", out, "--phrase", "liver", "--split", 1, 0, 1) == 0
    splits = {}
    for record in records_of(out):
        splits.setdefault(record["patient_id"], set()).add(record["split"])
    assert len(splits) == 2 and all(len(split) == 1 for split in splits.values())
    assert {kind for _, kind, *_ in check(out).problems} <= {"duplicate"}


def test_images_without_a_mask_and_leaking_patients_are_named(tmp_path, capsys):
    image, mask = draw(0)
    for split in ("train", "test"):
        png(tmp_path / "i" / split / "p7_1.png", image)
        png(tmp_path / "m" / split / "p7_1.png", mask)
    run = (tmp_path / "i", tmp_path / "m", "--out", tmp_path / "out", "--phrase", "x")
    assert prepare(*run, "--patient-pattern", r"(p\d)") == 1
    error = capsys.readouterr().err
    assert all(f"{split}/p7_1.png in {split}" in error for split in ("train", "test")) and "keep one split" in error
    (tmp_path / "m" / "test" / "p7_1.png").unlink()
    assert prepare(*run) == 1
    error = capsys.readouterr().err
    assert "test/p7_1.png: no mask of its name" in error and error.count("\n") == 1


def test_volumes_as_nnunet_lays_them_out(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(3):
        labels = np.zeros((12, 10, 6), np.uint8)
        labels[2:5, 3:6, 1:4], labels[8:10, 3:6, 2:4] = 1, 2
        for folder, values, end in (
            ("imagesTr", rng.integers(-100, 200, labels.shape), "_0000"),
            ("labelsTr", labels, ""),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = nibabel.Nifti1Image(values.astype(np.int16), np.diag([-1, -1, 2, 1]))
            nibabel.save(image, tmp_path / folder / f"a{n}{end}.nii.gz")
    out = tmp_path / "out"
    options = ["--labels", "1=liver", "2=tumor", "--modality", "CT"]
    assert prepare(tmp_path / "imagesTr", tmp_path / "labelsTr", "--out", out, *options) == 0
    assert check(out).ok
    samples = [s for split in ("train", "val", "test") for s in RecordDataset(out, split)]
    sizes = {sample.regions[0].phrase: int(sample.regions[0].mask.sum()) for sample in samples}
    assert len(samples) == 6 and sizes == {"liver": 27, "tumor": 12}


def test_classes_and_tables(tmp_path):
    for n in range(6):
        image, mask = draw(n)
        png(tmp_path / "k" / ("cat" if n % 2 else "old_dog") / f"{n}.png", image)
        png(tmp_path / "m" / f"{n}.png", mask)
    assert prepare(tmp_path / "k", "--classes", "--out", tmp_path / "classes") == 0
    found = records_of(tmp_path / "classes")
    assert {r["label"] for r in found} == {"cat", "old dog"} and found[0]["choices"] == ["cat", "old dog"]
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8-sig") as stream:
        table = csv.writer(stream, delimiter=";")
        table.writerow(["Image", "mask", "phrase", "patient_id", "split", "report"])
        for n in range(6):
            name = f"k/{'cat' if n % 2 else 'old_dog'}/{n}.png"
            table.writerow([name, f"m/{n}.png", "effusion", f"P{n // 3}", "test" if n > 2 else "train", "Fluid; much."])
    assert prepare(tmp_path, "--table", tmp_path / "t.csv", "--out", tmp_path / "table") == 0
    assert check(tmp_path / "table").ok
    found = records_of(tmp_path / "table")
    assert {(r["patient_id"], r["split"]) for r in found} == {("P0", "train"), ("P1", "test")}
    assert sum(r["task"] == "vqa" and r["answer"] == "Fluid; much." for r in found) == 6


def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, capsys):
    image, mask = draw(0)
    png(tmp_path / "i" / "a.png", image)
    png(tmp_path / "m" / "a.png", mask[:-3])
    png(tmp_path / "m" / "stranger.png", mask)
    run = (tmp_path / "i", tmp_path / "m", "--out", tmp_path / "out")
    assert prepare(*run, "--phrase", "x") == 1
    said = capsys.readouterr().err
    assert "stranger.png" in said and "a.png" in said and not (tmp_path / "out").exists()
    png(tmp_path / "i" / "b.png", image)
    png(tmp_path / "m" / "b.png", mask)
    assert prepare(*run, "--phrase", "x", "--skip-bad") == 2
    assert {r["patient_id"] for r in records_of(tmp_path / "out")} == {"file-b"}
    assert prepare(*run, "--phrase", "x") == 1 and "already there" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("image,split\n../../secret.png,train\n")
    assert prepare(tmp_path / "i", "--table", tmp_path / "t.csv", "--out", tmp_path / "o") == 1
    assert "t.csv" in capsys.readouterr().err
    for wrong in (["--labels", "one=liver"], ["--labels", "1="], ["--colors", "red=x"], []):
        assert prepare(tmp_path / "i", tmp_path / "m", "--out", tmp_path / "o", *wrong) == 1
        assert "Traceback" not in capsys.readouterr().err


def test_wrong_tables_and_patterns_say_what_to_do(tmp_path, capsys):
    image, mask = draw(0)
    png(tmp_path / "i" / "a.png", image)
    png(tmp_path / "m" / "a.png", mask)
    table = tmp_path / "t.csv"
    table.write_bytes("image,class\na.png,Erguß\n".encode("latin-1"))

    def refused(*arguments):
        assert prepare(tmp_path / "i", *arguments, "--out", tmp_path / "o") == 1 and not (tmp_path / "o").exists()
        return capsys.readouterr().err

    assert "t.csv: is not UTF-8 text" in refused("--table", table)
    assert "none.csv: no such file" in refused("--table", tmp_path / "none.csv")
    assert "relative to" in refused(tmp_path / "m", "--table", table)
    assert "--classes stands instead" in refused(tmp_path / "m", "--classes")
    with pytest.raises(SystemExit) as end:
        prepare(tmp_path / "i", tmp_path / "m", "--phrase", "x", "--patient-pattern", "(P", "--out", tmp_path / "o")
    assert end.value.code == 1 and "is not a regular expression" in capsys.readouterr().err


@pytest.mark.parametrize("patients", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (1, 0, 0), (0.5, 0, 0.5), (0.1, 0.1, 0.8)])
def test_splits_keep_patients_whole_and_fractions(patients, fractions):
    images = [ImageFile(None, f"{p}-{n}", patient=f"P{p}") for p in range(patients) for n in range(3)]
    assign_splits(images, fractions, seed=1)
    splits = {patient: {i.split for i in images if i.patient == patient} for patient in {i.patient for i in images}}
    assert all(len(split) == 1 for split in splits.values())
    counts = [sum(split == {name} for split in splits.values()) for name in ("train", "val", "test")]
    assert sum(counts) == patients
    for count, fraction in zip(counts, np.array(fractions) / sum(fractions), strict=True):
        assert count == 0 if not fraction else abs(count - fraction * patients) <= 2
        assert not (fraction and patients >= 3 and count == 0)
    torn = [ImageFile(None, name, patient="P", split=name) for name in ("train", "test")]
    with pytest.raises(FolderError, match="keep one split"):
        assign_splits(torn, fractions, 0)


def test_the_longest_image_name_owns_a_mask():
    images = {"case": 1, "case_1": 1, "a/case": 1}
    assert owner_of("case_1_liver", images) == ("case_1", "liver")
    assert owner_of("case_liver", images) == ("case", "liver")
    assert owner_of("a/case_mask", images) == ("a/case", "")
    assert owner_of("other", images) == (None, "")


def test_empty_splits_and_unknown_modalities_are_told(tmp_path, capsys):
    for folder, value in (("i", 50), ("m", 255)):
        png(tmp_path / folder / "a.png", np.pad(np.full((4, 4), value, np.uint8), 4))
    options = ["--phrase", "liver", "--modality", "banana", "--split", 1, 0, 0]
    assert prepare(tmp_path / "i", tmp_path / "m", "--out", tmp_path / "o", *options) == 0
    printed = capsys.readouterr().out
    assert "remark: no record is in val: a training is not validated" in printed and "no record is in test" in printed
    assert "no record is in train" not in printed and "remark: modality 'banana' is not known" in printed
