from dataclasses import replace

import numpy as np
import pytest
import torch
from sam2_models import tiny_sam2_model  # noqa: E402
from small_models import tiny_model  # noqa: E402

from unimed.data.collate.grounded import GroundedCollator, RegionCountError  # noqa: E402
from unimed.geometry import Geometry  # noqa: E402
from unimed.structures import Region, Sample  # noqa: E402
from unimed.tasks.grounding import INPUTS, GroundingTask  # noqa: E402

RNG = np.random.default_rng(0)


def picture(task="referring", answer="It is [SEG].", identifier="a"):
    mask = np.zeros((60, 90), dtype=bool)
    mask[10:40, 20:70] = True
    image = RNG.integers(0, 255, (60, 90), dtype=np.uint8)
    return Sample(
        (image,), Geometry.pixels(), identifier, conversation=(("user", "What is region1?"), ("assistant", answer)),
        regions=(Region("nuclei", mask=mask, presence=1.0),), labels={"task": task},
    )  # fmt: skip


def volume():
    stack = RNG.integers(0, 255, (4, 50, 40), dtype=np.uint8)
    mask = np.zeros(stack.shape, dtype=bool)
    mask[1:3, 10:30, 10:30] = True
    return Sample(
        (stack,), Geometry.pixels(), "v", conversation=(("user", "Please segment it."), ("assistant", "It is [SEG].")),
        regions=(Region("it", mask=mask, presence=1.0),), labels={"task": "volume"},
    )  # fmt: skip


def task_of(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return GroundingTask(str(tmp_path / "model")).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["internvl", "qwen2_5_vl", "small"])
def test_images_regions_and_volumes_share_a_batch(kind, tmp_path):
    task = task_of(tiny_model() if kind == "small" else tiny_sam2_model(kind), tmp_path)
    samples = [picture(), volume(), picture("region", "nuclei.", "b"), picture("region", "nuclei.", "c")]
    samples[3] = replace(samples[3], regions=(Region("all", box_xyxy_px=(0, 0, 90, 60)),))
    collate = GroundedCollator(task.processor)
    batch = collate(samples)
    assert batch["masks"].shape[0] == 5 and batch["presence"].tolist() == [1, 1]
    assert batch["layout"].seg_of_mask.tolist() == [0, 1, 1, 1, 1]
    assert batch["layout"].image_of_mask.tolist() == [0, 1, 2, 3, 4]
    assert batch["masks"][1].sum() == 0 < batch["masks"][2].sum(), "a frame without the thing has an empty target"
    together = task(batch)
    assert torch.isfinite(together["loss"])

    # Every row has the states it has alone.
    def states(batch):
        return task.model(**{n: batch[n] for n in INPUTS if n in batch}).hidden

    rows = states(batch)
    for row, sample in enumerate(samples):
        alone = states(collate([sample]))[0]
        assert torch.allclose(rows[row, : len(alone)], alone, atol=1e-4), row
    # The masks of the volume are those of its own frames.
    output = task.model(**{n: batch[n] for n in INPUTS if n in batch}).masks
    alone = collate([samples[1]])
    alone = task.model(**{n: alone[n] for n in INPUTS if n in alone}).masks
    assert torch.allclose(output.logits[1:], alone.logits, atol=1e-3)


def test_the_region_of_a_question_learns(tmp_path):
    task = task_of(tiny_sam2_model(), tmp_path)
    batch = GroundedCollator(task.processor)([picture("region", "nuclei.")])
    assert len(batch["masks"]) == 0
    index = batch["layout"].token_index
    assert len(index) > index.max() + 1, "tokens under the region stand twice"
    task(batch)["loss"].backward()
    assert task.model.backbone.vlm.model.multi_modal_projector.linear_2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("pack", [0, 64])
def test_an_answer_that_points_in_vain_teaches_presence_alone(tmp_path, pack):
    task = task_of(tiny_model(), tmp_path).train()
    vain = replace(
        picture("absent", "<p> nuclei </p> [SEG].", "b"), regions=(Region("nuclei", presence=0.0),), teaches_words=False
    )
    collate = GroundedCollator(task.processor, pack=pack)
    shown = picture()
    batch = collate([vain, shown, vain])
    assert sorted(batch["presence"].tolist()) == [0, 0, 1] and len(batch["masks"]) == 1
    plain = collate([shown])
    assert task.normalizers(batch)["tokens"] == task.normalizers(plain)["tokens"]
    both, alone = task(batch), task(plain)
    for name in ("text", "dice", "bce"):
        assert torch.allclose(both[name], alone[name], atol=1e-5), name
    assert not torch.allclose(both["presence"], alone["presence"])

    task(collate([vain]))["loss"].backward()
    assert float(task.model.presence_head.weight.grad.abs().sum()) > 0
    silent = [p.grad for p in (*task.model.lm_head.parameters(), *task.model.mask_head.text_decoder.parameters())]
    assert all(grad is None or not grad.any() for grad in silent)
    with pytest.raises(RegionCountError, match="b: "):
        collate([replace(vain, regions=(Region("nuclei", presence=1.0),))])


def test_few_frames_are_read_and_all_are_segmented():
    processor = tiny_sam2_model().processor
    batch = GroundedCollator(processor, language_frames=2)([volume()])
    assert batch["pixel_values"].shape[0] == 2 and batch["layout"].encoded.tolist() == [0, 3]
    assert batch["mask_pixel_values"].shape[0] == 4 == len(batch["masks"])


def test_broken_samples_are_named():
    collate = GroundedCollator(tiny_sam2_model().processor)
    with pytest.raises(RegionCountError, match="sample a: 2"):
        collate([picture(answer="[SEG] [SEG]")])
    wrong = replace(picture("region", "x."), regions=(Region("r", mask=np.ones((3, 3), dtype=bool)),))
    with pytest.raises(ValueError, match="sample a: region 1"):
        collate([wrong])
    with pytest.raises(RegionCountError, match="sample v"):
        collate([replace(volume(), conversation=(("user", "x"), ("assistant", "[SEG] [SEG]")))])


def test_a_task_answers_images_regions_and_volumes_in_order(tmp_path):
    task = task_of(tiny_sam2_model(), tmp_path)
    task.max_new_tokens = 4
    answers = task.predict_samples([volume(), picture(), picture("region", "x.", "b")])
    assert len(answers) == 3
    assert len(task.predict_samples([picture()], blank=True)) == 1
