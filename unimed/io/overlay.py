"""Pictures a person looks at: regions drawn over the image they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimed.io.write import write_whole
from unimed.structures import Region

#: Okabe-Ito colours, told apart with every kind of colour vision.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))

NOTICE = "research use only"


def draw_regions(image: np.ndarray, regions: Sequence[Region], opacity: float = 0.45) -> np.ndarray:
    """Masks as tints with a hard edge, boxes as frames, phrases as captions.

    Args:
        image: HxW or HxWx3, uint8.
        regions: 2D regions in the pixels of `image`.
        opacity: of the tint, 0 to 1.

    Returns:
        HxWx3, uint8; `image` itself is not changed.

    Raises:
        ValueError: image not uint8 or of another shape, or a mask that does not fit the image.
    """
    from PIL import Image, ImageDraw, ImageFont

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"image must be uint8 HxW or HxWx3, got {image.dtype} {image.shape}; window it first")
    canvas = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    for region, colour in zip(regions, _cycle(COLOURS, len(regions)), strict=True):
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
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    letter_px = max(11, canvas.shape[0] // 45)
    font = ImageFont.load_default(size=letter_px)
    for line, (region, colour) in enumerate(zip(regions, _cycle(COLOURS, len(regions)), strict=True)):
        if region.box_xyxy_px is not None:
            x1, y1, x2, y2 = region.box_xyxy_px
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=max(1, min(canvas.shape[:2]) // 200))
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
        box = region.box_xyxy_px and tuple(value * factor for value in region.box_xyxy_px)
        scaled.append(replace(region, mask=mask, box_xyxy_px=box, box_std_px=None))
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
    return write_whole(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=information))


def _cycle(colours, count):
    return [colours[index % len(colours)] for index in range(count)]


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a neighbour (up, down, left, right) outside it; the picture's border counts as inside."""
    padded = np.pad(mask, 1, mode="edge")
    interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~interior
