"""Which folders go into the wheel; everything else about the package stands in pyproject.toml.

The configs lie outside the package in a clone, where people edit them, and inside it in a wheel (`unimed.configs`), so
that `unimed train configs/quickstart/unified_small.py` works for both.
"""

from pathlib import Path

from setuptools import find_packages, setup

CONFIGS = sorted(
    {path.parent for path in Path("configs").rglob("*.py")} | {Path("configs")},
)


def name_of(folder: Path) -> str:
    return ".".join(("unimed", *folder.parts))


setup(
    packages=[*find_packages(include=["unimed", "unimed.*"]), *map(name_of, CONFIGS)],
    package_dir={name_of(folder): str(folder) for folder in CONFIGS},
)
