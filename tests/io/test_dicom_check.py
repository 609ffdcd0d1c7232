"""Remarks: none that matter on our own files, the right one on each damaged one."""

import copy

import numpy as np
import pydicom
import pytest
from clinical import blobs, ct_series, source_cases, write_source

from unimed.io.dicom_check import check_file
from unimed.io.limits import ReadError
from unimed.io.result import Prediction
from unimed.structures import Region

pytest.importorskip("highdicom")
CASES = source_cases()[::8]


def serious(remarks):
    return [r for r in remarks if r.level == "error" or (r.level == "warning" and "empty" not in r.text)]


@pytest.mark.parametrize(("name", "grid", "kind"), CASES, ids=[case[0] for case in CASES])
def test_our_own_files_have_no_errors(tmp_path, name, grid, kind):
    array, geometry = write_source(tmp_path / "s", grid, kind)
    masks = blobs(array.shape, 2)
    regions = (Region("left kidney", masks[0], presence=0.5), Region("cyst of the right kidney", masks[1]))
    paths = Prediction("Text.", regions, geometry).save(tmp_path / "o", "a", ("dicom-seg", "dicom-sr"))
    for path in paths:
        assert serious(check_file(path, tmp_path / "s")) == []
        assert serious(check_file(path, tools=False)) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    array, geometry = ct_series(folder / "s")
    masks = blobs(array.shape, 2)
    regions = (Region("left kidney", masks[0]), Region("right kidney", masks[1]))
    seg, sr = Prediction("Text.", regions, geometry).save(folder / "o", "a", ("dicom-seg", "dicom-sr"))[:2]
    return pydicom.dcmread(seg), pydicom.dcmread(sr), folder


def shared(dataset):
    return dataset.SharedFunctionalGroupsSequence[0]


def each_frame(dataset, keyword):
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.pop(pydicom.datadict.tag_for_keyword(keyword), None)


def without_sides(dataset):
    for segment in dataset.SegmentSequence:
        del segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence


def tissue(dataset):
    dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "85756007"


def moved(dataset):
    for group in dataset.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0].ImagePositionPatient
        place[0] = float(place[0]) + 5


def uneven(dataset):
    place = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient
    place[2] = float(place[2]) + 0.7


def emptied(dataset):
    dataset.PixelData = bytes(len(dataset.PixelData))


def attribute(name, value):
    return lambda dataset: setattr(dataset, name, value)


#: What is done to a SEG, who would miss what, and how bad that is.
SEG_FAULTS = {
    "no references": (lambda d: delattr(d, "ReferencedSeriesSequence"), "OHIF", "ReferencedSeriesSequence", "error"),
    "no source images": (lambda d: each_frame(d, "DerivationImageSequence"), "OHIF", "no source image", "warning"),
    "no places": (lambda d: each_frame(d, "PlanePositionSequence"), "Slicer", "no PlanePositionSequence", "error"),
    "no orientation": (lambda d: delattr(shared(d), "PlaneOrientationSequence"), "all", "PlaneOrientation", "error"),
    "no space": (lambda d: delattr(d, "FrameOfReferenceUID"), "all", "FrameOfReferenceUID", "error"),
    "uneven": (uneven, "Slicer", "not equally spaced", "error"),
    "numbers": (lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 5), "dcmqi", "without gaps", "error"),
    "no side": (without_sides, "meaning", "the side stands in the label only", "warning"),
    "same code": (without_sides, "meaning", "one and the same code", "warning"),
    "tissue": (tissue, "meaning", "tissue in general", "warning"),
    "empty": (emptied, "Slicer", "is empty", "warning"),
    "no color": (lambda d: delattr(d.SegmentSequence[0], "RecommendedDisplayCIELabValue"), "OHIF", "no color", "note"),
    "no tracking": (lambda d: delattr(d.SegmentSequence[0], "TrackingUID"), "meaning", "TrackingUID", "note"),
    "no code": (lambda d: delattr(d.SegmentSequence[0], "SegmentedPropertyTypeCodeSequence"), "dcmqi", "coded",
                "error"),
    "no label": (lambda d: setattr(d.SegmentSequence[0], "SegmentLabel", ""), "all", "no label", "warning"),
    "overlap": (attribute("SegmentsOverlap", "NO"), "standard", "segments overlap", "error"),
    "no study": (attribute("StudyInstanceUID", ""), "all", "StudyInstanceUID", "error"),
    "moved": (moved, "OHIF", "on no slice", "error"),
    "other series": (lambda d: setattr(d.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2"), "all",
                     "another series", "error"),
    "other space": (attribute("FrameOfReferenceUID", "1.2"), "all", "frame of reference is another", "error"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SEG_FAULTS)
def test_each_fault_of_a_segmentation_is_named(tmp_path, made, fault):
    change, who, text, level = SEG_FAULTS[fault]
    dataset = copy.deepcopy(made[0])
    change(dataset)
    dataset.save_as(tmp_path / "x.dcm")
    found = check_file(tmp_path / "x.dcm", made[2] / "s", tools=False)
    assert [r for r in found if text in r.text and who in r.who and r.level == level], [vars(r) for r in found]


def groups(report):
    container = next(i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    return container.ContentSequence


def drop(report, value):
    for group in groups(report):
        kept = [i for i in group.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != value]
        group.ContentSequence = pydicom.Sequence(kept)


def second_finding(report):
    items = groups(report)[0].ContentSequence
    items.append(copy.deepcopy(next(i for i in items if i.ConceptNameCodeSequence[0].CodeValue == "121071")))


SR_FAULTS = {
    "no template": (lambda d: delattr(d, "ContentTemplateSequence"), "TID 1500", "warning"),
    "no group": (lambda d: groups(d).clear(), "no measurement group", "error"),
    "no tracking": (lambda d: drop(d, "112040"), "no tracking UID", "warning"),
    "no finding": (lambda d: drop(d, "121071"), "0 findings", "warning"),
    "two findings": (second_finding, "2 findings", "warning"),
    "no evidence": (lambda d: delattr(d, "CurrentRequestedProcedureEvidenceSequence"), "evidence does not", "error"),
    "verified": (attribute("VerificationFlag", "VERIFIED"), "nobody is named", "error"),
}


@pytest.mark.parametrize("fault", SR_FAULTS)
def test_each_fault_of_a_report_is_named(tmp_path, made, fault):
    change, text, level = SR_FAULTS[fault]
    dataset = copy.deepcopy(made[1])
    change(dataset)
    dataset.save_as(tmp_path / "x.dcm")
    found = check_file(tmp_path / "x.dcm", tools=False)
    assert [r for r in found if text in r.text and r.level == level], [vars(r) for r in found]


def test_other_files_are_refused_and_types_remarked(tmp_path, made):
    (tmp_path / "a.txt").write_text("no")
    with pytest.raises(ReadError, match="no DICOM file"):
        check_file(tmp_path / "a.txt")
    with pytest.raises(ReadError, match="neither a segmentation nor"):
        check_file(next((made[2] / "s").iterdir()))
    array, geometry = ct_series(tmp_path / "s")
    parted = (Region("liver", array > 100), Region("spleen", array < 0))
    result = Prediction("", parted, geometry)
    for kind, text in (("LABELMAP", "label map"), ("FRACTIONAL", "FRACTIONAL")):
        maps = {"probabilities": [r.mask.astype(np.float32) for r in parted]} if kind == "FRACTIONAL" else {}
        (path,) = result.save(tmp_path / kind, "a", ("dicom-seg",), segmentation_type=kind, **maps)
        assert any(text in r.text for r in check_file(path)) and not [r for r in check_file(path) if r.level == "error"]
