"""Speed of prediction, as ratios measured in one run: `unimed speed phrases MODEL IMAGE`.

phrases  one image with five phrases in one call, against five calls
batch    a batch of eight images, against one by one; also says whether the answers are the same
reports  four reports of one image, cached and encoded once, against everything anew for every token and question,
         as uMedGround's released code decodes
masks    the mask stage alone, five findings in one image, against encoding the image for each as UniBiomed's code does;
         MODEL may also be "sam2-large": SAM 2 large in full size with random weights
all      `unimed speed all OUT` (or `unimed benchmark speed OUT`): no model; what decoding, zero-shot features, masks,
         training and volumes take beside transformers' `generate`, open_clip's loop, the sam2 package and
         transformers' Sam2Model, a bare PyTorch loop, and MONAI's sliding window, and as a share of what the machine
         can do; speed.json, speed.md and speed.png in OUT. --only chooses some of them
volumes  `unimed speed volumes speed|memory MODEL ...`: volumes by prompts, see `unimed speed volumes --help`
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from unimed.commands.common import Parser, count, guarded, load_model

PHRASES = [
    "Segment the brain.",
    "Segment the grey matter.",
    "Segment the white matter.",
    "Segment the nuclei.",
    "Segment the lesion.",
]

REPORTS = [
    f"Axial MRI of the brain. Within the brain, grey matter takes {gray} percent and white matter {100 - gray} percent."
    for gray in (40, 45, 50, 55)
]


def speed(arguments=None, prog: str | None = None) -> int:
    """Measure one comparison in turns and print the median ratio."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["volumes"]:
        from unimed.commands.speed_volumes import speed_volumes

        return speed_volumes(words[1:], f"{prog or 'unimed speed'} volumes")
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("what", choices=("phrases", "batch", "reports", "masks", "all", "volumes"))
    parser.add_argument("model", help="folder that unimed.load opens; with all: the folder to write")
    parser.add_argument("images", nargs="*", help="one image for phrases, up to eight for batch")
    parser.add_argument("--repeat", type=count, default=5, help="pairs of timings; the median ratio is printed")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="all: decoding, zero-shot, masks, training, volumes")
    args = parser.parse_args(words)
    if args.only:
        from unimed.commands.speed_table import COMPARISONS

        if wrong := sorted({*args.only} - {*COMPARISONS}):
            parser.error(f"--only {wrong[0]} is not known; choose among {', '.join(COMPARISONS)}")
    if args.what not in ("masks", "all") and not args.images:
        parser.error("give the images to ask about")
    return guarded(_speed, args)


def _speed(args) -> int:
    if args.what == "all":
        from unimed.commands.speed_table import everything

        everything(args.model, args.repeat, only=args.only)
        print((Path(args.model) / "speed.md").read_text(encoding="utf-8"))
        return 0
    if args.what == "masks":
        return _masks(args)

    import numpy as np

    model = load_model(args.model, able="predict_frames", to="answer in words and masks")
    options = dict(max_new_tokens=args.max_new_tokens)
    if args.what == "reports":
        return _reports(model, args)
    if args.what == "phrases":
        image = args.images[0]
        together = lambda: model.predict(image, PHRASES, **options)  # noqa: E731
        apart = lambda: [model.predict(image, phrase, **options) for phrase in PHRASES]  # noqa: E731
    else:
        images = [args.images[i % len(args.images)] for i in range(8)]
        # Eight different objects: the same path given twice would be encoded once.
        from unimed.io.images import load as load_image

        arrays = [load_image(image).rgb.copy() for image in images]
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


def _reports(model, args) -> int:
    import numpy as np

    from unimed.io.images import load as load_image
    from unimed.models.grounded.uncached_decoding import decode_without_cache

    image = load_image(args.images[0])
    texts = [f"{report} Please divide this report into phrases and output bounding boxes." for report in REPORTS]
    ratios, same, boxes = [], True, 0
    for _ in range(args.repeat + 1):
        begin = time.perf_counter()
        ours = model.predict_batch([image] * 4, texts, max_new_tokens=args.max_new_tokens)
        middle = time.perf_counter()
        theirs = [decode_without_cache(model, image, text, args.max_new_tokens) for text in texts]
        ratios.append((time.perf_counter() - middle) / (middle - begin))
    for prediction, (_, found) in zip(ours, theirs, strict=True):
        expected = [box for box, _, _ in found if box[2] > box[0] and box[3] > box[1]]
        predicted = [region.box_xyxy_px for region in prediction.regions]
        same &= len(predicted) == len(expected) and (not predicted or bool(np.allclose(predicted, expected, atol=0.1)))
        boxes += len(predicted)
    ratios = ratios[1:]
    print(f"reports: cached and encoded once is {statistics.median(ratios):.2f} times as fast (median of "
          f"{args.repeat}, {min(ratios):.2f} to {max(ratios):.2f}); {boxes} boxes {'the same' if same else 'DIFFER'}")  # fmt: skip # noqa: E501
    return 0 if same else 1


def _masks(args) -> int:
    import torch

    from unimed.models.heads.mask import resize_mask_logits

    if args.model == "sam2-large":
        from unimed.models.checkpoints.sam2 import HIERA, sam2_video_config
        from unimed.models.heads.sam2 import Sam2MaskHead

        torch.manual_seed(0)
        head = Sam2MaskHead(sam2_video_config(144, **HIERA[144, 48])).eval()
    else:
        head = load_model(args.model, able="mask_head", to="point at anything").mask_head
    device = next(head.parameters()).device
    pixels = torch.randn(1, 3, head.image_size, head.image_size, device=device)
    prompts = torch.randn(5, head.prompt_dim, device=device)
    size = (512, 512)

    def masks(features, rows):
        index = torch.zeros(len(rows), dtype=torch.long, device=device)
        return resize_mask_logits(head.decode(features, index, rows).logits, size, head.image_size)

    ratios = []
    with torch.no_grad():
        for _ in range(args.repeat):
            begin = time.perf_counter()
            joined = masks(head.encode(pixels), prompts)
            middle = time.perf_counter()
            single = torch.cat([masks(head.encode(pixels), row[None]) for row in prompts])
            ratios.append((time.perf_counter() - middle) / (middle - begin))
    same = float(((joined > 0) != (single > 0)).float().mean())
    pairs = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"masks: five findings with one encoding are {statistics.median(ratios):.2f} times as fast ({pairs}); "
          f"fraction of pixels that differ {same:.1e}")  # fmt: skip
    return 0
