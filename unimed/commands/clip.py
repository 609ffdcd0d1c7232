"""Evaluate and average contrastive models: `unimed clip VERB --help`. Research use only.

zero-shot       the 21 sets of UniMed-CLIP, or a folder per class of your own
retrieval       recall@k between images and captions of shards
probe           few-shot and linear probe on a folder per class
import-prompts  published prompts out of your copy of the reference's constants file, checked by fingerprint
overlap         images of one folder or shard set that are in another
average         weights between two models (WiSE-FT), or its curve over a folder per class
speed           ratios of padding and of the feature cache
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from pathlib import Path

from unimed.commands.common import Parser, count, exit_code, guarded, load_model
from unimed.files import read_json, read_lines


def clip(arguments=None, prog: str | None = None) -> int:
    """Run a verb of contrastive models."""
    parser = Parser(__doc__, prog=prog)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name, run, *arguments):
        one = verbs.add_parser(name, description=name)
        for words, options in arguments:
            one.add_argument(*words, **options)
        one.set_defaults(run=run)

    def argument(*words, **options):
        return words, options

    model = argument("model", help="converted or exported folder, published checkpoint, or open_clip:NAME/WEIGHTS")
    out = argument("--out", writes="folder", help="folder for table.md, scores.json and cases.jsonl")
    cache = argument("--cache", help="folder of image features, kept by content (default: none)")
    site = argument("--site", default="", help="CT window of deep images, e.g. lung")
    resamples = argument("--resamples", type=int, default=500, help="of the intervals; 0 leaves them out")
    templates = argument("--templates", nargs="+", help="prompts with {} for the label")
    verb(
        "zero-shot", zero_shot, model, out, cache, site, resamples, templates,
        argument("--data", required=True, help="folder that holds a folder per set, or with --labels per class"),
        argument("--sets", nargs="+", help="ids of sets (default: those whose folder is there)"),
        argument("--prompts", help="file of import-prompts, or your own {set: {class: prompts}}"),
        argument("--labels", action="store_true", help="DATA is your own: a folder per class, named like the label"),
        argument("--class-norm", action="store_true", help="z-score text and image features over the classes"),
        argument("--compat", choices=["reference"], help="repeat the published evaluation's quirks"),
    )  # fmt: skip
    verb("retrieval", retrieval, model, out, cache, site, resamples,
         argument("--shards", required=True, help="pattern of tar files with images and texts"),
         argument("--limit", type=int, default=1000, help="pairs (default: 1000)"))  # fmt: skip
    verb("probe", probe, model, out, cache, site, templates,
         argument("--train", required=True, help="a folder per class"),
         argument("--test", required=True, help="a folder per class"),
         argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16]),
         argument("--seeds", type=int, default=5))  # fmt: skip
    verb("import-prompts", import_prompts,
         argument("constants", help="the reference's Python file of prompts; it is parsed, not run"),
         argument("destination", writes="file", help="JSON file to write"))  # fmt: skip
    verb("overlap", overlap, out,
         argument("first", help="folder of images, or pattern of shards (*.tar)"),
         argument("second", help="the same; its images are looked for in the first"),
         argument("--bits", type=int, default=2, help="of 64 that may differ (default: 2)"),
         argument("--workers", type=count, default=1, help="processes that read images (default: 1)"))  # fmt: skip
    verb("average", average, argument("start"), argument("tuned"), argument("destination", writes="folder"),
         argument("--alpha", type=float, default=0.5, help="fraction of the tuned weights (default: 0.5)"),
         argument("--curve", help="a folder per class: accuracy for alpha 0 to 1 instead"), templates)  # fmt: skip
    verb("speed", speed, model, argument("images", help="folder of images"), argument("--texts", help="a text a line"))
    args = parser.parse_args(arguments)
    return guarded(args.run, args)


def _open(args):
    from unimed.evaluation.feature_cache import FeatureCache

    return FeatureCache(_load(args.model), args.cache, args.site)


def _load(path):
    return load_model(path, able="zero_shot", to="compare images with texts")


def _write(args, tables: dict, notes=(), cases=()) -> None:
    from unimed.evaluation.tables import markdown_table, this_command, write_cases
    from unimed.files import plain, write_report, write_text

    text = "\n".join(f"### {name}\n\n{markdown_table(rows)}" for name, rows in tables.items())
    text += "".join(f"\n* {note}" for note in notes) + f"\n\nResearch use only. Reproduce: `{this_command()}`\n"
    print(text)
    if getattr(args, "out", None):
        write_text(Path(args.out) / "table.md", text)
        write_report(Path(args.out) / "scores.json", plain(tables) | {"notes": list(notes)})
        if cases:
            write_cases(Path(args.out) / "cases.jsonl", cases)


def _classes(folder) -> tuple[list[Path], list[int], list[str]]:
    """Images, class numbers and names of a folder per class."""
    from unimed.io.images import is_image_file

    names = sorted(p.name for p in Path(folder).iterdir() if p.is_dir())
    if len(names) < 2:
        raise ValueError(f"{folder}: a folder per class is expected, at least two; found {names}")
    files = [(p, n) for n, name in enumerate(names) for p in sorted((Path(folder) / name).rglob("*"))]
    files = [(path, number) for path, number in files if is_image_file(path)]
    return [path for path, _ in files], [number for _, number in files], names


def zero_shot(args) -> int:
    from unimed.data.readers.zero_shot_sets import catalog, chosen
    from unimed.evaluation.benchmarks import benchmark
    from unimed.evaluation.cases import project
    from unimed.evaluation.scorers.zero_shot import average_rows, overlap_notes
    from unimed.metrics.zero_shot import zero_shot_intervals, zero_shot_scores

    if args.labels:
        paths, targets, names = _classes(args.data)
        cache = _open(args)
        _, similarity = cache.similarity(paths, names, args.templates, args.class_norm)
        scores = zero_shot_scores(similarity, targets)
        if args.resamples:
            scores |= zero_shot_intervals(similarity, targets, resamples=args.resamples)
        _write(args, {"zero-shot": [{"data": str(args.data), **scores}]})
        return 0
    imported = read_json(args.prompts) if args.prompts else None
    root = Path(args.data)
    sets = chosen(args.sets)
    if args.sets is None:
        sets = [one for one in sets if (root / one.id).is_dir()]
        if not sets:
            raise ValueError(f"{root}: no folder is named like a set; known are {', '.join(catalog())}")
    cache, rows, cases, failed = _open(args), [], [], {}
    for one in sets:
        try:
            options = dict(imported=imported, class_norm=args.class_norm, resamples=args.resamples, compat=args.compat)
            with project(args.out) if args.out else nullcontext():
                row, lines = benchmark(f"zero_shot/{one.id}").score(cache, root=root / one.id, **options)
        except (OSError, ValueError) as error:
            failed[one.id] = str(error)
            continue
        rows.append(row)
        cases += lines
    if rows:
        notes = overlap_notes(rows, catalog())
        if any(row["prompts"] == "own" for row in rows):
            notes.append("Prompts marked own are not the published ones; numbers differ with the wording.")
        _write(args, {"sets": rows, "means": average_rows(rows, catalog())}, notes, cases)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return exit_code(len(rows), len(failed)) if rows else 1


def retrieval(args) -> int:
    import tempfile

    from PIL import Image

    from unimed.data.readers.pairs import captions_of
    from unimed.data.readers.shards import ImageTextShards
    from unimed.evaluation.scorers import zero_shot as runner

    data = ImageTextShards(args.shards, limit=args.limit)
    cache = _open(args)
    with tempfile.TemporaryDirectory() as folder:
        pairs, broken = [], 0
        for number in range(len(data)):
            try:
                sample = data[number]
            except ValueError as error:
                broken += 1
                print(f"skipped: {error}", file=sys.stderr)
                continue
            path = Path(folder) / f"{number}.png"
            Image.fromarray(sample.images[0]).save(path)
            pairs.append((path, captions_of(sample)))
        lines, rows = runner.retrieval(cache, pairs, args.resamples)
    _write(args, {"retrieval": lines}, [f"{broken} pairs were skipped."] if broken else [], rows)
    return 0


def probe(args) -> int:
    from unimed.evaluation.scorers import zero_shot as runner

    first, first_targets, names = _classes(args.train)
    second, second_targets, others = _classes(args.test)
    if names != others:
        raise ValueError(f"the classes of {args.train} and {args.test} differ: {names} and {others}")
    lines, rows = runner.probe(
        _open(args), (first, first_targets), (second, second_targets), names, args.templates, args.shots, args.seeds
    )
    _write(args, {"frozen features": lines}, cases=rows)
    return 0


def import_prompts(args) -> int:
    from unimed.data.readers import zero_shot_sets

    states = zero_shot_sets.import_prompts(args.constants, args.destination)
    for name, state in states.items():
        print(f"{name}: {state}")
    good = sum(state == "published" for state in states.values())
    print(f"{good} of {len(states)} sets have the published prompts -> {args.destination}")
    return 0 if good == len(states) else 1


def overlap(args) -> int:
    from unimed.data.overlap import find_overlap, fingerprints_of

    broken: list[str] = []
    first, second = (fingerprints_of(place, broken, args.workers) for place in (args.first, args.second))
    rows = find_overlap(first, second, args.bits)
    for name in broken:
        print(f"skipped: {name}", file=sys.stderr)
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in ("equal bytes", "looks alike")}
    _write(args, {"overlap": [counts | {"first": args.first, "second": args.second}]}, cases=rows)
    for row in rows[:20]:
        print(f"{row['image']} = {row['found_as']} ({row['kind']})")
    return 0


def average(args) -> int:
    from unimed.models.clip.averaging import average_folders, interpolate

    if not args.curve:
        print(average_folders(args.start, args.tuned, args.destination, args.alpha))
        return 0
    from unimed.metrics.zero_shot import zero_shot_scores

    start, model = _load(args.start), _load(args.tuned)
    first, second = start.state_dict(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    paths, targets, names = _classes(args.curve)
    rows = []
    for step in range(11):
        model.load_state_dict(interpolate(first, second, step / 10))
        _, weights = model.classifier(names, args.templates)
        similarity = model.encode_image([str(path) for path in paths]).numpy() @ weights.numpy().T
        scores = zero_shot_scores(similarity, targets)
        rows.append({"alpha": step / 10} | {k: scores[k] for k in ("accuracy", "balanced_accuracy", "auc")})
    args.out = args.destination
    _write(args, {"between start (0) and tuned (1)": rows})
    return 0


def speed(args) -> int:
    """Ratios measured in one run: text padded to the longest against the whole context, cached against computed."""
    import tempfile

    from unimed.data.readers.zero_shot_sets import catalog
    from unimed.evaluation.feature_cache import FeatureCache
    from unimed.io.images import is_image_file

    paths = sorted(p for p in Path(args.images).rglob("*") if is_image_file(p))
    if not paths:
        raise FileNotFoundError(f"{args.images}: no image in it")
    model = _load(args.model)
    if args.texts:
        texts = read_lines(args.texts)
    else:
        texts = [t for one in catalog().values() for group in one.own_prompts().values() for t in group][:64]
    seconds = {}
    for padding in ("longest", "max_length", "longest", "max_length"):  # the first round warms up
        began = time.perf_counter()
        model.encode_text(texts, padding=padding)
        seconds[padding] = time.perf_counter() - began
    worst = float((model.encode_text(texts) - model.encode_text(texts, padding="max_length")).abs().max())
    with tempfile.TemporaryDirectory() as folder:
        took = []
        for _ in range(2):
            began = time.perf_counter()
            # Opening is part of it: the weights are hashed, so that features never meet another model.
            cache = FeatureCache(model, folder)
            cache.encode(paths)
            took.append(time.perf_counter() - began)
    _write(args, {"speed": [
        {"what": f"{len(texts)} texts, padded to {model.config.context_length} / to the longest",
         "ratio": seconds["max_length"] / seconds["longest"], "largest difference": f"{worst:.1e}"},
        {"what": f"{len(paths)} images, computed / from the cache", "ratio": took[0] / took[1],
         "largest difference": "0"},
    ]})  # fmt: skip
    return 0
