"""BiomedParse's files: the published name lists, conversion of v1 and v2, and files that are refused."""

import json
import pickle

import pytest
import torch
from golden_files import SMALL

import unimed
from unimed.models.boltzformer import BiomedParseV1Config, BiomedParseV1Model, BoltzFormerConfig, BoltzFormerModel
from unimed.models.boltzformer.tokenizing import train_tokenizer
from unimed.models.checkpoints import biomedparse
from unimed.models.checkpoints.reading import CheckpointError, check_names
from unimed.models.weights import WeightsError, fill

SHAPES = json.loads((SMALL / "biomedparse" / "state_dict_shapes.json").read_text())


def published(version, device="meta"):
    shapes = SHAPES[{1: "v1_full_without_biomed_encoder", 2: "v2_full"}[version]]
    return {name: torch.empty(shape, device=device) for name, shape in shapes.items()}


@pytest.mark.parametrize(("version", "entries", "dropped"), [(2, 1050, 0), (1, 932, 7)])
def test_every_published_name_and_shape_has_its_place(version, entries, dropped):
    state = published(version)
    assert len(state) == entries
    extra = {"loss_function.cls_loss_fn.pos_weight", "sem_seg_head.predictor.lang_encoder.biomed_encoder.x"}
    state |= {name: torch.empty(1, device="meta") for name in extra}
    plain, left_out = biomedparse.plain_names(state)
    assert len(left_out) == dropped + len(extra)
    changes = {"channels": "slices"} if version == 2 else {}  # values cannot be read from the meta device
    model = biomedparse.skeleton(plain, **changes)
    translated, _, _ = biomedparse.translate({f"model.{name}": tensor for name, tensor in state.items()})
    report = check_names(model, translated, "biomedparse", "")
    assert report.missing == report.unexpected == []
    expected = BoltzFormerConfig() if version == 2 else BiomedParseV1Config()
    assert model.config.to_dict() == expected.to_dict()


def test_a_missing_or_foreign_or_misshapen_tensor_is_named():
    state = published(2)
    name = "sem_seg_head.predictor.classifier.bias"
    for change, word in (({name: None}, "decoder.classifier.bias"), ({"more": state[name]}, "more")):
        changed = {n: t for n, t in (state | change).items() if t is not None}
        with pytest.raises(CheckpointError, match=word):
            biomedparse.load_into(biomedparse.skeleton(changed, channels="slices"), changed)
    changed = state | {name: torch.empty(2, device="meta")}
    with pytest.raises(CheckpointError, match=r"decoder.classifier.bias: \(2,\) instead of \(1,\)"):
        biomedparse.load_into(biomedparse.skeleton(changed, channels="slices"), changed)


def unname(model):
    """The tensors of one of our models under the published names."""
    theirs = {}
    for name, tensor in model.state_dict().items():
        theirs[name] = tensor
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    # Every published name of a small model is found by renaming the full list and keeping what the model has.
    result = {}
    version = 2 if isinstance(model, BoltzFormerModel) else 1
    for old in published(version):
        new = biomedparse.rename({old: torch.empty(3)})
        if all(name in shapes for name in new):
            result[old] = torch.cat([theirs[name] for name in new]) if len(new) > 1 else theirs[next(iter(new))]
    return result


@pytest.fixture(scope="module")
def tokens():
    return train_tokenizer(["liver", "left kidney"], 520)


def write_published(folder, version, **changes):
    """The file of a version with random weights of a size for tests and the published vocabulary, in `folder`."""
    kind, configuration = {1: (BiomedParseV1Model, BiomedParseV1Config), 2: (BoltzFormerModel, BoltzFormerConfig)}[
        version
    ]
    torch.manual_seed(0)
    model = kind(configuration.tiny(text_vocab_size=49408, **changes)).eval()
    if version == 1:
        torch.save(unname(model), folder / "biomedparse_v1.pt")
    else:
        state = {f"model.{name}": tensor for name, tensor in unname(model).items()}
        torch.save({"state_dict": state, "epoch": 3}, folder / "biomedparse_v2.ckpt")


@pytest.mark.parametrize("version", [1, 2])
def test_convert_and_load(version, tokens, tmp_path, monkeypatch):
    torch.manual_seed(0)
    kind, configuration = {1: (BiomedParseV1Model, BiomedParseV1Config), 2: (BoltzFormerModel, BoltzFormerConfig)}[
        version
    ]
    model = kind(configuration.tiny(text_vocab_size=len(tokens))).eval()
    model.tokenizer = tokens
    state = {f"model.{name}" if version == 2 else name: tensor for name, tensor in unname(model).items()}
    file = tmp_path / f"biomedparse_v{version}.{'ckpt' if version == 2 else 'pt'}"
    if version == 2:
        state["loss_function.cls_loss_fn.pos_weight"] = torch.tensor([3.0])
        torch.save({"state_dict": state, "epoch": 3}, file)
    else:
        torch.save(state | {"criterion.empty_weight": torch.ones(17), "dilation_kernel": torch.ones(1, 1, 3, 3)}, file)
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    heads = {"num_heads": 4, "text_heads": 4, "image_size": 96, "edge_queries": 2 if version == 2 else 0}
    report = biomedparse.convert(file, tmp_path / "folder", **heads)
    assert not report.missing and not report.unexpected and len(report.dropped) == (1 if version == 2 else 2)
    assert sorted(path.name for path in tmp_path.glob("folder*")) == ["folder"]
    loaded = unimed.load(tmp_path / "folder", device="cpu")
    loaded.tokenizer = tokens
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    expected, found = (m.segment_slices(image, ["liver"], seed=1) for m in (model, loaded))
    assert torch.equal(found.mask_logits, expected.mask_logits)
    assert torch.allclose(found.existence, expected.existence, equal_nan=True)
    direct = unimed.load(file, device="cpu")  # by the file itself, with the published numbers of heads
    assert type(direct) is kind and direct.config.num_heads == 8


def test_refused_files(tmp_path):
    pointer = tmp_path / "biomedparse_v2.ckpt"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="pointer or failed download"):
        biomedparse.convert(pointer, tmp_path / "a")
    evil = tmp_path / "biomedparse_v1.pt"
    evil.write_bytes(pickle.dumps({"x": Touch(tmp_path / "touched"), "padding": b"0" * 2000}))
    with pytest.raises(CheckpointError, match="never executed"):
        biomedparse.convert(evil, tmp_path / "a")
    other = tmp_path / "biomedparse_other.pt"
    torch.save({"weight": torch.zeros(1000)}, other)
    with pytest.raises(CheckpointError, match="not the tensors of BiomedParse"):
        biomedparse.convert(other, tmp_path / "a")
    assert not (tmp_path / "touched").exists() and not list(tmp_path.glob("a*"))


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("version", [1, 2])
def test_a_skeleton_that_is_filled_computes_what_no_file_holds(version):
    kind, settings = ((BiomedParseV1Model, BiomedParseV1Config), (BoltzFormerModel, BoltzFormerConfig))[version - 1]
    model = kind(settings.tiny(image_size=64)).eval()
    with torch.device("meta"):
        skeleton = kind(model.config)
    fill(skeleton, model.state_dict(), "memory")
    ours = dict(model.named_buffers())
    assert any("position_ids" in name for name in ours)
    assert all(torch.equal(buffer, ours[name]) for name, buffer in skeleton.named_buffers())
    with pytest.raises(WeightsError, match="decoder"):
        fill(kind(model.config), {n: t for n, t in model.state_dict().items() if not n.startswith("decoder.")}, "x")
