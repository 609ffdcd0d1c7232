"""Pictures of what a model says of held-out images of the sample set, and tumours cut out of given boxes."""

from __future__ import annotations

import json
from pathlib import Path

from unimed.commands.common import Parser, guarded, load_model


def quickstart_images(arguments=None, prog: str | None = None) -> int:
    """Draw held-out answers of an exported model; see the module."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("model", help="exported folder")
    parser.add_argument("data", help="folder of the sample set")
    parser.add_argument("out", writes="folder", help="folder for the images")
    return guarded(_images, parser.parse_args(arguments))


def _images(args) -> int:

    import numpy as np
    from PIL import Image

    from unimed.data.readers.records import RecordDataset
    from unimed.io.boxes_given import box_around
    from unimed.io.overlay import draw_regions, scale_to_width
    from unimed.metrics.masks import dice

    model = load_model(args.model, able="segment_boxes", to="point at what it says")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    # What it says of one held-out image of each kind, with everything it points at.
    shown = {}
    for sample in _samples(RecordDataset(args.data, "test", ["report"])):
        kind = (sample.modality, sample.labels["site"])
        if kind in shown or not sample.regions or sample.regions[0].phrase == "lesion":
            continue
        prediction = model.predict(sample.images[0], sample.conversation[0][1], max_new_tokens=96)
        image = draw_regions(*scale_to_width(sample.images[0], prediction.regions, 512))
        Image.fromarray(image).save(out / f"{sample.sample_id}.png")
        shown[kind] = {"image": sample.sample_id, "question": sample.conversation[0][1], "answer": prediction.text}

    # Tumours of volumes it has not seen, from a box given by a person; nothing of this was trained here.
    scores = []
    for sample in _samples(RecordDataset(args.data, "test", ["referring"])):
        if sample.regions[0].phrase != "lesion":
            continue
        truth = sample.regions[0].mask
        prediction = model.segment_boxes(sample.images[0], [box_around(truth)], ["given box"])
        scores.append({"image": sample.sample_id, "dice": dice(prediction.regions[0].mask, truth)})
        image = draw_regions(*scale_to_width(sample.images[0], prediction.regions, 512))
        Image.fromarray(image).save(out / f"{sample.sample_id}-given-box.png")
    mean = float(np.mean([row["dice"] for row in scores])) if scores else None
    summary = {"answers": list(shown.values()), "tumour_from_given_box": scores, "mean_dice": mean,
               "notice": "research use only"}  # fmt: skip
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    for row in shown.values():
        print(f"{row['image']}: {row['question']} -> {row['answer']}")
    if scores:
        print(f"tumours from a given box: mean Dice {mean:.2f} over {len(scores)} slices")
    return 0


def _samples(dataset):
    return (dataset[index] for index in range(len(dataset)))
