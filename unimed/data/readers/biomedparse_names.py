"""File names of the BiomedParse format: `[IMAGE]_[MODALITY]_[SITE].png`, `[IMAGE]_[MODALITY]_[SITE]_[TARGET].png`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath


class FileNameError(ValueError):
    """A file name that does not follow the grammar; the message says what is wrong and how it should look."""


@dataclass(frozen=True)
class ParseName:
    """The parts of a name; `target` is empty for an image. `+` in a target stands for a blank."""

    image: str
    modality: str
    site: str
    target: str = ""

    @property
    def stem(self) -> str:
        """Stem of the image file."""
        return f"{self.image}_{self.modality}_{self.site}"

    @property
    def prompt(self) -> str:
        """What the model is asked: "TARGET in SITE MODALITY"."""
        return f"{self.target} in {self.site} {self.modality}"


def parse_image_name(name: str) -> ParseName:
    """Parts of an image name; IMAGE itself may hold underscores.

    Raises:
        FileNameError: fewer than three parts, an empty part, or no .png.
    """
    stem = _stem(name)
    parts = stem.rsplit("_", 2)
    if len(parts) < 3 or not all(parts):
        raise FileNameError(f"{name}: an image is called [IMAGE]_[MODALITY]_[SITE].png, such as case7_CT_abdomen.png")
    return ParseName(*parts)


def parse_mask_name(name: str) -> ParseName:
    """Parts of a mask name.

    Raises:
        FileNameError: fewer than four parts, an empty part, a blank in the target, or no .png.
    """
    stem = _stem(name)
    parts = stem.rsplit("_", 3)
    if len(parts) < 4 or not all(parts):
        raise FileNameError(
            f"{name}: a mask is called [IMAGE]_[MODALITY]_[SITE]_[TARGET].png, such as case7_CT_abdomen_left+kidney.png"
        )
    image, modality, site, target = parts
    if re.search(r"\s", target) or not target.replace("+", ""):
        raise FileNameError(f"{name}: write + for blanks in the target, such as left+kidney")
    return ParseName(image, modality, site, target.replace("+", " ").strip())


def mask_file_name(image_name: str, target: str) -> str:
    """Name of the mask of a target beside an image."""
    return f"{_stem(image_name)}_{target.replace(' ', '+')}.png"


def _stem(name: str) -> str:
    path = PurePath(name)
    if path.suffix.lower() != ".png":
        raise FileNameError(f"{name}: expected a .png file")
    return path.stem
