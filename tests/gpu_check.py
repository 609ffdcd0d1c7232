"""What a machine with CUDA computes, in under ten minutes: `make gpu-check`, or `python tests/gpu_check.py --out DIR`.

Every small model, task and mask decoder answers and learns on the device; strategies run on all GPUs; kernels of
attention, compilation and half precision are compared with plain float32; speed is measured as a share of what the
machine can do. Writes `gpu_check.json` and `gpu_check.md`. Exit codes: 0 all is well, 1 something is not, 3 no CUDA.
`--device cpu` runs the same with small sizes, so that the check itself is checked where no GPU is.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "models" / "grounded"), str(HERE / "models" / "checkpoints")]

import torch  # noqa: E402

NO_DEVICE = 3
#: Seconds after which no further check is begun.
BUDGET_S = 560
CHECKS: dict[str, Callable] = {}


def check(function: Callable) -> Callable:
    """Register a check: (device, full) -> numbers; what it raises is a failure."""
    CHECKS[function.__name__] = function
    return function


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, work: Callable, runs: int = 3) -> float:
    """The least wall time of some runs, after one that warms up."""
    work()
    best = float("inf")
    for _ in range(runs):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference relative to the largest value of `other`."""
    one, other = one.detach().float().cpu(), other.detach().float().cpu()
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def language_model(device, full: bool, layers: int, dtype=torch.float32, attention: str = "sdpa"):
    """Llama-shaped with random weights: of 7B width, cut to some layers, or small."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32) if full else dict(
        hidden_size=64, intermediate_size=128, num_attention_heads=4)  # fmt: skip
    config = LlamaConfig(vocab_size=32000 if full else 200, num_hidden_layers=layers, eos_token_id=None, **width)
    config._attn_implementation = attention
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


@check
def limits(device, full) -> dict:
    """What the machine can do: matrix products and copies of memory."""
    size, found = (8192, {}) if full else (512, {})
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.randn(size, size, device=device, dtype=dtype)
        found[f"{name}_tflops"] = 2 * size**3 / seconds(device, lambda m=matrix: m @ m) / 1e12
    block = torch.empty((2**28 if full else 2**22), device=device, dtype=torch.float32)
    found["copy_gb_per_s"] = 2 * block.numel() * 4 / seconds(device, block.clone) / 1e9
    return found


@check
def models(device, full) -> dict:
    """Every small model answers about images and a volume in three precisions."""
    from models import test_every_model as every

    answered = 0
    for name in every.NAMES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            model = every.build(name).to(dtype).to(device)
            short = dict(max_new_tokens=14) if every.speaks(model) else every.options(model)
            model = every.say(model, every.ANSWER)
            for source in (every.IMAGES[0], (every.ARRAY[:2], every.GRID)):
                model.predict(source, every.question(model), **short).to_dict()
                answered += 1
            if not full:
                break
    return {"models": len(every.NAMES), "answers": answered}


@check
def tasks(device, full) -> dict:
    """One training step of every task, with averaging of losses in three precisions."""
    from tasks import test_every_task as examples

    from unimed.engine.strategy import Strategy
    from unimed.engine.stream import to_device
    from unimed.engine.training import build_collator

    steps = 0
    for make in examples.EXAMPLES.values():
        for precision in ("fp32", "bf16", "fp16")[: 3 if full else 1]:
            task, samples, collator = make()
            strategy = Strategy("single", task.train(), device, precision)
            batch = to_device(build_collator(dict(type=collator), task)(samples), device)
            groups = [{k: v for k, v in group.items() if k != "lr_mult"} for group in task.train_parameters()]
            optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=device.type == "cuda" and precision != "fp16")
            loss = strategy.forward(batch)["loss"]
            if not loss.isfinite():
                raise ValueError(f"{type(task).__name__} {precision}: loss {loss.item()}")
            strategy.backward(loss)
            strategy.finish_gradients(optimizer, 1.0)
            strategy.step(optimizer)
            steps += 1
    return {"tasks": len(examples.EXAMPLES), "steps": steps}


@check
def decoders(device, full) -> dict:
    """Every mask decoder, the same masks as on the CPU up to a tolerance."""
    from small_decoders import DECODER_EXAMPLES

    from unimed.models.heads.mask import build_mask_decoder

    worst = 0.0
    for name, make in DECODER_EXAMPLES.items():
        torch.manual_seed(0)
        decoder = build_mask_decoder(make()).eval()
        pixels, prompts = torch.rand(2, 3, decoder.image_size, decoder.image_size), torch.randn(3, decoder.prompt_dim)
        found = []
        with torch.no_grad():
            for place in ("cpu", device):
                decoder.to(place)
                index = torch.tensor([1, 0, 1], device=place)
                output = decoder.decode(decoder.encode(pixels.to(place)), index, prompts.to(place))
                found.append(output.logits if output.candidates is None else output.candidates)
        apart = distance(found[1], found[0])
        if not apart < 0.02:
            raise ValueError(f"{name}: logits differ by {apart:.1e} of the largest from the CPU's")
        worst = max(worst, apart)
    return {"decoders": len(DECODER_EXAMPLES), "largest_difference": worst}


@check
def full_width_step(device, full) -> dict:
    """A training step at the width of the full-size language models with few layers: tokens/s and share of peak."""
    layers, rows, length = (4, 4, 2048) if full else (1, 2, 32)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = language_model(device, full, layers, dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (rows, length), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    took = seconds(device, step)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name)
    attention = 12 * layers * length * model.config.hidden_size // 2  # causal: half of the pairs
    tflops = (6 * matrices + attention) * rows * length / took / 1e12
    peak = limits(device, full)["bf16_tflops" if dtype == torch.bfloat16 else "fp32_tflops"]
    found = {"tokens_per_s": rows * length / took, "tflops": tflops, "share_of_matrix_peak": tflops / peak}
    if device.type == "cuda":
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


@check
def full_size_vision(device, full) -> dict:
    """Images per second of the largest SAM 2 encoder at full size, in float32 and bfloat16, and how far they differ."""
    from unimed.models.checkpoints.sam2 import HIERA, sam2_video_config
    from unimed.models.heads.sam2 import Sam2MaskHead

    if full:
        head = Sam2MaskHead(sam2_video_config(144, **HIERA[144, 48])).eval().to(device)
    else:
        from small_decoders import DECODER_EXAMPLES

        from unimed.models.heads.mask import build_mask_decoder

        head = build_mask_decoder(DECODER_EXAMPLES["sam2_video"]()).eval().to(device)
    torch.manual_seed(0)
    pixels = torch.rand(4 if full else 1, 3, head.image_size, head.image_size, device=device)
    found, exact = {}, None
    with torch.no_grad():
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            head.to(dtype)
            exact = head.encode(pixels).embedding if exact is None else exact
            found[f"{name}_images_per_s"] = len(pixels) / seconds(device, lambda: head.encode(pixels), runs=2)
        found["bf16_difference"] = distance(head.encode(pixels).embedding, exact)
    if not found["bf16_difference"] < 0.2:
        raise ValueError(f"bfloat16 features differ by {found['bf16_difference']:.2f} of the largest value")
    return found


@check
def attention(device, full) -> dict:
    """Ways of attention against eager: the same hidden states, and seconds."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ways = ["eager", "sdpa"]
    if device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        ways.append("flash_attention_2")
    found, exact = {}, None
    for way in ways:
        model = language_model(device, full, 2, dtype, way)
        ids = torch.arange(model.config.vocab_size, device=device)[: 2048 if full else 32][None]
        with torch.no_grad():
            hidden = model.model(input_ids=ids).last_hidden_state
            exact = hidden if exact is None else exact
            found[f"{way}_ms"] = 1e3 * seconds(device, lambda m=model, i=ids: m.model(input_ids=i))
        found[f"{way}_difference"] = distance(hidden, exact)
        if not found[f"{way}_difference"] < (0.1 if dtype == torch.bfloat16 else 1e-3):
            raise ValueError(f"{way}: hidden states differ by {found[f'{way}_difference']:.1e} from eager")
    if "flash_attention_2" not in ways:
        found["flash_attention_2"] = "not installed"
    return found


@check
def decoding(device, full) -> dict:
    """Our decoding against transformers' `generate`: the same tokens, tokens/s, several questions on one image."""
    from models.grounded.prefix_cost import Model

    from unimed.models.grounded.generation import generate

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lm = language_model(device, full, 4 if full else 2, dtype)
    model, shared, new, rows = Model(lm), *((600, 64, 8) if full else (24, 6, 3))
    begin = torch.randint(1, 200, (shared,), device=device)
    ids = torch.stack([torch.cat([begin, torch.randint(1, 200, (8,), device=device)]) for _ in range(rows)])
    embeds, mask = model.embed_tokens(ids).detach(), torch.ones_like(ids)
    stock = dict(max_new_tokens=new, do_sample=False, pad_token_id=0)
    found = {}
    ours = lambda: generate(model, embeds, mask, keep_states_of=[], max_new_tokens=new, keep_last=False)  # noqa: E731
    with torch.no_grad():
        theirs = lm.generate(inputs_embeds=embeds, attention_mask=mask, **stock).tolist()
        same = sum(row.ids == other[-new:] for row, other in zip(ours(), theirs, strict=True))
        found["rows_with_the_same_tokens"] = same / rows
        for name, work in (
            ("ours", ours),
            ("generate", lambda: lm.generate(inputs_embeds=embeds, attention_mask=mask, **stock)),
            ("generate_static_cache", lambda: lm.generate(
                inputs_embeds=embeds, attention_mask=mask, cache_implementation="static", disable_compile=not full,
                **stock)),
        ):  # fmt: skip
            found[f"{name}_tokens_per_s"] = rows * new / seconds(device, work, runs=2)
    # In bfloat16 two tokens may be equally likely up to rounding.
    if same < (rows if dtype == torch.float32 else rows / 2):
        raise ValueError(f"{rows - same} of {rows} answers differ from transformers' generate")
    return found


@check
def compiled(device, full) -> dict:
    """torch.compile of a language model against eager: difference and gain."""
    if device.type != "cuda":
        return {"skipped": "compiling takes a C++ compiler and minutes on a CPU"}
    model = language_model(device, full, 2, torch.bfloat16)
    ids = torch.randint(0, 200, (1, 512), device=device)
    fast = torch.compile(model.model)
    with torch.no_grad():
        plain, other = model.model(input_ids=ids).last_hidden_state, fast(input_ids=ids).last_hidden_state
        gain = seconds(device, lambda: model.model(input_ids=ids)) / seconds(device, lambda: fast(input_ids=ids))
    if not distance(other, plain) < 0.1:
        raise ValueError(f"compiled hidden states differ by {distance(other, plain):.1e}")
    return {"difference": distance(other, plain), "gain": gain}


@check
def strategies(device, full) -> dict:
    """ddp, fsdp2 and zero on NCCL with every GPU there is (gloo on the CPU): finite losses, whole checkpoints."""
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    names = ["single"] if count == 1 else ["ddp", "fsdp2"]
    names += ["zero2"] if count > 1 and importlib.util.find_spec("deepspeed") else []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            command = [sys.executable, "-m", "unimed.engine.launcher", "--processes", str(count), __file__]
            command += ["--rank-of", name, "--device", device.type, "--out", folder]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
            if done.returncode:
                raise RuntimeError(f"{name} on {count} ranks: {done.stderr.strip()[-400:]}")
            if not list(Path(folder, name).rglob("model.safetensors")):
                raise RuntimeError(f"{name}: no checkpoint was written")
    return {"ranks": count, "strategies": ", ".join(names)}


def one_rank(name: str, device: str, out: Path) -> None:
    """What every rank of `strategies` runs."""
    from engine import tiny

    from unimed.engine import train

    train(tiny.config(max_steps=6, validate_interval=0, batch_size=4, strategy="auto" if name == "single" else name,
                      device="auto" if device == "cuda" else device), out / name)  # fmt: skip


def run(device: torch.device, only=(), budget_s: float = BUDGET_S) -> dict:
    """Every check, each with its result, its seconds, or what went wrong."""
    full = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if full else "CPU, small sizes"
    began, rows = time.perf_counter(), []
    for title, work in CHECKS.items():
        if only and title not in only:
            continue
        row = {"check": title, "what": (work.__doc__ or "").split("\n")[0]}
        started = time.perf_counter()
        if started - began > budget_s:
            rows.append({**row, "state": "left out", "numbers": {"reason": f"{budget_s:.0f} s were used up"}})
            continue
        try:
            row |= {"state": "ok", "numbers": work(device, full)}
        except Exception as error:  # one that fails must not hide the others
            row |= {"state": "FAILED", "numbers": {"error": f"{type(error).__name__}: {str(error)[:400]}"}}
        row["seconds"] = round(time.perf_counter() - started, 1)
        rows.append(row)
        print(f"{title}: {row['state']}, {row['seconds']} s", flush=True)
        if full:
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
    return {
        "device": name,
        "devices": torch.cuda.device_count() if full else 0,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if full else None,
        "seconds": round(time.perf_counter() - began, 1),
        "checks": rows,
    }


def page(report: dict) -> str:
    """The report as markdown."""
    from unimed.evaluation.tables import markdown_table

    def told(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [
        {"check": row["check"], "state": row["state"], "s": row.get("seconds", ""),
         "numbers": "; ".join(f"{key} {told(value)}" for key, value in row["numbers"].items())}
        for row in report["checks"]
    ]  # fmt: skip
    head = f"# Check on {report['device']}\n\ntorch {report['torch']}, CUDA {report['cuda']}, "
    return f"{head}{report['devices']} devices, {report['seconds']:.0f} s. Random weights.\n\n{markdown_table(rows)}"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/gpu_check"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=[], choices=[*CHECKS, []])
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.rank_of:
        one_rank(args.rank_of, args.device, args.out)
        return 0
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} sees no CUDA device here; nothing was checked", file=sys.stderr)
        return NO_DEVICE
    from unimed.files import write_report, write_text

    report = run(torch.device(args.device), args.only)
    args.out.mkdir(parents=True, exist_ok=True)
    write_report(args.out / "gpu_check.json", report)
    write_text(args.out / "gpu_check.md", page(report))
    failed = [row["check"] for row in report["checks"] if row["state"] != "ok"]
    print(f"{len(report['checks']) - len(failed)} of {len(report['checks'])} checks are well"
          + (f"; not: {', '.join(failed)}" if failed else "") + f"; {args.out / 'gpu_check.md'}")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
