"""What every family must do: be saved and loaded, answer about images and volumes alike, learn, and run in bfloat16."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoProcessor, pipeline

import unimed
from unimed.geometry import Geometry, reorient
from unimed.io.errors import ImageError
from unimed.io.result import Prediction
from unimed.io.write import write_nifti
from unimed.models.boltzformer import BiomedParseV1Config, BiomedParseV1Model
from unimed.models.grounded import GroundedMLLM
from unimed.models.predictor import OF_THE_SOURCE, Predictor
from unimed.registry import MODELS, keywords, registered

TEXTS = ["where is the liver?", "<p> the liver </p> is normal", "no nuclei are seen", "the spleen, left kidney"]
#: Every builder of small models, with sizes for tests.
SIZES = {
    "SmallGroundedMLLM": dict(texts=TEXTS, hidden_dim=32, layers=1, heads=2, vision_grid=2),
    "TinyGroundedMLLM": dict(texts=TEXTS),
    "SmallUMedGround": dict(texts=TEXTS, hidden_dim=32, layers=1, sam_dim=16, sam_layers=2, clip_dim=16),
    "SmallUniMed": dict(texts=TEXTS, image_size=56, vision_dim=32, vision_layers=1, hidden_dim=32, layers=1),
    "SmallClip": dict(texts=TEXTS, width=32, layers=1, text_width=32, text_layers=1),
    "SmallBoltzFormer": dict(prompts=TEXTS, image_size=64),
}
NAMES = [*SIZES, "BiomedParseV1"]
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, size, dtype=np.uint8) for size in ((60, 80, 3), (50, 40), (64, 64, 3))]
#: Axial slices first, and the grid they lie in: axis 0 to S, axis 1 to P, axis 2 to L.
ARRAY = RNG.integers(-500, 500, (5, 30, 40)).astype(np.int16)
GRID = Geometry(np.diag([3.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]] * [[-1], [-1], [1], [1]])
ANSWER = "<p> x </p> [SEG]."


def build(name, seed=0):
    if name != "BiomedParseV1":
        return MODELS.build(dict(type=name, **SIZES[name])).eval()
    from unimed.models.boltzformer.tokenizing import train_tokenizer

    tokenizer = train_tokenizer(TEXTS, 540)
    torch.manual_seed(seed)
    model = BiomedParseV1Model(BiomedParseV1Config.tiny(text_vocab_size=len(tokenizer), image_size=64)).eval()
    model.tokenizer = tokenizer
    return model


def speaks(model) -> bool:
    return not hasattr(model, "segment_slices") and not hasattr(model, "zero_shot")


def question(model, number=0):
    """A question of the family, and options that keep its answer short."""
    if hasattr(model, "zero_shot"):
        return ["liver", "spleen"]
    if hasattr(model, "segment_slices"):
        return ("liver[SEP]spleen", "left kidney", "spleen")[number]
    return ("where is the liver?", "segment the spleen", "is it normal?")[number]


def options(model):
    if hasattr(model, "segment_slices"):
        return dict(presence_threshold=0.0)
    return dict(max_new_tokens=6) if speaks(model) else {}


def say(model, text):
    """Make every answer of a language model this text."""
    if not isinstance(model, GroundedMLLM):
        return model
    ids = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*ids, model.processor.stop_ids[0]]

    class Scripted(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.weight, self.step = head.weight, 0

        def forward(self, hidden):
            logits = torch.zeros(*hidden.shape[:-1], self.weight.shape[0], device=hidden.device)
            logits[..., ids[self.step % len(ids)]] = 1
            self.step += 1
            return logits

    head = model.lm_head
    model.prompt_lookup_num_tokens = 0  # a token for every pass
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is head:
                setattr(module, name, Scripted(head))
    return model


def points(model) -> bool:
    """Whether its answers have masks: it segments by prompts, or has a mask head and a token [SEG]."""
    if hasattr(model, "segment_slices"):
        return True
    if not speaks(model) or model.mask_head is None:
        return False
    return model.config.seg_token_id in model.processor.tokenizer("[SEG]", add_special_tokens=False)["input_ids"]


def same(first: Prediction, second: Prediction) -> bool:
    """Equal texts and places, masks but for pixels at the border of a decision."""
    if first.text != second.text or len(first.regions) != len(second.regions):
        return False
    if first.classes is not None:
        return np.allclose(first.classes.probabilities, second.classes.probabilities, atol=1e-4)
    for a, b in zip(first.regions, second.regions, strict=True):
        if a.phrase != b.phrase or (a.mask is None) != (b.mask is None):
            return False
        if a.mask is not None and (a.mask != b.mask).mean() > 0.01:
            return False
    return True


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return build(request.param)


def test_every_small_model_is_tried():
    assert sorted(SIZES) == sorted(name for name in registered(MODELS) if name.startswith(("Small", "Tiny")))


def test_saved_loaded_and_opened_by_transformers(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    before = model.predict(IMAGES[0], question(model), **options(model))
    loaded = unimed.load(tmp_path / "m", device="cpu")
    opened = AutoModel.from_pretrained(tmp_path / "m").eval()
    for other in (loaded, opened):
        assert type(other) is type(model)
        assert same(other.predict(IMAGES[0], question(model), **options(model)), before)
    if type(model).shim_processor is not None:
        processor = AutoProcessor.from_pretrained(tmp_path / "m")
        assert type(processor) is type(model.processor)
    pipe = pipeline("grounded-image-text", model=str(tmp_path / "m"), device="cpu")
    told = pipe(IMAGES[0], text=question(model), **options(model))
    assert json.loads(json.dumps(told))["text"] == before.text


@pytest.mark.parametrize("form", ["array", "pil", "path", "tensor"])
def test_an_image_in_every_form(model, form, tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    image = {"array": IMAGES[0], "pil": Image.fromarray(IMAGES[0]), "path": str(tmp_path / "a.png")} | {
        "tensor": torch.from_numpy(IMAGES[0]).permute(2, 0, 1) / 255
    }
    image = image[form]
    found = model.predict(image, question(model), **options(model))
    assert isinstance(found, Prediction) and isinstance(found.text, str)
    assert found.image is not None and tuple(found.image.shape) == IMAGES[0].shape[:2]
    assert found.model_reference is not None and found.timing_s
    assert all(region.mask is None or region.mask.shape == IMAGES[0].shape[:2] for region in found.regions)
    json.dumps(found.to_dict())


def test_the_same_answer_at_any_batch_size_and_order(model):
    texts = [question(model, number) for number in range(3)]
    alone = [model.predict(image, text, **options(model)) for image, text in zip(IMAGES, texts, strict=True)]
    for size, order in ((1, (0, 1, 2)), (2, (2, 0, 1)), (3, (1, 2, 0))):
        images, asked = [IMAGES[k] for k in order], [texts[k] for k in order]
        found = model.predict_batch(images, asked, batch_size=size, **options(model))
        assert all(same(one, alone[k]) for one, k in zip(found, order, strict=True)), (size, order)


@pytest.mark.parametrize("orientation", ["SPL", "RAS"])
def test_a_volume_from_a_file_an_array_and_its_axes(model, orientation, tmp_path):
    array, geometry = reorient(ARRAY, GRID, orientation)
    array = np.ascontiguousarray(array)
    path = write_nifti(tmp_path / "v.nii.gz", array, geometry)
    asked, short = question(model), options(model)
    if speaks(model):
        short = dict(max_new_tokens=20)
    found = [
        say(model, ANSWER).predict(source, asked, modality="CT", site="abdomen", **short)
        for source in (path, (array, geometry))
    ]
    for one in found:
        assert np.allclose(one.geometry.affine, geometry.affine) and tuple(one.image.shape) == array.shape
        assert any("CT window abdomen" in step for step in one.image.steps)
        assert all(region.mask is None or region.mask.shape == array.shape for region in one.regions)
        if one.classes is not None:
            assert one.classes.per_slice.shape == (5, 2) and abs(sum(one.classes.probabilities) - 1) < 1e-4
    assert same(*found)
    if points(model):
        assert any(region.mask is not None for region in found[0].regions)
        (result,) = found[0].save(tmp_path / "out", "v", ("nifti",))
        assert unimed.read(result)[0].shape == array.shape


def test_an_array_of_slices_is_a_volume_and_one_frame_of_it_an_image(model):
    short = dict(max_new_tokens=20) if speaks(model) else options(model)
    whole = say(model, ANSWER).predict(ARRAY, question(model), window=(0, 1000), **short)
    assert tuple(whole.image.shape) == ARRAY.shape
    one = say(model, ANSWER).predict(ARRAY, question(model), window=(0, 1000), frame=2, **short)
    assert tuple(one.image.shape) == ARRAY.shape[1:]
    mixed = say(model, ANSWER).predict_batch([ARRAY, IMAGES[0]], [question(model)] * 2, **short)
    assert tuple(mixed[0].image.shape) == ARRAY.shape and tuple(mixed[1].image.shape) == (60, 80)


def loss_of(model):
    """Something every family can learn from: the outputs of one forward pass."""
    if hasattr(model, "zero_shot"):
        output = model(**model.processor(images=IMAGES[:1], text=["liver"]))
        return (output["image_features"] * output["text_features"]).sum() * output["logit_scale"]
    if hasattr(model, "segment_slices"):
        output = model(**model.processor(images=IMAGES[:1], text=["liver"]))
        return output[0].float().square().mean()
    turns = [("user", "where is the liver?"), ("assistant", ANSWER)]
    batch = model.processor(images=IMAGES[:1], text=[turns])
    routed = model.connector is not None and model.connector.needs_task
    output = model(**batch, **({"task": torch.tensor([0])} if routed else {}))
    return output.logits.float().square().mean()


def test_a_backward_step_reaches_weights_and_changes_them(request, model):
    fresh = build(request.node.callspec.params["model"])
    trained = [p for p in fresh.parameters() if p.requires_grad]
    fresh.train()
    loss = loss_of(fresh)
    assert loss.isfinite()
    loss.backward()
    reached = [p for p in trained if p.grad is not None and p.grad.abs().sum() > 0]
    assert reached and all(p.grad.isfinite().all() for p in reached)
    before = reached[0].detach().clone()
    torch.optim.SGD(reached, lr=1.0).step()
    assert not torch.equal(before, reached[0])


def test_bfloat16_answers_about_images_and_volumes(request, model):
    low = build(request.node.callspec.params["model"]).to(torch.bfloat16)
    short = dict(max_new_tokens=20) if speaks(low) else options(low)
    for source in (IMAGES[0], (ARRAY, GRID)):
        found = say(low, ANSWER).predict(source, question(low), **short)
        json.dumps(found.to_dict())
        if found.classes is not None:
            assert np.isfinite(found.classes.probabilities).all()
        assert all(r.mask is None or r.mask.dtype == bool for r in found.regions)
        assert all(r.presence is None or 0 <= r.presence <= 1 for r in found.regions)


def test_the_processor_is_called_as_others_are(model):
    """Tensors, `truncation` and `max_length` as users of transformers give them; what it does not take is named."""
    tensor, text = torch.from_numpy(IMAGES[2]).permute(2, 0, 1), ["liver"]
    wanted = model.processor(images=IMAGES[2:], text=text)
    (name, *_) = [name for name in ("pixel_values", "mask_pixel_values") if name in wanted]
    for given in (tensor, tensor[None] / 255, tensor.permute(1, 2, 0)):
        assert torch.equal(model.processor(images=[given], text=text, truncation=True)[name], wanted[name])
    with pytest.raises(ImageError, match="before it was normalized"):
        model.processor(images=[tensor / 50 - 2], text=text)
    with pytest.raises(TypeError, match="the processor takes no option 'max_lenght'; did you mean 'max_length'"):
        model.processor(images=[tensor], text=text, max_lenght=20)
    with pytest.raises(ValueError, match="tokens"):  # shorter than what the image alone needs, and what texts may have
        model.processor(images=[tensor], text=text, max_length=2)
    if speaks(model):
        with pytest.raises(ValueError, match=r"call processor\(images=..., text=CONVERSATION\)"):
            model.processor.apply_chat_template([{"role": "user", "content": "liver"}])


def test_options_nobody_knows_are_named(model):
    wrong, meant = ("max_tokens", "max_new_tokens") if speaks(model) else ("batch_sise", "batch_size")
    message = rf"^predict takes no option '{wrong}'; did you mean '{meant}'\? Valid options: .*\b{meant}\b"
    for source in (IMAGES[0], (ARRAY, GRID)):
        with pytest.raises(TypeError, match=message):
            model.predict(source, question(model), **{wrong: 4})
    shared = keywords(Predictor.predict_batch) | set(OF_THE_SOURCE)
    images, volumes = model.image_options() - shared, model.volume_options() - shared
    for kind, source, names in (("volumes", (ARRAY, GRID), images - volumes), ("images", IMAGES[0], volumes - images)):
        for name in names:
            with pytest.raises(TypeError, match=f"predict takes no option '{name}' for {kind}"):
                model.predict(source, question(model), **{name: None})
    with pytest.raises(ValueError, match="2 images for 1 texts"):
        model.predict_batch(IMAGES[:2], [question(model)])
