"""From images, questions and answers to the tensors of one batch: what `GroundedProcessor.__call__` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unimed.data.collate.packing import block_diagonal_mask, pack_rows
from unimed.io.images import Image
from unimed.io.images import load as load_image
from unimed.models.grounded.layout import ImageLayout
from unimed.models.grounded.regions import PromptError, token_index
from unimed.structures import identity

#: One turn of a conversation: (role, text).
Turn = tuple[str, str]


@dataclass
class Example:
    """One row of text: ids, their labels (None for a question), and the images it speaks of by their slots.

    `read` are those of `images` whose tokens stand in the text, `units` what each of them is read in (see
    `GroundedProcessor.unit_count`), `cells` the image tokens under regions given with the question.
    """

    ids: list[int]
    labels: list[int] | None
    images: list[int]
    read: list[int]
    units: list[int]
    cells: torch.Tensor | None
    tiled: bool
    route: str | None = None
    native: dict[str, torch.Tensor] | None = None  # what the processor of a native backbone gives beside the ids
    cut: bool = False  # within its images, as only `compat="reference"` does


class Assembly:
    """Questions about images, added one by one and taken out as batches.

    Args:
        processor: a `GroundedProcessor`.
        site: body site whose CT window is used for images deeper than 8 bit.
        share_images: an object (or path) given twice is one image; False keeps every mention apart.
        literal, past_text: see `GroundedProcessor.__call__`.
    """

    def __init__(self, processor, site: str = "", share_images: bool = True, literal: bool = True, past_text: str = ""):
        self.processor, self.site, self.share = processor, site, share_images
        self.literal, self.past_text = literal, past_text
        self.examples: list[Example] = []
        self.sources: list[Image] = []
        self._slots: dict = {}
        self._held: list = []  # an object that is gone could lend its identity to another one

    def add(
        self,
        image,
        conversation: Sequence[Turn],
        regions: Sequence | None = None,
        read: Sequence[int] | None = None,
        route: str | None = None,
    ) -> Example:
        """Add one question, or a conversation whose last turn is an answer.

        Args:
            image: an image, several of them (frames, or the images of one question: one tile each), or None.
            regions: what the question speaks of as "region1", ...: masks, boxes (pixels), `Region`s.
            read: which of several images the text shows; all by default.
            route: the task by which a connector routes: one image on two routes is encoded for each.

        Raises:
            PromptError, ImageError, ReadError: what cannot be asked or read.
        """
        processor = self.processor
        several = isinstance(image, (list, tuple))
        images = [] if image is None else [self._slot(one) for one in (image if several else [image])]
        tiled = not several
        shown = [images[place] for place in (range(len(images)) if read is None else read)]
        units = [processor.unit_count(*self.size(slot), None if tiled else 1) for slot in shown]
        cells = None
        if regions is not None and len(regions):
            if not images:
                raise PromptError("regions were given without an image")
            cells = processor.region_cells(regions, self.size(images[0]))
        place = units if several else units[0] if units else 0
        labels = reader = None
        if processor.native is not None:
            reader = processor.native.reader([self.sources[slot].rgb for slot in shown], processor.opening)
        if conversation[-1][0] == "assistant":
            ids, labels = processor.encode_example(conversation, place, cells, reader)
        else:
            ids = processor.encode_prompt(conversation, place, self.literal, cells, self.past_text, reader)
        expected = sum(units) * processor.tokens_per_tile
        if processor.in_pieces and ids.count(processor.image_token_id) > expected:
            raise PromptError(
                f"the text holds {ids.count(processor.image_token_id)} image tokens, its images give {expected}; "
                f"{processor.image_token} may not stand in a question"
            )
        cut = cells is None and processor.in_pieces and ids.count(processor.image_token_id) < expected
        own = None if reader is None else reader.inputs
        self.examples.append(Example(ids, labels, images, shown, units, cells, tiled, route, own, cut))
        return self.examples[-1]

    def size(self, slot: int) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        return self.sources[slot].rgb.shape[:2]

    def _slot(self, image) -> int:
        key = identity(image)
        if not self.share or key not in self._slots:
            self._slots[key] = len(self.sources)
            self.sources.append(load_image(image, site=self.site))
            self._held.append(image)
        return self._slots[key]

    # -- batches ------------------------------------------------------------------------------------------------
    def batch(self, rows: Sequence[int] | None = None, pack: int = 0, mask_images: bool = True) -> dict:
        """Tensors of the examples numbered `rows`, all by default; see `GroundedProcessor.__call__`.

        Args:
            pack: tokens per row; several examples then share a row. "order" says in which order they come.
        """
        rows = list(range(len(self.examples))) if rows is None else list(rows)
        batch = {}
        if pack:
            batch, rows = self._packed(rows, pack)
        examples = [self.examples[row] for row in rows]
        if not pack:
            batch = self._padded(examples)
        images = list(dict.fromkeys(slot for e in examples for slot in e.images))
        encoded = list(dict.fromkeys((slot, e.tiled, e.route) for e in examples for slot in e.read))
        if mask_images and images and self.processor.mask_size:
            pixels = [self.processor.mask_pixels(self.sources[slot].rgb) for slot in images]
            batch["mask_pixel_values"] = torch.stack(pixels)
        tiles = [1] * len(encoded)
        if encoded and (self.processor.tile_size or self.processor.native_pixels is not None):
            read = [self.processor.pixels(self.sources[s].rgb, None if tiled else 1) for s, tiled, _ in encoded]
            batch["pixel_values"] = torch.cat([values for values, _ in read])
            if read[0][1] is None:
                tiles = [len(values) for values, _ in read]
            else:
                batch["image_grid_thw"] = torch.cat([grid for _, grid in read])
        if self.processor.native is not None:
            batch["native"] = self.processor.native.padded(
                [e.native for e in examples], [len(e.ids) for e in examples], batch["input_ids"].shape[1],
                left=examples[0].labels is None,
            )  # fmt: skip
        batch["layout"] = self._layout(examples, images, encoded, tiles, batch.pop("sample_of_token", None))
        return batch

    def _layout(self, examples, images, encoded, tiles, sample_of_token) -> ImageLayout:
        places = {slot: place for place, slot in enumerate(images)}
        numbers = {key: number for number, key in enumerate(encoded)}
        shown = [numbers[slot, e.tiled, e.route] for e in examples for slot in e.read]
        plain = shown == list(range(len(encoded))) and all(e.cells is None and not e.cut for e in examples)
        # A native backbone places its image tokens itself, for every row anew.
        plain |= self.processor.native is not None
        return ImageLayout(
            encoded=torch.tensor([places[slot] for slot, *_ in encoded], dtype=torch.long),
            tiles=torch.tensor(tiles, dtype=torch.long),
            shown=torch.tensor(shown, dtype=torch.long),
            per_sample=torch.tensor([len(e.read) for e in examples]),
            image_of_sample=torch.tensor([places[e.images[0]] if e.images else 0 for e in examples]),
            token_index=None if plain else self._token_index(examples, numbers),
            sample_of_token=sample_of_token,
        )

    def _token_index(self, examples, numbers) -> torch.Tensor:
        counts = dict.fromkeys(numbers.values(), 0)
        for e in examples:
            for slot, unit in zip(e.read, e.units, strict=True):
                counts[numbers[slot, e.tiled, e.route]] = unit * self.processor.tokens_per_tile
        starts = np.cumsum([0, *(counts[number] for number in range(len(numbers)))])
        parts = [torch.zeros(0, dtype=torch.long)]
        for e in examples:
            for place, slot in enumerate(e.read):
                number = numbers[slot, e.tiled, e.route]
                # Regions stand behind the last of the images.
                cells = e.cells if place + 1 == len(e.read) else None
                parts.append(int(starts[number]) + token_index(counts[number], cells))
            if e.cut:
                whole = sum(len(part) for part in parts[-len(e.read) :])
                left = e.ids.count(self.processor.image_token_id)
                parts[-len(e.read) :] = [torch.cat(parts[-len(e.read) :])[: min(whole, left)]]
        return torch.cat(parts)

    def _padded(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Questions are padded on the left, where an answer goes on; answers on the right."""
        with_labels = examples[0].labels is not None
        if any((e.labels is not None) != with_labels for e in examples):
            raise PromptError("questions and whole conversations cannot share a batch")
        length = max(len(e.ids) for e in examples)
        if with_labels and self.processor.compat == "reference":
            # As published, where the loss of a sample is divided by this length: longest question and longest answer.
            asked = [next(i for i, label in enumerate(e.labels) if label != -100) for e in examples]
            length = max(asked) + max(len(e.ids) - start for e, start in zip(examples, asked, strict=True))
        input_ids = torch.full((len(examples), length), self.processor.pad_id)
        labels, attention = torch.full_like(input_ids, -100), torch.zeros_like(input_ids)
        for row, e in enumerate(examples):
            place = slice(0, len(e.ids)) if with_labels else slice(length - len(e.ids), length)
            input_ids[row, place], attention[row, place] = torch.tensor(e.ids), 1
            if with_labels:
                labels[row, place] = torch.tensor(e.labels)
        batch = {"input_ids": input_ids, "attention_mask": attention}
        return batch | ({"labels": labels} if with_labels else {})

    def _packed(self, rows: list[int], pack: int) -> tuple[dict, list[int]]:
        examples = [self.examples[row] for row in rows]
        native = self.processor.native
        if self.processor.native_pixels is not None:
            raise ValueError("this backbone counts positions by the image, which packed rows do not; set pack=0")
        if native is not None and not native.family.packs:
            raise ValueError(f"backbone {native.family.name!r} does not keep packed sequences apart; set pack=0")
        sequences = [{"input_ids": torch.tensor(e.ids), "labels": torch.tensor(e.labels)} for e in examples]
        budget = max(pack, *(len(e.ids) for e in examples))
        packed = pack_rows(sequences, budget, {"input_ids": self.processor.pad_id, "labels": -100})
        members, segments = packed.pop("members"), packed.pop("segment_ids")
        starts = torch.tensor([0] + [len(row) for row in members[:-1]]).cumsum(0)
        packed["sample_of_token"] = torch.where(segments > 0, starts[:, None] + segments - 1, -1)
        packed["attention_mask"] = block_diagonal_mask(segments)
        packed["order"] = [place for row in members for place in row]
        return packed, [rows[place] for place in packed["order"]]


def conversations_of(text) -> list[list[Turn]]:
    """What a user calls text as conversations: a question, several, or turns as (role, text) or {"role", "content"}.

    Raises:
        PromptError: none of these.
    """
    if isinstance(text, str):
        return [[("user", text)]]
    if not isinstance(text, Sequence) or not text:
        raise PromptError(f"a text is a question, a list of questions or turns of a conversation, got {text!r:.80}")
    if _is_turn(text[0]):
        return [[_turn(turn) for turn in text]]
    return [[("user", one)] if isinstance(one, str) else [_turn(turn) for turn in one] for one in text]


def _is_turn(item) -> bool:
    return isinstance(item, Mapping) or (
        isinstance(item, tuple) and len(item) == 2 and item[0] in ("user", "assistant")
    )


def _turn(turn) -> Turn:
    if not _is_turn(turn):
        raise PromptError(f"a turn is (role, text) with role 'user' or 'assistant', got {turn!r:.80}")
    if not isinstance(turn, Mapping):
        return turn
    content = turn["content"]
    if not isinstance(content, str):
        # The parts of a message of transformers: the image itself is handed over as `images`.
        content = "".join(part.get("text", "") for part in content)
    return turn["role"], content
