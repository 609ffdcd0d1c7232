"""`demo_parse3D.py` and `demo_parse2D.py`: their flags, and what each does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

OVERLAPS_3D = ("nms", "argmax", "keep")
OVERLAPS_2D = ("keep", "combine", "nms")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", "--checkpoint", default="pretrained/biomedparse", help="folder or published file")
    parser.add_argument("--out", "--output_dir", default=None, help="folder of the results")
    parser.add_argument("--prompts", "--prompt", nargs="+", metavar="TEXT", help="what to look for")
    parser.add_argument("--modality", default="", help="CT, MR, US, ...; default: as the file says")
    parser.add_argument("--threshold", type=float, default=0.5, help="least existence, 0 to 1 (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="of the attention sampling (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--restart", action="store_true", help="forget what an earlier run finished")


def parse_3d(arguments=None) -> int:
    """`demo_parse3D.py`: one volume, or every volume of a folder."""
    parser = argparse.ArgumentParser(
        description="Segment what the prompts name in a volume (NPZ, NIfTI, NRRD, a DICOM series) or in every volume "
        "of a folder. Results keep the geometry of the source. A second run goes on where the first one stopped. "
        "Research use only."
    )
    parser.add_argument("source", help="a file, a folder of DICOM slices, or a folder of volumes")
    _common(parser)
    parser.set_defaults(out="work_dirs/parse3D")
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
    parser.add_argument("--view", choices=("stored", "axial", "coronal", "sagittal"), help="how slices are cut")
    parser.add_argument("--overlap", default="nms", choices=OVERLAPS_3D, help="who gets a voxel (default: nms)")
    parser.add_argument("--instances", action="store_true", help="number single objects, also where the file says so")
    parser.add_argument(
        "--slice-batch", "--slice_batch_size", type=int, default=4, help="slices at a time (default: 4)"
    )
    parser.add_argument("--formats", nargs="+", default=["nifti", "json"], help="nifti, npz, json, dicom-seg")
    return guarded(_parse_3d, parser.parse_args(arguments))


def guarded(work, args) -> int:
    """Run `work(args)`; what is wrong with the input becomes one line and exit code 1."""
    import warnings

    # A warning is about the data (uneven slices, say): one line for the user, without the place in the source.
    usual, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"warning: {message}\n"
    try:
        return work(args)
    except (OSError, ValueError, KeyError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        warnings.formatwarning = usual


def _parse_3d(args) -> int:
    from unimed.inference.runs import print_failures, run_cases
    from unimed.inference.volume_files import find_volumes, name_of, prompts_for
    from unimed.io.volume_result import FORMATS
    from unimed.structures import Case

    source, out = Path(args.source), Path(args.out)
    if unknown := [form for form in args.formats if form not in FORMATS]:
        raise ValueError(f"unknown formats {unknown}; known are {', '.join(FORMATS)}")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    paths = find_volumes(source) if source.is_dir() else [source]
    if len(paths) == 1:
        prompts_for(paths[0], args.prompts, args.prompt_file)  # missing prompts should not cost the loading of a model
    root = source if source.is_dir() else source.parent
    cases = [Case(name_of(path, root), {"path": path}) for path in paths]
    settings = {
        key: getattr(args, key)
        for key in ("model", "prompts", "prompt_file", "modality", "site", "window", "percentiles", "view", "overlap",
                    "instances", "threshold", "seed", "formats")
    }  # fmt: skip
    model = load_parser(args)
    report = run_cases(cases, lambda batch: [_one_volume(model, args, out, c) for c in batch], out, settings=settings,
                       restart=args.restart)  # fmt: skip
    for row in report.rows:
        found = ", ".join(f"{t['prompt']} ({t['voxels']})" for t in row["targets"] if t["voxels"]) or "nothing"
        print(f"{row['case']}: {found}; {row['intensity']}; {row['seconds']:.1f} s")
        for target in row["targets"]:
            if not target["voxels"] and target["presence"] >= args.threshold:
                why = "its mask is empty"
                if args.overlap != "keep":
                    why += " or gave way to a surer target (--overlap keep shows it)"
                print(f"  {target['prompt']}: presence {target['presence']:.2f} but no voxel: {why}")
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
    from unimed.models.auto import load

    model = load(args.model, device=args.device, dtype=args.dtype)
    if not hasattr(model, "segment_slices"):
        raise ValueError(f"{args.model} holds {type(model).__name__}, which does not segment by prompts alone")
    return model


def _one_volume(model, args, out: Path, case) -> dict:
    from unimed.files import refuse_to_replace
    from unimed.inference.volume_files import prompts_for, read_volume
    from unimed.inference.volume_text import segment_volume
    from unimed.io.windows import modality_of

    path = case.inputs["path"]
    refuse_to_replace(path, out, case.name)
    asked = prompts_for(path, args.prompts, args.prompt_file)
    array, geometry = read_volume(path)
    if "dicom-seg" in args.formats and geometry.source_format != "dicom":
        raise ValueError(f"{path}: dicom-seg needs a DICOM series as source; choose other --formats")
    modality = args.modality or str(geometry.header.get("modality", "")) or modality_of(path.name)
    result = segment_volume(
        model, array, geometry, asked.first(), view=args.view, modality=modality, site=args.site, window=args.window,
        percentiles=args.percentiles, threshold=args.threshold,
        overlap=args.overlap, instances=args.instances or asked.instances, slice_batch=args.slice_batch, seed=args.seed,
    )  # fmt: skip
    files = result.save(out, case.name, args.formats)
    return result.summary() | {"modality": modality, "files": [path.name for path in files]}


def parse_2d(arguments=None) -> int:
    """`demo_parse2D.py`: one picture, or every picture of a folder."""
    parser = argparse.ArgumentParser(
        description="Segment what the prompts name in a picture or in every picture of a folder, or, with --recognise, "
        "find what of all known targets is there. Research use only."
    )
    parser.add_argument("source", help="PNG, JPEG, TIFF, DICOM, a slice as NIfTI, or a folder of them")
    _common(parser)
    parser.set_defaults(out="work_dirs/parse2D")
    parser.add_argument(
        "--recognise", action="store_true", help="look for every target known for --modality and --site"
    )
    parser.add_argument(
        "--site", default="", help="abdomen, lung, brain, ...; default: as a BiomedParse file name says"
    )
    parser.add_argument(
        "--p-value", type=float, help="v1: drop masks that look less usual than this (--recognise: 0.05)"
    )
    parser.add_argument("--overlap", default="keep", choices=OVERLAPS_2D, help="may masks overlap (default: keep)")
    return guarded(_parse_2d, parser.parse_args(arguments))


def _parse_2d(args) -> int:
    from unimed.inference.runs import print_failures, run_cases
    from unimed.io.raster import SUFFIXES
    from unimed.structures import Case

    source, out = Path(args.source), Path(args.out)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    suffixes = (*SUFFIXES, ".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".mha")
    paths = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.name.lower().endswith(suffixes))
    if not paths:
        raise FileNotFoundError(f"{source}: no picture in it; known are {', '.join(suffixes)}")
    if not args.prompts and not args.recognise:
        raise ValueError("say what to look for with --prompts, or --recognise to look for everything known")
    cases = [Case(path.name.removesuffix(".gz").rsplit(".", 1)[0], {"path": path}) for path in paths]
    keys = ("model", "prompts", "recognise", "modality", "site", "threshold", "p_value", "overlap", "seed")
    model = load_parser(args)
    report = run_cases(cases, lambda batch: [_one_picture(model, args, out, case) for case in batch], out,
                       settings={key: getattr(args, key) for key in keys}, restart=args.restart)  # fmt: skip
    for row in report.rows:
        found = ", ".join(f"{t['target']} ({t['pixels']})" for t in row["found"]) or "nothing"
        print("; ".join([f"{row['case']}: {found}", *row.get("steps", ())]))
    counts = f"{len(report.rows)} pictures, {report.skipped} of them before, {len(report.failed)} failed"
    print(f"{counts}, results in {out}. Research use only.")
    print_failures(report)
    return report.exit_code


def _one_picture(model, args, out: Path, case) -> dict:
    import json
    import time

    from unimed.data.readers.biomedparse_names import FileNameError, parse_image_name
    from unimed.data.wordings.biomedparse_targets import TargetError, image_type
    from unimed.files import refuse_to_replace, write_atomic
    from unimed.inference.recognition import P_VALUE, as_prediction, hierarchy, recognise, segment_image
    from unimed.io.images import load as load_image
    from unimed.io.windows import known_site

    path, modality, site = case.inputs["path"], args.modality, args.site
    refuse_to_replace(path, out, case.name)
    try:
        name = parse_image_name(path.name)
        modality, site = modality or name.modality, site or name.site
    except FileNameError:
        pass
    windows = model.config.ct_windows
    chooses = args.site or known_site(site, modality, windows)  # a file name may give a site that has no window
    source = load_image(path, modality=modality, site=chooses, windows=windows)
    image, geometry = source.pixels, source.geometry
    begin = time.perf_counter()
    if args.recognise:
        p_value = P_VALUE if args.p_value is None else args.p_value
        found = recognise(model, image, modality, site, threshold=args.threshold, p_value=p_value, seed=args.seed)
    else:
        try:
            kind = image_type(modality, site)
        except TargetError:
            kind = ""
        found = segment_image(model, image, args.prompts, kind=kind, threshold=args.threshold, p_value=args.p_value,
                              overlap=args.overlap, seed=args.seed)  # fmt: skip
    prediction = as_prediction(found, geometry, time.perf_counter() - begin, args.model, source.source)
    files = prediction.save(out, case.name, ("json", "png"), image=image)
    row = {
        "found": [one.to_dict() for one in found],
        "steps": list(source.steps),
        "files": [file.name for file in files],
    }
    if args.recognise:
        row["hierarchy"] = hierarchy(found)
        text = json.dumps(row, indent=1, ensure_ascii=False)
        write_atomic(out / f"{case.name}-found.json", lambda p: p.write_text(text, encoding="utf-8"))
    return row
