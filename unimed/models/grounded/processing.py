"""Images and conversations to the tensors a `GroundedMLLM` reads, and the tokens of an answer back to text."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from unimed.chat import TEMPLATES
from unimed.models import foreign
from unimed.models.backbones.families import FAMILIES
from unimed.models.dialects import Dialect, build_dialect
from unimed.models.grounded.answers import ParsedAnswer
from unimed.models.grounded.assembly import Assembly, conversations_of
from unimed.models.grounded.conversation import ConversationText, asked_phrase
from unimed.models.grounded.framing import MASK_FITS, TILE_FITS, Frame, frame, normalized, one_tile, place
from unimed.models.grounded.llava_text import PHRASE_STYLES
from unimed.models.grounded.native_inputs import NativeInputs
from unimed.models.grounded.regions import PromptError, region_cells, region_masks, token_index
from unimed.models.grounded.tiling import best_grid, tile
from unimed.registry import BACKBONES, keywords, refuse_options, registered
from unimed.structures import Sample
from unimed.tokens import BOX_TOKEN


class GroundedProcessor(ConversationText, ProcessorMixin):
    """Tokenizer, tiling and chat template of one model.

    Args:
        template: name of a chat template of `unimed.chat`, or its fields.
        image_start, image_token, image_end: how an image stands in the text; `image_token` is repeated.
        tokens_per_tile: image tokens of one tile.
        tile_size: side of a tile in pixels; 0 where the image tokens come from the mask head's encoder.
        max_tiles: most tiles of one image, the thumbnail not counted; 1 squashes the image to one tile.
        mask_size: side of the square the mask head sees.
        tile_mean, tile_std, mask_mean, mask_std: normalisation of values in [0, 1], per channel.
        native_pixels: (fewest, most) pixels of an image that is read in its own aspect ratio instead of tiles, as the
            Qwen-VL family does; None for tiles. `patch_size` and `merge_size` belong to it.
        max_prompt_tokens: longer questions are refused.
        max_phrases: more texts on one image in one call are refused.
        tile_fit, mask_fit: how an image lies in the squares; see `unimed.models.grounded.framing`.
        mask_content: with `mask_fit` "pad", length of the longer side in the square of the mask head.
        system: text before every conversation, the same in training and prediction.
        bos: whether a conversation begins with the tokenizer's BOS.
        separate_tokens: encode the text between added tokens piece by piece and stripped, as Llama's slow tokenizer did
            when LLaVA, LISA and uMedGround were trained.
        phrase_style: "tags", phrases stand between <p> and </p>; "sentence", a phrase is what was said since the last
            target, without the endings of uMedGround ("It is [BOX].").
        box_token: what counts as [BOX]; a piece of text for models trained without the token.
        dialect: name of a dialect, or its name and arguments ({"type": "uni_med", ...}): how training samples are
            worded, and how boxes are written in the text of an answer; see `unimed.models.dialects`.
        image_join, image_gap, question_end: what stands between several images, between image and question, and after a
            question about an image.
        stop: the stop word, where it is another one than the template's.
        max_answer_tokens: longer answers lose their end in training, never their stop word.
        cut_prompts: questions that are too long lose the middle of their text instead of being refused.
        image_mark: what stands for an image in the text of a native backbone, whose own processor makes
            `image_token`s of it; `native_family` is its `model_type`.
        compat: "reference" repeats what the published code of Uni-Med does (with a `PieceTokenizer`): <s> and </s> act
            in any text, prompts and answers are cut from the right, predictions begin with two BOS and end with one
            blank.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"
    #: `NativeInputs` of a backbone that reads through its own processor.
    native: NativeInputs | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """The processor of a folder or hub id, from its data files alone (see `unimed.models.foreign`)."""
        kwargs.pop("trust_remote_code", None)
        opened = foreign.processor(super().from_pretrained, pretrained_model_name_or_path, **kwargs)
        if opened.native_family is not None:
            folder = foreign.folder_of(pretrained_model_name_or_path) / foreign.BACKBONE_PROCESSOR
            opened.read_through(foreign.image_text_processor(folder))
        return opened

    def read_through(self, processor) -> GroundedProcessor:
        """Let a processor of transformers make ids and pixels, as a native backbone needs it; gives self."""
        registered(BACKBONES)  # a plug-in may bring a family
        processor.tokenizer = self.tokenizer
        self.native = NativeInputs(processor, FAMILIES[self.native_family])
        return self

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers does; the processor of a native backbone lies in a folder of its own."""
        written = super().save_pretrained(save_directory, *args, **kwargs)
        if self.native is not None:
            self.native.processor.save_pretrained(Path(save_directory) / foreign.BACKBONE_PROCESSOR)
        return written

    def __init__(
        self,
        tokenizer=None,
        template: str | dict = "phi3_chat",
        image_start: str = "<img>",
        image_token: str = "<IMG_CONTEXT>",
        image_end: str = "</img>",
        tokens_per_tile: int = 256,
        tile_size: int = 448,
        max_tiles: int = 12,
        mask_size: int = 1024,
        tile_mean=(0.485, 0.456, 0.406),
        tile_std=(0.229, 0.224, 0.225),
        mask_mean=(0.485, 0.456, 0.406),
        mask_std=(0.229, 0.224, 0.225),
        max_prompt_tokens: int = 8192,
        max_phrases: int = 256,
        native_pixels=None,
        patch_size: int = 14,
        merge_size: int = 2,
        tile_fit: str = "tiles",
        mask_fit: str = "squash",
        mask_content: int | None = None,
        system: str = "",
        bos: bool = False,
        separate_tokens: bool = False,
        phrase_style: str = "tags",
        box_token: str = BOX_TOKEN,
        dialect: str | dict | Dialect | None = None,
        image_join: str = "\n",
        image_gap: str = "\n",
        question_end: str = "",
        stop: str | None = None,
        max_answer_tokens: int | None = None,
        cut_prompts: bool = False,
        image_mark: str = "",
        native_family: str | None = None,
        compat: str | None = None,
        **kwargs,
    ):
        self.image_mark, self.native_family = image_mark, native_family
        if compat not in (None, "reference"):
            raise PromptError(f"compat {compat!r} is not known; choose 'reference' or leave it out")
        self.image_join, self.image_gap, self.question_end, self.stop = image_join, image_gap, question_end, stop
        self.max_answer_tokens, self.cut_prompts, self.compat = max_answer_tokens, cut_prompts, compat
        if dialect is None and phrase_style == "sentence":
            dialect = {"type": "umedground", "style": "published"}
        self.dialect = build_dialect(dialect)
        for name, value, choices in (
            ("tile_fit", tile_fit, TILE_FITS),
            ("mask_fit", mask_fit, MASK_FITS),
            ("phrase_style", phrase_style, PHRASE_STYLES),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        self.tile_fit, self.mask_fit, self.mask_content = tile_fit, mask_fit, mask_content
        self.system, self.bos, self.separate_tokens = system, bos, separate_tokens
        self.phrase_style, self.box_token = phrase_style, box_token
        if isinstance(template, str) and template not in TEMPLATES:
            raise ValueError(f"no chat template {template!r}; known are {', '.join(TEMPLATES)}")
        self.template = template
        self.image_start, self.image_token, self.image_end = image_start, image_token, image_end
        self.tokens_per_tile, self.tile_size, self.max_tiles = tokens_per_tile, tile_size, max_tiles
        self.mask_size = mask_size
        self.tile_mean, self.tile_std = list(tile_mean), list(tile_std)
        self.mask_mean, self.mask_std = list(mask_mean), list(mask_std)
        self.max_prompt_tokens, self.max_phrases = max_prompt_tokens, max_phrases
        self.native_pixels = None if native_pixels is None else list(native_pixels)
        self.patch_size, self.merge_size = patch_size, merge_size
        if self.native_pixels is not None:
            # One unit of `unit_count` is then a token, not a tile.
            self.tokens_per_tile = 1
        super().__init__(tokenizer)

    # -- all at once --------------------------------------------------------------------------------------------
    def __call__(
        self,
        images=None,
        text=None,
        regions=None,
        *,
        site: str = "",
        literal: bool = True,
        past_text: str = "",
        mask_images: bool = True,
        return_tensors: str = "pt",
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        **others,
    ) -> BatchFeature:
        """What `GroundedMLLM.forward` and `generate` take.

        Args:
            images: one image for all texts, or one per text: a path, PIL image, array, several of these (frames, or the
                images of one question; one tile each), or None for a text without. An object given twice is encoded
                once.
            text: a question; a list of questions; or conversations, turns as (role, text) or as {"role", "content"}.
                "<image>" says where the image stands, it comes first otherwise. Where the last turn is an answer
                (role "assistant") the batch has labels.
            regions: what a question speaks of as "region1", "region2", ...: masks [H, W], boxes (x1, y1, x2, y2) in
                pixels of the image, or `Region`s; one list for one text, else one list (or None) per text.
            site: body site whose CT window is used for images deeper than 8 bit.
            literal: read control strings in questions as plain text (always, except for published inputs).
            past_text: turns before, already written in the template of the model.
            mask_images: False leaves out what the mask head sees, where only the text of an answer is wanted.
            return_tensors: "pt", nothing else is there. padding: rows of a batch always have one length, the longest.
            truncation: cut questions that are too long where the model was trained so (`cut_prompts`); other models
                refuse them in any case, for a question that lost its end asks something else.
            max_length: most tokens of a question with its images, instead of `max_prompt_tokens`.

        Returns:
            `input_ids` and `attention_mask` [B, L] (questions padded on the left, answers on the right), `labels`;
            `pixel_values` [T, 3, s, s] or patches [P, K] with `image_grid_thw` [I, 3]; `mask_pixel_values`
            [I, 3, S, S]; and `layout`, an `ImageLayout`.

        Raises:
            TypeError: an option that is not listed here.
            PromptError: no text, another number of images or lists of regions than of texts, a question that is empty
                or too long, or a region that does not fit.
            ImageError, ReadError: an image that cannot be read.
        """
        refuse_options(others, keywords(type(self).__call__), "the processor")
        if padding not in (True, False, "longest"):
            raise ValueError(f"padding {padding!r}: rows have the length of the longest; give True or leave it out")
        if truncation or max_length is not None:
            limited = copy.copy(self)
            limited.max_prompt_tokens = self.max_prompt_tokens if max_length is None else int(max_length)
            limited.cut_prompts = self.cut_prompts or (bool(truncation) and self.in_pieces)
            options = dict(site=site, literal=literal, past_text=past_text, mask_images=mask_images)
            return limited(images, text, regions, return_tensors=return_tensors, **options)
        if text is None:
            raise PromptError("give `text`: a question, a list of questions, or a conversation")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is 'pt', got {return_tensors!r}")
        conversations = conversations_of(text)
        if isinstance(images, (list, tuple)):
            images = [one[0] if isinstance(one, (list, tuple)) and len(one) == 1 else one for one in images]
        else:
            images = [images] * len(conversations)
        if regions is not None and len(conversations) == 1 and not _is_list_per_text(regions):
            regions = [regions]
        regions = [None] * len(conversations) if regions is None else list(regions)
        for name, values in (("images", images), ("lists of regions", regions)):
            if len(values) != len(conversations):
                raise PromptError(f"{len(values)} {name} for {len(conversations)} texts; give one per text, or None")
        assembly = self.assembly(site=site, literal=literal, past_text=past_text)
        for image, conversation, given in zip(images, conversations, regions, strict=True):
            assembly.add(image, conversation, given)
        return BatchFeature(assembly.batch(mask_images=mask_images))

    def apply_chat_template(self, conversation, *args, **kwargs):
        """Nothing to call: questions get the model's template when the processor reads them.

        Raises:
            PromptError: always, with what to call.
        """
        raise PromptError(
            "this processor writes the chat template of its model by itself; call "
            "processor(images=..., text=CONVERSATION), or model.predict(image, question)"
        )

    def to_dict(self, *args, **kwargs) -> dict:
        """As transformers does; the dialect by its name and arguments."""
        return super().to_dict(*args, **kwargs) | {"dialect": self.dialect.to_dict()}

    @property
    def opening(self) -> str:
        """What a conversation begins with."""
        return self.tokenizer.bos_token if self.bos and self.tokenizer.bos_token is not None else ""

    def write(self, sample: Sample) -> Sample:
        """A sample of any data set in the words of this model's dialect."""
        return self.dialect.write(sample, self.read_size)

    def read_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels at which the vision encoder reads an image of `size_hw`."""
        if self.native_pixels is None:
            return size_hw
        step = self.patch_size * self.merge_size
        rows, columns = self.token_grid(*size_hw)
        return rows * step, columns * step

    def assembly(self, **options) -> Assembly:
        """An empty `Assembly`, for callers that add questions one by one and take several batches out of it."""
        return Assembly(self, **options)

    # -- images -------------------------------------------------------------------------------------------------
    def tiles(self, image: np.ndarray, max_tiles: int | None = None) -> torch.Tensor | None:
        """HxWx3 uint8 -> [T, 3, s, s] normalised; None where the model needs no tiles."""
        if not self.tile_size:
            return None
        if self.tile_fit != "tiles":
            return one_tile(image, self.tile_size, self.tile_fit, self.tile_mean, self.tile_std)
        tile_images = tile(Image.fromarray(image), self.tile_size, max_tiles or self.max_tiles)
        return torch.stack([normalized(one, self.tile_mean, self.tile_std) for one in tile_images])

    def frame(self, size_hw: tuple[int, int]) -> Frame:
        """How an image of this size lies in the square of the mask head."""
        return frame(size_hw, self.mask_size, self.mask_fit, self.mask_content)

    def mask_pixels(self, image: np.ndarray) -> torch.Tensor:
        """HxWx3 uint8 -> [3, S, S]: the whole image in the square of the mask head."""
        return place(image, self.frame(image.shape[:2]), self.mask_fit, self.mask_mean, self.mask_std)

    def unit_count(self, height: int, width: int, max_tiles: int | None = None) -> int:
        """Units an image is read in: tiles with the thumbnail, or tokens where it keeps its own aspect ratio."""
        if self.native_pixels is not None:
            rows, columns = self.token_grid(height, width)
            return rows * columns
        if not self.tile_size or self.tile_fit != "tiles":
            return 1
        columns, rows = best_grid(width, height, self.tile_size, max_tiles or self.max_tiles)
        return columns * rows + (columns * rows > 1)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the image tokens that show the whole image: those of the last tile.

        Raises:
            PromptError: the image tokens of this model lie on no grid.
        """
        if self.native_pixels is not None:
            from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

            step = self.patch_size * self.merge_size
            height, width = smart_resize(height, width, step, *self.native_pixels)
            return height // step, width // step
        side = math.isqrt(self.tokens_per_tile)
        if side * side != self.tokens_per_tile:
            raise PromptError(f"the {self.tokens_per_tile} image tokens of this model lie on no grid; regions need one")
        return side, side

    def region_cells(self, regions: Sequence, size: tuple[int, int]) -> torch.Tensor:
        """Image tokens under regions of an image of `size` (H, W): bool [N, rows, columns]; see `region_masks`.

        Raises:
            PromptError: a region that does not fit, or image tokens that lie on no grid.
        """
        if self.native is not None:
            raise PromptError("this backbone reads images through its own forward pass, which takes no regions")
        return region_cells(region_masks(regions, size), self.token_grid(*size))

    def token_index(self, unit_count: int, cells: torch.Tensor | None) -> torch.Tensor:
        """Which token of an image stands at each of its places in the text (see `regions.token_index`)."""
        return token_index(unit_count * self.tokens_per_tile, cells)

    def pixels(self, image: np.ndarray, max_tiles: int | None = None):
        """What the vision tower reads of an image (HxWx3 uint8).

        Returns:
            tiles [T, 3, s, s] and None; or patches [P, K] and their grid [1, 3] (frames, rows, columns) where the image
            keeps its own aspect ratio; or None twice where the model looks through the mask head alone.
        """
        if self.native_pixels is None:
            return self.tiles(image, max_tiles), None
        from transformers import Qwen2VLImageProcessor

        fewest, most = self.native_pixels
        read = Qwen2VLImageProcessor(
            size={"shortest_edge": fewest, "longest_edge": most}, patch_size=self.patch_size,
            merge_size=self.merge_size, image_mean=self.tile_mean, image_std=self.tile_std,
        )  # fmt: skip
        # The channel order is said because a 3 x W picture looks like one with channels first.
        batch = read(images=[image], return_tensors="pt", input_data_format="channels_last")
        return batch["pixel_values"], batch["image_grid_thw"]

    def image_text(self, unit_count: int | Sequence[int]) -> str:
        """What stands for an image of so many units in the text; several numbers stand for frames, line by line."""
        counts = [unit_count] if isinstance(unit_count, int) else unit_count
        if self.native is not None:
            return self.image_join.join(self.image_mark for _ in counts)
        return self.image_join.join(
            self.image_start + self.image_token * (self.tokens_per_tile * count) + self.image_end for count in counts
        )


def _is_list_per_text(regions) -> bool:
    """Whether regions of one text are wrapped in a list of their own already."""
    return len(regions) == 1 and (
        regions[0] is None or isinstance(regions[0], (list, tuple)) and not _is_box(regions[0])
    )


def _is_box(region) -> bool:
    return len(region) == 4 and all(isinstance(value, (int, float, np.number)) for value in region)


AutoProcessor.register("unimed_grounded", GroundedProcessor)

__all__ = ["GroundedProcessor", "ParsedAnswer", "PromptError", "asked_phrase"]
