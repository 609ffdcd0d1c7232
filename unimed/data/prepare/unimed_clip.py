"""`tools/prepare_data.py unimed-clip SOURCE IN OUT`: image-text shards of a training source of UniMed-CLIP."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unimed.data.prepare.pieces import add_workers
from unimed.markup import plain_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tools/prepare_data.py unimed-clip`."""
    from unimed.data.prepare.pairs.sources import SOURCES

    listed = "\n".join(f"  {s.name} ({s.modality}): {s.needs}" for s in SOURCES.values())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"sources and what IN must hold:\n{listed}"
    parser.add_argument("source", choices=sorted(SOURCES), metavar="SOURCE", help="see below")
    parser.add_argument("input", metavar="IN", help="folder of the images and their annotation file")
    parser.add_argument(
        "out", writes="folder", metavar="OUT", help="folder of the shards; an interrupted run goes on there"
    )
    parser.add_argument("--layout", choices=("json", "published"), default="json", help="of captions (default: json)")
    parser.add_argument("--per-shard", type=int, default=1000, help="pairs per tar file (default: 1000)")
    parser.add_argument("--max-skipped", type=int, default=1000, help="broken or missing images allowed (1000)")
    parser.add_argument("--limit", type=int, help="only so many records, for a trial")
    add_workers(parser)
    parser.add_argument("--llm-url", help="OpenAI-compatible server that writes captions from labels (default: none)")
    parser.add_argument("--llm-model", default="", help="its model")
    parser.add_argument("--llm-key", default="OPENAI_API_KEY", help="environment variable with its key")


def run(args: argparse.Namespace) -> int:
    """Write the shards; returns the exit code."""
    from unimed.data.prepare.pairs.captions import CaptionError, Rewriter, from_templates
    from unimed.data.prepare.pairs.sources import SOURCES, SourceError
    from unimed.data.prepare.pairs.writing import write_shards

    source, root = SOURCES[args.source], Path(args.input)
    try:
        if not root.is_dir():
            raise SourceError(f"{root} is no folder")
        captioner, settings = from_templates, {}
        if args.llm_url:
            captioner = Rewriter(args.llm_url, args.llm_model, Path(args.out) / "rewrites.jsonl", args.llm_key)
            settings = {"llm": args.llm_model}
        pairs = source.read(root, captioner, args.layout == "published")
        write_shards(
            source,
            pairs,
            args.out,
            per_shard=args.per_shard,
            layout=args.layout,
            max_skipped=args.max_skipped,
            limit=args.limit,
            settings=settings,
            workers=args.workers,
        )
    except (SourceError, CaptionError, OSError, ValueError, KeyError) as error:
        message = plain_line(f"field {error} is missing" if isinstance(error, KeyError) else str(error))
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0
