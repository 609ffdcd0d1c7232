"""Comparison of numbers that were computed on different processors: relative to the size of the values.

Single precision rounds at 6e-8 of a value, and sums are ordered by the number of threads, the instruction set and the
library that multiplies. The limits here leave at least five times the room that was measured over 1, 2 and 4 threads
and over plain, AVX2 and AVX-512 code; a limit in absolute numbers says nothing about values of another size.
"""

import torch
from golden_files import Sampled

# Of the largest value: what a whole model of float32 layers may differ by, and what one layer or loss may.
MODEL, LAYER = 1e-4, 1e-5


def assert_close(ours, theirs, name="", relative=LAYER, where=None, scale=None):
    """Assert that two tensors differ by no more than a part of the largest value.

    Args:
        ours, theirs: tensors, arrays or numbers of one shape; `theirs` may be a `Sampled` recording.
        name: said where they differ.
        relative: largest difference as a part of the largest absolute value of `theirs`.
        where: bool tensor broadcast to the shape; positions that are compared (None: all).
        scale: the size to compare with in the place of the largest value of `theirs`, such as the size of all gradients
            where a single one is nothing but rounding.

    Returns:
        The largest difference as a part of the scale.
    """
    ours = torch.as_tensor(ours).detach()
    if isinstance(theirs, Sampled):
        assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}"
        values, norms = theirs.pick(ours)
        worst = _worst(values, theirs.values, theirs.largest, _where(theirs, where, ours.shape), scale)
        if where is None:
            size = max(scale or 0.0, float(theirs.norms.max()))
            worst = max(worst, float((norms - theirs.norms).abs().max()) / size if size else float(norms.max()))
    else:
        theirs = torch.as_tensor(theirs).detach()
        assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
        chosen = None if where is None else where.expand(theirs.shape)
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        worst = _worst(ours, theirs, largest, chosen, scale)
    print(f"{name or 'difference'}: {worst:.1e} of the largest value")
    assert worst <= relative, f"{name}: differs by {worst:.1e} of the largest value, more than {relative:.0e}"
    return worst


def _where(sample, where, shape):
    return None if where is None else sample.pick(where.expand(shape).float())[0] > 0


def _worst(ours, theirs, largest, chosen, scale):
    if chosen is not None:
        ours, theirs = ours[chosen], theirs[chosen]
    if not ours.numel():
        return 0.0
    difference = (ours.double() - theirs.double()).abs()
    return float("inf") if difference.isnan().any() else float(difference.max()) / (scale or largest or 1.0)


def assert_all_close(ours, theirs, relative=LAYER):
    """Assert that two sets of named tensors, such as all gradients of a model, differ by no more than a part of the
    largest value among all of them: a single one may be nothing but rounding."""
    assert ours.keys() == theirs.keys()
    largest = max(float(torch.as_tensor(value).abs().max()) for value in theirs.values())
    for name, value in theirs.items():
        assert_close(ours[name], value, name, relative, scale=largest)
