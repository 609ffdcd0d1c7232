"""Verbs around results that a hospital's software opens: how phrases are coded, what viewers would miss, follow-up."""

from __future__ import annotations

import json

from unimed.commands.common import DONE, Parser, guarded, say


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
