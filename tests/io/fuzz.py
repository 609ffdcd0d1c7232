"""Damages small valid files of every reader and counts what `unimed.io.read.read` makes of them.

    python tests/io/fuzz.py 5000          # so many files, seed 0
    python tests/io/fuzz.py 60s --seed 7  # so many seconds

Outcomes: "error" (a `ReadError` of one line that names the file), "right" (the values and the grid of the sound file),
"changed" (something else, but only bytes were touched that no checksum of the format covers), and "other": anything
else, that is another exception, a message that does not name the file or has several lines, silently different content
under a checksum, or more bytes than the limit. Other must be 0; the exit code says so.
"""

import argparse
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from small_volumes import enhanced, grid, save, slices  # noqa: E402

from unimed.io.limits import Limits  # noqa: E402
from unimed.io.read import ReadError, read  # noqa: E402
from unimed.io.write import write_nifti, write_npz, write_nrrd  # noqa: E402

#: Far above the sound files, far below what a damaged header may claim.
LIMITS = Limits(file_bytes=2**22, decoded_bytes=2**20, voxels=2**18)
GEOMETRY = grid((0.7, 0.9, 2.5), (0.2, -0.1, 0.3), (-30, 12, 99))
#: A result may take this often the bytes of what is stored: 8-bit values become float32.
GROWTH = 4


@dataclass
class Sound:
    """A valid file: `read` gets `open`, `file` is damaged, a checksum covers all from byte `checked` on."""

    name: str
    open: Path
    file: Path
    checked: int | None
    data: bytes = b""
    array: np.ndarray | None = None
    affine: np.ndarray | None = None


def sound_files(folder: Path) -> list[Sound]:
    """One valid file per reader and way of packing."""
    rng = np.random.default_rng(0)
    values = (rng.integers(0, 40, (10, 9, 6)) * 20).astype(np.int16)
    made = []

    def add(name, opened, file=None, checked=None):
        file = opened if file is None else file
        made.append(Sound(name, opened, file, checked, file.read_bytes()))

    add("nifti gz", write_nifti(folder / "a.nii.gz", values, GEOMETRY), checked=0)
    add("nifti", write_nifti(folder / "b.nii", values, GEOMETRY))
    nibabel.save(nibabel.Nifti2Image(values, GEOMETRY.affine), folder / "c.nii")
    add("nifti 2", folder / "c.nii")
    nibabel.save(nibabel.MGHImage(values, GEOMETRY.affine), folder / "d.mgz")
    add("mgz", folder / "d.mgz", checked=0)
    nibabel.save(nibabel.Nifti1Pair(values, GEOMETRY.affine), folder / "e.img")
    add("nifti pair, header", folder / "e.img", folder / "e.hdr")
    add("nifti pair, data", folder / "e.img")
    path = write_nrrd(folder / "f.nrrd", values, GEOMETRY)
    add("nrrd gzip", path, checked=path.read_bytes().index(b"\n\n") + 2)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetSpacing((0.7, 0.9, 2.5))
    for name, suffix, packed in (("metaimage zlib", "mha", True), ("metaimage", "mha", False), ("nrrd", "nrrd", False)):
        path = folder / f"{name.replace(' ', '')}.{suffix}"
        SimpleITK.WriteImage(image, str(path), packed)
        start = path.read_bytes().index(b"LOCAL\n") + 6 if packed else None
        add(name, path, checked=start)
    for suffix in ("mhd", "nhdr"):
        SimpleITK.WriteImage(image, str(folder / f"g.{suffix}"))
        add(f"{suffix} header", folder / f"g.{suffix}")
    add("npz", write_npz(folder / "h.npz", {"imgs": values, "spacing": np.array([0.7, 0.9, 2.5])}), checked=0)
    (one,) = slices(values[:, :, :1], GEOMETRY)
    for name, syntax in (
        ("dicom", None), ("dicom implicit", ImplicitVRLittleEndian), ("dicom deflated", DeflatedExplicitVRLittleEndian),
        ("dicom rle", RLELossless), ("dicom jpeg-ls", JPEGLSLossless), ("dicom jpeg 2000", JPEG2000Lossless),
    ):  # fmt: skip
        (one,) = slices(values[:, :, :1], GEOMETRY)
        try:
            if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
                one.compress(syntax, generate_instance_uid=False)
            elif syntax is not None:
                one.file_meta.TransferSyntaxUID = syntax
        except (RuntimeError, NotImplementedError):
            continue  # the encoder is not installed
        (path,) = save(folder, [one], [f"{name.replace(' ', '')}.dcm"])
        add(name, path)
    (path,) = save(folder, [enhanced(values, GEOMETRY, rescale=[(1, -k) for k in range(6)])], ["enhanced.dcm"])
    add("dicom enhanced", path)
    paths = save(folder / "series", slices(values, GEOMETRY))
    add("dicom series", folder / "series", paths[3])
    Image.fromarray((values[:, :, 0] % 256).astype(np.uint8)).save(folder / "i.png")
    add("png", folder / "i.png", checked=0)
    Image.fromarray((values[:, :, 0] % 256).astype(np.uint8)).save(folder / "j.tif")
    add("tiff", folder / "j.tif")
    Image.fromarray(np.repeat((values[:, :, :1] % 256).astype(np.uint8), 3, 2)).resize((40, 30)).save(folder / "k.jpg")
    add("jpeg", folder / "k.jpg")
    for sound in made:
        sound.array, geometry = read(sound.open, limits=LIMITS)
        sound.array, sound.affine = np.array(sound.array), geometry.affine
    return made


def damaged(data: bytes, rng) -> tuple[bytes, int]:
    """The file with one or two faults, and the first byte that was touched."""
    data, first = bytearray(data), len(data)
    for _ in range(int(rng.integers(1, 3))):
        place = int(rng.integers(0, max(1, len(data))))
        if rng.random() < 0.4:  # where headers are
            place = int(rng.integers(0, max(1, min(600, len(data)))))
        length = int(rng.integers(1, 40))
        kind = int(rng.integers(0, 9))
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[place] = int(rng.integers(0, 256))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = rng.bytes(length)
        elif kind == 5:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == 6:
            data[place:place] = data[place : place + length]
        elif kind == 7:
            place = len(data)
            data += rng.bytes(length)
        else:
            data[place : place + length] = b"9" * len(data[place : place + length])
        first = min(first, place)
        if not data:
            break
    return bytes(data), first


def outcome(sound: Sound, data: bytes, first: int) -> tuple[str, str]:
    """("error", "right", "changed" or "other", what happened)."""
    sound.file.write_bytes(data)
    try:
        array, geometry = read(sound.open, limits=LIMITS)
    except ReadError as error:
        text = str(error)
        named = sound.file.name in text or sound.open.name in text
        return ("error", text) if named and "\n" not in text else ("other", f"message: {text!r}")
    except Exception:
        return "other", traceback.format_exc()
    finally:
        sound.file.write_bytes(sound.data)
    if array.nbytes > GROWTH * LIMITS.decoded_bytes:
        return "other", f"{array.nbytes} bytes, above the limit"
    same = array.shape == sound.array.shape and np.array_equal(array, sound.array)
    if same and np.allclose(geometry.affine, sound.affine, atol=1e-6):
        return "right", ""
    if sound.checked is not None and first >= sound.checked and data != sound.data:
        return "other", "silently different under a checksum"
    return "changed", ""


def fuzz(folder: Path, count: int | None, seconds: float | None = None, seed: int = 0):
    """({reader: Counter of outcomes}, [(reader, number, what)] of the others)."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rng, sounds = np.random.default_rng(seed), sound_files(folder)
    table, others = {sound.name: Counter() for sound in sounds}, []
    begin, number = time.monotonic(), 0
    while (count is None or number < count) and (seconds is None or time.monotonic() - begin < seconds):
        sound = sounds[number % len(sounds)]
        data, first = damaged(sound.data, rng)
        kind, what = outcome(sound, data, first)
        table[sound.name][kind] += 1
        if kind == "other":
            others.append((sound.name, number, what))
        number += 1
    logging.disable(logging.NOTSET)
    return table, others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("much", nargs="?", default="5000", help="number of files, or seconds such as 60s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    seconds = float(args.much[:-1]) if args.much.endswith("s") else None
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        table, others = fuzz(Path(folder), None if seconds else int(args.much), seconds, args.seed)
    kinds = ("error", "right", "changed", "other")
    print("| reader | " + " | ".join(kinds) + " |\n| --- | " + " | ".join("---:" for _ in kinds) + " |")
    for name, counts in table.items():
        print(f"| {name} | " + " | ".join(str(counts[kind]) for kind in kinds) + " |")
    total = sum(table.values(), Counter())
    print("| all | " + " | ".join(str(total[kind]) for kind in kinds) + " |")
    for name, number, what in others[:20]:
        print(f"other: {name}, file {number}: {what}")
    print(f"{sum(total.values())} files, seed {args.seed}, {time.monotonic() - begin:.0f} s; other: {total['other']}")
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())
