"""Croissant: a prepared set described in JSON-LD, as MLCommons' readers and the hubs take it (version 1.0).

`croissant.json` beside `records/` names the files with their digests, licenses, and the fields of the records. Patients
stay in the records and are no field of it.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from unimed.data.readers.records import RecordError, read_records
from unimed.files import write_report
from unimed.identity import file_digest

NAME = "croissant.json"
_CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract",
    "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
    "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath",
    "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}  # fmt: skip
#: Field -> what it holds. Only those that some record has are described.
FIELDS = {
    "id": "name of the record, unique in its part",
    "task": "what is asked: referring, absent, volume, box, region, vqa, classification, caption, report",
    "question": "the question", "answer": "the answer, with [SEG] and [BOX] where it points",
    "image": "path of the image, below the folder", "volume": "path of the volume, below the folder",
    "modality": "CT, MR, X-ray, ...", "site": "body site", "source": "where the record is from",
    "license": "license of the record", "label_origin": "who or what made the labels",
}  # fmt: skip


def add_arguments(parser) -> None:
    """Add the arguments of `unimed prepare croissant`."""
    parser.add_argument("folder", help="a prepared set, with records/*.jsonl")
    parser.add_argument("--name", default="", help="of the set (default: the name of the folder)")
    parser.add_argument("--description", default="", help="one or two sentences about it")
    parser.add_argument("--license", default="", help="of the set (default: those of its records)")
    parser.add_argument("--url", default="", help="where it is published")


def run(args) -> int:
    """Write the file and say where."""
    print(write_croissant(args.folder, args.name, args.description, args.license, args.url))
    return 0


def write_croissant(
    folder: str | Path, name: str = "", description: str = "", license: str = "", url: str = ""  # noqa: A002
) -> Path:  # fmt: skip
    """Write `croissant.json` into the folder of a prepared set.

    Args:
        license: by default the licenses of the records.

    Raises:
        RecordError: no records, broken ones, or no license is known; what read_records raises.
    """
    folder = Path(folder)
    parts = {path.stem: read_records(path) for path in sorted((folder / "records").glob("*.jsonl"))}
    if not any(parts.values()):
        raise RecordError(f"{folder}: holds no records/*.jsonl; see docs/data.md")
    records = [record for rows in parts.values() for record in rows]
    licenses = sorted({str(record[key]) for record in records for key in ("license", "licence") if record.get(key)})
    if not (license or licenses):
        raise RecordError(f"{folder}: no record says its license; give it with --license")
    named = name or folder.resolve().name
    files = [
        {
            "@type": "cr:FileObject", "@id": f"{part}.jsonl", "name": f"{part}.jsonl",
            "contentUrl": f"records/{part}.jsonl", "encodingFormat": "application/jsonlines",
            "sha256": file_digest(folder / "records" / f"{part}.jsonl"),
        }
        for part in parts
    ]  # fmt: skip
    return write_report(folder / NAME, {
        "@context": _CONTEXT, "@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": named, "description": description or f"Questions about biomedical images with places: {named}.",
        "license": [license] if license else licenses, "url": url or f"urn:unimed:{quote(named)}",
        "distribution": files,
        "recordSet": [_record_set(part, rows) for part, rows in parts.items() if rows],
    })  # fmt: skip


def _record_set(part: str, rows: list[dict]) -> dict:
    held = [field for field in FIELDS if any(row.get(field) for row in rows)]
    return {
        "@type": "cr:RecordSet", "@id": part, "name": part, "key": {"@id": f"{part}/id"},
        "description": f"{len(rows)} records of the part {part}.",
        "field": [
            {
                "@type": "cr:Field", "@id": f"{part}/{field}", "name": f"{part}/{field}", "description": FIELDS[field],
                "dataType": "sc:Text",
                "source": {"fileObject": {"@id": f"{part}.jsonl"}, "extract": {"column": field}},
            }
            for field in held
        ],
    }  # fmt: skip
