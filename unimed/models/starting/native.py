"""A grounded model on any image-text model of transformers that runs through its own forward pass."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jinja2 import TemplateError

from unimed.chat import ChatTemplate
from unimed.models.backbones.families import Family, family_of
from unimed.models.grounded.configuration import GroundedConfig, as_config
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.grounded.processing import GroundedProcessor
from unimed.tokens import BOX_TOKEN, GROUNDING_TOKENS, SEG_TOKEN


def build_on_native(
    vlm, processor, mask_config, *, box_head: str | Mapping | None = "point", presence_head: bool = True,
    template: str | None = None, seed: int = 0,
) -> GroundedMLLM:  # fmt: skip
    """A grounded model around an image-text model and its processor; both are taken over and changed.

    The grounding tokens are added to the tokenizer, and the embeddings grow by rows that are the mean of all others.

    Args:
        vlm: of `AutoModelForImageTextToText`, of a family in `unimed.models.backbones.families`.
        processor: of transformers, for this model.
        mask_config: of a mask decoder, or its values with the `model_type`; its weights are drawn.
        box_head: name, or arguments of `build_box_head`; None builds none.
        template: name of a chat template; by default the one of the processor, else that of the family.

    Raises:
        ValueError: a family that does not fit.
    """
    grounded, config = prepare(vlm, processor, as_config(mask_config), template)
    config.presence_head = presence_head
    config.box_head = {"kind": box_head} if isinstance(box_head, str) else box_head and dict(box_head)
    torch.manual_seed(seed)
    model = GroundedMLLM(config)
    model.backbone.vlm.load_state_dict(vlm.state_dict())
    model.processor = grounded
    return model


def prepare(vlm, processor, mask_config, template: str | None = None) -> tuple[GroundedProcessor, GroundedConfig]:
    """Add the grounding tokens to a model and its processor; gives our processor and a configuration for both."""
    family, tokenizer = family_of(vlm.config), processor.tokenizer
    tokenizer.add_tokens(list(GROUNDING_TOKENS), special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > vlm.get_input_embeddings().weight.shape[0]:
        vlm.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    if hasattr(vlm.config, "vocab_size") and "vocab_size" in vlm.config.to_dict():
        vlm.config.vocab_size = vlm.config.get_text_config().vocab_size  # Ovis 2 sizes its head by this one
    if getattr(vlm.config.get_text_config(), "unpadded_vocab_size", None):
        vlm.config.get_text_config().unpadded_vocab_size = len(tokenizer)  # Inkling 2 cuts its logits there
    # The head is untied: the grounding tokens are read and said in different ways.
    vlm.config.tie_word_embeddings = vlm.config.get_text_config().tie_word_embeddings = False
    options = chat_options(processor, family)
    if template is not None:
        options["template"] = template
    image_id = image_token_id(vlm.config, processor)
    grounded = GroundedProcessor(
        tokenizer, native_family=family.name, image_start="", image_token=tokenizer.convert_ids_to_tokens(image_id),
        image_end="", image_gap="", image_join="", tokens_per_tile=1, tile_size=0, max_tiles=1,
        mask_size=mask_config.image_size, **options,
    ).read_through(processor)  # fmt: skip
    config = GroundedConfig(
        backbone_config=vlm.config,
        native=True,
        mask_config=mask_config,
        image_token_id=image_id,
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
        box_token_id=tokenizer.convert_tokens_to_ids(BOX_TOKEN),
    )
    return grounded, config


def image_token_id(config, processor) -> int:
    """The id that stands for one image token after the processor has expanded them."""
    for name in ("image_token_id", "image_token_index", "image_patch_id"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    return processor.image_token_ids[0]


def chat_options(processor, family: Family) -> dict:
    """How a processor of transformers writes conversations: `template`, `system`, `image_mark`, `bos`.

    Its chat template is rendered (in Jinja's sandbox, as transformers does) for a few turns, and read off; what lies
    in a folder afterwards is plain text. Where there is none, or it cannot be taken apart, the family's stands in.
    """
    told = _told(processor, family)
    if told is not None:
        return told
    template = family.template
    if template is None:
        stop = processor.tokenizer.eos_token or "\n"
        template = vars(ChatTemplate("lines", "{text}\n", stop, between="\n"))
    return dict(
        template=template,
        image_mark=family.image.format_map(vars(processor)),
        bos=processor.tokenizer.bos_token is not None,
    )


def _told(processor, family: Family) -> dict | None:
    question, answer, second = "QUESTION", "ANSWER", "AGAIN"

    def user(text, *before):
        return {"role": "user", "content": [*before, {"type": "text", "text": text}]}

    message = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    try:
        plain, seen, long = (
            processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            for turns in (
                [user(question)],
                [user(question, {"type": "image"})],
                [user(question), message, user(second)],
            )
        )
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
    before, found, after = plain.partition(question)
    middle = re.search(f"{answer}(.*?){second}", long, re.DOTALL)
    shown, seen_question, _ = seen.partition(question)
    if not found or middle is None or not seen_question:
        return None
    mark = shown[len(before) :] if shown.startswith(before) else family.image.format_map(vars(processor))
    if not mark or mark.strip() not in shown:
        return None
    tokens = sorted(processor.tokenizer.get_added_vocab(), key=len, reverse=True)
    pieces = re.compile("(" + "|".join(map(re.escape, tokens)) + ")")
    opening, between = ([p for p in pieces.split(text) if p] for text in (before, middle[1]))
    turn = ""
    while opening and between and opening[-1] == between[-1] and len(between) > 1:
        turn = opening.pop() + turn
        between.pop()
    stop = next((i for i, piece in enumerate(between) if piece in tokens), None)
    if stop is None:
        return None
    template = ChatTemplate(
        family.name, turn + "{text}" + after, "".join(between[: stop + 1]), "{text}", "".join(between[stop + 1 :])
    )
    return dict(template=vars(template), system="".join(opening), image_mark=mark)
