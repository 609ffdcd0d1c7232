"""From images and questions to `Prediction`: what users call on a model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput

from unimed.chat import as_plain_text
from unimed.io.result import Prediction
from unimed.models.grounded.generation import Generated, generate
from unimed.models.grounded.pointing import guides, pointed_at
from unimed.models.grounded.processing import GroundedProcessor, PromptError
from unimed.models.heads.mask import ImageFeatures, MaskFeatures, content_key, resize_mask_logits
from unimed.models.predictor import Predictor, refuse_regions
from unimed.structures import task_of


@dataclass
class GroundedGeneration(ModelOutput):
    """`sequences` [B, L] as transformers gives them; `rows`, one `Generated` per row."""

    sequences: torch.Tensor | None = None
    rows: list[Generated] | None = None


class GroundedPredictor(Predictor):
    """Mixin of `GroundedMLLM`: prediction for one, for many, and in the words of UniBiomed."""

    _processor: GroundedProcessor | None = None
    shim_processor = GroundedProcessor
    #: What keeps embeddings of images between questions, by content: `get(key)` gives a value or None, and
    #: `put(key, value, bytes)` keeps it. Only while the weights do not change; None keeps none.
    embedding_cache = None
    #: `unimed.metrics.calibration.Calibration` of boxes, masks and presence, or None for the model's own numbers.
    calibration = None

    @property
    def processor(self) -> GroundedProcessor:
        """The processor saved beside the weights.

        Raises:
            RuntimeError: the model was built in memory and none was set.
        """
        if self._processor is None:
            path = self.config._name_or_path
            if not path:
                raise RuntimeError("this model was built in memory; set model.processor first")
            self._processor = GroundedProcessor.from_pretrained(path)
        return self._processor

    @processor.setter
    def processor(self, processor: GroundedProcessor):
        self._processor = processor

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers does; processor and shim (for `trust_remote_code=True`) lie beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._processor is not None or self.config._name_or_path:
            self.processor.save_pretrained(save_directory)

    def predict(self, image, text: str | Sequence[str], regions=None, **options) -> Prediction | list[Prediction]:
        """See `Predictor.predict`. Raises PromptError for more texts than `processor.max_phrases`.

        A text as `regions`, the third argument as Uni-Med's users write it, is the task.
        """
        if isinstance(regions, str):
            options, regions = {"task": regions} | options, None
        if not isinstance(text, str) and len(text) > self.processor.max_phrases:
            raise PromptError(
                f"{len(text)} texts on one image; at most {self.processor.max_phrases} (processor.max_phrases)"
            )
        return super().predict(image, text, regions, **options)

    @torch.no_grad()
    def _predict_images(
        self,
        images: Sequence,
        texts: Sequence[str],
        regions: Sequence,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        presence_threshold: float | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        task: str | Sequence[str] | None = None,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        watch: Callable[[int, Generated], None] | None = None,
    ) -> list[Prediction]:
        """Answers to questions about images, see `Predictor.predict_batch`.

        Args:
            images: an `Image` per text, a list of them, or None.
            presence_threshold: a region less probable than this keeps its presence and gets an empty mask; by default
                the one of the calibration, else 0.5.
            temperature: 0 is deterministic.
            task: what is asked, for all or for each, for models whose connector routes by task or whose dialect names
                it ("vqa", "refer", "caption", ...); None leaves it to the text ("[refer] ...") or `routed_as`.
            history: per text the turns before it, ("user", words) and ("assistant", words) in turn; control strings in
                them are read as plain text.
            watch: called with the number of a text and its unfinished answer after each token, for streaming; what it
                raises ends the prediction.

        Raises:
            PromptError: what cannot be asked; nothing is computed then.
        """
        was_training = self.training
        self.eval()
        try:
            threshold = self.shown_from if presence_threshold is None else presence_threshold
            assembly = self.processor.assembly()
            tasks = [task] * len(texts) if task is None or isinstance(task, str) else list(task)
            asked = [
                self.processor.dialect.asked(text, name, image is not None)
                for text, name, image in zip(texts, tasks, images, strict=True)
            ]
            routes = self.connector is not None and self.connector.needs_task
            before = [()] * len(texts) if history is None else history
            for image, (name, text), given, turns in zip(images, asked, regions, before, strict=True):
                conversation = [*self._earlier(turns, name, image is not None), ("user", text)]
                assembly.add(image, conversation, given, route=name if routes else None)
            lengths = [len(example.ids) for example in assembly.examples]
            # Prompts of like length stand together, so that little is padded; drawn answers keep their order.
            order = sorted(range(len(texts)), key=lambda i: lengths[i] if temperature == 0 else i)
            predictions: list = [None] * len(texts)
            for start in range(0, len(texts), batch_size):
                part = order[start : start + batch_size]
                options = dict(max_new_tokens=max_new_tokens, temperature=temperature, generator=generator)
                if watch is not None:
                    options["watch"] = functools.partial(_watch_part, watch, part)
                done = self._predict_part(
                    assembly,
                    part,
                    [texts[i] for i in part],
                    threshold,
                    use_cache=use_cache,
                    task=[asked[i][0] for i in part],
                    **options,
                )
                for place, prediction in zip(part, done, strict=True):
                    predictions[place] = prediction
            return predictions
        finally:
            self.train(was_training)

    @property
    def shown_from(self) -> float:
        """The presence from which on masks are shown: that of the calibration, else 0.5."""
        presence = getattr(self.calibration, "presence", None)
        return 0.5 if presence is None else presence.threshold

    def _earlier(self, turns: Sequence[tuple[str, str]], task, with_image: bool) -> list[tuple[str, str]]:
        """Turns before a question in the words of the dialect."""
        asked = self.processor.dialect.asked
        return [
            (role, asked(words, task, with_image)[1] if role == "user" else as_plain_text(words))
            for role, words in turns
        ]

    def predict_frames(self, frames: Sequence, text: str | Sequence[str], **options):
        """Answer a question about frames of a video or slices; see `unimed.models.grounded.frames.predict_frames`.

        Volumes with their geometry: `predict`.
        """
        from unimed.models.grounded.frames import predict_frames

        return predict_frames(self, frames, text, **options)

    def _predict_volume(self, volume, texts: Sequence[str], regions: Sequence, **options) -> list[Prediction]:
        """Answers with 3D masks; see `unimed.models.grounded.volumes.predict_slices` for the options."""
        from unimed.models.grounded.volumes import predict_slices

        refuse_regions(regions, "questions about volumes")
        return predict_slices(self, volume, texts, **options)

    def segment_boxes(self, image, boxes_xyxy_px: Sequence, phrases: Sequence[str] = (), site: str = "") -> Prediction:
        """Cut out what lies in given boxes; see `unimed.models.grounded.given_boxes.segment_boxes`."""
        from unimed.models.grounded.given_boxes import segment_boxes

        return segment_boxes(self, image, boxes_xyxy_px, phrases, site)

    def look_again(self, image, text: str, **options) -> Prediction:
        """Look a second time at crops around the answer's regions; see `unimed.models.grounded.second_look`."""
        from unimed.models.grounded.second_look import look_again

        return look_again(self, image, text, **options)

    @torch.no_grad()
    def predict_forward(
        self, image=None, text: str = "", past_text: str = "", mask_prompts=None, video=None, tokenizer=None,
        max_new_tokens: int = 2048, **kwargs,
    ) -> dict:  # fmt: skip
        """Inputs and outputs of UniBiomed's published `predict_forward`.

        `text` is taken verbatim: control strings in it act, as in the published code. For text that was typed by
        somebody else use `predict`.

        Returns:
            {"prediction": answer with its markers, "prediction_masks": one bool array [frames, H, W] per [SEG]}.

        Raises:
            PromptError: an image without "<image>" in the text, or both `text` and `past_text` hold one.
        """
        from unimed.models.grounded.published import predict_published

        return predict_published(self, image, text, past_text, mask_prompts, video, max_new_tokens)

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
        return_dict_in_generate: bool = False,
        **unknown,
    ):
        """Ids [B, L + answer] as transformers' `generate` gives them: the prompt, the answer, padding behind it.

        Takes what the processor gives: `model.generate(**model.processor(images=image, text="..."))`. Regions and their
        masks come with `predict`; the text of an answer and what it points at with `processor.parse(ids)`.

        Args:
            do_sample, temperature, generator: greedy by default.
            return_dict_in_generate: also what the heads read: `rows`, one `Generated` per row, beside `sequences`.

        Raises:
            ValueError: rows padded on the right, or an option this decoding does not have.
        """
        if unknown:
            raise ValueError(
                f"generate does not know {', '.join(sorted(unknown))}; known are max_new_tokens, do_sample, "
                "temperature, generator, use_cache, return_dict_in_generate"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("rows are padded on the right; questions are padded on the left, as the processor does it")
        inputs = dict(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        inputs |= dict(image_grid_thw=image_grid_thw, mask_pixel_values=mask_pixel_values, layout=layout, native=native)
        rows, _ = self._decode(
            inputs, max_new_tokens=max_new_tokens, temperature=temperature if do_sample else 0.0, generator=generator,
            use_cache=use_cache,
        )  # fmt: skip
        longest = max(len(row.ids) for row in rows)
        new = torch.full((len(rows), longest), self.processor.pad_id, device=input_ids.device)
        for place, row in enumerate(rows):
            new[place, : len(row.ids)] = torch.tensor(row.ids, device=new.device)
        sequences = torch.cat([input_ids, new], dim=1)
        return GroundedGeneration(sequences=sequences, rows=rows) if return_dict_in_generate else sequences

    # -- steps --------------------------------------------------------------------------------------------------
    def _decode(self, inputs, image_tokens=None, task=None, **options) -> tuple[list[Generated], ImageFeatures]:
        """Answers to the questions of a batch of the processor, and the mask head's features of its images.

        Args:
            image_tokens: those of the images of the batch, where they were computed before.
            task: of the batch, for connectors that route; `routing_task` by default.
        """
        inputs = {k: v.to(self.device) if hasattr(v, "to") else v for k, v in inputs.items()}
        features = ImageFeatures(self.mask_head, inputs.get("mask_pixel_values"), self.embedding_cache)
        if self.backbone.native:
            return self._decode_native(inputs, features, **options), features
        if image_tokens is None:
            image_tokens = self._image_tokens(inputs, features, self._task_ids(task))
        if self.shares_tokens and image_tokens is not None and features.pixels is not None:
            flat, grids = image_tokens.flatten(0, -2), inputs.get("image_grid_thw")
            features.tokens = self.tokens_by_image(flat, inputs.get("layout"), grids, inputs["input_ids"])
        embeds, positions, _ = self.embed(
            inputs["input_ids"], inputs["attention_mask"], image_grid_thw=inputs.get("image_grid_thw"),
            image_tokens=image_tokens, layout=inputs.get("layout"),
        )  # fmt: skip
        mask = inputs["attention_mask"]
        return generate(self, embeds, mask, position_ids=positions, **self._answer_options(), **options), features

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

    def seg_states(self, generated: Generated) -> torch.Tensor | None:
        """Hidden states [S, D] of the [SEG] tokens of an answer; None where it has none."""
        pairs = zip(generated.states, generated.state_ids, strict=True)
        states = [state for state, token in pairs if token == self.config.seg_token_id]
        return torch.stack(states) if states else None

    def _masks_of(self, generated: Generated, features: MaskFeatures | None, size, guides: dict | None = None):
        """Logits [S, H, W] in image pixels, predicted IoU [S] and presence [S] (None without a presence head).

        Args:
            features: those of the one image the answer speaks of.
            guides: {number of a [SEG]: box xyxy in pixels} where a [BOX] says where it lies.
        """
        states = self.seg_states(generated)
        if states is None or features is None:
            return torch.zeros(0, *size), torch.zeros(0), None
        index = torch.zeros(len(states), dtype=torch.long, device=states.device)
        prompts = self.seg_projection(states)
        output = self.mask_head.decode(features, index, prompts)
        if guides and self.mask_head.guided_by_boxes:
            rows = torch.tensor(sorted(guides), device=states.device)
            unit = torch.from_numpy(self.processor.frame(size).box_unit_px)
            boxes = torch.tensor([guides[row] for row in sorted(guides)]) / unit * self.mask_head.image_size
            guided = self.mask_head.decode(features, index[rows], prompts[rows], boxes.to(prompts))
            output.logits[rows], output.iou[rows] = guided.logits, guided.iou
        presence = None if self.presence_head is None else torch.sigmoid(self.presence_head(states)[:, 0].float())
        content = self.processor.frame(size).content_hw
        return resize_mask_logits(output.logits, size, self.mask_head.image_size, content), output.iou, presence

    def _predict_part(self, assembly, part, texts, threshold, **options) -> list[Prediction]:
        begin = time.perf_counter()
        inputs = assembly.batch(part)
        rows, features = self._decode(inputs, **options)
        answered = time.perf_counter()
        asking = {self.config.seg_token_id} | ({self.config.box_token_id} if self.config.box_decoder else set())
        images = inputs["layout"].image_of_sample.tolist()
        pointing = [image for image, row in zip(images, rows, strict=True) if asking & set(row.state_ids)]
        features.encode(pointing if "mask_pixel_values" in inputs else ())
        predictions = []
        for row, number, image, text in zip(rows, part, images, texts, strict=True):
            example = assembly.examples[number]
            source = assembly.sources[example.images[0]] if example.images else None
            mine = features.get(image) if example.images else None
            answer = self.processor.parse(row.ids, None if source is None else source.rgb.shape[:2])
            regions = []
            if source is not None:
                size = source.rgb.shape[:2]
                boxes = self._boxes_of(row, mine, size)
                logits, iou, presence = self._masks_of(row, mine, size, guides(answer, boxes))
                regions = pointed_at(answer, text, size, logits, iou, presence, boxes, threshold)
                if self.calibration is not None:
                    # A box around a mask has another law than one that a [BOX] gave; `apply` knows.
                    regions = [self.calibration.apply(region, image_size_hw=size) for region in regions]
            timing = {"answer": (answered - begin) / len(rows)}
            geometry = None if source is None else source.geometry
            predictions.append(
                Prediction(
                    answer.text,
                    tuple(regions),
                    geometry,
                    timing,
                    self._reference(),
                    self.processor.raw_text(row.ids),
                    None if source is None else source.source,
                )  # fmt: skip
            )
        fraction = (time.perf_counter() - answered) / len(rows)
        for prediction in predictions:
            prediction.timing_s["regions"] = fraction
        return predictions

    def _boxes_of(self, generated: Generated, features: MaskFeatures | None, size) -> list[tuple]:
        """(box xyxy in pixels, standard deviation or None, confidence) per [BOX].

        Confidence is the probability of the token, times the overlap to be expected if the spread is right: each side
        is off by its mean error (a Laplace law's, std over root 2), and each loses that share of the overlap.
        """
        if self.box_head is None:
            return []
        found = [
            (state, probability)
            for state, token, probability in zip(
                generated.states, generated.state_ids, generated.probabilities, strict=False
            )
            if token == self.config.box_token_id
        ]
        if not found:
            return []
        states = torch.stack([state for state, _ in found])
        predicted = self.boxes_of(states, features, torch.zeros(len(states), dtype=torch.long, device=states.device))
        unit = torch.from_numpy(self.processor.frame(size).box_unit_px)
        edge = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
        boxes = torch.minimum((predicted.boxes_xyxy.float().cpu() * unit).clamp(min=0), edge).tolist()
        stds, overlap = [None] * len(boxes), [1.0] * len(boxes)
        if predicted.std is not None:
            stds = [tuple(std) for std in (predicted.std.float().cpu() * unit).tolist()]
            overlap = torch.exp(-4 / 2**0.5 * predicted.uncertainty().float()).tolist()
        return [
            (tuple(box), std, probability * fraction)
            for box, std, fraction, (_, probability) in zip(boxes, stds, overlap, found, strict=True)
        ]

    def _reference(self) -> str:
        return self.config._name_or_path or type(self).__name__


def _watch_part(watch, part: Sequence[int], row: int, generated: Generated) -> None:
    watch(part[row], generated)
