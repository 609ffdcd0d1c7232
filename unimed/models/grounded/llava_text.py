"""Text as LLaVA, LISA and uMedGround were trained with it: how a slow Llama tokenizer cut it, and how phrases end."""

from __future__ import annotations

import re

PHRASE_STYLES = ("tags", "sentence")
#: What uMedGround says between a phrase and its [BOX]; the shortest is nothing at all.
ENDINGS = ("The detection result is", "It is")
IMAGE_ID = -200


def separate_ids(tokenizer, text: str) -> list[int]:
    """Ids of `text`, the text between added tokens encoded piece by piece and stripped.

    Llama's slow tokenizer of that time took blanks and line breaks off both sides of an added token and began anew
    after it. BOS, EOS and the unknown token are no added tokens in that sense: text beside them keeps its blanks, but
    begins anew as well.
    """
    plain = {token for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) if token}
    words = sorted({*tokenizer.get_added_vocab(), *plain}, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, words)) + ")", text)
    ids: list[int] = []
    for place, part in enumerate(parts):
        if place % 2:
            ids.append(tokenizer.convert_tokens_to_ids(part))
            continue
        if place and parts[place - 1] not in plain:
            part = part.lstrip()
        if place + 1 < len(parts) and parts[place + 1] not in plain:
            part = part.rstrip()
        if part:
            ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return ids


def published_example(tokenizer, text: str, image_token: str = "<image>") -> tuple[list[int], list[int]]:
    """Ids and labels of a whole published conversation (compat="reference").

    Args:
        text: system line, question with `image_token` once, answer and </s>, as one string.

    Returns:
        ids with BOS, `IMAGE_ID` where the image goes, and labels (-100 where nothing is learnt).

    Raises:
        ValueError: the text holds another number of images, or no marker before the answer.
    """
    if text.count(image_token) != 1:
        raise ValueError(f"a published conversation holds {image_token} once, found {text.count(image_token)}")
    marker = next((m for m in (" ASSISTANT: ", "[/INST] ") if m in text), None)
    if marker is None:
        raise ValueError("no ' ASSISTANT: ' or '[/INST] ' before the answer")

    def encode(part: str) -> list[int]:
        before, found, after = part.partition(image_token)
        ids = [tokenizer.bos_token_id, *separate_ids(tokenizer, before)]
        return [*ids, IMAGE_ID, *separate_ids(tokenizer, after)] if found else ids

    ids = encode(text)
    labels = [-100] * len(ids)
    place = 1
    for turn in text.split("</s>"):
        if not turn.strip():
            break
        # Two less: the BOS, and the blank at the end of the marker, which joins the answer's first piece.
        asked = len(encode(turn.partition(marker)[0] + marker)) - 2
        end = place + len(encode(turn))
        labels[place + asked : end] = ids[place + asked : end]
        place = end
    return ids, labels


def sentence_phrase(text: str, start: int) -> tuple[int, int] | None:
    """Span of the phrase in `text[start:]` that a [BOX] after it points at; None where nothing new was said."""
    end = len(text.rstrip())
    for ending in ENDINGS:
        if text[start:end].rstrip().endswith(ending):
            end -= len(ending)
            break
    inner = text[start:end]
    left = start + len(inner) - len(inner.lstrip(" .,\n"))
    right = start + len(inner.rstrip(" .,\n"))
    return (left, right) if right > left else None
