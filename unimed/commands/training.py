"""`unimed train`, `unimed test` and `unimed export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from unimed import progress, threads
from unimed.commands.common import DONE, INTERRUPTED, NOTHING, Parser
from unimed.engine import errors
from unimed.engine.shutdown import PREEMPTED, GracefulShutdown, StopRequested

_EXIT = (
    "Exit codes: 0 done, 1 error, 75 asked to stop, checkpoint saved: go on with --resume auto, "
    "130 stopped at once by a second Ctrl-C."
)


def _ranked(work: Callable, args) -> int:
    """Run `work(args)` as one of the ranks and return its exit code.

    Any error is one line and code 1, from all ranks together. A signal that comes before there is anything to save
    (from here on, not only once torch is imported) is one line and code 75.
    """
    from unimed.engine.noise import quiet

    try:
        # The engine draws its own line at the foot of a terminal.
        shown = progress.shown(terminal=False) if _speaks() else nullcontext()
        with quiet(), GracefulShutdown(), shown, threads.chosen():
            return work(args)
    except StopRequested as stop:
        if stop.again:
            if _speaks():
                print(
                    "stopped at once by a second Ctrl-C; the steps since the last checkpoint are lost, go on from it "
                    "with --resume auto",
                    file=sys.stderr,
                )
            return INTERRUPTED
        if _speaks():
            print(f"stopped by {stop} before there was anything to save", file=sys.stderr)
        return PREEMPTED
    except BrokenPipeError:
        # The reader of a pipe (`head`, say) has gone; the interpreter must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOTHING
    except Exception as error:
        return errors.report(error)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _config(parser: Parser, optional: bool = False) -> None:
    parser.add_argument(
        "config", nargs="?" if optional else None, help="a python config, e.g. configs/quickstart/unified_small.py"
    )
    parser.add_argument(
        "--work-dir", writes="folder", help="run folder (default: the config's work_dir, else runs/<config name>)"
    )
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="replace config values")


def train(arguments=None, prog: str | None = None) -> int:
    """Train; several ranks are started by `tools/dist.sh`."""
    parser = Parser(
        "Train as a config says. Several ranks: bash tools/dist.sh train CONFIG GPUS.", prog=prog, epilog=_EXIT
    )
    _config(parser, optional=True)
    parser.add_argument("--cfg-path", metavar="YAML", help="training YAML of the published Uni-Med instead of a config")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="KEY=VALUE", help="with --cfg-path: replace its values"
    )
    parser.add_argument("--data", help="train on this folder of records without writing a config (docs/data.md)")
    parser.add_argument("--start", help="with --data: model to start from (default: a new small one)")
    parser.add_argument("--resume", nargs="?", const="auto", help="'auto' (newest whole checkpoint) or a checkpoint")
    args = parser.parse_args(arguments)
    if not args.config and not args.data and not args.cfg_path:
        parser.error("give a config, or --data FOLDER")
    if args.cfg_path and (args.config or args.data):
        parser.error("--cfg-path stands instead of a config")
    if args.options and not args.cfg_path:
        parser.error("--options belongs to --cfg-path; values of a config are replaced by --cfg-options")
    if args.start and not args.data:
        parser.error("--start belongs to --data; a config names its model in task.model")
    return _ranked(_train, args)


def _train(args) -> int:
    from unimed.engine import train as run
    from unimed.engine.config import parse_options

    options = parse_options(args.cfg_options)
    if args.cfg_path:
        args.config = _from_yaml(args)
    if args.data:
        from unimed.commands.own_data import options_for

        args.config, args.work_dir, given = options_for(args.data, args.start, args.config, args.work_dir)
        options = {**given, **options}
    result = run(args.config, args.work_dir, args.resume, options)
    if not _speaks():
        return PREEMPTED if result["stopped"] else DONE
    saved, folder = result["checkpoint"], result["work_dir"]
    if args.data:
        args.config = str(Path(folder) / "config.py")  # holds what was added to the shipped one
    if result["stopped"]:
        print(
            f"stopped by {result['stopped']} at step {result['step']}, saved {saved}; go on with --resume auto",
            file=sys.stderr,
        )
        return PREEMPTED
    print(
        f"done after {result['step']} steps; the model is in {saved}\n"
        f"  test it:    unimed test {args.config} --checkpoint {folder}\n"
        f"  use it:     unimed export {args.config} {folder} exports/{Path(folder).name}\n"
        f"  train on:   unimed train {args.config} --work-dir {folder} --resume auto --cfg-options max_steps=N"
    )
    return DONE


def _from_yaml(args) -> str:
    """The config that the published YAML becomes, in the run folder; what has no place in it is printed."""
    from unimed.models.checkpoints import uni_med_yaml

    folder = Path(args.work_dir or f"work_dirs/{Path(args.cfg_path).stem}")
    report = uni_med_yaml.convert(Path(args.cfg_path), folder / "from_yaml.py", options=args.options)
    if _speaks():
        print(f"{args.cfg_path}: {report.mapped} keys in {report.destination}, {len(report.dropped)} without a place")
        for name in report.unexpected:
            print(f"  not known: {name}")
    return report.destination


def test(arguments=None, prog: str | None = None) -> int:
    """Test a checkpoint; rank 0 prints the tables."""
    parser = Parser("Test a checkpoint on the test data of a config.", prog=prog)
    _config(parser)
    parser.add_argument("--checkpoint", help="step folder, run folder, or weight file (default: newest of the run)")
    return _ranked(_test, parser.parse_args(arguments))


def _test(args) -> int:
    from unimed.engine import evaluate
    from unimed.engine.config import parse_options
    from unimed.engine.testing import markdown

    metrics = evaluate(args.config, args.checkpoint, args.work_dir, parse_options(args.cfg_options))
    if _speaks():
        print(markdown(metrics))
    return DONE


def export(arguments=None, prog: str | None = None) -> int:
    """Write a trained run as a folder that `unimed.load` and transformers open."""
    parser = Parser("Write a trained run as a Hugging Face folder.", prog=prog)
    parser.add_argument("config", help="the config the run was trained with")
    parser.add_argument("checkpoint", help="run folder (its newest checkpoint), step folder, or weight file")
    parser.add_argument("destination", writes="new", help="folder to write; must not be there yet")
    return _ranked(_export, parser.parse_args(arguments))


def _export(args) -> int:
    from unimed.engine.exporting import export as run

    print(run(args.config, args.checkpoint, args.destination))
    return DONE
