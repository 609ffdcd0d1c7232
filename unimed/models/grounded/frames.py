"""Questions about frames of a video or slices of a volume, and the masks of the answer in all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unimed.io.images import ImageError
from unimed.io.images import load as load_image
from unimed.io.result import Prediction
from unimed.models.grounded.generation import Generated
from unimed.models.grounded.processing import PromptError, asked_phrase
from unimed.models.heads.mask import ImageFeatures, MaskOutput, concatenate, resize_mask_logits
from unimed.models.heads.sam2 import Sam2MaskHead
from unimed.models.heads.sam2_memory import MaskPropagation
from unimed.progress import Progress, stage
from unimed.tokens import SEG_TOKEN

#: The language model reads this many frames, and the masks of as many start the propagation (UniBiomed, Sa2VA).
KEY_FRAMES = 5
#: Objects carried through the frames together; more take turns, so that memory does not grow with their number.
OBJECTS_AT_ONCE = 8
#: Remark of a region that the answer marks by a box.
NO_BOX = "the answer marks it by a box, which has no place in a stack of slices; ask for its mask"


def ask(
    model,
    frames: Sequence[np.ndarray],
    texts: Sequence[str],
    max_new_tokens: int,
    together: int = 8,
    task: str | None = None,
    **options,
) -> list[Generated]:
    """Put questions about the same frames, which are encoded once.

    Args:
        texts: "<image>" says where the frames stand; otherwise they come first.
        together: questions answered at a time.
        task: see `GroundedPredictor.predict`.
        options: of `GroundedProcessor.assembly`.

    Raises:
        PromptError: empty or too long.
    """
    asked = [model.processor.dialect.asked(text, task, True) for text in texts]
    routes = model.connector is not None and model.connector.needs_task
    rows: list = [None] * len(texts)
    # Where a connector routes by task, the frames are encoded once for each.
    for route in dict.fromkeys(name if routes else None for name, _ in asked):
        members = [place for place, (name, _) in enumerate(asked) if not routes or name == route]
        questions = [asked[place][1] for place in members]
        found = _ask(model, list(frames), questions, route, max_new_tokens, together, options)
        for place, row in zip(members, found, strict=True):
            rows[place] = row
    return rows


def _ask(model, frames: list, texts: list[str], route: str | None, max_new_tokens: int, together: int, options):
    """Answers to questions of one task about frames, which are encoded once."""
    assembly = model.processor.assembly(**options)
    for text in texts:
        assembly.add(frames, [("user", text)], route=route)
    rows, tokens = [], None
    for start in range(0, len(texts), together):
        part = range(start, min(start + together, len(texts)))
        inputs = assembly.batch(part, mask_images=model.reads_mask_encoder)
        if tokens is None:
            inputs = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in inputs.items()}
            features = ImageFeatures(model.mask_head, inputs.get("mask_pixel_values"), model.embedding_cache)
            tokens = model._image_tokens(inputs, features, model._task_ids([route] * len(part)))
        rows += model._decode(inputs, tokens, max_new_tokens=max_new_tokens)[0]
    return rows


def key_frames(count: int, wanted: int, first: bool = False) -> list[int]:
    """Which of `count` frames the language model sees: in the middle of equal parts, or the first ones."""
    wanted = min(count, wanted)
    return list(range(wanted)) if first else [int((2 * part + 1) * count / (2 * wanted)) for part in range(wanted)]


@torch.no_grad()
def predict_frames(
    model,
    frames: Sequence,
    text: str | Sequence[str],
    *,
    keys: int = KEY_FRAMES,
    follow: str = "auto",
    compat: str | None = None,
    clear_absent: bool = False,
    max_new_tokens: int = 512,
    presence_threshold: float | None = None,
    site: str = "",
    task: str | None = None,
) -> Prediction | list[Prediction]:
    """Answer a question about a video or a stack of slices, with a mask [F, H, W] per [SEG].

    The language model reads `keys` frames and the mask head all of them, each once, however many questions and
    objects there are; frames are asked for one at a time and not kept.

    Args:
        frames: images of one size, all that `unimed.io.images.load` takes; may be lazy (`len` and `[index]`).
        text: one question, or several about the same frames; a list gives a list.
        follow: "memory" carries masks from the key frames to the others by SAM 2's memory; "prompt" prompts every frame
            with the words alone; "volume" reads all frames together, for volumetric decoders; "auto" takes what the
            mask head has, "prompt" where it has neither.
        compat: "reference" reads the first frames, as UniBiomed and Sa2VA do; by default they are spread evenly (with
            the same weights that gains several points on MeViS, arXiv 2501.04001).
        clear_absent: empty the mask of frames whose object score is negative, as SAM 2 does and UniBiomed does not.
        presence_threshold, task: see `GroundedPredictor.predict`.

    Raises:
        PromptError: an empty question, no frame, an unknown `follow`, or "memory" with a mask head that has none.
        ImageError: frames of different sizes, or one that is no image.
    """
    if isinstance(text, str):
        options = dict(keys=keys, follow=follow, compat=compat, clear_absent=clear_absent, site=site, task=task)
        options |= dict(max_new_tokens=max_new_tokens, presence_threshold=presence_threshold)
        return predict_frames(model, frames, [text], **options)[0]
    presence_threshold = model.shown_from if presence_threshold is None else presence_threshold
    model.eval()
    lazy = _Frames(frames, site)
    _follows_by_memory(model, follow)  # refuses an unknown one before anything is computed
    way = _way(model, follow)
    begin = time.perf_counter()
    chosen = key_frames(len(lazy), keys, first=compat == "reference")
    with stage("reading the slices and answering"):
        rows = ask(model, [lazy[index] for index in chosen], text, max_new_tokens, task=task)
    answered = time.perf_counter()
    states = [model.seg_states(row) for row in rows]
    counts = [0 if one is None else len(one) for one in states]
    tracked = _follow(model, lazy, states, chosen, way, clear_absent, presence_threshold)
    timing = {"answer": (answered - begin) / len(rows), "regions": (time.perf_counter() - answered) / len(rows)}
    predictions, start = [], 0
    for row, question, count in zip(rows, text, counts, strict=True):
        answer = model.processor.parse(row.ids)
        regions = _regions(answer, question, tracked[start : start + count])
        markup = model.processor.raw_text(row.ids)
        predictions.append(Prediction(answer.text, regions, None, dict(timing), model._reference(), markup))
        start += count
    return predictions


def _way(model, follow: str):
    """What segments the frames: reads them together, carries masks by memory, or prompts each."""
    together = model.mask_head is not None and model.mask_head.reads_volumes  # boxes as text need no mask head
    if follow == "volume" and not together:
        raise PromptError("this model's mask head reads frames one by one; use follow='prompt' or 'memory'")
    if together and follow in ("auto", "volume"):
        return decode_together
    return propagate if _follows_by_memory(model, follow) else _each_prompted


def _follows_by_memory(model, follow: str) -> bool:
    if follow not in ("auto", "volume", "memory", "prompt"):
        raise PromptError(f"unknown follow {follow!r}; known are auto, volume, memory, prompt")
    has_memory = isinstance(model.mask_head, Sam2MaskHead)
    if follow == "memory" and not has_memory:
        raise PromptError("this model's mask head has no memory for frames; use follow='prompt'")
    return has_memory and follow != "prompt"


@dataclass
class _Tracked:
    mask: np.ndarray
    presence: float | None
    confidence: float | None


def _follow(model, frames: _Frames, states, chosen, way, clear_absent: bool, threshold: float):
    """One `_Tracked` per [SEG]; those that are absent are not followed."""
    states = [one for one in states if one is not None]
    if not states:
        return []
    states = torch.cat(states)
    presence = [None] * len(states)
    if model.presence_head is not None:
        presence = torch.sigmoid(model.presence_head(states)[:, 0].float()).tolist()
    size = frames.size
    stacks = [np.zeros((len(frames), *size), dtype=bool) for _ in presence]
    there = [index for index, value in enumerate(presence) if value is None or value >= threshold]
    sums, predicted = np.zeros(len(states)), np.zeros(len(states))
    if there:
        prompts = model.seg_projection(states[there])
        run = way(model, frames, prompts, chosen)
        for frame, output in _counted(run, len(frames)):
            masks = (resize_mask_logits(output.logits, size, model.mask_head.image_size) > 0).cpu().numpy()
            for index, mask, iou, score in zip(
                there, masks, output.iou.tolist(), output.object_logits.tolist(), strict=True
            ):
                if not (clear_absent and score < 0):
                    stacks[index][frame] = mask
                    sums[index] += iou * mask.any()
                    predicted[index] += mask.any()
    confidence = [float(np.clip(s / p, 0, 1)) if p else None for s, p in zip(sums, predicted, strict=True)]
    return [_Tracked(*values) for values in zip(stacks, presence, confidence, strict=True)]


def _counted(run: Iterator, total: int) -> Iterator:
    with Progress("slice", total) as progress:
        for one in run:
            yield one
            progress.step()


def _regions(answer, question: str, tracked: list[_Tracked]) -> tuple:
    from unimed.structures import Region

    regions, masks = [], iter(tracked)
    for target in answer.targets:
        phrase = target.phrase or asked_phrase(question)
        if target.token != SEG_TOKEN:
            # It is said and not lost: a box lies in one image, and which slice it speaks of nobody knows.
            regions.append(Region(phrase, phrase_span=target.span, remark=NO_BOX))
        elif (one := next(masks, None)) is not None:
            found = dict(mask=one.mask, presence=one.presence, confidence=one.confidence)
            regions.append(Region(phrase, phrase_span=target.span, **found))
    return tuple(regions)


class _Frames:
    """Frames as HxWx3 uint8 of one size, read when asked for."""

    def __init__(self, frames: Sequence, site: str):
        if not len(frames):
            raise PromptError("there is no frame")
        self.frames, self.site = frames, site
        self.size = load_image(frames[0], site=site).rgb.shape[:2]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> np.ndarray:
        rgb = load_image(self.frames[index], site=self.site).rgb
        if rgb.shape[:2] != self.size:
            raise ImageError(f"frame {index} is {rgb.shape[:2]}, the first {self.size}; all frames need one size")
        return rgb


def _encode(model, frame: np.ndarray):
    return model.mask_head.encode(model.processor.mask_pixels(frame)[None].to(model.device))


@torch.no_grad()
def propagate(model, frames: Sequence[np.ndarray], prompts: torch.Tensor, prompted) -> Iterator[tuple[int, MaskOutput]]:
    """(frame, masks of N objects), the prompted frames first and then the others, by SAM 2's memory.

    Every frame is encoded once. Frames before the first prompted one are reached by going backwards from it.

    Args:
        frames: HxWx3 uint8, asked for one at a time.
        prompts: [N, C].
        prompted: indices of the frames that are segmented from the prompts.
    """
    prompted, last = sorted(prompted), len(frames) - 1
    trackers = [MaskPropagation(model.mask_head, len(frames)) for _ in prompts.split(OBJECTS_AT_ONCE)]
    for frame in prompted:
        features = _encode(model, frames[frame])
        parts = zip(trackers, prompts.split(OBJECTS_AT_ONCE), strict=True)
        yield frame, concatenate([tracker.prompted(frame, features, part) for tracker, part in parts])
    known = set(prompted)
    for frame in range(prompted[0] + 1, len(frames)):
        if frame not in known:
            features = _encode(model, frames[frame])
            yield frame, concatenate([tracker.propagated(frame, features) for tracker in trackers])
    if prompted[0] == 0:
        return
    backwards = []
    for tracker in trackers:
        backwards.append(MaskPropagation(model.mask_head, len(frames)))
        # Mirrored indices turn the past into the future, which is what the time codes of the memory know.
        mirrored = {last - frame: memory for frame, memory in tracker.conditioning.items()}
        backwards[-1].conditioning.update(sorted(mirrored.items()))
    for frame in range(prompted[0] - 1, -1, -1):
        features = _encode(model, frames[frame])
        yield frame, concatenate([tracker.propagated(last - frame, features) for tracker in backwards])


@torch.no_grad()
def prompt_each(model, frames: Sequence[np.ndarray], prompts: torch.Tensor) -> Iterator[tuple[int, MaskOutput]]:
    """(frame, masks of N objects), every frame segmented from the prompts [N, C] alone."""
    index = torch.zeros(len(prompts), dtype=torch.long, device=prompts.device)
    for frame in range(len(frames)):
        yield frame, model.mask_head.decode(_encode(model, frames[frame]), index, prompts)


def _each_prompted(model, frames, prompts, prompted) -> Iterator[tuple[int, MaskOutput]]:
    return prompt_each(model, frames, prompts)


@torch.no_grad()
def decode_together(model, frames: Sequence[np.ndarray], prompts: torch.Tensor, prompted) -> Iterator:
    """(frame, masks of N objects) of a decoder that reads all frames of a volume together, `prompted` or not."""
    pixels = torch.stack([model.processor.mask_pixels(frames[frame]) for frame in range(len(frames))])
    output = model.mask_head.decode_stack(pixels.to(model.device), prompts)
    for frame in range(len(frames)):
        rows = torch.arange(len(prompts), device=output.logits.device) * len(frames) + frame
        yield frame, MaskOutput(output.logits[rows], output.iou[rows], output.object_logits[rows])
