"""The field's terms in all that a user types or reads: arguments, config keys, flags, columns and pages."""

import ast
import inspect
import re
import tokenize
from pathlib import Path

import pytest

from unimed import registry
from unimed.commands import RENAMED_VERBS, VERBS
from unimed.commands.cli import main
from unimed.commands.common import FLAGS
from unimed.engine.config import KEYS, RENAMED
from unimed.evaluation.cases import ALIASES, COLUMNS
from unimed.metrics.registered import Metric

ROOT = Path(__file__).parents[1]
#: Word -> what readers expect.
WORDS = {
    "eyes": "vision encoder", "doubt": "uncertainty", "said": "predicted, reported", "painted": "predicted",
    "picture": "image", "pictures": "image", "learn": "trainable", "learnt": "trained", "share": "fraction",
    "shares": "fractions", "surer": "more confident", "wording": "prompt_style", "deaths": "restarts",
    "colour": "color", "neighbours": "neighbors", "licence": "license", "normalise": "normalize",
    "recognise": "recognize", "optimiser": "optimizer",
}  # fmt: skip
PAGES = ["README.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md")))]
#: Words that stand in pages in their everyday sense (processes share work) or are a part of what is quoted.
EVERYDAY = {"learn", "share", "shares", "wording", "said"}


def names():
    """(where, name) of every argument of a registered thing, config key, shared flag and column."""
    for key, one in vars(registry).items():
        if not isinstance(one, registry.Registry):
            continue
        for name, entry in registry.registered(one).items():
            if not getattr(entry, "__module__", "").startswith("unimed") or isinstance(entry, Metric):
                continue
            for argument in inspect.signature(getattr(entry, "build", entry)).parameters:
                yield f"{key} {name}", argument
        for name in registry.registered(one):
            yield key, name
    for key, (_, default) in KEYS.items():
        yield "config", key
        for inner in default if isinstance(default, dict) else ():
            yield f"config {key}", inner
    for flag, (spellings, _) in FLAGS.items():
        yield f"flag {flag}", spellings[0].strip("-")
    for verb in VERBS:
        yield "verb", verb
    for file in [*(ROOT / "unimed" / "commands").glob("*.py"), *(ROOT / "unimed" / "data" / "prepare").rglob("*.py")]:
        for first in re.findall(r'add_argument\(\s*"-*([\w-]+)"', file.read_text(encoding="utf-8")):
            yield file.name, first
    for column in COLUMNS:
        yield "column", column


def test_names_are_the_terms_of_the_field():
    for where, name in names():
        for part in re.split(r"[_\-/ ]", name):
            assert part not in WORDS, f"{where}: {name}: say {WORDS[part]}"


#: Spellings and everyday words no identifier of the package has; `tell` of a file and `eye` of torch are theirs.
SPELLINGS = {
    "said": "predicted, answer, message", "painted": "predicted, drawn", "paint": "draw", "picture": "image",
    "pictures": "images", "eyes": "vision encoder", "learnt": "trained", "doubt": "uncertainty", "grey": "gray",
    "colour": "color", "colours": "colors", "centre": "center", "neighbour": "neighbor", "neighbours": "neighbors",
    "labelled": "labeled", "catalogue": "catalog", "licence": "license", "normalise": "normalize",
    "normalised": "normalized", "recognise": "recognize", "summarise": "summarize", "tokenise": "tokenize",
    "quantised": "quantized", "regulariser": "regularizer", "optimiser": "optimizer", "behaviour": "behavior",
}  # fmt: skip
#: Former spelling of an argument that is still understood.
FORMER = {"painted_voxels", "swap_neighbours"}


def identifiers(path):
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME and token.string not in FORMER:
                yield token.start[0], token.string


def test_identifiers_are_the_terms_of_the_field():
    found = []
    for path in sorted((ROOT / "unimed").rglob("*.py")):
        names = [(0, path.stem), *identifiers(path)]
        for line, name in names:
            parts = re.split(r"_|(?<=[a-z])(?=[A-Z])", name)
            found += [f"{path}:{line}: {name}: say {SPELLINGS[p.lower()]}" for p in parts if p.lower() in SPELLINGS]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", PAGES)
def test_pages_speak_the_words_of_the_field(page):
    if page.endswith("glossary.md"):
        return
    text = (ROOT / page).read_text(encoding="utf-8")
    # Code, links and names of files are what they are.
    text = re.sub(r"```.*?```|^ {4,}.*?$|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL | re.MULTILINE)
    found = {word for word in re.findall(r"[a-z]+", text) if word in set(WORDS) - EVERYDAY}
    assert not found, f"{page}: " + ", ".join(f"{word} ({WORDS[word]})" for word in sorted(found))
    # "grey matter" is what the sample set asks for.
    grey = re.findall(r"\b[Gg]rey\b(?!\s+matter|, white matter).{,20}", text)
    assert not grey, f"{page}: {grey}: say gray"


def test_former_names_are_in_the_glossary():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert all(old in page and new in page for old, new in RENAMED.items())
    for one in (value for value in vars(registry).values() if isinstance(value, registry.Registry)):
        for entry in registry.registered(one).values():
            for old, new in getattr(entry, "renamed_arguments", {}).items():
                assert f"`{old}`" in page and (new is None or f"`{new}`" in page), (old, new)
    counted = {"image", "predicted_pixels", "truth_pixels", "painted_where_absent"}  # see docs/metrics.md
    assert all(f"`{old}`" in page for old in set(ALIASES) - counted)


def test_former_verbs_are_understood_with_one_warning(monkeypatch, caplog, capsys):
    monkeypatch.setattr(registry, "_told", set())
    for old, new in RENAMED_VERBS.items():
        with pytest.raises(SystemExit) as stopped:
            main([old, "--help"])
        assert stopped.value.code == 0 and f"usage: unimed {new}" in capsys.readouterr().out
        assert f"unimed: {old!r} is called {new!r} now" in caplog.text


def documented_arguments(text):
    """Names that the section `Args` of a docstring begins lines with."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", text or "", re.MULTILINE)
    lines = section[1].splitlines() if section else []
    found = [re.match(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):", line) for line in lines]
    return {name.strip("*") for one in found if one for name in one[1].split(", ")}


@pytest.mark.parametrize("path", sorted((ROOT / "unimed").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_docstring_calls_an_argument_is_one(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        function, own = node, set()
        if isinstance(node, ast.ClassDef):
            function = next((one for one in node.body if getattr(one, "name", "") == "__init__"), None)
            own = {one.target.id for one in node.body if isinstance(one, ast.AnnAssign)}
            if function is None and not own:
                continue  # its parent is built with them
        arguments = getattr(function, "args", None)
        if arguments is not None and arguments.kwarg is not None:
            continue
        taken = [] if arguments is None else [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs,
                                              *filter(None, [arguments.vararg])]  # fmt: skip
        unknown = documented_arguments(ast.get_docstring(node)) - own - {one.arg for one in taken}
        assert not unknown, f"{path}:{node.lineno}: {node.name} takes no {', '.join(sorted(unknown))}"
