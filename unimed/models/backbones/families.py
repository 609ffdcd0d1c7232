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
        along: {input: axis} along which rows of a batch follow one another, where it is not the first.
        numbers: {input: the one whose places (its first two sides) it numbers}; they are counted on over a batch.
        answer: {input: type} of the tokens of an answer, where it is not 0.
        nested: whether its processor takes the images of each question as a list of their own.
        asks: further arguments of its processor.
        counts: whether positions are counted here, from the first token of a row, for attention that depends on them
            and not on distances alone; they start with the padding otherwise.
        packs: whether several sequences may share a row (`GroundedCollator(pack=...)`): the model counts positions as
            they are given and keeps the sequences apart by them, as the generic test asks.
        note: what is different about it.
    """

    name: str
    covers: str
    image: str = "{image_token}"
    template: str | None = None
    fill: dict[str, float] = field(default_factory=dict)
    along: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    answer: dict[str, int] = field(default_factory=dict)
    nested: bool = True
    asks: dict[str, bool] = field(default_factory=dict)
    counts: bool = False
    packs: bool = False
    note: str = ""


#: `model_type` -> `Family`.
FAMILIES: dict[str, Family] = {}
_TWO = "an encoder-decoder: question and answer are not one sequence, so [SEG] has no state beside the image"
_CROSS = "images are read by cross-attention of inner layers, so there are no image tokens and none to count"
_BEFORE = "its processor sets the image in front of the whole question, wherever the conversation has it"
_BESIDE = "where images stand is a mask over the tokens that its processor makes for questions of its own form"
#: `model_type` -> why it does not fit.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"), _TWO),
    **dict.fromkeys(("blip", "idefics", "mllama"), _CROSS),
    "ernie4_5_vl_moe": "its video processor opens a font file of its folder, which is no data file that is opened here",
    "evolla": "it reads proteins, not images",
    "pi0": "it gives the actions of a robot, not text",
    **dict.fromkeys(("blip-2", "fuyu", "instructblip"), _BEFORE),
    **dict.fromkeys(("kosmos-2", "kosmos-2.5"), _BESIDE),
    "gemma3n": "ids above its text vocabulary mean images and sounds, so that no token can be added",
    "git": "image features are set before the text without ids of their own, so states and ids do not line up",
    "hunyuan_vl": "images are counted on over a batch, so that an answer depends on the rows before it",
    "nemotron_h_omni": "its class in transformers names no output layer, so that no token can be added",
    "diffusion_gemma": "it writes blocks by diffusion: an answer has no states from left to right",
    "instructblipvideo": "it reads videos alone",
    "mistral4": "a language model alone; its image part is Mistral 3's",
    "shieldgemma2": "a classifier of images; Gemma 3 is the model inside",
    **dict.fromkeys(("chameleon", "emu3"), "images are tokens of a codebook that has no gradient"),
}  # fmt: skip
#: Types that are left to plug-ins (`native_family`); docs/extend.md shows how.
PLUGGED = frozenset({"glmga"})


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
        raise ValueError(f"backbone {kind!r} is not known here; `native_family({kind!r}, ...)` in a plug-in names it")
    raise ValueError(f"backbone {kind!r} is no image-text model of the installed transformers")


#: Between signs that the vision part begins and ends.
QWEN = dict(template="qwen_chat", image="<|vision_start|>{image_token}<|vision_end|>")

GLM = dict(image="<|begin_of_image|>{image_token}<|end_of_image|>")
#: Patches of all images lie side by side in one long picture.
MINICPM = dict(template="qwen_chat", along={"pixel_values": 3})
#: Its processor expands nothing: the question holds every image token.
CHART = dict(template="qwen_chat", image="<img>" + 256 * "<imgpad>" + "</img>", nested=False)
EDGE = dict(image="{vision_start_token}{image_token}{vision_end_token}", asks={"return_mm_token_type_ids": True})

#: Those that keep sequences of one row apart. Others count positions by the image, have states that run on from token
#: to token, or give types to tokens row by row.
_PACKING = frozenset(
    "aria aya_vision cohere2_vision deepseek_vl exaone4_5 fast_vlm got_ocr2 hyperclovax_vision_v2 idefics2 idefics3 "
    "internvl janus lighton_ocr llama4 llava llava_next llava_next_video llava_onevision mistral3 ovis2 perception_lm "
    "qianfan_ocr smolvlm video_llama_3 vipllava".split()
)

for _entry in (
    ("internvl", "InternVL 2.5, 3, 3.5 in transformers' layout", dict(image="{image_token}\n", template="qwen_chat")),
    ("qwen2_vl", "Qwen2-VL", QWEN),
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
    ("idefics2", "Idefics 2", dict(template="smolvlm")),
    ("idefics3", "Idefics 3", dict(template="smolvlm")),
    ("gemma4", "Gemma 4", dict(template="gemma", fill={"image_position_ids": -1})),
    ("gemma4_unified", "Gemma 4 without a vision encoder", dict(template="gemma", fill={"image_position_ids": -1})),
    ("lfm2_vl", "LFM2-VL", dict(template="qwen_chat")),
    ("lfm3_vl", "LFM3-VL", dict(template="qwen_chat", image="<|vision_start|>{image_token}<|vision_end|>")),
    ("llama4", "Llama 4 Scout and Maverick", {}),
    ("mistral3", "Mistral Small 3.1 and later, Pixtral", {}),
    ("lighton_ocr", "LightOnOCR", {}),
    ("glm4v", "GLM-4.1V", GLM),
    ("glm46v", "GLM-4.6V", GLM),
    ("glm4v_moe", "GLM-4.5V", GLM),
    ("glm_ocr", "GLM-OCR", GLM),
    ("aya_vision", "Aya Vision", {}),
    ("cohere2_vision", "Command A Vision", {}),
    ("cohere_compass", "Cohere Compass", dict(image="{vision_start_token}{image_token}{vision_end_token}")),
    ("janus", "Janus, Janus-Pro (understanding)", {}),
    ("deepseek_vl", "DeepSeek-VL 1.3B", {}),
    ("video_llama_3", "VideoLLaMA 3", dict(template="qwen_chat")),
    ("ovis2", "Ovis 2", dict(template="qwen_chat")),
    ("fast_vlm", "FastVLM", dict(template="qwen_chat")),
    ("perception_lm", "Perception LM", {}),
    ("molmo2", "Molmo 2", dict(template="qwen_chat", numbers={"image_token_pooling": "pixel_values"})),
    ("minicpmv4_6", "MiniCPM-V 4.6", MINICPM),
    ("minicpmv4_7", "MiniCPM-V 4.7", MINICPM),
    ("aria", "Aria", dict(template="qwen_chat")),
    ("got_ocr2", "GOT-OCR 2", dict(template="qwen_chat", nested=False)),
    ("exaone4_5", "EXAONE 4.5", {}),
    ("vipllava", "ViP-LLaVA", dict(image="{image_token}\n", template="llava_v1")),
    ("llava_next_video", "LLaVA-NeXT-Video", dict(image="{image_token}\n", template="llava_v1")),
    ("qianfan_ocr", "Qianfan-OCR", dict(template="qwen_chat")),
    ("paddleocr_vl", "PaddleOCR-VL", {}),
    ("hyperclovax_vision_v2", "HyperCLOVA X SEED Vision", {}),
    ("qwen2_5_omni_thinker", "Qwen2.5-Omni (what reads and answers in text)", QWEN),
    ("qwen3_omni_moe_thinker", "Qwen3-Omni (what reads and answers in text)", QWEN),
    ("qwen4_exp", "Qwen4-Exp", QWEN),
    ("cosmos3_omni", "Cosmos 3 Omni", QWEN),
    ("cosmos3_edge", "Cosmos 3 Edge", EDGE),
    ("glm5_next", "GLM-5 Next", GLM),
    ("kimi_k25", "Kimi K2.5, K2.6", {}),
    ("minimax_m3_vl", "MiniMax M3", {}),
    ("mistral_large4", "Mistral Large 4", dict(counts=True)),
    ("muse_glimmer", "Muse Glimmer", {}),
    ("muse_spark", "Muse Spark", {}),
    ("inkling_mm_model", "Inkling", dict(image="{image_bos_token}{image_token}")),
    ("inkling2", "Inkling 2", {}),
    ("step3p7", "Step 3.7", {}),
    ("dots3_note", "dots3 note", {}),
    ("granite4_vision", "Granite 4 Vision", dict(image="{image_token}\n")),
    ("granite_docling", "Granite Docling", {}),
    ("video_llava", "Video-LLaVA", dict(image="{image_token}\n", template="llava_v1")),
    ("deepseek_vl_hybrid", "DeepSeek-VL 7B", {}),
    ("deepseek_ocr2", "DeepSeek-OCR 2", dict(image="{image_token}\n")),
    ("unlimited_ocr", "Unlimited-OCR", dict(image="{image_token}\n")),
    ("minicpm_ocr", "MiniCPM-OCR", MINICPM),
    ("pp_chart2table", "PP-Chart2Table", CHART),
):
    native_family(*_entry[:2], **_entry[2], packs=_entry[0] in _PACKING)


def markdown() -> str:
    """The families as the tables of docs/models.md."""
    served = [f"| `{name}` | {one.covers} |" for name, one in sorted(FAMILIES.items())]
    refused = [f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())]
    plugged = ", ".join(f"`{name}`" for name in sorted(PLUGGED))
    return "\n".join(
        ["| `model_type` | models |", "|---|---|", *served, "", "| does not fit | why |", "|---|---|", *refused, "",
         f"{len(FAMILIES)} fit, {len(REFUSED)} do not; a plug-in brings {plugged} ([extend.md](extend.md)).", "",
         "Several sequences may share a row (`pack`): " + ", ".join(f"`{name}`" for name in sorted(_PACKING)) + "."]
    )  # fmt: skip
