"""Pages of the documentation that come from the code: commands, config keys, registered things, the Python interface.

A hook of mkdocs (`mkdocs.yml`); the front page is the README, and links out of `docs/` become plain names.
"""

import contextlib
import io
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
#: What a user imports.
PUBLIC = ("unimed.load", "unimed.read", "unimed.evaluate", "unimed.geometry.Geometry", "unimed.io.result.Prediction",
          "unimed.structures.Region", "unimed.structures.Sample", "unimed.evaluation.cases.case_row",
          "unimed.models.grounded.modeling.GroundedMLLM", "unimed.models.grounded.processing.GroundedProcessor",
          "unimed.engine.config.load_config", "unimed.registry.registered")  # fmt: skip


def commands() -> str:
    """Every verb with its own help."""
    from unimed.commands import VERBS
    from unimed.commands.cli import run_verb

    parts = ["# Commands", "Exit codes: 0 all was done, 2 a part of it, 1 nothing, 75 stopped and saved."]
    for verb, (_, _, line) in VERBS.items():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            run_verb(verb, ["--help"])
        parts += [f"## unimed {verb}", line[:1].upper() + line[1:] + ".", f"```text\n{text.getvalue().strip()}\n```"]
    return "\n\n".join(parts)


def config_keys() -> str:
    """Every key of a config with its types and default."""
    from unimed.engine.config import KEYS

    rows = ["# Config keys", "", "| Key | Type | Default |", "|---|---|---|"]
    for key, (types, default) in KEYS.items():
        kinds = ", ".join("none" if one is type(None) else one.__name__ for one in types)
        rows.append(f"| `{key}` | {kinds} | {'required' if default is ... else f'`{default!r}`'} |".replace("||", "|"))
    return "\n".join(rows)


def registered_things() -> str:
    """Every registry with the names that a config may say, and the first line of what each is."""
    from unimed import registry

    parts = ["# What is registered", "Names that `type=` in a config, and options of commands, may say."]
    for title, one in sorted(vars(registry).items()):
        if not isinstance(one, registry.Registry):
            continue
        rows = [f"## {title}", "", "| Name | What it is |", "|---|---|"]
        for name, entry in sorted(registry.registered(one).items()):
            line = (getattr(entry, "__doc__", None) or "").strip().split("\n")[0].replace("|", "\\|")
            rows.append(f"| `{name}` | {line} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def python_interface() -> str:
    return "\n\n".join(["# Python", *(f"::: {name}" for name in PUBLIC)])


def front_page() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")


PAGES = {
    "index.md": front_page, "reference/commands.md": commands, "reference/config.md": config_keys,
    "reference/registered.md": registered_things, "reference/python.md": python_interface,
    "changes.md": lambda: (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "]("),
}  # fmt: skip


def on_files(files, config):
    for place, make in PAGES.items():
        files.append(File.generated(config, place, content=make()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to files that are no pages of the site become their names."""

    def plain(match: re.Match) -> str:
        place = match[2].split("#")[0]
        known = place.startswith(("http:", "https:", "#")) or not place
        target = Path(page.file.src_uri).parent / place
        return match[0] if known or files.get_file_from_path(str(target)) else match[1]

    return re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)", plain, markdown)
