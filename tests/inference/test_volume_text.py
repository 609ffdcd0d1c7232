"""Whole volumes by prompts: recorded chain, geometry, grouping, overlaps, instances, faults."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from closeness import assert_close
from golden_files import tensors

from unimed.geometry import ALL_ORIENTATIONS, Geometry, reorient
from unimed.inference.volume_files import find_volumes, prompts_for, read_volume
from unimed.inference.volume_text import PromptError, number_instances, segment_volume
from unimed.io.challenge import ReadError
from unimed.io.read import read
from unimed.io.write import write_nifti
from unimed.models.boltzformer import economy
from unimed.models.starting.boltzformer import build_small
from unimed.names import result_name

sys.path.insert(0, str(Path(__file__).parent))
from segmenters import GreySegmenter  # noqa: E402

UPRIGHT = Geometry(np.diag((0.8, 0.8, 4.0, 1)), source_format="nifti")


def phantom(shape=(64, 64, 10)):
    """Two bright boxes in a dark volume: 100 in slices 2 to 5, 200 in slices 4 to 8."""
    volume = np.zeros(shape, np.uint8)
    volume[8:32, 8:32, 2:6], volume[36:60, 32:56, 4:9] = 100, 200
    return volume


def test_the_recorded_chain_from_volume_to_labels():
    numbers = tensors("biomedparse", "v2_e2e_3d.npz")
    recorded = {name: numbers[name].numpy() for name in ("ids", "volume", "resized", "final")}
    seen = []

    class Recorded:
        config = SimpleNamespace(image_size=96, _name_or_path="")

        def encode_prompts(self, prompts):
            return prompts

        def segment_slices(self, images, prompts, *, seed, slice_numbers):
            seen.append(images[:, 0])
            z = list(slice_numbers)
            masks, existence = (numbers[n][:, z].transpose(0, 1) for n in ("pred_gmasks", "object_existence"))
            return SimpleNamespace(mask_logits=masks, existence=existence.sigmoid(), edge_logits=None)

    prompts = {int(label): str(label) for label in recorded["ids"]}
    result = segment_volume(Recorded(), recorded["volume"], Geometry.pixels(), prompts)
    assert_close(torch.cat(seen), recorded["resized"])
    assert np.array_equal(result.labels, recorded["final"]) and result.labels.any()


def test_boxes_are_found_and_counted():
    volume = phantom()
    result = segment_volume(GreySegmenter(), volume, UPRIGHT, {3: "100", 7: "200", 9: "50"})
    for label, grey in ((3, 100), (7, 200)):
        assert (result.mask(label) & (volume == grey)).sum() > 0.9 * (volume == grey).sum()
    summary = result.to_dict()
    assert summary["targets"][0]["slices"] == 4 and summary["targets"][2]["voxels"] == 0
    assert summary["targets"][0]["volume_ml"] == pytest.approx(result.voxels()[3] * 0.8 * 0.8 * 4 / 1000, abs=1e-3)
    regions = result.regions
    assert not regions[2].mask.any() and regions[0].mask.shape == volume.shape and regions[0].presence == 1
    assert result.text == "Found: 100, 200. Not found: 50."


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS[::7])
def test_labels_lie_where_the_source_lies(orientation):
    upright = segment_volume(GreySegmenter(), phantom(), UPRIGHT, ["100", "200"]).labels
    stored, geometry = reorient(phantom(), UPRIGHT, orientation)
    labels = segment_volume(GreySegmenter(), np.ascontiguousarray(stored), geometry, ["100", "200"]).labels
    assert np.array_equal(reorient(labels, geometry, "RAS")[0], upright)


def test_prompts_once_slices_once_and_the_same_in_any_grouping():
    model = GreySegmenter()
    first = segment_volume(model, phantom(), UPRIGHT, ["100", "200"], slice_batch=3)
    assert model.encoded == 1 and model.asked == list(range(10)) and model.largest == 3
    small = build_small(["liver", "spleen"], image_size=64)
    done = []
    results = [
        segment_volume(small, phantom(), UPRIGHT, ["liver", "spleen"], slice_batch=n, threshold=0.1,
                       progress=lambda z, depth: done.append((z, depth)))
        for n in (1, 4)
    ]  # fmt: skip
    assert np.array_equal(results[0].labels, results[1].labels) and done[-1] == (10, 10)
    assert np.abs(results[0].existence - results[1].existence).max() < 1e-4
    assert not np.array_equal(first.labels, results[0].labels)


def test_overlaps():
    prompts = {1: "100", 2: "90-110", 3: "90-210"}
    kept = segment_volume(GreySegmenter(), phantom(), UPRIGHT, prompts, overlap="keep")
    assert np.array_equal(kept.mask(1), kept.mask(2)) and (kept.mask(3) & kept.mask(1)).sum() == kept.mask(1).sum() > 0
    single = segment_volume(GreySegmenter(), phantom(), UPRIGHT, prompts)
    assert kept.labels is None and set(np.unique(single.labels)) >= {0, 3}
    with pytest.raises(ValueError, match="unknown overlap"):
        segment_volume(GreySegmenter(), phantom(), UPRIGHT, prompts, overlap="most")


def test_touching_instances_are_kept_apart_by_edges():
    labels = np.zeros((3, 20, 20), np.uint8)
    labels[:, 2:18, 2:18] = 1
    edges = np.zeros_like(labels, bool)
    edges[:, :, 9:11] = True
    numbers = number_instances(labels, edges)
    assert len(np.unique(numbers)) == 3 and (numbers > 0)[:, 2:18, 2:18].all() and not numbers[labels == 0].any()
    assert len(np.unique(number_instances(labels))) == 2
    assert len(np.unique(number_instances(labels, labels > 0))) == 2  # nothing but edge is still an object
    published = number_instances(labels, edges, compat="reference")
    assert np.array_equal(published > 0, (labels > 0)) and len(np.unique(published)) == 3
    model = GreySegmenter(edges=True)
    result = segment_volume(model, phantom(), UPRIGHT, ["100", "200"], instances=True)
    assert result.to_dict()["instances"] == 2 and result.instances.shape == (64, 64, 10)


def test_results_in_files(tmp_path):
    result = segment_volume(GreySegmenter(edges=True), phantom(), UPRIGHT, ["100", "200"], instances=True)
    paths = result.save(tmp_path, "case", ("nifti", "npz", "json"))
    assert [p.name for p in paths] == ["case.nii.gz", "case-instances.nii.gz", "case.npz", "case.json"]
    labels, geometry = read(paths[0])
    assert np.array_equal(labels, result.labels) and np.allclose(geometry.affine, UPRIGHT.affine)
    stored = np.load(paths[2])
    assert np.array_equal(stored["segs"], result.instances) and stored["existence"].shape == (2, 10)
    assert prompts_for(paths[2]).first() == {1: "100", 2: "200"}
    assert json.loads(paths[3].read_text())["notice"] == "research use only"
    kept = segment_volume(GreySegmenter(), phantom(), UPRIGHT, ["100", "200"], overlap="keep")
    assert [p.name for p in kept.save(tmp_path, "kept", ("nifti",))] == ["kept.nii.gz"]
    with pytest.raises(ValueError, match="unknown format"):
        result.save(tmp_path, "x", ("tiff",))
    with pytest.raises(ValueError, match="plain file name"):
        result.save(tmp_path, "../x")


@pytest.mark.parametrize("depth", [1, 2])
def test_few_slices(depth):
    volume = np.full((64, 64, depth), 100, np.uint8)
    assert segment_volume(GreySegmenter(), volume, UPRIGHT, "100").labels.all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(prompts=[]), PromptError, "no prompt"),
        (dict(prompts=["liver", " "]), PromptError, "prompt 2 is empty"),
        (dict(prompts={0: "liver"}), PromptError, "1..65535"),
        (dict(array=np.zeros((4, 5, 6, 2))), ValueError, "three axes"),
        (dict(array=np.full((4, 5, 6), np.nan)), ValueError, "NaN or Inf"),
        (dict(array=np.zeros((4, 5, 6), complex)), ValueError, "must be numbers"),
        (dict(slice_batch=0), ValueError, "slice_batch"),
        (dict(threshold=1.5), ValueError, "threshold"),
        (dict(site="knee"), ValueError, "no CT window for site 'knee'"),
        (dict(view="up"), ValueError, "unknown view"),
    ],
)
def test_faults_are_named(change, error, message):
    arguments = dict(array=phantom(), geometry=UPRIGHT, prompts=["100"]) | change
    array, geometry, prompts = (arguments.pop(name) for name in ("array", "geometry", "prompts"))
    with pytest.raises(error, match=message):
        segment_volume(GreySegmenter(), array, geometry, prompts, **arguments)


def test_volumes_of_a_folder(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", phantom(), UPRIGHT)
    (tmp_path / "deep").mkdir()
    write_nifti(tmp_path / "deep" / "b.nii", phantom(), UPRIGHT)
    np.savez(tmp_path / "c.npz", imgs=phantom())
    np.savez(tmp_path / "truth.npz", gts=phantom())
    np.savez(tmp_path / "odd.npz", voxels=phantom())  # not passed over in silence: reading it says what it lacks
    (tmp_path / "notes.txt").write_text("no volume")
    found = find_volumes(tmp_path)
    assert [result_name(p, tmp_path) for p in found] == ["a", "c", "odd", "deep-b"]
    with pytest.raises(FileNotFoundError, match="no volume"):
        (tmp_path / "empty").mkdir()
        find_volumes(tmp_path / "empty")
    write_nifti(tmp_path / "4d.nii", np.zeros((4, 4, 4, 3), np.uint8), UPRIGHT)
    with pytest.raises(ReadError, match="4D data"):
        read_volume(tmp_path / "4d.nii")
    with pytest.raises(ReadError, match="--prompts"):
        prompts_for(tmp_path / "a.nii.gz")


def test_false_headers_are_refused_before_memory_is_taken(tmp_path):
    import io
    import zipfile

    for shape, message in (
        ((10**4, 10**3, 10**3), "more than the limit"),
        ((100, 1000, 1000), "the file holds 8 bytes"),
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
            archive.writestr("imgs.npy", header.getvalue() + b"\0" * 8)
        with pytest.raises(ReadError, match=message):
            read_volume(tmp_path / "claims.npz")
    np.savez(tmp_path / "pickled.npz", imgs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ReadError, match="pickled objects"):
        read_volume(tmp_path / "pickled.npz")


def sparse(depth=21):
    """A thing in the slices 8 to 12, one that is two slices thick at 17, air around, flat slices at both ends."""
    array = np.random.default_rng(0).integers(18, 22, (64, 64, depth), dtype=np.uint8)
    array[:, :, :2] = array[:, :, -1:] = 0
    array[10:30, 10:30, 8:13] = 100
    array[40:60, 40:60, 17:19] = 150
    return array


def test_slices_between_two_without_a_target_are_left_out():
    array, geometry = sparse(), Geometry(np.eye(4))
    every, sparing = GreySegmenter(), GreySegmenter()
    options = dict(slice_batch=3)
    whole = segment_volume(every, array, geometry, ["100", "150"], **options)
    part = segment_volume(sparing, array, geometry, ["100", "150"], stride=4, **options)
    assert sorted(every.asked) == list(range(21)) and not whole.slices_left_out
    # 4, 8, 12, 16 of the first round (0 and 20 are flat); the borders, 6 and 7, 14 and 13; between 8 and 12.
    assert sorted(sparing.asked) == [4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16]
    assert list(part.slices_left_out) == part.to_dict()["slices_left_out"] == [0, 1, 2, 3, 5, 15, *range(17, 21)]
    assert (part.labels == 1).sum() == (whole.labels == 1).sum() > 0
    assert (whole.labels == 2).any() and not (part.labels == 2).any(), "thinner than the stride: missed, as it says"
    looked = sorted(sparing.asked)
    assert np.array_equal(part.existence[:, looked], whole.existence[:, looked]) and not part.existence[:, 17].any()
    with pytest.raises(ValueError, match="stride must be at least 1"):
        segment_volume(every, array, geometry, ["100"], stride=0)


def runs_of_a_target(numbers, depth: int, least: int) -> np.ndarray:
    """Slices that show a target, whose runs and the gaps between them are at least `least` long, ends excepted."""
    shown, z, there = np.zeros(depth, bool), 0, bool(numbers.integers(2))
    length = numbers.integers(1, 2 * least + 1)  # what touches an end may be short
    while z < depth:
        shown[z : z + length] = there
        z, there, length = z + length, not there, numbers.integers(least, 3 * least + 1)
    return shown


def test_borders_are_found_wherever_targets_are_and_every_slice_with_one_is_looked_at():
    numbers = np.random.default_rng(0)
    for _ in range(400):
        depth, stride = int(numbers.integers(1, 70)), int(numbers.integers(1, 13))
        shown = np.stack([runs_of_a_target(numbers, depth, stride) for _ in range(numbers.integers(1, 4))])
        looking, asked = economy.Looking(depth, stride), []
        while wanted := looking.following():
            assert wanted == sorted(set(wanted) - set(asked)), "nothing is looked at twice"
            asked += wanted
            for z in wanted:
                looking.note(z, np.flatnonzero(shown[:, z]))
        there = shown.any(0)
        assert set(np.flatnonzero(there)) <= set(asked) and set(looking.left_out) == set(range(depth)) - set(asked)
        assert looking.left_out == () or stride > 1
        borders = (np.diff(shown.astype(int), axis=1) != 0).sum()
        most = len(range(0, depth, stride)) + 1 + borders * int(np.ceil(np.log2(max(stride, 1))))
        assert (~there[asked]).sum() <= most, "no more slices without a target than the first round and the borders"


def test_a_gap_between_two_different_targets_is_halved_and_not_filled():
    looking, asked = economy.Looking(17, 16), []
    while wanted := looking.following():
        asked += wanted
        for z in wanted:
            looking.note(z, ["liver"] * (z == 0) + ["lung"] * (z == 16))
    assert sorted(asked) == [0, 1, 2, 4, 8, 12, 14, 15, 16]


@pytest.mark.parametrize("where", ["runs", "ends", "nowhere", "everywhere", "apart"])
def test_the_answer_is_that_of_all_slices_where_runs_and_gaps_are_not_shorter_than_the_stride(where):
    depth, stride, array = 33, 4, np.random.default_rng(0).integers(18, 22, (64, 64, 33), dtype=np.uint8)
    places = {
        "runs": ([(5, 9), (14, 18), (23, 30)], [(7, 12)]),
        "ends": ([(0, 1), (30, 33)], [(0, 2), (32, 33)]),
        "nowhere": ([], []),
        "everywhere": ([(0, 33)], [(0, 33)]),
        "apart": ([(1, 6)], [(21, 25), (29, 33)]),
    }[where]
    for side, gray, runs in zip((8, 36), (100, 150), places, strict=True):
        for begin, end in runs:
            array[side : side + 20, side : side + 20, begin:end] = gray
    ways = []
    for chosen in (1, stride):
        model = GreySegmenter()
        ways.append((segment_volume(model, array, UPRIGHT, ["100", "150"], stride=chosen), model.asked))
    (every, _), (sparing, asked) = ways
    assert np.array_equal(sparing.labels, every.labels) and sparing.presence == every.presence
    assert np.array_equal(sparing.existence, every.existence), "0 where nobody looked, as there is no target"
    assert len(asked) == len(set(asked)) == depth - len(sparing.slices_left_out)
    assert bool(sparing.slices_left_out) == (where != "everywhere")
    assert every.labels.any() == (where != "nowhere")


def test_the_air_around_the_body_is_cut_away_and_masks_lie_where_they_lay():
    plane = np.zeros((128, 128), np.float32)
    plane[40:70, 50:60] = 200
    big = np.zeros((136, 136), np.float32)
    assert economy.body(lambda z: plane, 1, 128) == (24, 88, 34, 98)
    assert economy.body(lambda z: plane * 0, 1, 128) == (0, 128, 0, 128)
    assert economy.body(lambda z: big, 1, 136) == (0, 136, 0, 136), "no multiple of the step of the encoder"
    model, array = build_small(["liver"], image_size=128), np.zeros((128, 128, 3), np.uint8)
    array[49:79, 49:79] = np.random.default_rng(0).integers(100, 255, (30, 30, 3))
    seen = []
    encode = model.segment_slices
    model.segment_slices = lambda images, *rest, **options: (
        seen.append(tuple(images.shape[2:])), encode(images, *rest, **options))[1]  # fmt: skip
    options = dict(threshold=0.0, overlap="keep")
    found = segment_volume(model, array, Geometry(np.eye(4)), ["liver"], crop=True, **options)
    assert len(set(seen)) == 1 and sorted(seen[0]) == [64, 64]
    mask = found.regions[0].mask
    assert mask.shape == array.shape
    outside = np.ones(array.shape[:2], bool)
    outside[31:97, 31:97] = False  # the view may be turned by half a turn
    assert mask.any() and not mask[outside].any()
