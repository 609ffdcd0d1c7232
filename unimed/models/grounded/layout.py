"""Which image stands where in a batch of text, and which image its [SEG] and [BOX] speak of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True)
class ImageLayout:
    """How the I images, R encoded images and N samples of a batch belong together.

    An image is encoded once, however many samples show it. Samples are rows of the batch, or parts of packed rows.

    Args:
        encoded: [R], which of the I images of the mask head are also encoded for the text.
        tiles: [R], rows of `pixel_values` of each of these (1 where an image keeps its aspect ratio).
        shown: [S], which encoded image stands at each image place of the text, in reading order.
        per_sample: [N], how many of `shown` belong to each sample.
        image_of_sample: [N], the image that the [SEG] and [BOX] of a sample speak of, the first of several frames;
            0 where it has none.
        token_index: [places], which of all image tokens (encoded image after encoded image) stands at each place of
            the text, in reading order; None where they stand in order, each once.
        sample_of_token: [B, L], the sample of each token of packed rows, -1 at padding; None where rows are samples.
        seg_of_mask, image_of_mask: [M], the [SEG] (counted in reading order over the batch) and the image of each
            wanted mask, where a [SEG] speaks of several frames; None for one mask per [SEG].
    """

    encoded: torch.Tensor
    tiles: torch.Tensor
    shown: torch.Tensor
    per_sample: torch.Tensor
    image_of_sample: torch.Tensor
    token_index: torch.Tensor | None = None
    sample_of_token: torch.Tensor | None = None
    seg_of_mask: torch.Tensor | None = None
    image_of_mask: torch.Tensor | None = None

    def to(self, device) -> ImageLayout:
        """The same on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: None if value is None else value.to(device) for name, value in moved.items()})

    def image_of_token(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[B, L], the image that each token speaks of."""
        if self.sample_of_token is None:
            return self.image_of_sample[:, None].expand_as(input_ids)
        return self.image_of_sample[self.sample_of_token.clamp(min=0)]

    def per_tile(self, values: torch.Tensor) -> torch.Tensor:
        """Values of samples [N], such as their tasks, for the tiles of the encoded images: [sum of `tiles`].

        An image that several samples show gets the value of the first of them.
        """
        owner = torch.repeat_interleave(torch.arange(len(self.per_sample)), self.per_sample.cpu()).tolist()
        of_image = dict(zip(reversed(self.shown.tolist()), reversed(owner), strict=True))
        index = torch.tensor([of_image[image] for image in range(len(self.encoded))], dtype=torch.long)
        return values[index.to(values.device)].repeat_interleave(self.tiles.to(values.device))
