"""Makes the small recordings of `tests/golden/whole` from the folder of the large ones.

    python tests/golden/record.py FOLDER

The large recordings (about 90 MB) hold random weights and every intermediate result of the published code. A small one
stands for a large one of the same name:

* weights and inputs that were drawn from a seed are not stored but drawn again (the stream, shift and scale of every
  tensor are fitted here and checked to 1e-6), those of uMedGround from their names;
* whole numbers, masks and short results are stored as they are;
* long results become samples at fixed places and the norm of all values, taken along the axes a test goes through.

Nothing is computed by the package that is tested: each number is the published code's own.
"""

import argparse
import fnmatch
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden_files import INDEX, WHOLE, Sampled, read_large, recipe  # noqa: E402

SHORT, SAMPLES = 1536, 512
SAM_DECODER = "grounding_encoder.sam2_model.sam_mask_decoder."
SCENARIO = dict(lead={"low_res_mask": 1, "final_mask_logits": 2})

# What was drawn: (seed, names in order, kind). None in the place of names: all names in order of the alphabet.
# The rest: `whole` is stored as it is, `drop` not at all, `lead` keeps leading axes apart, `samples` how many values.
FILES = {
    "unibiomed/model.safetensors": dict(drawn=[(20240601, "*", "normal"), (1030, SAM_DECODER + "*", "normal")],
                                        whole=["*"]),
    "unibiomed/sam2_alone/model.safetensors": dict(drawn=[(77, "*", "normal")], whole=["*"]),
    "unibiomed/sam2_alone/outputs.safetensors": dict(whole=["lang*embed", "lang_sparse_before"]),
    "unibiomed/sam2_memory_modules.safetensors": dict(
        drawn=[(11, ["curr", "curr_pos", "memory", "memory_pos", "enc_pix_feat", "enc_mask_logits"], "normal")]
    ),
    **{f"unibiomed/e2e_{name}_fp32.safetensors": SCENARIO for name in (
        "image_seg", "multi_seg", "region", "text_only", "video_seg")},
    "biomedparse/v1_tiny_weights.safetensors": dict(drawn=[(4321, "*", "normal")], constant=["dilation_kernel"],
                                                    whole=["*"]),
    "biomedparse/v2_tiny_weights.safetensors": dict(drawn=[(1234, "*", "normal")],
                                                    constant=["pixel_mean", "pixel_std"], whole=["*"]),
    "biomedparse/v1_2d.npz": dict(whole=["default_text_embeddings"]),
    "biomedparse/v2_2d_eval.npz": dict(drawn=[(900, "rand.*", "uniform")], whole=["decoder.heads4.mask_logits"]),
    "biomedparse/v2_2d_masked_attention_variant.npz": {},
    "biomedparse/v2_2d_train_loss.npz": dict(drawn=[(901, "rand.*", "uniform")]),
    "biomedparse/v2_3d.npz": dict(drawn=[(777, "rand.*", "uniform")], drop=["image_volume"]),
    "biomedparse/v2_3d_single_slice.npz": dict(drawn=[(778, "rand.*", "uniform")]),
    "biomedparse/v2_e2e_3d.npz": dict(whole=["pred_gmasks", "object_existence", "rand.*"],
                                      drop=["rand.04", "rand.09"]),
    "umedground/tiny_end_to_end.safetensors": dict(recipe="tinyfull.", whole=["*.grad_projected"]),
    "umedground/sam_box_decoder_tiny.safetensors": dict(recipe="tiny_sam.", drop=["dense", "in.*"]),
    "uni_med/full/io.safetensors": dict(drawn=[(77, ["images"], "normal")], samples=256),
    "uni_med/train/train_run.safetensors": {},
    "uni_med/connector/inputs.safetensors": dict(whole=["*"]),
    "uni_med/connector/weights.safetensors": dict(banks={"proj/": 111, "router/": 85}, whole=["*"]),
    "uni_med/connector/outputs.safetensors": dict(samples=96, short=96, whole=["*.grad_w"]),
    "uni_med/prompts/image_processor.safetensors": {},
    "unimed_clip/zeroshot.safetensors": dict(
        drawn=[(21, ["e2e.images"], "normal")], drop=["case_[!r]*", "case_r[!a]*", "*.prompt_embeddings"],
        whole=["*.image_features", "*.class_weights_used"],
    ),
    "unimed_clip/train_steps.safetensors": {},
    "unimed_clip/preprocess/preprocess.safetensors": dict(samples=256),
}  # fmt: skip
COPIES = [
    *(f"unibiomed/inputs/{name}" for name in (
        "image_a_256x128.png", "image_e_100x96.png", "region_masks.npz", *(f"video_{i}_96x80.png" for i in range(8)))),
    "unibiomed/sam2_alone/image_200x150.png", "unibiomed/sam2_alone/prompts.json",
    "uni_med/connector/index.json",
    *(f"uni_med/prompts/{name}.json" for name in ("boxes", "text_processor", "train_prompts")),
    "unimed_clip/train_steps.json", "unimed_clip/preprocess/preprocess.json",
]  # fmt: skip


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def fit(values, draws):
    """(shift, scale) with `values = shift + scale * draws`, or None where they are no such thing."""
    ours, theirs = draws.double().flatten(), values.double().flatten()
    if len(ours) < 2:
        return None
    ones = torch.ones_like(ours)
    shift, scale = torch.linalg.lstsq(torch.stack([ones, ours], 1), theirs[:, None]).solution[:, 0].tolist()
    shift, scale = round(shift, 5), float(f"{scale:.8g}")
    scale = float(round(scale, 6)) if abs(round(scale, 6) - scale) < 2e-8 * abs(scale) else scale
    error = (shift + scale * ours - theirs).abs().max()
    return (shift, scale) if error <= 1e-6 * max(1e-3, float(theirs.abs().max())) else None


def draw_again(recorded, seed, names, kind):
    """The stream of a seed that gives the named tensors; names it does not give are drawn and thrown away."""
    generator = torch.Generator().manual_seed(seed)
    stream, sums = [], {}
    for name in names:
        shape = list(recorded[name].shape)
        found = fit(recorded[name], (torch.randn if kind == "normal" else torch.rand)(shape, generator=generator))
        stream.append([name if found else None, shape, kind, *(found or (0, 1))])
        if found:
            sums[name] = float(recorded[name].double().sum())
    while stream and stream[-1][0] is None:
        stream.pop()
    return dict(seed=seed, tensors=stream, sums=sums)


def shorten(recorded, rule):
    """(arrays to store, index) of one file."""
    arrays, index = {}, dict(order=[], sampled={}, drawn=[], recipes={})
    names = [name for name in recorded if not matches(name, rule.get("drop", ()))]
    done = set()
    for seed, wanted, kind in rule.get("drawn", ()):
        order = wanted if isinstance(wanted, list) else sorted(
            n for n in names if matches(n, [wanted]) and n not in rule.get("constant", ())
        )  # fmt: skip
        stream = draw_again(recorded, seed, order, kind)
        index["drawn"].append(stream)
        done |= set(stream["sums"])
    if "banks" in rule:
        for order in banks(names):
            seed = next((seed for start, seed in rule["banks"].items() if order[0].startswith(start)), None)
            if seed is not None:
                stream = draw_again(recorded, seed, order, "normal")
                index["drawn"].append(stream)
                done |= set(stream["sums"])
    for name in names:
        source = rule.get("recipe", "") + name.removeprefix("sd.")
        if "recipe" in rule and name.startswith("sd.") and torch.equal(
            recipe(source, tuple(recorded[name].shape)), recorded[name].float()
        ):  # fmt: skip
            index["recipes"][name] = [source, list(recorded[name].shape)]
            done.add(name)
    for name in names:
        value = recorded[name]
        index["order"].append(name)
        if name in done:
            continue
        keep = not torch.is_tensor(value) or not value.is_floating_point() or matches(name, rule.get("whole", ()))
        keep = keep or name.startswith("sd.")
        if keep or value.numel() <= rule.get("short", SHORT):
            arrays[name] = value.contiguous().numpy() if torch.is_tensor(value) else value
            continue
        sample = Sampled.of(value.float(), rule.get("lead", {}).get(name, 0), rule.get("samples", SAMPLES))
        arrays[name] = sample.values.numpy()
        arrays[f"{name}#norms"] = sample.norms.numpy()
        index["sampled"][name] = dict(shape=list(sample.shape), lead=sample.lead, largest=sample.largest)
    return arrays, index


def banks(names):
    """Names of the connectors' weights by the module they were drawn for, in the order they were drawn."""
    groups = {}
    for name in names:
        groups.setdefault(name.split(".", 1)[0], []).append(name)
    return [sorted(group, key=lambda n: (n.rsplit(".", 1)[0], n.endswith("bias"))) for group in groups.values()]


def record(folder):
    shutil.rmtree(WHOLE, ignore_errors=True)
    total = 0
    for name, rule in FILES.items():
        recorded = read_large(folder / name)
        arrays, index = shorten(recorded, rule)
        target = WHOLE / Path(name).with_suffix(".npz")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(index, separators=(",", ":")).encode()
        np.savez_compressed(target, **arrays, **{INDEX: np.frombuffer(text, np.uint8)})
        drawn = sum(len(s["sums"]) for s in index["drawn"]) + len(index["recipes"])
        total += target.stat().st_size
        print(f"{name}: {target.stat().st_size / 1000:.0f} kB, {len(index['order'])} tensors, {drawn} drawn again, "
              f"{len(index['sampled'])} sampled")  # fmt: skip
        long = {n: a.nbytes for n, a in arrays.items() if a.nbytes > 20000}
        if long:
            print("   stored whole:", long)
    for name in COPIES:
        target = WHOLE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
        total += target.stat().st_size
    print(f"together {total / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the large recordings")
    record(parser.parse_args().folder)
