"""`unimed card`: the model card of a folder, with what a test or benchmarks measured."""

from __future__ import annotations

import json
from pathlib import Path

from unimed.commands.common import DONE, Parser, guarded
from unimed.files import write_text

_DESCRIPTION = """Write the model card (README.md) of a folder that unimed.load opens: what it is made of, the license
that binds most, intended use, and what was measured. `unimed export` writes one by itself."""


def card(arguments=None, prog: str | None = None) -> int:
    """Write the model card of a folder."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("folder", help="an exported or converted model")
    parser.add_argument("--run", help="run folder whose test is told (test/metrics.json and metrics.md)")
    parser.add_argument("--benchmarks", nargs="+", default=[], metavar="RUN", help="runs of `unimed benchmark`")
    parser.add_argument("--name", default="", help="of the model (default: that of the folder)")
    parser.add_argument(
        "--part", nargs=3, action="append", default=[], metavar=("PART", "NAME", "LICENSE"),
        help='a part that is not written down yet, such as "training data" "our set" "CC BY 4.0"; may be repeated',
    )  # fmt: skip
    parser.add_argument("--out", writes="file", help="file to write (default: README.md of the folder)")
    return guarded(_card, parser.parse_args(arguments))


def _card(args) -> int:
    from unimed.data.licenses import Source, read_sources, write_sources
    from unimed.engine.exporting import measured
    from unimed.evaluation.harness.cards import results_of
    from unimed.models.cards import model_card

    folder = Path(args.folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no config.json, so no model; `unimed export` and `unimed convert` write one"
        )
    kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    name = args.name or folder.resolve().name
    sources = [*read_sources(folder), *(Source(*part) for part in args.part)]
    if args.part:
        write_sources(folder, sources)
    told = measured(Path(args.run) / "test", name) if args.run else {}
    if args.run and not told:
        raise FileNotFoundError(f"{args.run}: no test/metrics.json; `unimed test CONFIG --checkpoint {args.run}`")
    if args.benchmarks:
        results, table = results_of(args.benchmarks)
        told["results"] = [*told.get("results", []), *results]
        told["tables"] = "\n\n".join(part for part in (told.get("tables", ""), table) if part)
    tags, example = _family(kind)
    text = model_card(name, tags=tags, example=example, sources=sources, **told)
    print(write_text(args.out or folder / "README.md", text))
    return DONE


def _family(kind: str) -> tuple[tuple[str, ...], str]:
    """Tags and an example of the family that a `model_type` belongs to."""
    from unimed.tasks.base import Task
    from unimed.tasks.contrastive import ContrastiveTask
    from unimed.tasks.parsing import ParseTask

    task = ContrastiveTask if "clip" in kind else ParseTask if "boltzformer" in kind or "biomedparse" in kind else Task
    return task.card_tags, task.card_example
