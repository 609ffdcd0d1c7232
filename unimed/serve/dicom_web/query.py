"""QIDO-RS: which attributes are matched, how, and which are told (PS3.18 10.6, PS3.4 C.2.2.2)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence

from unimed.io.dicom_attributes import as_json, keyword_of, vr_of
from unimed.serve.dicom_web.index import Instance
from unimed.serve.problems import Problem

_STUDY = ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
          "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDescription")  # fmt: skip
_SERIES = ("Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "PerformedProcedureStepStartDate",
           "PerformedProcedureStepStartTime")  # fmt: skip
_INSTANCE = ("SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames")
#: Attributes that are told at each level.
TOLD = {"studies": _STUDY, "series": (*_STUDY, *_SERIES), "instances": (*_STUDY, *_SERIES, *_INSTANCE)}
_OTHERS = ("limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching")
_MOST = 1000


def search(level: str, found: Sequence[Instance], asked: Sequence[tuple[str, str]], base: str) -> list[dict]:
    """The objects of a level ("studies", "series", "instances") that match, as DICOM JSON.

    Args:
        asked: (name, value) pairs of the query: attributes by keyword or tag, `includefield`, `limit`, `offset`.
        base: address of the service, for `RetrieveURL`.

    Raises:
        Problem: 400, an attribute nobody knows, or a limit that is no number.
    """
    query = dict(asked)
    wanted = {_keyword(name): value for name, value in asked if name not in _OTHERS}
    more = [field for name, value in asked if name == "includefield" for field in value.split(",") if field]
    fields = [*TOLD[level], *(_keyword(field) for field in more if field != "all"), *wanted]
    groups: dict[str, list[Instance]] = {}
    for one in found:
        key = {"studies": one.study, "series": one.series, "instances": one.sop}[level]
        groups.setdefault(key, []).append(one)
    studies = _group(found, "study")
    series = _group(found, "series")
    rows = []
    for members in groups.values():
        first = members[0]
        counted = _counted(level, first, studies, series)
        if all(_matches(one, counted, wanted, level) for one in members[:1]):
            rows.append(_row(level, first, fields, counted, base, everything="all" in more))
    start, most = _count(query, "offset", 0), min(_count(query, "limit", _MOST), _MOST)
    return rows[start : start + most]


def _group(found: Sequence[Instance], name: str) -> dict[str, list[Instance]]:
    groups: dict[str, list[Instance]] = {}
    for one in found:
        groups.setdefault(getattr(one, name), []).append(one)
    return groups


def _counted(level: str, first: Instance, studies: Mapping, series: Mapping) -> dict:
    of_study = studies[first.study]
    if level == "studies":
        return {
            "ModalitiesInStudy": sorted({str(one.header.get("Modality", "")) for one in of_study} - {""}),
            "NumberOfStudyRelatedSeries": len({one.series for one in of_study}),
            "NumberOfStudyRelatedInstances": len(of_study),
        }
    return {"NumberOfSeriesRelatedInstances": len(series[first.series])} if level == "series" else {}


def _row(level, first: Instance, fields, counted: Mapping, base: str, everything: bool) -> dict:
    url = f"{base}/studies/{first.study}"
    if level != "studies":
        url += f"/series/{first.series}"
    if level == "instances":
        url += f"/instances/{first.sop}"
    values = {**counted, "RetrieveURL": url, "InstanceAvailability": "ONLINE"}
    return as_json(first.header, fields, values, everything)


def _keyword(name: str) -> str:
    """The keyword of an attribute that is named by keyword or by eight hexadecimal digits."""
    name = name.split(".")[0]
    keyword = keyword_of(name)
    if keyword is None:
        raise Problem(400, f"no attribute {name[:40]!r}", param=name[:40])
    return keyword


def _count(query: Mapping[str, str], name: str, default: int) -> int:
    value = query.get(name, str(default))
    if not value.isdigit():
        raise Problem(400, f"{name} is no number", param=name)
    return int(value)


def _matches(one: Instance, counted: Mapping, wanted: Mapping[str, str], level: str) -> bool:
    for keyword, value in wanted.items():
        if value in ("", "*"):
            continue
        held = counted.get(keyword, one.header.get(keyword))
        held = [] if held is None else list(held) if isinstance(held, list | tuple) else [held]
        if hasattr(one.header.get(keyword), "append"):
            held = list(one.header.get(keyword))
        if not any(_same(str(each), value, vr_of(keyword)) for each in held):
            return False
    return True


def _same(held: str, value: str, vr: str) -> bool:
    if vr in ("DA", "TM", "DT") and "-" in value:
        low, _, high = value.partition("-")
        return (not low or held >= low) and (not high or held[: len(high)] <= high)
    if vr == "UI":
        return held in re.split(r"[,\\]", value)
    pattern = value.replace("[", "[[]")
    if vr == "PN":
        return fnmatch.fnmatchcase(held.casefold(), pattern.casefold())
    return fnmatch.fnmatchcase(held.strip(), pattern)
