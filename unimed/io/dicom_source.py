"""The DICOM images that a result belongs to: headers cut down to what may be carried, their grid, their values."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, GeometryError, align, lps_to_ras
from unimed.io.dicom import read_dicom
from unimed.io.findings import model_name, stable_uid
from unimed.markup import for_dicom
from unimed.version import __version__

#: What results say of patient and study, so that an archive files them with their images (docs/results.md).
CARRIED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
           "StudyID", "AccessionNumber", "PatientIdentityRemoved", "DeidentificationMethod",
           "LongitudinalTemporalInformationModified")  # fmt: skip
#: Of these the standard wants a value or at least an empty element.
_WANTED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
           "StudyID", "ReferringPhysicianName")  # fmt: skip
#: What places the segments in the patient and refers to the images; nothing else of a source is looked at.
_PLACING = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "Modality", "Rows",
    "Columns", "NumberOfFrames", "FrameOfReferenceUID", "PositionReferenceIndicator", "ImageOrientationPatient",
    "ImagePositionPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "ImageType",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "BitsAllocated", "SamplesPerPixel",
    "PhotometricInterpretation",
)  # fmt: skip
_PLACING_GROUPS = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence", "FrameContentSequence")
_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


class DicomSegError(ValueError):
    """What keeps a result from being written as DICOM; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Source:
    """The images behind a result.

    Attributes:
        images: pydicom data sets without pixels, one per file in the order of the slices.
        geometry: of the stack (columns, rows, slices); pixels where the image has no place in the patient.
        shape: (columns, rows, slices).
        frames: for an object of many frames, which frame each slice is; else None.
        files: paths of the images.
    """

    images: list
    geometry: Geometry
    shape: tuple[int, int, int]
    frames: tuple[int, ...] | None
    files: tuple[str, ...]

    @property
    def series_uid(self) -> str:
        return str(self.images[0].SeriesInstanceUID)

    @property
    def modality(self) -> str:
        return str(self.images[0].get("Modality", "") or "")

    @property
    def unit(self) -> str:
        """UCUM unit of the rescaled values: Hounsfield units for CT, "1" where the file names none."""
        return "[hnsf'U]" if self.modality == "CT" else "1"

    def values(self) -> np.ndarray:
        """Rescaled values of the images in their grid, read again; (columns, rows, slices)."""
        if self.frames is not None:
            return read_dicom(Path(self.files[0]))[0]
        slices = [read_dicom(Path(name))[0] for name in self.files]
        slices = [array.T[..., None] if array.ndim == 2 else array for array in slices]
        return np.concatenate(slices, axis=2)

    def to_grid(self, mask: np.ndarray, geometry: Geometry | None, what: str = "the masks") -> np.ndarray:
        """A map in the grid of `geometry` as (columns, rows, slices) of the images; axes are turned, never resampled.

        A map of two axes is one of rows and columns.

        Raises:
            DicomSegError: it lies in another grid.
        """
        geometry = geometry or Geometry.pixels()
        flat = mask.ndim == 2
        mask = mask[..., None] if flat else mask
        if geometry.is_physical and self.geometry.is_physical:
            try:
                return align(mask, geometry, self._for(geometry), self.shape)[0]
            except GeometryError as error:
                raise DicomSegError(f"{what} {mask.shape} do not fit the series of {self.shape}: {error}") from error
        turned = mask.transpose(1, 0, 2) if flat else mask
        if turned.shape != self.shape:
            raise DicomSegError(f"{what} {turned.shape} do not fit a series of {self.shape[2]} slices {self.shape[:2]}")
        return turned

    def values_in_grid(self, prediction) -> np.ndarray | None:
        """Values of the images in the grid of a prediction's masks; None without masks, or where the grids differ."""
        masks = [region.mask for region in prediction.regions if region.mask is not None]
        if not masks:
            return None
        values, flat = self.values(), masks[0].ndim == 2
        shape = (*masks[0].shape, 1) if flat else masks[0].shape
        if prediction.geometry.is_physical and self.geometry.is_physical:
            try:
                values, _ = align(values, self._for(prediction.geometry), prediction.geometry, shape)
            except GeometryError:
                return None
        elif flat:
            values = values.transpose(1, 0, 2)
        if values.shape != shape:
            return None
        return values[..., 0] if flat else values

    def _for(self, geometry: Geometry) -> Geometry:
        """The grid, with the slice distance of `geometry` where a single slice has none of its own."""
        if self.shape[2] > 1:
            return self.geometry
        normal = self.geometry.affine[:3, 2] / np.linalg.norm(self.geometry.affine[:3, 2])
        columns = geometry.affine[:3, :3]
        nearest = np.abs(normal @ (columns / np.linalg.norm(columns, axis=0))).argmax()
        affine = self.geometry.affine.copy()
        affine[:3, 2] = normal * np.linalg.norm(columns[:, nearest])
        return Geometry(affine, self.geometry.source_format, header=self.geometry.header)


def source_of_result(geometry: Geometry | None, where="", deidentified: bool = False) -> Source:
    """The images that a reader noted in the header of `geometry`.

    Args:
        where: what is being written, for messages.
        deidentified: without anything of `CARRIED`, and with other UIDs in the place of the images' own; the same image
            gets the same ones, so that all outputs of a study still belong together.

    Raises:
        DicomSegError: the source is no DICOM image, is gone, or holds other frames beside those of the result.
    """
    import pydicom

    files = geometry.header.get("files") if geometry is not None else None
    if geometry is None or geometry.source_format != "dicom" or not files:
        raise DicomSegError(f"{where}: needs a DICOM series as source; write another format instead")
    frames = geometry.header.get("frames")
    images = []
    for name in files:
        if not Path(name).is_file():
            raise DicomSegError(f"{where}: the source slice {name} is gone; its header is needed")
        images.append(pydicom.dcmread(name, stop_before_pixels=True))
    first = images[0]
    count = int(first.get("NumberOfFrames", 1) or 1)
    if frames is not None and sorted(frames) != list(range(count)):
        raise DicomSegError(f"{where}: the source holds other frames beside this phase; write NIfTI or NPZ instead")
    slices = len(files) if frames is None else len(frames)
    shape = (int(first.Columns), int(first.Rows), slices)
    for image in images:
        _cut_down(image)
        if deidentified:
            _deidentify(image)
    found = _grid(images, frames, slices)
    for image in images:
        # A header may state another slice distance than the positions have; the positions are right.
        if found.is_physical:
            image.SpacingBetweenSlices = f"{geometry.spacing[2] if slices == 1 else found.spacing[2]:.6g}"
    return Source(images, found, shape, tuple(frames) if frames is not None else None, tuple(map(str, files)))


@contextmanager
def silent_about_names() -> Iterator[None]:
    """Libraries quote what they find odd in a header: names, numbers and birth dates of patients."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)")
            warnings.filterwarnings("ignore", message="The string .* is unlikely to represent the intended person name")
            yield
    finally:
        logger.setLevel(level)


@silent_about_names()
def _cut_down(image) -> None:
    image.decode()  # from the alphabet of the source; all of them fit into that of the result
    for element in list(image):
        if element.keyword not in CARRIED and element.keyword not in _PLACING:
            del image[element.tag]
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in image.get(sequence) or []:
            for element in list(group):
                if element.keyword not in _PLACING_GROUPS:
                    del group[element.tag]
    image.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _WANTED:
        if keyword not in image or not _is_sound(image[keyword]):
            setattr(image, keyword, "")


def _is_sound(element) -> bool:
    """Whether a date or time is one: "31.12.1977" would make an object that no archive takes."""
    from pydicom.valuerep import DA, TM

    kind = {"DA": DA, "TM": TM}.get(element.VR)
    try:
        return kind is None or not element.value or kind(str(element.value)) is not None
    except ValueError:
        return False


def _deidentify(image) -> None:
    for keyword in CARRIED:
        if keyword in image and keyword != "StudyInstanceUID":
            setattr(image, keyword, "") if keyword in _WANTED else delattr(image, keyword)
    for keyword in _UIDS:
        if image.get(keyword):
            setattr(image, keyword, stable_uid("deidentified", image.get(keyword)))
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = "unimed: patient and study left out, UIDs replaced"


def _grid(images: list, frames, slices: int) -> Geometry:
    first = images[0]
    if frames is not None:
        places = [_plane(first, frame) for frame in frames]
    elif all(image.get("ImagePositionPatient") and image.get("ImageOrientationPatient") for image in images):
        places = [(i.ImageOrientationPatient, i.ImagePositionPatient, i.get("PixelSpacing")) for i in images]
    else:
        return Geometry.pixels("dicom")
    if places[0][2] is None:
        return Geometry.pixels("dicom")
    orientation, start, spacing = (np.array([float(v) for v in part]) for part in places[0])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = orientation[:3] * spacing[1], orientation[3:] * spacing[0], start
    if slices > 1:
        affine[:3, 2] = (np.array([float(v) for v in places[-1][1]]) - start) / (slices - 1)
    else:
        affine[:3, 2] = np.cross(orientation[:3], orientation[3:]) * float(first.get("SliceThickness") or 1)
    return Geometry(lps_to_ras(affine), "dicom")


def _plane(image, frame: int):
    groups = (image.PerFrameFunctionalGroupsSequence[frame], image.SharedFunctionalGroupsSequence[0])

    def item(sequence):
        return next(group[sequence].value[0] for group in groups if group.get(sequence))

    return (
        item("PlaneOrientationSequence").ImageOrientationPatient,
        item("PlanePositionSequence").ImagePositionPatient,
        item("PixelMeasuresSequence").PixelSpacing,
    )


# What every object says of itself -------------------------------------------------------------------------------------


def concept(code):
    """highdicom's form of a `unimed.io.codes.Code`."""
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, for_dicom(code.meaning) or code.value)


def object_uids(prediction, source: Source, kind: str, content: bytes = b"") -> dict[str, str]:
    """Series and instance UID of an object: the series by source, model and phrases, the instance by content as well.

    A second run thus gives the same object, and other content never bears the UID of what an archive holds already.
    """
    phrases = "\n".join(region.phrase for region in prediction.regions)
    key = (kind, source.series_uid, *(str(i.SOPInstanceUID) for i in source.images), model_name(prediction), phrases)
    return {
        "series_instance_uid": stable_uid("series", *key),
        "sop_instance_uid": stable_uid("instance", *key, content.hex()),
    }


def equipment() -> dict[str, str]:
    """Manufacturer, model, version and serial number, as highdicom's constructors name them."""
    return {
        "manufacturer": "unimed",
        "manufacturer_model_name": "unimed",
        "software_versions": __version__,
        "device_serial_number": "0",
    }
