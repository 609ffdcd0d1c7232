"""What no commit should bring: large files, marks of conflicts, dead links in pages, notebooks with outputs.

`python tests/repository_check.py [FILE ...]`: without names, every file that git knows. Prints a line per fault; exit
code 1 where there is one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Bytes. Recordings of tests may be larger.
LARGEST, LARGEST_RECORDING = 500_000, 1_000_000
_CONFLICT = re.compile(r"^(<{7} |>{7} |={7}$)", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def faults_of(path: Path) -> list[str]:
    """Sentences about a file of the repository."""
    name, found = path.relative_to(ROOT), []
    limit = LARGEST_RECORDING if name.parts[:2] == ("tests", "golden") else LARGEST
    if path.stat().st_size > limit:
        found.append(f"{name}: {path.stat().st_size} bytes, at most {limit}")
    if path.suffix not in (".py", ".md", ".toml", ".yaml", ".yml", ".ipynb", ".sh", ".cff"):
        return found
    text = path.read_text(encoding="utf-8")
    if match := _CONFLICT.search(text):
        found.append(f"{name}:{text[: match.start()].count(chr(10)) + 1}: mark of a conflict")
    if path.suffix == ".md":
        found += [f"{name}: dead link to {link}" for link in _links(text) if not _stands(path, link)]
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        found += [f"{name}: cell {n} has outputs" for n, c in enumerate(cells) if c.get("outputs")]
    return found


def _links(text: str) -> list[str]:
    return [link or image for link, image in _LINK.findall(_CODE.sub("", text))]


def _stands(page: Path, link: str) -> bool:
    """Whether a link leads to a file of the repository; addresses are not asked for. Anchors are mkdocs' part."""
    place = link.split("#")[0]
    return not place or re.match(r"[a-z]+:", place) is not None or (page.parent / place).exists()


def main(names: list[str]) -> int:
    if not names:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        names = listed.stdout.split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    found = [fault for file in files for fault in faults_of(file)]
    print("\n".join(found) or f"{len(files)} files: nothing to say")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
