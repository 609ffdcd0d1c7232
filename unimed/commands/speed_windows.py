"""Row of `unimed speed all` for volumes by prompts, beside the same network in MONAI's sliding window."""

from __future__ import annotations

import importlib.util

from unimed.commands.speed_rows import Sizes, operations, row


def volumes(sizes: Sizes, repeat: int, peak: float) -> list[dict]:
    """Two prompts in a phantom of a body that fills 60 % of both sides, with targets in the middle third.

    Ours reads every slice, and with a stride those of the first round and with a find; the other gives every slice to
    the same network, whose FocalNet is as transformers has it. Both end in a label map. The Dice says how far the
    answer with a stride is from that of all slices.
    """
    if not importlib.util.find_spec("monai"):
        return [{"what": "volumes by prompts", "other": "monai is not installed (pip install 'unimed[eval]')"}]
    import torch
    from monai.inferers import sliding_window_inference
    from torch.nn import functional as F

    from unimed.commands.speed_volumes import Knowing, phantom
    from unimed.geometry import Geometry
    from unimed.inference.volume_text import segment_volume
    from unimed.metrics.masks import dice
    from unimed.models.starting.boltzformer import build_small

    prompts, side, depth = ["target one", "target two"], sizes.volume_side, sizes.volume_depth
    model = build_small(prompts, image_size=side).requires_grad_(False)
    array, found, looked_at = phantom(depth, side), {}, {}
    slice_gflop = operations(lambda: model.segment_slices(torch.zeros(1, 3, side, side), prompts))

    def ours(stride: int):
        def work():
            model._kept = None  # the prompts are encoded anew, as in the other way
            knowing = Knowing(model, depth)
            result = segment_volume(knowing, array, Geometry.pixels(), prompts, slice_batch=4, stride=stride)
            found[stride], looked_at[stride] = result.labels, knowing.asked

        return work

    @torch.no_grad()
    def window():
        model._kept = None
        features = model.encode_prompts(prompts)
        stack = torch.from_numpy(array).float()
        padded = F.pad(stack[None, None], (0, 0, 0, 0, 1, 1), mode="replicate")[0, 0]
        # A slice and its neighbors are the channels: [1, 3, D, S, S].
        channels = torch.stack([padded[:-2], padded[1:-1], padded[2:]])[None]

        def network(part):  # [n, 3, 1, S, S]
            images = model.encode_images(part[:, :, 0], record={})  # all at once, as a network is called there
            output = model.segment_slices(images, features, slice_numbers=range(len(part)))
            probability = output.mask_logits.sigmoid() * output.existence[..., None, None]
            return F.interpolate(probability, (side, side), mode="bilinear")[:, :, None]

        model.backbone.rearranged = False
        best = sliding_window_inference(channels, (1, side, side), 4, network, overlap=0.0)[0].max(0)
        model.backbone.rearranged = True
        found["other"] = ((best.indices + 1) * (best.values > 0.5)).to(torch.uint8).numpy()

    rows = []
    for stride in (1, 8):
        named = f"{depth} slices, 2 prompts" + (f", a stride of {stride}" if stride > 1 else "")
        one = row(named, {"ours": ours(stride), "MONAI sliding window": window}, repeat)
        one["share_of_matrix_peak"] = slice_gflop * looked_at[stride] / one["ours_cpu_s"] / peak
        if stride > 1:
            one["dice_with_every_slice"] = dice(found[stride] > 0, found[1] > 0)
        rows.append(one)
    return rows
