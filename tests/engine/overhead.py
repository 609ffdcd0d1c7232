"""What a step of the engine costs beside a bare PyTorch loop: `python tests/engine/overhead.py [STEPS] [ROUNDS]`.

The same language model (6 M parameters, 4 x 128 tokens), the same batches, optimiser and clipping. Engine and bare loop
take turns; CPU seconds are counted, so that other work on the machine does not. The first steps are left out.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.hooks import Hook

sys.path.insert(0, str(Path(__file__).parents[2]))

from unimed.data.mixture import Mixture  # noqa: E402
from unimed.engine import train  # noqa: E402
from unimed.registry import COLLATORS, DATASETS, HOOKS, TASKS  # noqa: E402
from unimed.tasks.base import Task  # noqa: E402


@DATASETS.register_module()
class Tokens:
    def __len__(self):
        return 4096

    def __getitem__(self, index):
        return torch.randint(0, 1000, (128,), generator=torch.Generator().manual_seed(index))


@COLLATORS.register_module()
class Stack:
    def __call__(self, samples):
        return {"input_ids": torch.stack(samples)}


@TASKS.register_module()
class Language(Task):
    def __init__(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=5, num_attention_heads=4)
        super().__init__(LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)))

    processor = None

    def forward(self, batch):
        return {"loss": self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss}


@HOOKS.register_module()
class Stamps(Hook):
    times: list[float] = []

    def after_train_iter(self, *args, **kwargs):
        self.times.append(time.process_time())


def engine(steps):
    Stamps.times.clear()
    with tempfile.TemporaryDirectory() as folder:
        train(
            dict(
                task=dict(type="Language"),
                train_data=dict(type="Tokens"),
                collate=dict(type="Stack"),
                optimizer=dict(type="AdamW", lr=1e-4),
                batch_size=4,
                max_steps=steps,
                clip=1.0,
                device="cpu",
                hooks=[dict(type="Stamps")],
                checkpoint=dict(interval=0, keep=1),
                log=dict(interval=10, curves=False),
            ),
            folder,
        )
    return list(Stamps.times)


def bare(steps):
    torch.manual_seed(0)
    model, data, order = Language(), Tokens(), Mixture([4096])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    keys = [[order[i].index for i in range(4 * s, 4 * s + 4)] for s in range(steps)]
    loader = torch.utils.data.DataLoader(data, batch_sampler=keys, collate_fn=Stack())
    times = []
    for batch in loader:
        loss = model(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if len(times) % 10 == 0:
            loss.item()
        times.append(time.process_time())
    return times


def seconds(times):
    return [later - earlier for earlier, later in zip(times[3:], times[4:], strict=False)]


def main(steps=40, rounds=4):
    torch.set_num_threads(1)
    with_engine, without = [], []
    for _ in range(rounds):
        with_engine += seconds(engine(steps))
        without += seconds(bare(steps))
    first, second = statistics.median(with_engine), statistics.median(without)
    print(f"engine {1000 * first:.1f} ms, bare loop {1000 * second:.1f} ms of CPU per step: ratio {first / second:.3f}")
    return first / second


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
