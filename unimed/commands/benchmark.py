"""`unimed benchmark`: any model on any declared benchmark, frozen, scored, checked for leaks, repeatable."""

from __future__ import annotations

import sys
from pathlib import Path

from unimed.commands.common import DONE, PARTLY, Parser, count, guarded
from unimed.evaluation.benchmarks.declaring import Benchmark, benchmarks, data_folder
from unimed.evaluation.benchmarks.declaring import benchmark as declared
from unimed.evaluation.bridges.lmms_tasks import write_task
from unimed.evaluation.contestants.base import Settings
from unimed.evaluation.harness.cards import model_index
from unimed.evaluation.harness.plan import Plan, execute, repeat, rescore, usual_folder
from unimed.evaluation.tables import markdown_table, this_command

_DESCRIPTION = """Ask a contestant every case of a benchmark, freeze what it says, and score it.

    unimed benchmark --list
    unimed benchmark vqa_rad exports/mine                    # a model of ours
    unimed benchmark ms_cxr transformers:Qwen3-VL-4B         # any image-text model of transformers
    unimed benchmark ms_cxr openai:NAME --url http://HOST/v1 # an endpoint; its key is in OPENAI_API_KEY
    unimed benchmark msd_liver labels:nnunet_output          # label maps of nnU-Net or TotalSegmentator
    unimed benchmark vqa_rad predictions:answers.jsonl       # answers in a file
    unimed benchmark vqa_rad prior:                          # no: everything: prior: look at no image
    unimed benchmark --from RUN/manifest.json                # repeat a run and compare
    unimed benchmark --rescore RUN                           # score frozen predictions again, without the model
    unimed benchmark speed OUT                               # seconds beside what one would run instead

A run folder holds manifest.json, predictions.jsonl, cases.jsonl, scores.md and run.html. Runs are compared by
`unimed compare-runs RUN RUN`. Exit code 2: cases failed, or a repeated run differs."""


def benchmark(arguments=None, prog: str | None = None) -> int:
    """Score a contestant on a benchmark; "speed" in the place of its name is `unimed speed all`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["speed"]:
        from unimed.commands.speed import speed

        return speed(["all", *words[1:]], prog or "unimed benchmark speed")
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("name", nargs="?", help="declared benchmark, see --list")
    parser.add_argument("contestant", nargs="?", metavar="MODEL", help="folder of a model, or KIND:REFERENCE")
    parser.add_argument("--list", nargs="?", const="", metavar="PREFIX", help="declared benchmarks and their data")
    parser.add_argument("--from", dest="manifest", metavar="MANIFEST", help="repeat that run and compare")
    parser.add_argument("--rescore", metavar="RUN", help="score its frozen predictions again")
    parser.add_argument(
        "--data", default="", help="folder of the data (default: $UNIMED_BENCHMARKS or data/benchmarks, then FOLDER)"
    )
    parser.add_argument(
        "--against", default="", metavar="FOLDER", help="records a model was trained on, for the leak check as well"
    )
    parser.add_argument("--limit", type=count, help="only the first so many cases")
    parser.add_argument("--dialect", default="", help="registered dialect that boxes in a text are read by")
    parser.add_argument("--url", default="", help="of an endpoint, http://HOST/v1")
    parser.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable with its key")
    parser.add_argument("--judge", default="", help="model that judges reports: statements (RadFact), errors (GREEN)")
    parser.add_argument("--judge-url", default="", help="of the judge, http://HOST/v1; its key is in JUDGE_API_KEY")
    parser.add_argument("--model-card", nargs="+", metavar="RUN", help="print runs as model-index of a model card")
    parser.add_argument(
        "--card-name", default="", help="name of the model on the card (default: that of the first run)"
    )
    parser.add_argument(
        "--lmms-tasks", writes="folder", metavar="FOLDER", help="write the benchmark as a task of lmms-eval"
    )
    parser.add_argument("--resamples", type=count, default=500, help="bootstrap samples (default: 500)")
    parser.add_argument("--worst", type=int, default=12, help="images of the worst cases on the page (default: 12)")
    parser.add_argument("--no-leak-check", action="store_true", help="do not compare with the training part")
    parser.add_argument("--no-baselines", action="store_true", help="do not score answers that look at no image")
    parser.add_argument("--no-frame-test", action="store_true", help="do not draw images to check the frame of boxes")
    for name in ("out", "device", "dtype", "batch-size", "max-new-tokens", "seed", "restart"):
        parser.flag(name)
    args = parser.parse_intermixed_args(words)
    if args.lmms_tasks and not args.name:
        parser.error("name the benchmark that becomes a task")
    other = args.list is not None or args.manifest or args.rescore or args.model_card or args.lmms_tasks
    if not other and not (args.name and args.contestant):
        parser.error("name a benchmark and a model; --list shows the benchmarks")
    return guarded(_benchmark, args)


def _benchmark(args) -> int:
    if args.list is not None:
        print(markdown_table([_listed(one) for one in benchmarks(args.list).values()]))
        return DONE
    if args.lmms_tasks:
        one = declared(args.name)
        print(write_task(one, args.data or data_folder(one), args.lmms_tasks, args.limit))
        return DONE
    if args.model_card:
        print(model_index(args.model_card, args.card_name or Path(args.model_card[0]).resolve().name), end="")
        return DONE
    if args.rescore:
        manifest, text = rescore(args.rescore)
        print(text)
        return PARTLY if manifest["failed"] else DONE
    if args.manifest:
        lines, out = repeat(args.manifest, args.out, command=this_command())
        print(markdown_table(lines))
        print(out / "run.html")
        return DONE if all(line["equal"] for line in lines) else PARTLY
    settings = Settings(
        device=args.device, dtype=args.dtype, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens,
        dialect=args.dialect, url=args.url, key_variable=args.key_variable,
    )  # fmt: skip
    plan = Plan(
        args.name, args.contestant, settings, data=args.data, against=args.against, judge=args.judge,
        judge_url=args.judge_url, limit=args.limit, seed=args.seed, resamples=args.resamples,
        worst=args.worst, leak_check=not args.no_leak_check,
        baselines=not args.no_baselines, frame_test=not args.no_frame_test,
    )  # fmt: skip
    out = Path(args.out) if args.out else usual_folder(plan)
    manifest, text = execute(plan, out, restart=args.restart, command=this_command())
    print(text)
    print(out / "run.html")
    return PARTLY if manifest["failed"] else DONE


def _listed(one: Benchmark) -> dict:
    return {
        "benchmark": one.name, "task": one.task, "headline": one.headline or one.metrics[0],
        "folder": str(data_folder(one)), "license": one.license, "get": one.homepage,
        "known leaks": one.leaks or one.note,
    }  # fmt: skip
