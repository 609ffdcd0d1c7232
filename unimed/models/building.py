"""The models a config may start from, by `type=`: a folder, published parts put together, or a small one from nothing.

`task = dict(type="GroundingTask", model=dict(type="GroundedMLLM", backbone="pretrained/InternVL2_5-1B", sam2=...))`.
A text instead of a dict is the folder or hub id of a model (`type="Pretrained"`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from unimed.models.checkpoints.uni_med import build_from_parts as join_uni_med
from unimed.models.clip import VARIANTS, ClipModel, ClipProcessor, variant
from unimed.models.clip.building import named_config
from unimed.models.starting import boltzformer, clip, grounded_parts, grounded_small, umedground, uni_med
from unimed.registry import MODELS, check, warn_once

for _name, _build in {
    "GroundedMLLM": grounded_parts.build_on_parts,
    "SmallGroundedMLLM": grounded_small.build_small,
    "TinyGroundedMLLM": grounded_small.build_tiny,
    "UMedGround": umedground.build_from_parts,
    "SmallUMedGround": umedground.build_small_umedground,
    "SmallUniMed": uni_med.build_small,
    "SmallClip": clip.build_small,
    "SmallBoltzFormer": boltzformer.build_small,
}.items():
    MODELS.register_module(_name, module=_build)


@MODELS.register_module("Pretrained")
def load_pretrained(path: str) -> nn.Module:
    """The model of a folder (ours or a published layout) or hub id, in float32 on the CPU, with its processor read.

    Raises:
        LoadError: nothing known is there.
    """
    from unimed.models.auto import load

    model = load(path, device="cpu", dtype="float32")
    _ = model.processor  # read now: a broken folder is found before training, not after
    return model


@MODELS.register_module("UniMed")
def build_uni_med(llama: str, eva: str | None, connector: dict | None = None, **options) -> nn.Module:
    """Uni-Med from a Llama folder and `eva_vit_g.pth`; see `unimed.models.checkpoints.uni_med.build_from_parts`."""
    model, _ = join_uni_med(llama, eva, connector, **options)
    return model


@MODELS.register_module("Clip")
def build_clip(variant: str, tokenizer: str | None = None, sigmoid: bool = False) -> ClipModel:
    """Fresh towers of the size of a published UniMed-CLIP.

    Args:
        variant: one of `unimed.models.clip.VARIANTS`.
        tokenizer: folder or name of the tokenizer.
        sigmoid: with a bias, for the sigmoid loss.

    Raises:
        ValueError: unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is not known; choose one of: {', '.join(VARIANTS)}")
    return _fresh_clip(_variant(variant), tokenizer, sigmoid)


@MODELS.register_module("OpenClip")
def build_open_clip(name: str, tokenizer: str | None = None, sigmoid: bool = False) -> ClipModel:
    """Fresh towers of a build that open_clip knows by name, such as "ViT-B-16"."""
    return _fresh_clip(named_config(name), tokenizer, sigmoid)


_variant = variant  # the argument of `build_clip` has the same name


def _fresh_clip(config, tokenizer, sigmoid: bool) -> ClipModel:
    if sigmoid:
        config.model_cfg.setdefault("init_logit_bias", -10.0)
    model = ClipModel(config)
    model.processor = ClipProcessor(config, tokenizer)
    return model


def build_model(
    spec: str | Mapping[str, Any] | nn.Module, expected: type, untyped: Sequence[tuple[str, str]] = (), **defaults
) -> nn.Module:
    """The model that a task's `model` argument describes.

    Args:
        spec: a model, a path or hub id, or dict(type=..., arguments).
        expected: class the model must be of.
        untyped: (key, type) pairs that give an old dict without `type` its type, by the first key that it holds; the
            key "" always fits.
        defaults: arguments for builders that take them, where the spec does not give them.

    Raises:
        RegistryError: an unknown type or argument.
        ValueError: a model of another class.
    """
    if not isinstance(spec, nn.Module):
        spec = described(spec, untyped)
        cls, _ = check({"type": spec["type"]} | {k: v for k, v in spec.items()}, MODELS)
        taken = inspect.signature(cls).parameters
        model = MODELS.build(spec, **{k: v for k, v in defaults.items() if k in taken})
    else:
        model = spec
    if not isinstance(model, expected):
        origin = spec.get("path", spec["type"]) if isinstance(spec, Mapping) else "the given model"
        raise ValueError(f"{origin} is a {type(model).__name__}; this task trains a {expected.__name__}")
    return model


def described(spec: str | Mapping[str, Any], untyped: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """A `model` argument as dict(type=..., arguments); spellings from before types were named are told of once.

    Raises:
        TypeError: neither text nor dict.
    """
    if isinstance(spec, str):
        if spec in VARIANTS:
            return _now(dict(type="Clip", variant=spec), repr(spec))
        if spec.startswith("open_clip:"):
            return _now(dict(type="OpenClip", name=spec.removeprefix("open_clip:")), repr(spec))
        return dict(type="Pretrained", path=spec)
    if not isinstance(spec, Mapping):
        raise TypeError(f"task.model is a path or dict(type=..., ...), got {type(spec).__name__}")
    spec = dict(spec)
    if "type" not in spec:
        kind = next((kind for key, kind in untyped if not key or spec.get(key)), None)
        if spec.pop("tiny", False):
            kind = "TinyGroundedMLLM"
        if kind is not None:
            return _now({"type": kind} | spec, "a dict without type")
    return spec


def _now(spec: dict, old: str) -> dict:
    shown = ", ".join(f"{k}={v!r}" for k, v in spec.items() if k in ("type", "variant", "name"))
    warn_once(f"task.model: {old} is an old spelling; write dict({shown}{'' if ',' in shown else ', ...'})")
    return spec
