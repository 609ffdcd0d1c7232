"""Slicer's segmentation file and label tables: read by pynrrd, slicerio and SimpleITK."""

import json

import numpy as np
import pytest
from clinical import blobs
from small_volumes import grid, oblique_grids, sheared_grids

from unimed.geometry import Geometry, lps_to_ras
from unimed.io.result import Prediction
from unimed.structures import Region

PHRASES = ("left kidney", "cyst of the right kidney", "Läsion | 肝臓:\n^~", "spleen")
GRIDS = [grid((0.7, 0.9, 2.5)), *oblique_grids(4), *sheared_grids(2)]


def result_of(geometry, shape=(6, 7, 5), count=4):
    return Prediction("", tuple(map(Region, PHRASES[:count], blobs(shape, count))), geometry)


@pytest.mark.parametrize("geometry", GRIDS)
@pytest.mark.parametrize("count", [1, 4])
def test_voxels_places_names_and_codes_come_back(tmp_path, geometry, count):
    nrrd = pytest.importorskip("nrrd")
    prediction = result_of(geometry, count=count)
    (path,) = prediction.save(tmp_path, "case", ("seg-nrrd",))
    array, header = nrrd.read(str(path))
    array = array[None] if array.ndim == 3 else array
    directions = np.array([v for v in header["space directions"] if np.isfinite(v).all()], float)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T, header["space origin"]
    assert np.allclose(lps_to_ras(affine), geometry.affine, atol=1e-9), "directions are columns of the affine"
    for n, region in enumerate(prediction.regions):
        layer, label = int(header[f"Segment{n}_Layer"]), int(header[f"Segment{n}_LabelValue"])
        assert np.array_equal(array[layer] == label, region.mask)
        i0, i1, j0, j1, k0, k1 = map(int, header[f"Segment{n}_Extent"].split())
        assert region.mask[i0 : i1 + 1, j0 : j1 + 1, k0 : k1 + 1].sum() == region.mask.sum()
        assert all(0 <= float(v) <= 1 for v in header[f"Segment{n}_Color"].split())
    tags = header["Segment0_Tags"]
    assert "~SCT^91723000^Anatomical Structure~SCT^64033007^Kidney~SCT^7771000^Left~" in tags
    if count > 1:
        assert (
            "~SCT^367643001^Cyst~^^~Anatomic codes - DICOM master list~SCT^64033007^Kidney~SCT^24028007^Right|"
            in (header["Segment1_Tags"])
        )
        assert "Segment2_Name:=Läsion | 肝臓: ^~\n".encode() in path.read_bytes()  # pynrrd reads ASCII only
        assert header["Segment2_Tags"].count("|") == 4


def test_slicerio_reads_it(tmp_path):
    slicerio = pytest.importorskip("slicerio")
    (path,) = result_of(GRIDS[1]).save(tmp_path, "case", ("seg-nrrd",))
    segmentation = slicerio.read_segmentation(str(path))
    assert [s["name"] for s in segmentation["segments"]][:2] == ["left kidney", "cyst of the right kidney"]
    assert segmentation["segments"][0]["terminology"]["type"][:2] == ["SCT", "64033007"]


def test_pictures_are_one_slice_and_results_without_masks_an_error(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    mask = np.eye(5, 6, dtype=bool)
    (path,) = Prediction("", (Region("polyp", mask),), Geometry.pixels()).save(tmp_path, "p", ("seg-nrrd",))
    assert np.array_equal(nrrd.read(str(path))[0][..., 0] > 0, mask)
    with pytest.raises(ValueError, match="holds masks"):
        Prediction("", (Region("polyp"),)).save(tmp_path, "q", ("seg-nrrd",))
    assert not list(tmp_path.glob("q*"))


def test_a_table_lies_beside_a_label_map(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    prediction = result_of(GRIDS[0])
    volume, *_, table, told = prediction.save(tmp_path, "case", ("nifti", "labels"))
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    found = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    labels = np.asanyarray(nibabel.load(volume).dataobj)
    assert {int(row["index"]) for row in found} >= set(np.unique(labels)) - {0}
    assert found[0]["type"] == "64033007" and found[0]["type_modifier"] == "7771000"
    assert found[1]["region_modifier"] == "24028007" and len({row["color"] for row in found}) == 4
    values = json.loads(told.read_text(encoding="utf-8"))
    assert [v["name"] for v in values["labels"]] == [row["name"] for row in found]
    assert values["labels"][2]["codes"]["source"] == "private"
