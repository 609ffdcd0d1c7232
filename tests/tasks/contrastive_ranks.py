"""Started by torchrun on two ranks: recorded losses of two ranks, and gradients of a small task against one process."""

import json
import sys

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from unimed.losses.contrastive import clip_loss, siglip_loss
from unimed.tasks.contrastive import ContrastiveTask

SIZES = dict(image_size=16, patch_size=8, width=32, layers=2, text_width=32, text_layers=1, embed_dim=16, vocabulary=60)


def small(loss="clip", chunk_size=None, multi_positive=False):
    model = dict(texts=["a lung", "the heart", "liver and spleen", "no finding"], **SIZES)
    return ContrastiveTask(model, loss, chunk_size, multi_positive).eval()


def batch(count=8):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 255, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    texts = ["a lung", "the heart", "liver and spleen", "no finding"] * (count // 4)
    ids, _ = small().processor.texts(texts)
    return {"images": images, "input_ids": ids, "groups": torch.arange(count) % 4}


def part(whole, rank):
    return {key: value[4 * rank : 4 * rank + 4] for key, value in whole.items()}


def gradients(task, inputs):
    task.zero_grad()
    loss = task(inputs)["loss"]
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def main(recording, out):
    whole = batch()
    options = (("clip", None, False), ("clip", 2, False), ("clip", None, True), ("siglip", None, False))
    alone = {option: gradients(small(*option), whole) for option in options}
    gradients_alone = gradients(small(), part(whole, 0))[0]
    dist.init_process_group("gloo")
    rank, results = dist.get_rank(), {}
    t = load_file(recording)
    image = t[f"rank{rank}.image_features"].requires_grad_()
    text = t[f"rank{rank}.text_features"].requires_grad_()
    scale = torch.tensor(10.0, requires_grad=True)
    loss = clip_loss(image, text, scale)
    loss.backward()
    name = f"rank{rank}.local_True.gathergrad_True"
    found = {"loss": loss.detach(), "gimg": image.grad, "gtxt": text.grad, "gscale": scale.grad}
    results["recorded"] = max(float((found[key] - t[f"{name}.{key}"]).abs().max()) for key in found)
    for option in options:
        loss, mine = gradients(small(*option), part(whole, rank))
        total = torch.tensor(loss)
        dist.all_reduce(total)
        worst = abs(float(total) / 2 - alone[option][0])
        for key, gradient in mine.items():
            dist.all_reduce(gradient)
            worst = max(worst, float((gradient / 2 - alone[option][1][key]).abs().max()))
        results["/".join(map(str, option))] = worst
    if rank == 0:  # validation: ranks may hold batches of different number, so nothing is exchanged
        with torch.no_grad():
            results["validation"] = abs(float(small()(part(whole, 0))["loss"]) - gradients_alone)
    results["gathered_sigmoid"] = float(siglip_loss(image, text, scale, torch.tensor(-1.0)).detach())
    if rank == 0:
        with open(out, "w") as stream:
            json.dump(results, stream)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
