"""Write a trained run as a Hugging Face folder: `python tools/export.py CONFIG RUN_OR_CHECKPOINT DESTINATION`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="the config the run was trained with")
    parser.add_argument("checkpoint", help="run folder (its newest checkpoint), step folder, or weight file")
    parser.add_argument("destination", help="folder to write; must not be there yet")
    args = parser.parse_args()

    from unimed.engine.checkpoint import CheckpointError
    from unimed.engine.config import ConfigError
    from unimed.engine.exporting import export
    from unimed.registry import RegistryError

    try:
        print(export(args.config, args.checkpoint, args.destination))
    except (ConfigError, CheckpointError, RegistryError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
