"""`unimed predict`: questions about an image, answered with what the answer points at."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import DONE, Parser, guarded


def predict(arguments=None, prog: str | None = None) -> int:
    """Answer questions about one image."""
    parser = Parser("Answer questions about an image and point at what is said. Research use only.", prog=prog)
    parser.add_argument("model", help="exported folder or published checkpoint")
    parser.add_argument("image", help="PNG, JPEG, TIFF, DICOM, NIfTI slice")
    parser.add_argument("text", nargs="+", help="questions; the labels for a contrastive model")
    parser.flag("out", default="predictions")
    parser.flag("device")
    parser.flag("site")
    parser.flag("max-new-tokens", default=256)
    return guarded(_predict, parser.parse_args(arguments))


def _predict(args) -> int:
    from unimed.files import refuse_to_replace
    from unimed.io.images import read_image
    from unimed.models.auto import load

    names = [f"{Path(args.image).name.split('.')[0]}-{number}" for number in range(len(args.text))]
    for name in names:
        refuse_to_replace(args.image, args.out, name)
    # Read first: a wrong path should not cost the loading of a model.
    image = read_image(args.image, args.site)
    model = load(args.model, device=args.device)
    if hasattr(model, "zero_shot"):
        # A contrastive model compares: what was asked are the labels.
        for label, probability in model.zero_shot(args.image, args.text).ranked():
            print(f"{probability:.3f}  {label}")
        return DONE
    predictions = model.predict(image, args.text, max_new_tokens=args.max_new_tokens)
    for name, prediction in zip(names, predictions, strict=True):
        print(prediction.text)
        for path in prediction.save(args.out, name, ("json", "png"), image=image.rgb):
            print(f"  {path}")
    return DONE
