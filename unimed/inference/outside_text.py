"""Text of answers from a server beside us (vLLM, SGLang, any with OpenAI's chat completions), regions from our weights.

model.text_from = OutsideText("http://localhost:8000/v1", "my-model")
prediction = model.predict("case.png", "Segment the nodule.")

The server runs the language model of the same checkpoint; `predict` then reads question and answer in one pass, without
decoding, and takes masks and boxes from the states of its markers. Research use only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np

from unimed.io.write import png_url


class TextError(ValueError):
    """A server that gives no text, or an address that is none."""


class OutsideText:
    """Asks a server for the text of answers, greedily.

    Args:
        url: http(s)://HOST/v1, without user and password.
        model: its name there; None takes the only one the server has.
        key_variable: environment variable of the key; it is written nowhere.
        at_once: questions under way at a time; servers batch what is asked together.

    Raises:
        ImportError: OpenAI's client is not installed. TextError: no address, or a server with several models.
    """

    def __init__(
        self, url: str, model: str | None = None, key_variable: str = "OPENAI_API_KEY", at_once: int = 8,
        timeout_s: float = 600,
    ):  # fmt: skip
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname or place.username or place.password:
            raise TextError(f"{url!r} must be http(s)://HOST/v1 without user and password")
        try:
            import openai
        except ImportError as error:
            raise ImportError("text from a server needs OpenAI's client: pip install 'unimed[bench]'") from error
        self._error, self.url, self.at_once = openai.OpenAIError, url, at_once
        key = os.environ.get(key_variable) or "none"
        self.client = openai.OpenAI(base_url=url, api_key=key, max_retries=2, timeout=timeout_s)
        self.model = model or self._only_model()

    def _only_model(self) -> str:
        try:
            names = [one.id for one in self.client.models.list()]
        except self._error as error:
            raise TextError(f"{self.url}: {type(error).__name__}: {error}") from error
        if len(names) != 1:
            raise TextError(f"{self.url} has {len(names)} models ({', '.join(names[:8])}); name one of them")
        return names[0]

    def __call__(
        self, images: Sequence[np.ndarray | None], conversations: Sequence[Sequence[tuple[str, str]]], most: int
    ) -> list[str | list[int]]:
        """An answer per conversation: ids where the server tells them, else text with its markers.

        Args:
            images: HxWx3 uint8, or None, of the first question of each.
            conversations: turns as (role, text), the last of the user.
            most: tokens of one answer.

        Raises:
            TextError: the server cannot be reached, or refuses.
        """
        with ThreadPoolExecutor(max(1, min(self.at_once, len(conversations)))) as pool:
            return list(pool.map(lambda pair: self._answer(*pair, most), zip(images, conversations, strict=True)))

    def _answer(self, image, conversation, most: int) -> str | list[int]:
        messages: list[dict] = [{"role": role, "content": text} for role, text in conversation]
        if image is not None:
            shown = {"type": "image_url", "image_url": {"url": png_url(image)}}
            messages[0]["content"] = [shown, {"type": "text", "text": messages[0]["content"]}]
        # The markers are special tokens: servers leave them out of the text unless asked.
        asked = {"skip_special_tokens": False, "spaces_between_special_tokens": False, "return_token_ids": True}
        try:
            done = self.client.chat.completions.create(
                model=self.model, messages=messages, temperature=0, max_tokens=most, extra_body=asked
            )
        except self._error as error:
            raise TextError(f"{self.url}: {type(error).__name__}: {error}") from error
        choice = done.choices[0]
        ids = getattr(choice, "token_ids", None)
        if ids:
            return [int(one) for one in ids]
        return choice.message.content or ""
