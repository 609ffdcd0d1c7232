"""Every grid that goes out is the grid that came in, for nibabel, SimpleITK and pydicom."""

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from small_volumes import (
    corner_error_vox,
    enhanced,
    grid,
    oblique_grids,
    save,
    sheared_grids,
    sitk_affine,
    slices,
    upright_grids,
)

from unimed.geometry import Geometry, GeometryError, align, lps_to_ras
from unimed.io.dicom_seg import write_dicom_seg
from unimed.io.read import ReadError, read
from unimed.io.result import Prediction
from unimed.io.write import write_nifti, write_nrrd, write_volume
from unimed.structures import LabelRegion

SHAPE = (5, 4, 3)
#: Voxels. NIfTI stores float32, DICOM 16 characters.
NEAR = 2e-3


@pytest.fixture(autouse=True)
def quiet():
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)


def values(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def by_sitk(path):
    image = SimpleITK.ReadImage(str(path))
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), sitk_affine(image)


def seg_place(path):
    """Affine (RAS) and labels of a DICOM SEG as pydicom reads them, frames sorted by their places."""
    seg = pydicom.dcmread(path)
    shared, frames = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence
    orientation = (shared if "PlaneOrientationSequence" in shared else frames[0]).PlaneOrientationSequence[0]
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    row, column = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
    places = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], float)
    normal = np.cross(row, column)
    order = np.argsort(places @ normal)
    places = places[order]
    affine = np.eye(4)
    affine[:3] = np.column_stack((row * spacing[1], column * spacing[0], places[1] - places[0], places[0]))
    return lps_to_ras(affine), seg.pixel_array[order].transpose(2, 1, 0)


@pytest.mark.parametrize("kind", ["oblique", "upright"])
def test_every_grid_is_the_same_for_three_libraries(tmp_path, kind):
    worst = 0.0
    for number, geometry in enumerate(oblique_grids(60) if kind == "oblique" else upright_grids(SHAPE)):
        array = values(seed=number)
        true = geometry.affine
        nifti = write_nifti(tmp_path / "a.nii.gz", array, geometry, labels=True)
        image = nibabel.load(nifti)
        assert np.array_equal(np.asarray(image.dataobj), array) and int(image.header["intent_code"]) == 1002
        forms = [image.get_qform(coded=True), image.get_sform(coded=True)]
        assert all(code == 2 for _, code in forms)
        worst = max([worst, *(corner_error_vox(true, form, SHAPE) for form, _ in forms)])
        for path in (nifti, write_nrrd(tmp_path / "a.nrrd", array, geometry)):
            for seen, affine in (by_sitk(path), (read(path)[0], read(path)[1].affine)):
                assert np.array_equal(seen, array)
                worst = max(worst, corner_error_vox(true, affine, SHAPE))
        # As a DICOM series, which the reader may turn end to end, and what highdicom writes beside it.
        folder = tmp_path / str(number)
        save(folder, slices(array, geometry))
        seen, found = read(folder)
        back, resampled = align(seen, found, geometry, SHAPE)
        assert np.array_equal(back, array) and not resampled
        turned = seen.shape[2] - 1 if not np.allclose(found.affine[:3, 2], true[:3, 2], atol=1e-3) else 0
        start = true @ [0, 0, turned, 1]
        expected = np.column_stack((true[:, 0], true[:, 1], true[:, 2] * (-1 if turned else 1), start))
        worst = max(worst, corner_error_vox(expected, found.affine, SHAPE))
        if number % 6 == 0:
            labels = (seen > 0).astype(np.uint8)
            labels[0, 0] = 1  # something on every slice
            affine, drawn = seg_place(write_dicom_seg(tmp_path / "seg.dcm", labels, found, {1: "liver"}))
            worst = max(worst, corner_error_vox(expected, affine, SHAPE))
            assert np.array_equal(drawn, labels)
    assert worst < NEAR


def test_sheared_grids_are_kept_where_a_format_holds_them_and_refused_where_not(tmp_path):
    worst = 0.0
    for number, geometry in enumerate(sheared_grids(12)):
        array = values(seed=number)
        with pytest.raises(GeometryError, match="ITK cannot hold it in NIfTI"):
            write_nifti(tmp_path / "a.nii.gz", array, geometry)
        with pytest.warns(UserWarning, match="NRRD instead of NIfTI"):
            path = write_volume(tmp_path / "a.nii.gz", array, geometry)
        assert path.suffix == ".nrrd" and not (tmp_path / "a.nii.gz").exists()
        seen, affine = by_sitk(path)
        again, found = read(path)
        assert np.array_equal(seen, array) and np.array_equal(again, array) and "sheared" in found.steps[-1]
        worst = max(worst, *(corner_error_vox(geometry.affine, a, SHAPE) for a in (affine, found.affine)))
        forced = nibabel.load(write_nifti(tmp_path / "b.nii", array, geometry, allow_shear=True))
        worst = max(worst, corner_error_vox(geometry.affine, forced.affine, SHAPE))
        folder = tmp_path / str(number)
        save(folder, slices(array, geometry))
        seen, found = read(folder)
        assert any("gantry tilt" in step for step in found.steps) and found.is_sheared
        assert np.array_equal(align(seen, found, geometry, SHAPE)[0], array)
        assert found.voxel_volume == pytest.approx(abs(np.linalg.det(geometry.affine[:3, :3])))
    assert worst < NEAR


def test_milliliters_of_a_tilted_grid_go_by_the_determinant():
    tilt = np.eye(4)
    tilt[:3, :3] = [[1, 0, 0], [0, np.cos(0.3), 0], [0, -np.sin(0.3), 3]]
    labels = np.zeros((30, 30, 10), np.uint8)
    labels[2:22, 2:22, 1:9] = 1
    result = Prediction("", (LabelRegion("x", label=1, label_map=labels),), Geometry(tilt), labels=labels)
    told = result.to_dict()["targets"][0]["volume_ml"]
    assert told == pytest.approx(labels.sum() * abs(np.linalg.det(tilt[:3, :3])) / 1000, abs=5e-4)


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1.0), ("unknown", 1.0)])
def test_units_of_nifti_become_millimetres(tmp_path, unit, factor):
    true = oblique_grids(1, seed=5)[0].affine
    image = nibabel.Nifti1Image(values(), np.diag([1 / factor] * 3 + [1]) @ true)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    array, geometry = read(tmp_path / "a.nii.gz")
    assert corner_error_vox(true, geometry.affine, SHAPE) < NEAR
    assert ("converted to millimetres" in " ".join(geometry.steps)) == (factor != 1)
    # A result beside it lies in the same place for ITK, which converts units of its own accord.
    written = write_nifti(tmp_path / "result.nii.gz", array, geometry)
    assert corner_error_vox(by_sitk(tmp_path / "a.nii.gz")[1], by_sitk(written)[1], SHAPE) < NEAR


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (1, 4), (0, 2), (1, 0), (0, 0)])
def test_a_result_lies_on_its_source_whichever_form_is_read(tmp_path, codes):
    q_code, s_code = codes
    image = nibabel.Nifti1Image(values(), np.diag([-1.0, -2, 3, 1]))
    image.set_sform(np.diag([-1.0, -2, 3, 1]), s_code)
    image.set_qform(grid((2, 2, 2), (0.1, 0, 0.2)).affine, q_code)
    nibabel.save(image, tmp_path / "source.nii.gz")
    array, geometry = read(tmp_path / "source.nii.gz")
    assert np.allclose(geometry.affine, nibabel.load(tmp_path / "source.nii.gz").affine)
    told = " ".join(geometry.steps)
    assert ("places voxels up to" in told) == (q_code > 0 and s_code > 0)
    assert ("neither qform nor sform" in told) == (codes == (0, 0))
    written = write_nifti(tmp_path / "result.nii.gz", array > 0, geometry)
    result = nibabel.load(written)
    assert np.allclose(result.affine, geometry.affine, atol=1e-5)
    assert np.allclose(by_sitk(tmp_path / "source.nii.gz")[1], by_sitk(written)[1], atol=1e-4)
    if q_code and s_code:
        assert np.allclose(result.get_qform(), image.get_qform(), atol=1e-5)
    elif s_code:  # its pixdim is that of the qform that is not used, and ITK takes it
        assert "pixdim says [2.0, 2.0, 2.0]" in told
    elif q_code:
        assert np.allclose(result.get_qform(), result.get_sform(), atol=1e-5)


def test_the_code_of_a_source_is_kept_and_dicom_is_of_the_scanner(tmp_path):
    image = nibabel.Nifti1Image(values(), np.diag([-1.0, -2, 3, 1]))
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 4)
    nibabel.save(image, tmp_path / "mni.nii")
    array, geometry = read(tmp_path / "mni.nii")
    header = nibabel.load(write_nifti(tmp_path / "result.nii", array, geometry)).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (4, 4)
    save(tmp_path / "ct", slices(values(), grid((1, 1, 2))))
    header = nibabel.load(write_nifti(tmp_path / "ct.nii", *read(tmp_path / "ct"))).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)


def test_a_sheared_source_that_itk_opens_gives_a_result_that_it_opens(tmp_path):
    true = sheared_grids(1)[0].affine
    image = nibabel.Nifti1Image(values(), true)
    image.set_qform(true, 1, strip_shears=True)
    image.set_sform(true, 1)
    nibabel.save(image, tmp_path / "source.nii")
    array, geometry = read(tmp_path / "source.nii")
    assert geometry.is_sheared and "sheared grid" in " ".join(geometry.steps)
    written = write_volume(tmp_path / "result.nii", array, geometry)
    assert np.allclose(by_sitk(tmp_path / "source.nii")[1], by_sitk(written)[1], atol=1e-4)
    assert np.allclose(nibabel.load(written).affine, true, atol=1e-4)


def test_enhanced_objects_agree_with_the_series_of_the_same_slices(tmp_path):
    for number, geometry in enumerate([*oblique_grids(6, seed=9), *sheared_grids(2, seed=9)]):
        array = values((5, 4, 6), seed=number)
        order = np.random.default_rng(number).permutation(6)
        rescale = [(1 + 0.5 * k, -1024 + 10 * k) for k in range(6)]
        enhanced(array, geometry, order, rescale=rescale).save_as(tmp_path / "e.dcm", enforce_file_format=True)
        by_slice = [rescale[list(order).index(k)] for k in range(6)]
        save(
            tmp_path / str(number),
            slices(array, geometry, RescaleSlope=[s for s, _ in by_slice], RescaleIntercept=[i for _, i in by_slice]),
        )
        one, first = read(tmp_path / "e.dcm")
        many, second = read(tmp_path / str(number))
        assert np.allclose(one, many) and np.allclose(first.affine, second.affine, atol=1e-6)
        slope, intercept = np.array(by_slice).T
        assert np.allclose(align(one, first, geometry, array.shape)[0], array * slope + intercept, rtol=1e-5)


def test_labels_are_aligned_in_patient_space():
    geometry = oblique_grids(1, seed=3)[0]
    labels = (values() > 500).astype(np.uint8)
    from unimed.geometry import ALL_ORIENTATIONS, reorient

    for name in ALL_ORIENTATIONS:
        turned, there = reorient(labels, geometry, name)
        back, resampled = align(turned, there, geometry, SHAPE)
        assert np.array_equal(back, labels) and not resampled
    fine = grid((1, 1, 1), origin=(0.25, 0.25, 0.25))
    block = np.zeros((8, 8, 8), np.uint8)
    block[2:6, 2:6, 2:6] = 3
    coarse = grid((2, 2, 2), origin=(0.75, 0.75, 0.75))
    with pytest.raises(GeometryError, match="resample"):
        align(block, fine, coarse, (4, 4, 4))
    taken, resampled = align(block, fine, coarse, (4, 4, 4), resample=True)
    assert resampled and taken.sum() == 3 * 8 and taken[1:3, 1:3, 1:3].all()
    with pytest.raises(GeometryError, match="do not overlap"):
        align(block, fine, grid((2, 2, 2), origin=(99, 0, 0)), (4, 4, 4), resample=True)


def test_a_grid_that_itk_cannot_hold_is_said_by_the_reader(tmp_path):
    with pytest.raises(ReadError, match="singular"):
        image = nibabel.Nifti1Image(values(), np.eye(4))
        image.set_sform(np.diag((1, 0, 1, 1)), code=1)
        nibabel.save(image, tmp_path / "singular.nii")
        read(tmp_path / "singular.nii")
