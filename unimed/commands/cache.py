"""`unimed cache`: what lies in the cache of converted checkpoints, and how it gets smaller."""

from __future__ import annotations

import argparse
import time

from unimed.commands.common import DONE, Parser, exit_code, guarded, say


def cache(arguments=None, prog: str | None = None) -> int:
    """List the conversions; with --prune, remove some of them."""
    from unimed.io.limits import size_of
    from unimed.models.checkpoints.pruning import LIMIT_VARIABLE, seconds_of

    def taken(read):
        def convert(word):
            try:
                return read(word)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        return convert

    parser = Parser(
        "Published checkpoints are converted once into a cache. Lists the conversions, or removes those that a rule\n"
        "names; what a running process has opened stays. A removed one is made again when it is asked for.\n"
        f"{LIMIT_VARIABLE}=50G keeps the cache to a size without this verb.",
        prog=prog,
    )
    parser.add_argument("--prune", action="store_true", help="remove what the rules name; without it they only tell")
    parser.add_argument("--older-than", type=taken(seconds_of), metavar="AGE", help="not used for so long, such as 30d")
    parser.add_argument(
        "--max-size", type=taken(size_of), metavar="SIZE", help="the longest unused ones beyond this, such as 50G"
    )
    parser.add_argument("--stale", action="store_true", help="made by another version, which is never asked for again")
    parser.add_argument("--all", action="store_true", help="all of them")
    args = parser.parse_args(arguments)
    if args.prune and not (args.older_than is not None or args.max_size is not None or args.stale or args.all):
        parser.error("--prune needs a rule: --older-than, --max-size, --stale or --all")
    return guarded(_cache, args)


def _cache(args) -> int:
    from unimed.models.checkpoints import pruning
    from unimed.models.checkpoints.cache import code_hash

    found, code = pruning.conversions(), code_hash()
    going = found if args.all else pruning.chosen(found, args.older_than, args.max_size, code if args.stale else "")
    removed = kept = 0
    for one in found:
        fate = ""
        if one in going and args.prune:
            why = pruning.remove(one)
            fate = f"  kept: {why}" if why else "  removed"
            removed, kept = removed + (not why), kept + bool(why)
        elif one in going:
            fate = "  would go"
        age = max(0.0, time.time() - one.last_used) / 86400
        version = "" if one.code == code else ", of another version"
        say(f"{_size(one.size):>10}  used {age:.0f} d ago  {one.folder.name}  {one.layout or '?'}{version}{fate}")
        say(f"            of {one.source or 'an unknown source'}")
    if args.prune:
        pruning.remove_forgotten()
    left = sum(one.size for one in pruning.conversions())
    print(f"{len(found) - removed} conversions, {_size(left)}" + (f"; {removed} removed" if args.prune else ""))
    return exit_code(removed, kept) if args.prune else DONE


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
