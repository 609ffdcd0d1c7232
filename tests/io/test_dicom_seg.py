"""DICOM Segmentation objects, read back by highdicom."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import small_volumes

from unimed.geometry import Geometry
from unimed.io.dicom_seg import DicomSegError, write_dicom_seg
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.structures import Region

highdicom = pytest.importorskip("highdicom")


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
    with pytest.raises(DicomSegError, match="do not fit a series of 5 slices"):
        write_dicom_seg(out / "a.dcm", labels[..., :3], geometry, {1: "x"})
    with pytest.raises(DicomSegError, match="no voxel is labelled"):
        write_dicom_seg(out / "a.dcm", 0 * labels, geometry, {1: "x"})
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
