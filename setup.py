"""Installation of unimed. The version is read as text so that building needs no import."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "unimed" / "version.py").read_text()).group(1)


def requirements(name):
    lines = (HERE / name).read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


EXTRAS = {
    "train": ["tensorboard>=2.18", "webdataset>=1.0,<2", "datasets>=4"],
    "eval": ["monai>=1.5,<1.7", "pycocotools>=2.0.8", "pycocoevalcap==1.2", "scikit-learn>=1.6,<2"],
    "dicom": ["highdicom>=0.26,<0.29"],
    "wsi": ["tiffslide>=2.4"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.9", "gradio>=6,<7"],
    "quant": ["bitsandbytes>=0.45"],
    "deepspeed": ["deepspeed>=0.18.9,<0.20"],
}
EXTRAS["all"] = sorted({package for packages in EXTRAS.values() for package in packages})
# Everything that the tests need to guard what is promised.
EXTRAS["dev"] = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.9"]
EXTRAS["dev"] += [*EXTRAS["train"], *EXTRAS["eval"], *EXTRAS["dicom"], *EXTRAS["deepspeed"]]

setup(
    name="unimed",
    version=VERSION,
    description="Grounded biomedical vision-language models: read an image and point at what is said",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["unimed", "unimed.*"]),
    install_requires=requirements("requirements.txt"),
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["unimed = unimed.commands.cli:main"]},
    package_data={"unimed": ["data/manifests/*.json", "io/tables/*.csv", "io/pages/*"]},
)
