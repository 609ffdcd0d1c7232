"""Licenses of the parts of a model or data set, and which of them binds most.

A folder of a model says in `sources.json` what it was made of: weights it started from, data it was trained on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unimed.data.readers.records import read_records
from unimed.files import read_json, write_report

#: File in the folder of a model that names its parts.
NAME = "sources.json"
UNKNOWN = "not stated"
#: From free to closed: (what it asks for, words that say so). Of several that fit, the last one counts.
TERMS: tuple[tuple[str, str], ...] = (
    ("nothing", r"\bcc0\b|public domain|unlicense|none needed"),
    ("notice", r"\bmit\b|\bbsd\b|apache|\bisc\b|zlib|use and redistribution permitted|mozilla|\bmpl\b"),
    ("attribution", r"cc[ -]by\b|free use with citation"),
    ("the same license for what is derived", r"cc[ -]by[ -](nc[ -])?sa|\bl?gpl|\bagpl|odbl"),
    ("no derivatives", r"cc[ -]by[ -](nc[ -])?nd"),
    ("no commercial use", r"[ -]nc\b|non-?commercial|research (use|only)|academic"),
    ("an agreement with its owner",
     r"physionet|credentialed|use agreement|owner|\bown\b|internal|gated|community license|hai-def|gemma|llama"),
    ("its terms to be found out first",
     r"not stated|not declared|none stated|per source|see the homepage|unknown|that of each"),
)  # fmt: skip

#: Identifiers of the hub for licenses that leave no question open.
HUB_LICENSES = frozenset(
    "apache-2.0 mit bsd-3-clause bsd-2-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 "
    "cc-by-nc-nd-4.0".split()
)


@dataclass(frozen=True)
class Source:
    """A part that a model is made of.

    Args:
        part: what it is in the model, such as "mask decoder" or "training data".
        name: of the package, file, folder or data set; never a path.
        license: as its owner words it, or `UNKNOWN`.
        detail: version, layout, counts.
    """

    part: str
    name: str
    license: str = UNKNOWN
    detail: str = ""


def asks_for(license_text: str) -> tuple[int, str]:
    """(rank from free to closed, what is asked for) of the words of a license; words nobody here knows rank last."""
    text = license_text.strip().lower()
    found = [rank for rank, (_, words) in enumerate(TERMS) if re.search(words, text)]
    rank = max(found, default=len(TERMS) - 1)
    return rank, TERMS[rank][0]


def strictest(licenses: Iterable[str]) -> str:
    """The license that binds most; `UNKNOWN` where there is none at all."""
    return max(licenses, key=lambda text: (asks_for(text)[0], text), default=UNKNOWN)


def hub_license(license_text: str) -> str:
    """The identifier that hubs have for a license; "other" where they have none."""
    wanted = re.sub(r"[ _]+", "-", license_text.strip().lower())
    return wanted if wanted in HUB_LICENSES else "other"


def read_sources(folder: str | Path) -> list[Source]:
    """Parts of the model in a folder; empty where nobody wrote them down.

    Raises:
        ValueError: a file that `write_sources` did not write.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return []
    values = read_json(path)
    try:
        return [Source(**{key: str(value) for key, value in entry.items()}) for entry in values["sources"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a list of sources ({error}); remove it") from error


def write_sources(folder: str | Path, sources: Sequence[Source]) -> Path:
    """Write `sources.json`; a source that is listed twice is kept once."""
    return write_report(Path(folder) / NAME, {"sources": [asdict(one) for one in dict.fromkeys(sources)]})


def packaged(part: str, package: str) -> Source:
    """A part whose weights come inside a package of the manifest."""
    from unimed.data.packages import manifest

    pinned = manifest()[package]
    return Source(part, package, pinned.license, f"version {pinned.version}, sha256 {pinned.sha256[:12]}")


def published(part: str, path: str | Path, detail: str = "") -> Source:
    """A part read from a published file or folder; its license is that of the model card beside it."""
    path = Path(path)
    card = (path if path.is_dir() else path.parent) / "README.md"
    stated = _front_matter(card).get("license_name") or _front_matter(card).get("license") if card.is_file() else None
    return Source(part, path.name, str(stated or UNKNOWN), detail)


def _front_matter(card: Path) -> dict:
    from huggingface_hub import metadata_load

    try:
        return metadata_load(card) or {}
    except Exception:  # a card that is no YAML says nothing
        return {}


def data_source(folder: str | Path, split: str = "train") -> Source:
    """A prepared set as a part: counts of a split, and the licenses that its records state."""
    folder = Path(folder)
    counted: Counter[str] = Counter()
    file = folder / "records" / f"{split}.jsonl"
    if file.is_file():
        counted.update(str(row.get("license", row.get("licence")) or UNKNOWN) for row in read_records(file))
    elif (folder / "dataset.json").is_file():
        counted.update(map(str, json.loads((folder / "dataset.json").read_text(encoding="utf-8")).get("licenses", ())))
    total = sum(counted.values())
    licenses = sorted(counted, key=lambda text: (-asks_for(text)[0], text))
    detail = f"{total} records of {split}" if file.is_file() else ""
    return Source(f"{split}ing data" if split == "train" else f"{split} data", folder.name,
                  "; ".join(licenses) or UNKNOWN, detail)  # fmt: skip
