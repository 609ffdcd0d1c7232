"""Answers are cut and written as recorded from the published demos."""

import json

import numpy as np
import pytest
from golden_files import SMALL
from PIL import Image

from unimed.io.answers import AnswerError, caption_and_phrases, read_answer, write_answer
from unimed.io.rle import expand_counts

GOLDEN = SMALL / "unibiomed" / "metrics"
FORMS = {"grg": "marked", "gvqa": "marked", "disease": "after", "medtrinity": "plain"}
CASES = [
    (kind, raw, expected)
    for kind, rows in json.loads((GOLDEN / "text_cleaning.json").read_text()).items()
    for raw, expected in rows
]


@pytest.mark.parametrize(("kind", "raw", "expected"), CASES)
def test_captions_and_phrases(kind, raw, expected):
    assert caption_and_phrases(raw, FORMS[kind]) == (expected["caption"], expected["phrases"])


def test_a_prediction_file_is_the_recorded_one(tmp_path):
    mask = np.asarray(Image.open(GOLDEN / "grg" / "pred_mask" / "case0.png")) > 0
    raw = json.loads((GOLDEN / "grg" / "raw_model_texts.json").read_text())[0]
    write_answer(tmp_path / "case0.json", "case0", raw, "marked", [mask])
    assert json.loads((tmp_path / "case0.json").read_text()) == json.loads((GOLDEN / "grg/pred/case0.json").read_text())
    assert np.array_equal(read_answer(tmp_path / "case0.json")["pred_masks"][0], mask)


@pytest.mark.parametrize("content", ["{", "[]", '{"caption": "x", "pred_masks": [{"size": [2, 2], "counts": "9"}]}'])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(AnswerError, match="a.json"):
        read_answer(tmp_path / "a.json")


def test_torn_run_lengths():
    with pytest.raises(ValueError, match="end within"):
        expand_counts("P")
    with pytest.raises(ValueError, match="letter"):
        expand_counts("\x7f")
