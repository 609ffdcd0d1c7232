"""An endpoint with OpenAI's chat completions as a contestant: hosted models, vLLM, `unimed serve`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from unimed.evaluation.contestants.base import ContestantError, grid_of
from unimed.evaluation.contestants.text_boxes import TextContestant
from unimed.evaluation.harness.frozen import thawed
from unimed.io.result import Prediction
from unimed.io.windows import to_uint8
from unimed.io.write import png_url
from unimed.registry import CONTESTANTS
from unimed.structures import Region, Sample

#: What of `message.regions` of `unimed serve` a prediction takes.
_REGION = {"phrase": "phrase", "box_xyxy": "box_xyxy_px", "presence": "presence"}


@CONTESTANTS.register_module("openai")
class Endpoint(TextContestant):
    """`openai:MODEL` at `--url`; the key is taken from an environment variable and written nowhere.

    Where a message brings `regions`, as that of `unimed serve` does, they count (`--dialect grounded` asks a model of
    ours in its own words); else boxes are read from its text by the dialect. Answers are asked for at temperature 0.

    Raises:
        ImportError: the client is not installed. ContestantError: no model, no address.
    """

    brings_regions = True

    def __init__(self, reference="", settings=None):
        super().__init__(reference, settings)
        try:
            import openai
        except ImportError as error:
            raise ImportError("an endpoint needs OpenAI's client: pip install 'unimed[bench]'") from error
        if not reference or not self.settings.url:
            raise ContestantError("an endpoint needs a model and an address: openai:MODEL --url http://HOST/v1")
        place = urlsplit(self.settings.url)
        if place.scheme not in ("http", "https") or place.username or place.password:
            raise ContestantError("--url must be http(s)://HOST/v1 without user and password; the key is a variable")
        key = os.environ.get(self.settings.key_variable) or "none"
        self.client = openai.OpenAI(base_url=self.settings.url, api_key=key, max_retries=2, timeout=600)

    def identity(self) -> Mapping:
        # What answers behind an address can change any day: a repeated run shows whether it did.
        return {**super().identity(), "model": self.reference, "url": self.settings.url}

    def say(self, sample: Sample, question: str) -> str:
        return self._message(sample, question).content or ""

    def answer_case(self, sample: Sample) -> Prediction:
        self._kept = None
        prediction = super().answer_case(sample)
        regions = getattr(self._kept, "regions", None)
        if not isinstance(regions, list):
            return prediction
        return Prediction(prediction.markup.strip(), tuple(self._region(one, sample) for one in regions))

    def _message(self, sample: Sample, question: str):
        content = [{"type": "text", "text": question}]
        content += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in sample.images]
        answer = self.client.chat.completions.create(
            model=self.reference, temperature=0, max_tokens=self.settings.max_new_tokens,
            messages=[{"role": "user", "content": content}],
        )  # fmt: skip
        self._kept = answer.choices[0].message
        return self._kept

    def _region(self, found: Mapping, sample: Sample) -> Region:
        entry = {ours: found[name] for name, ours in _REGION.items() if found.get(name) is not None}
        if found.get("mask"):
            entry["mask_rle"] = {name: found["mask"][name] for name in ("size", "counts")}
        (region,) = thawed({"regions": [entry]}, "a region of the endpoint", grid_of(sample)).regions
        return region


def data_url(image) -> str:
    """An image HxW or HxWx3 as the data URL of a PNG."""
    return png_url(image if image.dtype == "uint8" else to_uint8(image))
