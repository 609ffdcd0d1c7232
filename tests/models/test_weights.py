"""A folder whose weights are not whole is an error that names the tensor, whichever way it is opened."""

import json
import pickle
import random
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import tiny_model
from transformers import AutoModel

import unimed
from unimed.models.boltzformer import BiomedParseV1Config, BiomedParseV1Model
from unimed.models.boltzformer.tokenizing import train_tokenizer
from unimed.models.checkpoints import sam as sam_layout
from unimed.models.starting.boltzformer import build_small as build_boltzformer
from unimed.models.starting.clip import build_small as build_clip
from unimed.models.starting.grounded_small import build_tiny
from unimed.models.starting.umedground import build_small_umedground
from unimed.models.starting.uni_med import build_small as build_uni_med
from unimed.models.weights import WeightsError, fill, refuse_other_numbers


def biomedparse_v1():
    tokenizer = train_tokenizer(["liver"], 520)
    model = BiomedParseV1Model(BiomedParseV1Config.tiny(image_size=64, text_vocab_size=len(tokenizer)))
    model.tokenizer = tokenizer
    return model.eval()


FAMILIES = {
    "grounded": lambda: build_tiny(["a"]).eval(),
    "grounded small": lambda: tiny_model(box_head="point"),
    "umedground": lambda: build_small_umedground(["It is [BOX]."], image_size=64, sam_dim=32, sam_layers=2).eval(),
    "uni_med": lambda: build_uni_med(["what is it"], image_size=56).eval(),
    "boltzformer": lambda: build_boltzformer(image_size=64),
    "biomedparse v1": biomedparse_v1,
    "clip": lambda: build_clip(["a picture"]).eval(),
}


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """(family, model, folder)"""
    folder = tmp_path_factory.mktemp("weights") / "model"
    model = FAMILIES[request.param]()
    model.save_pretrained(folder)
    return request.param, model, folder


def with_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(dict(tensors)), folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


ROADS = {
    "unimed.load": lambda model, folder: unimed.load(folder, device="cpu"),
    "from_pretrained": lambda model, folder: type(model).from_pretrained(folder),
    "AutoModel": lambda model, folder: AutoModel.from_pretrained(folder),
}


def test_what_is_saved_is_what_is_loaded(saved):
    _, model, folder = saved
    for road in ROADS.values():
        refuse_other_numbers(model, road(model, folder), folder)


def test_missing_left_over_and_misshapen_tensors_are_named(saved):
    _, model, folder = saved
    whole = load_file(folder / "model.safetensors")
    tied = set(model.all_tied_weights_keys.values())
    names = random.Random(0).sample(sorted(n for n in whole if n not in tied and whole[n].ndim), 3)
    changes = {names[0]: lambda t: {n: v for n, v in t.items() if n != names[0]}}
    changes["surplus.weight"] = lambda t: t | {"surplus.weight": torch.ones(2)}
    changes[names[1]] = lambda t: t | {names[1]: torch.cat([t[names[1]], t[names[1]]])}
    roads = list(ROADS.values())
    try:
        for number, (name, change) in enumerate(changes.items()):
            with_tensors(folder, change)
            for road in roads if number == 0 else roads[:1]:
                # transformers may write older names of the parts; the last piece stays.
                with pytest.raises(WeightsError, match=name.split(".")[-1]) as raised:
                    road(model, folder)
                assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
    finally:
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def test_random_numbers_cannot_be_asked_for(saved):
    _, model, folder = saved
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        type(model).from_pretrained(folder, ignore_mismatched_sizes=True)


def test_new_folders_follow_the_umask(saved, tmp_path):
    _, model, _ = saved
    model.save_pretrained(folder := tmp_path / "again")
    probe = tmp_path / "probe"
    probe.write_text("x")
    wanted = stat.S_IMODE(probe.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_folder_with_an_adapter_is_not_opened_without_it(saved):
    _, model, folder = saved
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/"}))
    try:
        with pytest.raises(WeightsError, match="merge it"):
            unimed.load(folder)
    finally:
        (folder / "adapter_config.json").unlink()


def test_a_pickle_is_one_line_without_advice_to_run_it(tmp_path):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    for content in (pickle.dumps({"a": Evil()}), b"no weights at all", b""):
        (tmp_path / "model" / "pytorch_model.bin").write_bytes(content)
        for road in ROADS.values():
            with pytest.raises(WeightsError, match="model") as raised:
                road(model, tmp_path / "model")
            assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "names", [{"a": "../other.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, {"a": "gone.safetensors"}]
)
def test_an_index_stays_in_its_folder(names, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(WeightsError, match="not a file of this folder|is missing"):
        unimed.load(tmp_path / "model")


def test_fill_names_what_is_wrong_and_what_starts_untrained():
    module = torch.nn.ModuleDict({"old": torch.nn.Linear(2, 2), "new": torch.nn.Linear(2, 2)})
    state = {name: torch.ones_like(tensor) for name, tensor in module.state_dict().items() if name.startswith("old")}
    with pytest.raises(WeightsError, match="file.pt: tensors are 2 missing .new.bias, new.weight"):
        fill(module, state, "file.pt")
    with pytest.raises(WeightsError, match="1 left over .odd"):
        fill(module, state | {"odd": torch.ones(1)}, "file.pt", ("new.",))
    with pytest.raises(WeightsError, match=r"old.bias: \(3,\) instead of \(2,\)"):
        fill(module, state | {"old.bias": torch.ones(3)}, "file.pt", ("new.",))
    fill(module, state, "file.pt", ("new.",))
    assert module["old"].weight.sum() == 4


def test_the_code_of_places_survives(tmp_path):
    """Converted SAM folders keep it: it stands in the published file once and in ours twice."""
    model = FAMILIES["umedground"]()
    code = torch.randn(2, 16)
    state = sam_layout.convert_state_dict({sam_layout._FOURIER: code})
    assert len({tensor.data_ptr() for tensor in state.values()}) == 2
    for name, tensor in state.items():
        model.mask_head.sam.state_dict()[name].copy_(tensor)
    # Tied in memory by somebody, and still written under both names.
    model.mask_head.sam.prompt_encoder.shared_embedding.positional_embedding = (
        model.mask_head.sam.shared_image_embedding.positional_embedding
    )
    model.save_pretrained(tmp_path / "model")
    loaded = unimed.load(tmp_path / "model", device="cpu")
    assert all(torch.equal(loaded.mask_head.sam.state_dict()[name], code) for name in state)


def test_loading_says_nothing_that_nobody_can_act_on(tmp_path, caplog):
    from small_models import tiny_model

    tiny_model().save_pretrained(tmp_path / "model")
    caplog.clear()
    unimed.load(tmp_path / "model", device="cpu")
    assert not caplog.records
