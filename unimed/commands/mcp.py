"""`unimed mcp`: the model as tools of an agent, over standard input and output or HTTP. Needs the extra `mcp`."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import DONE, Parser, guarded

_DESCRIPTION = """Give an agent tools to describe, segment, measure, compare and report. Research use only.

    unimed mcp MODEL --root images/
    unimed mcp MODEL --root images/ --port 8001     at http://127.0.0.1:8001/mcp

The agent starts this command itself and speaks MCP over standard input and output (AGENTS.md shows its settings); with
--port it is reached by an address instead, by every program of this machine and by no other machine. It
reads below --root and nowhere else, and writes to --out below it."""


def mcp(arguments=None, prog: str | None = None) -> int:
    """Serve tools until the agent closes the pipe."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("model", help="exported folder or published checkpoint")
    parser.add_argument("--root", type=Path, required=True, help="the one folder that tools may read")
    parser.add_argument("--out", default="unimed-results", help="folder of results below it (default: %(default)s)")
    parser.add_argument("--port", type=int, help="speak over HTTP at this port of 127.0.0.1 (default: standard input)")
    parser.flag("device")
    parser.flag("dtype")
    parser.flag("max-new-tokens", default=256)
    return guarded(_mcp, parser.parse_args(arguments))


def _mcp(args) -> int:
    import contextlib
    import sys

    from unimed.commands.common import load_model
    from unimed.files import resolve_inside
    from unimed.serve.mcp import build_server, over_http

    if args.port is not None and not 0 < args.port < 65536:
        raise ValueError(f"--port {args.port}: a port lies between 1 and 65535")
    if not Path(args.model).exists():
        raise FileNotFoundError(f"{args.model}: no such file or folder")
    if args.root.is_dir():
        resolve_inside(args.root, args.out, where="--out")

    def load():
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to the protocol
            return load_model(args.model, device=args.device, dtype=args.dtype)

    server = build_server(load, args.root, args.out, args.max_new_tokens)
    if args.port is None:
        server.run("stdio")
    else:
        print(f"http://127.0.0.1:{args.port}/mcp  (research use only; Ctrl-C stops)", flush=True)
        over_http(server, args.port).run()
    return DONE
