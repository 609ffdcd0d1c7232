"""The thirteen sources: what lies in the user's folder, and how it becomes pairs of an image and its captions."""

from __future__ import annotations

import ast
import csv
import gzip
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unimed.files import read_json, read_json_lines, resolve_inside

Captioner = Callable[..., tuple[str, ...]]


class SourceError(ValueError):
    """A source that cannot be read; the message names file, line and remedy."""


@dataclass(frozen=True)
class Pair:
    """An image file and what is said of it. `report` is a text of its own besides the captions (MIMIC-CXR)."""

    image: Path
    captions: tuple[str, ...]
    label: str = ""
    report: str | None = None


@dataclass(frozen=True)
class Source:
    """A training source. `read(root, captioner, published)` yields its pairs in a fixed order."""

    name: str
    modality: str
    needs: str  # what the user's folder must hold
    read: Callable[[Path, Captioner, bool], Iterator[Pair]]
    tag: str = ""  # joins several captions in the published layout
    options: dict = field(default_factory=dict)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str], list[str]]]:
    """(line, row by name, row by position) of a CSV, gzipped or not; a nameless first column is dropped."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        head = next(reader, None)
        if head is None:
            raise SourceError(f"{path}: the file is empty")
        skip = 1 if head[0].strip() in ("", "Unnamed: 0") else 0
        for row in reader:
            if row:
                yield reader.line_num, dict(zip(head, row, strict=False)), row[skip:]


def _list(text: str, where: str) -> list[str]:
    """A Python list of strings as text, read without running it; other text is a list of itself."""
    text = text.strip()
    if not text.startswith("["):
        return [text] if text else []
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise SourceError(f"{where}: not a list of strings ({text[:60]!r})") from error
    return [str(value) for value in values]


def _find(root: Path, *names: str) -> Path | None:
    """The first of these names in the folder, directly or in `annotations/`; a pattern may hold `*`."""
    for name in names:
        for folder in (root, root / "annotations"):
            found = sorted(folder.glob(name)) if folder.is_dir() else []
            if found:
                return found[0]
    return None


def _need(root: Path, *names: str) -> Path:
    found = _find(root, *names)
    if found is None:
        raise SourceError(f"{root}: none of {', '.join(names)} is there")
    return found


def _inside(root: Path, name: str, where: str) -> Path:
    """`root/name`; a name that leads out of the folder is refused, also by a link."""
    # Published tables write "/images/a.jpg" for a file of the folder.
    return resolve_inside(root, str(name).lstrip("/"), where=where, error=SourceError)


# -- files with captions, as published -------------------------------------------------------------------------------
def _captioned(*names: str, with_report: bool = False):
    def read(root: Path, captioner, published: bool) -> Iterator[Pair]:
        path = _need(root, *names)
        for line, _, row in _rows(path):
            where = f"{path}:{line}"
            if len(row) < 3:
                raise SourceError(f"{where}: expected path, labels and captions, found {len(row)} columns")
            image = _inside(root, (_list(row[0], where) or [""])[0], where)
            report = row[3].strip() if with_report and len(row) > 3 else None
            yield Pair(image, tuple(_list(row[2], where)), ", ".join(_list(row[1], where)), report)

    return read


def _openi(root: Path, captioner, published: bool) -> Iterator[Pair]:
    path, refined = _need(root, "filter_cap.json"), _find(root, "openai_refined_concepts.json")
    entries = read_json(path, error=SourceError)["annotations"]
    more = read_json(refined, error=SourceError)["refined_captions"] if refined else [[]] * len(entries)
    if len(more) != len(entries):
        raise SourceError(f"{refined}: {len(more)} refined captions for {len(entries)} images of {path.name}")
    for number, (entry, others) in enumerate(zip(entries, more, strict=True)):
        name = str(entry["image_id"])
        name = name if Path(name).suffix else name + ".png"
        yield Pair(_inside(root, name, f"{path}: entry {number}"), (entry["caption"], *others))


def _plain(name: str, image: Callable[[dict, list[str]], str], caption: Callable[[dict, list[str]], str]):
    def read(root: Path, captioner, published: bool) -> Iterator[Pair]:
        path = _need(root, name)
        if path.suffix in (".json", ".jsonl"):
            if path.suffix == ".json":
                entries = enumerate(read_json(path, error=SourceError), 1)
            else:
                entries = read_json_lines(path, error=SourceError)
            rows = ((number, entry, []) for number, entry in entries)
        else:
            rows = _rows(path)
        for line, by_name, by_place in rows:
            where = f"{path}:{line}"
            try:
                file, text = image(by_name, by_place), caption(by_name, by_place)
            except (KeyError, IndexError, TypeError) as error:
                raise SourceError(f"{where}: the field {error} is missing") from error
            text = "" if text is None or str(text).strip().lower() == "nan" else str(text).strip()
            yield Pair(_inside(root, file, where), (text,) if text else ())

    return read


def _llava_instruct(root: Path, captioner, published: bool) -> Iterator[Pair]:
    """Figure captions and the first place in the text that mentions the figure; published: as separate samples."""
    path = _need(root, "llava_med_instruct_fig_captions.json")
    table = read_json(path, error=SourceError)
    mentions = []
    for places in table["in_text_mention"]:
        tokens = places[0]["tokens"] if places else ""
        mentions.append((tokens if isinstance(tokens, str) else " ".join(tokens)).strip())
    files = [_inside(root, f"images/{name}.jpg", str(path)) for name in table["pair_id"]]
    captions = [str(caption).strip() for caption in table["fig_caption"]]
    if published:
        yield from (Pair(file, (caption,)) for file, caption in zip(files, captions, strict=True))
        yield from (Pair(file, (text,)) for file, text in zip(files, mentions, strict=True) if text)
        return
    for file, *texts in zip(files, captions, mentions, strict=True):
        yield Pair(file, tuple(text for text in texts if text))


# -- retina ----------------------------------------------------------------------------------------------------------
#: Files of the collection that are sources of their own, or were replaced by other files.
RETINA_SKIPPED = ("06_DEN", "39_MM_Retinal_dataset", "28_OIA-DDR_revised", "07_LAG_revised", "01_EYEPACS_revised")


def _retina(root: Path, captioner, published: bool) -> Iterator[Pair]:
    folder = root / "annotations" if (root / "annotations").is_dir() else root
    files = [path for path in sorted(folder.glob("*.csv")) if path.stem not in RETINA_SKIPPED]
    if not files:
        raise SourceError(f"{folder}: no CSV file of a retina data set is there")
    for path in files:
        for line, row, _ in _rows(path):
            where = f"{path}:{line}"
            name = row.get("filename") or row.get("image")
            if not name:
                raise SourceError(f"{where}: neither filename nor image is given")
            image = _inside(root, name, where)
            if not image.is_file():
                below = _inside(root, f"{path.stem}/{name}", where)
                image = below if below.is_file() else image
            labels = _list(row.get("categories") or "", where)
            if row.get("captions"):
                sentences = _list(row.get("sentence_level_captions") or "", where)
                captions = (*_list(row["captions"], where)[:10], *sentences[:1])
            else:
                captions = captioner("fundus", labels)
            yield Pair(image, captions, ", ".join(labels))


def _den(root: Path, captioner, published: bool) -> Iterator[Pair]:
    path = _need(root, "06_DEN.csv")
    for line, row, _ in _rows(path):
        where = f"{path}:{line}"
        labels = _list(row.get("categories") or "", where)
        findings = [label for label in labels if "year" not in label and "//" not in label]
        image = _inside(root, row.get("image") or row.get("filename") or "", where)
        if published:
            drawn = random.Random(line).choice(labels) if labels else ""
            caption = f"The fundus image of {findings[-1]}" if findings else drawn
            yield Pair(image, (caption,) if caption else (), ", ".join(findings))
        else:
            yield Pair(image, captioner("fundus", findings) if findings else (), ", ".join(findings))


# -- the original data sets, labels only -----------------------------------------------------------------------------
def _or_labels(captioned, labels, *names: str):
    """Captions from the annotation file where it is there, else made from the labels of the original data set."""

    def read(root: Path, captioner, published: bool) -> Iterator[Pair]:
        yield from (captioned if _find(root, *names) else labels)(root, captioner, published)

    return read


CHEXPERT_FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip


def _chexpert_labels(root: Path, captioner, published: bool) -> Iterator[Pair]:
    """`train.csv` of CheXpert: frontal views; findings marked 1. Uncertain ones (-1) are not spoken of."""
    path = _need(root, "train.csv")
    for line, row, _ in _rows(path):
        if row.get("Frontal/Lateral", "Frontal") != "Frontal":
            continue
        labels = [name for name in CHEXPERT_FINDINGS if row.get(name) in ("1", "1.0")]
        name = re.sub(r"^CheXpert-v1\.0(-small)?/", "", row["Path"])
        yield Pair(_inside(root, name, f"{path}:{line}"), captioner("chest x-ray", labels), ", ".join(labels))


def _nih_labels(root: Path, captioner, published: bool) -> Iterator[Pair]:
    """`Data_Entry_2017*.csv` of NIH ChestX-ray; images in `images/` or `images_001/images/` and so on."""
    path = _need(root, "Data_Entry_2017*.csv")
    folders = [p for p in (root / "images", *sorted(root.glob("images_*/images"))) if p.is_dir()]
    places = {file.name: str(file.relative_to(root)) for folder in folders for file in folder.iterdir()}
    for line, row, _ in _rows(path):
        labels = row["Finding Labels"].split("|")
        name = places.get(row["Image Index"], f"images/{row['Image Index']}")
        file = _inside(root, name, f"{path}:{line}")
        yield Pair(file, captioner("chest x-ray", labels), ", ".join(labels))


def _radimagenet_labels(root: Path, captioner, published: bool) -> Iterator[Pair]:
    """Folders `MODALITY/ANATOMY/FINDING/*.png`, as RadImageNet is delivered."""
    files = sorted(p for p in root.glob("*/*/*/*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise SourceError(f"{root}: no images MODALITY/ANATOMY/FINDING/*.png, and no annotation file")
    for file in files:
        file = _inside(root, str(file.relative_to(root)), str(root))
        modality, place, finding = file.relative_to(root).parts[:3]
        words = {"modality": modality, "place": place.replace("_", " ")}
        label = f"{modality}, {words['place']}, {finding.replace('_', ' ')}"
        yield Pair(file, captioner("radiology", [finding.replace("_", " ")], words), label)


def _mimic_labels(root: Path, captioner, published: bool) -> Iterator[Pair]:
    """`mimic-cxr-2.0.0-chexpert.csv[.gz]` and `-metadata`; frontal views; reports `files/p10/p1.../s....txt`."""
    path, metadata = _need(root, "mimic-cxr-2.0.0-chexpert.csv*"), _need(root, "mimic-cxr-2.0.0-metadata.csv*")
    labels = {}
    for _, row, _ in _rows(path):
        found = [name for name in CHEXPERT_FINDINGS if row.get(name) in ("1", "1.0")]
        labels[row["subject_id"], row["study_id"]] = found
    for line, row, _ in _rows(metadata):
        subject, study = row["subject_id"], row["study_id"]
        if row.get("ViewPosition") not in ("PA", "AP") or (subject, study) not in labels:
            continue
        folder = f"files/p{subject[:2]}/p{subject}/s{study}"
        report = _inside(root, f"{folder}.txt", f"{metadata}:{line}")
        found = labels[subject, study]
        yield Pair(
            _inside(root, f"{folder}/{row['dicom_id']}.jpg", f"{metadata}:{line}"),
            captioner("chest x-ray", found),
            ", ".join(found),
            findings_of(report.read_text(encoding="utf-8", errors="replace")) if report.is_file() else "",
        )


def findings_of(report: str) -> str:
    """Findings and impression of a radiology report in one line; the whole text where it has neither heading."""
    parts = []
    for word in ("FINDINGS", "IMPRESSION"):
        found = re.search(rf"{word}\s*:\s*(.*?)(?=\n\s*[A-Z][A-Z ]+:|\Z)", report, re.DOTALL)
        if found and found.group(1).strip():
            parts.append(f"{word}: {' '.join(found.group(1).split())}")
    return " ".join(parts) or " ".join(report.split())


_CHEXPERT = "chexpert_with_captions_only_frontal_view.csv"
_NIH = "Chest-Xray8_with_captions.csv"
_RAD = "radimagenet_with_captions_training_set.csv"
_MIMIC = "mimic_cxr_with_captions_and_reports_only_frontal_view.csv"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("radimagenet", "CT, MRI, ultrasound", f"{_RAD}, or folders MODALITY/ANATOMY/FINDING",
               _or_labels(_captioned(_RAD), _radimagenet_labels, _RAD), "_radimagenet_", {"strip": False}),
        Source("chexpert", "X-ray", f"{_CHEXPERT}, or CheXpert's train.csv",
               _or_labels(_captioned(_CHEXPERT), _chexpert_labels, _CHEXPERT), "_chexpert_"),
        Source("openi", "X-ray", "filter_cap.json and openai_refined_concepts.json", _openi, "_openi_"),
        Source("chest_xray8", "X-ray", f"{_NIH}, or NIH's Data_Entry_2017.csv",
               _or_labels(_captioned(_NIH), _nih_labels, _NIH), "_chestxray8_"),
        Source("mimic_cxr", "X-ray", f"{_MIMIC}, or mimic-cxr-2.0.0-chexpert.csv and -metadata.csv",
               _or_labels(_captioned(_MIMIC, with_report=True), _mimic_labels, _MIMIC), "_mimiccxr_",
               {"report": True}),
        Source("rocov2", "mixed radiology", "train_captions.csv (ID, Caption); images ID.jpg or train/ID.jpg",
               _plain("train_captions.csv", lambda r, _: f"{r['ID']}.jpg", lambda r, _: r["Caption"]),
               options={"folders": ("", "train", "images")}),
        Source("pmc_oa", "mixed", "pmc_oa.jsonl (image, caption)",
               _plain("pmc_oa.jsonl", lambda r, _: r["image"], lambda r, _: r["caption"]),
               options={"folders": ("", "images", "caption_T060_filtered_top4_sep_v0_subfigures")}),
        Source("llava_med_alignment", "mixed", "llava_med_alignment_500k_filtered.json",
               _plain("llava_med_alignment_500k_filtered.json", lambda r, _: r["image"],
                      lambda r, _: r["conversations"][1]["value"]), options={"folders": ("", "images")}),
        Source("llava_med_instruct", "mixed", "llava_med_instruct_fig_captions.json, images/",
               _llava_instruct, options={"folders": ("",)}),
        Source("quilt_1m", "histopathology", "quilt_1M_lookup.csv (caption, image path)",
               _plain("quilt_1M_lookup.csv", lambda r, p: r.get("image_path") or p[1],
                      lambda r, p: r.get("caption") or p[0]), options={"folders": ("", "images", "quilt_1m")}),
        Source("retina_part1", "fundus", "one CSV per data set (filename, captions; or image, categories)", _retina,
               "_all_retina_merged_"),
        Source("retina_part2_den", "fundus", "06_DEN.csv (image, categories)", _den),
        Source("retina_part3_mm_retinal", "fundus", "39_MM_Retinal_dataset.csv (image, caption)",
               _plain("39_MM_Retinal_dataset.csv", lambda r, _: r["image"], lambda r, _: r["caption"])),
    )
}  # fmt: skip


def published_text(source: Source, pair: Pair) -> str:
    """The text of a sample as the published scripts write it, quirks included."""
    if not source.tag:
        return pair.captions[0].strip()
    strip = source.options.get("strip", True)
    fields = [(c.strip().strip(".") if strip else c) + "." for c in pair.captions]
    text = "".join(field + source.tag for field in fields)
    if source.options.get("report"):
        text += source.tag + (pair.report or "noreportpresent")
    return text


def clean_captions(pair: Pair) -> tuple[str, ...]:
    """Captions without doubled full stops, repeats and empty ones; a report stands first."""
    report = (pair.report,) if pair.report and pair.report != "noreportpresent" else ()
    captions = [re.sub(r"\.{2,}$", ".", " ".join(c.split())) for c in (*report, *pair.captions)]
    return tuple(dict.fromkeys(c for c in captions if c))
