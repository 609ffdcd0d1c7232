"""Uni-Med: images through EVA-ViT and the connector into a causal language model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from unimed.geometry import Geometry
from unimed.io.images import load as load_image
from unimed.io.result import Prediction
from unimed.models.connectors import build_connector
from unimed.models.connectors.modeling import ConnectorOutput
from unimed.models.lora import add_lora
from unimed.models.uni_med.configuration import UniMedConfig
from unimed.models.uni_med.processing import VISUAL_TOKEN, WRAPPED_IMAGE, UniMedProcessor
from unimed.models.uni_med.vision import EvaEncoder, Float32LayerNorm
from unimed.models.weights import WholeWeights
from unimed.structures import Region, as_list


@dataclass
class UniMedOutput(ModelOutput):
    """`loss` is the mean over all learnt tokens of the batch, `sample_losses` [B] the mean over those of each sample;
    `routing` [I, M, E] belongs to the images, `auxiliary_loss` to the connector."""

    loss: torch.Tensor | None = None
    sample_losses: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    routing: torch.Tensor | None = None
    auxiliary_loss: torch.Tensor | None = None


class UniMedModel(WholeWeights, PreTrainedModel):
    """EVA-ViT, `ln_vision`, connector and language model (arXiv 2409.17508). A batch may mix tasks."""

    config_class = UniMedConfig
    base_model_prefix = "uni_med"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: UniMedConfig):
        super().__init__(config)
        self.visual_encoder = EvaEncoder(**config.vision)
        self.ln_vision = Float32LayerNorm(config.vision["dim"], eps=1e-5)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.get_default_dtype())
        self.connector = build_connector(dict(config.connector), config.vision["dim"], config.text_config.hidden_size)
        self._processor: UniMedProcessor | None = None
        self.post_init()
        self._tune()

    def _tune(self):
        """Freeze what the configuration freezes and put on the adapters it asks for."""
        if self.config.sft_type != "full":
            self.language_model.requires_grad_(False)
        if self.config.sft_type == "lora":
            add_lora(self.language_model.model, self.config.lora)
        #: Names of the parameters of the language model that learn: adapters, and what `lora` trains whole.
        self.learning = {name for name, p in self.language_model.named_parameters() if p.requires_grad}
        if self.config.freeze_vision:
            self.visual_encoder.requires_grad_(False).eval()
            self.ln_vision.requires_grad_(False)

    def train(self, mode: bool = True):
        """As torch does; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze_vision:
            self.visual_encoder.eval()
        return self

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers does; frozen parts stay frozen (loading forgets it)."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, parameter in model.language_model.named_parameters():
            parameter.requires_grad_(name in model.learning)
        if model.config.freeze_vision:
            model.visual_encoder.requires_grad_(False)
            model.ln_vision.requires_grad_(False)
        return loaded

    def _init_weights(self, module):
        # Parts without weights in a file are set up by their own libraries; only buffers are lost on the way.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
        if module is self.ln_vision:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    @property
    def processor(self) -> UniMedProcessor:
        """The processor saved beside the weights.

        Raises:
            RuntimeError: the model was built in memory and none was set.
        """
        if self._processor is None:
            if not self.config._name_or_path:
                raise RuntimeError("this model was built in memory; set model.processor first")
            self._processor = UniMedProcessor.from_pretrained(self.config._name_or_path)
        return self._processor

    @processor.setter
    def processor(self, processor: UniMedProcessor):
        self._processor = processor

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers does; the processor is saved beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._processor is not None or self.config._name_or_path:
            self.processor.save_pretrained(save_directory)

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    # -- forward ----------------------------------------------------------------------------------------------------
    def encode_images(self, pixels: torch.Tensor, task=None) -> ConnectorOutput:
        """[I, 3, S, S] and the task of each image (names, ids, or one name) -> visual tokens [I, M, D]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_vision):
            features = self.ln_vision(self.visual_encoder(pixels.to(self.visual_encoder.patch_embed.proj.weight.dtype)))
        weight = next(self.connector.parameters())
        return self.connector(features[:, 1:].to(weight.dtype), task)

    def merge(self, input_ids: torch.Tensor, visual: torch.Tensor | None) -> torch.Tensor:
        """Embeddings [B, L, D] of ids, visual tokens [.., D] at the places of VISUAL_TOKEN in reading order.

        Raises:
            ValueError: the ids ask for another number of visual tokens than there are.
        """
        places = input_ids == VISUAL_TOKEN
        embeds = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        count = 0 if visual is None else visual.shape[:-1].numel()
        if int(places.sum()) != count:
            raise ValueError(f"the text holds {int(places.sum())} visual tokens, the images give {count}")
        return embeds if not count else embeds.masked_scatter(places[..., None], visual.to(embeds.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        task: torch.Tensor | Sequence[str] | str | None = None,
        labels: torch.Tensor | None = None,
        visual_mask: torch.Tensor | None = None,
        return_logits: bool = True,
        **_,
    ) -> UniMedOutput:
        """One teacher-forced pass.

        Args:
            input_ids: [B, L], VISUAL_TOKEN where images go, padded on the right.
            pixel_values: [I, 3, S, S], the images of all rows in reading order; None for text only.
            task: task of each *image*.
            labels: [B, L], -100 where nothing is learnt.
            visual_mask: [I, M], which visual tokens have a place in `input_ids`; all by default.
        """
        output = UniMedOutput()
        visual = None
        if pixel_values is not None:
            connected = self.encode_images(pixel_values, task)
            visual, output.routing, output.auxiliary_loss = connected
            visual = visual if visual_mask is None else visual[visual_mask]
        hidden = self.language_model.model(
            inputs_embeds=self.merge(input_ids, visual), attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        if return_logits:
            output.logits = self.language_model.lm_head(hidden)
        if labels is not None:
            wanted = labels[:, 1:] != -100
            logits = self.language_model.lm_head(hidden[:, :-1][wanted]).float()
            tokens = F.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")
            counts = wanted.sum(1)
            rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
            output.loss = tokens.mean() if len(tokens) else hidden.sum() * 0.0
            sums = tokens.new_zeros(len(counts)).index_add(0, rows, tokens)
            output.sample_losses = sums / counts.clamp(min=1)
        return output

    # -- answers ----------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def answer_prompts(self, prompts: Sequence[Sequence[int]], pixels=None, task=None, **options) -> list[list[int]]:
        """Generated ids of prompts (see `UniMedProcessor.prompt`), padded on the left; the prompt is not repeated."""
        visual = None if pixels is None else self.encode_images(pixels, task).tokens
        longest = max(len(ids) for ids in prompts)
        ids = torch.full((len(prompts), longest), self.processor.pad_id, device=self.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=self.device)
            mask[row, longest - len(prompt) :] = 1
        options = {"max_new_tokens": 20, "do_sample": False, "num_beams": 1, "min_length": 1} | options
        generated = self.language_model.generate(
            inputs_embeds=self.merge(ids, visual),
            attention_mask=mask,
            pad_token_id=self.processor.pad_id,
            eos_token_id=self.processor.eos_id,
            bos_token_id=self.processor.bos_id,
            **options,
        )
        return generated.tolist()

    def predict(self, image, text: str | Sequence[str], task: str | None = None, **options):
        """Answer a question about an image (or a list of images); see `predict_batch`. A list of texts gives a list."""
        texts = [text] if isinstance(text, str) else list(text)
        answers = self.predict_batch([image] * len(texts), texts, task, **options)
        return answers[0] if isinstance(text, str) else answers

    def predict_batch(
        self,
        images: Sequence,
        texts: Sequence[str],
        task: str | Sequence[str] | None = None,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 100,
        **options,
    ) -> list[Prediction]:
        """Answers to `texts`, each about its image: a path, PIL image or array, a list of these, or None.

        Args:
            task: one of qa, vqa, refer, identify, caption, cls, for all or for each; "vqa" where it is not given
                ("qa" without an image), or what the text itself begins with ("[refer] ...").

        Returns:
            predictions whose regions are the boxes of the answer, on the (first) image.
        """
        self.eval()
        images, texts = as_list(images), list(texts)
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images for {len(texts)} texts; give one image per text")
        given = [task] * len(texts) if task is None or isinstance(task, str) else list(task)
        results = []
        for start in range(0, len(texts), batch_size):
            begin = time.perf_counter()
            rows, prompts, pixels, tasks = [], [], [], []
            part = slice(start, start + batch_size)
            for image, text, name in zip(images[part], texts[part], given[part], strict=True):
                several = image if isinstance(image, (list, tuple)) else [] if image is None else [image]
                sources = [load_image(one) for one in several]
                name, text = _task_of(name, text, len(sources))
                instruction = self.processor.instruction(name, text, len(sources))
                prompts.append(self.processor.prompt(instruction, len(sources), predicting=True))
                pixels += [self.processor.pixels(source.rgb) for source in sources]
                tasks += [name] * len(sources)
                rows.append((name, text, sources))
            stacked = torch.stack(pixels).to(self.device) if pixels else None
            generated = self.answer_prompts(prompts, stacked, tasks, max_new_tokens=max_new_tokens, **options)
            spent = (time.perf_counter() - begin) / len(rows)
            answers = [self.processor.decode(ids) for ids in generated]
            results += [self._prediction(*row, answer, spent) for row, answer in zip(rows, answers, strict=True)]
        return results

    def _prediction(self, task, question, sources, text, spent) -> Prediction:
        regions = ()
        if sources and task != "identify":
            height, width = sources[0].rgb.shape[:2]
            boxes = self.processor.boxes(text, width, height)
            regions = tuple(Region(phrase=question, box_xyxy_px=box) for box in boxes)
        geometry = sources[0].geometry if sources else Geometry.pixels()
        return Prediction(text, regions, geometry, {"predict": spent}, str(self.config._name_or_path),
                          image=sources[0].source if sources else None)  # fmt: skip


def _task_of(task: str | None, text: str, images: int) -> tuple[str, str]:
    """Task and text; a task in brackets before the text counts where none is given."""
    text = text.replace(WRAPPED_IMAGE.strip(), "").strip()
    if text.startswith("[") and "]" in text:
        tag, rest = text[1:].split("]", 1)
        if task is None or tag == task:
            return tag, rest.strip()
    return task or ("vqa" if images else "qa"), text
