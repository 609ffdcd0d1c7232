"""`demo_parse3D.py` and `demo_parse2D.py`: their flags, and what each does."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import Parser, count, exit_code, fraction, guarded, load_model, say
from unimed.commands.volume_flags import add_volume_choices, volume_choices
from unimed.names import ResultNames

OVERLAPS_3D = ("nms", "argmax", "keep")
OVERLAPS_2D = ("keep", "combine", "nms")


def _common(parser: Parser, out: str) -> None:
    parser.flag("model", default="pretrained/biomedparse")
    parser.flag("out", default=out)
    parser.add_argument("--prompts", "--prompt", nargs="+", metavar="TEXT", help="what to look for")
    parser.flag("modality")
    parser.add_argument("--threshold", type=fraction, default=0.5, help="least existence, 0 to 1 (default: 0.5)")
    parser.flag("seed", help="of the attention sampling (default: 0)")
    parser.flag("device")
    parser.flag("dtype")
    parser.flag("restart")


def _source(parser: Parser, kinds: str) -> None:
    parser.add_argument("source", nargs="?", help=kinds)
    parser.add_argument(
        "--input_dir", "--input-dir", "--image", dest="given", help="SOURCE, as the published scripts say"
    )


def _parsed(parser: Parser, arguments):
    args = parser.parse_args(arguments)
    if bool(args.source) == bool(args.given):
        parser.error("give one SOURCE, as it is or behind --input_dir or --image")
    args.source = args.source or args.given
    return args


def parse_3d(arguments=None, prog: str | None = None) -> int:
    """`demo_parse3D.py`: one volume, or every volume of a folder."""
    parser = Parser(
        "Segment what the prompts name in a volume (NPZ, NIfTI, NRRD, a DICOM series) or in every volume "
        "of a folder. Results keep the geometry of the source. A second run goes on where the first one stopped. "
        "Research use only.",
        prog=prog,
    )
    _source(parser, "a file, a folder of DICOM slices, or a folder of volumes")
    _common(parser, "work_dirs/parse3D")
    parser.add_argument(
        "--prompt-file", help='JSON, {"1": "liver", "2": ["spleen", "the spleen"], "instance_label": 0}'
    )
    parser.add_argument(
        "--site", default="", help="CT window: abdomen, lung, brain, bone, ... (default: by the prompts)"
    )
    parser.add_argument(
        "--window", nargs=2, type=float, metavar=("LEVEL", "WIDTH"), help="instead of the window of a site"
    )
    parser.add_argument(
        "--percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"), help="grey values by percentiles"
    )
    add_volume_choices(parser)
    parser.add_argument("--view", choices=("stored", "axial", "coronal", "sagittal"), help="how slices are cut")
    parser.add_argument("--overlap", default="nms", choices=OVERLAPS_3D, help="who gets a voxel (default: nms)")
    parser.add_argument("--instances", action="store_true", help="number single objects, also where the file says so")
    parser.add_argument(
        "--slice-batch", "--slice_batch_size", type=count, default=4, help="slices at a time (default: 4)"
    )
    parser.add_argument(
        "--stride", type=count, default=1,
        help="look at every so many slices first, then for the borders of what is there, and leave out the rest; "
        "misses what is thinner (default: 1, all slices)",
    )  # fmt: skip
    parser.add_argument("--crop", action="store_true", help="cut the air around the body away: faster, small changes")
    parser.add_argument(
        "--formats", nargs="+", default=["nifti", "json", "png"], help="nifti, nrrd, npz, json, dicom-seg, png"
    )
    return guarded(_parse_3d, _parsed(parser, arguments))


def _parse_3d(args) -> int:
    import numpy as np

    from unimed.inference.runs import print_failures, run_cases
    from unimed.inference.volume_files import find_volumes, prompts_for
    from unimed.io.result import writer_of
    from unimed.io.windows import choose_window
    from unimed.structures import Case

    source, out = Path(args.source), Path(args.out)
    for form in args.formats:
        writer_of(form)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    paths = find_volumes(source) if source.is_dir() else [source]
    if len(paths) == 1:
        prompts_for(paths[0], args.prompts, args.prompt_file)  # missing prompts should not cost the loading of a model
    # A window or percentiles that cannot be are found before a model is loaded.
    choose_window(np.arange(8).reshape(2, 2, 2), window=args.window, percentiles=args.percentiles)
    root = source if source.is_dir() else source.parent
    names = ResultNames(out, root).all(paths)
    cases = [Case(name, {"path": path}) for name, path in zip(names, paths, strict=True)]
    settings = {
        key: getattr(args, key)
        for key in ("model", "prompts", "prompt_file", "modality", "site", "window", "percentiles", "view", "overlap",
                    "instances", "threshold", "stride", "crop", "seed", "formats", "series", "phase", "irregular")
    }  # fmt: skip
    model = load_parser(args)
    report = run_cases(cases, lambda batch: [_one_volume(model, args, out, c) for c in batch], out, settings=settings,
                       restart=args.restart)  # fmt: skip
    for row in report.rows:
        found = ", ".join(f"{t['prompt']} ({t['voxels']})" for t in row["targets"] if t["voxels"]) or "nothing"
        say(f"{row['case']}: {found}; {row['intensity']}; {row['seconds']:.1f} s")
        for step in row["steps"]:
            say(f"  {step}")
        if left_out := row.get("slices_left_out"):
            say(f"  --stride {args.stride}: {len(left_out)} slices were left out, their numbers are in the JSON file")
        if row["intensity"].startswith("percentiles") and not (args.percentiles or row["modality"]):
            print(
                "  the modality is not known, so percentiles were used; for CT give --site, --modality CT or --window"
            )
        for target in row["targets"]:
            if target.get("remark"):
                say(f"  {target['prompt']}: {target['remark']}")
        for name in row["files"]:
            print(f"  {out / name}")
    print(
        f"{len(report.rows)} volumes, {report.skipped} of them before, {len(report.failed)} failed. Research use only."
    )
    print_failures(report)
    return report.exit_code


def load_parser(args):
    """The model of the command line.

    Raises:
        ValueError: it is no model that takes prompts.
    """
    to = "segment by prompts alone"
    return load_model(args.model, able="segment_slices", to=to, device=args.device, dtype=args.dtype)


def _one_volume(model, args, out: Path, case) -> dict:
    from unimed.files import refuse_to_replace
    from unimed.inference.volume_files import prompts_for, read_volume
    from unimed.inference.volume_text import segment_volume
    from unimed.io.windows import modality_of

    path = case.inputs["path"]
    refuse_to_replace(path, out, case.name)
    asked = prompts_for(path, args.prompts, args.prompt_file)
    array, geometry = read_volume(path, **volume_choices(args))
    if "dicom-seg" in args.formats and geometry.source_format != "dicom":
        raise ValueError(f"{path}: dicom-seg needs a DICOM series as source; choose other --formats")
    modality = args.modality or str(geometry.header.get("modality", "")) or modality_of(path.name)
    result = segment_volume(
        model, array, geometry, asked.first(), view=args.view, modality=modality, site=args.site, window=args.window,
        percentiles=args.percentiles, threshold=args.threshold,
        overlap=args.overlap, instances=args.instances or asked.instances, slice_batch=args.slice_batch, seed=args.seed,
        stride=args.stride, crop=args.crop,
    )  # fmt: skip
    files = result.save(out, case.name, args.formats, image=array)
    return result.to_dict() | {"modality": modality, "files": [path.name for path in files]}


def parse_2d(arguments=None, prog: str | None = None) -> int:
    """`demo_parse2D.py`: one picture, or every image of a folder."""
    parser = Parser(
        "Segment what the prompts name in an image or in every image of a folder, or, with --recognize, "
        "find what of all known targets is there. Writes OUT/NAME.json, NAME.png (overlay) and a mask per target, "
        "NAME-maskK.png. Research use only.",
        prog=prog,
    )
    _source(parser, "PNG, JPEG, TIFF, DICOM, a slice as NIfTI, or a folder of them")
    _common(parser, "work_dirs/parse2D")
    parser.add_argument(
        "--recognize",
        "--recognise",
        dest="recognize",
        action="store_true",
        help="look for every target known for --modality and --site",
    )
    parser.add_argument(
        "--site", default="", help="abdomen, lung, brain, ...; default: as a BiomedParse file name says"
    )
    parser.add_argument(
        "--p-value", type=float, help="v1: drop masks that look less usual than this (--recognize: 0.05)"
    )
    parser.add_argument("--overlap", default="keep", choices=OVERLAPS_2D, help="may masks overlap (default: keep)")
    return guarded(_parse_2d, _parsed(parser, arguments))


def _parse_2d(args) -> int:
    from unimed.inference.runs import print_failures, run_cases
    from unimed.io.images import is_image_file
    from unimed.io.raster import SUFFIXES
    from unimed.structures import Case

    source, out = Path(args.source), Path(args.out)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    slices = (".nii", ".nii.gz", ".nrrd", ".mha")
    paths = [source] if source.is_file() else sorted(p for p in source.iterdir() if is_image_file(p, slices))
    if not paths:
        known = f"{', '.join((*SUFFIXES, *slices))} and DICOM files of any name"
        raise FileNotFoundError(f"{source}: no image in it; known are {known}")
    if not args.prompts and not args.recognize:
        raise ValueError("say what to look for with --prompts, or --recognize to look for everything known")
    names = ResultNames(out).all(paths)
    cases = [Case(name, {"path": path}) for name, path in zip(names, paths, strict=True)]
    keys = ("model", "prompts", "recognize", "modality", "site", "threshold", "p_value", "overlap", "seed")
    model = load_parser(args)
    report = run_cases(cases, lambda batch: [_one_image(model, args, out, case) for case in batch], out,
                       settings={key: getattr(args, key) for key in keys}, restart=args.restart)  # fmt: skip
    for row in report.rows:
        found = ", ".join(f"{t['target']} ({t['pixels']})" for t in row["found"]) or "nothing"
        say("; ".join([f"{row['case']}: {found}", *row.get("steps", ())]))
        for target in row["found"]:
            if target.get("remark"):
                say(f"  {target['target']}: {target['remark']}")
            if args.p_value is not None and target["p_value"] is None:
                say(f"  {target['target']}: --p-value changes nothing, no shape of it is known for this kind of image")
    counts = f"{len(report.rows)} images, {report.skipped} of them before, {len(report.failed)} failed"
    print(f"{counts}, results in {out}. Research use only.")
    print_failures(report)
    return report.exit_code


def _one_image(model, args, out: Path, case) -> dict:
    import time
    from dataclasses import replace

    from unimed.data.readers.biomedparse_names import FileNameError, parse_image_name
    from unimed.files import json_text, refuse_to_replace, write_text
    from unimed.io.answers import write_mask
    from unimed.io.images import load as load_image
    from unimed.io.windows import known_site
    from unimed.models.boltzformer.recognition import P_VALUE, as_prediction, hierarchy, recognize, row_of

    path, modality, site = case.inputs["path"], args.modality, args.site
    refuse_to_replace(path, out, case.name)
    try:
        name = parse_image_name(path.name)
        modality, site = modality or name.modality, site or name.site
    except FileNameError:
        pass
    windows = model.config.ct_windows
    chooses = args.site or known_site(site, modality, windows)  # a file name may give a site that has no window
    image = load_image(path, modality=modality, site=chooses, windows=windows)
    if args.recognize:
        begin, p_value = time.perf_counter(), P_VALUE if args.p_value is None else args.p_value
        found = recognize(model, image.rgb, modality, site, threshold=args.threshold, p_value=p_value, seed=args.seed)
        prediction = as_prediction(found, image.geometry, time.perf_counter() - begin, image=image.source)
    else:
        options = dict(presence_threshold=args.threshold, p_value=args.p_value, overlap=args.overlap, seed=args.seed)
        prediction = model.predict(image, "[SEP]".join(args.prompts), modality=modality, site=site, **options)
    prediction = replace(prediction, model_reference=args.model)
    files = prediction.save(out, case.name, ("json", "png"), image=image.pixels)
    masks = [out / f"{case.name}-mask{number}.png" for number in range(len(prediction.regions))]
    files += [write_mask(path, one.mask) for path, one in zip(masks, prediction.regions, strict=True)]
    found = [row_of(one) | {"mask_file": path.name} for one, path in zip(prediction.regions, masks, strict=True)]
    row = {"found": found, "steps": list(image.steps), "files": [file.name for file in files]}
    if args.recognize:
        row["hierarchy"] = hierarchy(prediction.regions)
        write_text(out / f"{case.name}-found.json", json_text(row))
    return row


def score_volumes(arguments=None, prog: str | None = None) -> int:
    """Score label maps of volumes; exit code 2 where some could not be scored."""
    parser = Parser(
        "Score segmented volumes: Dice, IoU and NSD per target and modality, F1 and AP of instances, AUROC of\n"
        "existence, and the scoring of the CVPR 2025 text-prompted challenge. Writes cases.jsonl and scores.{json,md}.",
        prog=prog,
    )
    parser.add_argument("results", help="folder that demo_parse3D.py wrote (formats npz or nifti with json)")
    parser.add_argument("truths", help="folder of NPZ (gts), NIfTI or NRRD label maps of the same names")
    parser.add_argument("--out", writes="folder", help="folder of the tables (default: RESULTS/scores)")
    parser.add_argument("--prompts", help='JSON table {"1": "liver", ...} where the files hold none')
    parser.add_argument("--tolerances-mm", nargs="+", type=float, default=[1.0, 2.0], help="of NSD (default: 1 2)")
    parser.add_argument("--iou", nargs="+", type=float, default=[0.5, 0.75], help="of instances (default: 0.5 0.75)")
    parser.add_argument(
        "--empty", default="ignore", choices=("ignore", "perfect", "zero"), help="two empty masks score"
    )
    parser.add_argument(
        "--compat", choices=("reference",), help="challenge scoring as published: false labels are free"
    )
    parser.add_argument("--no-surfaces", action="store_true", help="leave NSD out, which needs MONAI")
    return guarded(_score_volumes, parser.parse_args(arguments))


def _score_volumes(args) -> int:
    from unimed.evaluation.benchmarks import benchmark
    from unimed.evaluation.cases import project
    from unimed.evaluation.scorers.label_maps import summarize
    from unimed.evaluation.tables import this_command

    out = Path(args.out) if args.out else Path(args.results) / "scores"
    with project(out):
        scores = benchmark("biomedparse/volumes").score(
            args.results, args.truths, prompts=args.prompts, tolerances_mm=args.tolerances_mm, thresholds=args.iou,
            empty=args.empty, compat=args.compat, surfaces=not args.no_surfaces,
        )  # fmt: skip
    print(summarize(scores, out, command=this_command(), empty=args.empty, compat=args.compat))
    return exit_code(len(scores.targets), len(scores.problems))


_TASK_COLUMNS = ("kind", "modality", "anatomy", "target", "median_dice", "test_images")


def list_tasks(arguments=None, prog: str | None = None) -> int:
    """Print what BiomedParse was trained on."""
    parser = Parser("What BiomedParse can be asked for, by modality and anatomy.", prog=prog)
    parser.add_argument("--kind", choices=("volume", "image"), help="3D or 2D targets only")
    parser.add_argument("--modality", help="beginning of a modality, such as CT or MRI")
    parser.add_argument("--anatomy", help="beginning of an anatomy, such as thoracic or brain")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    return guarded(_list_tasks, parser.parse_args(arguments))


def _list_tasks(args) -> int:
    import json

    from unimed.data.wordings.biomedparse_targets import lineage, list_targets

    rows = list_targets(args.kind, args.modality, args.anatomy)
    if args.json:
        print(json.dumps([{**row, "hierarchy": list(lineage(row["target"]))} for row in rows], indent=1))
        return 0
    from unimed.evaluation.tables import markdown_table

    print(markdown_table(rows, columns=[c for c in _TASK_COLUMNS if any(c in row for row in rows)]))
    print(f"{len(rows)} targets; other words work too, these are the ones it was trained on. Research use only.")
    return 0
