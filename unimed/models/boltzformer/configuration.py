"""Sizes and switches of a BoltzFormer model; the defaults are those of the published BiomedParse v2 weights."""

from __future__ import annotations

from transformers import PretrainedConfig

from unimed.models import foreign

ATTENTION_MODES = ("sample", "expectation", "masked")
COMPATIBILITY = (None, "reference")
CHANNELS = ("slices", "rgb")
_V2 = {"soft tissue": (40, 400), "lung": (-160, 1500), "brain": (40, 80), "bone": (400, 1800)}
#: CT windows, site -> (level, width) in Hounsfield units, that the published v2 weights were trained with.
V2_WINDOWS_HU = {
    **_V2,
    **dict.fromkeys(("abdomen", "pelvis", "liver", "kidney", "pancreas", "colon", "heart", "neck"), _V2["soft tissue"]),
    **dict.fromkeys(("chest", "thorax", "thoracic"), _V2["lung"]),
    **dict.fromkeys(("head", "skull base"), _V2["brain"]),
    **dict.fromkeys(("spine", "skeleton", "msk"), _V2["bone"]),
}
#: The same of v1.
V1_WINDOWS_HU = {
    "abdomen": (50, 400),
    "lung": (0, 2000),
    "pelvis": (72.5, 255),
    "liver": (102.5, 255),
    "colon": (59.5, 255),
    "pancreas": (50, 300),
}


class BoltzFormerConfig(PretrainedConfig):
    """Configuration of `BoltzFormerModel`.

    Args:
        embed_dim, depths, focal_levels, focal_windows: FocalNet backbone, one entry per stage.
        drop_path_rate, layer_scale: share of residual branches left out in training; their first scale.
        hidden_size: width of pixel decoder, mask features and decoder; a multiple of `norm_groups`.
        encoder_layers, decoder_layers, num_heads, ffn_size: transformer sizes.
        num_queries: query maps per prompt, the last `edge_queries` of which draw edges.
        sample_ratio: draws per image position; base_temperature: temperature before the first layer.
        attention: "sample" (Boltzmann, as trained), "expectation" (each position weighted by its probability to be
            kept: deterministic), "masked" (positions below `mask_threshold` blocked, without sampling).
        mask_threshold: probability from which on a position is always seen; None: 1.1 (never), or 0.5 if "masked".
        compat: None: padded text tokens are masked, so that a prompt's result does not depend on its neighbours.
            "reference": they take part in attention as zeros, as published.
        image_size: side that images are brought to, in pixels.
        channels: what the three channels hold: "slices" (a slice, the one before, the one after), or "rgb".
        learned_upsampling: masks of twice the resolution from all queries and the image; no published weights have it.
        detach_existence: the existence loss reaches its own layers alone, as published. False lets it teach the rest of
            the model too, which a small model needs to tell absent from present.

        ct_windows: site -> (level, width) in HU that the weights were trained with.

    Raises:
        ValueError: unknown `attention`, `compat` or `channels`, or `edge_queries` that leave no query for the object.
    """

    model_type = "unimed_boltzformer"
    published_windows = V2_WINDOWS_HU

    def __init__(
        self,
        embed_dim=192,
        depths=(2, 2, 18, 2),
        focal_levels=(4, 4, 4, 4),
        focal_windows=(3, 3, 3, 3),
        drop_path_rate=0.3,
        layer_scale=1e-4,
        hidden_size=512,
        norm_groups=32,
        encoder_layers=6,
        decoder_layers=9,
        num_heads=8,
        ffn_size=2048,
        num_queries=16,
        edge_queries=4,
        sample_ratio=0.1,
        base_temperature=1.0,
        mask_threshold=None,
        attention="sample",
        compat=None,
        text_vocab_size=49408,
        text_hidden_size=512,
        text_layers=12,
        text_heads=8,
        text_length=77,
        image_size=512,
        channels="slices",
        learned_upsampling=False,
        detach_existence=True,
        ct_windows=None,
        **kwargs,
    ):
        if attention not in ATTENTION_MODES:
            raise ValueError(f"attention {attention!r} is unknown; use one of {ATTENTION_MODES}")
        if compat not in COMPATIBILITY:
            raise ValueError(f"compat {compat!r} is unknown; use one of {COMPATIBILITY}")
        if channels not in CHANNELS:
            raise ValueError(f"channels {channels!r} is unknown; use one of {CHANNELS}")
        if not 0 <= edge_queries < num_queries:
            raise ValueError(f"edge_queries must be in 0..{num_queries - 1}, got {edge_queries}")
        self.embed_dim, self.depths = embed_dim, list(depths)
        self.focal_levels, self.focal_windows = list(focal_levels), list(focal_windows)
        self.drop_path_rate, self.layer_scale = drop_path_rate, layer_scale
        self.hidden_size, self.norm_groups = hidden_size, norm_groups
        self.encoder_layers, self.decoder_layers = encoder_layers, decoder_layers
        self.num_heads, self.ffn_size = num_heads, ffn_size
        self.num_queries, self.edge_queries = num_queries, edge_queries
        self.sample_ratio, self.base_temperature = sample_ratio, base_temperature
        if mask_threshold is None:
            mask_threshold = 0.5 if attention == "masked" else 1.1
        self.mask_threshold, self.attention, self.compat = mask_threshold, attention, compat
        self.text_vocab_size, self.text_hidden_size = text_vocab_size, text_hidden_size
        self.text_layers, self.text_heads, self.text_length = text_layers, text_heads, text_length
        self.image_size, self.channels = image_size, channels
        self.learned_upsampling, self.detach_existence = learned_upsampling, detach_existence
        table = self.published_windows if ct_windows is None else ct_windows
        self.ct_windows = {site: list(window) for site, window in table.items()}
        super().__init__(**foreign.clean(kwargs))

    @classmethod
    def tiny(cls, **changes) -> BoltzFormerConfig:
        """A model of about a million parameters, for tests and for learning on a CPU."""
        sizes = dict(
            embed_dim=16,
            depths=(1, 1, 2, 1),
            drop_path_rate=0.0,
            layer_scale=1.0,
            hidden_size=64,
            encoder_layers=2,
            decoder_layers=4,
            num_heads=4,
            ffn_size=96,
            num_queries=6,
            edge_queries=2,
            text_vocab_size=128,
            text_hidden_size=32,
            text_layers=2,
            text_heads=4,
            text_length=24,
            image_size=96,
        )
        return cls(**(sizes | changes))


class BiomedParseV1Config(BoltzFormerConfig):
    """Configuration of `BiomedParseV1Model`; the defaults are those of the published v1 weights.

    Args:
        num_queries: maps per question, one of which each prompt chooses.
        compat: None: every prompt is asked alone. "reference": the prompts of a call are one sequence and influence
            each other, as published.
        others: as in `BoltzFormerConfig`; sampling, edges and existence are not part of v1.
    """

    model_type = "unimed_biomedparse_v1"
    published_windows = V1_WINDOWS_HU

    def __init__(self, num_queries=101, edge_queries=0, attention="masked", image_size=1024, channels="rgb", **kwargs):
        if attention != "masked" or edge_queries:
            raise ValueError("v1 has masked attention and no edge queries")
        super().__init__(
            num_queries=num_queries,
            edge_queries=edge_queries,
            attention=attention,
            image_size=image_size,
            channels=channels,
            **kwargs,
        )

    @classmethod
    def tiny(cls, **changes) -> BiomedParseV1Config:
        """A model of about a million parameters, for tests."""
        return super().tiny(**({"num_queries": 7, "edge_queries": 0} | changes))
