"""Text-prompted slices against the published way of working, same weights: `python tools/benchmark_parse.py MODEL`.

The published code encodes 17 class names in 81 templates in every call, encodes the prompts anew, and copies the
features of every slice for every prompt. All parts are timed in one run, and added up for volumes of any depth.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TEMPLATES = 17 * 81


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or file that unimed.load opens, or `random` for full size from nothing")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--slices", type=int, default=2, help="slices at a time (published: 2)")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 16, 63, 630], help="volumes to add up for")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many runs counts")
    args = parser.parse_args(argv)

    import torch

    from unimed.models.boltzformer import BoltzFormerConfig, BoltzFormerModel, ImageFeatures

    if args.model == "random":
        model = BoltzFormerModel(BoltzFormerConfig()).eval()
    else:
        from unimed.models.auto import load

        model = load(args.model)
    side, count = model.config.image_size, args.slices
    images = torch.rand(count, 3, side, side, device=model.device) * 255
    texts = [f"target {number} in abdominal CT" for number in range(args.prompts)]
    full = torch.full((81, model.config.text_length), 1000 % model.config.text_vocab_size, device=model.device)

    on_gpu = model.device.type == "cuda"
    # Seconds of all cores together do not change with what else the machine does.
    clock = time.perf_counter if on_gpu else time.process_time

    def timed(work):
        seconds = []
        for _ in range(args.repeat):
            begin = clock()
            result = work()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(clock() - begin)
        return min(seconds), result

    def copied():
        """One item per slice and prompt, each with features of its own."""
        levels = [level.repeat_interleave(args.prompts, 0) for level in features.levels]
        own = ImageFeatures(features.mask_features.repeat_interleave(args.prompts, 0), levels)
        return model(image_features=own, **tokens, seed=0)

    with torch.no_grad():
        tokens = {name: value.repeat(count, 1) for name, value in model.tokenize(texts).items()}
        image, features = timed(lambda: model.encode_images(images))
        # A class at a time: 81 sentences of full length, all alike in cost.
        classes = timed(lambda: model.text(full, torch.ones_like(full)))[0] * TEMPLATES / 81
        prompt, _ = timed(lambda: model.encode_ids(**model.tokenize(texts)))
        ours, _ = timed(lambda: model.segment_slices(features, texts, seed=0))
        theirs, _ = timed(copied)
    print(
        f"{side} px, {args.prompts} prompts, {count} slices at a time, on {model.device}; "
        f"{'seconds' if on_gpu else 'seconds of CPU'}:"
    )
    print(f"  images of a group {image:.2f} | class names {classes:.2f} | prompts {prompt:.2f} | masks of a group "
          f"{ours:.2f}, with copied features {theirs:.2f}")  # fmt: skip
    print("| slices | published | here, first call | here, prompts known | times as fast |\n|---|---|---|---|---|")
    for depth in args.depths:
        groups = depth / count
        known = groups * (image + ours)
        published = classes + prompt + groups * (image + theirs)
        print(f"| {depth} | {published:.1f} s | {known + prompt:.1f} s | {known:.1f} s | "
              f"{published / (known + prompt):.2f} |")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
