"""Try labels on images in a browser: `python demo/app.py --model_path M [--model_path OTHER]`. Needs extra `serve`.

Research use only.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, action="append", help="a contrastive model; may be repeated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: this one only)")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args(argv)

    from unimed.models.auto import load
    from unimed.serve.zero_shot import build_page

    models = {Path(path).name: lambda path=path: load(path, device=args.device) for path in args.model_path}
    try:
        page = build_page(models)
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    page.launch(server_name=args.host, server_port=args.port, share=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
