"""Near-duplicate detection: images in two collections, equal byte by byte or in another size or format."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from unimed.data.near_duplicates import DigestTable, LookIndex, Names
from unimed.io.images import is_image_file
from unimed.io.images import load as load_image
from unimed.workers import in_order

#: Fingerprints looked up together, and images read by a process at a time.
_TOGETHER, _AT_A_TIME = 1 << 16, 16


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


class Seen:
    """What a collection of any size is recognized by: some 250 bytes an image while it is filled, for 2 bits.

    Args:
        fingerprints: taken one by one.
        bits: of 64 that may differ for two images to look alike.
    """

    def __init__(self, fingerprints: Iterable[Fingerprint], bits: int):
        self.names, self.table = Names(), DigestTable()
        looks, places = array("Q"), array("q")
        for one in fingerprints:
            place = self.names.add(one.name)
            self.table.add(bytes.fromhex(one.sha256), place)
            if one.look is not None:
                looks.append(one.look)
                places.append(place)
        self.index = LookIndex(np.frombuffer(looks, dtype=np.uint64), bits)
        self.places = np.frombuffer(places, dtype=np.int64)

    def find(self, fingerprints: Iterable[Fingerprint]) -> Iterator[dict]:
        """A row of `find_overlap` for each that was seen."""
        waiting = iter(fingerprints)
        while chunk := list(islice(waiting, _TOGETHER)):
            equal = self.table.find([bytes.fromhex(one.sha256) for one in chunk])
            looks = np.array([one.look or 0 for one in chunk], dtype=np.uint64)
            nearest, bits = self.index.nearest(looks)
            for one, same, near, differ in zip(chunk, equal.tolist(), nearest.tolist(), bits.tolist(), strict=True):
                if same >= 0:
                    yield {"image": one.name, "found_as": self.names[same], "kind": "equal bytes", "bits": 0}
                elif near >= 0 and one.look is not None:
                    name = self.names[int(self.places[near])]
                    yield {"image": one.name, "found_as": name, "kind": "looks alike", "bits": differ}


def find_overlap(first: Iterable[Fingerprint], second: Iterable[Fingerprint], bits: int = 2) -> list[dict]:
    """Images of `second` that are in `first`: `{"image", "found_as", "kind": "equal bytes" or "looks alike", "bits"}`.

    Args:
        bits: of 64 that may differ for two images to look alike. Slices of one scan often do: look at what is found.
    """
    return list(Seen(first, bits).find(second))


def fingerprints_of(source: str, broken: list[str], workers: int = 1) -> Iterator[Fingerprint]:
    """Fingerprints of all images of a folder, or of shards (a pattern that ends in .tar), in order.

    Images that cannot be read are added to `broken`.

    Args:
        workers: processes that read images.

    Raises:
        FileNotFoundError: nothing is there.
    """
    places = _places(source)
    tasks = iter(lambda: list(islice(places, _AT_A_TIME)), [])
    for found in in_order(_reader, tasks, workers):
        for one in found:
            if isinstance(one, Fingerprint):
                yield one
            else:
                broken.append(one)


def _places(source: str) -> Iterator[tuple[str, str, int, int]]:
    """(name, file, first byte, length) of every image; -1 for a file of its own."""
    if str(source).endswith(".tar"):
        from unimed.data.readers.shards import expand_shards, read_index

        for path in expand_shards(source):
            names, table, _ = read_index(path)
            for name, (place, size, *_) in zip(names, table.tolist(), strict=True):
                if place >= 0:
                    yield f"{path}/{name}", str(path), place, size
        return
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"{source} is no folder of images and no pattern of shards")
    for path in sorted(folder.rglob("*")):
        if is_image_file(path):
            yield str(path), str(path), -1, -1


def _reader():
    return _read


def _read(places: list[tuple[str, str, int, int]]) -> list[Fingerprint | str]:
    found: list[Fingerprint | str] = []
    for name, file, first, size in places:
        try:
            data = None
            if first >= 0:
                with open(file, "rb") as stream:
                    stream.seek(first)
                    data = stream.read(size)
            found.append(fingerprint(name, data))
        except ValueError as error:
            found.append(str(error))
    return found
