"""Slices as a person looks at them: upright, windowed, dark where the file means dark."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from unimed.geometry import Geometry
from unimed.io.display import display
from unimed.io.read import ReadError, read, read_bytes

ROWS, COLUMNS = 6, 9


def dicom(path, physical=True, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    one = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    one.Rows, one.Columns, one.Modality = ROWS, COLUMNS, "CT"
    one.SamplesPerPixel, one.BitsAllocated, one.BitsStored, one.HighBit = 1, 16, 16, 15
    one.PixelRepresentation, one.PhotometricInterpretation = 1, tags.pop("photometric", "MONOCHROME2")
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    if physical:
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
        one.PixelSpacing, one.SliceThickness = [1, 1], 2
    for name, value in tags.items():
        setattr(one, name, value)
    pixels = np.arange(ROWS * COLUMNS, dtype=np.int16).reshape(ROWS, COLUMNS) * 40
    one.PixelData = pixels.tobytes()
    one.save_as(path, enforce_file_format=True)
    return pixels - 1024


@pytest.mark.parametrize("physical", [True, False])
def test_rows_stay_rows(tmp_path, physical):
    values = dicom(tmp_path / "a.dcm", physical)
    picture = display(*read(tmp_path / "a.dcm"))
    assert picture.shape == (ROWS, COLUMNS) and picture.dtype == np.uint8
    order = np.argsort(picture.ravel(), kind="stable")
    assert (np.diff(values.ravel()[order]) > 0).all()  # upright, and no value jumps over another
    assert (display(*read_bytes((tmp_path / "a.dcm").read_bytes(), "a")) == picture).all()


def test_the_window_of_the_file_and_of_the_site(tmp_path):
    values = dicom(tmp_path / "a.dcm", WindowCenter=["-600", "40"], WindowWidth=["400", "80"])
    by_file = display(*read(tmp_path / "a.dcm"))
    assert ((by_file == 0) == (values <= -799)).all() and ((by_file == 255) == (values >= -401)).all()
    by_site = display(*read(tmp_path / "a.dcm"), site="lung")
    assert not (by_site == by_file).all()
    dicom(tmp_path / "b.dcm", WindowWidth="0", WindowCenter="")
    assert "window" not in read(tmp_path / "b.dcm")[1].header


def test_inverted_photometry(tmp_path):
    dicom(tmp_path / "a.dcm", photometric="MONOCHROME1")
    dicom(tmp_path / "b.dcm")
    assert (display(*read(tmp_path / "a.dcm")) == 255 - display(*read(tmp_path / "b.dcm"))).all()


@pytest.mark.parametrize(("axis", "rows_to", "columns_to"), [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_slices_of_volumes_stand_upright(axis, rows_to, columns_to):
    """Axial: front up; coronal and sagittal: head up; the patient's left, or front, as radiologists have it."""
    shape = [5, 7, 4]
    shape[axis] = 1
    grid = np.indices(shape)
    picture = display(grid[rows_to].astype(np.uint8), Geometry(np.diag([1.0, 1, 1, 1])))
    assert (np.diff(picture.astype(int), axis=0) < 0).all()  # A or S, growing with the index, goes up
    picture = display(grid[columns_to].astype(np.uint8), Geometry(np.diag([1.0, 1, 1, 1])))
    assert (np.diff(picture.astype(int), axis=1) < 0).all()  # R goes to the left, A too
    with pytest.raises(ValueError, match="volume"):
        display(np.zeros((4, 5, 6), np.uint8), Geometry(np.eye(4)))


def test_bytes_that_are_no_picture():
    for data in (b"", b"GIF89a", b"\0" * 128 + b"DICMxx"):
        with pytest.raises(ReadError, match="shard.tar/7"):
            read_bytes(data, "shard.tar/7")
    stream = io.BytesIO()
    pydicom.Dataset().save_as(stream, implicit_vr=True, little_endian=True)
    with pytest.raises(ReadError):
        read_bytes(b"\0" * 128 + b"DICM" + stream.getvalue(), "x")
