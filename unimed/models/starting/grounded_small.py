"""Grounded models made from nothing: a tokenizer learnt from the user's own texts, and presets of sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from unimed.io.images import load as load_image
from unimed.models.connectors import named_connector
from unimed.models.grounded.configuration import GroundedConfig, as_config
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.grounded.processing import GroundedProcessor
from unimed.models.heads.medsam_lite import MedSamLiteConfig
from unimed.models.starting.texts import texts_of
from unimed.models.weights import fill
from unimed.tokens import BOX_TOKEN, GROUNDING_TOKENS, IMAGE_PLACEHOLDER, SEG_TOKEN

END, PAD = "<|end|>", "<|pad|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int = 1500) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of these texts; any other text still has a spelling, byte by byte.

    Args:
        vocabulary: most entries, special tokens included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: numbers in reports are read, not memorised.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, END, IMAGE_PLACEHOLDER, *GROUNDING_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[IMAGE_PLACEHOLDER, *GROUNDING_TOKENS],
    )


def build_small(
    texts: Iterable[str] | str,
    *,
    image_size: int = 128,
    hidden_dim: int = 256,
    layers: int = 3,
    heads: int = 4,
    vision_grid: int = 4,
    vocabulary: int = 1500,
    connector: str | Mapping = "mlp2x_gelu",
    box_head: str | Mapping | None = "point",
    mask_config: PreTrainedConfig | Mapping | None = None,
    mask_width: int = 64,
    prompt_scales: int = 1,
    dialect: str | Mapping | None = None,
    seed: int = 0,
) -> GroundedMLLM:
    """A model of a few million parameters whose language part starts from nothing.

    Args:
        texts: questions and answers it will see, or a file of records; the tokenizer is learnt from them.
        image_size: side of the square LiteMedSAM sees, 128 or 256.
        vision_grid: the image becomes `vision_grid`² tokens.
        connector, box_head: name, or arguments of `build_connector` and `build_box_head`.
        mask_config: configuration of the mask decoder, or its values with the `model_type`; LiteMedSAM's by default.
        mask_width: channels of LiteMedSAM's decoder for language vectors, a multiple of 32. It is most of the cost of a
            step, and 96 doubles it.
        prompt_scales: of LiteMedSAM's decoder for language vectors: at how many of its three scales the words count.
        dialect: how questions are worded and boxes written; see `unimed.models.dialects`.
    """
    tokenizer = train_tokenizer(texts_of(texts), vocabulary)
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_dim,
        intermediate_size=4 * hidden_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        # transformers' 0.02 is made for widths of thousands: so narrow a model then takes several times the steps until
        # it looks at the image at all.
        initializer_range=hidden_dim**-0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    mask_config = as_config(mask_config) or MedSamLiteConfig(
        image_size=image_size, text_width=mask_width, prompt_scales=prompt_scales
    )
    torch.manual_seed(seed)
    model = GroundedMLLM(_config(language, tokenizer, mask_config, connector, box_head, vision_grid))
    model.processor = _processor(tokenizer, model.mask_head.image_size, vision_grid, "question_answer", dialect)
    return model


@torch.no_grad()
def standardize_vision(model: GroundedMLLM, images: Sequence) -> None:
    """Measure mean and deviation of the channels that `vision_standardized` divides out.

    Args:
        images: paths or arrays, some of those the model will be trained on.

    Raises:
        ValueError: no image is given.
        ImageError, ReadError: one that cannot be read.
    """
    if not len(images):
        raise ValueError("no image to measure features on")
    parts, training = [], model.training
    model.eval()
    for image in images:
        pixels = model.processor.mask_pixels(load_image(image).rgb)[None].to(model.device)
        parts.append(model.pooled_features(model.mask_head.encode(pixels)).flatten(0, 1).float())
    model.train(training)
    features = torch.cat(parts)
    model.vision_mean.copy_(features.mean(dim=0))
    # A channel that never changes stays as small as it is.
    model.vision_deviation.copy_(features.std(dim=0, correction=0).clamp(min=1e-3))


def build_tiny(texts: Iterable[str] = (), *, image_size: int = 128, vocabulary: int = 600, seed: int = 0):
    """InternVL on SAM 2 with a few thousand parameters each and random weights: the big models' code in seconds.

    Args:
        texts: the tokenizer is learnt from them; every other text is spelled byte by byte.
        image_size: side of the square SAM 2 sees, a multiple of 128.
    """
    from transformers import InternVLConfig

    from unimed.models.checkpoints.sam2 import sam2_video_config

    tokenizer = train_tokenizer(texts, vocabulary)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    text = dict(
        model_type="qwen2", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56)
    config = GroundedConfig(
        backbone_config=InternVLConfig(
            vision_config=vision, text_config=text, image_token_id=image_id, tie_word_embeddings=False
        ),
        mask_config=sam2_video_config(
            16, [1, 1, 2, 1], 1, [3], [8, 4, 4, 4], [7, 7],
            hidden_dim=64, image_size=image_size, memory_layers=1, memory_feed_forward=64, memory_dim=64,
            decoder_mlp=64, iou_hidden=32,
        ),
        presence_head=False,
        image_token_id=image_id,
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = GroundedMLLM(config)
    model.processor = GroundedProcessor(
        tokenizer,
        template="phi3_chat",
        image_start="",
        image_token=IMAGE_PLACEHOLDER,
        image_end="",
        tokens_per_tile=4,
        tile_size=56,
        max_tiles=4,
        mask_size=image_size,
        max_prompt_tokens=2000,
    )
    return model


def build_on_language_model(
    language_model,
    tokenizer,
    *,
    template: str = "qwen_chat",
    image_size: int = 128,
    vision_grid: int = 8,
    connector: str | Mapping = "mlp2x_gelu",
    box_head: str | None = "point",
    seed: int = 0,
) -> GroundedMLLM:
    """A grounded model around a pretrained causal language model, such as SmolLM2-135M-Instruct.

    The grounding tokens are added to its tokenizer, and its embeddings grow by as many rows.

    Args:
        language_model: `LlamaForCausalLM` or its like; its weights are taken over.
        template: the chat template it was trained with (ChatML is "qwen_chat").
    """
    tokenizer.add_tokens([IMAGE_PLACEHOLDER, *GROUNDING_TOKENS], special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    mask_config = MedSamLiteConfig(image_size=image_size)
    torch.manual_seed(seed)
    model = GroundedMLLM(_config(language_model.config, tokenizer, mask_config, connector, box_head, vision_grid))
    fill(model.backbone.lm, language_model.state_dict(), "the language model")
    model.processor = _processor(tokenizer, model.mask_head.image_size, vision_grid, template)
    return model


def _config(language, tokenizer, mask_config, connector, box_head, vision_grid: int) -> GroundedConfig:
    return GroundedConfig(
        backbone_config=language,
        mask_config=mask_config,
        connector=dict(connector) if isinstance(connector, Mapping) else named_connector(connector),
        box_head=_box_head(box_head),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER),
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
        box_token_id=tokenizer.convert_tokens_to_ids(BOX_TOKEN),
        vision_grid=vision_grid,
        vision_standardized=True,
    )


def _box_head(box_head: str | Mapping | None) -> dict | None:
    """Arguments of `build_box_head`; a head by name learns without units that die, where its kind has them."""
    if not isinstance(box_head, str):
        return box_head and dict(box_head)
    options = {"kind": box_head}
    if box_head in ("point", "laplace", "mhp", "umhp", "uncertain"):
        options["activation"] = "gelu"
    return options


def _processor(tokenizer, mask_size: int, vision_grid: int, template: str, dialect=None) -> GroundedProcessor:
    return GroundedProcessor(
        tokenizer,
        template=template,
        image_start="",
        image_token=IMAGE_PLACEHOLDER,
        image_end="",
        tokens_per_tile=vision_grid**2,
        # The image tokens come from the encoder of the mask head: no tiles, values in [0, 1].
        tile_size=0,
        max_tiles=1,
        mask_size=mask_size,
        mask_mean=(0.0, 0.0, 0.0),
        mask_std=(1.0, 1.0, 1.0),
        max_prompt_tokens=1500,
        dialect=dialect,
    )
