"""What runs on the device of `rehearsal.py`; `test_rehearsal.py` starts it in a process of its own.

Every registered model, task and mask decoder, in three precisions: what CUDA would refuse is refused here.
"""

import copy
import json

import numpy as np
import pytest
import rehearsal
import torch

DEVICE = rehearsal.start()

from engine import tiny  # noqa: E402
from models import test_every_model as every  # noqa: E402
from sam2_models import say, tiny_sam2_model  # noqa: E402
from small_decoders import DECODER_EXAMPLES  # noqa: E402
from small_models import tiny_mask_config, tiny_model  # noqa: E402
from tasks import test_every_task as tasks  # noqa: E402

import unimed  # noqa: E402
from unimed.engine import testing, train, training  # noqa: E402
from unimed.engine.strategy import Strategy  # noqa: E402
from unimed.engine.stream import to_device  # noqa: E402
from unimed.evaluation.feature_cache import FeatureCache  # noqa: E402
from unimed.models.heads.mask import build_mask_decoder  # noqa: E402

# What its decoder of full size costs is no matter here.
every.SIZES["SmallGroundedMLLM"]["mask_config"] = tiny_mask_config()
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOW = {name: dtype for name, dtype in PRECISIONS.items() if name != "fp32"}
IMAGE = np.random.default_rng(0).integers(0, 255, (50, 60), dtype=np.uint8)


def short(model):
    return dict(max_new_tokens=14) if every.speaks(model) else every.options(model)


# -- the device itself ----------------------------------------------------------------------------------------------
def test_it_refuses_what_cuda_refuses():
    there, here = torch.ones(3, 4, device=DEVICE), torch.ones(3, 4)
    layer = torch.nn.Linear(4, 2)
    mixed = (
        lambda: there + here,
        lambda: there @ here.T,
        lambda: torch.cat([there, here]),
        lambda: layer(there),
        lambda: here * there.sum(),
        lambda: here.mul_(there[0, 0]),
        lambda: here[there[:, 0].long()],
        lambda: torch.stack([there, here]),
        lambda: torch.where(here > 0, there, 0),
        lambda: torch.nn.functional.embedding(here.long(), there),
        lambda: there.index_select(0, torch.tensor([1])),
        lambda: there.masked_fill(here > 0, 0),
    )
    for operation in mixed:
        with rehearsal.refused(RuntimeError, "same device"):
            operation()
    for convert in (there.numpy, lambda: np.asarray(there), lambda: np.stack([there])):
        with rehearsal.refused(TypeError, "Tensor.cpu()"):
            convert()
    with rehearsal.refused(RuntimeError, "generator"):
        torch.randn(3, device=DEVICE, generator=torch.Generator())
    with rehearsal.OneDevice(), rehearsal.refused(RuntimeError, "generator"):
        torch.randn(3, generator=torch.Generator(device=DEVICE))
    with rehearsal.refused(TypeError, "BFloat16"):
        there.bfloat16().cpu().numpy()


def test_it_allows_what_cuda_allows():
    there = torch.arange(12, device=DEVICE).view(3, 4).float()
    assert (there * torch.tensor(2.0)).device == there[torch.tensor([0, 2])].device == there[[0, 2]].device == DEVICE
    assert there.sum().item() == 66 and there.cpu().numpy().shape == (3, 4) and there.tolist()[0][3] == 3
    drawn = torch.rand(3, device=DEVICE, generator=torch.Generator(device=DEVICE).manual_seed(1))
    assert drawn.tolist() == torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist()
    layer = torch.nn.Linear(4, 2).to(DEVICE)
    layer.bias = torch.nn.Parameter(torch.zeros(2, device=DEVICE))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        output = layer(there)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and layer.weight.grad.device == DEVICE
    tied = torch.nn.Sequential(layer, torch.nn.Linear(4, 2))
    tied[1].weight = layer.weight
    assert tied.to("cpu")[1].weight is tied[0].weight


# -- models ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", every.NAMES)
def test_a_model_answers_as_on_the_cpu(name, tmp_path):
    model = every.build(name)
    texts = [every.question(model, number) for number in range(3)]
    before = model.predict_batch(every.IMAGES, texts, **every.options(model))
    # Two of one name differ: equally frequent pairs of letters enter a new vocabulary in any order.
    same = every.say(copy.deepcopy(model), every.ANSWER)
    volume = same.predict((every.ARRAY[:2], every.GRID), every.question(model), **short(model))
    model.to(DEVICE)
    for one, other in zip(model.predict_batch(every.IMAGES, texts, **every.options(model)), before, strict=True):
        assert every.same(one, other)
    model.save_pretrained(tmp_path)
    again = unimed.load(tmp_path, device=DEVICE.type)
    assert again.device == DEVICE
    assert all(torch.equal(value.cpu(), again.state_dict()[key].cpu()) for key, value in model.state_dict().items())
    found = every.say(again, every.ANSWER).predict((every.ARRAY[:2], every.GRID), every.question(model), **short(model))
    assert every.same(found, volume)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("name", every.NAMES)
def test_a_model_answers_in_half_precision(name, precision):
    model = every.say(every.build(name).to(LOW[precision]).to(DEVICE), every.ANSWER)
    for source in (every.IMAGES[0], (every.ARRAY[:2], every.GRID)):
        json.dumps(model.predict(source, every.question(model), **short(model)).to_dict())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", DECODER_EXAMPLES)
def test_a_mask_decoder_learns_and_takes_boxes(name, precision):
    decoder = build_mask_decoder(DECODER_EXAMPLES[name]()).to(PRECISIONS[precision]).to(DEVICE)
    side = decoder.image_size
    features = decoder.encode(torch.rand(2, 3, side, side, device=DEVICE))
    prompts = torch.randn(3, decoder.prompt_dim, device=DEVICE, requires_grad=True)
    index = torch.tensor([1, 0, 1], device=DEVICE)
    decoder.decode(features, index, prompts).logits.float().sum().backward()
    assert prompts.grad.isfinite().all()
    boxes = torch.tensor([[2.0, 3.0, 20.0, 22.0]], device=DEVICE)
    assert decoder.decode_boxes(features, index[:1], boxes).logits.device == DEVICE


@pytest.mark.parametrize("precision", PRECISIONS)
def test_boxes_regions_and_frames(precision):
    model = tiny_model().to(PRECISIONS[precision]).to(DEVICE)
    assert model.segment_boxes(IMAGE, [(5, 5, 20, 30), (0, 0, 60, 50)]).regions[0].mask.shape == (50, 60)
    generator = torch.Generator(device=DEVICE).manual_seed(3)
    told = model.predict(IMAGE, "segment", max_new_tokens=3, temperature=1.0, generator=generator)
    assert isinstance(told.text, str)
    model = say(tiny_sam2_model().to(PRECISIONS[precision]).to(DEVICE), "<p> x </p> [SEG] and [SEG].<|end|>")
    (found,) = model.predict_frames([IMAGE] * 4, ["segment the nuclei"], max_new_tokens=30)
    assert found.regions[0].mask.shape == (4, 50, 60)
    asked = dict(regions=[(5, 5, 30, 40), (0, 0, 9, 9)], max_new_tokens=3)
    assert isinstance(model.predict(IMAGE, "Compare region1 and region2.", **asked).text, str)
    tokenizer = model.processor.tokenizer
    for shown in (dict(image=IMAGE), dict(video=[IMAGE] * 3)):
        told = model.predict_forward(**shown, text="<image>Segment the nuclei.", tokenizer=tokenizer)
        assert isinstance(told["prediction"], str)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_are_kept_and_labels_compared(precision, tmp_path):
    from PIL import Image

    model = every.build("SmallClip").to(PRECISIONS[precision]).to(DEVICE)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    cache = FeatureCache(model, tmp_path / "cache")
    assert np.isfinite(cache.encode([tmp_path / "a.png"])).all()
    names, similarity = cache.similarity([tmp_path / "a.png"], ["liver", "spleen"])[:2]
    assert len(names) == 2 and similarity.shape == (1, 2)


# -- training -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", tasks.EXAMPLES)
def test_a_task_learns_validates_and_is_exported(name, precision, tmp_path):
    task, samples, collator = tasks.EXAMPLES[name]()
    strategy = Strategy("single", task.train(), DEVICE, precision)
    batch = to_device(training.build_collator(dict(type=collator), task)(samples), DEVICE)
    groups = [{k: v for k, v in group.items() if k != "lr_mult"} for group in task.train_parameters()]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    losses = strategy.forward(batch)
    assert losses["loss"].device == DEVICE and losses["loss"].isfinite()
    strategy.backward(losses["loss"])
    strategy.finish_gradients(optimizer, 1.0)
    strategy.step(optimizer)
    task.after_step()
    assert all(isinstance(count, int | float) for count in task.normalizers(batch).values())
    assert isinstance(task.task_summary(), dict | None)
    assert all(tensor.device.type == "cpu" for tensor in strategy.weights().values())
    if precision != "fp32":
        return
    task.eval()
    with torch.no_grad():
        predictions = task.predict_samples(samples)
        assert task.validate(samples, predictions) and task.score(samples, predictions)
    task.export(tmp_path)
    assert unimed.load(tmp_path, device=DEVICE.type).device == DEVICE


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_stops_goes_on_and_is_tested(precision, tmp_path, monkeypatch):
    """Averaging, clipping, accumulation, gradient conflict, checkpoints of the run; on the device from end to end."""
    for module in (training, testing):
        monkeypatch.setattr(module, "start_processes", lambda *_: DEVICE)
    hook = dict(type="GradientConflictHook", interval=3, samples_per_task=4, batch_size=4)
    settings = tiny.everything(
        precision=precision, max_steps=4, validate_interval=2, hooks=[hook], checkpoint=dict(interval=2, keep=2)
    )
    for part, source in zip(settings["train_data"]["mixture"], ("near", "far"), strict=True):
        part["name"] = source
    train(settings, tmp_path)
    settings["max_steps"] = 6
    assert np.isfinite(train(settings, tmp_path, resume="auto")["loss"])
    assert testing.evaluate(settings, tmp_path)
