"""`unimed serve`: chat with regions, jobs, MONAI Label, DICOMweb over HTTP. Needs the extra `serve`."""

from __future__ import annotations

import sys
from pathlib import Path

from unimed.commands.common import DONE, Parser, guarded

_DESCRIPTION = """Serve models on this machine: OpenAI-style chat with regions, uploads, jobs. Research use only.

    unimed serve MODEL                                  chat at http://127.0.0.1:8000/v1
    unimed serve MODEL --root images/ --tokens users.txt --host 0.0.0.0
    unimed serve MODEL --root dicom/ --labels liver spleen   for 3D Slicer and OHIF (MONAI Label, DICOMweb)
    unimed serve MODEL --page                           and pages in a browser at http://127.0.0.1:8000/pages/

docs/serving.md shows how to ask. Ctrl-C answers what is at work and stops; unfinished jobs go on next time."""


def serve(arguments=None, prog: str | None = None) -> int:
    """Serve models until interrupted."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="exported folder or checkpoint; first is default")
    parser.flag("model", action="append", default=[], help="as MODEL; may be repeated")
    parser.flag("device")
    parser.flag("dtype")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: this one only)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--root", type=Path, help="folder whose files jobs may name (default: uploads only)")
    parser.add_argument(
        "--state", writes="folder", type=Path, help="folder of uploads and jobs (default: in the cache of unimed)"
    )
    parser.add_argument("--tokens", type=Path, help="file with a line `OWNER TOKEN` per user; needed for other hosts")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOSTNAME", help="under which other machines reach this one"
    )
    parser.add_argument("--origin", action="append", default=[], help="web page that may call from a browser")
    parser.add_argument("--max-queue", type=int, default=32, help="questions that may wait (default: 32)")
    parser.add_argument("--max-batch", type=int, default=8, help="questions answered together (default: 8)")
    parser.add_argument("--idle-model", type=float, default=0, help="seconds after which a model is unloaded; 0 never")
    parser.add_argument("--labels", nargs="+", default=[], metavar="NAME", help="labels that Slicer and OHIF list")
    parser.add_argument("--ohif", type=Path, metavar="FOLDER", help="built OHIF viewer, served at /ohif/")
    parser.add_argument("--label-studio", default="", metavar="URL", help="Label Studio, whose images may be fetched")
    parser.add_argument("--page", action="store_true", help="also pages in a browser, at /pages/ (gradio)")
    parser.flag("max-new-tokens", default=512)
    return guarded(_serve, parser.parse_args(arguments))


def _serve(args) -> int:
    paths = [*args.models, *args.model]
    if not paths:
        raise ValueError("give a model: unimed serve MODEL")
    for path in paths:
        if not (Path(path).exists() or path.startswith("open_clip:")):
            raise FileNotFoundError(f"{path}: no such file or folder")
    names = {Path(path).name: path for path in paths}
    if len(names) < len(paths):
        raise ValueError(f"two models are called {min(names)}; their folders need different names")
    from unimed.commands.common import load_model

    options = dict(device=args.device, dtype=args.dtype)
    loaders = {name: lambda path=path: load_model(path, **options) for name, path in names.items()}
    return _server(loaders, args)


def _server(loaders, args) -> int:
    from unimed.files import FolderLock, cache_folder
    from unimed.serve.app import create_app
    from unimed.serve.doors import clinic_doors
    from unimed.serve.pool import ModelPool
    from unimed.serve.settings import LOOPBACK, Settings, read_tokens
    from unimed.serve.traffic import log_to

    tokens = read_tokens(args.tokens) if args.tokens else {}
    if args.host not in LOOPBACK and not tokens:
        raise ValueError(
            f"--host {args.host} lets other machines in; give --tokens FILE with a line `OWNER TOKEN` each"
        )
    if args.root is not None and not args.root.is_dir():
        raise FileNotFoundError(f"{args.root}: no such folder")
    if args.label_studio and not args.label_studio.startswith(("http://", "https://")):
        raise ValueError(f"--label-studio {args.label_studio}: give an http or https address")
    for name in ("max_queue", "max_batch", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError("the server needs uvicorn: pip install 'unimed[serve]'") from error
    # A page of elsewhere that got itself our address by DNS has no token; without tokens the name decides.
    hosts = ("*",) if tokens and not args.name else (*LOOPBACK, args.host, *args.name)
    state = args.state or cache_folder("serve", str(args.port))
    settings = Settings(
        state, args.root, tokens, hosts=hosts, origins=tuple(args.origin),
        max_queue=args.max_queue, max_batch=args.max_batch, idle_model_s=args.idle_model,
        max_new_tokens=args.max_new_tokens,
    )  # fmt: skip
    doors = clinic_doors(args.labels, args.ohif, args.label_studio)
    if args.page:
        from unimed.serve.pages import pages_door

        doors.append(pages_door)
    with FolderLock(state, "serving"):
        app = create_app(ModelPool(loaders), settings, doors)
        pool = app.state.core.pool
        pool.get(pool.default)  # what cannot be loaded is said before anybody asks
        log_to(sys.stderr)
        print(
            f"http://{args.host}:{args.port}/v1  (research use only; Ctrl-C stops)"
            + f"\nhttp://{args.host}:{args.port}/pages/" * args.page,
            flush=True,
        )
        config = uvicorn.Config(
            app, host=args.host, port=args.port, log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=15, timeout_graceful_shutdown=30, h11_max_incomplete_event_size=64 * 1024,
        )  # fmt: skip
        server = uvicorn.Server(config)
        usual = server.handle_exit

        def stop(number, frame) -> None:
            app.state.core.closing = True  # streams of progress end, so that nobody waits for them
            usual(number, frame)

        server.handle_exit = stop
        server.run()
    return DONE
