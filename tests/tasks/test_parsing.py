"""Training of text-prompted segmenters: batches, falling losses, predictions, scores, and the shipped configs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import unimed
from unimed.data.collate.biomedparse import NoPromptError, ParseCollator, slice_of_volume
from unimed.engine.exporting import export
from unimed.engine.training import train
from unimed.evaluation.scorers.parsing import score_parsing
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.registry import TASKS
from unimed.structures import Region, Sample

CONFIGS = Path(__file__).parents[2] / "configs" / "biomedparse"
SMALL_MODEL = dict(
    prompts=["disc", "square"], image_size=64, embed_dim=8, hidden_size=32, ffn_size=32, depths=(1, 1, 1, 1),
    decoder_layers=3, encoder_layers=1, num_queries=4, edge_queries=1, vocabulary=520, detach_existence=False,
)  # fmt: skip


def picture(index=0, present=("disc",), size=(48, 40)):
    image = np.random.default_rng(index).integers(0, 60, size).astype(np.uint8)
    yy, xx = np.mgrid[: size[0], : size[1]]
    shapes = {"disc": (yy - 15) ** 2 + (xx - 12) ** 2 < 80, "square": (yy > 28) & (xx > 20)}
    regions = []
    for name, mask in shapes.items():
        if name in present:
            image[mask] += 150
            regions.append(Region(name, mask=mask, presence=1.0))
        else:
            regions.append(Region(name, presence=0.0))
    return Sample(
        images=(image,), geometry=Geometry.pixels(), sample_id=f"s{index}", regions=tuple(regions),
        modality="drawing", patient_id=f"p{index}",
    )  # fmt: skip


def volume(depth=5):
    slices = [picture(z, ("disc",) if z > 1 else ()) for z in range(depth)]
    mask = np.stack([s.regions[0].mask if s.regions[0].mask is not None else np.zeros((48, 40), bool) for s in slices])
    return Sample(
        images=(np.stack([s.images[0] for s in slices]),), geometry=Geometry(np.eye(4)), sample_id="v",
        regions=(Region("disc", mask=mask, presence=1.0), Region("square", presence=0.0)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return TASKS.build(dict(type="ParseTask", model=SMALL_MODEL))


def test_a_batch_of_uneven_prompts(task):
    fewer = picture(1)
    object.__setattr__(fewer, "regions", fewer.regions[:1])
    batch = ParseCollator(task.processor)([picture(0), fewer, volume()])
    assert batch["pixel_values"].shape == (3, 3, 64, 64) and 0 <= batch["pixel_values"].min()
    assert batch["num_prompts"].tolist() == [2, 1, 2] and batch["labels"].shape == (5, 64, 64)
    assert [bool(row.any()) for row in batch["labels"]] == [True, False, True, True, False]
    with pytest.raises(NoPromptError, match="s0"):
        empty = picture(0)
        object.__setattr__(empty, "regions", ())
        ParseCollator(task.processor)([empty])
    with pytest.raises(ValueError, match="no mask"):
        unknown = picture(0)
        object.__setattr__(unknown, "regions", (Region("disc", presence=1.0),))
        ParseCollator(task.processor)([unknown])


def test_small_things_survive_resizing_and_instances_keep_their_numbers(task):
    point = np.zeros((300, 200), bool)
    point[151, 99] = True
    labels = task.processor.labels(point)
    assert labels.shape == (64, 64) and labels.sum() == 1
    numbers = np.zeros((64, 64), np.int32)
    numbers[:32], numbers[32:] = 300, 7
    assert set(task.processor.labels(numbers).unique().tolist()) == {300, 7}


def test_slice_of_a_volume_shows_the_target():
    cut = slice_of_volume(volume())
    assert cut.images[0].shape == (48, 40, 3) and cut.regions[0].mask.any() and cut.regions[1].mask is None
    assert np.array_equal(cut.images[0][..., 1], volume().images[0][1])
    assert slice_of_volume(picture(0)).images[0].ndim == 2


def test_the_loss_falls_and_masks_and_existence_are_learnt():
    torch.manual_seed(0)
    task = TASKS.build(dict(type="ParseTask", model=SMALL_MODEL, learning_rates={"backbone.": 0.5}))
    samples = [picture(0, ("disc",)), picture(1, ("square",)), picture(2, ("disc", "square")), picture(3, ())]
    batch = ParseCollator(task.processor)(samples)
    groups = task.train_parameters()
    assert sorted(group["lr_mult"] for group in groups) == [0.5, 1.0]
    optimizer = torch.optim.AdamW([{"params": g["params"], "lr": 3e-3 * g["lr_mult"]} for g in groups])
    losses = []
    for _ in range(60):
        parts = task(batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimizer.step()
        losses.append({name: float(value.detach()) for name, value in parts.items()})
    assert losses[-1]["loss"] < 0.5 * losses[0]["loss"]
    # Of single steps it jumps: whichever points were drawn, and however sums were rounded, the mean of ten falls.
    assert np.mean([step["existence"] for step in losses[-10:]]) < 0.7 * losses[0]["existence"]
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
    task.eval()
    scores = task.score(samples, task.predict_samples(samples))
    assert scores["summary"]["dice_mean_over_cases"] > 0.6
    assert {row["target"] for row in scores["tables"]["targets"]} == {"disc", "square"}
    made = task.predict_samples([volume(), picture(5)])
    assert made[0].regions[0].mask.shape == (5, 48, 40) and made[1].regions[0].mask.shape == (48, 40)
    assert task.validate([volume()])["prompts"] == 2


def test_validation_measures_what_users_get(task):
    sample, phrases = volume(), "disc[SEP]square"
    (measured,) = task.predict_samples([sample])
    given = task.model.predict((sample.images[0], sample.geometry), phrases)
    assert measured.to_dict()["targets"] == given.to_dict()["targets"]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(measured.regions, given.regions, strict=True))
    (measured,) = task.predict_samples([picture(3)])
    given = task.model.predict(picture(3).images[0], phrases)
    assert [r.presence for r in measured.regions] == [r.presence for r in given.regions]


def test_parts_can_be_frozen():
    frozen = TASKS.build(dict(type="ParseTask", model=SMALL_MODEL, freeze=["text."]))
    frozen(ParseCollator(frozen.processor)([picture(0)]))["loss"].backward()
    assert {n.split(".")[0] for n, p in frozen.model.named_parameters() if p.grad is None} == {"text"}
    with pytest.raises(ValueError, match="unknown loss weights"):
        TASKS.build(dict(type="ParseTask", model=SMALL_MODEL, loss_weights={"dicee": 1}))


def test_scores_tell_misses_from_false_masks():
    truth = picture(0, ("disc",))
    mask = truth.regions[0].mask
    perfect = Prediction("", (Region("disc", mask=mask, presence=0.9), Region("square", mask=~mask, presence=0.8)))
    missed = Prediction("", (Region("disc", mask=mask & False, presence=0.2), Region("square", presence=0.1)))
    scores = score_parsing([truth, truth], [perfect, missed])["summary"]
    assert scores["dice_mean_over_cases"] == 0.5 and scores["prompts"] == 4 and scores["present"] == 2
    assert scores["false_mask_rate"] == 0.5 and scores["missed_mask_rate"] == 0.5
    assert (scores["true_positive"], scores["false_positive"], scores["false_negative"]) == (0.25, 0.25, 0.25)
    turned = score_parsing([truth], [Prediction("", perfect.regions[::-1])])["summary"]
    assert turned["dice_mean_over_cases"] == 1, "the order does not matter"
    missing = score_parsing([truth], [Prediction("", perfect.regions[1:])])["summary"]
    assert missing["dice_mean_over_cases"] == 0 and missing["missed_mask_rate"] == 1
    further = Prediction("", (*perfect.regions[:1], Region("cyst", mask=mask, presence=0.9)))
    assert score_parsing([truth], [further])["summary"]["false_mask_rate"] == 0.5


def test_train_resume_test_and_export(tmp_path, monkeypatch):
    """A run through the Runner on a set in BiomedParse's own format, with pictures and a volume to validate on."""
    root = draw_set(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    data = dict(type="BiomedParseDataset", root=str(root), prompts=2, absent=0.5)
    config = dict(
        task=dict(type="ParseTask", model=SMALL_MODEL, batch_size=4),
        train_data=dict(type="AugmentedDataset", dataset=data),
        val_data=dict(
            mixture=[
                dict(dataset=dict(type="BiomedParseDataset", root=str(root), absent=None)),
                dict(dataset=dict(type="ParseVolumes", root=str(root / "volumes"))),
            ]
        ),
        collate=dict(type="ParseCollator"), optimizer=dict(type="AdamW", lr=1e-3), batch_size=2, max_steps=4,
        checkpoint=dict(interval=2), log=dict(interval=1), validate_interval=4, validate_samples=8, seed=0,
    )  # fmt: skip
    whole = train(config, work_dir=tmp_path / "whole")
    records = [json.loads(line) for line in (tmp_path / "whole" / "train.jsonl").read_text().splitlines()]
    shown = [record for record in records if record["kind"] != "train"][-1]
    assert "val_loss" in json.dumps(shown) and "dice_mean_over_targets" in json.dumps(shown)
    half = train(config, work_dir=tmp_path / "half", cfg_options={"max_steps": 2})
    assert half["step"] == 2
    resumed = train(config, work_dir=tmp_path / "half", resume="auto")
    assert resumed["loss"] == whole["loss"]
    export(config, tmp_path / "whole", tmp_path / "model")
    model = unimed.load(tmp_path / "model", device="cpu")
    assert model.predict(picture(0).images[0], "disc").regions[0].mask.shape == (48, 40)


def draw_set(root):
    """Four pictures in the PNG format with JSON, and one NPZ volume."""
    from PIL import Image

    from unimed.io.challenge import read_prompts

    annotations, images = [], []
    for split in ("train", "train_mask", "volumes"):
        (root / split).mkdir(parents=True)
    for k, present in enumerate((("disc",), ("square",), ("disc", "square"), ("disc",))):
        sample = picture(k, present)
        name = f"p{k}_drawing_paper.png"
        Image.fromarray(sample.images[0]).save(root / "train" / name)
        images.append({"id": k, "file_name": name, "height": 48, "width": 40})
        for region in sample.regions:
            if region.mask is not None:
                mask = f"p{k}_drawing_paper_{region.phrase}.png"
                Image.fromarray(region.mask.astype(np.uint8) * 255).save(root / "train_mask" / mask)
                sentences = [{"raw": f"{region.phrase} in paper drawing", "sent": region.phrase}]
                annotations.append({"image_id": k, "file_name": name, "mask_file": mask, "sentences": sentences,
                                    "id": len(annotations)})  # fmt: skip
    (root / "train.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    sample = volume()
    table = np.empty((), object)
    table[()] = {"1": "disc", "2": "square", "instance_label": 0}
    np.savez_compressed(
        root / "volumes" / "Drawing_1.npz", imgs=sample.images[0], gts=sample.regions[0].mask.astype(np.uint8),
        text_prompts=table, spacing=np.ones(3),
    )  # fmt: skip
    assert len(read_prompts(root / "volumes" / "Drawing_1.npz").texts) == 2
    return root


@pytest.mark.parametrize("name", ["_tiny.py", "v2_2d.py", "finetune.py"])
def test_shipped_configs_name_what_exists(name):
    from unimed.engine.config import load_config
    from unimed.registry import COLLATORS, DATASETS

    settings = load_config(CONFIGS / name)
    # Published weights are not here; everything else of the task is as shipped.
    shipped = settings["task"]["model"]
    task = TASKS.build(dict(settings["task"]) | ({} if isinstance(shipped, dict) else {"model": SMALL_MODEL}))
    collate = COLLATORS.build(settings["collate"], processor=task.processor)
    with torch.no_grad():
        assert task(collate([picture(0), picture(1, ())]))["loss"].isfinite()

    def check(entry):
        for part in entry["mixture"] if "mixture" in entry else [{"dataset": entry}]:
            dataset = part["dataset"]
            while dataset["type"] == "AugmentedDataset":
                dataset = dataset["dataset"]
            with pytest.raises(FileNotFoundError):
                DATASETS.build(dict(dataset) | {"root" if "root" in dataset else "path": "nowhere"})

    for key in ("train_data", "val_data"):
        check(settings[key])
    config = load_config(str(CONFIGS / name))
    assert (config.max_steps or config.epochs) > 0
