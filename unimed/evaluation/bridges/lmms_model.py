"""A contestant as a model of lmms-eval: `--model unimed --model_args contestant=exports/mine`.

lmms-eval finds it by the entry point of this package. Only this module imports lmms-eval.
"""

from __future__ import annotations

import numpy as np

from unimed.evaluation.contestants.base import Settings, contestant
from unimed.geometry import Geometry
from unimed.structures import Sample

try:
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest
except ImportError as error:
    raise ImportError("this bridge needs lmms-eval: pip install lmms-eval") from error


class Unimed(lmms):
    """Asks a contestant the questions of a task.

    Args:
        contestant: `KIND:REFERENCE` or the folder of a model, as of `unimed benchmark`.
        max_new_tokens, dialect, url: as there.
    """

    is_simple = True

    def __init__(
        self, contestant: str, device: str = "auto", batch_size: int | str = 1, max_new_tokens: int = 512,
        dialect: str = "", url: str = "", **further,
    ):  # fmt: skip
        super().__init__()
        settings = Settings(device or "auto", max_new_tokens=int(max_new_tokens), dialect=dialect, url=url)
        self.one = open_contestant(contestant, settings)
        self.batch_size_per_gpu = int(batch_size) if str(batch_size).isdigit() else 1

    def generate_until(self, requests) -> list[str]:
        answers = []
        for number, request in enumerate(requests):
            question, _, doc_to_visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            images = tuple(np.asarray(image.convert("RGB")) for image in doc_to_visual(document))
            turns = (("user", question), ("assistant", ""))
            sample = Sample(images, Geometry.pixels(), f"{task}-{number}", conversation=turns, labels={"task": "vqa"})
            answer = self.one.answer_case(sample)
            answers.append(answer.markup or answer.text)
        return answers

    def loglikelihood(self, requests):
        raise NotImplementedError("contestants write answers; choose a task that generates")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("contestants answer one question; choose a task of one round")


open_contestant = contestant


def manifest() -> ModelManifest:
    """What the entry point gives."""
    return ModelManifest("unimed", simple_class_path=f"{__name__}.Unimed")
