"""Which answers are the same, and how texts are cut: signs, comparisons, lone letters, units, any Unicode."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unimed.metrics import coco_captions, text
from unimed.metrics.words import exact_match, normal_form, one_line, ptb_tokens, tokens

DIFFERENT = [
    ("T2*", "T2"), ("T2* and T2", "T2 and T2*"),
    ("A", ""), ("A", "The"), ("+", "-"), ("< 5 cm", "> 5 cm"), ("-5", "5"), ("hepatitis A", "hepatitis"),
    ("HER2+", "HER2-"), ("ER +", "ER -"), ("grade 2+", "grade 2-"), ("≥3", "<3"), ("↑", "↓"), ("type A", "type"),
    # Lone letters.
    ("hepatitis A virus", "hepatitis virus"), ("hepatitis a virus", "hepatitis virus"), ("A or B", "or B"),
    ("A+", "+"), ("we found antigen A uptake", "we found antigen uptake"), ("A", "B"), ("I", "II"), ("T1", "T2"),
    ("grade II", "grade III"), ("an", "a"),
    # Signs in every spelling.
    ("\u22125", "5"), ("HER2\u2013", "HER2+"), ("2++", "2+"), ("ER-/PR+", "ER+/PR-"), ("±2", "2"), ("~5", "5"),
    ("≥3", "≤3"), (">= 3", "<= 3"), ("→", "←"), ("✓", "✗"), ("n = 5", "n 5"), ("Ca2+", "Ca2"), ("CD4⁺", "CD4⁻"),
    ("👍", "👎"),
    # Numbers and units.
    ("2.5", "25"), (".5", "5"), ("2,5", "25"), ("10⁹", "109"), ("1½", "11/2"), ("5-10", "510"), ("1:2", "12"),
    ("50%", "50"), ("5 µm", "5 mm"), ("37°", "37"), ("5‰", "5%"), ("120/80", "12080"),
    # Genotypes, alleles and the like.
    ("A/G", "A/A"), ("A/G", "AG"), ("c.76A>T", "c.76A>G"), ("HLA-B*27", "HLA-B*28"), ("46,XX", "46,XY"),
    # Scripts whose vowels are marks; marks alone.
    ("हि", "हा"), ("!!!", "???"), ("!!!", ""), ("not", "no"), ("normal", "no"),
]  # fmt: skip
EQUAL = [
    ("**T2***", "T2*"), ("the **left** lung", "left lung"), ("*yes*", "yes"), ("yes*", "yes"),
    ("Yes.", "yes"), ("the liver", "Liver"), ("A", "a."), ("A", "A)"), ("HER2+", "her2 +"), ("a nodule", "nodule"),
    ("(A)", "a"), ("There is a nodule.", "there is nodule"), ("hepatitis A virus", "Hepatitis a virus"),
    ("cm²", "cm2"), ("cm^2", "cm²"), (">= 5", "≥5"), ("\u22125", "-5"), ("5 µm", "5 μm"), ("+/- 2", "±2"),
    ("<5", "< 5"), ("50 %", "50%"), ("“yes”", '"Yes"'), ("cafe\u0301", "café"), ("**yes**", "yes"), ("Ⅱ", "II"),
    ("- nodule", "nodule"), ("ＨＥＲ２＋", "HER2+"), ("x\u200by", "xy"), ("don’t", "don't"), ("1.", "1"), ("", "  "),
    ("a\u2028b", "a b"), ("Straße", "STRASSE"),
]  # fmt: skip


@pytest.mark.parametrize("pair", DIFFERENT, ids=map(str, range(len(DIFFERENT))))
def test_answers_that_differ_by_a_sign_or_a_letter_are_different(pair):
    assert not exact_match(*pair) and not exact_match(*pair[::-1]), pair


@pytest.mark.parametrize("pair", EQUAL, ids=map(str, range(len(EQUAL))))
def test_answers_that_differ_in_form_only_are_equal(pair):
    assert exact_match(*pair) and exact_match(*pair[::-1]), pair


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
@example("a A the")
@example("!!!")
@example("\ud800|||\x85")
def test_any_text_equals_itself_whatever_its_case(one):
    assert exact_match(one, one)
    assert normal_form(one) == normal_form(f" {one} ")
    assert text.token_f1(one, one) == 1 and text.rouge_l([one], [one]) == [1]
    assert text.bleu([one], [one]) == [1, 1, 1, 1] and text.corpus_meteor_exact([one], [one]) == pytest.approx(1)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20), st.sampled_from("+-<>≥≤±%↑↓=~→5xé"), st.text(max_size=20))
def test_a_sign_that_stands_alone_always_counts(before, sign, after):
    assert not exact_match(f"{before} . {sign} ; {after}", f"{before} . ; {after}")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_nothing_can_end_a_line_or_a_record(one):
    line = one_line(one)
    assert len(line.splitlines()) <= 1 and "|||" not in line
    line.encode()  # no half surrogates
    assert all(token and len(token.split()) == 1 for token in ptb_tokens(one) if "<" not in token)
    assert tokens(line) == tokens(one)


def test_tokens_are_those_recorded_from_the_treebank_tokenizer():
    recorded = json.loads((Path(__file__).parent / "ptb_tokens.json").read_text(encoding="utf-8"))
    wrong = {line: ptb_tokens(line) for line, expected in recorded.items() if ptb_tokens(line) != expected}
    assert not wrong


java = pytest.mark.skipif(bool(coco_captions.missing()), reason=coco_captions.missing() or "java is there")
AWKWARD = ["the liver is normal", "a\u2028b\nc\x85d ||| e", "", "!!!", "日本 ≥3 ☃", "x\x00y\r\nz", "|||", "\ud800 half",
           "SCORE ||| a", "EVAL", "<5 cm (left) + -", "&amp; 😀", "é\u200b"]  # fmt: skip


@java
@pytest.mark.slow
def test_both_roads_agree_on_any_text():
    shuffled = [*AWKWARD[3:], *AWKWARD[:3]]
    for predicted in (AWKWARD, shuffled):
        with_java, without = (coco_captions.caption_scores(predicted, AWKWARD, java=flag)[0] for flag in (True, False))
        assert {name: with_java[name] for name in without} == without and set(with_java) - set(without) == {"METEOR"}
        assert 0 <= with_java["METEOR"] <= 1
    assert coco_captions.caption_scores(AWKWARD, AWKWARD, java=True)[0]["METEOR"] == 1


@java
@pytest.mark.slow
def test_an_empty_text_is_counted():
    reports = ["the liver is normal today", "a large mass in the left lobe"]
    full = coco_captions.meteor(reports, [[r] for r in reports])
    assert full == 1
    assert 0 < coco_captions.meteor([*reports, "a mass"], [*([r] for r in reports), [""]]) < full
    assert 0 < coco_captions.meteor([*reports, ""], [*([r] for r in reports), ["a mass"]]) < full
    assert coco_captions.meteor([*reports, ""], [*([r] for r in reports), [""]]) == 1


@java
def test_the_java_tokenizer_loses_no_text():
    cut, lists = coco_captions._java_tokens(AWKWARD, [[line, "a mass"] for line in AWKWARD])
    assert [entry[0] for entry in lists] == cut and all(entry[1] == "a mass" for entry in lists)
    same = [line for line, found in zip(AWKWARD, cut, strict=True) if found.split() == ptb_tokens(line)]
    assert len(same) >= len(AWKWARD) - 1, "only the emoticon, which the treebank cannot read, differs"


def test_empty_references_cost_without_java():
    assert coco_captions.caption_scores(["a mass"], [""], java=False)[0]["ROUGE_L"] == 0
    with pytest.raises(ValueError, match="references.1. holds no text"):
        coco_captions.caption_scores(["a", "b"], ["a", []], java=False)


@java
def test_one_program_answers_until_a_conversation_breaks_off():
    report = ["the liver is normal"]
    value = coco_captions.meteor(report, [["the liver is large"]])
    first = coco_captions._meteor._program
    assert first.poll() is None and 0 < value < 1
    with pytest.raises(KeyboardInterrupt), coco_captions._meteor.conversation() as ask:
        ask("SCORE ||| a ||| a")
        raise KeyboardInterrupt
    assert first.poll() is not None
    assert coco_captions.meteor(report, [["the liver is large"]]) == value
    coco_captions._meteor.stop()
