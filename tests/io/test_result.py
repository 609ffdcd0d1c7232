import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unimed.files import refuse_to_replace
from unimed.geometry import Geometry
from unimed.io.images import ImageSource
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.io.rle import decode_mask, encode_mask
from unimed.structures import Region


@given(arrays(bool, st.one_of(st.tuples(st.integers(1, 9), st.integers(1, 9)),
                              st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)))))  # fmt: skip
def test_run_lengths_round_trip(mask):
    assert (decode_mask(json.loads(json.dumps(encode_mask(mask)))) == mask).all()


def test_run_lengths_count_columns_first():
    mask = np.array([[False, True], [True, True]])
    assert encode_mask(mask) == {"size": [2, 2], "counts": [1, 3]}
    with pytest.raises(ValueError, match="add up"):
        decode_mask({"size": [2, 2], "counts": [1, 2]})


def prediction():
    mask = np.zeros((8, 6), bool)
    mask[2:5, 1:3] = True
    regions = (Region("a", mask=mask, presence=0.9, confidence=0.5), Region("b", mask=~mask, phrase_span=(0, 1)))
    return Prediction("a and b", regions, Geometry.pixels(), {"answer": 0.1})


def test_all_formats_are_written(tmp_path):
    paths = prediction().save(tmp_path, "case", ("json", "png", "nifti", "npz"), image=np.zeros((8, 6), np.uint8))
    assert [p.name for p in paths] == ["case.json", "case.png", "case.nii.gz", "case.npz"]
    values = json.loads(paths[0].read_text())
    assert values["notice"] == "research use only"
    assert (decode_mask(values["regions"][0]["mask_rle"]) == prediction().regions[0].mask).all()
    labels, _ = read(paths[2])
    assert np.unique(labels).tolist() == [1, 2]


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dicom-sr"):
        prediction().save(tmp_path, formats=("dicom-sr",))
    with pytest.raises(ValueError, match="image="):
        prediction().save(tmp_path, formats=("png",))
    with pytest.raises(ValueError, match="plain file name"):
        prediction().save(tmp_path, name="../up")
    with pytest.raises(ValueError, match="no mask"):
        Prediction("nothing").save(tmp_path, formats=("json", "npz"))
    assert list(tmp_path.iterdir()) == []


def test_a_result_does_not_take_the_place_of_its_source(tmp_path):
    for name in ("case.png", "case.nii.gz", "case.dcm"):
        (tmp_path / name).write_bytes(b"")
    for name in ("case.png", "case.nii.gz"):
        with pytest.raises(ValueError, match=f"{name}: .* another output folder"):
            refuse_to_replace(tmp_path / name, tmp_path / "." / "", "case")
    refuse_to_replace(tmp_path / "case.dcm", tmp_path, "case")
    refuse_to_replace(tmp_path / "case.png", tmp_path / "out", "case")


def test_predictions_saved_in_a_loop_are_all_kept(tmp_path):
    sources = [ImageSource(f"/data/{name}") for name in ("1.2.840.1.dcm", "1.2.840.2.dcm", "a.png", "a.dcm", "A.png")]
    for _ in range(2):
        for number, source in enumerate(sources):
            Prediction(f"answer {number}", image=source).save(tmp_path)
    found = {p.name: json.loads(p.read_text())["text"] for p in tmp_path.glob("*.json")}
    assert found == {"1.2.840.1.json": "answer 0", "1.2.840.2.json": "answer 1", "a.json": "answer 2",
                     "a.dcm.json": "answer 3", "A.png.json": "answer 4"}  # fmt: skip
    again = Prediction("another question", image=sources[2])
    assert [p.name for p in again.save(tmp_path)] == ["a-2.json"]


def test_predictions_without_a_file_are_all_kept(tmp_path):
    for number in (1, 2, 3, 1):
        Prediction("same text", (Region("a", mask=np.arange(12).reshape(3, 4) > number),)).save(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 3 and (tmp_path / "prediction.json").is_file()


def test_one_format_needs_no_list(tmp_path):
    (path,) = Prediction("A lesion.").save(tmp_path, "case", formats="json")
    assert path.name == "case.json"
