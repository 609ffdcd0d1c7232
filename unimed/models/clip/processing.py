"""Images and texts as the towers read them. Nothing here needs the weights, so data workers hold only this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import BatchFeature

from unimed.io.images import Image as LoadedImage
from unimed.io.images import load as load_image
from unimed.markup import without_surrogates
from unimed.models import foreign
from unimed.models.clip.configuration import ClipConfig
from unimed.registry import keywords, refuse_options

TOKENIZER_FOLDER = "tokenizer"


class ClipProcessor:
    """Preprocessing and tokenizer of a `ClipModel`.

    Args:
        config: of the model.
        tokenizer: folder or hub name of a Hugging Face tokenizer; None takes what `config` names.
        compat: "reference" resizes before the conversion to RGB and lets PIL clip 16-bit values at 255, as the
            published code does; by default images are windowed to 8-bit RGB first.
    """

    def __init__(self, config: ClipConfig, tokenizer: str | Path | None = None, compat: str | None = None):
        from open_clip.transform import image_transform

        self.config, self.compat = config, compat
        self.size, self.context_length = config.image_size, config.context_length
        options = config.preprocess_cfg
        self.mean, self.std = list(options["mean"]), list(options["std"])
        self._evaluate = image_transform(
            self.size,
            is_train=False,
            mean=tuple(self.mean),
            std=tuple(self.std),
            interpolation=options.get("interpolation"),
            resize_mode=options.get("resize_mode"),
            fill_color=options.get("fill_color", 0),
        )
        self._source, self._tokenizer, self._crop = tokenizer, None, None

    def __call__(
        self,
        images=None,
        text=None,
        *,
        site: str = "",
        return_tensors: str = "pt",
        padding="longest",
        truncation: bool = True,
        max_length: int | None = None,
        **others,
    ):
        """What `ClipModel.forward` takes: `pixel_values` [N, 3, S, S] and `input_ids` [M, L] (a `BatchFeature`).

        Args:
            images: an image or several: path, PIL image or array. text: a text or several. One of both may be missing.
            site, padding: see `image` and `texts`; True is "longest".

            truncation, max_length: longer texts are always cut, at the length the model was trained with.

        Raises:
            TypeError: an option that is not listed here.
            ValueError: neither images nor text, or another length. ImageError, ReadError: an image that cannot be read.
        """
        refuse_options(others, keywords(type(self).__call__), "the processor")
        if max_length not in (None, self.context_length):
            raise ValueError(
                f"texts are read up to {self.context_length} tokens, got max_length {max_length}; leave it out"
            )
        if images is None and text is None:
            raise ValueError("give images, text, or both")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is 'pt', got {return_tensors!r}")
        batch = {}
        if images is not None:
            batch["pixel_values"] = self.images(images if isinstance(images, (list, tuple)) else [images], site)
        if text is not None:
            padding = "longest" if padding is True else padding
            batch["input_ids"], _ = self.texts([text] if isinstance(text, str) else text, padding)
        return BatchFeature(batch)

    # -- images -----------------------------------------------------------------------------------------------------
    def image(self, image, site: str = "") -> torch.Tensor:
        """Path, PIL image or array -> [3, S, S] float32, normalised.

        Values deeper than 8 bit are windowed first, see `unimed.io.windows.choose_window`.

        Raises:
            ImageError, ReadError: no image the model can read.
        """
        from PIL import Image

        if self.compat == "reference" and not isinstance(image, LoadedImage):
            pil_image = Image.open(image) if isinstance(image, (str, Path)) else image
            return self._evaluate(Image.fromarray(pil_image) if isinstance(pil_image, np.ndarray) else pil_image)
        return self._evaluate(Image.fromarray(load_image(image, site=site).rgb))

    def images(self, images: Sequence, site: str = "") -> torch.Tensor:
        """[N, 3, S, S]; see `image`."""
        return torch.stack([self.image(image, site) for image in images])

    def train_image(self, image, scale: tuple[float, float] = (0.9, 1.0), site: str = "") -> torch.Tensor:
        """Random crop of `scale` of the area, aspect 3/4 to 4/3 -> [3, S, S] uint8; normalised later by `normalise`.

        No flips: left and right matter in medical images. Draws from torch's generator.
        """
        from PIL import Image
        from torchvision.transforms import InterpolationMode, RandomResizedCrop
        from torchvision.transforms.functional import pil_to_tensor

        if self._crop is None or tuple(self._crop.scale) != tuple(scale):
            self._crop = RandomResizedCrop(self.size, scale=scale, interpolation=InterpolationMode.BICUBIC)
        return pil_to_tensor(self._crop(Image.fromarray(load_image(image, site=site).rgb)))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] uint8 -> float, as `image` gives; floats are taken as normalised already."""
        if images.dtype != torch.uint8:
            return images
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return (images.float() / 255 - mean) / std

    # -- texts ------------------------------------------------------------------------------------------------------
    @property
    def tokenizer(self):
        """open_clip's tokenizer.

        Raises:
            OSError: the tokenizer files are neither in the folder nor on the hub.
        """
        if self._tokenizer is None:
            self._tokenizer = self._open_tokenizer()
        return self._tokenizer

    def _open_tokenizer(self):
        text = self.config.model_cfg["text_cfg"]
        try:
            return foreign.open_clip_tokenizer(text, self._source, self.context_length, self.config.tokenizer)
        except foreign.ForeignError:
            raise
        except (OSError, ValueError) as error:
            name = self._source or text.get("hf_tokenizer_name") or text.get("hf_model_name")
            raise OSError(
                f"the tokenizer {name} is neither a folder here nor on the hub; give the folder of the text encoder "
                "(vocab.txt or tokenizer.json with its config), or put it as text_encoder/ beside the checkpoint"
            ) from error

    @property
    def _huggingface(self):
        inner = getattr(self.tokenizer, "tokenizer", None)
        return (
            inner if hasattr(inner, "save_pretrained") and not getattr(self.tokenizer, "tokenizer_mode", "") else None
        )

    def texts(self, texts: Sequence[str], padding: str = "longest") -> tuple[torch.Tensor, list[int]]:
        """Token ids [N, L] and the numbers of the texts that were cut.

        Texts are cleaned (encoding repaired, HTML undone, white space collapsed). With padding "longest" L is the
        longest text of the batch, which gives the same features as "max_length" (L = context length) for less work;
        open_clip's own text towers (OpenAI's, SigLIP's) read all columns and are always padded in full.

        Raises:
            ValueError: no texts, one that is no string, or another word for `padding`.
        """
        texts = list(texts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts must be strings, at least one; got {texts[:3]!r}")
        texts = [without_surrogates(text) for text in texts]
        if padding not in ("longest", "max_length"):
            raise ValueError(f"padding {padding!r} is not known; choose longest or max_length")
        inner = self._huggingface
        if inner is None:
            ids = self.tokenizer(texts)
            return ids, [i for i, row in enumerate(ids) if self._was_cut(texts[i], row)]
        cleaned = [self.tokenizer.clean_fn(text) for text in texts]
        reads_padding = "hf_model_name" not in self.config.model_cfg["text_cfg"]
        rows = inner(cleaned, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
        cut = [i for i, row in enumerate(rows) if len(row) > self.context_length]
        ids = inner(
            cleaned,
            return_tensors="pt",
            max_length=self.context_length,
            padding="max_length" if reads_padding else padding,
            truncation=True,
        ).input_ids
        if getattr(self.tokenizer, "strip_sep_token", False):
            ids = ids.masked_fill(ids == inner.sep_token_id, 0)
        return ids, cut

    def _was_cut(self, text: str, row: torch.Tensor) -> bool:
        encode = getattr(self.tokenizer, "encode", None)
        return bool(row[-1]) and encode is not None and len(encode(text)) + 2 > len(row)

    # -- files ------------------------------------------------------------------------------------------------------
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer files (where it is one of Hugging Face's) beside the weights."""
        folder = Path(folder)
        inner = self._huggingface
        if inner is not None:
            inner.save_pretrained(folder / TOKENIZER_FOLDER)

    @classmethod
    def from_pretrained(cls, folder: str | Path, compat: str | None = None) -> ClipProcessor:
        """The processor of a folder written by `ClipModel.save_pretrained`, or of a hub id."""
        folder = foreign.folder_of(folder)
        config = ClipConfig.from_dict(foreign.read_json(folder / "config.json"))
        inner = folder / TOKENIZER_FOLDER
        return cls(config, inner if inner.is_dir() else None, compat)
