"""`unimed predict`: questions about an image, answered with what the answer points at."""

from __future__ import annotations

from unimed.commands.common import DONE, Parser, guarded, print_steps, say
from unimed.names import ResultNames, result_name


def predict(arguments=None, prog: str | None = None) -> int:
    """Answer questions about one image."""
    parser = Parser("Answer questions about an image and point at what is said. Research use only.", prog=prog)
    parser.add_argument("model", help="exported folder or published checkpoint")
    parser.add_argument("image", help="PNG, JPEG, TIFF, DICOM, NIfTI slice")
    parser.add_argument("text", nargs="+", help="questions; the labels for a contrastive model")
    parser.flag("out", default="predictions")
    parser.flag("device")
    for name in ("site", "modality", "window", "page"):
        parser.flag(name)
    parser.flag("max-new-tokens", default=256)
    return guarded(_predict, parser.parse_args(arguments))


def _predict(args) -> int:
    from unimed.files import refuse_to_replace
    from unimed.io.images import load as load_image
    from unimed.models.auto import load

    for number in range(len(args.text)):
        refuse_to_replace(args.image, args.out, f"{result_name(args.image)}-{number}")
    # Read first: a wrong path should not cost the loading of a model.
    image = load_image(args.image, site=args.site, modality=args.modality, window=args.window, page=args.page)
    print_steps(image.source)
    model = load(args.model, device=args.device)
    if hasattr(model, "zero_shot"):
        # A contrastive model compares: what was asked are the labels.
        for label, probability in model.zero_shot(image, args.text).ranked():
            say(f"{probability:.3f}  {label}")
        return DONE
    # A model that writes no text (BiomedParse) takes prompts, and has no length of an answer.
    options = {"max_new_tokens": args.max_new_tokens} if hasattr(model, "language_model") else {}
    predictions = model.predict(image, args.text, **options)
    for number, prediction in enumerate(predictions):
        say(prediction.text)
        name = ResultNames(args.out)(args.image, str(number))
        for path in prediction.save(args.out, name, ("json", "png"), image=image.rgb):
            print(f"  {path}")
    return DONE
