"""`task.model` by type; old spellings give the same model with one warning."""

import pytest
import torch
from torch import nn

from unimed import registry
from unimed.models.boltzformer import BoltzFormerModel
from unimed.models.building import build_model, described
from unimed.models.grounded import GroundedMLLM
from unimed.registry import MODELS, RegistryError, _choices

TEXTS = ["where is the liver?", "no nuclei are seen", "it is normal"]
SMALL = {
    "SmallGroundedMLLM": dict(texts=TEXTS, hidden_dim=32, layers=1, heads=2, vision_grid=2),
    "TinyGroundedMLLM": dict(texts=TEXTS),
    "SmallUMedGround": dict(texts=TEXTS, hidden_dim=32, layers=1, sam_dim=16, sam_layers=2, clip_dim=16),
    "SmallUniMed": dict(texts=TEXTS, image_size=56, vision_dim=32, vision_layers=1, hidden_dim=32, layers=1),
    "SmallClip": dict(texts=TEXTS, width=32, layers=1, text_width=32, text_layers=1),
    "SmallBoltzFormer": dict(prompts=TEXTS),
}


def test_every_model_that_starts_from_nothing_is_tried():
    assert sorted(SMALL) == [name for name in _choices(MODELS) if name.startswith(("Small", "Tiny"))]


@pytest.mark.parametrize("name", SMALL)
def test_is_built_saved_and_loaded_as_pretrained(name, tmp_path):
    built = MODELS.build(dict(type=name, **SMALL[name]))
    assert any(p.requires_grad for p in built.parameters()) and built.processor is not None
    built.save_pretrained(tmp_path / "model")
    loaded = build_model(str(tmp_path / "model"), type(built))
    first, second = built.state_dict(), loaded.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key].float(), second[key].float()) for key in first)


@pytest.mark.parametrize(
    ("spec", "untyped", "expected"),
    [
        ("a/folder", [], dict(type="Pretrained", path="a/folder")),
        ("unimed_clip_vit_b16", [], dict(type="Clip", variant="unimed_clip_vit_b16")),
        ("open_clip:ViT-B-16", [], dict(type="OpenClip", name="ViT-B-16")),
        (dict(tiny=True, texts=[]), [("", "A")], dict(type="TinyGroundedMLLM", texts=[])),
        (dict(backbone="x", sam2="y"), [("backbone", "B"), ("", "A")], dict(type="B", backbone="x", sam2="y")),
        (dict(texts=[]), [("backbone", "B"), ("", "A")], dict(type="A", texts=[])),
        (dict(type="C", backbone=1), [("backbone", "B")], dict(type="C", backbone=1)),
    ],
)
def test_old_spellings(monkeypatch, caplog, spec, untyped, expected):
    monkeypatch.setattr(registry, "_told", set())
    assert described(spec, untyped) == described(spec, untyped) == expected
    old = expected.get("type") != "Pretrained" and not (isinstance(spec, dict) and "type" in spec)
    assert len(caplog.records) == old
    assert not old or f"type='{expected['type']}'" in caplog.text


def test_wrong_models_are_named():
    with pytest.raises(RegistryError, match="unknown model 'SmallGrounded'; did you mean 'SmallGroundedMLLM'"):
        build_model(dict(type="SmallGrounded"), GroundedMLLM)
    with pytest.raises(RegistryError, match="takes no argument 'layer'; did you mean 'layers'"):
        build_model(dict(type="SmallGroundedMLLM", texts=[], layer=2), GroundedMLLM)
    with pytest.raises(ValueError, match="SmallBoltzFormer is a BoltzFormerModel; this task trains a GroundedMLLM"):
        build_model(dict(type="SmallBoltzFormer", **SMALL["SmallBoltzFormer"]), GroundedMLLM)
    with pytest.raises(ValueError, match="the given model is a Linear"):
        build_model(nn.Linear(1, 1), BoltzFormerModel)
    with pytest.raises(TypeError, match="task.model is a path or dict"):
        described(3)
