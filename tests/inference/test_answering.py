"""What is written of an answer in which nothing was found."""

import numpy as np
import pytest
from PIL import Image

from unimed.inference import answering
from unimed.inference.asking import open_source
from unimed.io.result import NothingToWriteError, Prediction
from unimed.structures import Region


@pytest.fixture
def source(tmp_path):
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(tmp_path / "x.png")
    return open_source(tmp_path / "x.png")


def test_an_answer_without_masks_is_an_answer(source, tmp_path, monkeypatch):
    found = [Prediction("Nothing is there."), Prediction("There.", (Region("node", np.eye(20, 24, dtype=bool)),))]
    monkeypatch.setattr(answering, "ask", lambda *args, **options: found)
    row = answering.answer_source(None, source, ("a", "b"), tmp_path / "out", plane=None, how={},
                                  formats=("nifti", "html"))  # fmt: skip
    empty, full = row["answers"]
    assert empty["text"] == "Nothing is there." and empty["not_written"] and "nifti" in empty["not_written"][0]
    assert any(name.endswith(".html") for name in empty["files"]) and not any(".nii" in name for name in empty["files"])
    assert "not_written" not in full and any(name.endswith(".nii.gz") for name in full["files"])
    assert all((tmp_path / "out" / name).is_file() for one in (empty, full) for name in one["files"])


def test_other_faults_of_a_format_stay_faults(source, tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "ask", lambda *args, **options: [Prediction("Nothing.")])
    with pytest.raises(ValueError, match="unknown format") as caught:
        answering.answer_source(None, source, ("a",), tmp_path / "out", plane=None, how={}, formats=("tiffany",))
    assert not isinstance(caught.value, NothingToWriteError)
