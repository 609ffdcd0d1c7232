"""`unimed predict`: questions about an image, answered with what the answer points at."""

from __future__ import annotations

from unimed.commands.common import DONE, Parser, guarded, print_steps, say
from unimed.names import ResultNames, result_name


def predict(arguments=None, prog: str | None = None) -> int:
    """Answer questions about one image."""
    parser = Parser("Answer questions about an image and point at what is said. Research use only.", prog=prog)
    parser.add_argument("model", help="exported folder or published checkpoint")
    parser.add_argument("image", help="PNG, JPEG, TIFF, DICOM file or folder, NIfTI, NRRD, NPZ; images and volumes")
    parser.add_argument("text", nargs="+", help="questions; the labels for a contrastive model")
    parser.flag("out", default="predictions")
    parser.flag("device")
    for name in ("site", "modality", "window", "page"):
        parser.flag(name)
    parser.flag("max-new-tokens", default=256)
    return guarded(_predict, parser.parse_args(arguments))


def _predict(args) -> int:
    from unimed.files import refuse_to_replace
    from unimed.io.volumes import Volume, open_source
    from unimed.models.auto import load

    for number in range(len(args.text)):
        refuse_to_replace(args.image, args.out, f"{result_name(args.image)}-{number}")
    # Read first: a wrong path should not cost the loading of a model.
    source = open_source(args.image, site=args.site, modality=args.modality, window=args.window, frame=args.page)
    volume = isinstance(source, Volume)
    if not volume:
        print_steps(source.source)
    model = load(args.model, device=args.device)
    shown = dict(site=args.site, modality=args.modality, window=args.window) if volume else {}
    if hasattr(model, "zero_shot"):
        # A contrastive model compares: what was asked are the labels.
        prediction = model.predict(source, args.text, **shown)
        for label, probability in prediction.classes.ranked():
            say(f"{probability:.3f}  {label}")
        return DONE
    options = {} if hasattr(model, "segment_slices") else {"max_new_tokens": args.max_new_tokens}
    predictions = model.predict(source, args.text, **shown, **options)
    for number, prediction in enumerate(predictions):
        say(prediction.text)
        name = ResultNames(args.out)(args.image, str(number))
        drawn = volume and any(region.mask is not None for region in prediction.regions)
        formats = ("json", "nifti") if drawn else ("json",) if volume else ("json", "png")
        for path in prediction.save(args.out, name, formats, image=None if volume else source.rgb):
            print(f"  {path}")
    return DONE
