"""The record format: what is read comes back as a sample, what is wrong is named."""

import json

import numpy as np
import pytest
from PIL import Image

from unimed.data.readers.records import RecordDataset, RecordError
from unimed.geometry import ALL_ORIENTATIONS, Geometry, reorient
from unimed.io.write import write_nifti
from unimed.registry import DATASETS


def record(**changes):
    entry = {
        "id": "a",
        "task": "referring",
        "image": "images/a.png",
        "modality": "MRI",
        "site": "brain",
        "patient_id": "p1",
        "split": "train",
        "question": "Segment the lesion.",
        "answer": "<p> lesion </p> [SEG].",
        "regions": [
            {"phrase": "lesion", "mask": "masks/a.png", "box_xyxy_px": None, "present": True, "phrase_span": [4, 10]}
        ],
    }
    return {**entry, **changes}


@pytest.fixture
def folder(tmp_path):
    for name in ("records", "images", "masks", "volumes"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "images/a.png")
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 1:5] = 255
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    return tmp_path


def write(folder, *records):
    (folder / "records" / "train.jsonl").write_text("\n".join(json.dumps(r) for r in records))


def test_record_becomes_sample(folder):
    write(folder, record(label="lesion", choices=["lesion", "none"]))
    sample = RecordDataset(folder, "train")[0]
    assert sample.conversation == (("user", "Segment the lesion."), ("assistant", "<p> lesion </p> [SEG]."))
    assert sample.images[0].shape == (6, 8) and sample.regions[0].mask.sum() == 8
    assert sample.labels["task"] == "referring" and sample.labels["site"] == "brain"
    start, end = sample.regions[0].phrase_span
    assert sample.conversation[1][1][start:end] == "lesion"


def test_registry_builds_it(folder):
    write(folder, record())
    assert len(DATASETS.build(dict(type="RecordDataset", path=str(folder), split="train"))) == 1


def test_tasks_and_limit(folder):
    write(folder, record(), record(id="b"), record(id="c", task="vqa", answer="MRI.", regions=[]))
    assert [r["id"] for r in RecordDataset(folder, tasks=["vqa"]).records] == ["c"]
    assert len(RecordDataset(folder, limit=2)) == 2
    with pytest.raises(RecordError, match="unknown task guess"):
        RecordDataset(folder, tasks=["guess"])


def test_records_about_one_thing(folder):
    absent = dict(task="absent", answer="No.", regions=[{"phrase": "cyst", "present": False}])
    write(folder, record(), record(id="b", **absent), record(id="c", task="vqa", answer="Yes.", regions=[]))

    def kept(*phrases):
        return [one["id"] for one in RecordDataset(folder, "train", phrases=phrases).records]

    assert kept("lesion") == ["a"] and kept("cyst") == ["b"] and kept("cyst", "lesion") == ["a", "b"]

    two = dict(answer="<p> lesion </p> [SEG] and <p> lesion </p> [SEG].", regions=record()["regions"] * 2)
    write(folder, record(), record(id="b", **two), record(id="c", task="vqa", answer="Yes.", regions=[]))
    for targets, ids in ((1, "ab"), (2, "b"), ((1, 1), "a"), ((0, 0), "c"), (None, "abc")):
        assert "".join(one["id"] for one in RecordDataset(folder, "train", targets=targets).records) == ids


def test_volume_is_turned_head_back_left(folder):
    array = np.zeros((4, 5, 6), np.int16)
    array[3, 4, 5] = 7  # RAS: right, front, head
    geometry = Geometry(np.diag((2.0, 3.0, 4.0, 1.0)))
    write_nifti(folder / "volumes/v.nii.gz", array, geometry)
    write_nifti(folder / "masks/v.nii.gz", array > 0, geometry)
    region = {"phrase": "lesion", "mask": "masks/v.nii.gz", "present": True}
    entry = record(task="volume", volume="volumes/v.nii.gz", regions=[region])
    del entry["image"]
    write(folder, entry)
    sample = RecordDataset(folder)[0]
    assert sample.images[0].shape == (6, 5, 4) and sample.geometry.orientation == "SPL"
    assert sample.images[0][5, 0, 0] == 7 and sample.regions[0].mask[5, 0, 0]
    assert sample.geometry.spacing == (4.0, 3.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(answer="<p> lesion </p>."), r"one \[SEG\] per mask"),
        (dict(answer="<p> lesion </p> [SEG] [SEG]."), r"2 x \[SEG\]"),
        (dict(answer="<p> lesion </p> [BOX]."), r"1 x \[BOX\]"),
        (dict(regions=[{"phrase": "lesion", "mask": None}]), "neither mask nor box"),
        (dict(regions=[{"phrase": "lesion", "mask": "masks/small.png"}]), "masks/small.png is"),
        (dict(regions=[{"phrase": "lesion", "mask": "masks/empty.png"}]), "is empty"),
        (
            dict(answer="<p> lesion </p> [BOX].", regions=[{"phrase": "lesion", "box_xyxy_px": [1, 1, 100, 4]}]),
            "record .*reaches out of the image of 8 x 6",
        ),
    ],
)
def test_disagreements_are_named(folder, changes, message):
    Image.fromarray(np.full((3, 8), 255, np.uint8)).save(folder / "masks/small.png")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / "masks/empty.png")
    write(folder, record(**changes))
    with pytest.raises(RecordError, match=message):
        RecordDataset(folder)[0]


def test_missing_files_are_named(folder):
    write(folder, record(image="images/gone.png"))
    with pytest.raises(FileNotFoundError, match="images/gone.png"):
        RecordDataset(folder)[0]
    with pytest.raises(FileNotFoundError, match="prepare folder.* prepare sample"):
        RecordDataset(folder, "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "one JSON object"),
        ('{"id": "a"}', "is missing"),
        (json.dumps(record(task="x")), "unknown task 'x'"),
        (json.dumps(record()) + "\n" + json.dumps(record()), "used twice"),
        (json.dumps(record(volume="v.nii")), "either `image` or `volume`"),
    ],
)
def test_bad_lines_are_named(folder, line, message):
    (folder / "records" / "train.jsonl").write_text(line)
    with pytest.raises(RecordError, match=message):
        RecordDataset(folder)


def test_absent_region_has_no_token_and_given_region_neither(folder):
    absent = {"phrase": "lesion", "mask": None, "present": False}
    write(
        folder,
        record(task="absent", answer="No, there is no lesion.", regions=[absent]),
        record(id="b", task="region", answer="Region1 shows a lesion."),
    )
    dataset = RecordDataset(folder)
    assert dataset[0].regions[0].presence == 0.0
    assert dataset[1].regions[0].mask.any()


def test_some_slices_of_a_volume_for_training(folder):
    array = np.zeros((4, 5, 20), np.int16)
    array[1, 1] = np.arange(20) * 50
    geometry = Geometry(np.diag((2.0, 3.0, 4.0, 1.0)))
    mask = np.zeros_like(array, dtype=bool)
    mask[1, 1, 7:10] = True
    write_nifti(folder / "volumes/v.nii.gz", array, geometry)
    write_nifti(folder / "masks/v.nii.gz", mask, geometry)
    entry = record(task="volume", volume="volumes/v.nii.gz")
    entry["regions"] = [{"phrase": "lesion", "mask": "masks/v.nii.gz", "present": True}]
    del entry["image"]
    write(folder, entry)
    sample = RecordDataset(folder, slices=6, foreground_fraction=0.5)[0]
    assert sample.images[0].shape == (6, 5, 4) and sample.images[0].dtype == np.uint8
    shown = sample.regions[0].mask.any(axis=(1, 2))
    assert shown.sum() == 3 and not sample.geometry.is_physical
    bright = sample.images[0].max(axis=(1, 2))
    assert (np.diff(bright.astype(int)) >= 0).all()  # slices keep their order
    whole = RecordDataset(folder, to_uint8=True)[0]
    assert whole.images[0].shape == (20, 5, 4) and whole.images[0].dtype == np.uint8 and whole.geometry.is_physical
    assert RecordDataset(folder)[0].images[0].dtype == np.int16


VOLUME_GRID = Geometry([[0, -2.0, 0, 9], [1.5, 0, 0, -4], [0, 0, 3, 7], [0, 0, 0, 1]])


def volume_record(folder, mask_geometry, mask):
    """A record whose mask is stored in a grid of its own, and the true mask in the order of the volume."""
    array = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.int16)
    write_nifti(folder / "volumes/v.nii.gz", array, VOLUME_GRID)
    write_nifti(folder / "masks/v.nii.gz", mask, mask_geometry)
    region = {"phrase": "lesion", "mask": "masks/v.nii.gz", "present": True}
    entry = record(task="volume", volume="volumes/v.nii.gz", regions=[region])
    del entry["image"]
    write(folder, entry)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS[::5])
def test_a_mask_stored_with_other_axes_lies_where_its_volume_does(folder, orientation):
    mask = np.zeros((6, 5, 4), np.uint8)
    mask[1:3, 2, 3] = 1
    turned, geometry = reorient(mask, VOLUME_GRID, orientation)
    volume_record(folder, geometry, np.ascontiguousarray(turned))
    seen = RecordDataset(folder)[0].regions[0].mask
    assert np.array_equal(seen, reorient(mask, VOLUME_GRID, "SPL")[0] > 0)


def moved(by):
    affine = VOLUME_GRID.affine.copy()
    affine[:3, 3] += by
    return Geometry(affine)


@pytest.mark.parametrize(
    ("geometry", "shape"),
    [
        (Geometry(np.eye(4)), (6, 5, 4)),
        (moved((0, 0, 6)), (6, 5, 4)),
        (moved((2, 0, 0)), (6, 5, 4)),
        (Geometry(VOLUME_GRID.affine @ np.diag((1, 1, 0.5, 1))), (6, 5, 4)),
        (Geometry(VOLUME_GRID.affine @ np.diag((1, 1, 0.5, 1))), (6, 5, 8)),
        (VOLUME_GRID, (6, 5, 3)),
    ],
)
def test_a_volume_mask_in_another_grid_is_named_by_the_checker(folder, geometry, shape):
    from unimed.data.checks import check

    mask = np.zeros(shape, np.uint8)
    mask[2:4, 2, 1] = 1
    volume_record(folder, geometry, mask)
    with pytest.raises(RecordError, match="mask masks/v.nii.gz is .*(in the patient|voxels away)"):
        RecordDataset(folder)[0]
    report = check(folder)
    assert [kind for _, kind, _ in report.problems] == ["mask"]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_record_ends_at_a_line_feed_only(folder, sign, mark):
    question = f"Is it{sign} there?"
    lines = [json.dumps(record(id=name, question=question), ensure_ascii=False) for name in "ab"]
    (folder / "records" / "train.jsonl").write_bytes((mark + "\r\n".join(lines)).encode())
    samples = RecordDataset(folder, "train")
    assert [sample.conversation[0][1] for sample in samples] == [question] * 2


def test_volume_and_mask_without_directions_stay_together(folder):
    array = np.arange(125, dtype=np.int16).reshape(5, 5, 5)
    head = "NDims = 3\nDimSize = 5 5 5\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (folder / "volumes").mkdir(exist_ok=True)
    (folder / "volumes/v.mha").write_bytes(head.encode() + array.tobytes(order="F"))
    (folder / "masks/v.mha").write_bytes(head.encode() + (array == 7).astype(np.int16).tobytes(order="F"))
    region = {"phrase": "lesion", "mask": "masks/v.mha", "present": True}
    entry = record(task="volume", volume="volumes/v.mha", regions=[region])
    del entry["image"]
    write(folder, entry)
    sample = RecordDataset(folder)[0]
    assert sample.images[0][sample.regions[0].mask].tolist() == [7]
