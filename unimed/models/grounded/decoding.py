"""How a grounded model answers: image tokens, embeddings, decoding, or the reading of an answer that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput

from unimed.models.grounded.drafts import NO_WORD, Drafts, EarlierAnswers
from unimed.models.grounded.generation import Generated, generate, read, read_answers
from unimed.models.heads.mask import ImageFeatures, content_key
from unimed.structures import task_of


@dataclass
class GroundedGeneration(ModelOutput):
    """`sequences` [B, L] as transformers gives them; `rows`, one `Generated` per row."""

    sequences: torch.Tensor | None = None
    rows: list[Generated] | None = None


class GroundedDecoding:
    """Mixin of `GroundedMLLM`."""

    #: Longest guess of the next tokens of an answer (see `unimed.models.grounded.drafts`); 0 guesses none.
    prompt_lookup_num_tokens: int = 8
    #: What keeps embeddings of images between questions, by content: `get(key)` gives a value or None, and
    #: `put(key, value, bytes)` keeps it. Only while the weights do not change; None keeps none.
    embedding_cache = None
    _earlier_answers: EarlierAnswers | None = None

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        mask_pixel_values: torch.Tensor | None = None,
        layout=None,
        native=None,
        *,
        max_new_tokens: int = 512,
        do_sample: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        prompt_lookup_num_tokens: int | None = None,
        return_dict_in_generate: bool = False,
        **unknown,
    ):
        """Ids [B, L + answer] as transformers' `generate` gives them: the prompt, the answer, padding behind it.

        Takes what the processor gives: `model.generate(**model.processor(images=image, text="..."))`. Regions and their
        masks come with `predict`; the text of an answer and what it points at with `processor.parse(ids)`.

        Args:
            do_sample, temperature, generator: greedy by default.
            prompt_lookup_num_tokens: see `predict`.
            return_dict_in_generate: also what the heads read: `rows`, one `Generated` per row, beside `sequences`.

        Raises:
            ValueError: `input_ids` that are no tensor, rows padded on the right, or an unknown option.
        """
        if unknown:
            raise ValueError(
                f"generate does not know {', '.join(sorted(unknown))}; known are max_new_tokens, do_sample, "
                "temperature, generator, use_cache, prompt_lookup_num_tokens, return_dict_in_generate"
            )
        if not isinstance(input_ids, torch.Tensor):
            raise ValueError(
                f"input_ids is a tensor [B, L], got {type(input_ids).__name__}; call generate(**inputs) with what the "
                "processor gave, or predict(image, text)"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("rows are padded on the right; questions are padded on the left, as the processor does it")
        inputs = dict(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        inputs |= dict(image_grid_thw=image_grid_thw, mask_pixel_values=mask_pixel_values, layout=layout, native=native)
        rows, _ = self._decode(
            inputs, max_new_tokens=max_new_tokens, temperature=temperature if do_sample else 0.0, generator=generator,
            use_cache=use_cache, prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        )  # fmt: skip
        longest = max(len(row.ids) for row in rows)
        new = torch.full((len(rows), longest), self.processor.pad_id, device=input_ids.device)
        for place, row in enumerate(rows):
            new[place, : len(row.ids)] = torch.tensor(row.ids, device=new.device)
        sequences = torch.cat([input_ids, new], dim=1)
        return GroundedGeneration(sequences=sequences, rows=rows) if return_dict_in_generate else sequences

    def _decode(
        self,
        inputs,
        image_tokens=None,
        task=None,
        answers: Sequence[Sequence[int]] | None = None,
        prompt_lookup_num_tokens: int | None = None,
        **options,
    ) -> tuple[list[Generated], ImageFeatures]:
        """Answers to the questions of a batch of the processor, and the mask head's features of its images.

        Args:
            image_tokens: those of the images of the batch, where they were computed before.
            task: of the batch, for connectors that route; `routing_task` by default.
            answers: ids that the rows of the batch end with, where another engine wrote them; nothing is decoded then.
        """
        inputs = {k: v.to(self.device) if hasattr(v, "to") else v for k, v in inputs.items()}
        features = ImageFeatures(self.mask_head, inputs.get("mask_pixel_values"), self.embedding_cache)
        if self.backbone.native:
            if answers is not None:
                return self._read_native(inputs, features, answers), features
            return self._decode_native(inputs, features, **options), features
        if image_tokens is None:
            image_tokens = self._image_tokens(inputs, features, self._task_ids(task))
        if self.shares_tokens and image_tokens is not None and features.pixels is not None:
            flat, grids = image_tokens.flatten(0, -2), inputs.get("image_grid_thw")
            features.tokens = self.tokens_by_image(flat, inputs.get("layout"), grids, inputs["input_ids"])
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        embeds, positions, _ = self.embed(
            ids, mask, image_grid_thw=inputs.get("image_grid_thw"), image_tokens=image_tokens,
            layout=inputs.get("layout"),
        )  # fmt: skip
        kept = self._answer_options()
        if answers is not None:
            hidden = read(self, embeds, mask, positions)
            told = {name: kept[name] for name in ("keep_states_of", "state_before")}
            return read_answers(self, hidden, answers, **told), features
        most = self.prompt_lookup_num_tokens if prompt_lookup_num_tokens is None else prompt_lookup_num_tokens
        drafts = None
        if most and options.get("temperature", 0.0) <= 0 and options.get("use_cache", True):
            self._earlier_answers = self._earlier_answers or EarlierAnswers()
            # What stands for an image is no word, and some of it has no embedding.
            words = (ids != self.config.image_token_id) & (ids >= 0)
            words &= ids < self.get_input_embeddings().num_embeddings
            spelled = ids.masked_fill(~words, NO_WORD)
            prompts = [row[known.bool()].tolist() for row, known in zip(spelled, mask, strict=True)]
            drafts = [Drafts(prompt, most, self._earlier_answers.answers) for prompt in prompts]
        rows = generate(self, embeds, mask, position_ids=positions, drafts=drafts, **kept, **options)
        for row in rows if drafts else ():
            self._earlier_answers.add(row.ids)
        return rows, features

    def _task_ids(self, task) -> torch.Tensor | None:
        """Ids [N] of the tasks of samples for a connector that routes; None leaves it to `routing_task`."""
        connector = self.connector
        if connector is None or not connector.needs_task or task is None or self.routing_task is not None:
            return None
        known = connector.tasks
        names = [name if name in known else task_of(name).short for name in task if name is not None]
        if len(names) < len(task):
            return None
        # A text without an image has a task that no connector knows; nothing is routed for it.
        return torch.tensor([known.index(name) if name in known else 0 for name in names], device=self.device)

    def _image_tokens(self, inputs, features: ImageFeatures, task=None) -> torch.Tensor | None:
        """Image tokens [N, D] of all images of a batch, one after the other; None where it has none."""
        if self.backbone.native:
            return None  # they pass inside of the backbone
        layout, pixels, grids = inputs.get("layout"), inputs.get("pixel_values"), inputs.get("image_grid_thw")
        if layout is None or not len(layout.encoded):
            seen = None
            if self.reads_mask_encoder and inputs.get("mask_pixel_values") is not None:
                seen = features[list(range(len(inputs["mask_pixel_values"])))]
            if pixels is None and seen is None:
                return None
            return self.image_tokens(pixels, seen, image_grid_thw=grids)[0].flatten(0, -2)
        cache = None if self.reads_mask_encoder else self.embedding_cache
        # A CPU gains nothing from several images at once and loses its cache; a GPU does gain.
        size = 1 if self.device.type == "cpu" or cache is not None else 8
        numbers = list(range(len(layout.encoded)))
        counts = layout.tiles.tolist() if grids is None else grids.prod(dim=1).tolist()
        parts = [None] * len(counts) if pixels is None else pixels.split(counts)
        routed = None if task is None else layout.per_tile(task).split(layout.tiles.tolist())
        tokens = []
        for chunk in (numbers[start : start + size] for start in range(0, len(numbers), size)):
            seen = features[layout.encoded[chunk].tolist()] if self.reads_mask_encoder else None
            read = None if pixels is None else torch.cat([parts[i] for i in chunk])
            grid = None if grids is None else grids[chunk]
            way = None if routed is None else torch.cat([routed[i] for i in chunk])
            key = None if cache is None else ("tokens", content_key(read), str(grid), str(way), str(self.routing_task))
            kept = None if key is None else cache.get(key)
            if kept is None:
                kept = self.image_tokens(read, seen, way, grid)[0].flatten(0, -2)
                if key is not None:
                    cache.put(key, kept, kept.nbytes)
            tokens.append(kept)
        return torch.cat(tokens)

    def _answer_options(self) -> dict:
        """What is kept of an answer, and what ends it."""
        special = [self.config.seg_token_id]
        if self.box_head is not None and self.config.box_token_id is not None:
            special.append(self.config.box_token_id)
        return dict(
            keep_states_of=special, stop_ids=self.processor.stop_ids, stopped=self.processor.stopped,
            state_before=self.config.prompt_state == "before",
        )  # fmt: skip
