"""`unimed mcp`: the model as tools of an agent, over standard input and output. Needs the extra `mcp`."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import DONE, Parser, guarded

_DESCRIPTION = """Give an agent tools to describe, segment, measure, compare and report. Research use only.

    unimed mcp MODEL --root images/

The agent starts this command itself and speaks MCP over standard input and output (AGENTS.md shows its settings). It
reads below --root and nowhere else, and writes to --out below it."""


def mcp(arguments=None, prog: str | None = None) -> int:
    """Serve tools until the agent closes the pipe."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("model", help="exported folder or published checkpoint")
    parser.add_argument("--root", type=Path, required=True, help="the one folder that tools may read")
    parser.add_argument("--out", default="unimed-results", help="folder of results below it (default: unimed-results)")
    parser.flag("device")
    parser.flag("dtype")
    parser.flag("max-new-tokens", default=256)
    return guarded(_mcp, parser.parse_args(arguments))


def _mcp(args) -> int:
    import contextlib
    import sys

    from unimed.commands.common import load_model
    from unimed.files import resolve_inside
    from unimed.serve.mcp import build_server

    if not Path(args.model).exists():
        raise FileNotFoundError(f"{args.model}: no such file or folder")
    if args.root.is_dir():
        resolve_inside(args.root, args.out, where="--out")

    def load():
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to the protocol
            return load_model(args.model, device=args.device, dtype=args.dtype)

    build_server(load, args.root, args.out, args.max_new_tokens).run("stdio")
    return DONE
