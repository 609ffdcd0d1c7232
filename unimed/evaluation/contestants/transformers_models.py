"""Any image-text model of transformers as a contestant: a folder or hub id, asked by its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unimed.evaluation.contestants.text_boxes import TextContestant
from unimed.identity import content_digest
from unimed.io.windows import to_uint8
from unimed.registry import CONTESTANTS, DIALECTS, registered
from unimed.structures import Sample


@CONTESTANTS.register_module("transformers")
class TransformersModel(TextContestant):
    """`transformers:FOLDER`: what `AutoModelForImageTextToText` opens. Answers are greedy.

    Boxes are read by the dialect of the settings, else by the one that is called like the type of the model, else as
    Qwen3-VL writes them.
    """

    def __init__(self, reference="", settings=None):
        from unimed.models.image_text import ImageTextModel

        options = settings and {"device": settings.device, "dtype": settings.dtype}
        self.model = ImageTextModel(reference, **(options or {}))
        kind = self.model.model_type
        self.usual_dialect = kind if kind in registered(DIALECTS) else TextContestant.usual_dialect
        super().__init__(reference, settings)

    def identity(self) -> Mapping:
        content = content_digest(self.reference) if Path(self.reference).exists() else self.reference
        return {**super().identity(), "content": content, "type": self.model.model_type, "dtype": self.model.dtype}

    def read_size(self, size_hw):
        return self.model.read_size(size_hw)

    def say(self, sample: Sample, question: str) -> str:
        images = [image if image.dtype == "uint8" else to_uint8(image) for image in sample.images]
        return self.model.say(images, question, self.settings.max_new_tokens)
