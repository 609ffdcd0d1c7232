"""Pictures a person looks at: regions drawn over the image they belong to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimed.files import write_atomic
from unimed.structures import Region

#: Okabe-Ito colours, told apart with every kind of colour vision.
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))

NOTICE = "research use only"
_WHITE = (255, 255, 255)


def draw_regions(
    image: np.ndarray,
    regions: Sequence[Region],
    opacity: float = 0.45,
    captions: bool = True,
    colors: Sequence | None = None,
) -> np.ndarray:
    """Masks as tints with a hard edge, boxes as frames, phrases as captions.

    A box with a standard deviation is drawn in a band of one standard deviation to each side; outer and inner boxes of
    a calibration are thin dashed frames.

    Args:
        image: HxW or HxWx3, uint8.
        regions: 2D regions in the pixels of `image`.
        opacity: of the tint, 0 to 1. captions: write them into the image, broken so that none is cut.
        colors: RGB of each region, 0 to 255; by default they take turns.

    Returns:
        HxWx3, uint8; `image` itself is not changed.

    Raises:
        ValueError: image not uint8 or of another shape, or a mask that does not fit the image.
    """
    from PIL import Image, ImageDraw

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"image must be uint8 HxW or HxWx3, got {image.dtype} {image.shape}; window it first")
    colors = _cycle(COLORS, len(regions)) if colors is None else [tuple(color) for color in colors]
    canvas = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    for region, region_color in zip(regions, colors, strict=True):
        if region.mask is None:
            continue
        if region.mask.shape != canvas.shape[:2]:
            raise ValueError(
                f"region {region.phrase!r}: mask {region.mask.shape} does not fit the image {canvas.shape[:2]}"
            )
        tint = np.array(region_color, dtype=np.float32)
        inside = canvas[region.mask].astype(np.float32)
        canvas[region.mask] = np.rint((1 - opacity) * inside + opacity * tint).astype(np.uint8)
        canvas[_edge(region.mask, 1 + min(canvas.shape[:2]) // 500)] = region_color
    for region, region_color in zip(regions, colors, strict=True):
        if region.box_xyxy_px is not None and region.box_std_px is not None:
            band = _band(region.box_xyxy_px, region.box_std_px, canvas.shape[:2])
            canvas[band] = np.rint(0.65 * canvas[band] + 0.35 * np.array(region_color)).astype(np.uint8)
    pil_image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(pil_image)
    for region, region_color in zip(regions, colors, strict=True):
        if region.box_xyxy_px is not None:
            x1, y1, x2, y2 = region.box_xyxy_px
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=region_color, width=max(1, min(canvas.shape[:2]) // 200))
            for box in (region.box_outer_xyxy_px, region.box_inner_xyxy_px):
                if box is not None:
                    _dashed(draw, box, region_color)
    if captions:
        size = letter_px(canvas.shape[1])
        top = 2
        for text, region_color in wrapped_captions(regions, canvas.shape[1] - 6, size, colors):
            draw.text((3, top), text, font=_font(size), fill=region_color, stroke_width=1, stroke_fill=(0, 0, 0))
            top += 1.2 * size
    return np.asarray(pil_image)


def letter_px(width: int) -> int:
    """Height in pixels of letters that can be read on a picture of this width."""
    return max(11, round(width / 36))


def caption_of(region: Region) -> str:
    """The phrase of a region, how sure the model is that it is there, and whether nothing could be drawn."""
    drawn = region.box_xyxy_px is not None or (region.mask is not None and region.mask.any())
    known = [] if region.presence is None else [f"presence {region.presence:.2f}"]
    known += [] if drawn else ["nothing drawn"]
    return f"{region.phrase} ({', '.join(known)})" if known else region.phrase


def wrapped_captions(
    regions: Sequence[Region], width: int, size: int, colors: Sequence | None = None
) -> list[tuple[str, tuple[int, int, int]]]:
    """Captions broken into lines that fit `width` pixels in letters of `size`, each with its colour."""
    colors, lines = colors or _cycle(COLORS, len(regions)), []
    for region, color in zip(regions, colors, strict=True):
        lines += [(line, color) for line in wrapped(caption_of(region), width, size)]
    return lines


def wrapped(text: str, width: int, size: int, most: int = 3) -> list[str]:
    """A text in at most `most` lines that fit `width` pixels in letters of `size`; what is left out shows as dots."""
    font, lines = _font(size), [""]
    for word in text.split() or [""]:
        while word:
            joined = f"{lines[-1]} {word}".strip()
            if font.getlength(joined) <= width:
                lines[-1], word = joined, ""
            elif lines[-1]:
                lines.append("")
            else:  # a word longer than a line
                cut = max(1, next((n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width), 1))
                lines[-1], word = word[:cut], word[cut:]
                lines += [""] if word else []
    if len(lines) > most:
        lines = lines[:most]
        while lines[-1] and font.getlength(f"{lines[-1]}...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines


def text_strip(lines: Sequence[tuple[str, tuple[int, int, int]]], width: int, size: int) -> np.ndarray:
    """Lines of text on black, uint8 [H, width, 3]; no line, no rows."""
    from PIL import Image, ImageDraw

    if not lines:
        return np.zeros((0, width, 3), np.uint8)
    strip = Image.new("RGB", (width, round(1.25 * size * len(lines)) + 3))
    draw = ImageDraw.Draw(strip)
    for number, (text, color) in enumerate(lines):
        draw.text((3, 1 + 1.25 * size * number), text, font=_font(size), fill=color)
    return np.asarray(strip)


def image_with_captions(image: np.ndarray, regions: Sequence[Region], title: str = "") -> np.ndarray:
    """The regions drawn over an image, with a title above and the captions below it, where they hide nothing."""
    width = image.shape[1]
    size = letter_px(width)
    above = [(line, _WHITE) for line in wrapped(title, width - 6, size, 1)] if title else []
    return np.concatenate(
        [
            text_strip(above, width, size),
            draw_regions(image, regions, captions=False),
            text_strip(wrapped_captions(regions, width - 6, size), width, size),
        ]
    )


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], note: str = NOTICE, gap: int = 4) -> np.ndarray:
    """Pictures in rows with gaps between them and a note below, uint8 HxWx3; cells of a column share its width."""
    columns = max(map(len, rows))
    widths = [max(row[place].shape[1] for row in rows if place < len(row)) for place in range(columns)]
    total = sum(widths) + gap * (columns - 1)
    parts = []
    for row in rows:
        band = np.zeros((max(image.shape[0] for image in row), total, 3), np.uint8)
        for place, image in enumerate(row):
            left = sum(widths[:place]) + gap * place
            band[: image.shape[0], left : left + image.shape[1]] = image
        parts += [band, np.zeros((gap, total, 3), np.uint8)]
    size = min(max(11, max(widths) // 28), 18)
    below = [(line, _WHITE) for line in wrapped(note, total - 6, size)] if note else []
    return np.concatenate([*parts, text_strip(below, total, size)])


def write_image(path: str | Path, image: np.ndarray) -> Path:
    """Write HxWx3 uint8 as PNG with the notice of research use in its metadata."""
    from PIL import Image, PngImagePlugin

    information = PngImagePlugin.PngInfo()
    information.add_text("Notice", NOTICE)
    drawn = Image.fromarray(image)
    return write_atomic(path, lambda temporary: drawn.save(temporary, format="PNG", pnginfo=information))


def scale_to_width(image: np.ndarray, regions: Sequence[Region], width: int) -> tuple[np.ndarray, list[Region]]:
    """An image (HxW or HxWx3, uint8) and its 2D regions, both scaled to a width in pixels."""
    from PIL import Image

    factor = width / image.shape[1]
    size = (width, max(1, round(image.shape[0] * factor)))
    scaled = []
    for region in regions:
        mask = region.mask
        if mask is not None:
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=bool)
        boxes = {
            name: tuple(value * factor for value in getattr(region, name))
            for name in ("box_xyxy_px", "box_std_px", "box_outer_xyxy_px", "box_inner_xyxy_px")
            if getattr(region, name) is not None
        }
        scaled.append(replace(region, mask=mask, **boxes))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)), scaled


def write_overlay(path: str | Path, image: np.ndarray, regions: Sequence[Region], title: str = "") -> Path:
    """The regions drawn over an image as PNG; captions and the notice of research use stand below it.

    The picture keeps the size of the image; so the pixels of the upper part are those of the image.
    """
    width = image.shape[1]
    size = letter_px(width)
    notice = text_strip([(line, _WHITE) for line in wrapped(NOTICE, width - 6, size)], width, size)
    return write_image(path, np.concatenate([image_with_captions(image, regions, title), notice]))


@functools.cache
def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _band(box, std, size: tuple[int, int]) -> np.ndarray:
    """bool HxW, True where a pixel lies between the box less and the box plus its standard deviations."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5

    def inside(x1, y1, x2, y2):
        return (columns >= x1) & (columns <= x2) & (rows >= y1) & (rows <= y2)

    (x1, y1, x2, y2), (a, b, c, d) = box, std
    return inside(x1 - a, y1 - b, x2 + c, y2 + d) & ~inside(x1 + a, y1 + b, x2 - c, y2 - d)


def _dashed(draw, box, color, dash: int = 4) -> None:
    x1, y1, x2, y2 = (int(round(value)) for value in box)
    for x in range(x1, x2, 2 * dash):
        for y in (y1, y2 - 1):
            draw.line((x, y, min(x + dash, x2) - 1, y), fill=color)
    for y in range(y1, y2, 2 * dash):
        for x in (x1, x2 - 1):
            draw.line((x, y, x, min(y + dash, y2) - 1), fill=color)


def _cycle(colors, count):
    return [colors[index % len(colors)] for index in range(count)]


def _edge(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Pixels of the mask at most `width` steps (up, down, left, right) from outside; the picture's border counts as
    inside."""
    interior = mask
    for _ in range(width):
        padded = np.pad(interior, 1, mode="edge")
        interior = interior & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~interior
