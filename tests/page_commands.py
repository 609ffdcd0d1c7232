"""Commands and programs of a page of the documentation, read from it and run as they stand there, in this process."""

import re
import runpy
import shlex
import sys
from pathlib import Path

from unimed.commands.cli import main

ROOT = Path(__file__).parents[1]


def tables(text, header):
    """(left cell, right cell) of every row of the tables whose second column is called so."""
    found, taken = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            taken = False
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if len(cells) > 1 and cells[1] == header:
            taken = True
        elif taken and len(cells) > 1 and not set(cells[1]) <= set("-: "):
            found.append((cells[0], cells[1]))
    return found


def code(cell):
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def blocks(text, kind):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines(text, kind="bash"):
    """Commands of the fenced blocks, continued lines joined, comments left out."""
    for block in blocks(text, kind):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield shlex.join(words)


def run(line, quick=None):
    """Run a command; its exit code.

    Args:
        quick: {first word that names a verb or script: further arguments} that make it short on tiny data; settings
            behind `--cfg-options` are joined with those of the line.
    """
    words = shlex.split(line)
    if words[:2] == ["bash", "tools/dist.sh"]:
        # One process: what dist.sh runs then. Several ranks have tests of their own.
        verb, config, count, *rest = words[2:]
        assert verb in ("train", "test") and count.isdigit()
        words = ["python", f"tools/{verb}.py", config, *rest]
    for more in [more for name, more in (quick or {}).items() if name in words]:
        words = _joined(words, more)
    if words[0] == "unimed":
        return main(words[1:])
    assert words[0] == "python" and (ROOT / words[1]).is_file(), line
    arguments, sys.argv = sys.argv, words[1:]
    try:
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = arguments
    return 0


def _joined(words, more):
    if "--cfg-options" in words and "--cfg-options" in more:
        place, cut = words.index("--cfg-options") + 1, more.index("--cfg-options")
        end = next((n for n in range(place, len(words)) if words[n].startswith("--")), len(words))
        return [*words[:end], *more[cut + 1 :], *words[end:], *more[:cut]]
    return [*words, *more]
