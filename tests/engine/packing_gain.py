"""Packed against padded rows on a config's own mixture: tokens per second and the loss of every sample.

    python tests/engine/packing_gain.py configs/quickstart/unified_small.py [PACK] [BATCHES] [SAMPLES]

Both ways see the same batches and take turns; the image features are in the cache before the clock runs. CPU seconds
are counted.
"""

import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from unimed.data.collate.grounded import GroundedCollator  # noqa: E402
from unimed.data.mixture import KeyedDatasets, Mixture  # noqa: E402
from unimed.engine.config import load_config  # noqa: E402
from unimed.engine.stream import build_datasets  # noqa: E402
from unimed.registry import TASKS  # noqa: E402
from unimed.tasks.grounding import INPUTS  # noqa: E402


def sample_losses(task, batch):
    """{sample id: mean language loss of its answer}."""
    with torch.no_grad():
        logits = task.model(**{name: batch[name] for name in INPUTS if name in batch}).logits
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), labels, reduction="none", ignore_index=-100)
    if batch["layout"].sample_of_token is not None:
        owner = batch["layout"].sample_of_token[:, 1:]
    else:
        owner = torch.arange(len(labels))[:, None].expand_as(labels)
    return {
        f"{place}:{name}": losses[(owner == place) & (labels != -100)].mean().item()
        for place, name in enumerate(batch["sample_ids"])
    }


def main(path, pack=256, batches=8, samples=16):
    torch.set_num_threads(1)
    config = load_config(path)
    task = TASKS.build(config.task)
    datasets, names, weights, _ = build_datasets(config.train_data)
    mixture, keyed = Mixture([len(d) for d in datasets], weights, seed=0), KeyedDatasets(datasets, names)
    drawn = [[keyed[mixture[i]][0] for i in range(n * samples, (n + 1) * samples)] for n in range(batches)]
    ways = {way: GroundedCollator(task.processor, pack=size) for way, size in (("padded", 0), ("packed", pack))}
    made = {way: [collate(part) for part in drawn] for way, collate in ways.items()}
    task.eval()
    differences = []
    for padded, packed in zip(made["padded"], made["packed"], strict=True):
        losses = [
            sorted((key.split(":", 1)[1], v) for key, v in sample_losses(task, b).items()) for b in (padded, packed)
        ]
        differences += [abs(a[1] - b[1]) for a, b in zip(*losses, strict=True)]
    task.train()
    spent, places = dict.fromkeys(made, 0.0), {w: sum(b["input_ids"].numel() for b in made[w]) for w in made}
    tokens = sum(int(b["attention_mask"].sum()) for b in made["padded"])
    for number in range(batches):
        for way in ("padded", "packed", "packed", "padded"):
            began = time.process_time()
            task(made[way][number])["loss"].backward()
            spent[way] += time.process_time() - began
            task.zero_grad(set_to_none=True)
    speed = {way: 2 * tokens / seconds for way, seconds in spent.items()}
    print(
        f"{batches} batches of {samples}: {tokens} tokens in {places['padded']} or {places['packed']} places; "
        f"{speed['padded']:.0f} and {speed['packed']:.0f} tokens/s: ratio {speed['packed'] / speed['padded']:.2f}; "
        f"largest difference of {len(differences)} sample losses {max(differences):.1e}"
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
