"""Boxes as text, as image-text models of today were pretrained to write them."""

from __future__ import annotations

from unimed.models.dialects.base import Dialect
from unimed.models.dialects.boxes import INTERNVL, PALIGEMMA, QWEN2, QWEN_JSON, QWEN_PIXELS
from unimed.registry import DIALECTS


class TextBoxes(Dialect):
    """No token points at anything: masks and boxes are numbers in the text, regions of a question too."""

    seg_token = box_token = marks_phrases = shows_regions = False


@DIALECTS.register_module(name="internvl")
class InternVLDialect(TextBoxes):
    """<ref>liver</ref><box>[[x1, y1, x2, y2]]</box>, 0 to 1000."""

    name, boxes = "internvl", INTERNVL
    wordings = {
        "locate": [
            "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>",
            "Where is <ref>{}</ref>? Give its bounding box.",
        ]
    }
    pool_of = {"segmentation": "locate", "box": "locate"}


@DIALECTS.register_module(name="qwen2_vl")
class Qwen2VLDialect(TextBoxes):
    """<|object_ref_start|>liver<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>, 0 to 1000."""

    name, boxes = "qwen2_vl", QWEN2
    wordings = {"locate": ["Locate {}."]}
    pool_of = {"segmentation": "locate", "box": "locate"}


@DIALECTS.register_module(name="qwen3_vl")
class Qwen3VLDialect(TextBoxes):
    """[{"bbox_2d": [x1, y1, x2, y2], "label": "liver"}], 0 to 1000."""

    name, boxes = "qwen3_vl", QWEN_JSON
    wordings = {"locate": ["Locate {} and report the bbox coordinates in JSON format."]}
    pool_of = {"segmentation": "locate", "box": "locate"}


@DIALECTS.register_module(name="qwen2_5_vl")
class Qwen25VLDialect(Qwen3VLDialect):
    """As Qwen3-VL, in pixels of the image as the model resizes it."""

    name, boxes = "qwen2_5_vl", QWEN_PIXELS


@DIALECTS.register_module(name="paligemma")
class PaliGemmaDialect(TextBoxes):
    """<locY1><locX1><locY2><locX2> liver, 1024 bins; the question is a command."""

    name, boxes = "paligemma", PALIGEMMA
    wordings = {"detect": ["detect {}"], "caption": ["caption en"], "answer": ["answer en {}"]}
    pool_of = {"segmentation": "detect", "box": "detect", "caption": "caption", "question": "answer"}
