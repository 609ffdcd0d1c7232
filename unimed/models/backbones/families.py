"""Families of image-text models that run through transformers' own forward, and those that do not, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


@dataclass(frozen=True)
class Family:
    """What has to be known of a family beside its configuration and its processor.

    Args:
        name: `model_type` of the configuration.
        covers: published models of this family.
        image: what stands for an image in a question, before the processor expands it, with attributes of the
            processor in braces; used where the folder has no chat template that says it.
        template: chat template of `unimed.chat`, used where the folder has none of its own; None writes question and
            answer on lines of their own.
        fill: {input: value} of what rows of unequal shape are filled up with, where it is not 0.
        answer: {input: type} of the tokens of an answer, where it is not 0.
        note: what is different about it.
    """

    name: str
    covers: str
    image: str = "{image_token}"
    template: str | None = None
    fill: dict[str, float] = field(default_factory=dict)
    answer: dict[str, int] = field(default_factory=dict)
    note: str = ""


#: `model_type` -> `Family`.
FAMILIES: dict[str, Family] = {}
_TWO = "an encoder-decoder: question and answer are not one sequence, so [SEG] has no state beside the image"
#: `model_type` -> why it does not fit.
REFUSED: dict[str, str] = {
    "florence2": _TWO,
    "pix2struct": _TWO,
    "pp_formulanet": _TWO,
    "t5gemma2": _TWO,
    "udop": _TWO,
    "vision-encoder-decoder": _TWO,
}


def native_family(name: str, covers: str, **options) -> Family:
    """Make a family known; a plug-in calls it for one that is not here."""
    FAMILIES[name] = Family(name, covers, **options)
    return FAMILIES[name]


def family_of(config) -> Family:
    """The family of a configuration.

    Raises:
        ValueError: it does not fit, or nobody has said that it does; the message says why.
    """
    kind = config.model_type
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind in REFUSED:
        raise ValueError(f"backbone {kind!r} does not fit: {REFUSED[kind]}")
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(f"backbone {kind!r} has not been tried; `native_family({kind!r}, ...)` in a plug-in names it")
    raise ValueError(f"backbone {kind!r} is no image-text model of the installed transformers")


QWEN = dict(template="qwen_chat", image="<|vision_start|>{image_token}<|vision_end|>")

for _entry in (
    ("internvl", "InternVL 2.5, 3, 3.5 in transformers' layout", dict(image="{image_token}\n", template="qwen_chat")),
    ("qwen2_vl", "Qwen2-VL, Lingshu's elder relatives", QWEN),
    ("qwen2_5_vl", "Qwen2.5-VL, Lingshu", QWEN),
    ("qwen3_vl", "Qwen3-VL", QWEN),
    ("qwen3_vl_moe", "Qwen3-VL with experts", QWEN),
    ("qwen3_5", "Qwen3.5", QWEN),
    ("qwen3_5_moe", "Qwen3.5 with experts", QWEN),
    ("gemma3", "Gemma 3, MedGemma 1 and 1.5", dict(template="gemma")),
    ("paligemma", "PaliGemma, PaliGemma 2", dict(template="paligemma", answer={"token_type_ids": 1})),
    ("llava", "LLaVA 1.5, LLaVA-Med in transformers' layout", dict(image="{image_token}\n", template="llava_v1")),
    ("llava_next", "LLaVA-NeXT 1.6", dict(image="{image_token}\n", template="llava_v1")),
    ("llava_onevision", "LLaVA-OneVision", dict(image="{image_token}\n", template="qwen_chat")),
    ("smolvlm", "SmolVLM, SmolVLM 2", dict(template="smolvlm")),
    ("idefics3", "Idefics 3", dict(template="smolvlm")),
):
    native_family(*_entry[:2], **_entry[2])
