"""Records with a bright lesion: masks, boxes, absent things and questions, some of which training repeats."""

import json

import numpy as np
from PIL import Image

SIDE = 48


def write(root, patients=6, test_patients=6, seed=0):
    """`records/train.jsonl` and `records/test.jsonl` with four questions per patient; returns the folder."""
    for name in ("records", "images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, count in (("train", patients), ("test", test_patients)):
        rows = []
        for number in range(count):
            name = f"{split}{number}"
            image = rng.integers(0, 90, (SIDE, SIDE), dtype=np.uint8)
            y, x = np.mgrid[:SIDE, :SIDE]
            row, column = 18 + int(rng.integers(0, 6)), 26 + int(rng.integers(0, 6))
            mask = (y - row) ** 2 + (x - column) ** 2 < 81
            image[mask] += 120
            Image.fromarray(image).save(root / f"images/{name}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"masks/{name}.png")
            shared = dict(image=f"images/{name}.png", patient_id=f"patient-{name}", source="drawn", split=split,
                          modality=("CT", "MR")[number % 2], label_origin="drawn")  # fmt: skip
            box = [column - 9, row - 9, column + 9, row + 9]
            region, boxed = dict(phrase="lesion", mask=f"masks/{name}.png"), dict(phrase="lesion", box_xyxy_px=box)
            side, there = ("left", "right")[number % 3 == 0], "yes" if number % 3 else "no"
            rows += [
                dict(id=f"{name}-mask", task="referring", question="Please segment the lesion.",
                     answer="It is the <p> lesion </p> [SEG].", regions=[region], **shared),
                dict(id=f"{name}-box", task="box", question="Where is the lesion?",
                     answer="The <p> lesion </p> is [BOX].", regions=[boxed], **shared),
                dict(id=f"{name}-absent", task="absent", question="Please segment the cyst.",
                     answer="There is no cyst.", regions=[dict(phrase="cyst", present=False)], **shared),
                dict(id=f"{name}-vqa", task="vqa", question="Is it large?", answer=there, **shared),
                dict(id=f"{name}-side", task="vqa", question="Which side?", answer=side, **shared),
            ]  # fmt: skip
        (root / f"records/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def perfect(samples, path):
    """A file of predictions that are right."""
    from unimed.evaluation.harness.frozen import frozen
    from unimed.evaluation.rows import answer_of
    from unimed.io.result import Prediction

    lines = [frozen(s.sample_id, Prediction(answer_of(s), s.regions)) for s in samples]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path
