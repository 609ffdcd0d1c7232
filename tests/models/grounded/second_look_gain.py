"""What a second look is worth: python second_look_gain.py [STEPS], or MODEL DATA [SPLIT].

With a model and a set of records it is measured there. Without, a model is trained on drawn images with small lesions.
Images of 128 px hold a lesion of 3 to 6 px radius; the model sees 32 px. It is trained on whole images and on crops.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]

import unimed  # noqa: E402
from unimed.data.collate.grounded import GroundedCollator  # noqa: E402
from unimed.data.mixture import KeyedDatasets, Mixture  # noqa: E402
from unimed.data.readers.hard_prompts import single_target  # noqa: E402
from unimed.data.readers.records import RecordDataset  # noqa: E402
from unimed.evaluation.honesty import shown_mask  # noqa: E402
from unimed.evaluation.tables import markdown_table  # noqa: E402
from unimed.geometry import Geometry  # noqa: E402
from unimed.metrics.masks import dice  # noqa: E402
from unimed.metrics.statistics import bootstrap_mean, paired_difference  # noqa: E402
from unimed.registry import DATASETS, TASKS  # noqa: E402
from unimed.structures import Region, Sample  # noqa: E402

LARGE, SMALL = 128, 32


@DATASETS.register_module()
class DrawnLesions:
    """One lesion per patient: an ellipse brighter than its surroundings."""

    def __init__(self, first: int, count: int):
        self.first, self.count = first, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        draw = np.random.default_rng(self.first + index)
        rows, columns = np.mgrid[:LARGE, :LARGE]
        y, x = draw.uniform(20, 108, 2)
        a, b = draw.uniform(3, 6, 2)
        mask = ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1
        image = (draw.normal(60, 10, (LARGE, LARGE)) + 120 * mask).clip(0, 255).astype(np.uint8)
        return Sample(
            (image,), Geometry.pixels(), str(self.first + index),
            conversation=(("user", "Segment the lesion."), ("assistant", "<p> lesion </p> [SEG].")),
            regions=(Region("lesion", mask=mask, presence=1.0),), labels={"task": "referring"},
            patient_id=str(self.first + index),
        )  # fmt: skip


def trained(steps):
    texts = ["Segment the lesion. <p> lesion </p> [SEG]."] * 4
    model = dict(
        type="SmallGroundedMLLM", texts=texts, hidden_dim=48, layers=1, heads=2, vision_grid=4, box_head=None,
        vocabulary=300, mask_config=dict(model_type="unimed_light", image_size=SMALL, width=16, blocks=1),
    )  # fmt: skip
    task = TASKS.build(dict(type="GroundingTask", model=model, max_new_tokens=10)).train()
    data = dict(type="DrawnLesions", first=0, count=300)
    hard = dict(type="HardPromptDataset", dataset=data, mirrored=0, reworded=0, nonsense=0, cropped=0.5)
    keyed, order = KeyedDatasets([DATASETS.build(hard)], ["drawn"], write=task.processor.write), Mixture([300])
    collate, optimizer = GroundedCollator(task.processor), torch.optim.AdamW(task.train_parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        loss = task(collate([keyed[order[step * 12 + i]][0] for i in range(12)]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return task.model.eval()


def compared(model, tests, max_new_tokens=10):
    """Rows of one, two and three looks at samples that ask for one thing."""
    rows, scores = [], {}
    for rounds in (1, 2, 3):
        looks, begin = [], time.process_time()
        values = []
        for sample in tests:
            question = sample.conversation[0][1]
            answer = model.look_again(
                sample.images[0], question, rounds=rounds, looks=looks, max_new_tokens=max_new_tokens
            )
            values.append(dice(shown_mask(answer.regions, sample.images[0].shape[:2]), sample.regions[0].mask))
        scores[rounds] = values
        seconds = (time.process_time() - begin) / len(tests)
        gain = paired_difference(values, scores[1])
        rows.append({"looks": rounds, "cases": len(tests), "dice": bootstrap_mean(values), "gain": gain,
                     "further looks": len(looks), "cpu": seconds})  # fmt: skip
    one_look = rows[0]["cpu"]
    for row in rows:
        row["cpu"] = f"{row['cpu'] / one_look:.2f} x one look"
    return rows


def of_model(folder, data, split="test"):
    """The same of a trained model on the records of a set, target by target."""
    model, rows = unimed.load(folder), []
    samples = [sample for sample in RecordDataset(data, split, ["referring"]) if single_target(sample) is not None]
    for phrase in sorted({sample.regions[0].phrase for sample in samples}):
        tests = [sample for sample in samples if sample.regions[0].phrase == phrase]
        rows += [{"target": phrase} | row for row in compared(model, tests, max_new_tokens=48)]
    return rows


if __name__ == "__main__":
    known = sys.argv[1:]
    if known and not known[0].isdigit():
        print(markdown_table(of_model(*known)))
    else:
        print(markdown_table(compared(trained(int(known[0]) if known else 400), DrawnLesions(90_000, 30))))
