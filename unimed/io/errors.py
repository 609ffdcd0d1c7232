"""What may go wrong between a file and model pixels; every message names the file and the remedy."""

from __future__ import annotations

from unimed.io.limits import ReadError


class ImageError(ValueError):
    """An image no model can read: empty, not finite, several pages, or of a shape that is no image."""


class WindowError(ValueError):
    """Grey values that cannot be brought to 0..255 as asked; the message says what to give."""


class MaskError(ValueError):
    """A mask or label image that cannot be used; the message names the file and the remedy."""


__all__ = ["ImageError", "MaskError", "ReadError", "WindowError"]
