"""Speed and memory of volumes by prompts: `unimed speed-volumes speed|memory MODEL`.

speed   processor seconds per volume for slices x prompts, against the published way of working with the same weights:
        every call encodes 17 class names in 81 templates whose result nobody reads, copies image features per prompt,
        and takes FocalNet as transformers has it. All ways read the same phantom, of a body that fills 60 % of rows and
        columns, with targets in a third of the slices; they take turns, and the median of the ratios counts. Dice is
        that of the worst target with every slice in float32. With --bfloat16 also ours in that precision, which the
        published way does not have
memory  peak memory of whole runs, each in a process of its own, for volumes of different depth
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from unimed.commands.common import Parser, count, guarded, load_model

CLASSES, TEMPLATES, LENGTH = 17, 81, 77


def speed_volumes(arguments=None, prog: str | None = None) -> int:
    """Measure and print a table."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("what", choices=("speed", "memory", "one"), metavar="speed|memory")
    parser.add_argument("model", help="folder that unimed.load opens")
    parser.add_argument("--slices", nargs="+", type=int, default=[1, 4], help="depths of the volumes")
    parser.add_argument("--prompts", nargs="+", type=count, default=[2], help="numbers of prompts (speed)")
    parser.add_argument("--side", type=int, default=512, help="rows and columns of the volumes")
    parser.add_argument("--image-size", type=int, help="read slices at this size instead of the model's own")
    parser.add_argument("--slice-batch", type=int, default=4)
    parser.add_argument(
        "--repeat-outputs",
        action="store_true",
        help="memory: run the network on the first and last two groups of slices "
        "only and repeat its outputs between, so that deep volumes take minutes",
    )
    parser.add_argument("--stride", nargs="+", type=count, default=[], help="speed: also with these strides")
    parser.add_argument("--crop", action="store_true", help="speed: each stride also with the air cut away")
    parser.add_argument("--turns", type=count, default=3, help="speed: turns of every way (default: 3)")
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
    """A model whose targets are in the middle third of the slices: what random weights find means nothing.

    Counts the slices it is asked about.
    """

    def __init__(self, model, depth: int):
        self.model, self.config, self.asked = model, model.config, 0
        self.there = range(depth // 3, depth - depth // 3)

    def encode_prompts(self, prompts):
        return self.model.encode_prompts(prompts)

    def segment_slices(self, images, features, *, seed, slice_numbers):
        self.asked += len(images)
        output = self.model.segment_slices(images, features, seed=seed, slice_numbers=slice_numbers)
        for row, z in enumerate(slice_numbers):
            output.existence[row] = float(z in self.there)
        return output


def load(args, dtype="auto"):
    model = load_model(args.model, able="segment_slices", to="segment by prompts alone", device="cpu", dtype=dtype)
    if args.image_size:
        model.config.image_size = args.image_size
    return model


def class_names(model) -> float:
    """Processor seconds that every call of the reference spends on names that nobody reads."""
    import torch

    begin = time.process_time()
    with torch.no_grad():
        for _ in range(CLASSES):
            hidden = model.text.tower(input_ids=torch.zeros(TEMPLATES, LENGTH, dtype=torch.long)).last_hidden_state
            hidden @ model.text.lang_proj
    return time.process_time() - begin


class Published:
    """The rest of the work as published: copies what an image gave once per prompt, and asks each copy for one."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def encode_prompts(self, texts):
        return self.model.encode_prompts(texts)

    def segment_slices(self, images, features, *, seed, slice_numbers):
        import torch

        from unimed.models.boltzformer import ImageFeatures, SliceOutput

        model, count, width = self.model, len(features), features.valid.shape[1]
        model.backbone.rearranged = False
        encoded = model.encode_images(images, record={})  # all at once, as published; ours takes them one at a time
        model.backbone.rearranged = True
        levels = [level.repeat_interleave(count, 0) for level in encoded.levels]
        copies = ImageFeatures(encoded.mask_features.repeat_interleave(count, 0), levels)
        items = features.repeat(len(images))
        ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in items.ids])
        each = [1] * len(items)
        output = model(image_features=copies, input_ids=ids, attention_mask=items.valid, num_prompts=each)
        masks, existence = (values[:, 0].unflatten(0, (-1, count)) for values in (output.masks, output.existence))
        return SliceOutput(masks, existence.sigmoid(), None)


def ways_to_work(model, half, depth: int, prompts, args):
    """(way -> work that notes what it found, way -> (labels, slices it looked at))."""
    import torch

    from unimed.geometry import Geometry
    from unimed.inference.volume_text import segment_volume

    array, found = phantom(depth, args.side), {}

    def way(name: str, model, through=lambda model: model, **options):
        @torch.no_grad()
        def work():
            model._kept = None  # prompts are encoded anew
            knowing = Knowing(through(model), depth)
            options.setdefault("slice_batch", args.slice_batch)
            found[name] = segment_volume(knowing, array, Geometry.pixels(), prompts, **options).labels, knowing.asked

        return work

    ways = {"every slice": way("every slice", model)}
    for stride in args.stride:
        for crop in (False, True) if args.crop else (False,):
            named = f"--stride {stride}" + " --crop" * crop
            ways[named] = way(named, model, stride=stride, crop=crop)
    if half is not None:
        ways["every slice, bfloat16"] = way("every slice, bfloat16", half)
    return {"published": way("published", model, Published, slice_batch=2)} | ways, found


def agreement(labels, expected, count: int) -> float:
    """Dice of the target that agrees least."""
    from unimed.metrics.masks import dice

    there = [k for k in range(1, count + 1) if (labels == k).any() or (expected == k).any()]
    return min((dice(labels == k, expected == k) for k in there), default=1.0)


def speed(args) -> int:
    import statistics

    import torch

    from unimed.commands.speed_rows import operations, paired
    from unimed.commands.speed_table import machine
    from unimed.evaluation.tables import markdown_table, this_command

    model = load(args).requires_grad_(False)  # the counter of operations stumbles over views of what learns
    half = load(args, "bfloat16") if args.bfloat16 else None
    rows, names, peak = [], class_names(model), machine(1024)["matrix_gflops"]
    for depth in args.slices:
        for number in args.prompts:
            prompts = [f"target {place}" for place in range(number)]
            ways, found = ways_to_work(model, half, depth, prompts, args)
            for warm_up in ways_to_work(model, half, 3, prompts, args)[0].values():  # a few slices do
                warm_up()
            spent = {name: times["cpu_s"] for name, times in paired(ways, args.turns, warm=0).items()}
            spent["published"] = [names + seconds for seconds in spent["published"]]
            features, size = model.encode_prompts(prompts), model.config.image_size
            gflop = operations(lambda features=features, size=size: model.segment_slices(
                torch.zeros(1, 3, size, size), features))  # fmt: skip
            for name, times in spent.items():
                ratios = [theirs / mine for theirs, mine in zip(spent["published"], times, strict=True)]
                labels, asked = found[name]
                row = {"slices": depth, "prompts": number, "way": name, "looked_at": asked,
                       "cpu_s": statistics.median(times), "times_as_fast": statistics.median(ratios),
                       "least": min(ratios), "most": max(ratios)}  # fmt: skip
                if name != "published":
                    row["dice"] = agreement(labels, found["every slice"][0], number)
                if "crop" not in name and name != "published" and "bfloat16" not in name:
                    row["share_of_matrix_peak"] = gflop * asked / row["cpu_s"] / peak
                rows.append(row)
                print(row, flush=True)
    print(f"class names, which the published way encodes once a volume: {names:.2f} s; matrix peak {peak:.0f} GFLOP/s")
    print(markdown_table(rows, columns=list(rows[1]), command=this_command(), digits=2))
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
