"""Maps of probability as DICOM parametric maps, and pictures with outlines as secondary captures (highdicom)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from unimed.io.dicom_seg import write_object
from unimed.io.dicom_source import DicomSegError, equipment, object_uids, silent_about_names, source_of_result
from unimed.io.findings import NOTICE, findings_of
from unimed.io.overlay import draw_regions
from unimed.io.views import gray_values, key_slices, upright
from unimed.structures import Region

QUANTITIES = ("probability", "uncertainty")


def as_parametric_map(
    prediction,
    image=None,
    formats=(),
    *,
    probabilities: Sequence[np.ndarray | None] | None = None,
    quantity: str = "probability",
    deidentified: bool = False,
) -> dict:
    """`NAME-LABEL.pm.dcm` of each region with a map: numbers in [0, 1] at every voxel, as float32.

    Args:
        probabilities: one map per region in the grid of the masks; by default what the regions hold as `probability`.
        quantity: "probability" or "uncertainty".

    Raises:
        DicomSegError: no map, numbers outside [0, 1], or no DICOM source.
        ImportError: highdicom is not installed.
    """
    try:
        import highdicom
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise ImportError('writing DICOM maps needs highdicom: pip install "unimed[dicom]"') from error
    if quantity not in QUANTITIES:
        raise DicomSegError(f"parametric-map: quantity {quantity!r}; known are {', '.join(QUANTITIES)}")
    source = source_of_result(prediction.geometry, "parametric-map", deidentified)
    if not source.geometry.is_physical:
        raise DicomSegError("parametric-map: the image has no place in the patient; write dicom-seg FRACTIONAL instead")
    if probabilities is None:
        probabilities = [getattr(region, "probability", None) for region in prediction.regions]
    files = {}
    for number, (finding, given) in enumerate(
        zip(findings_of(prediction, source_uid=source.series_uid), probabilities, strict=True), 1
    ):
        if given is None:
            continue
        values = np.asarray(given, np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise DicomSegError(f"parametric-map: numbers of {finding.label!r} must lie in [0, 1]")
        values = source.to_grid(values, prediction.geometry, f"parametric-map: the map of {finding.label!r}")
        frames = np.ascontiguousarray(values.transpose(2, 1, 0))
        if source.frames is not None:
            frames = frames[np.argsort(source.frames)]
        with silent_about_names():
            made = highdicom.pm.ParametricMap(
                source_images=source.images,
                pixel_array=frames,
                series_number=int(source.images[0].get("SeriesNumber") or 0) + 4000,
                instance_number=number,
                contains_recognizable_visual_features=False,
                real_world_value_mappings=[
                    highdicom.pm.RealWorldValueMapping(
                        lut_label=quantity[:16], lut_explanation=f"{quantity} of {finding.label}"[:64],
                        unit=codes.UCUM.NoUnits, value_range=(0.0, 1.0), slope=1.0, intercept=0.0,
                    )
                ],
                voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=0.5, window_width=1.0)],
                content_description=NOTICE,
                content_label=quantity.upper(),
                series_description=f"unimed {quantity}, {NOTICE}",
                **_uids(prediction, source, f"PM {quantity} {number}", f"PM {quantity}", frames.tobytes()),
                **equipment(),
            )  # fmt: skip
        made.SpecificCharacterSet = "ISO_IR 192"
        _finish(made, source, deidentified)
        files[f"-{number}.pm.dcm"] = partial(write_object, made=made)
    if not files:
        raise DicomSegError("parametric-map: no region has a map of probabilities; give probabilities=")
    return files


def as_secondary_capture(prediction, image=None, formats=(), *, deidentified: bool = False) -> dict:
    """`NAME-NUMBER.sc.dcm`: the slices that show the findings best, with outlines, names and the notice burned in.

    Any viewer shows them; nothing of the patient is drawn.

    Raises:
        DicomSegError: no DICOM source.
        ImportError: highdicom is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise ImportError('writing DICOM captures needs highdicom: pip install "unimed[dicom]"') from error
    source = source_of_result(prediction.geometry, "secondary-capture", deidentified)
    files = {}
    for number, rendered in enumerate(rendered_slices(prediction, image), 1):
        with silent_about_names():
            made = highdicom.sc.SCImage.from_ref_dataset(
                source.images[0],
                pixel_array=rendered,
                photometric_interpretation="RGB",
                bits_allocated=8,
                coordinate_system="PATIENT",
                patient_orientation=("L", "P"),
                series_number=int(source.images[0].get("SeriesNumber") or 0) + 5000,
                instance_number=number,
                manufacturer="unimed",
                series_description=f"unimed pictures, {NOTICE}",
                **_uids(prediction, source, f"SC {number}", "SC", rendered.tobytes()),
            )
        made.SpecificCharacterSet = "ISO_IR 192"
        made.BurnedInAnnotation = "NO"  # of identifying texts there are none
        made.ImageComments = NOTICE
        _finish(made, source, deidentified)
        files[f"-{number}.sc.dcm"] = partial(write_object, made=made)
    if not files:
        raise DicomSegError("secondary-capture: there is nothing to draw on; give image=")
    return files


def rendered_slices(prediction, image=None, least_width: int = 320) -> list[np.ndarray]:
    """HxWx3 uint8 pictures of the slices that show the findings best, drawn over the image; small ones are enlarged."""
    found = findings_of(prediction)
    gray = gray_values(prediction, image)
    if gray is None:
        return []
    if gray.ndim == 2 or (gray.shape[2] == 3 and all(_is_flat(finding) for finding in found)):
        shown = [finding for finding in found if finding.is_drawn or finding.region.box_xyxy_px is not None]
        return [_drawn(gray, [f.region for f in shown], [f.color for f in shown], least_width)]
    volume, geometry = upright(gray, prediction.geometry)
    # Pixels of slices need not be square; pictures have square ones.
    stretch = geometry.spacing[1] / geometry.spacing[0]
    made = []
    for k in key_slices(found, prediction.geometry) or [volume.shape[2] // 2]:
        regions, colors = [], []
        for finding in found:
            if finding.is_drawn and (mask := upright(finding.region.mask, prediction.geometry)[0][:, :, k]).any():
                region = Region(finding.label, np.ascontiguousarray(mask.T), presence=finding.region.presence)
                regions.append(region)
                colors.append(finding.color)
        made.append(_drawn(np.ascontiguousarray(volume[:, :, k].T), regions, colors, least_width, stretch))
    return made


def _is_flat(finding) -> bool:
    return finding.region.mask is None or finding.region.mask.ndim == 2


def _drawn(gray: np.ndarray, regions, colors, least_width: int, stretch: float = 1.0) -> np.ndarray:
    """A picture with regions and, below it, the notice."""
    from PIL import Image, ImageDraw

    height, width = gray.shape[:2]
    factor = max(1, -(-least_width // width))
    size = (width * factor, max(1, round(height * factor * stretch)))
    if size != (width, height):
        gray = np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR))
        regions = [_resized(region, size, factor, stretch) for region in regions]
    canvas = Image.new("RGB", (size[0], size[1] + 14))
    canvas.paste(Image.fromarray(draw_regions(gray, regions, 0.35, colors)), (0, 0))
    ImageDraw.Draw(canvas).text((3, size[1] + 1), f"unimed, {NOTICE}", fill=(255, 255, 255))
    return np.ascontiguousarray(canvas)


def _resized(region: Region, size: tuple[int, int], factor: float, stretch: float) -> Region:
    from PIL import Image

    mask, scale = region.mask, np.array([factor, factor * stretch] * 2)
    if mask is not None:
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), bool)
    names = ("box_xyxy_px", "box_std_px", "box_outer_xyxy_px", "box_inner_xyxy_px")
    boxes = {n: tuple((np.array(getattr(region, n)) * scale).tolist()) for n in names if getattr(region, n) is not None}
    return Region(region.phrase, mask, presence=region.presence, confidence=region.confidence, **boxes)


def _uids(prediction, source, kind: str, series: str, content: bytes) -> dict[str, str]:
    """An instance of its own in a series that all of its kind share."""
    return {
        "series_instance_uid": object_uids(prediction, source, series)["series_instance_uid"],
        "sop_instance_uid": object_uids(prediction, source, kind, hashlib.sha256(content).digest())["sop_instance_uid"],
    }


def _finish(made, source, deidentified: bool) -> None:
    made.Laterality = ""  # wanted of pictures, and not known of the whole image
    if deidentified:
        made.PatientIdentityRemoved = "YES"
        made.DeidentificationMethod = source.images[0].DeidentificationMethod
