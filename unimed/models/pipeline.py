"""`pipeline("grounded-image-text")` of transformers, for every family."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from unimed.io.result import Prediction
from unimed.structures import as_list

TASK = "grounded-image-text"


class GroundedImageTextPipeline(Pipeline):
    """Images or volumes and questions in, dictionaries out: those of `Prediction.to_dict`, ready for JSON.

        pipe = pipeline("grounded-image-text", model=folder)
        pipe("image.png", text="Segment the liver.")
        pipe([{"image": "a.png", "text": "Where is the nodule?"}, {"image": "ct.nii.gz", "text": "Segment the liver."}])

    What a model of transformers needs beside its weights is read by the model itself.
    """

    _load_tokenizer = _load_processor = _load_image_processor = _load_feature_extractor = False
    _load_video_processor = False

    def __call__(self, images=None, text=None, **options):
        """Answers to questions, a dictionary each.

        Args:
            images: an image or volume as of `model.predict`, or {"image", "text"}; or a list of either. `image=` is
                understood too.
            text: the question, or one per image; several about one image are a list of lists. For a contrastive model
                its labels.
            options: of `model.predict`; `masks="array"` puts bool arrays as `mask` in place of run lengths.

        Raises:
            ValueError: no question, or another number of questions than of images; and what `predict` raises.
        """
        options = {**self._forward_params, **options}
        if "image" in options:
            if images is not None:
                raise ValueError("image and images are the same argument; give one of them")
            images = options.pop("image")
        masks = options.pop("masks", "rle")
        if masks not in ("rle", "array"):
            raise ValueError(f"masks must be 'rle' or 'array', got {masks!r}")
        several = isinstance(images, list)
        entries = as_list(images) if several else [images]
        given = [text] * len(entries) if not several or isinstance(text, str) or text is None else list(text)
        if len(given) != len(entries):
            raise ValueError(f"{len(given)} texts for {len(entries)} images; give one text, or one per image")
        pairs = [_pair(entry, question) for entry, question in zip(entries, given, strict=True)]
        found = [self._plain(self.model.predict(image, question, **options), masks) for image, question in pairs]
        return found if several else found[0]

    def _plain(self, prediction: Prediction | list[Prediction], masks: str):
        if isinstance(prediction, list):
            return [self._plain(one, masks) for one in prediction]
        values = prediction.to_dict()
        if masks == "array":
            for region, entry in zip(prediction.regions, values["regions"], strict=True):
                entry.pop("mask_rle", None)
                entry |= {} if region.mask is None else {"mask": region.mask}
        return values

    def _sanitize_parameters(self, **options):
        return {}, options, {}

    def preprocess(self, inputs, **options):
        return inputs

    def _forward(self, inputs, **options):
        return self.model.predict(*_pair(inputs, None), **options)

    def postprocess(self, outputs, **options):
        return self._plain(outputs, "rle")


def _pair(entry, text) -> tuple:
    """(image, question) of an entry."""
    image = entry
    if isinstance(entry, Mapping):
        if unknown := sorted(set(entry) - {"image", "images", "text"}):
            raise ValueError(f"an input holds image and text, got {', '.join(map(repr, unknown))}")
        image, text = entry.get("image", entry.get("images")), entry.get("text", text)
    if text is None:
        raise ValueError("no question: give text=")
    return image, text


if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=GroundedImageTextPipeline, pt_model=(AutoModel,), type="multimodal"
    )
