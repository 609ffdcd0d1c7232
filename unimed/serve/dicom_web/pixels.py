"""Frames and pictures of DICOM objects, and multipart bodies."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence

import numpy as np

from unimed.io.dicom import decoded, open_dicom, stored_frames
from unimed.io.images import load
from unimed.io.limits import refuse_too_large
from unimed.serve.dicom_web.index import Instance
from unimed.serve.problems import Problem

#: Transfer syntax -> media type of its frames (PS3.18 table 8.7.3-5).
_MEDIA = {
    **dict.fromkeys(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57",
                     "1.2.840.10008.1.2.4.70"), "image/jpeg"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "image/jls"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), "image/jp2"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"), "image/jphc"),
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}  # fmt: skip
EXPLICIT = "1.2.840.10008.1.2.1"


def numbers_of(text: str, count: int) -> list[int]:
    """Frame numbers from 1. Raises Problem 400 for no number, 404 for a frame that is not there."""
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", text):
        raise Problem(400, "frames are numbers from 1, joined by commas", param="frames")
    found = [int(part) for part in text.split(",")]
    if not all(1 <= number <= count for number in found):
        raise Problem(404, f"the object has {count} frames", code="not_found")
    return found


def frames_of(one: Instance, numbers: Sequence[int], accept: str) -> tuple[list[bytes], str]:
    """(frames, content type of each): as they are stored where the caller takes that, else little endian numbers.

    Raises:
        Problem: 404, no pixels. ReadError: damaged, or over the limits.
    """
    dataset = open_dicom(one.path)
    if "PixelData" not in dataset:
        raise Problem(404, "the object has no frames", code="not_found")
    syntax = dataset.file_meta.TransferSyntaxUID
    media = _MEDIA.get(str(syntax))
    if syntax.is_compressed and media is not None:
        if not accept or "*/*" in accept or media in accept or "transfer-syntax=*" in accept or str(syntax) in accept:
            stored = stored_frames(dataset, one.frames)
            return [stored[number - 1] for number in numbers], f"{media}; transfer-syntax={syntax}"
    array = decoded(dataset, one.path.name)
    array = array[None] if one.frames == 1 else array
    made = {}  # by number: a caller may name one a thousand times
    for number in set(numbers):
        frame = array[number - 1]
        if int(dataset.BitsAllocated) == 1:
            made[number] = np.packbits(frame.ravel().astype(bool), bitorder="little").tobytes()
        else:
            made[number] = np.ascontiguousarray(frame.astype(frame.dtype.newbyteorder("<"))).tobytes()
    return [made[number] for number in numbers], f"application/octet-stream; transfer-syntax={EXPLICIT}"


def rendered(one: Instance, frame: int | None, kind: str, query: dict[str, str]) -> bytes:
    """A frame as PNG or JPEG, windowed as the file says, or by `window=CENTER,WIDTH[,...]`; `viewport=W,H` scales it.

    Raises:
        Problem: 400, a window or viewport that is none. ImageError, ReadError: what cannot be shown.
    """
    from PIL import Image

    window = _numbers(query.get("window"), "window", 2)
    if window is not None and window[1] <= 0:
        raise Problem(400, "window is CENTER,WIDTH with a width above 0", param="window")
    index = None if one.frames == 1 else (frame or 1) - 1
    pixels = load(one.path, window=None if window is None else tuple(window), frame=index).pixels
    image = Image.fromarray(pixels)
    if (size := _numbers(query.get("viewport"), "viewport", 2)) is not None:
        if not all(1 <= value <= 4096 for value in size):
            raise Problem(400, "a viewport has 1 to 4096 pixels", param="viewport")
        scale = min(size[0] / image.width, size[1] / image.height)
        refuse_too_large("viewport", (round(image.width * scale), round(image.height * scale)), 3)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    stream = io.BytesIO()
    image.save(stream, "JPEG" if kind == "image/jpeg" else "PNG")
    return stream.getvalue()


def _numbers(text: str | None, name: str, least: int) -> list[float] | None:
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")[:least]]
    except ValueError as error:
        raise Problem(400, f"{name} is {least} numbers joined by a comma", param=name) from error
    if len(found) < least or not np.isfinite(found).all():
        raise Problem(400, f"{name} is {least} numbers joined by a comma", param=name)
    return found


def joined(parts: Iterator[tuple[str, bytes]], boundary: str) -> Iterator[bytes]:
    """(content type, content) pairs as a multipart body."""
    for kind, content in parts:
        yield f"--{boundary}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        yield content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def parted(body: bytes, content_type: str) -> list[bytes]:
    """The contents of the parts of a multipart body.

    Raises:
        Problem: 415, no multipart/related; 400, no boundary, or a body that does not end.
    """
    if not content_type.lower().startswith("multipart/related"):
        raise Problem(415, 'send multipart/related; type="application/dicom"', code="unsupported_media_type")
    found = re.search(r'boundary="?([^";,]{1,200})"?', content_type)
    if found is None:
        raise Problem(400, "the content type names no boundary")
    mark = b"--" + found[1].strip().encode()
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise Problem(400, "the multipart body is not whole")
    contents = []
    for piece in pieces[1:-1]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        if not blank:
            raise Problem(400, "a part of the body has no header")
        contents.append(content)
    return contents
