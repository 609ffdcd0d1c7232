"""Image files that tests write: DICOM of one kind after the other."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS = 6, 9
RAMP = np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS) * 70


def dicom(path, pixels=RAMP, place=None, **tags):
    """A DICOM file of 16-bit grey pixels; `tags` replaces or adds attributes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    one = Dataset()
    one.file_meta = meta
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    one.Modality, one.SeriesInstanceUID, one.StudyInstanceUID = "DX", "1.2.3.4", "1.2.3"
    one.Rows, one.Columns = pixels.shape[-2:]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    if pixels.ndim == 3:
        one.NumberOfFrames = len(pixels)
    size = pixels.dtype.itemsize * 8
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = size, size, size - 1, 0
    if place is not None:
        one.ImagePositionPatient, one.ImageOrientationPatient = list(place), [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [1, 1], 1
    for name, value in tags.items():
        setattr(one, name, value)
    one.PixelData = pixels.tobytes()
    one["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path
