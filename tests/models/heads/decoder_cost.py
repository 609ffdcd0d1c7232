"""What the light decoder costs beside LiteMedSAM, one image and four phrases at 128 px on one CPU thread.

Run `python tests/models/heads/decoder_cost.py`; prints median [smallest, largest] CPU milliseconds of 20 runs.
"""

import statistics
import time
from dataclasses import replace

import torch

from unimed.models.heads.light import LightMaskConfig
from unimed.models.heads.mask import build_mask_decoder
from unimed.models.heads.medsam_lite import MedSamLiteConfig

RUNS, TOKENS, TOKEN_DIM = 20, 256, 256


@torch.no_grad()
def cost(config):
    """(parameters, CPU seconds of encoding, of decoding) of a decoder with random weights."""
    decoder = build_mask_decoder(config).eval()
    pixels, prompts = torch.rand(1, 3, 128, 128), torch.randn(4, decoder.prompt_dim)
    index, tokens = torch.zeros(4, dtype=torch.long), (torch.randn(TOKENS, TOKEN_DIM),)
    encoding, decoding = [], []
    for _ in range(RUNS + 1):
        begin = time.process_time()
        features = decoder.encode(pixels)
        encoded = time.process_time()
        if decoder.reads_image_tokens and config.token_dim:
            features = replace(features, tokens=tokens)
        decoder.decode(features, index, prompts)
        encoding.append(encoded - begin)
        decoding.append(time.process_time() - encoded)
    # The first run warms up.
    return sum(weight.numel() for weight in decoder.parameters()), encoding[1:], decoding[1:]


def main():
    torch.set_num_threads(1)
    examples = {
        "light": LightMaskConfig(),
        "light, 256 image tokens": LightMaskConfig(token_dim=TOKEN_DIM),
        "medsam_lite": MedSamLiteConfig(),
    }
    for name, config in examples.items():
        parameters, *spent = cost(config)
        shown = [f"{statistics.median(s) * 1e3:.1f} [{min(s) * 1e3:.1f}, {max(s) * 1e3:.1f}]" for s in spent]
        print(f"{name}: {parameters:,} parameters, encode {shown[0]} ms, decode four phrases {shown[1]} ms")


if __name__ == "__main__":
    main()
