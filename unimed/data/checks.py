"""Validation of data sets: what is wrong with one, found before training starts instead of during it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unimed.data.contracts import contract_problems
from unimed.data.readers import unibiomed as biomed_tree
from unimed.data.readers.records import RecordDataset, RecordError, check_counts, read_records
from unimed.structures import Sample
from unimed.tokens import IMAGE_PLACEHOLDER, SEG_TOKEN

#: Notes by which a set declares that a test image shares its slide or template with training.
DECLARED = ("same slide", "same template")
KINDS = ("missing file", "mask", "count mismatch", "patient leakage", "duplicate", "unreadable", "unusable")


@dataclass
class Report:
    """Findings of a check. `parts` counts samples per part; `problems` are (part, kind, what); `remarks` do no harm;
    `kinds` are the columns of the table."""

    parts: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    kinds: tuple[str, ...] = KINDS

    @property
    def ok(self) -> bool:
        return not self.problems

    def table(self, most: int = 20) -> str:
        """Markdown table of counts per part, then the first `most` problems and all remarks."""
        counts = Counter((part, kind) for part, kind, _ in self.problems)
        parts = sorted({*self.parts, *(part for part, _, _ in self.problems)})
        rows = [["part", "samples", *self.kinds], ["---"] * (2 + len(self.kinds))]
        rows += [[p, str(self.parts.get(p, 0)), *(str(counts[p, kind]) for kind in self.kinds)] for p in parts]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines += [f"problem: {part}: {kind}: {what}" for part, kind, what in self.problems[:most]]
        if len(self.problems) > most:
            lines.append(f"... and {len(self.problems) - most} more")
        return "\n".join(lines + [f"remark: {remark}" for remark in self.remarks])


def check(
    root: str | Path,
    patient_pattern: str | None = None,
    limit: int | None = None,
    collate: Callable[[list[Sample]], object] | None = None,
) -> Report:
    """Check a folder in the record format or a tree of UniBiomed's sets, told apart by what is in it.

    Args:
        patient_pattern: for trees, which carry no patient ids: a regular expression whose first matching group (or
            whole match, without groups) is the patient in a file name.
        limit: for trees: look at the first so many records of each part only.
        collate: makes a batch of a list of samples; every sample goes through it alone, so that what training would
            find unusable is found here. Without it only what no model can use is found (see `sample_problems`).

    Raises:
        FileNotFoundError: no such folder, or nothing in it that is known.
    """
    root = Path(root)
    if any((root / "records").glob("*.jsonl")):
        return check_records(root, collate)
    if root.is_dir() and biomed_tree.sets_below(root):
        return check_tree(root, patient_pattern, limit, collate)
    raise FileNotFoundError(
        f"{root}: neither records/*.jsonl nor a train.json, test.json, train_parse.json or meta_train.json below it"
    )


def check_records(root: Path, collate=None) -> Report:
    """Check every split of a folder in the record format."""
    report, patients, contents = Report(), defaultdict(dict), defaultdict(set)
    owners: dict[str, str] = {}
    noted: list[tuple[str, str]] = []
    for path in sorted((root / "records").glob("*.jsonl")):
        split = path.stem
        try:
            records = read_records(path)
        except RecordError as error:
            report.problems.append((split, "unreadable", str(error)))
            continue
        report.parts[split] = len(records)
        dataset = RecordDataset(path) if records else ()
        asked = Counter()
        for index, record in enumerate(records):
            if (owner := owners.setdefault(record["id"], split)) != split:
                report.problems.append((split, "duplicate", f"id {record['id']} is also in {owner}"))
            if stated := _other_split(record.get("split"), split):
                what = f"record {record['id']} says split {stated!r} but lies in {path.name}, by which it is used"
                report.problems.append((split, "patient leakage", f"{what}; move it, or correct the field"))
            try:
                check_counts(record)
            except RecordError as error:
                report.problems.append((split, "count mismatch", str(error)))
                continue
            try:
                sample = dataset[index]
            except biomed_tree.DATA_ERRORS as error:
                report.problems.append((split, _kind_of(error), str(error)))
                continue
            noted += [(split, one) for one in take_remarks(dataset)]
            report.problems += [(split, "count mismatch", what) for what in _span_problems(sample)]
            report.problems += [(split, "unusable", what) for what in sample_problems(sample, collate)]
            image = record.get("image") or record["volume"]
            asked[image, record["question"], record["answer"]] += 1
            contents[_digest(sample)].add((split, image))
            _note_patient(patients, split, record)
        for (image, question, _), count in asked.items():
            if count > 1:
                report.problems.append((split, "duplicate", f"{image} is asked {count} times: {question}"))
    _add_leaks(report, patients)
    _add_repeats(report, contents)
    report.remarks += grouped(noted)
    return report


def patient_leaks(splits: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Which patients are in several splits, each told by a record of it per split; no file is opened.

    Args:
        splits: name ("train", "val", "test") -> its records.
    """
    report, patients = Report(), defaultdict(dict)
    for split, records in splits.items():
        for record in records:
            _note_patient(patients, split, record)
    _add_leaks(report, patients)
    return [what for _, _, what in report.problems]


def _note_patient(patients: dict[str, dict[str, tuple[bool, str]]], split: str, record: Mapping) -> None:
    if record.get("patient_id"):
        declared = any(word in (record.get("note") or "") for word in DECLARED)
        known, first = patients[record["patient_id"]].get(split, (True, f"record {record['id']}"))
        patients[record["patient_id"]][split] = known and declared, first


def _other_split(stated, split: str) -> str:
    """The split a record states, where it is another than that of its file."""
    usual = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
             "test": "test", "testing": "test", "aux": "aux"}  # fmt: skip
    meant, used = usual.get(str(stated or "").strip().lower()), usual.get(split.lower())
    return str(stated) if meant and used and meant != used else ""


def check_tree(root: Path, patient_pattern: str | None = None, limit: int | None = None, collate=None) -> Report:
    """Check every set below the root of a tree, both splits."""
    report, noted = Report(), []
    for folder, form in biomed_tree.sets_below(root):
        patients, contents = defaultdict(dict), defaultdict(set)
        part_of_folder = str(folder.relative_to(root)) if folder != root else folder.name
        for split in ("train", "test"):
            part = f"{part_of_folder} {split}"
            try:
                dataset = biomed_tree.dataset_for(folder, form, split, limit)
            except biomed_tree.DATA_ERRORS as error:
                kind = "count mismatch" if "pairs" in str(error) else _kind_of(error)
                report.problems.append((part, kind, str(error)))
                continue
            if dataset is None:
                continue
            report.parts[part] = len(dataset)
            seen = Counter()
            for index in range(len(dataset)):
                try:
                    sample = dataset[index]
                except biomed_tree.DATA_ERRORS as error:
                    report.problems.append((part, _kind_of(error), str(error)))
                    continue
                name = _image_name(dataset.items[index], form)
                noted += [(part, one) for one in take_remarks(dataset)]
                report.problems += [(part, "unusable", what) for what in sample_problems(sample, collate)]
                wrong = [*_span_problems(sample), *_count_problems(sample)]
                report.problems += [(part, "count mismatch", what) for what in wrong]
                masks = [r.mask.tobytes() for r in sample.regions if r.mask is not None]
                seen[name, sample.conversation, hashlib.sha256(b"".join(masks)).hexdigest()] += 1
                contents[_digest(sample)].add((split, name))
                if patient_pattern and (found := re.search(patient_pattern, name)):
                    patient = next((g for g in found.groups() if g), found.group(0))
                    patients[patient].setdefault(split, (False, name))
            for (name, _, _), count in seen.items():
                if count > 1:
                    report.problems.append((part, "duplicate", f"{name} with the same mask and text {count} times"))
        _add_leaks(report, patients, f"{part_of_folder} test")
        _add_repeats(report, contents, part=f"{part_of_folder} test")
    report.remarks += grouped(noted)
    if patient_pattern is None:
        report.remarks.append(
            "patients cannot be told from this tree; give --patient-pattern, a regular expression with one group"
        )
    return report


def check_datasets(datasets: Mapping[str, Sequence], collate=None) -> Report:
    """Check data sets of any kind by what they give.

    Args:
        datasets: part ("train", "val", "test", or one of them and a name) -> data set.
        collate: see `check`.
    """
    report, noted = Report(), []
    patients: dict[str, dict] = defaultdict(dict)
    contents: dict[str, set] = defaultdict(set)
    for part, dataset in datasets.items():
        split = part.split()[0]
        report.parts[part], names = len(dataset), Counter()
        for index in range(len(dataset)):
            try:
                sample = dataset[index]
            except Exception as error:  # whatever a reader raises is a broken sample in training
                report.problems.append((part, _kind_of(error), f"[{index}]: {error}"))
                continue
            noted += [(part, one) for one in take_remarks(dataset)]
            if wrong := contract_problems(sample):
                report.problems += [(part, "unusable", f"[{index}]: {what}") for what in wrong]
                continue
            names[sample.sample_id] += 1
            report.problems += [(part, "unusable", what) for what in sample_problems(sample, collate)]
            if sample.patient_id:
                patients[sample.patient_id].setdefault(split, (False, sample.sample_id))
            if sample.images:
                contents[_digest(sample)].add((split, sample.sample_id))
        for name, count in names.items():
            if count > 1:
                report.problems.append((part, "duplicate", f"{count} samples are called {name}"))
    _add_leaks(report, patients)
    _add_repeats(report, contents)
    report.remarks += grouped(noted)
    return report


def sample_problems(sample: Sample, collate: Callable[[list[Sample]], object] | None = None) -> list[str]:
    """Why a sample cannot become a batch: what no model can use, and what `collate` says of it alone."""
    found = []
    for role, text in sample.conversation:
        if role == "user" and not text.replace(IMAGE_PLACEHOLDER, "").strip():
            found.append("the question is empty")
        if text.count(IMAGE_PLACEHOLDER) > 1:
            found.append(f"{IMAGE_PLACEHOLDER} stands more than once in a text; one image per question")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found.append(f"half of a surrogate pair at character {error.start} of {text[:40]!a}; repair the text")
    for image in sample.images:
        if image.dtype.kind not in "iufb" or image.size == 0 or image.ndim not in (2, 3):
            found.append(f"an image of {image.dtype} {image.shape} is none")
        elif image.dtype.kind == "f" and not np.isfinite(image).all():
            found.append("the image holds NaN or Inf")
    if collate is not None and not found:
        try:
            collate([sample])
        except Exception as error:  # what ends here would be a broken sample in training
            message = str(error).removeprefix(f"sample {sample.sample_id}: ")
            found.append(message if message != str(error) else f"{type(error).__name__}: {error}")
    return [f"{sample.sample_id}: {one}" for one in found]


def take_remarks(dataset) -> list[str]:
    """What a reader noted since the last call."""
    noted = getattr(dataset, "remarks", None)
    taken = list(noted or ())
    if noted:
        noted.clear()
    return taken


def grouped(noted: Sequence[tuple[str, str]]) -> list[str]:
    """Remarks of one kind as one line: how many, and the first."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for part, text in noted:
        where, _, what = text.rpartition(": ") if text.count(": ") < 2 else _split_remark(text)
        kinds[part, re.sub(r"\d+(, \d+)*", "N", what)].append(f"{where}: {what}")
    return [
        f"{part}: {texts[0]}" + (f" (and {len(texts) - 1} more of this kind)" if len(texts) > 1 else "")
        for (part, _), texts in kinds.items()
    ]


def _split_remark(text: str) -> tuple[str, str, str]:
    """ "record a: mask b.png: what it is" cut before the last part that is a sentence of its own."""
    head, mark, tail = text.partition(": ")
    second, mark, what = tail.partition(": ")
    return (f"{head}: {second}", mark, what) if head.startswith("record ") else (head, ": ", tail)


def _image_name(item, form: str) -> str:
    if form == "volume":
        return item[0]
    if form == "radgenome":
        return item[1]["image_file"]
    return item[1] if isinstance(item[1], str) else item[1]["file_name"]


def _kind_of(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing file"
    return (
        "mask"
        if "mask" in str(error) and any(part in str(error) for part in ("empty", " is (", "not in the grid"))
        else "unreadable"
    )


def _digest(sample: Sample) -> str:
    image = sample.images[0]
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()


def _span_problems(sample: Sample) -> Iterable[str]:
    answer = sample.conversation[-1][1]
    for region in sample.regions:
        if region.phrase_span is not None:
            start, end = region.phrase_span
            if not 0 <= start < end <= len(answer) or answer[start:end].lower() != region.phrase.lower():
                yield f"{sample.sample_id}: phrase_span {region.phrase_span} does not spell {region.phrase!r}"


def _count_problems(sample: Sample) -> Iterable[str]:
    tokens = sample.conversation[-1][1].count(SEG_TOKEN)
    masks = sum(region.mask is not None for region in sample.regions)
    masks = 0 if sample.labels.get("task") == "region" else masks
    if tokens != masks:
        yield f"{sample.sample_id}: {tokens} {SEG_TOKEN} in the answer for {masks} masks; write one per mask"


def _add_leaks(report: Report, patients: dict[str, dict[str, tuple[bool, str]]], part: str | None = None) -> None:
    """Patients in more than one split, told by a record of each: ids of patients are nobody's business in a terminal.

    Args:
        patients: id -> split -> (is it declared in the records, a record or file of it). `aux` is never scored and does
            not count.
    """
    declared = 0
    for splits in patients.values():
        scored = sorted(set(splits) - {"aux"})
        if len(scored) < 2:
            continue
        if all(splits[split][0] for split in scored if split != "train"):
            declared += 1
            continue
        places = ", ".join(f"{split}: {splits[split][1]}" for split in scored)
        what = f"one patient is in {', '.join(scored)} ({places})"
        report.problems.append((part or scored[-1], "patient leakage", what))
    if declared:
        report.remarks.append(f"{declared} sources are in several splits and their records say so in `note`")


def _add_repeats(report: Report, contents: dict[str, set], part: str | None = None) -> None:
    """Images with identical pixels in more than one split."""
    for places in contents.values():
        splits = {split for split, _ in places} - {"aux"}
        if len(splits) > 1:
            names = ", ".join(sorted(f"{split}: {name}" for split, name in places)[:3])
            report.problems.append((part or "test", "duplicate", f"identical pixels in several splits: {names}"))
