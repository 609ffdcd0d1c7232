"""`unimed predict`: questions about images and volumes, answered with what the answer points at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from unimed.commands.cohort import add_cohort_flags, predict_cohort, refuse_cohort_flags, with_job
from unimed.commands.common import DONE, Parser, guarded, load_model, print_steps, region_line, say
from unimed.commands.volume_flags import add_volume_choices, volume_choices
from unimed.names import ResultNames

_DESCRIPTION = """Answer questions about images and volumes and point at what is said. Research use only.

    unimed predict MODEL case.png "Where is the nodule?"
    unimed predict MODEL ct.nii.gz "Segment the liver." "Segment the spleen." --site abdomen
    unimed predict MODEL images/ more.dcm --text "Describe the image." --out results --json
    unimed predict MODEL "Segment the liver." --dicomweb http://localhost:8042/dicom-web --study UID --stow
    unimed predict MODEL cohort.csv s3://bucket/scans/ --text "Segment the liver." --engine local --workers 4

MODEL is of any family: a grounded model or Uni-Med is asked, BiomedParse looks for what is named (several joined by
[SEP]), a contrastive model compares the texts as labels. Folders are searched; a folder of DICOM slices is one volume.
Several sources are a run that can be stopped and goes on; finished ones stand in OUT/cases.jsonl. With --engine they
are a cohort: tables, shards and URLs too, on several processes or a Ray cluster (docs/cohorts.md).
Exit codes: 0 all was done, 2 a part of it, 1 nothing."""


def predict(arguments=None, prog: str | None = None) -> int:
    """Answer questions about images, volumes and folders of them."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("model", help="exported folder or published checkpoint")
    parser.add_argument(
        "words", nargs="+", metavar="SOURCE... TEXT", help="files and folders, then questions or labels"
    )
    parser.add_argument("--text", nargs="+", default=[], help="the questions, where all words are sources")
    parser.add_argument("--task", help="of Uni-Med: vqa, refer, identify, caption, cls, qa")
    parser.add_argument("--plane", default="axial", choices=("axial", "coronal", "sagittal"), help="of volumes")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per source and nothing else")
    parser.add_argument(
        "--formats", nargs="+", default=[], metavar="FORMAT",
        help="written as well: html, dicom-seg, dicom-sr, fhir, seg-nrrd, ... (docs/results.md, docs/clinic.md)",
    )  # fmt: skip
    parser.add_argument(
        "--deidentified", action="store_true", help="nothing of the patient in the files (docs/results.md)"
    )
    parser.add_argument("--dicomweb", metavar="URL", help="the source is a study of this server; words are questions")
    parser.add_argument("--study", metavar="UID", help="of --dicomweb")
    parser.add_argument("--stow", action="store_true", help="store segmentation and report on that server")
    parser.flag("out", default="predictions")
    for name in ("device", "dtype", "site", "modality", "window", "page", "restart"):
        parser.flag(name)
    parser.add_argument(
        "--text-from", metavar="URL",
        help="a server (vLLM, SGLang, ...) writes the text of answers about images (docs/serving.md)",
    )  # fmt: skip
    parser.add_argument("--text-model", metavar="NAME", help="of --text-from: the model there, where it has several")
    add_volume_choices(parser)
    parser.flag("max-new-tokens", default=256)
    parser.flag("batch-size", default=None, help="images asked about together (default: 8 on a GPU, 1 on a CPU)")
    add_cohort_flags(parser)
    return guarded(_predict, parser.parse_args(with_job(parser, sys.argv[1:] if arguments is None else arguments)))


def sources_and_texts(words: list[str], texts: list[str]) -> tuple[list[Path], list[str]]:
    """Words of the command line parted into sources (those that lie on the disk, at its beginning) and questions.

    Raises:
        FileNotFoundError: the first word, or another that looks like a file, is none.
        SourceError: no question.
    """
    from unimed.inference.asking import SourceError, find_sources, looks_like_a_path

    count = 1
    while count < len(words) and (texts or Path(words[count]).exists() or looks_like_a_path(words[count])):
        count += 1
    asked = [*words[count:], *texts]
    paths = find_sources(words[:count])
    if not asked or not all(text.strip() for text in asked):
        raise SourceError("no question: give it after the sources, or with --text")
    return paths, asked


def _predict(args) -> int:
    if args.dicomweb or args.study or args.stow:
        return _on_server(args)
    if args.engine:
        for name in ("text_from", "text_model", "batch_size"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is not for --engine, whose workers ask one by one")
        return predict_cohort(args)
    refuse_cohort_flags(args)
    return _on(*sources_and_texts(args.words, args.text), args)


def _on_server(args) -> int:
    """As for files: a study is fetched into OUT/source, and what was made of it goes back with --stow."""
    from unimed.files import read_json_lines
    from unimed.io.dicom_web import fetch, store

    if not (args.dicomweb and args.study):
        raise ValueError("--dicomweb URL and --study UID belong together, and --stow to both")
    if args.stow:
        args.formats = list(dict.fromkeys([*args.formats, "dicom-seg", "dicom-sr"]))
    folder = Path(args.out)
    paths = fetch(args.dicomweb, args.study, args.series, folder / "source")
    args.series = None
    before = _changed(folder)
    code = _on(paths, [*args.words, *args.text], args)
    if args.stow:
        made = {path for path, when in _changed(folder).items() if before.get(path) != when}
        if (folder / "cases.jsonl").is_file():  # of a run that went on: also what was made before
            for _, row in read_json_lines(folder / "cases.jsonl", torn_end=True):
                made |= {folder / name for answer in row.get("answers", ()) for name in answer.get("files", ())}
        count = store(args.dicomweb, sorted(path for path in made if path.suffix == ".dcm"))
        print(f"{count} objects stored at {args.dicomweb}", file=sys.stderr if args.json else sys.stdout)
    return code


def _changed(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.dcm")}


def _on(paths: list[Path], texts: list[str], args) -> int:
    from unimed.files import refuse_to_replace
    from unimed.inference.asking import open_source
    from unimed.names import result_name

    for path in paths:
        for number in range(len(texts)):
            refuse_to_replace(path, args.out, f"{result_name(path)}-{number}")
    how = dict(site=args.site, modality=args.modality, window=args.window)
    options = dict(choices=volume_choices(args), page=args.page, **how)
    # A single source is read first: a wrong path or page should not cost the loading of a model.
    first = open_source(paths[0], **options) if len(paths) == 1 else None
    model = load_model(args.model, device=args.device, dtype=args.dtype)
    if args.text_from:
        from unimed.inference.outside_text import OutsideText

        if not hasattr(model, "text_from"):
            raise ValueError("--text-from is for models that answer in words and point at what they say")
        model.text_from = OutsideText(args.text_from, args.text_model)
    if windows := getattr(model.config, "ct_windows", None):
        options["windows"], first = windows, None
    if len(paths) == 1:
        row = _one(model, first or open_source(paths[0], **options), texts, args, how)
        _show(row, args)
        return DONE
    return _many(model, paths, texts, args, how, options)


def _many(model, paths: list[Path], texts: list[str], args, how: dict, options: dict) -> int:
    from unimed.inference.asking import ask_images, kind_of, open_source
    from unimed.inference.runs import print_failures, run_cases
    from unimed.structures import Case

    # A run that is stopped loses its batch: where little is gained every image is kept as soon as it is done.
    usual = 1 if getattr(getattr(model, "device", None), "type", "cpu") == "cpu" else 8
    together = (args.batch_size or usual) if kind_of(model) == "answers" else 1

    def predict(batch):
        sources = [open_source(case.inputs["path"], **options) for case in batch]
        flat, known = [one for one in sources if not one.is_volume], {}
        if len(flat) > 1 and kind_of(model) == "answers":
            found = ask_images(model, flat, texts, batch_size=together, max_new_tokens=args.max_new_tokens,
                               task=args.task)  # fmt: skip
            known = {id(source): answers for source, answers in zip(flat, found, strict=True)}
        return [_one(model, source, texts, args, how, known.get(id(source))) for source in sources]

    names = ResultNames(args.out).all(paths)
    cases = [Case(name, {"path": path}) for name, path in zip(names, paths, strict=True)]
    keys = ("model", "task", "plane", "formats", "deidentified", "site", "modality", "window", "page",
            "max_new_tokens", "text_from", "text_model", "series", "phase", "irregular")  # fmt: skip
    settings = {key: getattr(args, key) for key in keys} | {"texts": texts}
    report = run_cases(cases, predict, args.out, settings=settings, batch_size=together, restart=args.restart)
    for row in report.rows:
        _show(row, args)
    print(
        f"{len(report.rows)} of {len(paths)} sources answered, {report.skipped} of them before, "
        f"{len(report.failed)} failed; results in {args.out}",
        file=sys.stderr if args.json else sys.stdout,
    )
    print_failures(report)
    return report.exit_code


def _one(model, source, texts: list[str], args, how: dict, found=None) -> dict:
    from unimed.inference.answering import answer_source

    return answer_source(
        model, source, texts, args.out, plane=args.plane, how=how, formats=args.formats,
        deidentified=args.deidentified, max_new_tokens=args.max_new_tokens, task=args.task,
        found=found,
    )  # fmt: skip


def _show(row: dict, args) -> None:
    """One source for a person, or as a line of JSON."""
    if args.json:
        print(json.dumps({key: value for key, value in row.items() if key != "content"}, ensure_ascii=False))
        return
    if "case" in row:
        say(f"{row['source']}:")
    print_steps(row["steps"], args)
    for answer in row["answers"]:
        if "labels" in answer:
            for label, probability in sorted(answer["probabilities"].items(), key=lambda pair: -pair[1]):
                say(f"{probability:.3f}  {label}")
            continue
        if len(row["answers"]) > 1:
            say(f"{answer['question']}")
        if answer["text"]:
            say(answer["text"])
        for region in answer["regions"]:
            say(f"  {region['phrase']}: {region_line(region)}")
        for name in answer["files"]:
            print(f"  {Path(args.out) / name}")
        for reason in answer.get("not_written", ()):
            say(f"  not written: {reason}")
