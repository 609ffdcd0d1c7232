"""What hard prompts and a conformal presence threshold are worth, on drawn patients: python honesty_gain.py [STEPS].

Each patient has a left and a right organ (or one of them, or a cyst besides) of their own grey values and places. Two
small models are trained on the same questions, one with mirrored, reworded and nonsense prompts among them; then the
presence threshold is learned on some patients and measured on others.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from unimed.data.collate.grounded import GroundedCollator  # noqa: E402
from unimed.data.mixture import KeyedDatasets, Mixture  # noqa: E402
from unimed.evaluation.honesty import honesty_samples, score_honesty  # noqa: E402
from unimed.evaluation.rows import mask_rows, presence_rows  # noqa: E402
from unimed.evaluation.tables import markdown_table  # noqa: E402
from unimed.geometry import Geometry  # noqa: E402
from unimed.metrics.calibration import Calibration  # noqa: E402
from unimed.registry import DATASETS, TASKS  # noqa: E402
from unimed.structures import Region, Sample  # noqa: E402

SIDE = 32
NAMES = ("left kidney", "right kidney", "cyst")


def patient(number):
    """Image [S, S] and {name: mask} of a drawn patient."""
    draw = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image, masks = draw.normal(40, 8, (SIDE, SIDE)), {}
    for name in NAMES:
        if draw.random() < 0.4:
            continue
        x = {"left kidney": 8, "right kidney": 24, "cyst": 16}[name] + draw.normal(0, 1)
        y, radius = draw.uniform(9, 23), draw.uniform(2, 3) if name == "cyst" else draw.uniform(4, 6)
        masks[name] = ((rows - y) ** 2 + (columns - x) ** 2) < radius**2
        image[masks[name]] = (220 if name == "cyst" else 140) + draw.normal(0, 15)
    return image.clip(0, 255).astype(np.uint8), masks


@DATASETS.register_module()
class DrawnPatients:
    """Questions for all three things; each is answered by [SEG], and presence says whether it is there."""

    def __init__(self, first: int, count: int):
        self.first, self.count = first, count

    def __len__(self):
        return 3 * self.count

    def __getitem__(self, index):
        number, name = self.first + index // 3, NAMES[index % 3]
        image, masks = patient(number)
        mask = masks.get(name)
        region = Region(name, mask=np.zeros(image.shape, bool) if mask is None else mask, presence=float(name in masks))
        return Sample(
            (image,), Geometry.pixels(), f"{number}-{name}",
            conversation=(("user", f"Segment the {name}."), ("assistant", f"<p> {name} </p> [SEG].")),
            regions=(region,), labels={"task": "absent" if mask is None else "referring"}, patient_id=str(number),
        )  # fmt: skip


def trained(hard, steps):
    """A task that was trained with or without hard prompts."""
    texts = [turn for i in range(3) for _, turn in DrawnPatients(0, 1)[i].conversation] * 3
    model = dict(
        type="SmallGroundedMLLM", texts=texts, hidden_dim=48, layers=1, heads=2, vision_grid=4, box_head=None,
        vocabulary=400, mask_config=dict(model_type="unimed_light", image_size=SIDE, width=16, blocks=1),
    )  # fmt: skip
    task = TASKS.build(dict(type="GroundingTask", model=model, max_new_tokens=12, batch_size=32)).train()
    data = dict(type="DrawnPatients", first=0, count=400)
    if hard is not None:
        data = dict(type="HardPromptDataset", dataset=data, **hard)
    data = DATASETS.build(data)
    keyed, order = KeyedDatasets([data], ["drawn"], write=task.processor.write), Mixture([len(data)])
    collate = GroundedCollator(task.processor)
    optimizer = torch.optim.AdamW(task.train_parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        batch = collate([keyed[order[step * 16 + i]][0] for i in range(16)])
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return task.eval()


@torch.no_grad()
def tested(task, first, count):
    """(rows of presence, nonsense included, and masks; lines of the measures of honesty) on patients never seen."""
    samples = [DrawnPatients(first, count)[i] for i in range(3 * count)]
    predictions = task.predict_samples(samples)
    asked = honesty_samples(samples, most=60)
    presence = [row for s, p in zip(samples, predictions, strict=True) for row in presence_rows(s, p)]
    masks = [row for s, p in zip(samples, predictions, strict=True) for row in mask_rows(s, p)]
    scores = score_honesty(samples, predictions, asked, task.predict_samples(asked.samples), presence)
    nonsense = [row for row in scores["cases"] if row["kind"] == "presence"]
    return presence + nonsense + masks, scores["tables"]["honesty"], float(np.mean([row["dice"] for row in masks]))


def main(steps):
    for name, hard in (("with hard prompts", dict(mirrored=0.25, reworded=0.3, nonsense=0.1)), ("plain", None)):
        task = trained(hard, steps)
        learn, _, _ = tested(task, 10_000, 40)
        test, lines, quality = tested(task, 20_000, 40)
        calibration = Calibration.fit(learn, alpha=0.1)
        report = calibration.evaluate(test)
        print(f"## {name}: {steps} steps, Dice {quality:.3f}, threshold {calibration.presence.threshold:.4f}\n")
        print(markdown_table(lines))
        for table in ("presence", "masks", "mask_reliability"):
            if table in report:
                print(markdown_table(report[table]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
