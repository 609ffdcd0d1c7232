"""The console script `unimed`: every verb, from a clone and from the wheel alike."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from unimed.commands import RENAMED_VERBS, VERBS
from unimed.registry import did_you_mean, today


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0 all was done, 2 a part of it, 1 nothing."""
    if arguments is None:
        _end_at_a_second_interruption()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 1
    if words[0] in ("-V", "--version", "version"):
        from unimed.version import __version__

        print(f"unimed {__version__}")
        return 0
    verb, *rest = words
    (verb,) = today({verb: None}, RENAMED_VERBS, "unimed")
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}{did_you_mean(verb, VERBS)} `unimed --help` lists them", file=sys.stderr)
        return 1
    try:
        return run_verb(verb, rest)
    except KeyboardInterrupt:  # before the verb itself runs, while libraries are imported
        print("interrupted", file=sys.stderr)
        return 130


def _end_at_a_second_interruption() -> None:
    """Let a second Ctrl-C end the process with 130, wherever the first one is being dealt with: python would print the
    traceback of what it was just doing, or die of the signal."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored, as in the background of a shell, or in the hands of who embeds us

    def first(number, frame):
        signal.signal(number, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)


def run_verb(verb: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Import the module of a verb, and nothing else, and run it.

    Args:
        arguments: those after the verb; None takes the command line of the process.
        prog: what its help calls the command (default: `unimed VERB`).
    """
    module, function, _ = VERBS[verb]
    words = list(sys.argv[1:] if arguments is None else arguments)
    return getattr(importlib.import_module(f"unimed.commands.{module}"), function)(words, prog or f"unimed {verb}")


def usage() -> str:
    """The table of verbs."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, _, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: unimed VERB [options]      (unimed VERB --help)",
            "",
            "Grounded biomedical vision-language models. Research use only.",
            "",
            *lines,
            "",
            "Exit codes: 0 all was done, 2 a part of it (failed cases are named), 1 nothing, 75 stopped and saved.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
