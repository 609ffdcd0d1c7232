"""An exported mask stage answers as the model does, for any number of objects, and its runner needs no torch."""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sam2_models import tiny_sam2_model
from small_models import tiny_model

from unimed.commands.cli import main
from unimed.inference.mask_stage import MaskStage
from unimed.io.squares import resized
from unimed.models import mask_stage
from unimed.models.heads.mask import resize_mask_logits

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
IMAGE = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
BOXES = [(5, 5, 20, 30), (0, 0, 60, 50), (30, 10, 55, 45)]


@pytest.mark.parametrize("shape", [(8, 8, 50, 60), (16, 16, 64, 64), (32, 32, 7, 9), (5, 9, 5, 9)])
def test_resizing_is_that_of_torch(shape):
    logits = np.random.default_rng(0).normal(size=(2, *shape[:2])).astype(np.float32)
    theirs = resize_mask_logits(torch.from_numpy(logits), shape[2:]).numpy()
    np.testing.assert_allclose(resized(logits, shape[2:]), theirs, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Gives the model of a kind, the folder it was exported to and what was printed; each is exported once."""
    done = {}

    def export(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            model = {"lite": tiny_model, "sam2": tiny_sam2_model}[kind]()
            model.save_pretrained(folder / "model")
            further = ["--openvino"] if kind == "lite" and importlib.util.find_spec("openvino") else []
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert main(["export-masks", str(folder / "model"), str(folder / "out"), *further]) == 0
            done[kind] = model, folder / "out", printed.getvalue()
        return done[kind]

    return export


@pytest.mark.parametrize("kind", ["lite", "sam2"])
def test_exported_it_cuts_out_the_same(kind, exported):
    model, out, printed = exported(kind)
    assert "| encoder.onnx" in printed
    told = json.loads((out / "mask_stage.json").read_text())
    assert {row["graph"] for row in told["graphs"]} == {"encoder", "boxes", "vectors", "heads"}
    assert all(row["difference"] < 1e-4 for row in told["graphs"])
    stage, known = MaskStage(out, threads=1), model.segment_boxes(IMAGE, BOXES)
    for ours, theirs in zip(stage.segment_boxes(IMAGE, BOXES).regions, known.regions, strict=True):
        assert (ours.mask == theirs.mask).mean() > 0.999 and ours.phrase == theirs.phrase
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
    # Language vectors, more of them than one call takes.
    states = torch.randn(70, model.backbone.hidden_dim)
    with torch.no_grad():
        features = model.mask_head.encode(model.processor.mask_pixels(IMAGE)[None])
        vectors = model.seg_projection(states)
        output = model.mask_head.decode(features, torch.zeros(70, dtype=torch.long), vectors)
        content = model.processor.frame(IMAGE.shape[:2]).content_hw
        theirs = resize_mask_logits(output.logits, IMAGE.shape[:2], model.mask_head.image_size, content).numpy()
    logits, quality, presence = stage.decode(stage.encode(IMAGE), IMAGE.shape[:2], states=states.numpy())
    assert np.abs(logits - theirs).max() < 1e-3 * max(np.abs(theirs).max(), 1e-3)
    assert quality.shape == (70,) and (presence is None) == (model.presence_head is None)
    code = f"""
import sys, numpy
from unimed.inference.mask_stage import MaskStage
found = MaskStage({str(out)!r}).segment_boxes(numpy.zeros((50, 60, 3), numpy.uint8), [(5, 5, 20, 30)])
print(found.regions[0].mask.shape, "torch" in sys.modules, "transformers" in sys.modules)
"""
    if kind == "lite":
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "(50, 60) False False", done.stderr


def test_a_graph_with_other_numbers_leaves_nothing_behind(tmp_path):
    with pytest.raises(mask_stage.ParityError, match=r"encoder.onnx differs by"):
        mask_stage.export_mask_stage(tiny_model(), tmp_path / "out", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_mask_stage_is_named(tmp_path):
    with pytest.raises(ValueError, match="no mask_stage.json in it; write it by"):
        MaskStage(tmp_path)


def test_openvino_answers_as_the_model_does(exported):
    pytest.importorskip("openvino")
    model, out, printed = exported("lite")
    assert "| encoder.xml" in printed
    told = json.loads((out / "mask_stage.json").read_text())
    files = {row["file"]: row["difference"] for row in told["graphs"]}
    assert {f"{name}.{form}" for name in ("encoder", "boxes", "vectors", "heads") for form in ("xml", "onnx")} == {
        *files
    }
    assert max(files.values()) < 1e-3
    stage, known = MaskStage(out, engine="openvino", threads=1), model.segment_boxes(IMAGE, BOXES)
    for ours, theirs in zip(stage.segment_boxes(IMAGE, BOXES).regions, known.regions, strict=True):
        assert (ours.mask == theirs.mask).mean() > 0.999
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)


def test_what_the_runner_refuses(tmp_path):
    with pytest.raises(ValueError, match="no mask_stage.json"):
        MaskStage(tmp_path)
    (tmp_path / "mask_stage.json").write_text("{}")
    with pytest.raises(ValueError, match="engine 'tensorrt' is not known"):
        MaskStage(tmp_path, engine="tensorrt")
    with pytest.raises(ValueError, match="no encoder.xml"):
        MaskStage(tmp_path, engine="openvino")
    with pytest.raises(ValueError, match="for onnxruntime"):
        MaskStage(tmp_path, engine="openvino", int8=True)
