"""Train as a config says: `python tools/train.py CONFIG [--work-dir D] [--resume auto]`. Several ranks: tools/dist.sh.

Exit codes: 0 done, 1 error, 75 asked to stop (SIGTERM or SIGUSR1), checkpoint saved, resume with `--resume auto`.
"""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a python config, e.g. configs/quickstart/unified_small.py")
    parser.add_argument("--work-dir", help="run folder (default: the config's work_dir, else runs/<config name>)")
    parser.add_argument("--resume", nargs="?", const="auto", help="'auto' (newest whole checkpoint) or a checkpoint")
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
    from unimed.engine import train
    from unimed.engine.checkpoint import CheckpointError
    from unimed.engine.config import ConfigError
    from unimed.engine.loop import TrainingError
    from unimed.registry import RegistryError

    try:
        result = train(arguments.config, arguments.work_dir, arguments.resume, options)
    except (ConfigError, RegistryError, CheckpointError, DataError, TrainingError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if result["stopped"]:
        from unimed.engine.training import PREEMPTED

        print(f"stopped by {result['stopped']} at step {result['step']}; go on with --resume auto", file=sys.stderr)
        return PREEMPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
