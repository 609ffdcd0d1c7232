import numpy as np
import pytest
import torch
from small_models import TEXTS, tiny_mask_config

from unimed.data.collate import GroundedCollator, RegionCountError
from unimed.registry import TASKS
from unimed.structures import Geometry, Prediction, Region, Sample
from unimed.tasks.grounding_scores import score_grounding


def sample(index=0, task="referring", answer="<p> nuclei </p> [SEG].", regions=None, **labels):
    image = np.random.default_rng(index).integers(0, 255, (40, 30), dtype=np.uint8)
    mask = np.zeros((40, 30), bool)
    mask[5:20, 4:15] = True
    if regions is None:
        regions = (Region("nuclei", mask=mask, presence=1.0),)
    return Sample(
        images=(image,),
        geometry=Geometry.pixels(),
        sample_id=f"s{index}",
        conversation=(("user", "segment the nuclei"), ("assistant", answer)),
        regions=regions,
        labels={"task": task, **labels},
        patient_id=f"p{index}",
    )


def task(**options):
    model = dict(
        texts=TEXTS, hidden_dim=32, layers=2, heads=2, vision_grid=2, mask_config=tiny_mask_config(), box_head=None
    )
    return TASKS.build(dict(type="GroundingTask", model=model, **options))


def test_the_loss_falls_and_every_learning_part_moves():
    torch.manual_seed(0)
    grounding = task(cache_images=8)
    batch = GroundedCollator(grounding.processor)([sample(0), sample(1)])
    assert batch["masks"].shape == (2, 32, 32) and batch["sample_ids"] == ["s0", "s1"]
    before = {name: p.detach().clone() for name, p in grounding.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(grounding.train_parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = grounding(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    still = [n for n, p in grounding.named_parameters() if n in before and torch.equal(p, before[n])]
    assert still == []
    grounding.eval()
    region = grounding.predict_samples([sample(0)])[0].regions[0]
    assert (region.mask & sample(0).regions[0].mask).sum() > 0.7 * region.mask.sum() > 0


def test_a_batch_without_masks_touches_the_same_parameters():
    grounding = task()
    collate = GroundedCollator(grounding.processor)
    plain = sample(3, "vqa", "two.", ())
    grounding(collate([plain]))["loss"].backward()
    without = {name for name, p in grounding.named_parameters() if p.grad is not None}
    grounding.zero_grad()
    grounding(collate([sample(0)]))["loss"].backward()
    assert without == {name for name, p in grounding.named_parameters() if p.grad is not None}


def test_features_are_kept_and_are_the_same():
    kept, fresh = task(cache_images=8), task()
    fresh.load_state_dict(kept.state_dict())
    batch = GroundedCollator(kept.processor)([sample(0), sample(1)])
    kept.eval(), fresh.eval()
    with torch.no_grad():
        first, second = kept(batch)["loss"], kept(batch)["loss"]
        assert torch.equal(first, second)
        assert abs(first - fresh(batch)["loss"]) < 1e-3  # features are kept in half precision


def test_lora_learns_alone_and_merges(tmp_path):
    grounding = task(lora=dict(r=2))
    learning = [n for n, p in grounding.named_parameters() if p.requires_grad and "language" in n or "lora" in n]
    assert learning and all("lora" in name for name in learning if "layers" in name)
    for name, parameter in grounding.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    batch = GroundedCollator(grounding.processor)([sample(0)])
    expected = grounding.eval()(batch)["text"]
    grounding.export(tmp_path / "model")
    again = TASKS.build(dict(type="GroundingTask", model=str(tmp_path / "model"))).eval()
    assert abs(again(batch)["text"] - expected) < 1e-4


def test_tokens_and_regions_must_match():
    collate = GroundedCollator(task().processor)
    with pytest.raises(RegionCountError, match="s4.*2 .*tokens.* 1 regions"):
        collate([sample(4, answer="[SEG] and [SEG]")])
    absent = sample(5, "absent", "No.", (Region("lesion", presence=0.0),))
    assert len(collate([absent])["masks"]) == 0


def test_unknown_loss_weights_are_named():
    with pytest.raises(ValueError, match="'mask'"):
        task(loss_weights={"mask": 1})


def answered(text, regions=()):
    return Prediction(text, tuple(regions))


def test_scores_stand_beside_their_baselines():
    truth = sample(0).regions[0]
    half = truth.mask.copy()
    half[:12] = False
    samples = [
        sample(0),
        sample(1),
        sample(2, "absent", "No.", (Region("lesion", presence=0.0),)),
        sample(3, "vqa", "two.", (), choices=["one", "two"]),
        sample(4, "caption", "an image of cells.", ()),
    ]
    predictions = [
        answered("nuclei.", [Region("nuclei", mask=truth.mask, presence=0.9)]),
        answered("nuclei.", [Region("nuclei", mask=half, presence=0.8)]),
        answered("Yes, lesion.", [Region("lesion", mask=half, presence=0.7)]),
        answered("Two."),
        answered("an image of cells."),
    ]
    train = [sample(9), sample(8, "vqa", "one.", (), choices=["one", "two"])]
    report = score_grounding(samples, predictions, train, blind=[answered("one.")])
    masks = report["tables"]["masks"][0]
    assert masks["cases"] == 2 and 0.5 < masks["dice"].value < 1.0 and masks["copy_baseline_dice"].value == 1.0
    assert report["summary"]["false_mask_rate"] == 1.0
    answers = report["tables"]["answers"][0]
    assert (answers["correct"].value, answers["majority_baseline"].value, answers["language_only"].value) == (1, 0, 0)
    assert (
        report["summary"]["rouge_l/caption"] == pytest.approx(1.0) if "rouge_l/caption" in report["summary"] else True
    )
    assert "p0" not in str(report["cases"]), "no patient id leaves the task"
    nothing = score_grounding(samples[:1], [answered("I see nothing.")])
    assert nothing["summary"]["dice/nuclei"] == 0.0 and not nothing["cases"][0]["answered"]
