"""`unimed grid`: which of several parts is worth its cost, on the same data and under the same seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from unimed.commands.common import DONE, NOTHING, PARTLY, Parser, count, guarded

_DESCRIPTION = """Train and test every combination of some choices, and compare them: means with intervals over
patients, ranges between seeds, paired tests with Holm's correction, parameters, seconds and peak memory.

    unimed grid configs/unified/_tiny.py --over connector=linear,mlp decoder=light,sam --seeds 0 1 2 --out work/grid

Finished runs are not repeated and interrupted ones resume. An axis is connector, heads, backbone, dialect, a dotted
key of the config such as optimizer.lr, or one that the config names in `grid` (decoder, in that config)."""


def axis(word: str) -> tuple[str, list[str]]:
    """`AXIS=VALUE,VALUE` as (axis, values)."""
    name, separator, values = word.partition("=")
    found = [value for value in values.split(",") if value]
    if not name or not separator or not found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{word!r}: write AXIS=VALUE,VALUE with values that differ")
    return name, found


axis.__name__ = "axis"


def grid(arguments=None, prog: str | None = None) -> int:
    """Train and test every combination of some choices, and compare them."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("config", help="a python config, e.g. configs/unified/_tiny.py")
    parser.add_argument("--over", nargs="+", required=True, type=axis, metavar="AXIS=A,B", help="what is varied")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each combination is run with each")
    parser.add_argument(
        "--metric", default="dice", help="column of the rows of a test that is compared (default: dice)"
    )
    parser.add_argument("--kind", help="rows of this kind only: mask, box, answer, ...")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="config values of all runs")
    parser.add_argument("--resamples", type=count, default=1000, help="bootstrap samples (default: 1000)")
    parser.flag("out", required=True)
    return guarded(_grid, parser.parse_args(arguments))


def _grid(args) -> int:
    from unimed.engine.config import parse_options
    from unimed.engine.grid import compare, plan, run_grid
    from unimed.evaluation.cases import project_salt
    from unimed.evaluation.tables import markdown_table, this_command, write_cases
    from unimed.files import write_text

    out = Path(args.out)
    runs = plan(args.config, dict(args.over), out, args.seeds, parse_options(args.cfg_options))
    out.mkdir(parents=True, exist_ok=True)
    project_salt(out)  # all runs are of one project: their patients must match
    done, failed = run_grid(args.config, runs, lambda text: print(text, flush=True))
    text = f"{len(done)} of {len(runs)} runs finished"
    text += f"; {sum(one['round_trip'] for one in done)} of {len(done)} saved, opened and predicted equal\n"
    if done:
        table, against = compare(done, args.metric, args.kind, resamples=args.resamples)
        text += f"\n## By {args.metric}\n\n{markdown_table(table)}"
        if against:
            text += f"\n## Against the best\n\n{markdown_table(against)}"
        rows = [{k: v for k, v in one.items() if k != "folder"} for one in done]
        write_cases(out / "grid.jsonl", rows)
    if failed:
        text += f"\n## Failed\n\n{markdown_table(failed)}"
    text += f"\n`{this_command()}`\n\nResearch use only.\n"
    print(text)
    print(write_text(out / "grid.md", text))
    return NOTHING if not done else PARTLY if failed else DONE
