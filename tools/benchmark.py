"""Speed of prediction, as ratios measured in one run: `python tools/benchmark.py phrases MODEL IMAGE`.

phrases  one image with five phrases in one call, against five calls
batch    a batch of eight images, against one by one; also says whether the answers are the same
"""

import argparse
import statistics
import sys
import time

PHRASES = [
    "Segment the brain.",
    "Segment the grey matter.",
    "Segment the white matter.",
    "Segment the nuclei.",
    "Segment the lesion.",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("phrases", "batch"))
    parser.add_argument("model", help="folder that unimed.load opens")
    parser.add_argument("images", nargs="+", help="one image for phrases, up to eight for batch")
    parser.add_argument("--repeat", type=int, default=5, help="pairs of timings; the median ratio is printed")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    args = parser.parse_args()

    import numpy as np

    from unimed.models.auto import load

    model = load(args.model)
    options = dict(max_new_tokens=args.max_new_tokens)
    if args.what == "phrases":
        image = args.images[0]
        together = lambda: model.predict(image, PHRASES, **options)  # noqa: E731
        apart = lambda: [model.predict(image, phrase, **options) for phrase in PHRASES]  # noqa: E731
    else:
        images = [args.images[i % len(args.images)] for i in range(8)]
        # Eight different objects: the same path given twice would be encoded once.
        from unimed.models.grounded.images import read_image

        arrays = [read_image(image).rgb.copy() for image in images]
        texts = [PHRASES[i % len(PHRASES)] for i in range(8)]
        together = lambda: model.predict_batch(arrays, texts, **options)  # noqa: E731
        apart = lambda: [model.predict(a, t, **options) for a, t in zip(arrays, texts, strict=True)]  # noqa: E731
    together(), apart()
    ratios, same = [], True
    for _ in range(args.repeat):
        begin = time.perf_counter()
        joined = together()
        middle = time.perf_counter()
        single = apart()
        ratios.append((time.perf_counter() - middle) / (middle - begin))
    for a, b in zip(joined, single, strict=True):
        same &= a.text == b.text and len(a.regions) == len(b.regions)
        for ours, theirs in zip(a.regions, b.regions, strict=False):
            same &= ours.mask is None or bool(np.mean(ours.mask != theirs.mask) < 1e-3)
    print(f"{args.what}: one call is {statistics.median(ratios):.2f} times as fast (median of {args.repeat}, "
          f"{min(ratios):.2f} to {max(ratios):.2f}); answers {'the same' if same else 'DIFFER'}")  # fmt: skip
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
