"""Baselines that do not look at the image and that a model must beat: copied mask, mean box, majority answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimed.metrics.boxes import as_boxes, iou_matrix
from unimed.metrics.classification import majority_baseline
from unimed.metrics.masks import dice
from unimed.metrics.text import normal_form

__all__ = ["AnswerPrior", "copy_baseline", "majority_baseline", "resize_mask", "usual_box", "usual_mask"]


def resize_mask(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A bool mask stretched to `shape` by nearest neighbour (centres of cells), any number of axes."""
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != len(shape):
        raise ValueError(f"a mask of {mask.ndim} axes cannot be stretched to {tuple(shape)}")
    index = [((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(shape, mask.shape, strict=True)]
    return mask[np.ix_(*index)]


def copy_baseline(train_masks: Sequence[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, int, float]:
    """The training mask that fits this test case best, pasted without looking at the image.

    It is chosen with the truth in hand, so it is the most that copying could ever reach; a model that does not beat
    it may know the anatomy and not the image. See `usual_mask` for the copy that needs no truth.

    Args:
        train_masks: bool masks of the same target; stretched to the shape of `truth` where they differ.
        truth: bool mask.

    Returns:
        The pasted mask, its index among the training masks, and its Dice (NaN where both are empty).
    """
    if not len(train_masks):
        raise ValueError("train_masks is empty: the copy baseline pastes a mask of the training set")
    truth = np.asarray(truth, dtype=bool)
    pasted = [resize_mask(mask, truth.shape) for mask in train_masks]
    scores = [dice(mask, truth) for mask in pasted]
    best = int(np.nanargmax(scores)) if not np.isnan(scores).all() else 0
    return pasted[best], best, scores[best]


def usual_mask(train_masks: Sequence[np.ndarray], shape: Sequence[int] | None = None) -> np.ndarray:
    """The one training mask with the highest mean Dice to the others, to be pasted everywhere.

    Args:
        shape: to stretch it to; by default the shape of the first training mask.
    """
    if not len(train_masks):
        raise ValueError("train_masks is empty: the usual mask is one of the training set")
    shape = tuple(shape if shape is not None else np.asarray(train_masks[0]).shape)
    pasted = [resize_mask(mask, shape) for mask in train_masks]
    agreement = [sum(dice(mask, other, empty="perfect") for other in pasted) for mask in pasted]
    return pasted[int(np.argmax(agreement))]


def usual_box(train_boxes, train_sizes_hw, size_hw: Sequence[int]) -> np.ndarray:
    """The training box with the highest mean IoU to the others, in fractions of its image, drawn into another image.

    Args:
        train_boxes: [N, 4] xyxy in pixels. train_sizes_hw: [N, 2] image sizes.
        size_hw: size of the test image.

    Returns:
        One box [4] xyxy in pixels of the test image.
    """
    boxes, sizes = as_boxes(train_boxes, "train_boxes"), np.asarray(train_sizes_hw, dtype=np.float64).reshape(-1, 2)
    if not len(boxes) or len(sizes) != len(boxes):
        raise ValueError(f"usual_box needs one image size per training box, got {len(boxes)} boxes, {len(sizes)} sizes")
    relative = boxes / sizes[:, [1, 0, 1, 0]]
    return relative[int(iou_matrix(relative, relative).sum(1).argmax())] * np.array([size_hw[1], size_hw[0]] * 2)


@dataclass(frozen=True)
class AnswerPrior:
    """The language-only baseline: the commonest training answer to the very same question.

    Questions are compared in `text.normal_form`; a question never asked in training gets the commonest answer of all.
    """

    by_question: dict[str, str]
    overall: str

    @classmethod
    def fit(cls, questions: Sequence[str], answers: Sequence[str]) -> AnswerPrior:
        """Count the training answers (ties: first by name).

        Raises:
            ValueError: no pairs, or lists of different length.
        """
        if not questions or len(questions) != len(answers):
            raise ValueError(f"training pairs are needed, got {len(questions)} questions and {len(answers)} answers")
        counts: dict[str, Counter] = defaultdict(Counter)
        for question, answer in zip(questions, answers, strict=True):
            counts[normal_form(question)][answer] += 1

        def commonest(counter):
            return min(counter, key=lambda answer: (-counter[answer], answer))

        return cls({question: commonest(c) for question, c in counts.items()}, commonest(Counter(answers)))

    def answer(self, question: str) -> str:
        """What a blind reader of the training set would say."""
        return self.by_question.get(normal_form(question), self.overall)
