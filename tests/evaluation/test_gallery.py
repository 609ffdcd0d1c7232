"""The gallery shows the worst cases, truth and prediction told apart, volumes at the slice that matters."""

import io

import numpy as np
from PIL import Image

from unimed.evaluation import gallery
from unimed.evaluation.evaluating import evaluate
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.structures import Region, Sample


def cases(shape):
    samples, predictions = [], []
    for n in range(4):
        truth = np.zeros(shape, bool)
        truth[..., 4:12, 5:15] = True
        if len(shape) == 3:
            truth[0] = truth[-1] = False
        found = truth.copy()
        found[..., 4 : 4 + 2 * n, :] = False
        image = np.zeros(shape, np.uint8)
        samples.append(
            Sample(
                images=(image,), geometry=Geometry.pixels(), sample_id=f"s{n}", regions=(Region("node", mask=truth),),
                conversation=(("user", "Segment the node."),), labels={"task": "referring"},
            )
        )  # fmt: skip
        predictions.append(Prediction(text="", regions=(Region("node", mask=found),)))
    return samples, predictions


def test_the_worst_come_first_and_are_drawn():
    for shape in ((24, 30), (5, 24, 30)):
        samples, predictions = cases(shape)
        rows = evaluate(predictions, samples)
        found = list(gallery.failure_gallery(samples, predictions, rows, "dice", 2))
        assert [caption.split(":")[0] for _, caption in found] == ["s3", "s2"]
        picture = np.asarray(Image.open(io.BytesIO(found[0][0])))
        assert picture.shape[1] >= 2 * gallery.WIDTH
        half = picture.shape[1] // 2
        colored = (picture.max(2).astype(int) - picture.min(2)) > 60
        assert colored[:, :half].sum() > 2 * colored[:, half:].sum() > 0


def test_a_sample_without_regions_and_an_empty_gallery():
    samples, predictions = cases((24, 30))
    assert list(gallery.failure_gallery(samples, predictions, [], "dice")) == []
    assert gallery.beside(samples[0], Prediction(text="none")).ndim == 3
