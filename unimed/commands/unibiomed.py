"""UniBiomed's demos and metric scripts: their flags, and what each does."""

from __future__ import annotations

import sys
from pathlib import Path

from unimed.commands.common import (
    DONE,
    NOTHING,
    NOTICE,
    PARTLY,
    Parser,
    count,
    guarded,
    load_model,
    print_answer,
    print_steps,
    say,
)
from unimed.commands.volume_flags import add_volume_choices, volume_choices
from unimed.names import ResultNames, result_name

#: Spellings of one flag; the first names the attribute.
PREDICTIONS = ("--prediction_dir", "--prediction_dir_path", "--pred_dir", "--results_dir", "--save_dir")
TRUTH = ("--json_path", "--annotation_file", "--gt_json", "--gt_json_path")
MASKS = ("--mask_dir", "--gt_mask_dir", "--gt_dir", "--gt_dir_path")

#: Demo -> (form of its captions, kind of its scores, whether answers carry masks).
ANSWERS = {
    "disease": ("after", "disease", True),
    "GRG": ("marked", "grg", True),
    "GVQA": ("marked", "gvqa", True),
    "Medtrinity": ("plain", "medtrinity", False),
    "RegionCap": ("plain", "region", False),
}


def _common(parser: Parser, out: str) -> None:
    parser.flag("model", default="pretrained/unibiomed")
    parser.flag("out", default=out)
    for name in ("device", "dtype", "batch-size"):
        parser.flag(name)
    parser.flag("max-new-tokens", default=512)
    parser.add_argument("--question", help="another question; {} stands for what the JSON names")
    parser.add_argument("--overlays", type=int, default=12, help="images with drawn regions to keep (default: 12)")
    parser.flag("restart")
    parser.add_argument("--limit", type=count, help="only the first so many cases")
    parser.add_argument(
        "--launcher", default="none", choices=("none", "pytorch", "slurm"), help="who starts several processes"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


def _load(args):
    import os

    from unimed.inference.set_runs import ranks

    device = args.device
    if device == "auto" and ranks(args.launcher)[1] > 1:
        import torch

        if torch.cuda.is_available():
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', args.local_rank)) % torch.cuda.device_count()}"
    return load_model(
        args.model, able="predict_frames", to="answer in words and masks", device=device, dtype=args.dtype
    )


def _all_done(args) -> bool:
    """Wait for the other processes; True for the one that writes the scores."""
    from unimed.inference.set_runs import ranks

    rank, size = ranks(args.launcher)
    if size > 1:
        import torch.distributed as dist

        if args.launcher == "pytorch":
            dist.init_process_group("gloo")
        else:
            import os

            address = f"tcp://{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', '29511')}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
        dist.barrier()
        dist.destroy_process_group()
    return rank == 0


def _finish(args, report, score, state: Path) -> int:
    """Print what happened and the scores; the exit code is not zero where a case failed."""
    from unimed.evaluation.cases import project
    from unimed.evaluation.tables import this_command
    from unimed.inference.runs import print_failures, print_windows

    print(f"{len(report.rows)} answered, {report.skipped} of them before, {len(report.failed)} failed")
    print_windows(report.rows)
    print_failures(report)
    if _all_done(args) and score is not None:
        with project(state):
            scores = score()
        print(scores.write(state, this_command()))
    return report.exit_code


def segment_2d(arguments=None, prog: str | None = None) -> int:
    """`demo_seg2D.py`: a test set, or one image."""
    parser = Parser(
        "Segment what a test set names (masks to WORK_DIR/<split>/<mask_file>, scores to results.json), "
        "or answer one question about one image. Research use only.",
        prog=prog,
    )
    parser.add_argument("--val_folder", help="set with test.json, test/, test_mask/")
    parser.add_argument("--val_json", default="test.json", help="its test file (default: test.json)")
    parser.add_argument("--image", help="instead of a set: PNG, JPEG, TIFF, DICOM, or a slice as NIfTI or NRRD")
    parser.add_argument("--text", help="the question about --image")
    for name in ("site", "modality", "window", "page"):
        parser.flag(name)
    parser.add_argument("--compat", choices=("reference",), help="score as UniBiomed does, see docs/unibiomed.md")
    _common(parser, "work_dirs/seg2D")
    return guarded(_segment_2d, parser.parse_args(arguments))


def _segment_2d(args) -> int:
    out = Path(args.out)
    if args.image:
        return _one_image(args, out)
    if not args.val_folder:
        raise ValueError("give --val_folder (a test set) or --image (one image)")
    from unimed.data.readers import unibiomed_tests as evaluation_sets
    from unimed.evaluation.benchmarks import benchmark
    from unimed.inference import set_runs

    cases = evaluation_sets.segmentation_cases(args.val_folder, args.val_json, args.question)[: args.limit]
    run = set_runs.Run(out / "run", out / "overlays", args.batch_size, args.max_new_tokens, args.overlays, args.restart)
    settings = {"model": args.model, "folder": args.val_folder, "json": args.val_json, "question": args.question}
    report = set_runs.segment_images(_load(args), cases, out, run, settings, args.launcher)
    return _finish(args, report, _with_results(benchmark("unibiomed/seg2d").score, cases, out, args.compat), out)


def _with_results(score, cases, out: Path, compat):
    """Scores, with `results.json` as UniBiomed writes it; None where the set has no masks."""

    def scores():
        from unimed.files import write_report

        found = score(cases, out, compat)
        write_report(out / "results.json", found.published)
        return found

    truths = [case.inputs["truth"] for case in cases]
    paths = [path for truth in truths for path in (truth.values() if isinstance(truth, dict) else [truth])]
    if any(path.parent.is_dir() for path in paths):
        return scores
    print(f"no masks beside the images, so nothing is scored (looked for {paths[0] if paths else 'none'})")
    return None


def _one_image(args, out: Path) -> int:
    if not args.text:
        raise ValueError('--image needs --text, for example --text "Please segment the liver in abdomen CT."')
    from unimed.files import refuse_to_replace
    from unimed.io.answers import write_mask
    from unimed.io.images import load as load_image

    refuse_to_replace(args.image, out, result_name(args.image))
    how = dict(site=args.site, modality=args.modality, window=args.window, page=args.page)
    image = load_image(args.image, **how)  # a wrong path should not cost the loading of a model
    prediction = _load(args).predict(image, args.text, max_new_tokens=args.max_new_tokens)
    masks = [region.mask for region in prediction.regions if region.mask is not None]
    formats = ["json", "png"] + ["nifti"] * bool(masks and image.geometry.is_physical)
    name = ResultNames(out)(args.image)
    written = prediction.save(out, name, formats, image=image.rgb)
    written += [write_mask(out / f"{name}-mask{number}.png", mask) for number, mask in enumerate(masks)]
    print_steps(image.steps, args)
    print_answer(prediction, written)
    print(NOTICE)
    return DONE


def segment_3d(arguments=None, prog: str | None = None) -> int:
    """`demo_seg3D.py`: a 3D test set, or one volume."""
    parser = Parser(
        "Segment what a 3D test set names (masks to WORK_DIR/<volume>/<expression>/<slice>, scores to "
        "results.json), or answer one question about one volume. Research use only.",
        prog=prog,
    )
    parser.add_argument("--val_folder", help="set with meta_test.json and a folder of slices per volume")
    parser.add_argument("--val_json", default="meta_test.json", help="its test file (default: meta_test.json)")
    parser.add_argument("--volume", help="instead of a set: NIfTI, NRRD, NPZ, or a folder of DICOM slices")
    parser.add_argument("--text", nargs="+", help="one question about --volume, or several: slices are encoded once")
    add_volume_choices(parser)
    for name in ("site", "modality", "window"):
        parser.flag(name)
    parser.add_argument("--plane", default="axial", choices=("axial", "coronal", "sagittal"), help="of --volume")
    parser.add_argument(
        "--compat",
        choices=("reference",),
        help="read the first five slices instead of five spread over the volume, and score, as UniBiomed does",
    )
    _common(parser, "work_dirs/seg3D")
    return guarded(_segment_3d, parser.parse_args(arguments))


def _segment_3d(args) -> int:
    out = Path(args.out)
    if args.volume:
        return _one_volume(args, out)
    if not args.val_folder:
        raise ValueError("give --val_folder (a test set) or --volume (one volume)")
    from unimed.data.readers import unibiomed_tests as evaluation_sets
    from unimed.evaluation.benchmarks import benchmark
    from unimed.inference import set_runs

    cases = evaluation_sets.volume_cases(args.val_folder, args.val_json, args.question)[: args.limit]
    run = set_runs.Run(out / "run", out / "overlays", 1, args.max_new_tokens, args.overlays, args.restart)
    settings = {"model": args.model, "folder": args.val_folder, "json": args.val_json, "question": args.question}
    report = set_runs.segment_volumes(_load(args), cases, out, run, settings, args.launcher, args.compat)
    return _finish(args, report, _with_results(benchmark("unibiomed/seg3d").score, cases, out, args.compat), out)


def _one_volume(args, out: Path) -> int:
    if not args.text:
        raise ValueError('--volume needs --text, for example --text "Please segment the spleen in abdomen CT."')
    from unimed.files import refuse_to_replace
    from unimed.inference.asking import save_volume_prediction
    from unimed.inference.volume import predict_volume
    from unimed.inference.volume_files import read_volume

    if not Path(args.volume).exists():
        raise FileNotFoundError(f"{args.volume}: no such file or folder")
    refuse_to_replace(args.volume, out, result_name(args.volume))
    options = dict(plane=args.plane, site=args.site, modality=args.modality, window=args.window, compat=args.compat,
                   max_new_tokens=args.max_new_tokens)  # fmt: skip
    array, geometry = read_volume(args.volume, **volume_choices(args))  # before a model is loaded for nothing
    asked = args.text if len(args.text) > 1 else args.text[0]
    found = predict_volume(_load(args), (array, geometry), asked, name=str(args.volume), **options)
    predictions = found if isinstance(found, list) else [found]
    print_steps(predictions[0].image.steps, args)
    names = [ResultNames(out)(args.volume, str(number) if number else "") for number in range(len(predictions))]
    for name, question, prediction in zip(names, args.text, predictions, strict=True):
        written = save_volume_prediction(prediction, array, out, name, question)
        if len(predictions) > 1:
            say(f"{question}")
        print_answer(prediction, written)
    print(NOTICE)
    return DONE


def answers(demo: str, arguments=None, prog: str | None = None) -> int:
    """`demo_disease.py`, `demo_GRG.py`, `demo_GVQA.py`, `demo_Medtrinity.py`, `demo_RegionCap.py`."""
    what = {
        "disease": "Name and point at abnormalities",
        "GRG": "Report chest CT slices and point at what is reported",
        "GVQA": "Answer questions about anatomies of chest CT slices and point at the finding",
        "Medtrinity": "Describe images",
        "RegionCap": "Say what a region is",
    }[demo]
    parser = Parser(f"{what}; answers to OUT/<image>.json, scores to OUT_run. Research use only.", prog=prog)
    parser.add_argument("--data_path", required=True, help="folder of the set, or of its images")
    default = {"GRG": "test_parse.json", "GVQA": "test_parse.json"}.get(demo, "test.json")
    names = ("--annotation_file", "--json_path") if demo in ("Medtrinity", "RegionCap") else ("--json_path",)
    parser.add_argument(*names, dest="json_path", default=default, help=f"test file of the set (default: {default})")
    parser.add_argument("--split", default="test", help="not needed: the test file says it")
    if demo == "RegionCap":
        parser.add_argument(
            "--region",
            default="box",
            choices=("box", "tokens"),
            help="paint a green frame, as UniBiomed trains (default), or give the mask as a region prompt",
        )
    if demo == "Medtrinity":
        parser.add_argument("--seed", type=int, default=0, help="of the order; the first --limit images are asked")
    _common(parser, f"work_dirs/{demo}")
    if demo == "Medtrinity":
        parser.set_defaults(limit=1000)
    return guarded(lambda args: _answers(demo, args), parser.parse_args(arguments))


def _answers(demo: str, args) -> int:
    from unimed.data.readers import unibiomed_tests as evaluation_sets
    from unimed.evaluation.benchmarks import benchmark
    from unimed.evaluation.scorers import prediction_folders as set_scores
    from unimed.inference import set_runs

    form, kind, with_masks = ANSWERS[demo]
    out = Path(args.out)
    path = evaluation_sets.find_json(args.json_path, args.data_path, Path(args.data_path).parent)
    given = (args.data_path, path, args.question)
    if demo == "disease":
        cases = evaluation_sets.disease_cases(*given)
    elif demo in ("GRG", "GVQA"):
        cases = evaluation_sets.parse_cases(args.data_path, path, "report" if demo == "GRG" else "vqa", args.question)
    elif demo == "Medtrinity":
        cases = evaluation_sets.caption_cases(*given, limit=args.limit, seed=args.seed)
    else:
        cases = evaluation_sets.region_cases(*given, framed=args.region == "box")
    cases = cases[: args.limit]
    state = out.with_name(f"{out.name}_run")
    run = set_runs.Run(state, state / "overlays", args.batch_size, args.max_new_tokens, args.overlays, args.restart)
    settings = {"model": args.model, "folder": args.data_path, "json": str(path), "question": args.question}
    settings |= {"region": args.region} if demo == "RegionCap" else {}
    masks_to = out.with_name(f"{out.name}_mask") if with_masks else None
    report = set_runs.answer_images(_load(args), cases, out, form, run, settings, masks_to, args.launcher)
    names, masks = {case.name for case in cases}, _mask_folder(path, Path(args.data_path))

    def score():
        # Quick: without Java. The metric script gives the published numbers.
        scores = benchmark(f"unibiomed/{kind}").score(
            out, path, masks if with_masks and masks.is_dir() else None, java=False, only=names
        )
        if demo == "RegionCap":
            set_scores.write_region_results(out, scores)
        return scores

    return _finish(args, report, score, state)


def _mask_folder(json_file: Path, data: Path | None = None) -> Path:
    """Where the masks that a test file names lie: beside it, or below the folder of the data."""
    if json_file.stem.endswith("_parse"):
        return data or json_file.parent
    beside = json_file.parent / f"{json_file.stem}_mask"
    below = data / f"{json_file.stem}_mask" if data is not None else beside
    return below if below.is_dir() and not beside.is_dir() else beside


def _of_set(demo: str):
    def run(arguments=None, prog: str | None = None) -> int:
        return answers(demo, arguments, prog)

    run.__doc__ = f"The demo of {demo}; see `answers`."
    return run


disease, grg, gvqa, medtrinity, regioncap = map(_of_set, ("disease", "GRG", "GVQA", "Medtrinity", "RegionCap"))

#: What `unimed score` knows; also the endings of `demo/metrics_*.py`, by their kind.
SCORED = ("grg", "gvqa", "disease", "medtrinity", "region")


def score(arguments, prog: str | None = None) -> int:
    """`unimed score KIND --prediction_dir D --json_path J`."""
    if not arguments or arguments[0] not in SCORED:
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
        usage = f"usage: {prog or 'unimed score'} {{{','.join(SCORED)}}} [options]"
        if asked_for_help:
            print(usage)
            return DONE
        print(usage, file=sys.stderr)
        known = f"known are {', '.join(SCORED)}"
        named = f"unknown kind {arguments[0]!r}; {known}" if arguments else f"say what is scored; {known}"
        print(f"error: {named}", file=sys.stderr)
        return NOTHING
    return metrics(arguments[0], arguments[1:], f"{prog or 'unimed score'} {arguments[0]}")


def metrics(kind: str, arguments=None, prog: str | None = None) -> int:
    """`metrics_*.py`: the published numbers of a prediction folder to PREDICTION_DIR.txt, ours beside them."""
    parser = Parser(
        "Score a folder of answers: published numbers to PREDICTION_DIR.txt, ours with intervals and one "
        "line per case to PREDICTION_DIR_scores. Research use only.",
        prog=prog,
    )
    parser.add_argument(*PREDICTIONS, required=True, help="folder of <image>.json")
    parser.add_argument(*TRUTH, required=True, dest="json_path", help="test file of the set")
    if kind in ("grg", "gvqa", "disease"):
        parser.add_argument(*MASKS, dest="mask_dir", help="folder of the true masks (default: beside the test file)")
    parser.add_argument("--root", help="folder of the set, where the test file is named without one")
    parser.add_argument("--split", default="test", help="not needed: the test file says it")
    parser.add_argument("--no_java", action="store_true", help="plain-Python BLEU, ROUGE-L and CIDEr, no METEOR")
    parser.add_argument("--spice", action="store_true", help="also SPICE, where its language models are installed")
    return guarded(lambda args: _metrics(kind, args), parser.parse_args(arguments))


def _metrics(kind: str, args) -> int:
    from unimed.data.readers.unibiomed_tests import find_json
    from unimed.evaluation.benchmarks import benchmark
    from unimed.evaluation.cases import project
    from unimed.evaluation.scorers import prediction_folders as set_scores
    from unimed.evaluation.tables import this_command
    from unimed.files import write_text

    predictions = Path(args.prediction_dir)
    path = find_json(args.json_path, args.root) if args.root else Path(args.json_path)
    if not predictions.is_dir():
        raise FileNotFoundError(f"{predictions}: no such folder; run the demo first")
    masks = None
    if kind in ("grg", "gvqa", "disease"):
        masks = Path(args.mask_dir) if args.mask_dir else _mask_folder(path)
        if not masks.is_dir():
            raise FileNotFoundError(f"{masks}: no such folder; name the folder of the true masks with --mask_dir")
    scored = predictions.with_name(f"{predictions.name}_scores")
    with project(scored):
        scores = benchmark(f"unibiomed/{kind}").score(
            predictions, path, masks, java=False if args.no_java else None, spice=args.spice
        )
    text = set_scores.published_text(scores.published)
    write_text(predictions.with_name(f"{predictions.name}.txt"), text)
    if kind == "region":
        set_scores.write_region_results(predictions, scores)
    print(text)
    print(scores.write(scored, this_command()))
    return PARTLY if scores.summary["cases_without_prediction"] else DONE
