"""Other ways to compute the same, beside what this package does; why it does not take them. Run it as a script:

    python tests/speed_alternatives.py encoder|images|products|eight-bits [TURNS]

encoder     SAM 2.1 tiny on an image of 1024 px: transformers' module, tiles (what runs), OpenVINO in two precisions
images      LiteMedSAM's encoder on sixteen images of 128 px together, and one by one (what runs)
products    matrix products of torch in bfloat16 and float16 against float32
eight-bits  a language model 576 wide with 6 layers in float32, with torchao's eight-bit weights (and activations), and
            with torch's `quantize_dynamic`: a question of 300 tokens, an answer of 16

Random weights, one thread, CPU seconds in turns; a way whose package is missing is left out (`pip install openvino
torchao`). The table goes to standard output.
"""

import copy
import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from unimed.commands.speed_rows import paired  # noqa: E402
from unimed.evaluation.tables import markdown_table  # noqa: E402
from unimed.models.starting.rivals import random_llama, random_sam2  # noqa: E402

READ, WRITTEN = 300, 16


def compared(ways: dict[str, Callable], turns: int) -> dict[str, float]:
    """How many times as fast as the first way each one is: the median of the ratios of turns next to each other."""
    spent = paired(ways, turns)
    first, *_ = (one["cpu_s"] for one in spent.values())
    return {
        name: statistics.median(theirs / ours for theirs, ours in zip(first, one["cpu_s"], strict=True))
        for name, one in spent.items()
    }


def difference(found, expected) -> float:
    """Largest difference as a fraction of the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


@torch.no_grad()
def encoder(turns: int) -> list[dict]:
    from unimed.models.heads import hiera

    head = random_sam2()
    module, decoder = head.sam.vision_encoder, head.sam.mask_decoder
    pixels = torch.randn(1, 3, head.image_size, head.image_size)

    class Maps(torch.nn.Module):
        def forward(self, pixels):
            fine, middle, coarse = module(pixels, return_dict=True).fpn_hidden_states[:3]
            return coarse, decoder.conv_s0(fine), decoder.conv_s1(middle)

        def __init__(self):
            super().__init__()
            self.module, self.decoder = module, decoder

    maps = Maps().eval()
    ways = {"transformers' module": lambda: maps(pixels), "tiles": lambda: hiera.encode(module, decoder, pixels)}
    if importlib.util.find_spec("openvino"):
        import openvino

        converted = openvino.convert_model(maps, example_input=pixels)
        for name, hint in (("float32", "f32"), ("bfloat16", "bf16")):
            told = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
            compiled = openvino.Core().compile_model(converted, "CPU", told)

            def run(compiled=compiled):
                found = compiled([pixels.numpy()])
                return [torch.from_numpy(found[port].copy()) for port in compiled.outputs]

            ways[f"OpenVINO {openvino.__version__.split('-')[0]}, {name}"] = run
    made = {name: way() for name, way in ways.items()}
    expected = made["transformers' module"]
    fast = compared(ways, turns)
    return [
        {"encoder": name, "as fast": fast[name],
         "largest difference": f"{max(map(difference, made[name], expected)):.0e}"} for name in ways
    ]  # fmt: skip


@torch.no_grad()
def images(turns: int) -> list[dict]:
    from unimed.models.heads.medsam_lite import MedSamLiteConfig, MedSamLiteMaskHead

    head, pixels = MedSamLiteMaskHead(MedSamLiteConfig()).eval(), torch.rand(16, 3, 128, 128)
    ways = {"together": lambda: head.encoder(pixels), "one by one": lambda: head.encode(pixels).embedding}
    made, fast = {name: way() for name, way in ways.items()}, compared(ways, turns)
    return [
        {"sixteen images": name, "as fast": fast[name],
         "largest difference": f"{difference(made[name], made['together']):.0e}"} for name in ways
    ]  # fmt: skip


@torch.no_grad()
def products(turns: int) -> list[dict]:
    """Those of SAM 2.1 tiny's third stage, where most of its work is."""
    left, right = torch.randn(1024, 384), torch.randn(384, 1536)
    ways = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        one, other = left.to(dtype), right.to(dtype)
        ways[str(dtype).removeprefix("torch.")] = lambda one=one, other=other: [one @ other for _ in range(50)][-1]
    made, fast = {name: way() for name, way in ways.items()}, compared(ways, turns)
    return [
        {
            "products": name,
            "as fast": fast[name],
            "largest difference": f"{difference(made[name], made['float32']):.0e}",
        }
        for name in ways
    ]


@torch.no_grad()
def eight_bits(turns: int) -> list[dict]:
    model = random_llama(576, 6)
    models = {"float32": model}
    if importlib.util.find_spec("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

        told = {"weights alone": Int8WeightOnlyConfig(), "activations too": Int8DynamicActivationInt8WeightConfig()}
        for name, config in told.items():
            models[f"torchao, {name}"] = changed = copy.deepcopy(model)
            quantize_(changed, config)
    models["torch's quantize_dynamic"] = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {torch.nn.Linear}, torch.qint8
    )
    ids = torch.randint(1, 2000, (1, READ))

    def reading(one):
        return lambda: one(input_ids=ids).logits

    def writing(one):
        kept = one(input_ids=ids, use_cache=True).past_key_values

        def work():
            past, token = copy.deepcopy(kept), ids[:, -1:]
            for _ in range(WRITTEN):
                answer = one(input_ids=token, past_key_values=past, use_cache=True)
                past, token = answer.past_key_values, answer.logits[:, -1:].argmax(-1)

        return work

    expected = reading(model)()
    fast = {kind: compared({name: way(one) for name, one in models.items()}, turns)
            for kind, way in (("reading", reading), ("writing", writing))}  # fmt: skip
    rows = []
    for name, one in models.items():
        logits = reading(one)()
        same = float((logits.argmax(-1) == expected.argmax(-1)).float().mean())
        rows.append({"weights": name, "reading a question": fast["reading"][name],
                     "writing an answer": fast["writing"][name], "logits differ by": difference(logits, expected),
                     "next token the same": same})  # fmt: skip
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = {"encoder": encoder, "images": images, "products": products, "eight-bits": eight_bits}
    if len(sys.argv) < 2 or sys.argv[1] not in chosen:
        sys.exit(__doc__)
    found = chosen[sys.argv[1]](int(sys.argv[2]) if len(sys.argv) > 2 else 5)
    print(markdown_table(found, columns=list(found[0]), command=f"python tests/{Path(__file__).name} {sys.argv[1]}"))
