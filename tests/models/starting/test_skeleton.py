"""Shapes of published parts without their weights, against what published checkpoints hold."""

import json
import math
from pathlib import Path

import pytest

from unimed.models.grounded import GroundedMLLM
from unimed.models.starting.skeleton import ShapeError, skeleton, skeleton_of_parts

GOLDEN = Path(__file__).parents[2] / "golden" / "unibiomed"


@pytest.mark.parametrize(
    ("backbone", "file", "added"),
    [
        ("pretrained/InternVL2_5-1B", "hf_sa2va_1b_qwen2_keys.json", 5 * 2 * 896),
        ("pretrained/InternVL2_5-8B", "hf_sa2va_8b_internlm2_keys.json", 5 * 2 * 4096),
    ],
)
def test_counts_are_those_of_published_checkpoints(backbone, file, added):
    """Those have five more tokens; their SAM 2 keeps the random matrix of its position code twice."""
    counts = {}
    for name, shape in json.loads((GOLDEN / file).read_text()).items():
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + math.prod(shape)
    model = skeleton_of_parts(backbone, "pretrained/sam2_hiera_large.pt")
    vlm = model.backbone.vlm
    assert count(vlm.model.vision_tower) == counts["vision_model"]
    assert count(vlm.model.multi_modal_projector) == counts["mlp1"]
    assert count(vlm.model.language_model) + count(vlm.lm_head) == counts["language_model"] - added
    assert abs(count(model.mask_head) - counts["grounding_encoder"]) <= 256
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(("name", "billions"), [("InternVL3_5-8B-HF", 8.53), ("InternVL3-78B-hf", 78.41)])
def test_sizes_of_model_cards(name, billions):
    model = skeleton_of_parts(f"OpenGVLab/{name}", "sam2.1_hiera_small.pt", box_head="laplace_mixture")
    assert count(model.backbone) / 1e9 == pytest.approx(billions, rel=0.002)


def test_a_configuration_that_is_there_comes_first(tmp_path):
    from transformers import InternVLConfig

    text = dict(model_type="qwen2", vocab_size=900, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    InternVLConfig(text_config=text, vision_config=vision).save_pretrained(tmp_path / "InternVL3_5-8B-HF")
    model = skeleton(dict(type="GroundedMLLM", backbone=str(tmp_path / "InternVL3_5-8B-HF"), sam2="sam2_hiera_tiny.pt"))
    assert isinstance(model, GroundedMLLM) and model.backbone.hidden_dim == 32


def test_what_is_not_known_is_named():
    with pytest.raises(ShapeError, match="'Mine' is not in the table of shapes: .*3_5-8B"):
        skeleton_of_parts("pretrained/Mine", "sam2_hiera_large.pt")
    with pytest.raises(ShapeError, match="the size of SAM 2 is not in the name"):
        skeleton_of_parts("pretrained/InternVL2_5-1B", "sam2_mine.pt")
    assert skeleton(dict(type="TinyGroundedMLLM", texts=[])) is None


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())
