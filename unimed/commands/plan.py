"""`unimed plan`: does this training fit, by which strategy, and what to change where it does not."""

from __future__ import annotations

import argparse
import math

from unimed.commands.common import DONE, NOTHING, Parser, count, guarded

_DESCRIPTION = """Memory that a training will need on each GPU, before anything is downloaded or started.

    unimed plan configs/unified/internvl3_5_8b.py --gpus 8 --memory 80

A step of the model is computed in shapes alone, on drawn samples, and split as each strategy does. Weights need not
be there. Exit code 1 where nothing fits."""


def _gibibytes(word: str) -> float:
    """An argument that is a finite number above 0."""
    number = float(word)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {word}")
    return number


def plan(arguments=None, prog: str | None = None) -> int:
    """Memory of a training per strategy, what fits, and what to change."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("config", help="a python config, e.g. configs/unified/internvl3_5_8b.py")
    parser.add_argument("--gpus", type=count, default=8, help="ranks in all (default: 8)")
    parser.add_argument("--memory", type=_gibibytes, default=80.0, metavar="GIB", help="of one GPU (default: 80)")
    parser.add_argument("--tokens", type=count, default=512, help="text tokens of a sample (default: 512)")
    parser.add_argument("--image-size", type=count, default=1024, help="side of its image in pixels (default: 1024)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="replace config values")
    return guarded(_plan, parser.parse_args(arguments))


def _plan(args) -> int:
    from unimed.engine import planning
    from unimed.engine.config import load_config, parse_options
    from unimed.evaluation.tables import markdown_table
    from unimed.progress import stage

    settings = load_config(args.config, parse_options(args.cfg_options))
    known: dict[tuple, planning.Measured] = {}

    def measured(changed) -> planning.Measured:
        key = (changed["batch_size"], changed["gradient_checkpointing"])
        if key not in known:
            with stage(f"a step of {key[0]} samples{' with recomputed activations' if key[1] else ''}"):
                known[key] = planning.measure(changed, args.tokens, args.image_size)
        return known[key]

    step = measured(settings).step
    print(
        f"{args.config}: {step.parameters / planning.GIB:.2f} GiB of parameters, {step.trainable / planning.GIB:.2f} "
        f"of which learn; batch_size={settings['batch_size']}, accumulate={settings['accumulate']}, "
        f"precision={settings['precision']}, gradient_checkpointing={settings['gradient_checkpointing']}; samples of "
        f"{args.tokens} tokens and an image of {args.image_size} pixels"
    )
    rows = []
    for strategy in planning.STRATEGIES if args.gpus > 1 else ("single",):
        one = planning.need(measured(settings), strategy, args.gpus, settings["accumulate"])
        parts = {name: f"{getattr(one, name) / planning.GIB:.2f}" for name in one._fields[1:]}
        answer = "yes" if planning.fits(one, args.memory) else "no"
        rows.append({"strategy": strategy, **parts, "total": f"{one.total / planning.GIB:.2f}", "fits": answer})
    print(f"GiB on each of {args.gpus} GPUs, {planning.RESERVED:.0%} of {args.memory:g} kept for the driver:\n")
    print(markdown_table(rows))
    host = step.parameters / planning.GIB
    if settings["context_parallel"] > 1:
        print(f"context_parallel={settings['context_parallel']} is not counted: a rank is planned with whole samples.")
    print(f"Each rank builds the whole model in host memory first: {host:.1f} GiB per rank, then it is split.")
    found = planning.advise(settings, args.gpus, args.memory, measured)
    if found is None:
        print("Nothing fits on up to 4096 GPUs. Train adapters (task.lora), freeze parts, or take a smaller model.")
        return NOTHING
    options = " ".join(f"{key}={value}" for key, value in found.options.items())
    needed = f"{found.need.total / planning.GIB:.2f} GiB"
    if found.ranks != args.gpus:
        print(f"Does not fit on {args.gpus} GPUs. On {found.ranks}: --cfg-options {options} ({needed} each)")
        return NOTHING
    print(f"Fits with --cfg-options {options} ({needed} on each GPU)")
    return DONE
