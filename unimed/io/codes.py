"""Coded concepts of phrases: category, type, region and side, as DICOM and FHIR want them.

The table beside this module names common organs, vessels, bones, tissues and findings by their SNOMED CT identifiers,
as the DICOM standard's dictionary (pydicom) and public label tables list them. A phrase is read as side, finding and
structure: an organ takes its side on the type, a finding has the organ as region and the side on the region (DICOM
PS3.3 C.8.20.4). What is not in the table becomes a private code that keeps the words, and says so.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parent / "tables" / "codes.csv"
#: Scheme of private codes: the words are the meaning, no number is invented.
PRIVATE_SCHEME = "99UNIMED"


@dataclass(frozen=True)
class Code:
    """A coded concept: value, scheme designator ("SCT", "DCM", "99UNIMED") and meaning in words."""

    value: str
    scheme: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.meaning} ({self.value}, {self.scheme})"


#: CID 7150 of the standard.
CATEGORIES = {
    "anatomical structure": Code("91723000", "SCT", "Anatomical Structure"),
    "tissue": Code("85756007", "SCT", "Tissue"),
    "morphologically abnormal structure": Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    "physical object": Code("260787004", "SCT", "Physical object"),
    "substance": Code("105590001", "SCT", "Substance"),
    # Cells and their parts have no category of their own in CID 7150.
    "cell": Code("91723000", "SCT", "Anatomical Structure"),
}
SIDES = {
    "left": Code("7771000", "SCT", "Left"),
    "right": Code("24028007", "SCT", "Right"),
    "bilateral": Code("51440002", "SCT", "Right and left"),
}
#: Words that make an unknown phrase a finding rather than a structure.
_ABNORMAL = re.compile(
    r"\b(abnormal\w*|adenoma|\w*itis|cancer|\w*oma|calcification|consolidation|disease|fracture|hyperintensit\w+|"
    r"infection|inflammatory|lesion|malignan\w+|neoplas\w+|nodul\w+|opacit\w+|polyp|stone|tumou?r)s?\b"
)
_SIDE_WORDS = {"left": "left", "right": "right", "bilateral": "bilateral", "both": "bilateral"}
#: Structures whose own code says the side; the word then belongs to the name.
_SIDED = re.compile(
    r"\b(left|right)(?= (?:(?:heart )?(?:atrium|atrial cavity|ventricle|ventricular)|middle lung lobe))"
    r"|(?<=atrium )(left|right)\b|(?<=heart ventricle )(left|right)\b|(?<=lung middle lobe )right\b"
)
#: Adjectives of organs, as reports use them.
_ADJECTIVES = {
    "adrenocortical": "adrenal gland", "bronchial": "bronchus", "cardiac": "heart", "cerebral": "brain",
    "colonic": "colon", "duodenal": "duodenum", "esophageal": "esophagus", "gastric": "stomach", "hepatic": "liver",
    "intracerebral": "brain", "intracranial": "brain", "laryngeal": "larynx", "mediastinal": "mediastinum",
    "ovarian": "ovary", "pancreatic": "pancreas", "prostatic": "prostate", "pulmonary": "lung", "rectal": "rectum",
    "renal": "kidney", "retinal": "retina", "splenic": "spleen", "tracheal": "trachea", "uterine": "uterus",
    "vertebral": "vertebra",
}  # fmt: skip
#: Words that change nothing in what is meant.
_NEUTRAL = re.compile(
    r"\b(of|in|and|with|whole|entire|total|regional|primary|body|region|area|cta|mra|ct|mri?)\b|[().]"
)
_SMALL_WORDS = re.compile(r"\b(the|a|an|structure)\b")


@dataclass(frozen=True)
class Coding:
    """How a phrase is coded. `region` and `region_modifier` are set for findings whose place the phrase names.

    `source` is "table" where every word was understood, "table, words left over" where the finding is known and some
    words about it are in no code (they stay in the label), and "private" otherwise.
    """

    phrase: str
    category: Code
    type: Code
    type_modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None
    source: str = "table"

    @property
    def side(self) -> str:
        """ "left", "right", "bilateral" or ""."""
        codes = (self.type_modifier, self.region_modifier)
        return next((name for name, code in SIDES.items() if code in codes), "")

    def to_dict(self) -> dict:
        """Plain strings, for JSON and tables."""
        parts = ("category", "type", "type_modifier", "region", "region_modifier")
        found = {name: getattr(self, name) for name in parts if getattr(self, name) is not None}
        return {"phrase": self.phrase, **{name: vars(code) for name, code in found.items()}, "source": self.source}


@dataclass(frozen=True)
class _Entry:
    name: str
    category: str
    code: Code


@functools.cache
def table() -> dict[str, _Entry]:
    """Every known name, in the form of `_normal`, with its entry."""
    found: dict[str, _Entry] = {}
    with open(TABLE, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            entry = _Entry(row["name"], row["category"], Code(row["code"], "SCT", row["meaning"]))
            for name in (row["name"], *filter(None, row["synonyms"].split("|"))):
                found[_normal(name)] = entry
    return found


def code_phrase(phrase: str) -> Coding:
    """The coding of a phrase such as "left kidney", "cyst of the right kidney" or "liver tumour".

    Raises:
        ValueError: an empty phrase.
    """
    words = _normal(phrase)
    if not re.search(r"[^\W_]", words):
        raise ValueError("a phrase without letters cannot be coded")
    side, rest = _side(words)
    finding, rest = _take(rest, ("morphologically abnormal structure", "physical object", "substance"))
    structure, rest = _take(rest, ("anatomical structure", "tissue", "cell"))
    modifier = SIDES.get(side)
    if finding is not None:
        left_over = _left_over(rest)
        source = "table, words left over" if left_over else "table"
        category = CATEGORIES[finding.category]
        if structure is None:
            return Coding(phrase, category, finding.code, modifier, source=source)
        return Coding(phrase, category, finding.code, None, structure.code, modifier, source)
    region, rest = _take(rest, ("anatomical structure",)) if structure is not None else (None, rest)
    # What no code says ("transition zone of the prostate", "liver fracture") must not pass for the whole structure.
    if structure is None or _left_over(rest):
        return _private(phrase, words, structure, modifier)
    if region is not None and region.name in ("artery", "vein", "blood vessel"):
        structure, region = region, structure
    category = CATEGORIES[structure.category]
    if region is None:
        return Coding(phrase, category, structure.code, modifier)
    return Coding(phrase, category, structure.code, None, region.code, modifier)


def explain(phrase: str) -> list[tuple[str, str]]:
    """(word or words, what they became) of a phrase, in its order; words that are in no code say so.

    Raises:
        ValueError: an empty phrase.
    """
    coding = code_phrase(phrase)
    parts = (("type", coding.type), ("type modifier", coding.type_modifier), ("region", coding.region),
             ("region modifier", coding.region_modifier))  # fmt: skip
    parts = [(role, code) for role, code in parts if code is not None]
    words, told, place = _normal(phrase).split(), [], 0
    while place < len(words):
        length, meaning = next(
            ((n, m) for n in range(len(words) - place, 0, -1) if (m := _meaning(words[place : place + n], parts))),
            (1, ""),
        )
        if not meaning:
            meaning = "says nothing more" if not _left_over(words[place]) else f"in no code, kept in {_keeper(coding)}"
        told.append((" ".join(words[place : place + length]), meaning))
        place += length
    return told


def _keeper(coding: Coding) -> str:
    return "the private code" if coding.source == "private" else "the label"


def _meaning(words: list[str], parts: Sequence[tuple[str, Code]]) -> str:
    """What of a coding some words stand for, "" for nothing."""
    for role, code in parts:
        if len(words) == 1 and SIDES.get(_SIDE_WORDS.get(words[0], "")) == code:
            return f"{role} {code}"
        entry, rest = _take(" ".join(words), tuple(CATEGORIES))
        if entry is not None and not rest and entry.code == code:
            return f"{role} {code}"
    return ""


def _left_over(words: str) -> str:
    return " ".join(_NEUTRAL.sub(" ", words).split())


def _private(phrase: str, words: str, structure: _Entry | None, side: Code | None) -> Coding:
    abnormal = _ABNORMAL.search(words)
    category = CATEGORIES["morphologically abnormal structure" if abnormal else "anatomical structure"]
    meaning = " ".join(phrase.split())[:64]
    # Code values are SH: 16 characters. The words decide; they are kept whole in the meaning and the label.
    value = f"U{hashlib.sha256(words.encode()).hexdigest()[:12].upper()}"
    code = Code(value, PRIVATE_SCHEME, meaning)
    if structure is not None:
        return Coding(phrase, category, code, None, structure.code, side, "private")
    return Coding(phrase, category, code, side, source="private")


def _normal(text: str) -> str:
    text = re.sub(r"[_\-/]+", " ", text.casefold())
    text = re.sub(r"[^\w\s().]", " ", text)
    return " ".join(_SMALL_WORDS.sub(" ", text).split())


def _side(words: str) -> tuple[str, str]:
    """The side a phrase names and the phrase without it; a left atrium is not an atrium of the left side."""
    kept = _SIDED.sub(lambda match: f"{match.group(0)}\0", words)
    found = {_SIDE_WORDS[word] for word in kept.split() if word in _SIDE_WORDS}
    rest = " ".join(word for word in kept.split() if word not in _SIDE_WORDS).replace("\0", "")
    side = found.pop() if len(found) == 1 else "bilateral" if found else ""
    return side, rest


def _take(words: str, categories: tuple[str, ...]) -> tuple[_Entry | None, str]:
    """The longest known name of `categories` among the words, and the words without it; plurals count."""
    parts = words.split()
    for length in range(len(parts), 0, -1):
        for start in range(len(parts) - length + 1):
            name = " ".join(parts[start : start + length])
            for candidate in (name, name.removesuffix("es"), name.removesuffix("s")):
                entry = table().get(candidate) or table().get(_ADJECTIVES.get(candidate, ""))
                if entry is not None and entry.category in categories:
                    return entry, " ".join(parts[:start] + parts[start + length :])
    return None, words
