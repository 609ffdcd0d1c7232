"""Image-text models of transformers, as they are: no code of their folders runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.models import foreign
from unimed.models.auto import device_of


class ImageTextModel:
    """A model with its processor, asked one question at a time.

    Args:
        folder: a folder or hub id that `AutoModelForImageTextToText` and `AutoProcessor` open.

    Raises:
        ForeignError: it cannot be opened without running code of it. WeightsError: tensors that do not fit.
    """

    def __init__(self, folder, device: str = "auto", dtype: str = "auto"):
        import torch
        from transformers import AutoModelForImageTextToText

        chosen = device_of(device)
        self.model_type = str(foreign.read_json(foreign.folder_of(folder) / "config.json").get("model_type", ""))
        self.processor = foreign.image_text_processor(folder)
        kind = "auto" if dtype == "auto" else getattr(torch, dtype)
        self.model = foreign.model(AutoModelForImageTextToText, folder, dtype=kind).to(chosen).eval()
        self.dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def read_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image after the resizing of a Qwen processor; of any other model the size itself."""
        from PIL import Image

        reader = getattr(self.processor, "image_processor", None)
        patch = getattr(reader, "patch_size", None)
        if reader is None or not isinstance(patch, int):
            return size_hw
        found = reader(images=[Image.new("RGB", (size_hw[1], size_hw[0]))], return_tensors="np")
        if "image_grid_thw" not in found:
            return size_hw
        _, rows, columns = np.asarray(found["image_grid_thw"])[0]
        return int(rows) * patch, int(columns) * patch

    def say(self, images: Sequence[np.ndarray], question: str, max_new_tokens: int = 512) -> str:
        """The greedy answer to a question about images (HxW or HxWx3, uint8)."""
        import torch
        from PIL import Image

        pil_images = [Image.fromarray(image).convert("RGB") for image in images]
        text = question
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"} for _ in pil_images] + [{"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self.processor(text=[text], images=pil_images or None, return_tensors="pt").to(self.model.device)
        inputs = inputs.to(self.model.dtype) if hasattr(inputs, "to") else inputs
        with torch.no_grad():
            written = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = written[:, inputs["input_ids"].shape[1] :]
        # Marks of boxes are special tokens of some models; the padding and the end are not part of an answer.
        answer = self.processor.batch_decode(new, skip_special_tokens=False)[0]
        tokenizer = self.processor.tokenizer
        for mark in (tokenizer.eos_token, tokenizer.pad_token):
            answer = answer.split(mark)[0] if mark else answer
        return answer.strip()
