"""Shapes of published parts without their weights, against what published checkpoints hold."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from unimed.engine.planning import _points_by, samples
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


def test_the_shapes_of_umedground_uni_med_and_unimed_clip():
    """Parameters of published parts: SAM ViT-H's encoder, Llama-2-13B with CLIP ViT-L/14, Llama-2-7B, the towers."""
    found = skeleton(dict(type="UMedGround", llava="pretrained/llava-llama-2-13b-chat-lightning-preview",
                          sam_weights="pretrained/sam_vit_h_4b8939.pth", box_head="mhp"))  # fmt: skip
    assert count(found.mask_head.sam.vision_encoder) == 637_026_048
    assert count(found.backbone.vlm.model.language_model) + count(found.backbone.vlm.lm_head) == 13_015_864_320 + 61_440
    assert (
        count(found.backbone.vlm.model.vision_tower) == 303_179_776
        and _points_by(SimpleNamespace(model=found)) == "[BOX]"
    )
    small = skeleton(dict(type="UniMed", llama="pretrained/Llama-2-7b-chat-hf", eva="eva_vit_g.pth", sft_type="full"))
    assert count(small.backbone.lm) == 6_738_415_616 and _points_by(SimpleNamespace(model=small)) == ""
    towers = skeleton(dict(type="Clip", variant="unimed_clip_vit_b16"))
    assert count(towers) / 1e6 == pytest.approx(196, abs=1) and _points_by(SimpleNamespace(model=towers)) == "[SEG]"
    assert all(p.is_meta for model in (found, small, towers) for p in model.parameters())
    with pytest.raises(ShapeError, match="'nowhere' is not in the table of shapes: llava-llama"):
        skeleton(dict(type="UMedGround", llava="pretrained/nowhere", sam_weights="sam_vit_h.pth"))
    with pytest.raises(ShapeError, match="known are vit_b, vit_l and vit_h"):
        skeleton(dict(type="UMedGround", llava="pretrained/llava-v1.5-7b", sam_weights="sam.pth"))


def test_drawn_samples_point_as_the_model_does():
    first, second = samples(2, 64, 32, points="[BOX]")
    assert first.sample_id != second.sample_id and first.regions[0].box_xyxy_px == (8.0, 8.0, 16.0, 16.0)
    assert not samples(1, 64, 32, points="")[0].regions and samples(1, 64, 32)[0].regions[0].mask.sum() == 64
