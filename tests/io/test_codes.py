"""Phrases to codes: against the DICOM dictionary, the vocabularies of two segmenters, and side by side."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr._concepts_dict import concepts

from unimed.data.wordings.biomedparse_targets import list_targets
from unimed.io.codes import CATEGORIES, PRIVATE_SCHEME, SIDES, code_phrase, explain, table

OTHERS = list(csv.DictReader(open(Path(__file__).parent / "totalsegmentator_codes.csv", encoding="utf-8")))
#: Rows of the other table that are wrong, or coarser than ours, and why.
DIFFERENT = {
    "gluteus_maximus": "181674001 is another concept", "gluteus_minimus": "one of its rows names the medius",
    "subclavian_artery": "29700009 is no artery of the dictionary", "torso_fat": "trunk as region",
    "lung_covid_infiltrate": "COVID-19 as modifier of the type", "hip_implant": "hip joint as region",
    "vertebrae": "spine as region of a vertebra", "pleural_effusion": "our code says the cavity",
    "pericardial_effusion": "our code says the cavity",
}  # fmt: skip

KNOWN = {value for values in concepts["SCT"].values() for value in values}
KNOWN |= {row[column] for row in OTHERS for column in ("type", "region")} | {"206007"}  # gluteus maximus


@pytest.mark.parametrize("entry", table().values(), ids=lambda e: e.name)
def test_every_number_of_the_table_is_in_the_dictionary_of_the_standard(entry):
    assert entry.code.scheme == "SCT" and entry.code.value in KNOWN
    assert entry.category in CATEGORIES and 0 < len(entry.code.meaning) <= 64
    assert _checks_out(entry.code.value), "SNOMED CT identifiers end in a Verhoeff check digit"


def _checks_out(value):
    """Verhoeff's check of a SNOMED CT identifier."""
    d = [[(i + j) % 5 if i < 5 and j < 5 else 0 for j in range(10)] for i in range(10)]
    for i in range(10):
        for j in range(10):
            if i < 5:
                d[i][j] = (i + j) % 5 if j < 5 else 5 + (i + j) % 5
            else:
                d[i][j] = 5 + (i - j) % 5 if j < 5 else (i - j) % 5
    permutation = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    for k in range(2, 8):
        permutation.append([permutation[k - 1][n] for n in permutation[1]])
    check = 0
    for place, digit in enumerate(reversed(value)):
        check = d[check][permutation[place % 8][int(digit)]]
    return check == 0


def values(coding):
    parts = (coding.type, coding.type_modifier, coding.region, coding.region_modifier)
    return tuple(part.value if part else "" for part in parts)


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row["structure"])
def test_the_vocabulary_of_totalsegmentator_is_covered(row):
    coding = code_phrase(row["structure"])
    assert coding.source.startswith("table")
    theirs = (row["type"], row["type_modifier"], row["region"], row["region_modifier"])
    known = next((why for name, why in DIFFERENT.items() if row["structure"].startswith(name)), "")
    if row["structure"].startswith(("vertebrae_", "gluteus_minimus_")):  # of these only some rows differ
        assert values(coding) == theirs or not row["type_modifier"]
    else:
        assert (values(coding) == theirs) != bool(known), known


#: Of BiomedParse's targets these are in no dictionary: they become private codes that keep the words.
PRIVATE = re.compile(
    r"plaque$|GTV[np]|COVID|arytenoids|axon|neural activity|cervical esophagus|cricopharyngeal|endolysosomes|enhanc|"
    r"gastrocnemius|soleus|^intervertebral discs|jugular vein|eyeball segment|cochlea|mitochondria|ultrastructure|"
    r"hyperintensit|transition(al)? zone|resection cavity|synaptic|schwannoma|polyp|cells|cup|hippocampus|fetal head|"
    r"glandular|lung-Normal|glioma|opacity|melanoma|symphysis|viral pneumonia"
)


def test_the_vocabulary_of_biomedparse_is_covered_and_what_is_private_is_listed():
    names = sorted({row["target"] for row in list_targets()})
    private = [name for name in names if code_phrase(name).source == "private"]
    assert len(names) > 150 and len(private) <= 53
    assert [name for name in private if not PRIVATE.search(name)] == []
    for name in private:
        coding = code_phrase(name)
        words = re.sub(r"\b(left|right)\b", " ", name).split()
        assert coding.type.scheme == PRIVATE_SCHEME and all(word in coding.type.meaning for word in words)
        assert re.fullmatch(r"U[0-9A-F]{12}", coding.type.value)


PAIRED = [row["structure"] for row in OTHERS if "left" in row["structure"].split("_")]


@pytest.mark.parametrize("name", PAIRED)
def test_left_and_right_differ_in_their_side_and_in_nothing_else(name):
    left, right = code_phrase(name), code_phrase(name.replace("left", "right"))
    if "atrium" in name or "ventricle" in name or "atrial" in name:
        assert left.type.value != right.type.value or left.side != right.side
        return
    both = {c.value for c in (SIDES["left"], SIDES["right"])}
    assert (left.side, right.side) == ("left", "right")
    assert [v for v in values(left) if v not in both] == [v for v in values(right) if v not in both]


@pytest.mark.parametrize(
    ("phrase", "type_", "modifier", "region", "side"),
    [
        ("left kidney", "Kidney", "Left", "", ""),
        ("Kidney, left", "Kidney", "Left", "", ""),
        ("cyst of the right kidney", "Cyst", "", "Kidney", "Right"),
        ("left adrenal mass", "Mass", "", "Adrenal gland", "Left"),
        ("hepatic tumour", "Neoplasm", "", "Liver", ""),
        ("both lungs", "Lung", "Right and left", "", ""),
        ("left atrium", "Left atrium", "", "", ""),
    ],
)
def test_sides_stand_where_the_standard_wants_them(phrase, type_, modifier, region, side):
    coding = code_phrase(phrase)
    found = [c.meaning if c else "" for c in (coding.type, coding.type_modifier, coding.region, coding.region_modifier)]
    assert [f.lower() for f in found] == [f.lower() for f in (type_, modifier, region, side)]


@pytest.mark.parametrize("phrase", ["transition zone of the prostate", "liver fracture", "blorbfnik"])
def test_what_no_code_says_does_not_pass_for_the_whole(phrase):
    coding = code_phrase(phrase)
    assert coding.source == "private" and coding.type.meaning == phrase
    assert all("in no code" in meaning or "region" in meaning or "nothing" in meaning for _, meaning in explain(phrase))


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_text_is_coded_or_refused_and_always_alike(text):
    try:
        coding = code_phrase(text)
    except ValueError:
        return
    assert coding == code_phrase(text) and coding.type.value and len(coding.type.value) <= 16
    assert len(coding.type.meaning) <= 64 and " ".join(w for w, _ in explain(text))
