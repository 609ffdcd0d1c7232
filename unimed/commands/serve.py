"""`unimed serve`: a page in a browser. Needs the extra `serve`."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import DONE, Parser, guarded


def serve(arguments=None, prog: str | None = None) -> int:
    """Serve a page until interrupted."""
    parser = Parser("Try labels on images in a browser. Research use only.", prog=prog)
    parser.flag("model", required=True, action="append", help="a contrastive model; may be repeated")
    parser.flag("device")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: this one only)")
    parser.add_argument("--port", type=int, default=7860)
    return guarded(_serve, parser.parse_args(arguments))


def _serve(args) -> int:
    for path in args.model:
        if not (Path(path).exists() or path.startswith("open_clip:")):
            raise FileNotFoundError(f"{path}: no such file or folder")
    from unimed.models.auto import load
    from unimed.serve.zero_shot import build_page

    models = {Path(path).name: lambda path=path: load(path, device=args.device) for path in args.model}
    build_page(models).launch(server_name=args.host, server_port=args.port, share=False)
    return DONE
