"""DICOM Segmentation objects, read back by highdicom."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import small_volumes
from clinical import (
    blobs,
    ct_series,
    dcmqi_segments,
    dicom_errors,
    found_in,
    identifying,
    source_cases,
    voxels_different,
    write_source,
)

from unimed.geometry import ALL_ORIENTATIONS, Geometry, reorient
from unimed.io.dicom_seg import DicomSegError, write_dicom_seg
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.structures import Region

highdicom = pytest.importorskip("highdicom")


def save_dicom_seg(prediction, folder, name, **options):
    return prediction.save(folder, name, ("dicom-seg",), **options)


def write_series(folder):
    specification = importlib.util.spec_from_file_location("series", Path(__file__).parent / "test_read_write.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    folder.mkdir()
    module.write_series(folder)


@pytest.fixture
def series(tmp_path):
    write_series(tmp_path / "ct")
    return read(tmp_path / "ct")


def source_uids(geometry):
    import pydicom

    return [pydicom.dcmread(name, stop_before_pixels=True).SOPInstanceUID for name in geometry.header["files"]]


def test_labels_come_back_on_their_slices(tmp_path, series):
    volume, geometry = series
    labels = np.zeros(volume.shape, np.uint8)
    labels[10:20, 30:50, 1:3], labels[15:40, 60:80, 2:5] = 1, 4
    path = write_dicom_seg(tmp_path / "out.seg.dcm", labels, geometry, {1: "liver", 2: "spleen", 4: "liver tumor"})
    seg = highdicom.seg.segread(path)
    assert [d.SegmentLabel for d in seg.SegmentSequence] == ["liver", "liver tumor"]
    back = seg.get_pixels_by_source_instance(
        source_uids(geometry), combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(back.transpose(2, 1, 0), np.select([labels == 1, labels == 4], [1, 2], 0))
    # The grid is the patient's: DICOM's affine of (slice, row, column) and ours of (column, row, slice) agree.
    place = seg.get_volume(combine_segments=True).affine[:3, :3]
    ours = np.diag((-1, -1, 1)) @ geometry.affine[:3, :3]
    assert np.allclose(np.abs(place[:, ::-1]), np.abs(ours), atol=1e-4)
    assert "research use only" in seg.SeriesDescription


def test_overlaps_are_kept_and_prediction_saves_it(tmp_path, series):
    volume, geometry = series
    organ, lesion = np.zeros(volume.shape, bool), np.zeros(volume.shape, bool)
    organ[20:60, 20:60, :], lesion[30:40, 30:40, 2] = True, True
    prediction = Prediction("", (Region("liver", organ), Region("spleen"), Region("lesion", lesion)), geometry)
    (path,) = prediction.save(tmp_path, "case", ("dicom-seg",))
    seg = highdicom.seg.segread(path)
    back = seg.get_pixels_by_source_instance(source_uids(geometry), assert_missing_frames_are_empty=True)
    assert np.array_equal(back[..., 0].transpose(2, 1, 0), organ) and np.array_equal(
        back[..., 1].transpose(2, 1, 0), lesion
    )


def test_faults_are_named_and_nothing_is_left(tmp_path, series):
    volume, geometry = series
    labels = np.ones(volume.shape, np.uint8)
    out = tmp_path / "out"
    with pytest.raises(DicomSegError, match="needs a DICOM series"):
        write_dicom_seg(out / "a.dcm", labels, Geometry(np.eye(4), source_format="nifti"), {1: "x"})
    with pytest.raises(DicomSegError, match="do not fit the series of .128, 128, 5."):
        write_dicom_seg(out / "a.dcm", labels[..., :3], geometry, {1: "x"})
    Path(geometry.header["files"][2]).unlink()
    with pytest.raises(DicomSegError, match="is gone"):
        write_dicom_seg(out / "a.dcm", labels, geometry, {1: "x"})
    assert not out.exists()


@pytest.mark.parametrize("shift", [(0, 0), (0.4, 0.3)])
def test_an_enhanced_object_in_any_order_and_a_tilted_series_get_their_labels_back(tmp_path, shift):
    values = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.int16)
    grid = small_volumes.grid((1, 1.5, 2), (0.1, 0.2, 0.3), (5, 6, 7), shift)
    small_volumes.enhanced(values, grid, (3, 1, 0, 2)).save_as(tmp_path / "e.dcm", enforce_file_format=True)
    small_volumes.save(tmp_path / "s", small_volumes.slices(values, grid))
    for source in (tmp_path / "e.dcm", tmp_path / "s"):
        array, geometry = read(source)
        labels = (array > 50).astype(np.uint8)
        seg = highdicom.seg.segread(write_dicom_seg(tmp_path / "out.dcm", labels, geometry, {1: "liver"}))
        places = [f.PlanePositionSequence[0].ImagePositionPatient for f in seg.PerFrameFunctionalGroupsSequence]
        for place, drawn in zip(places, seg.pixel_array, strict=True):
            ras = np.array([-float(place[0]), -float(place[1]), float(place[2]), 1])
            column, row, k, _ = np.linalg.solve(geometry.affine, ras)
            assert abs(column) < 1e-4 and abs(row) < 1e-4 and abs(k - round(k)) < 1e-4
            assert np.array_equal(drawn.T, labels[:, :, round(k)])


NAMES = {1: "肝臓 病変", 2: "Läsion\\links", 3: "мозг\x1b[31m\r\nопухоль", 4: "\x1b\x07", 5: "x" * 100}
#: Said of the patient in the source and nobody's business in a segmentation.
PRIVATE = {
    "PatientComments": "SECRET comment", "OtherPatientIDs": "SECRET-2", "PatientAddress": "SECRET street",
    "InstitutionName": "SECRET hospital", "StationName": "SECRET-CT1", "OperatorsName": "SECRET^Op",
    "ReferringPhysicianName": "SECRET^Doc", "StudyDescription": "SECRET study", "PatientAge": "077Y",
    "PatientTelephoneNumbers": "SECRET", "EthnicGroup": "SECRET", "DeviceSerialNumber": "SECRET-7",
    "ProtocolName": "SECRET", "RequestedProcedureDescription": "SECRET", "PatientBirthName": "SECRET",
    "ImageComments": "SECRET", "PerformingPhysicianName": "SECRET^P", "AdditionalPatientHistory": "SECRET",
}  # fmt: skip


@pytest.mark.parametrize("alphabet", ["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 87"]])
def test_only_what_the_table_says_is_carried(tmp_path, series, alphabet):
    import pydicom

    from unimed.io.dicom_seg import CARRIED

    volume, geometry = series
    patient = "山田^太郎" if isinstance(alphabet, list) else "Müller^Jörg"
    for name in geometry.header["files"]:
        source = pydicom.dcmread(name)
        source.SpecificCharacterSet = alphabet
        source.PatientName, source.PatientID, source.StudyID = patient, "P7", "S1"
        for keyword, value in PRIVATE.items():
            setattr(source, keyword, value)
        source.add_new((0x0009, 0x0010), "LO", "SECRET private")
        source.save_as(name)
    masks = [np.zeros(volume.shape, bool) for _ in NAMES]
    for number, mask in enumerate(masks):
        mask[number * 3 : number * 3 + 3, 10:20, 1] = True
    path = write_dicom_seg(tmp_path / "o.seg.dcm", masks[0] * 1, geometry, NAMES, masks=masks, algorithm="a\\b\x1b")
    assert b"SECRET" not in path.read_bytes() and b"077Y" not in path.read_bytes()
    seg = pydicom.dcmread(path)
    assert str(seg.PatientName) == patient and (seg.PatientID, seg.StudyID) == ("P7", "S1")
    assert seg.SpecificCharacterSet == "ISO_IR 192" and not seg.ReferringPhysicianName
    labels = ["肝臓 病変", "Läsion/links", "мозг[31m опухоль", "segment 4", "x" * 64]
    assert [part.SegmentLabel for part in seg.SegmentSequence] == labels
    told = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    assert all(f"`{keyword}`" in told for keyword in CARRIED), "docs/results.md holds the table of what is carried"


def test_nothing_of_a_patient_is_said_where_the_header_is_odd(tmp_path, series, recwarn, caplog, capfd):
    import pydicom

    volume, geometry = series
    for name in geometry.header["files"]:
        source = pydicom.dcmread(name)
        source.PatientName, source.PatientID, source.StudyDate = "Oddname", "P" * 70, "20200101"
        source.add(pydicom.dataelem.RawDataElement(pydicom.tag.Tag(0x00100030), "DA", 8, b"31.12.77", 0, False, True))
        source.save_as(name)
    write_dicom_seg(tmp_path / "o.seg.dcm", np.ones(volume.shape, np.uint8), geometry, {1: "liver"})
    said = " ".join([*(str(one.message) for one in recwarn), caplog.text, *capfd.readouterr()])
    assert not any(secret in said for secret in ("Oddname", "PPPP", "31.12.77"))


PHRASES = ("left kidney", "cyst of the right kidney", "Läsion 肝臓")


@pytest.mark.parametrize(("name", "grid", "kind"), source_cases(), ids=[case[0] for case in source_cases()])
def test_every_series_gets_a_file_that_dciodvfy_and_dcmqi_read_to_the_voxel(tmp_path, name, grid, kind):
    array, geometry = write_source(tmp_path / "s", grid, kind)
    masks = blobs(array.shape)
    result = Prediction("", tuple(map(Region, PHRASES, masks)), geometry)
    (path,) = result.save(tmp_path, "case", ("dicom-seg",))
    assert dicom_errors(path) == []
    segments = dcmqi_segments(path, tmp_path / "q")
    assert [a["SegmentLabel"] for a, _, _ in segments] == list(PHRASES)
    for mask, (_, found, affine) in zip(masks, segments, strict=True):
        assert voxels_different(mask, geometry, found, affine) == 0
    kidney, cyst, other = (attributes for attributes, _, _ in segments)
    assert kidney["SegmentedPropertyTypeModifierCodeSequence"]["CodeValue"] == "7771000"
    assert cyst["AnatomicRegionSequence"]["CodeValue"] == "64033007"
    assert cyst["AnatomicRegionModifierSequence"]["CodeValue"] == "24028007"
    assert other["SegmentedPropertyTypeCodeSequence"]["CodingSchemeDesignator"] == "99UNIMED"


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS[::5])
def test_masks_of_a_turned_volume_are_turned_back(tmp_path, orientation):
    array, geometry = ct_series(tmp_path / "s")
    (mask,) = blobs(array.shape, 1)
    turned, turned_geometry = reorient(mask, geometry, orientation)
    result = Prediction("", (Region("liver", np.ascontiguousarray(turned)),), turned_geometry)
    (path,) = result.save(tmp_path, "case", ("dicom-seg",))
    back = highdicom.seg.segread(path).get_pixels_by_source_instance(
        source_uids(geometry), combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(back.transpose(2, 1, 0), mask)


def test_a_grid_of_its_own_is_kept_and_a_moved_one_refused(tmp_path):
    array, geometry = ct_series(tmp_path / "s")
    finer = np.diag((0.5, 0.5, 0.5, 1))
    own = Geometry(geometry.affine @ finer, "dicom", header=geometry.header)
    (mask,) = blobs((11, 12, 10), 1)
    (path,) = Prediction("", (Region("liver", mask),), own).save(tmp_path, "case", ("dicom-seg",))
    ((_, found, affine),) = dcmqi_segments(path, tmp_path / "q")
    assert voxels_different(mask, own, found, affine) == 0
    moved = Geometry(np.array(geometry.affine) + np.eye(4, k=3) * 40, "dicom", header=geometry.header)
    with pytest.raises(DicomSegError, match="do not fit"):
        write_dicom_seg(tmp_path / "a.dcm", np.ones(array.shape, int), moved, {1: "x"})


def test_the_same_result_is_the_same_object_and_another_is_not(tmp_path):
    _, geometry = ct_series(tmp_path / "s")
    one, two = blobs((9, 7, 6), 2)

    def made(mask, model="m"):
        prediction = Prediction("", (Region("nodule", mask), Region("nodule", mask)), geometry, model_reference=model)
        return highdicom.seg.segread(save_dicom_seg(prediction, tmp_path, "a")[0])

    first, again, changed, other = made(one), made(one), made(two), made(one, "/home/x/other")
    assert first.SOPInstanceUID == again.SOPInstanceUID and first.SeriesInstanceUID == again.SeriesInstanceUID
    assert first.SeriesInstanceUID == changed.SeriesInstanceUID and first.SOPInstanceUID != changed.SOPInstanceUID
    assert first.SeriesInstanceUID != other.SeriesInstanceUID
    tracked = [segment.TrackingUID for segment in first.SegmentSequence]
    assert tracked == [s.TrackingUID for s in changed.SegmentSequence] and len(set(tracked)) == 2
    assert (
        first.SegmentSequence[0].RecommendedDisplayCIELabValue == other.SegmentSequence[0].RecommendedDisplayCIELabValue
    )
    algorithm = other.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "other" and algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"


@pytest.mark.parametrize("masks", [(None, None), (np.zeros((9, 7, 6), bool),) * 2], ids=["no masks", "empty masks"])
def test_nothing_found_is_a_valid_file_that_says_so(tmp_path, masks):
    _, geometry = ct_series(tmp_path / "s")
    regions = (Region("liver cyst", masks[0], presence=0.03), Region("gallstone", masks[1], presence=0.2))
    (path,) = save_dicom_seg(Prediction("", regions, geometry), tmp_path, "a", calibrated=True)
    assert dicom_errors(path) == []
    seg = highdicom.seg.segread(path)
    assert not seg.pixel_array.any() and len(seg.SegmentSequence) == 2
    assert "not outlined; presence 0.03 (calibrated)" in seg.SegmentSequence[0].SegmentDescription


def test_fractional_and_label_map(tmp_path):
    array, geometry = ct_series(tmp_path / "s")
    rng = np.random.default_rng(0)
    maps = [rng.random(array.shape).astype(np.float32) for _ in range(2)]
    result = Prediction("", tuple(Region(n, m > 0.5) for n, m in zip(("liver", "spleen"), maps, strict=True)), geometry)
    (path,) = save_dicom_seg(result, tmp_path, "f", segmentation_type="FRACTIONAL", probabilities=maps)
    assert dicom_errors(path) == []
    back = highdicom.seg.segread(path).get_pixels_by_source_instance(
        source_uids(geometry), assert_missing_frames_are_empty=True
    )
    assert np.abs(back.transpose(2, 1, 0, 3) - np.stack(maps, -1)).max() <= 0.5 / 255 + 1e-6
    with pytest.raises(DicomSegError, match="overlap"):
        save_dicom_seg(result, tmp_path, "l", segmentation_type="LABELMAP")
    parted = (Region("liver", maps[0] > 0.7), Region("spleen", maps[0] < 0.3))
    (path,) = save_dicom_seg(Prediction("", parted, geometry), tmp_path, "l", segmentation_type="LABELMAP")
    assert [int(found.sum()) for _, found, _ in dcmqi_segments(path, tmp_path / "q")] == [r.mask.sum() for r in parted]
    for bad in ({"segmentation_type": "FRACTIONAL"}, {"segmentation_type": "X"},
                {"segmentation_type": "FRACTIONAL", "probabilities": [maps[0] * 2, maps[1]]}):  # fmt: skip
        with pytest.raises(DicomSegError):
            save_dicom_seg(result, tmp_path, "x", **bad)


def test_two_series_of_a_study_have_files_of_their_own(tmp_path):
    made = []
    for number in (1, 2):
        _, geometry = ct_series(tmp_path / f"s{number}", seed=number, SeriesInstanceUID=f"1.2.3.{number}")
        result = Prediction("", (Region("liver", blobs((9, 7, 6), 1)[0]),), geometry)
        made.append(highdicom.seg.segread(save_dicom_seg(result, tmp_path, f"{number}")[0]))
    assert made[0].StudyInstanceUID == made[1].StudyInstanceUID
    assert made[0].SeriesInstanceUID != made[1].SeriesInstanceUID
    assert [m.ReferencedSeriesSequence[0].SeriesInstanceUID for m in made] == ["1.2.3.1", "1.2.3.2"]
    assert made[0].SegmentSequence[0].TrackingUID != made[1].SegmentSequence[0].TrackingUID


def test_a_picture_without_a_place_is_outlined_too(tmp_path):
    made = small_volumes.dataset("1.2.840.10008.5.1.4.1.1.1.1", "DX")
    small_volumes.set_pixels(made, np.arange(63, dtype=np.int16).reshape(7, 9))
    del made.FrameOfReferenceUID
    small_volumes.save(tmp_path, [made], ["x.dcm"])
    _, geometry = read(tmp_path / "x.dcm")
    mask = np.zeros((7, 9), bool)
    mask[2:4, 5:9] = True
    (path,) = Prediction("", (Region("heart", mask),), geometry).save(tmp_path, "x", ("dicom-seg",))
    assert np.array_equal(highdicom.seg.segread(path).pixel_array.reshape(7, 9), mask)
    assert dicom_errors(path) == []


def test_deidentified_holds_nothing_of_the_patient(tmp_path):
    import pydicom

    _, geometry = ct_series(tmp_path / "s")
    header = pydicom.dcmread(geometry.header["files"][0])
    (path,) = save_dicom_seg(
        Prediction("", (Region("liver", blobs((9, 7, 6), 1)[0]),), geometry), tmp_path, "a", deidentified=True
    )
    assert dicom_errors(path) == []
    assert identifying(header) and found_in(path.read_bytes(), identifying(header)) == []


def test_left_and_right_of_a_whole_vocabulary_are_told_apart_by_dcmqi(tmp_path):
    import csv

    rows = csv.DictReader(open(Path(__file__).parent / "totalsegmentator_codes.csv", encoding="utf-8"))
    known = [row["structure"] for row in rows]
    pairs = [(n, n.replace("left", "right")) for n in known if "left" in n.split("_")]
    pairs = [pair for pair in pairs if pair[1] in known]
    names = [name for pair in pairs for name in pair]
    sides = {"7771000": "left", "24028007": "right"}
    array, geometry = ct_series(tmp_path / "s", (16, 12, 2))
    labels = np.zeros(array.shape, np.int16)
    labels.ravel()[: len(names)] = np.arange(1, len(names) + 1)
    path = write_dicom_seg(tmp_path / "a.dcm", labels, geometry, dict(enumerate(names, 1)))
    assert dicom_errors(path) == []
    found = {a["SegmentLabel"]: a for a, _, _ in dcmqi_segments(path, tmp_path / "q")}
    assert len(found) == len(names) and len(pairs) == 34
    codes = {}
    for name, attributes in found.items():
        kind = attributes["SegmentedPropertyTypeCodeSequence"]
        modifiers = (attributes.get("SegmentedPropertyTypeModifierCodeSequence"),
                     attributes.get("AnatomicRegionModifierSequence"))  # fmt: skip
        side = next((sides.get(m["CodeValue"], "") for m in modifiers if m), "")
        region = attributes.get("AnatomicRegionSequence", {}).get("CodeValue", "")
        codes[name] = (kind["CodeValue"], region, side)
        if side:
            assert side in name, name
        else:
            assert "left" in kind["CodeMeaning"].lower() or "right" in kind["CodeMeaning"].lower(), name
    for left, right in pairs:
        assert codes[left] != codes[right], left


def test_presence_that_contradicts_the_outline_is_said(tmp_path):
    _, geometry = ct_series(tmp_path / "s")
    result = Prediction("", (Region("liver", blobs((9, 7, 6), 1)[0], presence=0.1),), geometry)
    seg = highdicom.seg.segread(save_dicom_seg(result, tmp_path, "a")[0])
    assert "contradict" in seg.SegmentSequence[0].SegmentDescription
