"""Plants one fault after the other in a copy of the package and counts those that no test notices.

    python tests/mutations.py                     all of them; exit code 1 if one survives
    python tests/mutations.py memory "SAM 2"      those whose name holds one of the words
    python tests/mutations.py --part 2/4          the second quarter of the list
    python tests/mutations.py --list

The faults are in `tests/mutation_list.py`. The working tree is never touched: package and tests are copied to a
temporary folder, one text is replaced there, and the tests that should notice run in a child process, without
UNIMED_GOLDEN. A fault whose text is not found exactly once, one that keeps the tests from starting, and one that hangs
are errors and not successes. Before anything is planted the same tests must be green.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import os
import py_compile
import shutil
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutation_list import MUTATIONS, Mutation  # noqa: E402

ROOT = Path(__file__).parents[1]
PARTS = ("unimed", "tests", "configs", "tools", "docs", "pyproject.toml")
GREEN, RED = 0, 1
OUTPUT = "output.txt"
MODULES = "modules.txt"
LIMIT_S = 600  # of processor time, so that a busy machine makes no difference


class MutationError(ValueError):
    """A fault that cannot be planted: its text is not there, or there more than once."""


def planted(mutation: Mutation, root: Path = ROOT) -> str:
    """The text of the file with the fault in it.

    Raises:
        MutationError: the old text does not stand there exactly once, or the new one changes nothing.
    """
    text = (root / "unimed" / mutation.file).read_text()
    found = text.count(mutation.old)
    if found != 1 or mutation.old == mutation.new:
        raise MutationError(f"{mutation.name}: its text stands {found} times in unimed/{mutation.file}; mend the list")
    return text.replace(mutation.old, mutation.new)


def arguments(tests: Sequence[str]) -> list[str]:
    """What pytest is called with; "-k" and the words behind it stay options."""
    words = list(tests)
    options = []
    if "-k" in words:
        place = words.index("-k")
        options, words = ["-k", " ".join(words[place + 1 :])], words[:place]
    return [*(f"tests/{word}" for word in words), *options]


def together(mutations: Sequence[Mutation]) -> list[list[str]]:
    """All tests of the mutations in few calls of pytest: those without options at once."""
    plain = [m.tests for m in mutations if "-k" not in m.tests]
    calls = [arguments(list(dict.fromkeys(word for words in plain for word in words)))] if plain else []
    return calls + [arguments(words) for words in dict.fromkeys(m.tests for m in mutations if "-k" in m.tests)]


def run_tests(folder: Path, words: Sequence[str], note: bool = False) -> int:
    """Exit code of pytest in a child that begins with nothing of the package imported; -1 where it was stopped.

    `note` writes down which libraries the tests imported, for `warm_up`.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else -1
    code = 3
    try:
        _limit_time()
        os.chdir(folder)
        os.environ.pop("UNIMED_GOLDEN", None)
        os.environ["PYTHONPATH"] = str(folder)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "tests"))]
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import pytest

        code = int(pytest.main([*words, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]))
        if note:
            _note_libraries(folder)
    finally:
        os._exit(code)


def _limit_time() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 5))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def warm_up(folder: Path) -> None:
    """Import every library that the green run needed; the children inherit them. The package itself must stay out."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(1)
    for name in (folder / MODULES).read_text().split():
        # What a test made up, or what wants another module first, is left to the children.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    assert not any(name.partition(".")[0] == "unimed" for name in sys.modules), "the package was imported too early"


def _note_libraries(folder: Path) -> None:
    """Write the names of installed modules that this process has imported."""
    installed = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    names = [
        name
        for name, module in list(sys.modules.items())
        if str(getattr(module, "__file__", None) or "").startswith(installed)
        and name.partition(".")[0] not in ("unimed", "pytest", "_pytest", "xdist")
    ]
    with open(folder / MODULES, "a") as file:
        file.write("\n".join(names) + "\n")


def copy_tree(folder: Path) -> None:
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)
    # Bytecode that is compared with the hash of its source: never stale, and nothing is compiled twice.
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / "unimed", quiet=2, invalidation_mode=mode)


def chosen(words: Sequence[str]) -> list[Mutation]:
    return [m for m in MUTATIONS if not words or any(word.lower() in m.name.lower() for word in words)]


def run(mutations: Sequence[Mutation], show=print) -> tuple[list[str], list[str]]:
    """(names that survived, what went wrong).

    Raises:
        MutationError: see `planted`; or the tests are red before a fault was planted.
    """
    for mutation in mutations:
        planted(mutation)
    survived, wrong = [], []
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        folder = Path(place)
        copy_tree(folder)
        for words in together(mutations):
            if code := run_tests(folder, words, note=True):
                said = [
                    line for line in (folder / OUTPUT).read_text().splitlines() if line.startswith(("FAILED", "ERROR"))
                ]
                raise MutationError(f"without any fault the tests are not green (exit code {code}): {said}")
        show("the tests are green without a fault", flush=True)
        if len(mutations) > 5:
            warm_up(folder)
        for number, mutation in enumerate(mutations, start=1):
            target = folder / "unimed" / mutation.file
            whole = target.read_text()
            target.write_text(planted(mutation, folder))
            try:
                code = run_tests(folder, arguments(mutation.tests))
            finally:
                target.write_text(whole)
            if code == GREEN:
                survived.append(mutation.name)
            elif code != RED:
                wrong.append(f"{mutation.name}: the tests did not run (exit code {code})")
            word = {GREEN: "SURVIVED", RED: "noticed"}.get(code, "ERROR")
            show(f"{number:3d} of {len(mutations)}  {word:8s}  {mutation.name}", flush=True)
    return survived, wrong


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run those whose name holds one of these")
    parser.add_argument("--part", default="1/1", help="part of the list, such as 2/4")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args(words)
    part, parts = (int(number) for number in options.part.split("/"))
    every = chosen(options.words)
    mutations = every[len(every) * (part - 1) // parts : len(every) * part // parts]
    if options.list:
        print("\n".join(f"{m.name}  (unimed/{m.file})" for m in mutations))
        return 0
    try:
        survived, wrong = run(mutations)
    except MutationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(mutations) - len(survived) - len(wrong)} of {len(mutations)} noticed, survivors: {survived or 0}")
    return 1 if survived or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
