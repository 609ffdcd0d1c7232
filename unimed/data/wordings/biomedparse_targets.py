"""What BiomedParse was trained to find: targets by modality and anatomy, their hierarchy, and what a mask of each
looks like. The lists are in `manifests/biomedparse_targets.json`."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

FILE = Path(__file__).parent.parent / "manifests" / "biomedparse_targets.json"
KINDS = ("volume", "image")

#: (start of the modality, site) -> image type of the recognition lists; "" is any site.
_IMAGE_TYPES = (
    ("ct", "liver", "CT-Liver"),
    ("ct", "lung", "CT-Chest"),
    ("ct", "chest", "CT-Chest"),
    ("ct", "abdomen", "CT-Abdomen"),
    ("mri-flair", "brain", "MRI-FLAIR-Brain"),
    ("mri-t1-gd", "brain", "MRI-T1-Gd-Brain"),
    ("mri", "heart", "MRI-Cardiac"),
    ("mri", "cardiac", "MRI-Cardiac"),
    ("mri", "abdomen", "MRI-Abdomen"),
    ("pathology", "", "Pathology"),
    ("x-ray", "chest", "X-Ray-Chest"),
    ("ultrasound", "heart", "Ultrasound-Cardiac"),
    ("ultrasound", "cardiac", "Ultrasound-Cardiac"),
    ("endoscop", "", "Endoscopy"),
    ("fundus", "", "Fundus"),
    ("dermoscopy", "", "Dermoscopy"),
    ("oct", "", "OCT"),
)
#: Image type -> (modality, site) in the words of the training prompts.
_WORDS = {
    "CT-Abdomen": ("CT", "abdomen"),
    "CT-Chest": ("CT", "lung"),
    "CT-Liver": ("CT", "liver"),
    "MRI-Abdomen": ("MRI", "abdomen"),
    "MRI-Cardiac": ("MRI", "heart"),
    "MRI-FLAIR-Brain": ("MRI-FLAIR", "brain"),
    "MRI-T1-Gd-Brain": ("MRI-T1-Gd", "brain"),
    "Pathology": ("pathology", ""),
    "X-Ray-Chest": ("X-Ray", "chest"),
    "Ultrasound-Cardiac": ("ultrasound", "heart"),
    "Endoscopy": ("endoscope", "colon"),
    "Fundus": ("fundus", "retinal"),
    "Dermoscopy": ("dermoscopy", "skin"),
    "OCT": ("OCT", "retinal"),
}
#: Anatomy sections of the 3D list -> site whose CT window suits them.
_SITES = {"thoracic": "lung", "neuro_cranial": "brain", "spine_msk": "bone"}


class TargetError(ValueError):
    """A modality, anatomy or target that is not in the list; the message names those that are."""


@functools.cache
def known() -> dict:
    """The whole file: `volume`, `image`, `recognition`, `hierarchy`, `presence`."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def list_targets(kind: str | None = None, modality: str | None = None, anatomy: str | None = None) -> list[dict]:
    """One row per target: kind ("volume" for 3D, "image" for 2D), modality, anatomy, target, and for 2D the
    published `median_dice` over `test_images`.

    Args:
        kind: one of `KINDS`, None for both. modality, anatomy: beginnings of names, in any case.

    Raises:
        TargetError: nothing fits; the message lists the modalities or anatomies there are.
    """
    if kind is not None and kind not in KINDS:
        raise TargetError(f"unknown kind {kind!r}; known are {', '.join(KINDS)}")
    rows = []
    for form in KINDS if kind is None else (kind,):
        for name, anatomies in known()[form].items():
            for place, targets in anatomies.items():
                for entry in targets:
                    entry = entry if isinstance(entry, dict) else {"target": entry}
                    rows.append({"kind": form, "modality": name, "anatomy": place, **entry})
    for column, wanted in (("modality", modality), ("anatomy", anatomy)):
        if wanted is not None:
            found = [row for row in rows if row[column].lower().startswith(wanted.lower())]
            if not found:
                there = ", ".join(dict.fromkeys(row[column] for row in rows))
                raise TargetError(f"no target for {column} {wanted!r}; there are {there}")
            rows = found
    return rows


def lineage(target: str) -> tuple[str, ...]:
    """From the root of the hierarchy to the target, e.g. ("organ", "kidney", "left kidney"); () if unknown."""
    for entry in known()["hierarchy"]:
        above = (entry["parent"],) if entry["parent"] else ()
        if target == entry["name"]:
            return (*above, entry["name"])
        if target in entry["children"]:
            return (*above, entry["name"], target)
    return ()


def category(target: str) -> dict | None:
    """`id`, `name` and `parent` of the category a target belongs to in BiomedParse's JSON; None if unknown."""
    names = set(lineage(target)) | {target}
    for entry in known()["hierarchy"]:
        if entry["name"] in names:
            return {key: entry[key] for key in ("id", "name", "parent")}
    return None


def image_type(modality: str, site: str = "") -> str:
    """The image type whose targets are looked for, e.g. ("CT", "abdomen") -> "CT-Abdomen".

    Raises:
        TargetError: no list fits.
    """
    if modality in known()["recognition"]:
        return modality
    for start, place, name in _IMAGE_TYPES:
        if modality.lower().startswith(start) and (not place or site.lower() == place):
            return name
    types = ", ".join(known()["recognition"])
    raise TargetError(f"no list of targets for modality {modality!r}, site {site!r}; image types are {types}")


def recognisable(kind: str) -> list[str]:
    """Targets that are looked for in images of a type, see `image_type`.

    Raises:
        TargetError: unknown image type.
    """
    if kind not in known()["recognition"]:
        raise TargetError(f"unknown image type {kind!r}; known are {', '.join(known()['recognition'])}")
    return list(known()["recognition"][kind])


def wording(target: str, kind: str, modality: str = "", site: str = "") -> str:
    """The prompt for a target in images of a type, "TARGET in SITE MODALITY"; given words go before the usual ones."""
    usual = _WORDS[kind]
    modality, site = (usual[0] if modality in ("", kind) else modality), site or usual[1]
    return f"{target} in {site} {modality}" if site else f"{target} in {modality}"


def presence_distributions(kind: str, target: str) -> list[list[float]] | None:
    """Four (a, b) of beta distributions for `evaluation.recognition.presence_p_value`; None where not published."""
    return known()["presence"].get(kind, {}).get(target)


def site_of(prompts: Sequence[str]) -> str | None:
    """The site whose CT window suits all prompts, by the section of the 3D list that names each; None if they differ.

    A prompt counts where it names a target, see `named_in`.
    """
    sites = set()
    for prompt in prompts:
        row = named_in(prompt, "CT")
        if row is None:
            return None
        lung = "lung" in row["target"] or "COVID" in row["target"]
        sites.add("lung" if lung else _SITES.get(row["anatomy"], "soft tissue"))
    return sites.pop() if len(sites) == 1 else None


def named_in(prompt: str, modality: str | None = None) -> dict | None:
    """The 3D target whose name a prompt contains, as a row of `list_targets`; the longest name decides. None if none.

    Args:
        modality: beginning of a modality in the list; all of them if None.
    """
    rows = [row for row in list_targets("volume", modality) if row["target"].lower() in prompt.lower()]
    return max(rows, key=lambda row: len(row["target"]), default=None)
