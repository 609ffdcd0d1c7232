"""From images and questions to `Prediction`: what users call on a model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import torch

from unimed.chat import as_plain_text
from unimed.io.result import Prediction
from unimed.models.grounded.generation import Generated
from unimed.models.grounded.pointing import guides, pointed_at
from unimed.models.grounded.processing import GroundedProcessor, PromptError
from unimed.models.heads.mask import MaskFeatures, resize_mask_logits
from unimed.models.predictor import Predictor, refuse_regions
from unimed.registry import keywords


class GroundedPredictor(Predictor):
    """Mixin of `GroundedMLLM`: prediction for one, for many, and in the words of UniBiomed."""

    _processor: GroundedProcessor | None = None
    shim_processor = GroundedProcessor
    #: `unimed.metrics.calibration.Calibration` of boxes, masks and presence, or None for the model's own numbers.
    calibration = None
    #: What writes the text of answers about images elsewhere, `unimed.inference.outside_text.OutsideText`; None: here.
    text_from = None

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
        if text is not None and not isinstance(text, str) and len(text) > self.processor.max_phrases:
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
        prompt_lookup_num_tokens: int | None = None,
        answers: Sequence[str | Sequence[int]] | None = None,
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
            prompt_lookup_num_tokens: longest guess of the next tokens from question and earlier answers; the answer is
                the same, sooner. By default that of the model; 0 guesses none.
            answers: what another engine (vLLM, SGLang, a server) wrote of each text with these weights, as text with
                its markers or as ids. Nothing is decoded here: one pass reads the states that point at regions.

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
            told = None
            if answers is None and self.text_from is not None:
                answers = self._outside_answers(assembly, asked, regions, before, max_new_tokens)
            if answers is not None:
                told = [self.processor.answer_ids(answer) for answer in answers]
                for example, ids in zip(assembly.examples, told, strict=True):
                    example.ids += ids
            lengths = [len(example.ids) for example in assembly.examples]
            # Prompts of like length stand together, so that little is padded; drawn answers keep their order.
            order = sorted(range(len(texts)), key=lambda i: lengths[i] if temperature == 0 else i)
            predictions: list = [None] * len(texts)
            for start in range(0, len(texts), batch_size):
                part = order[start : start + batch_size]
                options = dict(max_new_tokens=max_new_tokens, temperature=temperature, generator=generator)
                options["prompt_lookup_num_tokens"] = prompt_lookup_num_tokens
                if told is not None:
                    options["answers"] = [told[i] for i in part]
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

    def _outside_answers(self, assembly, asked, regions, before, most: int) -> list:
        """Answers of `text_from` to (task, text) pairs, about the first image of each example.

        Raises:
            PromptError: regions, or several images of one question, which have no form there.
        """
        if any(given is not None and len(given) for given in regions):
            raise PromptError("regions are image tokens, which a server beside us does not take; ask without them")
        if any(len(example.images) > 1 for example in assembly.examples):
            raise PromptError("text from a server is for questions about one image each")
        images = [assembly.sources[example.images[0]].rgb if example.images else None for example in assembly.examples]
        turns = [
            [*self._earlier(turns, name, image is not None), ("user", text)]
            for turns, (name, text), image in zip(before, asked, images, strict=True)
        ]
        return self.text_from(images, turns, most)

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

    @classmethod
    def volume_options(cls) -> set[str]:
        """Those of `predict_slices` and of `predict_frames`, to which it hands them on."""
        from unimed.models.grounded.frames import predict_frames
        from unimed.models.grounded.volumes import predict_slices

        return keywords(predict_slices, predict_frames)

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

    # -- steps --------------------------------------------------------------------------------------------------
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
