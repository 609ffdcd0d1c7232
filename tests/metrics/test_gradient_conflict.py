"""Gradient similarities between tasks against recorded ones."""

import json

import numpy as np
import pytest
from golden_files import SMALL
from safetensors.numpy import load_file

from unimed.metrics.gradient_conflict import (
    conflict_share,
    direction_similarity,
    gram,
    magnitude_similarity,
    mean_off_diagonal,
)

FOLDER = SMALL / "uni_med" / "analysis"


def test_recorded_similarities():
    recorded = json.loads((FOLDER / "derived.json").read_text())["models"]["mlp2x"]
    stored = load_file(FOLDER / "gradients.safetensors")
    products = gram({task: stored[f"mlp2x.grad.{task}"] for task in recorded["tasks"]})
    np.testing.assert_allclose(np.sqrt(np.diag(products)), list(recorded["norms"].values()), rtol=1e-6)
    np.testing.assert_allclose(direction_similarity(products), recorded["GD"], atol=1e-6)
    np.testing.assert_allclose(magnitude_similarity(products), recorded["GM"], atol=1e-6)


def test_edges():
    products = gram({"a": np.array([1.0, 0]), "b": np.array([-2.0, 0]), "c": np.zeros(2)})
    direction = direction_similarity(products)
    assert direction[0, 1] == -1
    assert np.isnan(direction[0, 2])
    assert magnitude_similarity(products)[0, 1] == pytest.approx(0.8)
    assert mean_off_diagonal(direction) == -1
    assert conflict_share(direction) == 1
    with pytest.raises(ValueError, match="'a': 1, 'b': 2"):
        gram({"a": np.ones(1), "b": np.ones(2)})
