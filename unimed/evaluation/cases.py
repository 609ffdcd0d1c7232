"""The one row schema of every evaluation: a case and a target on one line, whichever scorer wrote it.

A row is a plain dict. Its first columns are those of `COLUMNS`; then come values of registered metrics under their
names, counts (`predicted_voxels`, `truth_voxels`, `predicted_boxes`, ...), what was said (`predicted`, `truth`), and
flags (`present`, `answered`, `superfluous`, `correct`). Files written before this schema are read through `ALIASES`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from unimed.structures import Sample

#: Columns every row begins with; "" where a scorer knows nothing. `group` is the patient, hashed with the salt of the
#: project.
COLUMNS = ("case", "group", "dataset", "modality", "task", "target", "kind")
#: What a row is about.
KINDS = ("mask", "box", "phrase", "presence", "answer", "text", "instances", "challenge", "class", "consistency",
         "retrieval")  # fmt: skip
#: Columns of older files -> their names here.
ALIASES = {
    "case_id": "case",
    "set": "dataset",
    "image": "case",
    "expression": "target",
    "painted": "predicted_voxels",
    "predicted_pixels": "predicted_voxels",
    "truth_pixels": "truth_voxels",
    "said": "predicted",
    "existence": "presence",
    "probability": "presence",
    "painted_on_absent": "predicted_on_absent",
    "painted_where_absent": "predicted_on_absent",
}
SALT_FILE = ".patient_salt"
SALT_VARIABLE = "UNIMED_PATIENT_SALT"
#: Rows of one process belong together even where no project was named; nobody can link them to another file.
_of_this_process = secrets.token_bytes(16)
#: Gives the salt when the first patient is hashed: a project whose scoring fails leaves no file behind.
_salt: contextvars.ContextVar[Callable[[], bytes]] = contextvars.ContextVar("salt")


def case_row(
    case: str,
    kind: str,
    *,
    patient: str = "",
    dataset: str = "",
    modality: str = "",
    task: str = "",
    target: str = "",
    **values,
) -> dict:
    """One row.

    Args:
        case: name of the sample, volume or image.
        kind: one of `KINDS`.
        patient: what its rows are resampled by; only its hash is kept. By default the case.
        target: what was looked for, lower case.
        values: metric values, counts, texts and flags, in the order in which they are to be shown.

    Raises:
        ValueError: an unknown kind, or a value under the former name of a column.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of row {kind!r}; known are {', '.join(KINDS)}")
    if former := [name for name in values if name in ALIASES]:
        raise ValueError(f"{former[0]!r} is the former name of {ALIASES[former[0]]!r}; rows use the latter")
    group = patient_group(patient or case)
    first = (str(case), group, dataset, modality, task, str(target), kind)
    return dict(zip(COLUMNS, first, strict=True)) | values


def sample_row(sample: Sample, kind: str, target: str = "", **values) -> dict:
    """`case_row` of a sample: its id, patient, source, modality and task, and the site where it has one."""
    site = str(sample.labels.get("site") or "")
    return case_row(
        sample.sample_id,
        kind,
        patient=sample.patient_id,
        dataset=str(sample.labels.get("benchmark") or sample.source or ""),
        modality=sample.modality,
        task=str(sample.labels.get("task") or ""),
        target=target.lower(),
        **({"site": site} if site else {}),
        **values,
    )


def renamed(row: Mapping) -> dict:
    """A row of any age with the names of today beside its own; a name that is there already keeps its value."""
    result = dict(row)
    for name, value in row.items():
        result.setdefault(ALIASES.get(name, name.replace("doubt_", "uncertainty_", 1)), value)
    return result


def patient_group(patient: str) -> str:
    """16 hex digits that stand for a patient within a project: a keyed hash, which cannot be undone by trying ids."""
    salt = os.environ.get(SALT_VARIABLE, "").encode() or _salt.get(lambda: _of_this_process)()
    return hmac.new(salt, str(patient).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]


@contextlib.contextmanager
def project(folder: str | Path):
    """Patients are hashed with the salt of the project that `folder` belongs to; see `project_salt`."""
    token = _salt.set(functools.cache(lambda: project_salt(folder)))
    try:
        yield
    finally:
        _salt.reset(token)


def project_salt(folder: str | Path) -> bytes:
    """The salt of a project, made on first use: `.patient_salt` in the folder or the nearest one above it.

    A new one is put into the folder called `work_dirs` that `folder` lies in, so that all runs of a project share it,
    else into `folder` itself. It is read by its owner alone. Rows of two projects cannot be linked without it; the
    environment variable `UNIMED_PATIENT_SALT` takes its place where it is set.

    Raises:
        ValueError: a salt file that is too short to hide anything.
    """
    folder = Path(folder).absolute()
    for place in (folder, *folder.parents):
        path = place / SALT_FILE
        if path.is_file():
            salt = path.read_text(encoding="ascii").strip().encode()
            if len(salt) < 16:
                raise ValueError(f"{path}: a salt needs at least 16 characters; remove the file to have one made")
            return salt
    home = next((place for place in (folder, *folder.parents) if place.name == "work_dirs"), folder)
    home.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=home, prefix=SALT_FILE)  # read by its owner alone
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(16) + "\n")
    try:
        os.link(temporary, home / SALT_FILE)
    except FileExistsError:
        pass  # another process was faster; there is one salt
    finally:
        os.unlink(temporary)
    return (home / SALT_FILE).read_text(encoding="ascii").strip().encode()
