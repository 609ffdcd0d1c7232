"""Test a checkpoint on a config's test_data: `python tools/test.py CONFIG --checkpoint RUN_OR_STEP_FOLDER`."""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a python config")
    parser.add_argument("--checkpoint", help="step folder, run folder, or weight file (default: newest of the run)")
    parser.add_argument("--work-dir", help="where the results go (default: <run folder>/test)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="replace config values")
    arguments = parser.parse_args()

    from mmengine.config import DictAction

    options = {}
    for entry in arguments.cfg_options:
        key, separator, value = entry.partition("=")
        if not separator:
            parser.error(f"--cfg-options takes KEY=VALUE, got {entry!r}")
        options[key] = DictAction._parse_iterable(value)

    from unimed.data.mixture import DataError
    from unimed.engine import evaluate
    from unimed.engine.checkpoint import CheckpointError
    from unimed.engine.config import ConfigError
    from unimed.registry import RegistryError

    try:
        metrics = evaluate(arguments.config, arguments.checkpoint, arguments.work_dir, options)
    except (ConfigError, RegistryError, CheckpointError, DataError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from unimed.engine.strategy import world
    from unimed.engine.testing import markdown

    if world()[0] == 0:
        print(markdown(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
