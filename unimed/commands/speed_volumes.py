"""Speed and memory of volumes by prompts: `unimed speed-volumes speed|memory MODEL`.

speed   processor seconds per volume for slices x prompts, against the reference's way of working with the same
        weights: every call encodes 17 class names in 81 templates whose result nobody reads, and copies image features
        per prompt. With --bfloat16 also ours in that precision (the reference has none in inference), and the share of
        voxels on which its labels agree with float32
memory  peak memory of whole runs, each in a process of its own, for volumes of different depth
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from unimed.commands.common import Parser, guarded, load_model

CLASSES, TEMPLATES, LENGTH = 17, 81, 77


def speed_volumes(arguments=None, prog: str | None = None) -> int:
    """Measure and print a table."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("what", choices=("speed", "memory", "one"), metavar="speed|memory")
    parser.add_argument("model", help="folder that unimed.load opens")
    parser.add_argument("--slices", nargs="+", type=int, default=[1, 4], help="depths of the volumes")
    parser.add_argument("--prompts", nargs="+", type=int, default=[2], help="numbers of prompts (speed)")
    parser.add_argument("--side", type=int, default=512, help="rows and columns of the volumes")
    parser.add_argument("--image-size", type=int, help="read slices at this size instead of the model's own")
    parser.add_argument("--slice-batch", type=int, default=4)
    parser.add_argument(
        "--repeat-outputs",
        action="store_true",
        help="memory: run the network on the first and last two groups of slices "
        "only and repeat its outputs between, so that deep volumes take minutes",
    )
    parser.add_argument(
        "--stride", type=int, default=1,
        help="speed: also with this stride and the air cut away, on a phantom of a body that fills 60 %% of rows and "
        "columns, with targets in a third of the slices",
    )  # fmt: skip
    parser.add_argument("--bfloat16", action="store_true", help="speed: also in bfloat16")
    args = parser.parse_args(arguments)
    return guarded({"speed": speed, "memory": memory, "one": one}[args.what], args)


def volume(depth: int, side: int):
    """Noise, uint8 [depth, side, side]; the time of a network does not depend on what it sees."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 255, (depth, side, side), dtype=np.uint8)


def phantom(depth: int, side: int):
    """Noise in a body that fills 60 % of rows and columns, air around it, uint8 [depth, side, side]."""
    array, begin = volume(depth, side), round(0.2 * side)
    air = array.copy()
    air[:, begin:-begin, begin:-begin] = 0
    array[air > 0] = 0
    return array


class Knowing:
    """A model whose targets are in the middle third of the slices: what random weights find means nothing."""

    def __init__(self, model, depth: int):
        self.model, self.config = model, model.config
        self.there = range(depth // 3, depth - depth // 3)

    def encode_prompts(self, prompts):
        return self.model.encode_prompts(prompts)

    def segment_slices(self, images, features, *, seed, slice_numbers):
        output = self.model.segment_slices(images, features, seed=seed, slice_numbers=slice_numbers)
        for row, z in enumerate(slice_numbers):
            output.existence[row] = float(z in self.there)
        return output


def sparing(model, depth: int, prompts, args) -> dict:
    """Processor seconds of a phantom, every slice against `--stride`, and how well the two answers agree."""
    from unimed.geometry import Geometry
    from unimed.inference.volume_text import segment_volume
    from unimed.metrics.masks import dice

    knowing, array, spent, labels = Knowing(model, depth), phantom(depth, args.side), {}, {}
    for way, options in {
        "every": {}, "strided": {"stride": args.stride}, "strided_cropped": {"stride": args.stride, "crop": True}
    }.items():  # fmt: skip
        model._kept = None
        begin = time.process_time()
        found = segment_volume(knowing, array, Geometry.pixels(), prompts, slice_batch=args.slice_batch, **options)
        spent[way], labels[way] = time.process_time() - begin, found.labels
    row = {"every_s": spent["every"]}
    for way in ("strided", "strided_cropped"):
        row |= {f"{way}_s": spent[way], f"{way}_dice": dice(labels[way] > 0, labels["every"] > 0)}
    return row


def load(args, dtype="auto"):
    model = load_model(args.model, able="segment_slices", to="segment by prompts alone", device="cpu", dtype=dtype)
    if args.image_size:
        model.config.image_size = args.image_size
    return model


def ours(model, array, prompts, args):
    """Processor seconds of one volume and its labels; prompts are encoded anew."""
    from unimed.geometry import Geometry
    from unimed.inference.volume_text import segment_volume

    model._kept = None
    begin = time.process_time()
    result = segment_volume(model, array, Geometry.pixels(), prompts, threshold=0.0, slice_batch=args.slice_batch)
    return time.process_time() - begin, result.labels


def class_names(model) -> float:
    """Processor seconds that every call of the reference spends on names that nobody reads."""
    import torch

    begin = time.process_time()
    with torch.no_grad():
        for _ in range(CLASSES):
            hidden = model.text.tower(input_ids=torch.zeros(TEMPLATES, LENGTH, dtype=torch.long)).last_hidden_state
            hidden @ model.text.lang_proj
    return time.process_time() - begin


def reference_way(model, array, prompts) -> float:
    """The rest of the work as published: processor seconds."""
    import torch

    from unimed.geometry import Geometry
    from unimed.inference.volume_text import segment_volume
    from unimed.models.boltzformer import ImageFeatures

    class Tiled:
        """Copies what an image gave once per prompt, and asks each copy for one prompt."""

        config = model.config

        def encode_prompts(self, texts):
            return model.encode_prompts(texts)

        def segment_slices(self, images, features, *, seed, slice_numbers):
            from unimed.models.boltzformer import SliceOutput

            encoded, count = model.encode_images(images), len(features)
            copies = ImageFeatures(
                encoded.mask_features.repeat_interleave(count, 0),
                [m.repeat_interleave(count, 0) for m in encoded.levels],
            )
            items = features.repeat(len(images))
            output = model(
                image_features=copies,
                input_ids=items_ids(items),
                attention_mask=items.valid,
                num_prompts=[1] * len(items),
            )
            shape = (len(images), count)
            masks = output.masks[:, 0].unflatten(0, shape)
            return SliceOutput(masks, output.existence[:, 0].sigmoid().unflatten(0, shape), None)

    def items_ids(items):
        width = items.valid.shape[1]
        return torch.tensor([list(row) + [0] * (width - len(row)) for row in items.ids])

    model._kept = None
    begin = time.process_time()
    with torch.no_grad():
        segment_volume(Tiled(), array, Geometry.pixels(), prompts, slice_batch=2)
    return time.process_time() - begin


def speed(args) -> int:
    from unimed.evaluation.tables import markdown_table, this_command

    model = load(args)
    half = load(args, "bfloat16") if args.bfloat16 else None
    rows, names = [], class_names(model)
    for depth in args.slices:
        for count in args.prompts:
            array, prompts = volume(depth, args.side), [f"target {number}" for number in range(count)]
            mine, labels = ours(model, array, prompts, args)
            theirs = names + reference_way(model, array, prompts)
            row = {"slices": depth, "prompts": count, "reference_s": theirs, "of_which_class_names_s": names}
            row |= {"ours_s": mine, "ratio": theirs / mine}
            if half is not None:
                quick, again = ours(half, array, prompts, args)
                agreement = float((labels == again).mean())
                row |= {"bfloat16_s": quick, "bfloat16_ratio": theirs / quick, "agreement": agreement}
            if args.stride > 1:
                row |= sparing(model, depth, prompts, args)
                row["strided_cropped_ratio"] = theirs / row["strided_cropped_s"]
            rows.append(row)
            print(rows[-1], flush=True)
    print(markdown_table(rows, command=this_command(), digits=2))
    return 0


def memory(args) -> int:
    peaks = {}
    for depth in args.slices:
        command = [
            sys.executable,
            "-m",
            "unimed.commands.cli",
            "speed-volumes",
            "one",
            args.model,
            "--slices",
            str(depth),
            "--side",
            str(args.side),
        ]
        command += ["--slice-batch", str(args.slice_batch), "--prompts", str(args.prompts[0])]
        command += ["--image-size", str(args.image_size)] if args.image_size else []
        command += ["--repeat-outputs"] if args.repeat_outputs else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        peaks[depth] = float(done.stdout.split()[-1])
        print(f"{depth} slices: peak {peaks[depth]:.2f} GB", flush=True)
    first = next(iter(peaks.values()))
    print(", ".join(f"{depth} slices {peak / first:.3f}" for depth, peak in peaks.items()) + " of the first")
    return 0


def repeat_outputs(model, args) -> None:
    """Let `segment_slices` work on the first and last two groups only; the arrays around it are whole all the same."""
    work, kept = model.segment_slices, {}

    def segment_slices(images, features, *, seed, slice_numbers):
        first, last = (
            slice_numbers[0] < 2 * args.slice_batch,
            slice_numbers[-1] >= args.slices[0] - 2 * args.slice_batch,
        )
        if first or last or len(images) not in kept:
            kept[len(images)] = work(images, features, seed=seed, slice_numbers=slice_numbers)
        return kept[len(images)]

    model.segment_slices = segment_slices


def one(args) -> int:
    """One whole run from file to file, then the peak of this process."""
    import tempfile

    from unimed.inference.volume_files import read_volume
    from unimed.inference.volume_text import segment_volume
    from unimed.io.write import write_npz

    with tempfile.TemporaryDirectory() as folder:
        path = write_npz(Path(folder) / "case.npz", {"imgs": volume(args.slices[0], args.side)})
        model = load(args)
        if args.repeat_outputs:
            repeat_outputs(model, args)
        array, geometry = read_volume(path)
        prompts = [f"target {number}" for number in range(args.prompts[0])]
        result = segment_volume(model, array, geometry, prompts, threshold=0.0, slice_batch=args.slice_batch)
        result.save(folder, "out", ("npz", "json"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
    return 0
