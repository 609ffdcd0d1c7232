"""A multimodal language model that reads an image and points at what it says."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from unimed.models.backbones.vision_language import LanguageBackbone, build_backbone
from unimed.models.connectors import build_connector
from unimed.models.connectors.modeling import ConnectorOutput
from unimed.models.grounded.configuration import GroundedConfig
from unimed.models.grounded.decoding import GroundedDecoding
from unimed.models.grounded.layout import ImageLayout
from unimed.models.grounded.native import NativeForward
from unimed.models.grounded.output import GroundedOutput
from unimed.models.grounded.predicting import GroundedPredictor
from unimed.models.grounded.token_losses import token_losses
from unimed.models.heads.mask import MaskFeatures, MaskOutput, PromptProjection, build_mask_decoder, concatenate
from unimed.models.lora import add_lora
from unimed.models.weights import WholeWeights

NO_CONNECTOR = "a backbone that runs through its own forward pass keeps its own projector"


class GroundedMLLM(NativeForward, GroundedDecoding, GroundedPredictor, WholeWeights, PreTrainedModel):
    """Backbone, connector, and heads that read the hidden states of [SEG] and [BOX].

    Sources: Sa2VA (arXiv 2501.04001) and UniBiomed (arXiv 2504.21336) for [SEG] on SAM2; Uni-Med for the connector
    slot; uMedGround for [BOX]. Presence is ours.
    """

    config_class = GroundedConfig
    base_model_prefix = "grounded"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    #: Task of predictions where the connector routes by task; see `routed_as`.
    routing_task: str | None = None

    def __init__(self, config: GroundedConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config, config.native)
        self.mask_head = None
        if config.mask_config is not None:
            if hasattr(config.mask_config, "token_dim") and not isinstance(self.backbone, LanguageBackbone):
                config.mask_config.token_dim = self.backbone.hidden_dim
            self.mask_head = build_mask_decoder(config.mask_config)
        dim = self.backbone.hidden_dim
        self.reads_mask_encoder = isinstance(self.backbone, LanguageBackbone)
        #: Whether the mask decoder looks at the image tokens of the backbone.
        self.shares_tokens = (
            self.mask_head is not None and self.mask_head.reads_image_tokens and not self.reads_mask_encoder
        )
        self.connector = None
        if config.connector is not None:
            if self.backbone.native:
                raise ValueError(f"{NO_CONNECTOR}; leave `connector` out")
            vision_dim = self.mask_head.embedding_dim if self.reads_mask_encoder else self.backbone.vision_dim
            self.connector = build_connector(dict(config.connector), vision_dim, dim)
            if not self.reads_mask_encoder:
                self.backbone.drop_projector()
        elif self.reads_mask_encoder:
            raise ValueError(
                "a backbone without a vision part needs a connector, for example {'projector_type': 'mlp2x_gelu'}"
            )
        if config.vision_standardized and self.reads_mask_encoder:
            self.register_buffer("vision_mean", torch.zeros(self.mask_head.embedding_dim))
            self.register_buffer("vision_deviation", torch.ones(self.mask_head.embedding_dim))
        self.seg_projection = None if self.mask_head is None else PromptProjection(dim, self.mask_head.prompt_dim)
        self.presence_head = nn.Linear(dim, 1) if config.presence_head else None
        self.box_head = None
        if config.box_head is not None:
            from unimed.models.heads.box import BoxMlp
            from unimed.models.heads.box_heads import build_box_head

            options = dict(config.box_head)
            width = self.mask_head.prompt_dim if config.box_decoder else dim
            self.box_head = build_box_head(options.pop("kind"), width, **options)
            if config.language_box_head:
                self.language_box_head = BoxMlp(self.mask_head.prompt_dim)
        self.post_init()
        if config.language_tuning != "full":
            self.language_model.requires_grad_(False)
            self.lm_head.requires_grad_(False)
        if config.language_tuning == "lora":
            add_lora(self.language_model, config.lora or {})
        #: Names of the parameters that the configuration freezes; loading forgets it.
        self.frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers does; parts that the configuration freezes stay frozen (loading forgets it).

        `use_flash_attn=True`, which scripts for the published code pass, asks for flash attention where it is there.
        """
        if kwargs.pop("use_flash_attn", False) and is_flash_attn_2_available():
            kwargs.setdefault("attn_implementation", "flash_attention_2")
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if hasattr(model.mask_head, "freeze"):
            model.mask_head.freeze()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in model.frozen)
        return loaded

    def _init_weights(self, module):
        super()._init_weights(module)
        # Buffers that are not in the checkpoint hold garbage after loading until somebody fills them.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def replace_connector(self, connector: dict) -> None:
        """Put a new, untrained connector in the place of the present one.

        Raises:
            ConnectorError: see `build_connector`.
            ValueError: the backbone keeps its own projector.
        """
        if self.backbone.native:
            raise ValueError(NO_CONNECTOR)
        vision_dim = self.connector.vision_dim if self.connector is not None else self.backbone.vision_dim
        if self.connector is None:
            self.backbone.drop_projector()
        self.connector = build_connector(dict(connector), vision_dim, self.backbone.hidden_dim)
        self.config.connector = self.connector.settings
        if self.backbone.vision_tokens is not None:
            self.processor.tokens_per_tile = self.connector.num_tokens(self.backbone.vision_tokens)

    # -- parts the decoding loop needs -------------------------------------------------------------------------
    @property
    def language_model(self):
        return self.backbone.language_model

    @property
    def lm_head(self):
        return self.backbone.lm_head

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        return self.language_model.get_input_embeddings()(ids)

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.lm_head

    # -- image side ---------------------------------------------------------------------------------------------
    def image_tokens(self, pixels=None, features: MaskFeatures | None = None, task=None, image_grid_thw=None):
        """Image tokens [T, N, D] and the connector's auxiliary loss (None without one); see `connect`."""
        connected = self.connect(pixels, features, task, image_grid_thw)
        return connected.tokens, connected.auxiliary_loss

    def connect(
        self, pixels=None, features: MaskFeatures | None = None, task=None, image_grid_thw=None
    ) -> ConnectorOutput:
        """Image tokens [T, N, D], and what the connector says of its experts.

        `pixels` [T, 3, H, W] are the tiles of the backbone; a backbone without a vision part reads `features` of the
        mask head instead, pooled to the grid of the configuration. A backbone that reads images in their own aspect
        ratio takes patches [P, K] with `image_grid_thw` [I, 3] and gives [1, N, D], all images one after the other.
        """
        if self.reads_mask_encoder:
            vision = self.pooled_features(features)
            if self.config.vision_standardized:
                vision = (vision - self.vision_mean) / self.vision_deviation
        elif self.connector is None:
            return ConnectorOutput(self.backbone.image_tokens(pixels, image_grid_thw))
        else:
            vision = self.backbone.vision_features(pixels, image_grid_thw)
            vision = vision.to(next(self.connector.parameters()).dtype)
        if task is None and self.connector.needs_task:
            task = self.routing_task
        if image_grid_thw is not None and task is not None and not isinstance(task, str):
            return self._connect_each(vision[0], task, image_grid_thw)
        return self.connector(vision, task)

    def pooled_features(self, features: MaskFeatures) -> torch.Tensor:
        """Features of the mask head for I images as [I, grid * grid, C], where image tokens come from there."""
        return F.adaptive_avg_pool2d(features.embedding, self.config.vision_grid).flatten(2).transpose(1, 2)

    def _connect_each(self, vision: torch.Tensor, task: torch.Tensor, image_grid_thw: torch.Tensor) -> ConnectorOutput:
        """As `connect` where images of several sizes and tasks follow one another in `vision` [N, Dv]."""
        patches = image_grid_thw.prod(dim=1)
        sizes = (patches * len(vision) // patches.sum()).tolist()
        parts = [self.connector(part[None], task[i : i + 1]) for i, part in enumerate(vision.split(sizes))]
        losses = [part.auxiliary_loss for part in parts if part.auxiliary_loss is not None]
        routing = None
        if parts[0].routing is not None:
            routing = torch.cat([part.routing.mean(dim=1, keepdim=True) for part in parts])
        tokens = torch.cat([part.tokens for part in parts], dim=1)
        return ConnectorOutput(tokens, routing, torch.stack(losses).mean() if losses else None)

    @contextlib.contextmanager
    def routed_as(self, task: str):
        """Inside, predictions are made as of this task; for connectors that route by task (`connector.needs_task`).

        Raises:
            ConnectorError: the connector does not know the task.
        """
        if self.connector is not None and self.connector.needs_task:
            self.connector.task_ids([task])
        previous, self.routing_task = self.routing_task, task
        try:
            yield self
        finally:
            self.routing_task = previous

    def merge(self, input_ids: torch.Tensor, image_tokens: torch.Tensor | None) -> torch.Tensor:
        """Embeddings of `input_ids` [B, L] with every image token id replaced, in reading order.

        Raises:
            ValueError: the ids ask for another number of image tokens than there are.
        """
        places = input_ids == self.config.image_token_id
        # The image token of some tokenizers is an id of its own that no embedding has.
        embeds = self.embed_tokens(input_ids.masked_fill(places, 0))
        count = 0 if image_tokens is None else image_tokens.shape[:-1].numel()
        if int(places.sum()) != count:
            raise ValueError(f"the text holds {int(places.sum())} image tokens, the images give {count}")
        if count == 0:
            return embeds
        return embeds.masked_scatter(places[..., None], image_tokens.to(embeds.dtype))

    # -- training -------------------------------------------------------------------------------------------------
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        mask_features: MaskFeatures | None = None,
        mask_pixel_values: torch.Tensor | None = None,
        layout: ImageLayout | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        task: torch.Tensor | None = None,
        return_logits: bool = True,
        mask_boxes: torch.Tensor | None = None,
        native: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ) -> GroundedOutput:
        """One teacher-forced pass.

        Args:
            input_ids: [B, L], padded on either side.
            attention_mask: [B, L], or bool [B, 1, L, L] where several sequences share a row.
            pixel_values: [T, 3, H, W] tiles in reading order (patches with `image_grid_thw` [I, 3] for backbones that
                read them so); or `image_tokens` [.., D] computed before.
            mask_pixel_values: [I, 3, S, S] images for the mask head; or `mask_features` computed before.
            layout: which image stands where and which one a row speaks of; by default row i shows and speaks of image
                i, where it shows one, and its tokens stand in order.
            labels: [B, L], -100 where no loss is taken.
            task: ids of the tasks [N] of samples (of images or tiles without `layout`), for connectors that route.
            mask_boxes: [M, 4] xyxy in pixels of the mask head's square, one per wanted mask, for decoders that learn
                to take boxes (`box_masks`).
            native: inputs of a backbone that runs through its own forward pass, beside its ids.
            return_logits: False leaves out the [B, L, V] logits; the loss reads only labelled places.
        """
        if mask_features is None and mask_pixel_values is not None:
            mask_features = self.mask_head.encode(mask_pixel_values)
        if layout is not None:
            layout = layout.to(input_ids.device)
        if self.backbone.native:
            return self._forward_native(
                input_ids,
                attention_mask,
                native,
                layout,
                labels,
                mask_features,
                mask_boxes,
                return_logits,
                position_ids,
            )
        embeds, position_ids, connected = self.embed(
            input_ids, attention_mask, pixel_values, image_grid_thw, image_tokens, mask_features, layout, task,
            position_ids,
        )  # fmt: skip
        if attention_mask is not None and attention_mask.ndim == 4:
            # Every attention implementation adds a mask of numbers; not all know one of booleans.
            hidden_from = torch.finfo(embeds.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=embeds.dtype).masked_fill(
                ~attention_mask, hidden_from
            )
        hidden = self.language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        output = GroundedOutput(hidden=hidden)
        if connected is not None:
            output.auxiliary_loss, output.routing = connected.auxiliary_loss, connected.routing
            output.image_tokens = connected.tokens
        if return_logits:
            output.logits = self.lm_head(hidden)
        if labels is not None:
            wanted = labels[:, 1:] != -100
            tokens = token_losses(self.lm_head, hidden[:, :-1][wanted], labels[:, 1:][wanted])
            self._language_loss(output, tokens, labels, wanted, layout)
        if self.shares_tokens and mask_features is not None and (connected is not None or image_tokens is not None):
            flat = (image_tokens if connected is None else connected.tokens).flatten(0, -2)
            known = self.tokens_by_image(flat, layout, image_grid_thw, input_ids)
            tokens = tuple(known.get(image) for image in range(len(mask_features)))
            mask_features = replace(mask_features, tokens=tokens)
        self._point(output, input_ids, labels, mask_features, layout, mask_boxes)
        return output

    def _language_loss(self, output: GroundedOutput, tokens, labels, wanted, layout) -> None:
        """The mean of the losses of `tokens` [N] at `wanted` [B, L - 1], and that of each sample."""
        output.loss = tokens.mean() if len(tokens) else output.hidden.sum() * 0.0
        owner = torch.nonzero(wanted)[:, 0]
        if layout is not None and layout.sample_of_token is not None:
            owner = layout.sample_of_token[:, 1:][wanted]
        count = len(labels) if layout is None else len(layout.per_sample)
        label_counts = torch.bincount(owner, minlength=count).clamp(min=1)
        output.sample_losses = tokens.new_zeros(count).index_add(0, owner, tokens) / label_counts

    def tokens_by_image(self, flat: torch.Tensor, layout, image_grid_thw, input_ids) -> dict[int, torch.Tensor]:
        """Image -> its tokens, of the tokens [N, D] of all encoded images one after the other.

        Without a layout row i shows image i. The first encoding of an image that is encoded twice is taken.
        """
        if layout is None or not len(layout.encoded):
            places = input_ids == self.config.image_token_id
            images = torch.nonzero(places.any(dim=1))[:, 0].tolist()
            counts = places.sum(dim=1)[images].tolist()
        else:
            images = layout.encoded.tolist()
            sizes = layout.tiles if image_grid_thw is None else image_grid_thw.prod(dim=1)
            counts = (sizes * len(flat) // sizes.sum()).tolist()
        known: dict[int, torch.Tensor] = {}
        for image, part in zip(images, flat.split(counts), strict=True):
            known.setdefault(image, part)
        return known

    def embed(
        self, input_ids, attention_mask, pixel_values=None, image_grid_thw=None, image_tokens=None,
        mask_features: MaskFeatures | None = None, layout: ImageLayout | None = None, task=None, position_ids=None,
    ):  # fmt: skip
        """Embeddings [B, L, D] of text and images, positions (None for their order), and the connector's output.

        Arguments are those of `forward`.
        """
        connected = None
        places = input_ids == self.config.image_token_id
        if image_tokens is None and (pixel_values is not None or bool(places.any())):
            seen = None
            if layout is not None and isinstance(task, torch.Tensor):
                task = layout.per_tile(task)
            if self.reads_mask_encoder:
                if mask_features is None:
                    raise ValueError("this model reads images through its mask head: give mask_pixel_values")
                index = torch.nonzero(places.any(dim=1))[:, 0] if layout is None else layout.encoded
                task = task[index] if layout is None and isinstance(task, torch.Tensor) else task
                seen = MaskFeatures(mask_features.embedding[index])
            connected = self.connect(pixel_values, seen, task, image_grid_thw)
            image_tokens = connected.tokens
        if layout is not None and layout.token_index is not None:
            image_tokens = image_tokens.flatten(0, -2)[layout.token_index]
        if position_ids is None:
            grids = image_grid_thw
            if grids is not None and layout is not None:
                grids = grids[layout.shown]
            per_row = None if layout is None else layout.per_sample
            position_ids = self.backbone.position_ids(input_ids, attention_mask, grids, per_row)
        return self.merge(input_ids, image_tokens), position_ids, connected

    def _point(
        self, output: GroundedOutput, input_ids, labels, features: MaskFeatures | None, layout, mask_boxes=None
    ) -> None:
        """Masks, presence and boxes of the [SEG] and [BOX] of a batch."""
        if layout is None:
            image_of_token = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)
        else:
            image_of_token = layout.image_of_token(input_ids)
        seg = input_ids == self.config.seg_token_id
        if features is not None and bool(seg.any()):
            states = self.prompting_states(output.hidden, seg)
            prompts = self.seg_projection(states)
            several = layout is not None and layout.seg_of_mask is not None
            if several and self.mask_head.reads_volumes:
                output.masks = self._stacked_masks(features, layout, prompts)
            if several:
                index, prompts = layout.image_of_mask, prompts[layout.seg_of_mask]
            else:
                index = image_of_token[seg]
            if output.masks is None:
                output.masks = self.mask_head.decode(features, index, prompts)
            if self.mask_head.learns_boxes and mask_boxes is not None:
                output.box_masks = self.mask_head.decode_boxes(features, index, mask_boxes)
                if self.mask_head.guided_by_boxes:
                    output.guided_masks = self.mask_head.decode(features, index, prompts, mask_boxes)
            if self.presence_head is not None:
                output.presence_logits = self.presence_head(states)[:, 0]
        if self.box_head is not None and self.config.box_token_id is not None:
            box = input_ids == self.config.box_token_id
            if labels is not None:
                # Where [BOX] is no token of its own, its first piece may also stand in a question.
                box &= labels != -100
            if bool(box.any()) and not (self.config.box_decoder and features is None):
                states = self.prompting_states(output.hidden, box)
                output.boxes = self.boxes_of(states, features, image_of_token[box])
                if self.config.language_box_head:
                    output.language_boxes = self.language_box_head.raw(self.seg_projection(states))

    def _stacked_masks(self, features: MaskFeatures, layout, prompts: torch.Tensor) -> MaskOutput | None:
        """Masks of every [SEG] in all frames it speaks of, the frames of each seen together."""
        outputs = []
        for seg, prompt in enumerate(prompts):
            frames = layout.image_of_mask[layout.seg_of_mask == seg]
            if not len(frames):
                continue
            outputs.append(self.mask_head.decode_stack(features.pixels[frames], prompt[None]))
        return concatenate(outputs) if outputs else None

    def prompting_states(self, hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """States [N, D] that stand for the tokens at `places` [B, L] of `hidden` [B, L, D]."""
        if self.config.prompt_state == "before":
            places = torch.cat([places[:, 1:], torch.zeros_like(places[:, :1])], dim=1)
        return hidden[places]

    def boxes_of(self, states: torch.Tensor, features: MaskFeatures | None, image_index: torch.Tensor):
        """`BoxPrediction` of N states [N, D] that belong to images `image_index` [N]."""
        if not self.config.box_decoder:
            return self.box_head(states)
        if features is None:
            raise ValueError("a model with box_decoder needs the image of the mask head for its boxes")
        return self.box_head(self.mask_head.decode_tokens(features, image_index, self.seg_projection(states)))
