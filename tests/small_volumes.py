"""Small DICOM series and enhanced objects, and grids to try, for tests and the fuzz script."""

import itertools
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from unimed.geometry import ALL_ORIENTATIONS, Geometry, lps_to_ras, reorient

CT, ENHANCED_CT, ENHANCED_MR = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.4.1",
)
STUDY, SERIES, FRAME_OF_REFERENCE = "1.2.826.0.1.1", "1.2.826.0.1.2", "1.2.826.0.1.3"


def turn(angles):
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def grid(spacing, angles=(0, 0, 0), origin=(0, 0, 0), shear=(0, 0)):
    """A `Geometry`; `shear` is by how many mm each slice is shifted along the first two axes."""
    affine = np.eye(4)
    affine[:3, :3] = turn(angles) @ np.array(
        [[spacing[0], 0, shear[0]], [0, spacing[1], shear[1]], [0, 0, spacing[2]]], dtype=float
    )
    affine[:3, 3] = origin
    return Geometry(affine, source_format="test")


def oblique_grids(count=60, seed=0):
    rng = np.random.default_rng(seed)
    return [grid(rng.uniform(0.3, 5, 3), rng.uniform(-3.1, 3.1, 3), rng.uniform(-300, 300, 3)) for _ in range(count)]


def upright_grids(shape):
    """All 48 orders and directions of the axes."""
    start = grid((0.7, 0.9, 2.5), origin=(-120.5, 33.25, 700))
    return [reorient(np.zeros(shape), start, name)[1] for name in ALL_ORIENTATIONS]


def sheared_grids(count=12, seed=1):
    rng = np.random.default_rng(seed)
    return [
        grid(rng.uniform(0.5, 3, 3), rng.uniform(-3, 3, 3), rng.uniform(-99, 99, 3), rng.uniform(0.2, 1.5, 2))
        for _ in range(count)
    ]


def corner_error_vox(true_affine, found_affine, shape):
    """Largest distance between the places of a corner, in voxels of the first grid."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape[:3]))) or [(0, 0, 0)], float)
    corners = np.column_stack((corners, np.ones(len(corners))))
    away = (corners @ (np.asarray(found_affine) - true_affine).T)[:, :3]
    return float(np.abs(np.linalg.solve(true_affine[:3, :3], away.T)).max())


def sitk_affine(image):
    """RAS affine of a SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return lps_to_ras(affine)


def dataset(sop_class=CT, modality="CT", series=SERIES):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, series
    made.FrameOfReferenceUID, made.Modality = FRAME_OF_REFERENCE, modality
    made.PatientID, made.PatientName, made.StudyID = "p", "p", "1"
    made.PatientBirthDate = made.PatientSex = made.StudyDate = made.StudyTime = made.AccessionNumber = ""
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    return made


def set_pixels(made, pixels):
    pixels = np.ascontiguousarray(pixels)
    made.Rows, made.Columns = pixels.shape[:2] if pixels.ndim == 2 else pixels.shape[1:3]
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OW"


def ds(value):
    """A decimal string as precise as 16 characters allow."""
    value = float(value)
    return next(text for digits in range(15, 0, -1) if len(text := f"{value:.{digits}g}") <= 16)


def vectors(geometry):
    """LPS unit vectors of row and column, and spacings, of the first two axes."""
    lps = lps_to_ras(geometry.affine)
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    return lps, lps[:3, 0] / lengths[0], lps[:3, 1] / lengths[1], lengths


def slices(array, geometry, **attributes):
    """Data sets of the slices array[:, :, k]; `attributes` of one value, or one per slice as a list of that length."""
    lps, row, column, lengths = vectors(geometry)
    made = []
    for k in range(array.shape[2]):
        one = dataset()
        one.ImageOrientationPatient = [ds(v) for v in (*row, *column)]
        one.ImagePositionPatient = [ds(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        one.PixelSpacing = [ds(lengths[1]), ds(lengths[0])]
        one.SliceThickness, one.InstanceNumber, one.SeriesNumber = ds(lengths[2]), k + 1, 1
        set_pixels(one, array[:, :, k].T.astype(np.int16))
        for name, value in attributes.items():
            setattr(one, name, value[k] if isinstance(value, list) and len(value) == array.shape[2] else value)
        made.append(one)
    return made


def save(folder, made, names=None):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, one in enumerate(made):
        paths.append(folder / (names[k] if names else f"{(k * 7 + 3) % 101:03d}-{k}.dcm"))
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


def enhanced(array, geometry, order=None, modality="CT", rescale=None, groups=()):
    """One object of many frames. `order`: which slice each frame is. `rescale`: (slope, intercept) per frame.

    `groups`: per frame a dict of sequence -> dict of attributes, for echoes, stacks and times.
    """
    lps, row, column, lengths = vectors(geometry)
    order = list(range(array.shape[2])) if order is None else list(order)
    made = dataset(ENHANCED_CT if modality == "CT" else ENHANCED_MR, modality)
    made.NumberOfFrames = len(order)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [ds(lengths[1]), ds(lengths[0])], ds(lengths[2])
    plane.ImageOrientationPatient = [ds(v) for v in (*row, *column)]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    made.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number, k in enumerate(order):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [ds(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        frame.PlanePositionSequence = [position]
        if rescale:
            value = Dataset()
            value.RescaleSlope, value.RescaleIntercept = (ds(v) for v in rescale[number])
            value.RescaleType = "HU"
            frame.PixelValueTransformationSequence = [value]
        for sequence, attributes in (groups[number] if groups else {}).items():
            item = Dataset()
            for name, value in attributes.items():
                setattr(item, name, value)
            setattr(frame, sequence, [item])
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = frames
    set_pixels(made, np.stack([array[:, :, k].T for k in order]).astype(np.int16))
    return made
