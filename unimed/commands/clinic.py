"""Verbs around results that a hospital's software opens: how phrases are coded, what viewers would miss, follow-up."""

from __future__ import annotations

import json
from pathlib import Path

from unimed.commands.common import DONE, NOTHING, PARTLY, Parser, guarded, say


def codes(arguments=None, prog: str | None = None) -> int:
    """`unimed codes "left adrenal mass"`: the codes of phrases, and what each word became."""
    parser = Parser("How phrases are coded in DICOM SEG, SR and FHIR, and what each word became.", prog=prog)
    parser.add_argument("phrases", nargs="*", help='such as "left adrenal mass"')
    parser.add_argument("--json", action="store_true", help="one JSON list instead of text")
    parser.add_argument("--table", action="store_true", help="list every known name")
    return guarded(_codes, parser.parse_args(arguments))


def _codes(args) -> int:
    from unimed.io.codes import code_phrase, explain, table

    if not args.phrases and not args.table:
        raise ValueError('give phrases, such as "left adrenal mass", or --table')
    codings = [code_phrase(phrase) for phrase in args.phrases]
    if args.json:
        found = [coding.to_dict() | {"words": dict(explain(coding.phrase))} for coding in codings]
        if args.table:
            found += [{"name": name, "category": e.category, **vars(e.code)} for name, e in sorted(table().items())]
        print(json.dumps(found, indent=1))
        return DONE
    for coding in codings:
        say(f"{coding.phrase}: {coding.source}")
        say(f"  category         {coding.category}")
        for word, meaning in explain(coding.phrase):
            say(f"  {word:<16} {meaning}")
        if coding.source == "private":
            say(f"  type             {coding.type}")
    if args.table:
        for name, entry in sorted(table().items()):
            print(f"{name}\t{entry.category}\t{entry.code}")
    return DONE


def check_seg(arguments=None, prog: str | None = None) -> int:
    """`unimed check-seg FILE`: what readers would miss in a DICOM SEG or SR, whoever wrote it."""
    parser = Parser(
        "What OHIF, 3D Slicer, MITK, dcmqi and the standard would miss in DICOM SEG and SR files.\n"
        "Exit code: 0 no errors, 2 errors in some files, 1 in all.",
        prog=prog,
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--source", type=Path, help="folder or file of the images, to compare grids with")
    parser.add_argument("--json", action="store_true", help="one JSON object, file -> remarks")
    parser.add_argument("--no-tools", action="store_true", help="do not run dciodvfy and dcmqi")
    return guarded(_check_seg, parser.parse_args(arguments))


def _check_seg(args) -> int:
    from unimed.io.dicom_check import check_file

    checked = {str(path): check_file(path, args.source, not args.no_tools) for path in args.files}
    if args.json:
        print(json.dumps({name: [vars(remark) for remark in found] for name, found in checked.items()}, indent=1))
    else:
        for name, found in checked.items():
            say(f"{name}: {'nothing to remark' if not found else f'{len(found)} remarks'}")
            for remark in found:
                say(f"  {remark.level:<8} {remark.who}: {remark.text}")
    wrong = sum(any(remark.level == "error" for remark in found) for found in checked.values())
    return DONE if not wrong else NOTHING if wrong == len(checked) else PARTLY
