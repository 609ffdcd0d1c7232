"""Prompts, pictures and answers of Uni-Med as ids and pixels, and boxes back from text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unimed.files import write_atomic
from unimed.markup import without_surrogates
from unimed.models import foreign

#: Stands in `input_ids` where one visual token goes. No id of the language model is used, so no text can forge it.
VISUAL_TOKEN = -200
IMAGE = "<ImageHere>"
WRAPPED_IMAGE = f"<Img>{IMAGE}</Img> "
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TASKS = ("qa", "vqa", "refer", "identify", "caption", "cls")
_CONTROL = re.compile("(<s>|</s>|<unk>)")
_BOX = re.compile(r"\{\s*<(-?\d{1,4})>\s*<(-?\d{1,4})>\s*<(-?\d{1,4})>\s*<(-?\d{1,4})>\s*\}")
FILES = ("tokenizer.model", "uni_med_processor.json")


class PromptError(ValueError):
    """A prompt that cannot be made: unknown task, too long, or another number of images than it asks for."""


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are written; see `UniMedProcessor`."""

    image_size: int = 224
    tokens_per_image: int = 64
    chat_template: bool = True
    end_symbol: str = "</s>"
    max_answer_tokens: int = 1024
    max_prompt_tokens: int = 3800
    pad_piece: str = "$$"


@dataclass
class Example:
    """Ids of one training example without its BOS: `prompt`, then `answer` with its `labels` of the same length."""

    prompt: list[int]
    answer: list[int]
    labels: list[int]
    images: int = 0


class UniMedProcessor:
    """SentencePiece pieces, prompt layout and pictures.

    Text is cut at `<ImageHere>`, every piece is encoded alone (so each begins with SentencePiece's own blank), and
    `tokens_per_image` places stand between the pieces. A training prompt is "[INST] " + text + " [/INST]", an answer
    ends with `end_symbol`.

    By default a question typed by somebody holds no control tokens, an answer that is too long keeps its end symbol, a
    prompt that is too long loses the middle of its text and never an image or its end, and predictions use the layout
    of training. With `compat="reference"` all is as published: `<s>` and `</s>` in any text act, answers and prompts
    are cut from the right, predictions begin with two BOS and end with one blank instead of two.

    Args:
        model_file: SentencePiece `tokenizer.model` of the language model, or what is in it.
        compat: None or "reference".
        options: fields of `PromptOptions`.

    Raises:
        FileNotFoundError: no such file.
        PromptError: an unknown `compat`.
    """

    def __init__(self, model_file: str | Path | bytes, compat: str | None = None, **options):
        from sentencepiece import SentencePieceProcessor

        if not isinstance(model_file, bytes):
            if not Path(model_file).is_file():
                raise FileNotFoundError(f"{model_file}: no tokenizer.model of the language model is there")
            model_file = Path(model_file).read_bytes()
        if compat not in (None, "reference"):
            raise PromptError(f"compat {compat!r} is not known; choose 'reference' or leave it out")
        self._model, self.compat = model_file, compat
        self.options = PromptOptions(**options)
        self.pieces = SentencePieceProcessor(model_proto=model_file)
        self.bos_id, self.eos_id = self.pieces.bos_id(), self.pieces.eos_id()
        pad = self.pieces.piece_to_id(self.options.pad_piece)
        self.pad_id = self.pieces.unk_id() if pad == self.pieces.unk_id() else pad

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes) -> UniMedProcessor:
        """The processor saved in a folder.

        Raises:
            FileNotFoundError: a file of it is missing.
        """
        folder = Path(folder)
        for name in FILES:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder}: {name} is missing; convert or export the model again")
        values = foreign.clean(foreign.read_json(folder / FILES[1]))
        return cls(folder / FILES[0], **(values | changes))

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = asdict(self.options) | {"compat": self.compat}
        write_atomic(folder / FILES[1], lambda path: Path(path).write_text(json.dumps(values, indent=1)))
        write_atomic(folder / FILES[0], lambda path: Path(path).write_bytes(self._model))

    # -- text -----------------------------------------------------------------------------------------------------
    def encode(self, text: str, control: bool = True) -> list[int]:
        """Ids of one piece of text. With `control`, the literals <s>, </s> and <unk> become ids 1, 2 and 0."""
        text = without_surrogates(text)
        if not control:
            return self.pieces.encode(text)
        known = {"<s>": self.bos_id, "</s>": self.eos_id, "<unk>": self.pieces.unk_id()}
        ids: list[int] = []
        for part in _CONTROL.split(text):
            if part:
                ids += [known[part]] if part in known else self.pieces.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the end token, without what stands before the last [/INST]."""
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        special = {self.bos_id, self.pieces.unk_id(), self.pad_id}
        text = self.pieces.decode([i for i in ids if 0 <= i < self.pieces.vocab_size() and i not in special])
        return text.split("[/INST]")[-1].strip()

    def instruction(self, task: str, text: str, images: int = 1) -> str:
        """ "<Img><ImageHere></Img> [task] text ", or "[task] text" without an image.

        Raises:
            PromptError: an unknown task.
        """
        if task not in TASKS:
            raise PromptError(f"task {task!r} is not known; choose one of: {', '.join(TASKS)}")
        return WRAPPED_IMAGE * images + f"[{task}] {text}" + (" " if images else "")

    def prompt(self, instruction: str, images: int, predicting: bool = False) -> list[int]:
        """Ids of a prompt, VISUAL_TOKEN where images go. Predictions begin with BOS, training adds it later.

        Raises:
            PromptError: the text asks for another number of images, or is too long to be cut.
        """
        if instruction.count(IMAGE) != images:
            raise PromptError(
                f"the text holds {instruction.count(IMAGE)} {IMAGE}, but {images} images are given; write one per image"
            )
        reference = self.compat == "reference"
        if predicting and reference and "[caption]" not in instruction:
            instruction = instruction.rstrip(" ")
        text = f"[INST] {instruction} [/INST]" if self.options.chat_template else instruction
        segments = [self.encode(part, control=reference) for part in text.split(IMAGE)]
        block = [VISUAL_TOKEN] * self.options.tokens_per_image
        limit = self.options.max_prompt_tokens
        if reference:
            ids = sum(([*part, *block] for part in segments[:-1]), []) + segments[-1]
            ids = ids[:limit]
        else:
            ids = self._fit(segments, block, limit)
        if predicting:
            ids = [self.bos_id] * (2 if reference else 1) + ids
        return ids

    def _fit(self, segments: list[list[int]], block: list[int], limit: int) -> list[int]:
        ids = sum(([*part, *block] for part in segments[:-1]), [])
        tail, room = segments[-1], limit - len(ids)
        if len(tail) > room:
            # The head of the tail says the task, its end holds [/INST]: both stay.
            keep = 16
            if room < 2 * keep:
                raise PromptError(f"the images alone need {len(ids)} of {limit} tokens; raise max_prompt_tokens")
            tail = tail[:keep] + tail[len(tail) - (room - keep) :]
        return ids + tail

    def answer(self, text: str) -> list[int]:
        """Ids of an answer with its end symbol, at most `max_answer_tokens`."""
        limit, end = self.options.max_answer_tokens, self.options.end_symbol
        if self.compat == "reference":
            return self.encode(text + end)[:limit]
        end_ids = self.encode(end)
        return self.encode(text, control=False)[: limit - len(end_ids)] + end_ids

    def example(self, instruction: str, answer: str, images: int) -> Example:
        """One question with one answer; see `prompt` and `answer`."""
        ids = self.answer(answer)
        return Example(self.prompt(instruction, images), ids, [-100 if i == self.pad_id else i for i in ids], images)

    def conversation(self, questions: Sequence[str], answers: Sequence[str], images: int) -> Example:
        """Several turns: the first question is the prompt, later ones begin with BOS, only answers are learnt.

        Raises:
            PromptError: another number of answers than of questions.
        """
        if not questions or len(questions) != len(answers):
            raise PromptError(f"{len(questions)} questions for {len(answers)} answers; give one answer per question")
        reference = self.compat == "reference"
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            if number:
                text = f"[INST] {question} [/INST]" if self.options.chat_template else question
                asked = [self.bos_id, *self.encode(text, control=reference)]
                ids, labels = ids + asked, labels + [-100] * len(asked)
            said = self.encode(answer + self.options.end_symbol) if reference else self.answer(answer)
            ids, labels = ids + said, labels + [-100 if i == self.pad_id else i for i in said]
        return Example(self.prompt(questions[0], images), ids, labels, images)

    def batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask and labels [B, L], BOS in front, padded on the right.

        With `compat="reference"` L is 1 + the longest prompt + the longest answer, as published; the loss per sample
        of the reference divides by it. Where a prompt was cut within its images, `visual_mask` [I, M] says which visual
        tokens are left.
        """
        length = max(len(e.prompt) + len(e.answer) for e in examples)
        if self.compat == "reference":
            length = max(len(e.prompt) for e in examples) + max(len(e.answer) for e in examples)
        shape = (len(examples), length + 1)
        ids = torch.full(shape, self.pad_id)
        labels = torch.full(shape, -100)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, e in enumerate(examples):
            end = 1 + len(e.prompt) + len(e.answer)
            ids[row, :end] = torch.tensor([self.bos_id, *e.prompt, *e.answer])
            labels[row, 1 + len(e.prompt) : end] = torch.tensor(e.labels)
            mask[row, :end] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        per_image = self.options.tokens_per_image
        left = [torch.arange(e.images * per_image) < e.prompt.count(VISUAL_TOKEN) for e in examples]
        if not all(bool(part.all()) for part in left):
            batch["visual_mask"] = torch.cat(left).reshape(-1, per_image)
        return batch

    # -- pictures and boxes ----------------------------------------------------------------------------------------
    def pixels(self, rgb: np.ndarray) -> torch.Tensor:
        """HxWx3 uint8 -> [3, S, S]: a square by antialiased bicubic (aspect ratio lost), mean and std of CLIP."""
        side = self.options.image_size
        picture = Image.fromarray(rgb).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
        return (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]

    def boxes(self, text: str, width: int, height: int) -> list[tuple[float, float, float, float]]:
        """Boxes {<x1><y1><x2><y2>} of an answer (0 to 100) as xyxy pixels; corners in the wrong order are swapped.

        Parts outside the image are cut off; a box without area is left out.
        """
        found = []
        for match in _BOX.finditer(text):
            x1, y1, x2, y2 = (min(100, max(0, int(v))) for v in match.groups())
            x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
            if x2 > x1 and y2 > y1:
                found.append((x1 * width / 100, y1 * height / 100, x2 * width / 100, y2 * height / 100))
        return found
