"""Pictures a person looks at: regions drawn over the image they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimed.files import write_atomic
from unimed.structures import Region

#: Okabe-Ito colours, told apart with every kind of colour vision.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))

NOTICE = "research use only"


def draw_regions(
    image: np.ndarray, regions: Sequence[Region], opacity: float = 0.45, colors: Sequence | None = None
) -> np.ndarray:
    """Masks as tints with a hard edge, boxes as frames, phrases as captions.

    A box with a standard deviation is drawn in a band of one standard deviation to each side; outer and inner boxes of
    a calibration are thin dashed frames.

    Args:
        image: HxW or HxWx3, uint8.
        regions: 2D regions in the pixels of `image`.
        opacity: of the tint, 0 to 1.
        colors: RGB of each region, 0 to 255; by default they take turns.

    Returns:
        HxWx3, uint8; `image` itself is not changed.

    Raises:
        ValueError: image not uint8 or of another shape, or a mask that does not fit the image.
    """
    from PIL import Image, ImageDraw, ImageFont

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"image must be uint8 HxW or HxWx3, got {image.dtype} {image.shape}; window it first")
    colors = _cycle(COLOURS, len(regions)) if colors is None else [tuple(color) for color in colors]
    canvas = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    for region, colour in zip(regions, colors, strict=True):
        if region.mask is None:
            continue
        if region.mask.shape != canvas.shape[:2]:
            raise ValueError(
                f"region {region.phrase!r}: mask {region.mask.shape} does not fit the image {canvas.shape[:2]}"
            )
        tint = np.array(colour, dtype=np.float32)
        inside = canvas[region.mask].astype(np.float32)
        canvas[region.mask] = np.rint((1 - opacity) * inside + opacity * tint).astype(np.uint8)
        canvas[_edge(region.mask)] = colour
    for region, colour in zip(regions, colors, strict=True):
        if region.box_xyxy_px is not None and region.box_std_px is not None:
            band = _band(region.box_xyxy_px, region.box_std_px, canvas.shape[:2])
            canvas[band] = np.rint(0.65 * canvas[band] + 0.35 * np.array(colour)).astype(np.uint8)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    letter_px = max(11, canvas.shape[0] // 45)
    font = ImageFont.load_default(size=letter_px)
    for line, (region, colour) in enumerate(zip(regions, colors, strict=True)):
        if region.box_xyxy_px is not None:
            x1, y1, x2, y2 = region.box_xyxy_px
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=max(1, min(canvas.shape[:2]) // 200))
            for box in (region.box_outer_xyxy_px, region.box_inner_xyxy_px):
                if box is not None:
                    _dashed(draw, box, colour)
        caption = region.phrase if region.presence is None else f"{region.phrase} ({region.presence:.2f})"
        draw.text(
            (3, 2 + 1.2 * letter_px * line), caption, font=font, fill=colour, stroke_width=1, stroke_fill=(0, 0, 0)
        )
    return np.asarray(picture)


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


def write_overlay(path: str | Path, image: np.ndarray, regions: Sequence[Region]) -> Path:
    """Write `draw_regions` as PNG; the notice of research use is drawn below the image and kept in the metadata."""
    from PIL import Image, ImageDraw, PngImagePlugin

    drawn = draw_regions(image, regions)
    picture = Image.new("RGB", (drawn.shape[1], drawn.shape[0] + 14))
    picture.paste(Image.fromarray(drawn), (0, 0))
    ImageDraw.Draw(picture).text((3, drawn.shape[0] + 1), NOTICE, fill=(255, 255, 255))
    information = PngImagePlugin.PngInfo()
    information.add_text("Notice", NOTICE)
    return write_atomic(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=information))


def _band(box, std, size: tuple[int, int]) -> np.ndarray:
    """bool HxW, True where a pixel lies between the box less and the box plus its standard deviations."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5

    def inside(x1, y1, x2, y2):
        return (columns >= x1) & (columns <= x2) & (rows >= y1) & (rows <= y2)

    (x1, y1, x2, y2), (a, b, c, d) = box, std
    return inside(x1 - a, y1 - b, x2 + c, y2 + d) & ~inside(x1 + a, y1 + b, x2 - c, y2 - d)


def _dashed(draw, box, colour, dash: int = 4) -> None:
    x1, y1, x2, y2 = (int(round(value)) for value in box)
    for x in range(x1, x2, 2 * dash):
        for y in (y1, y2 - 1):
            draw.line((x, y, min(x + dash, x2) - 1, y), fill=colour)
    for y in range(y1, y2, 2 * dash):
        for x in (x1, x2 - 1):
            draw.line((x, y, x, min(y + dash, y2) - 1), fill=colour)


def _cycle(colours, count):
    return [colours[index % len(colours)] for index in range(count)]


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a neighbour (up, down, left, right) outside it; the picture's border counts as inside."""
    padded = np.pad(mask, 1, mode="edge")
    interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~interior
