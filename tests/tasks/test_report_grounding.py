"""Report grounding: training of every kind, both protocols, scores, disturbance, calibration, shipped configs, demo."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unimed
from unimed.data.collate.grounded import GroundedCollator
from unimed.engine.config import load_config
from unimed.evaluation.scorers.reports import first_box_ious, pair_phrases, score_reports
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.metrics.calibration import Calibration
from unimed.models.grounded.teacher_forcing import teacher_forced
from unimed.models.heads.box_heads import box_heads
from unimed.models.starting.umedground import build_small_umedground
from unimed.registry import COLLATORS, DATASETS, TASKS
from unimed.structures import Region, Sample

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "umedground").glob("*.py"))
TEXTS = ["the square is bright. a disc. Please divide this report into phrases and output bounding boxes. not visible"]
SMALL = dict(
    texts=TEXTS, image_size=64, sam_dim=32, sam_layers=2, clip_size=28, clip_dim=32, hidden_dim=48, layers=2, heads=2,
    vocabulary=400,
)  # fmt: skip


def sample(index=0, boxes=1, height=60, width=80):
    generator = np.random.default_rng(index)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    regions, said = [], []
    for number in range(boxes):
        x, y = int(generator.integers(0, 50)), int(generator.integers(0, 35))
        image[y : y + 20, x : x + 25, number % 3] = 255
        regions.append(Region("square", box_xyxy_px=(x, y, x + 25, y + 20), presence=1.0))
    answer = "<p> square </p> " + (" ".join(["[BOX]"] * boxes) if boxes else "is not visible") + "."
    if not boxes:
        regions.append(Region("square", presence=0.0))
    said = (("user", "the square is bright. Please divide this report into phrases."), ("assistant", answer))
    return Sample((image,), Geometry.pixels(), f"s{index}", conversation=said, regions=tuple(regions),
                  labels={"task": "mrg"}, patient_id=f"p{index}")  # fmt: skip


def task(**options):
    return TASKS.build(dict(type="ReportGrounding", model=SMALL | options.pop("model", {}), **options))


@pytest.mark.parametrize("kind", box_heads())
def test_every_kind_of_head_trains_through_the_whole_model(kind):
    grounding = task(model=dict(box_head=kind))
    batch = GroundedCollator(grounding.processor)([sample(0), sample(1, 2), sample(2, 0)])
    losses = grounding(batch)
    assert losses["box"] > 0 and torch.isfinite(losses["loss"])
    losses["loss"].backward()
    for name in ("mask_head.sam.vision_encoder.patch_embed", "backbone.vlm.model.vision_tower", "seg_projection",
                 "box_head", "backbone.vlm.lm_head"):  # fmt: skip
        gradients = [p.grad for n, p in grounding.model.named_parameters() if n.startswith(name)]
        assert any(g is not None and bool(g.abs().sum() > 0) for g in gradients), name


def test_the_loss_falls():
    torch.manual_seed(0)
    grounding = task(model=dict(box_head="laplace_mixture"))
    batch = GroundedCollator(grounding.processor)([sample(i) for i in range(4)])
    optimizer = torch.optim.Adam(grounding.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        losses = grounding(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append((losses["text"].item(), losses["box"].item()))
    assert history[-1][0] < 0.5 * history[0][0] and history[-1][1] < history[0][1]


def test_published_losses_train_the_first_box_of_each_image_and_sum():
    reference = task(model=dict(box_head="mhp"), compat="reference")
    batch = GroundedCollator(reference.processor)([sample(0, 2), sample(1)])
    alone = [GroundedCollator(reference.processor)([s]) for s in (sample(0, 2), sample(1))]
    reference.eval()
    together = reference(batch)["box"].item()
    assert together == pytest.approx(sum(reference(one)["box"].item() for one in alone), rel=1e-4)
    moved = dict(alone[0])
    moved["boxes_xyxy"] = moved["boxes_xyxy"].clone()
    moved["boxes_xyxy"][1] = torch.tensor([0.0, 0.0, 0.9, 0.9])
    assert reference(moved)["box"].item() == pytest.approx(reference(alone[0])["box"].item())
    ours = task(model=dict(box_head="mhp"))
    ours.eval()
    assert ours(moved)["box"].item() != pytest.approx(ours(alone[0])["box"].item())


def test_the_order_of_boxes_of_one_phrase_does_not_matter():
    grounding = task()
    grounding.eval()
    first = sample(3, 2)
    swapped = replace(first, regions=first.regions[::-1])
    losses = [grounding(GroundedCollator(grounding.processor)([s]))["box"].item() for s in (first, swapped)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_teacher_forced_sees_the_answer_and_free_running_does_not():
    grounding = task(max_new_tokens=4)
    forced = task(protocol="teacher", compat="reference")
    samples = [sample(0), sample(1, 2)]
    predictions = forced.predict_samples(samples)
    assert [len(p.regions) for p in predictions] == [1, 2]
    assert all(region.phrase == "square" and region.box_std_px for p in predictions for region in p.regions)
    result = forced.score(samples, predictions)
    assert result["summary"]["protocol"] == "teacher" and "bleu_1" not in result["summary"]
    assert set(result["tables"]["published"][0]) >= {"AP10", "AP30", "AP50", "mIoU"}
    assert all(isinstance(value, float) for value in forced.validate(samples).values())
    free = grounding.predict_samples(samples)
    hidden = [replace(s, conversation=(s.conversation[0], ("assistant", "something else"))) for s in samples]
    assert [p.text for p in free] == [p.text for p in grounding.predict_samples(hidden)]
    # Boxes of the training pass and of the teacher-forced one are the same.
    batch = GroundedCollator(forced.processor)(samples)
    output = forced.model.eval()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"],
        pixel_values=batch["pixel_values"], mask_pixel_values=batch["mask_pixel_values"],
    )  # fmt: skip
    expected = (output.boxes.boxes_xyxy * 80).clamp(min=0).minimum(torch.tensor([80.0, 60, 80, 60]))
    found = [region.box_xyxy_px for p in predictions for region in p.regions]
    assert np.allclose(found, expected.detach().numpy(), atol=1e-2)


@pytest.mark.parametrize("kind", ["medsam_lite", "sam2_video"])
def test_other_mask_heads_decode_boxes_too(kind):
    """The SAM 2 decoder of the unified model and LiteMedSAM's: same box head, same training."""
    from unimed.models.checkpoints.sam2 import sam2_video_config
    from unimed.models.grounded.modeling import GroundedMLLM

    model = build_small_umedground(**SMALL)
    config = model.config
    if kind == "sam2_video":
        config.mask_config = sam2_video_config(
            16, [1, 1, 2, 1], 1, [3], [8, 4, 4, 4], [7, 7], hidden_dim=32, image_size=128, memory_layers=1,
            memory_feed_forward=32, memory_dim=16, decoder_mlp=32, iou_hidden=16,
        )  # fmt: skip
    else:
        sys.path.insert(0, str(ROOT / "tests" / "models" / "grounded"))
        from small_models import tiny_mask_config

        config.mask_config = tiny_mask_config()
    other = GroundedMLLM(config)
    other.processor = model.processor
    other.processor.mask_size = other.mask_head.image_size
    grounding = TASKS.build(dict(type="ReportGrounding", model=other))
    losses = grounding(GroundedCollator(other.processor)([sample(0), sample(1, 2)]))
    losses["box"].backward()
    assert other.seg_projection[0].weight.grad.abs().sum() > 0


def test_scores_of_phrases_with_zero_one_and_many_boxes():
    samples = [sample(0), sample(1, 2), sample(2, 0)]
    perfect = [
        Prediction("square", tuple(r for r in s.regions if r.box_xyxy_px is not None)) for s in samples
    ]  # fmt: skip
    scores = score_reports(samples, perfect)["summary"]
    assert scores["miou"] == 1 and scores["acc_at_50"] == 1 and scores["miou_mean_over_phrases_zero"] == 1
    assert scores["phrase_exact_f1_micro"] == scores["phrase_iou_f1_micro"] == 1 and scores["bleu_1"] > 0.5
    box = (0, 0, 5, 5)
    wrong = [Prediction("square", (Region("the bright square", box_xyxy_px=box),))] * 3
    scores = score_reports(samples, wrong)["summary"]
    assert scores["false_box_rate"] == 1 and scores["phrase_exact_f1_micro"] == 0
    assert scores["phrase_words_f1_micro"] > 0 and scores["miou"] < 0.5
    assert [len(found) for _, _, found in pair_phrases(samples[0], wrong[0])] == [1]
    # A box whose phrase is another thing belongs to no phrase.
    assert pair_phrases(samples[0], Prediction("", (Region("effusion", box_xyxy_px=box),)))[0][2] == []
    assert first_box_ious(samples, perfect) == [1.0, 1.0]
    beside = score_reports(samples, perfect, train=samples[:1])
    rows = [row for row in beside["cases"] if row["kind"] == "box"]
    assert rows[0]["mean_box_iou"] == 1 and rows[1]["mean_box_iou"] < 1
    assert "mean_box_miou" in beside["tables"]["summary"][0]
    nothing = score_reports(samples, [Prediction("")] * 3)["summary"]
    assert nothing["miou"] == 0 and nothing["miou_mean_over_phrases_zero"] == 1
    assert score_reports([], [])["summary"]["reports"] == 0


def test_disturbance_moves_the_truth_along(tmp_path):
    grounding = task(protocol="teacher", robustness=dict(kinds=("noise", "letterbox"), severities=(1, 5)))
    grounding.eval()
    samples = [sample(i) for i in range(6)]
    rows = grounding.score(samples, grounding.predict_samples(samples))["tables"]["robustness"]
    assert [(row["kind"], row["severity"]) for row in rows] == [
        ("none", 0), ("noise", 1), ("noise", 5), ("letterbox", 1), ("letterbox", 5),
    ]  # fmt: skip
    assert all({"miou", "aurc", "coverage"} <= set(row) and row["protocol"] == "teacher" for row in rows)
    assert math.isnan(rows[0]["coverage"])
    cases = [row for row in score_reports(samples, grounding.predict_samples(samples))["cases"] if row["kind"] == "box"]
    Calibration.fit(cases * 5, alpha=0.2).save(tmp_path / "calibration.json")
    calibrated = task(
        protocol="teacher", robustness=dict(kinds=("noise",), severities=(5,)),
        calibration=str(tmp_path / "calibration.json"),
    )  # fmt: skip
    calibrated.eval()
    rows = calibrated.disturbed(samples)
    assert 0 <= rows[0]["coverage"] <= 1 and 0 <= rows[0]["ece_at_50"] <= 1


def test_a_calibration_file_changes_what_a_loaded_model_says(tmp_path):
    model = build_small_umedground(**SMALL)
    model.save_pretrained(tmp_path / "model")
    samples = [sample(i) for i in range(8)]
    said = teacher_forced(model, [s.images[0] for s in samples], [s.conversation[0][1] for s in samples],
                          [s.conversation[1][1] for s in samples])  # fmt: skip
    cases = [row for row in score_reports(samples, said)["cases"] if row["kind"] == "box"]
    rows = [row for row in cases if row["predicted_box_xyxy_px"] is not None]
    Calibration.fit(rows * 3, alpha=0.2).save(tmp_path / "calibration.json")
    plain = unimed.load(tmp_path / "model")
    for (name, a), (_, b) in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    calibrated = unimed.load(tmp_path / "model", calibration=tmp_path / "calibration.json")
    for one in (plain, calibrated):
        speak(one)
    raw, sure = (
        one.predict(samples[0].images[0], "square", max_new_tokens=2).regions[0] for one in (plain, calibrated)
    )
    assert raw.box_xyxy_px == sure.box_xyxy_px and raw.box_outer_xyxy_px is None
    assert sure.box_outer_xyxy_px is not None and sure.confidence != raw.confidence
    assert sure.box_std_px != raw.box_std_px
    with pytest.raises(ValueError, match="not a calibration file|not a JSON"):
        (tmp_path / "junk.json").write_text("{}")
        unimed.load(tmp_path / "model", calibration=tmp_path / "junk.json")


def speak(model):
    """Make a model say [BOX] and stop, whatever it is asked."""
    sys.path.insert(0, str(ROOT / "tests" / "models" / "grounded"))

    class Scripted(torch.nn.Module):
        def __init__(self, head, script):
            super().__init__()
            self.weight, self.script, self.step = head.weight, script, 0

        def forward(self, hidden):
            logits = torch.zeros(len(hidden), len(self.weight))
            logits[:, self.script[self.step % len(self.script)]] = 3
            self.step += 1
            return logits

    stop = model.processor.tokenizer.eos_token_id
    model.prompt_lookup_num_tokens = 0  # a token for every pass
    model.backbone.vlm.lm_head = Scripted(model.lm_head, [model.config.box_token_id, stop])


def test_cache_and_no_cache_give_the_same_boxes():
    model = build_small_umedground(**SMALL).eval()
    image = sample(0).images[0]
    speak(model)
    cached = model.predict(image, "square", max_new_tokens=3)
    speak(model)
    anew = model.predict(image, "square", max_new_tokens=3, use_cache=False)
    from unimed.models.grounded.uncached_decoding import decode_without_cache

    speak(model)
    _, published = decode_without_cache(model, image, "square", 3)
    assert np.allclose(published[0][0], cached.regions[0].box_xyxy_px, atol=1e-3)
    assert cached.regions and np.allclose(cached.regions[0].box_xyxy_px, anew.regions[0].box_xyxy_px, atol=1e-3)
    assert 0 < cached.regions[0].confidence < 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_whole(path):
    settings = load_config(path)
    assert settings["task"]["type"] == "ReportGrounding"
    COLLATORS.get(settings["collate"]["type"])
    # The names that are frozen and learnt exist in the architecture.
    model = build_small_umedground(**SMALL)
    names = [name for name, _ in model.named_parameters()]
    for beginning in [*settings["task"].get("freeze", ()), *settings["task"].get("trainable", ())]:
        assert any(name.startswith(beginning) for name in names) or "shared_image" in beginning, beginning
    if path.stem == "_tiny":
        return
    assert settings["optimizer"]["lr"] == 3e-4 and settings["accumulate"] * settings["batch_size"] == 20
    lora = settings["task"]["lora"]
    assert (lora["r"], lora["lora_alpha"], list(lora["target_modules"])) == (8, 16, ["q_proj", "v_proj"])


def test_the_published_recipe_freezes_and_adapts_what_it_should():
    published = load_config(ROOT / "configs" / "umedground" / "mrg_ms_cxr.py")["task"]
    options = {k: published[k] for k in ("freeze", "trainable", "lora", "loss_weights", "box_options")}
    grounding = task(sam_lora=dict(r=2), **options)
    learning = {name for name, p in grounding.model.named_parameters() if p.requires_grad}
    assert any("q_proj.lora_A" in name for name in learning) and any("qkv.lora_A" in name for name in learning)
    assert not any("k_proj" in name and "backbone" in name for name in learning)
    assert any(name.startswith("backbone.vlm.lm_head") for name in learning)
    assert any("embed_tokens" in name for name in learning)
    assert any(name.startswith("mask_head.sam.mask_decoder") for name in learning)
    assert not any("vision_tower" in n or "prompt_encoder" in n or "multi_modal_projector" in n for n in learning)


def test_trained_from_sample_records_and_shown_by_the_demo(tmp_path, capsys):
    """RecordReports -> a few steps of the tiny config's task -> export -> demo over a file of cases."""
    records = tmp_path / "records"
    records.mkdir()
    (tmp_path / "images").mkdir()
    lines = []
    for index in range(3):
        image, mask = np.zeros((40, 48), np.uint8), np.zeros((40, 48), np.uint8)
        mask[5 + index : 25, 6:30] = 255
        image[mask > 0] = 200
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / "images" / f"{index}-m.png")
        region = {"phrase": "nuclei", "mask": f"images/{index}-m.png", "box_xyxy_px": None, "present": True}
        common = {"image": f"images/{index}.png", "patient_id": f"p{index}", "question": "what is to be seen?"}
        lines.append(
            common
            | {"id": f"r{index}", "task": "report", "answer": "There are <p> nuclei </p> [SEG].", "regions": [region]}
        )
        absent = region | {"phrase": "lesion", "mask": None, "present": False}
        lines.append(
            common | {"id": f"a{index}", "task": "absent", "answer": "No, there is no lesion.", "regions": [absent]}
        )
    for split in ("train", "test"):
        (records / f"{split}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    dataset = DATASETS.build(dict(type="RecordReports", path=str(tmp_path), split="test"))
    assert len(dataset) == 3
    one = dataset[1]
    assert one.conversation[1][1] == "<p> nuclei </p> [BOX]. <p> lesion </p> is not visible."
    assert one.regions[0].box_xyxy_px == (6, 6, 30, 25) and "There is no lesion." in one.labels["text"]
    grounding = task(model=dict(texts=str(records / "train.jsonl")))
    GroundedCollator(grounding.processor)([dataset[i] for i in range(3)])
    speak(grounding.model)
    grounding.model.backbone.vlm.lm_head = torch.nn.Linear(48, len(grounding.processor.tokenizer), bias=False)
    grounding.export(tmp_path / "model")
    sys.path.insert(0, str(ROOT))
    from unimed.commands.umedground import ground_reports

    cases = [{"image": f"images/{i}.png", "report": "There are nuclei."} for i in range(2)]
    cases.append({"image": "images/none.png", "report": "There are nuclei."})
    (tmp_path / "cases.jsonl").write_text("\n".join(json.dumps(case) for case in cases))
    arguments = ["--model_path", str(tmp_path / "model"), "--work-dir", str(tmp_path / "out"), "--max-new-tokens", "6"]
    assert ground_reports(["--cases", str(tmp_path / "cases.jsonl"), *arguments]) == 2
    shown = capsys.readouterr()
    assert "2 of 3 reports" in shown.out and "none.png" in shown.err
    assert (tmp_path / "out" / "images_0.json").is_file() and (tmp_path / "out" / "images_1.png").is_file()
    beside = ["--model_path", str(tmp_path / "model"), "--work-dir", str(tmp_path)]
    assert ground_reports(["--cases", str(tmp_path / "cases.jsonl"), *beside]) == 1
    assert "would replace this file" in capsys.readouterr().err
    assert ground_reports(["--image", str(tmp_path / "images" / "0.png"), *arguments]) == 1
    assert "--report" in capsys.readouterr().err
