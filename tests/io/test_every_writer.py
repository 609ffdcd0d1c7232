"""Every registered format: written, read back equal as far as the format allows, on the grid of the source."""

import json

import numpy as np
import pytest
import small_volumes

from unimed.io.answers import read_answer
from unimed.io.challenge import read_labels, read_prompts
from unimed.io.images import ImageSource
from unimed.io.read import read
from unimed.io.result import ClassProbabilities, Prediction
from unimed.registry import WRITERS, registered
from unimed.structures import LabelRegion, Region

RNG = np.random.default_rng(0)
TILTED = small_volumes.grid((0.7, 0.8, 2.5), (0.2, 0.1, 0.3), (5, -3, 7))
SHEARED = small_volumes.grid((0.7, 0.8, 2.5), shear=(0.4, 0))
#: What a format needs and holds: pictures or volumes, several masks at one place.
KINDS = {
    "json": {"picture", "volume", "overlap", "nothing"},
    "png": {"picture", "volume", "overlap", "nothing"},
    "mask-png": {"picture", "overlap"},
    "nifti": {"picture", "volume", "overlap"},
    "nrrd": {"picture", "volume", "overlap"},
    "npz": {"picture", "volume", "overlap"},
    "dicom-seg": {"dicom"},
    "dicom-sr": {"dicom"},
    "rtstruct": {"dicom"},
    "parametric-map": set(),  # needs maps: tests/io/test_dicom_rendered.py
    "secondary-capture": {"dicom"},
    "html": {"picture", "volume", "overlap", "nothing", "dicom"},
    "fhir": {"picture", "volume", "overlap", "nothing", "dicom"},
    "seg-nrrd": {"picture", "volume", "overlap", "dicom"},
    "labels": {"picture", "volume", "overlap", "dicom"},
    "coco": {"picture", "overlap"},
    "labelme": {"picture", "overlap"},
    "label-studio": {"picture", "overlap"},
    "unibiomed": {"picture", "overlap", "nothing"},
    "biomedparse-npz": {"picture", "volume"},
}


def picture(overlap=False):
    first, second = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    first[3:12, 4:20], second[15:25, 10:30] = True, True
    if overlap:
        second[10:14, 10:30] = True
    regions = (
        Region("left kidney", mask=first, box_xyxy_px=(4.0, 3.0, 20.0, 12.0), presence=0.9, confidence=0.7),
        Region("über <cyst>", mask=second, presence=0.8, phrase_span=(3, 9), box_std_px=(1.0, 2.0, 1.0, 2.0)),
    )
    return Prediction(
        "a left kidney", regions, None, {"answer": 0.5}, "models/tiny", "<p> a left kidney </p> [SEG]",
        ImageSource("/data/case.png", ("as stored",), shape=(30, 40)),
    )  # fmt: skip


def volume(geometry=None, shared=True):
    labels = np.zeros((12, 10, 6), np.uint8)
    labels[2:6, 2:8, 1:3], labels[6:11, 3:9, 2:5] = 3, 7
    geometry = geometry or TILTED
    regions = [LabelRegion(n, label=k, label_map=labels, presence=0.9) for k, n in ((3, "liver"), (7, "spleen"))]
    if not shared:
        regions = [Region(r.phrase, mask=r.mask, presence=0.9) for r in regions]
        return Prediction("two", tuple(regions), geometry)
    existence = RNG.random((2, 6)).astype(np.float32)
    return Prediction("two", tuple(regions), geometry, {"segment": 1.0}, labels=labels, existence=existence)


def made(kind, folder):
    if kind == "picture":
        return picture(), np.zeros((30, 40, 3), np.uint8)
    if kind == "overlap":
        return picture(overlap=True), np.zeros((30, 40), np.uint8)
    if kind == "nothing":
        return Prediction("nothing is seen"), np.zeros((30, 40), np.uint8)
    if kind == "volume":
        return volume(), RNG.integers(-900, 900, (12, 10, 6)).astype(np.int16)
    array, geometry = dicom(folder)
    labels = np.zeros(array.shape, np.uint8)
    labels[1:3, 1:4, 1] = 1
    return Prediction("", (Region("liver", mask=labels > 0),), geometry), array


def dicom(folder):
    array = RNG.integers(0, 1000, (8, 7, 4)).astype(np.int16)
    small_volumes.save(folder / "ct", small_volumes.slices(array, small_volumes.grid((1, 1, 3))))
    return read(folder / "ct")


def test_every_registered_format_is_tried():
    assert sorted(KINDS) == sorted(registered(WRITERS))


@pytest.mark.parametrize(("form", "kind"), [(form, kind) for form in KINDS for kind in sorted(KINDS[form])])
def test_what_is_written_is_there_and_whole(form, kind, tmp_path):
    prediction, image = made(kind, tmp_path)
    paths = prediction.save(tmp_path / "out", "case", (form,), image=image)
    assert paths and all(path.is_file() and path.name.startswith("case") for path in paths)
    assert sorted(p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")) == sorted(paths)
    before = [path.read_bytes() for path in paths]
    again = prediction.save(tmp_path / "out", "case", (form,), image=image)
    assert again == paths
    dated = ("dicom-seg", "dicom-sr", "rtstruct", "secondary-capture", "html", "fhir", "nifti")
    if form not in dated:  # these hold the time of writing, or of compression
        assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("kind", ["picture", "overlap", "nothing"])
def test_json_comes_back_as_it_was(kind, tmp_path):
    prediction, image = made(kind, tmp_path)
    (path,) = prediction.save(tmp_path, "case", ("json",))
    back = Prediction.from_dict(json.loads(path.read_text(encoding="utf-8")))
    assert (back.text, back.markup, len(back.regions)) == (prediction.text, prediction.markup, len(prediction.regions))
    for one, other in zip(back.regions, prediction.regions, strict=True):
        for name in Region.__dataclass_fields__:
            if name != "mask":
                assert getattr(one, name) == getattr(other, name), name
        assert np.array_equal(one.mask, other.mask)
    assert back.to_dict() == prediction.to_dict() | {"model": back.model_reference}


def test_json_of_classes_and_of_volumes(tmp_path):
    slices = np.array([[0.5, 0.5], [0, 1]], np.float32)
    classes = ClassProbabilities(("a", "b"), (0.25, 0.75), (0.1, 0.2), per_slice=slices)
    back = Prediction.from_dict(json.loads(json.dumps(Prediction("b", classes=classes).to_dict())))
    assert back.classes.label == "b" and back.classes.ranked() == classes.ranked()
    assert np.array_equal(back.classes.per_slice, classes.per_slice)
    for shared in (True, False):
        prediction = volume(shared=shared)
        alone, _ = prediction.save(tmp_path / str(shared), "v", ("json", "nifti"))
        values = json.loads(alone.read_text())
        assert [t["voxels"] for t in values["targets"]] == [48, 90] == [r["voxels"] for r in values["regions"]]
        assert {r["label"]["file"] for r in values["regions"]} == {"v.nii.gz"} and "mask_rle" not in alone.read_text()
        assert [t["label"] for t in values["targets"]] == ([3, 7] if shared else [1, 2])
    alone, _ = volume(SHEARED).save(tmp_path, "sheared", ("json", "nifti"))
    assert {r["label"]["file"] for r in json.loads(alone.read_text())["regions"]} == {"sheared.nrrd"}
    (path,) = volume(shared=False).save(tmp_path, "rle", ("json",))
    masks = [r.mask for r in Prediction.from_dict(json.loads(path.read_text())).regions]
    assert all(np.array_equal(a, b.mask) for a, b in zip(masks, volume(shared=False).regions, strict=True))


@pytest.mark.parametrize("form", ["nifti", "nrrd"])
@pytest.mark.parametrize("kind", ["picture", "overlap", "volume"])
def test_masks_come_back_on_their_grid(form, kind, tmp_path):
    prediction, _ = made(kind, tmp_path)
    paths = prediction.save(tmp_path, "case", (form,))
    first, geometry = read(paths[0])
    if kind == "volume":
        assert np.array_equal(first, prediction.labels)
        assert np.allclose(geometry.affine, prediction.geometry.affine, atol=1e-4)
        return
    if kind == "picture":
        assert len(paths) == 1
        assert all(np.array_equal(first.squeeze() == k, r.mask) for k, r in enumerate(prediction.regions, 1))
        return
    assert len(paths) == 3, "what overlaps has a file each beside the map"
    for path, region in zip(paths[1:], prediction.regions, strict=True):
        assert np.array_equal(read(path)[0].squeeze() > 0, region.mask)


def test_npz_and_the_layout_of_the_challenge(tmp_path):
    prediction = volume()
    (mine,) = prediction.save(tmp_path, "mine", ("npz",))
    (theirs,) = prediction.save(tmp_path, "theirs", ("biomedparse-npz",))
    for path in (mine, theirs):
        assert np.array_equal(read_labels(path, "segs")[0], prediction.labels)
        assert read_prompts(path).first() == {3: "liver", 7: "spleen"}
        assert np.array_equal(np.load(path)["existence"], prediction.existence)
    (both,) = picture(overlap=True).save(tmp_path, "both", ("npz",))
    assert np.array_equal(np.load(both)["masks"], [r.mask for r in picture(overlap=True).regions])


def test_pictures_of_masks_and_answers_of_unibiomed(tmp_path):
    from PIL import Image

    prediction = picture(overlap=True)
    for path, region in zip(prediction.save(tmp_path, "m", ("mask-png",)), prediction.regions, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)) > 0, region.mask)
    (path,) = prediction.save(tmp_path, "a", ("unibiomed",))
    answer = read_answer(path)
    assert answer["image_id"] == "a" and answer["caption"] == "a left kidney" and answer["phrases"] == ["a left kidney"]
    assert all(np.array_equal(m, r.mask) for m, r in zip(answer["pred_masks"], prediction.regions, strict=True))


def test_a_segmentation_lies_on_its_series(tmp_path):
    import highdicom

    prediction, _ = made("dicom", tmp_path)
    (path,) = prediction.save(tmp_path, "case", ("dicom-seg",))
    segments = highdicom.seg.segread(path)
    assert segments.SegmentSequence[0].SegmentLabel == "liver"
    assert int((segments.pixel_array > 0).sum()) == int(prediction.regions[0].mask.sum())


@pytest.mark.parametrize(
    ("prediction", "formats", "words"),
    [
        (picture(), ("tiff",), "unknown format 'tiff'"),
        (picture(), ("pngg",), "did you mean 'png'"),
        (picture(), ("json", "png"), "image="),
        (picture(), ("json", "unibiomed"), "several write NAME.json"),
        (picture(), ("json", "dicom-seg"), "DICOM series"),
        (Prediction("x"), ("json", "nifti"), "no mask"),
        (volume(shared=False), ("json", "mask-png"), "of a volume"),
        (volume(), ("json", "unibiomed"), "of a volume"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(prediction, formats, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        prediction.save(tmp_path / "out", "case", formats)
    assert not (tmp_path / "out").exists()


def test_a_format_is_one_function(tmp_path):
    @WRITERS.register_module("boxes-csv")
    def boxes(prediction, image=None, formats=()):
        from unimed.files import write_text

        lines = [",".join(map(str, (r.phrase, *(r.box_xyxy_px or ())))) for r in prediction.regions]
        return {".csv": lambda path: write_text(path, "\n".join(lines))}

    try:
        (path,) = picture().save(tmp_path, "case", ("boxes-csv",))
        assert path.read_text().splitlines()[0] == "left kidney,4.0,3.0,20.0,12.0"
    finally:
        WRITERS.module_dict.pop("boxes-csv")
