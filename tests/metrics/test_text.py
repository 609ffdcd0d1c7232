"""Text metrics against recorded numbers of the COCO caption tools and METEOR 1.5, and their limits."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimed.metrics import text

RECORDED = json.loads((Path(__file__).parent.parent / "golden" / "metrics" / "umedground_text.json").read_text())
words = st.lists(st.sampled_from(["left", "lung", "mass", "the", "is"]), min_size=1, max_size=8).map(" ".join)


def test_equal_to_the_recorded_values_on_raw_strings():
    hyps, refs = RECORDED["hyps"], RECORDED["refs"]
    raw = {"tokenize": str.split, "compat": "reference"}
    assert text.bleu(hyps, refs, **raw) == pytest.approx(RECORDED["Bleu_1to4"], abs=1e-12)
    for i, (hyp, ref) in enumerate(zip(hyps, refs, strict=True)):
        expected = [row[i] for row in RECORDED["Bleu_per_sample"]]
        assert text.sentence_bleu(hyp, ref, **raw) == pytest.approx(expected, abs=1e-12)
    # Recorded ROUGE-L splits at single spaces, so that a trailing space is a word of its own.
    rouge = text.rouge_l(hyps, refs, tokenize=lambda s: s.split(" "))
    assert rouge == pytest.approx(RECORDED["ROUGE_L_per_sample"], abs=1e-12)
    assert text.cider_d(hyps, refs, tokenize=str.split) == pytest.approx(RECORDED["CIDEr_per_sample"], abs=1e-12)
    assert text.meteor_exact(hyps, refs) == pytest.approx(RECORDED["METEOR_per_sample"], abs=1e-12)


@given(words, words)
def test_scores_stay_in_range_and_a_text_equals_itself(first, second):
    assert all(0 <= v <= 1 for v in text.sentence_bleu(first, second))
    assert 0 <= text.rouge_l([first], [second])[0] <= 1 and 0 <= text.meteor_exact([first], [second])[0] <= 1
    assert text.rouge_l([first], [first])[0] == pytest.approx(1)
    assert text.sentence_bleu(first, first, order=1)[0] == pytest.approx(1)
    assert text.token_f1(first, second) == text.token_f1(second, first)
    assert text.token_f1(first, first) == 1


def test_word_order_matters_to_all_but_token_f1():
    right, wrong = "mass in the left lung", "lung left the in mass"
    assert text.token_f1(wrong, right) == 1
    assert text.rouge_l([wrong], [right])[0] < 0.5 and text.sentence_bleu(wrong, right)[1] < 0.1
    assert text.meteor_exact([wrong], [right])[0] < text.meteor_exact([right], [right])[0]


def test_several_references_take_the_best():
    assert text.rouge_l(["a small mass"], [["nothing", "a small mass"]])[0] == pytest.approx(1)
    assert text.bleu(["a small mass"], [["nothing", "a small mass"]], order=2) == pytest.approx([1, 1], abs=1e-6)
    with pytest.raises(ValueError, match=r"references\[0\] is empty"):
        text.bleu(["x"], [[]])


def test_tokens_drop_punctuation_and_keep_words_whole():
    assert text.tokens("No pneumothorax; T2-weighted, 3.5 cm (don't).") == [
        "no", "pneumothorax", "t2-weighted", "3.5", "cm", "do", "n't",
    ]  # fmt: skip
    assert text.exact_match("The left Lung.", "left lung") and not text.exact_match("lung", "left lung")
    assert text.token_f1("", "") == 1 and text.token_f1("", "yes") == 0
    assert text.token_f1("no no no", "no") == 0.5, "surplus words cost"


def test_no_is_not_found_inside_normal():
    result = text.open_answers(["normal", "unknown", "No."], ["no", "no", "no"])
    assert result["exact_match"] == pytest.approx(1 / 3)


def test_phrase_f1_with_and_without_boxes():
    said, truth = ["Left effusion.", "mass", "mass"], ["mass", "left effusion"]
    counts = text.phrase_counts(said, truth)
    assert counts == {"tp": 2, "predicted": 3, "true": 2}
    here, there = (0, 0, 10, 10), (50, 50, 60, 60)
    gated = text.phrase_counts(said, truth, [here, here, there], [there, there])
    assert gated["tp"] == 1, "only the second mass lies where it should"
    assert text.phrase_f1([counts, gated])["phrase_f1_micro"] == pytest.approx(2 * 3 / 10)
    assert text.phrase_counts(["big mass"], ["mass"])["tp"] == 0
    assert text.phrase_counts(["big mass"], ["mass"], token_f1_at_least=0.6)["tp"] == 1
    with pytest.raises(ValueError, match="one box per phrase"):
        text.phrase_counts(said, truth, [here], [there, there])


def test_captions_name_their_metrics():
    result = text.captions(["no acute process", "mri of the knee"], ["no acute process", "mri of the knee"])
    assert set(result) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "meteor_exact"}
    assert result["rouge_l"] == pytest.approx(1) and result["meteor_exact"] == pytest.approx(1)
