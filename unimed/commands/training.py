"""`unimed train`, `unimed test` and `unimed export`."""

from __future__ import annotations

import sys

from unimed.commands.common import DONE, Parser, guarded, parse_options

_EXIT = "Exit codes: 0 done, 1 error, 75 asked to stop, checkpoint saved: go on with --resume auto."


def _config(parser: Parser) -> None:
    parser.add_argument("config", help="a python config, e.g. configs/quickstart/unified_small.py")
    parser.add_argument("--work-dir", help="run folder (default: the config's work_dir, else runs/<config name>)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="replace config values")


def train(arguments=None, prog: str | None = None) -> int:
    """Train; several ranks are started by `tools/dist.sh`."""
    parser = Parser(
        "Train as a config says. Several ranks: bash tools/dist.sh train CONFIG GPUS.", prog=prog, epilog=_EXIT
    )
    _config(parser)
    parser.add_argument("--resume", nargs="?", const="auto", help="'auto' (newest whole checkpoint) or a checkpoint")
    return guarded(_train, parser.parse_args(arguments))


def _train(args) -> int:
    options = parse_options(args.cfg_options)
    from unimed.engine import train as run

    result = run(args.config, args.work_dir, args.resume, options)
    if result["stopped"]:
        from unimed.engine.training import PREEMPTED

        print(f"stopped by {result['stopped']} at step {result['step']}; go on with --resume auto", file=sys.stderr)
        return PREEMPTED
    return DONE


def test(arguments=None, prog: str | None = None) -> int:
    """Test a checkpoint; rank 0 prints the tables."""
    parser = Parser("Test a checkpoint on the test data of a config.", prog=prog)
    _config(parser)
    parser.add_argument("--checkpoint", help="step folder, run folder, or weight file (default: newest of the run)")
    return guarded(_test, parser.parse_args(arguments))


def _test(args) -> int:
    options = parse_options(args.cfg_options)
    from unimed.engine import evaluate
    from unimed.engine.strategy import world
    from unimed.engine.testing import markdown

    metrics = evaluate(args.config, args.checkpoint, args.work_dir, options)
    if world()[0] == 0:
        print(markdown(metrics))
    return DONE


def export(arguments=None, prog: str | None = None) -> int:
    """Write a trained run as a folder that `unimed.load` and transformers open."""
    parser = Parser("Write a trained run as a Hugging Face folder.", prog=prog)
    parser.add_argument("config", help="the config the run was trained with")
    parser.add_argument("checkpoint", help="run folder (its newest checkpoint), step folder, or weight file")
    parser.add_argument("destination", help="folder to write; must not be there yet")
    return guarded(_export, parser.parse_args(arguments))


def _export(args) -> int:
    from unimed.engine.exporting import export as run

    print(run(args.config, args.checkpoint, args.destination))
    return DONE
