"""Attributes of DICOM objects by keyword or tag, and some of them as DICOM JSON (PS3.18 annex F)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset

#: Values of these are too large, or too foreign, for an answer that tells everything.
_BULK = ("OB", "OW", "OF", "OD", "UN", "SQ")


def keyword_of(name: str) -> str | None:
    """The keyword of an attribute named by keyword or by eight hexadecimal digits; None for one nobody knows."""
    keyword = keyword_for_tag(int(name, 16)) if re.fullmatch("[0-9A-Fa-f]{8}", name) else name
    return keyword if keyword and tag_for_keyword(keyword) is not None else None


def vr_of(keyword: str) -> str:
    """The value representation of a known attribute, such as "DA" or "PN"."""
    return dictionary_VR(tag_for_keyword(keyword))


def as_json(header: Dataset, keywords: Iterable[str], values: Mapping, everything: bool = False) -> dict:
    """Some attributes of a header as DICOM JSON.

    Args:
        keywords: those that are taken where the header has them.
        values: keyword -> value, of attributes the header does not hold.
        everything: all of the header, but bulk data, unknown attributes and sequences.
    """
    made = Dataset()
    if everything:
        made.update({element.tag: element for element in header if element.VR not in _BULK})
    for keyword in dict.fromkeys(keywords):
        if keyword in header:
            made.add(header[keyword])
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made.to_json_dict(suppress_invalid_tags=True)
