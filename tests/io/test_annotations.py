"""COCO read by pycocotools, LabelMe and Label Studio by their own rules."""

import base64
import io
import json

import numpy as np
import pytest
from clinical import unpacked
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unimed.io.annotations import brush_runs
from unimed.io.result import Prediction
from unimed.structures import Region


def result():
    mask = np.zeros((20, 30), bool)
    mask[3:9, 5:17], mask[5, 7] = True, False
    return Prediction(
        "A polyp is seen.",
        (Region("polyp", mask, presence=0.75), Region("ulcer", box_xyxy_px=(1, 2.5, 11, 12)), Region("Blutung 出血")),
        model_reference="/x/m",
    )


def saved(tmp_path, form, prediction=None, **options):
    (path,) = (prediction or result()).save(tmp_path, "p", (form,), **options)
    return path, json.loads(path.read_text(encoding="utf-8"))


def test_coco_is_what_pycocotools_reads(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    path, values = saved(tmp_path, "coco")
    read = coco.COCO(str(path))
    first, second = read.loadAnns(read.getAnnIds())
    assert np.array_equal(read.annToMask(first).astype(bool), result().regions[0].mask)
    assert first["bbox"] == [5, 3, 12, 6] and first["area"] == 71 and first["score"] == 0.75
    assert second["bbox"] == [1, 2.5, 10, 9.5]
    assert [c["name"] for c in values["categories"]] == ["polyp", "ulcer", "Blutung 出血"]


def test_labelme_masks_stand_where_they_were(tmp_path):
    _, values = saved(tmp_path, "labelme")
    first, second = values["shapes"]
    (x1, y1), (x2, y2) = first["points"]
    mask = np.zeros((values["imageHeight"], values["imageWidth"]), bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = np.array(Image.open(io.BytesIO(base64.b64decode(first["mask"]))))
    assert np.array_equal(mask, result().regions[0].mask)
    assert first["description"] == "A polyp is seen." and second["points"] == [[1, 2.5], [11, 12]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.floats(0, 1))
def test_brush_runs_come_back(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(unpacked(brush_runs(mask)).reshape(height, width, 4)[..., 3] > 0, mask)


def test_brush_runs_of_a_large_mask_need_several_counters():
    mask = np.ones((300, 400), bool)
    assert unpacked(brush_runs(mask)).sum() == 4 * mask.size * 255


def test_label_studio_tasks_hold_brushes_and_percent(tmp_path):
    _, (task,) = saved(tmp_path, "label-studio", image_url="/data/p.png")
    brush, box = task["predictions"][0]["result"]
    assert task["data"]["image"] == "/data/p.png" and brush["value"]["brushlabels"] == ["polyp"]
    assert box["value"]["x"] == pytest.approx(100 / 30) and box["value"]["height"] == pytest.approx(47.5)
    assert task["predictions"][0]["score"] == 0.75


@pytest.mark.parametrize("form", ["coco", "labelme", "label-studio"])
def test_volumes_and_unknown_sizes_are_refused(tmp_path, form):
    with pytest.raises(ValueError, match="of a volume"):
        Prediction("", (Region("x", np.ones((2, 3, 4), bool)),)).save(tmp_path, "v", (form,))
    with pytest.raises(ValueError, match="give image="):
        Prediction("", (Region("x", box_xyxy_px=(0, 0, 1, 1)),)).save(tmp_path, "v", (form,))
    boxes = Prediction("", (Region("x", box_xyxy_px=(0, 0, 1, 1)),))
    assert boxes.save(tmp_path, "v", (form,), image=np.zeros((4, 5), np.uint8))
