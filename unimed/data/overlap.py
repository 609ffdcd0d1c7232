"""Near-duplicate detection: images in two collections, equal byte by byte or in another size or format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimed.io.images import is_image_file
from unimed.io.images import load as load_image


@dataclass(frozen=True)
class Fingerprint:
    """sha256 of the file, and 64 bits of what it looks like (None for a flat image, which looks like any other)."""

    name: str
    sha256: str
    look: int | None


def look_of(image: np.ndarray) -> int | None:
    """64 bits: whether each cell of a 9x8 thumbnail is brighter than the next (difference hash); None if it is flat."""
    from PIL import Image

    gray = Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(gray, dtype=np.int16)
    if cells.max() - cells.min() < 4:
        return None
    bits = (cells[:, 1:] > cells[:, :-1]).ravel()
    return int(np.packbits(bits).view(">u8")[0])


def fingerprint(path, data: bytes | None = None) -> Fingerprint:
    """Of an image file, or of bytes with a name.

    Raises:
        ReadError: no image.
    """
    if data is None:
        with open(path, "rb") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
        image = load_image(path)
    else:
        digest = hashlib.sha256(data).hexdigest()
        image = load_image(data, name=str(path))
    return Fingerprint(str(path), digest, look_of(image.pixels))


def find_overlap(first: Iterable[Fingerprint], second: Iterable[Fingerprint], bits: int = 2) -> list[dict]:
    """Images of `second` that are in `first`: `{"image", "found_as", "kind": "equal bytes" or "looks alike", "bits"}`.

    Args:
        bits: of 64 that may differ for two images to look alike. Slices of one scan often do: look at what is found.
    """
    first = list(first)
    by_bytes = {one.sha256: one.name for one in first}
    seen = [one for one in first if one.look is not None]
    looks = np.array([one.look for one in seen], dtype=np.uint64)
    rows = []
    for one in second:
        if one.sha256 in by_bytes:
            rows.append({"image": one.name, "found_as": by_bytes[one.sha256], "kind": "equal bytes", "bits": 0})
        elif one.look is not None and len(looks):
            distance = np.bitwise_count(looks ^ np.uint64(one.look))
            nearest = int(distance.argmin())
            if distance[nearest] <= bits:
                found = {"found_as": seen[nearest].name, "kind": "looks alike", "bits": int(distance[nearest])}
                rows.append({"image": one.name} | found)
    return rows


def fingerprints_of(source: str, broken: list[str]) -> Iterator[Fingerprint]:
    """Fingerprints of all images of a folder, or of shards (a pattern that ends in .tar).

    Images that cannot be read are added to `broken`.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if str(source).endswith(".tar"):
        from unimed.data.readers.shards import expand_shards, read_index

        for path in expand_shards(source):
            names, table, _ = read_index(path)
            with open(path, "rb") as stream:
                for name, (place, size, *_) in zip(names, table.tolist(), strict=True):
                    if place >= 0:
                        stream.seek(place)
                        yield from _tried(f"{path}/{name}", stream.read(size), broken)
        return
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"{source} is no folder of images and no pattern of shards")
    for path in sorted(folder.rglob("*")):
        if is_image_file(path):
            yield from _tried(path, None, broken)


def _tried(path, data, broken) -> Iterator[Fingerprint]:
    try:
        yield fingerprint(path, data)
    except ValueError as error:
        broken.append(str(error))
