"""Baselines see the training set and never the image."""

import numpy as np
import pytest

from unimed.evaluation.baselines import AnswerPrior, copy_baseline, resize_mask, usual_box, usual_mask


def square(at, size=4, shape=(16, 16)):
    mask = np.zeros(shape, bool)
    mask[at : at + size, at : at + size] = True
    return mask


def test_copy_baseline_pastes_the_best_fitting_training_mask():
    train = [square(0), square(6), square(11)]
    pasted, index, score = copy_baseline(train, square(5))
    assert index == 1 and (pasted == train[1]).all() and score == pytest.approx(2 * 9 / 32)
    larger = resize_mask(square(6), (32, 32))
    assert larger.sum() == 64 and copy_baseline(train, larger)[2] == 1
    assert np.isnan(copy_baseline([square(0, 0)], square(0, 0))[2])
    with pytest.raises(ValueError, match="train_masks is empty"):
        copy_baseline([], square(1))


def test_usual_mask_and_box_are_the_most_central_ones():
    assert (usual_mask([square(0), square(5), square(6), square(7), square(12)]) == square(6)).all()
    boxes = [[0, 0, 10, 10], [50, 50, 70, 70], [52, 52, 72, 72], [54, 54, 74, 74]]
    box = usual_box(boxes, [[100, 100]] * 4, (200, 400))
    assert box == pytest.approx([208, 104, 288, 144])
    with pytest.raises(ValueError, match="one image size per training box"):
        usual_box(boxes, [[100, 100]], (1, 1))


def test_language_only_answers_by_question():
    prior = AnswerPrior.fit(
        ["Is there a mass?", "is there a mass", "Is there a mass?", "Which organ?", "Which organ?"],
        ["yes", "no", "no", "liver", "liver"],
    )
    assert prior.answer("IS THERE A MASS") == "no" and prior.answer("Which organ?") == "liver"
    assert prior.answer("Which plane?") == "liver", "ties of the overall answer go by name"
    with pytest.raises(ValueError, match="training pairs"):
        AnswerPrior.fit([], [])
