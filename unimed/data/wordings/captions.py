"""Several captions of one image, stored as one text, and the draw of one of them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """How the captions of a source are parted and which of them are drawn: the first `keep`, or one `only`."""

    tag: str
    keep: int | None = None
    first_only: bool = False
    last_is_report: str | None = None  # the word that stands for "no report"
    second_missing: str | None = None  # the word that stands for "no second caption"


#: Tags of the published shards, in the order in which they are looked for.
RULES = (
    Rule("_radimagenet_", keep=10),
    Rule("_chexpert_", keep=10),
    Rule("_openi_", keep=4, first_only=True),
    Rule("_chestxray8_", keep=10),
    Rule("_all_retina_merged_", keep=10),
    Rule("_dr_", keep=15),
    Rule("_medicat_", second_missing="nothingpresent"),
    Rule("_mimiccxr_", keep=10, last_is_report="noreportpresent"),
)


def parse_captions(stored: str, compat: str | None = None) -> tuple[str, ...]:
    """The captions of a stored text that may be drawn, each as likely as the others.

    Empty fields and doubled full stops are removed, and the refined captions of OpenI take part.
    `compat="reference"` draws as the published training did: an empty field may be drawn where fewer captions than
    usual are stored, and of OpenI only the original caption.
    """
    rule = next((rule for rule in RULES if rule.tag in stored), None)
    if rule is None:
        return (stored,) if compat == "reference" else _clean([stored])
    fields = stored.split(rule.tag)
    if rule.last_is_report is not None:
        report = fields[-1]
        chosen = fields[: rule.keep] if report.strip() in ("", rule.last_is_report) else [report]
    elif rule.second_missing is not None:
        chosen = [field for field in fields[:2] if field.strip() != rule.second_missing]
    elif rule.first_only and compat == "reference":
        chosen = fields[:1]
    else:
        chosen = fields[: rule.keep]
    return tuple(chosen) if compat == "reference" else _clean(chosen)


def _clean(captions: Sequence[str]) -> tuple[str, ...]:
    return tuple(re.sub(r"\.\.$", ".", caption.strip()) for caption in captions if caption.strip())


def draw_caption(captions: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """One of the captions by Python's generator (which the engine seeds for every batch).

    Raises:
        ValueError: no captions, or weights of another number.
    """
    if not captions:
        raise ValueError("there is no caption to draw")
    if weights is None:
        return random.choice(list(captions))
    if len(weights) != len(captions):
        raise ValueError(f"{len(weights)} weights do not fit {len(captions)} captions")
    return random.choices(list(captions), weights=list(weights))[0]
