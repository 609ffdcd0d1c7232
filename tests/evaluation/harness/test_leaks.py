"""Leaks between test and training are found by patient, equal image, look and long text, and printed by default."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from evaluation.harness import drawn, layouts
from PIL import Image

from unimed.commands.cli import main
from unimed.evaluation.harness.leaks import KINDS, find_leaks, trace_of
from unimed.geometry import Geometry
from unimed.structures import Sample

LONG = "The heart is enlarged and there is a small effusion at the left costophrenic angle of the chest"


def image(seed, side=64):
    """Something with large structures, as images have."""
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 7), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def sample(name, pixels, patient="", answer="no"):
    turns = (("user", "What is it?"), ("assistant", answer))
    return Sample((pixels,), Geometry.pixels(), name, conversation=turns, labels={"task": "vqa"}, patient_id=patient)


def compressed(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((48, 48)).save(stream, "JPEG", quality=60)
    return np.asarray(Image.open(stream))


def test_each_kind_is_found_and_nothing_else():
    train = [sample(f"t{n}", image(n), f"p{n}", LONG if n == 3 else "no") for n in range(4)]
    test = [
        sample("patient", image(10), "p0"),
        sample("equal", image(1), "q1"),
        sample("alike", compressed(image(2)), "q2"),
        sample("text", image(13), "q3", LONG.upper() + "."),
        sample("clean", image(14), "q4", "no"),
        sample("nameless", image(15), ""),
    ]
    found = find_leaks(map(trace_of, train), [trace_of(one) for one in test])
    cases = {kind: [row["case"] for row in rows] for kind, rows in found.items()}
    assert cases == dict(zip(KINDS, (["patient"], ["equal"], ["alike"], ["text"]), strict=True))
    assert found["image looks alike"][0]["found_as"] == "t2"


def test_volumes_are_compared_whole_and_by_their_middle():
    volume = np.stack([image(n) for n in range(5)])
    train = replace(sample("t", volume), labels={"task": "volume"})
    equal, other = replace(train, sample_id="e"), replace(train, sample_id="o", images=(volume[[0, 1, 2, 4, 3]],))
    found = find_leaks([trace_of(train)], [trace_of(equal), trace_of(other)])
    assert [row["case"] for row in found["equal image"]] == ["e"]
    assert [row["case"] for row in found["image looks alike"]] == ["o"]


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """Records whose first test image, and its patient, are also in training."""
    root = drawn.write(tmp_path_factory.mktemp("leaky"), patients=3, test_patients=3)
    lines = (root / "records/test.jsonl").read_text().splitlines()
    moved = [
        line.replace('"id": "test0', '"id": "copy').replace('"split": "test"', '"split": "train"') for line in lines[:1]
    ]
    with open(root / "records/train.jsonl", "a") as stream:
        stream.write("\n" + "\n".join(moved))
    return root


def test_they_are_printed_and_on_the_page_by_default(leaky, tmp_path, capsys):
    words = ["benchmark", "unimed/any", "no:", "--data", str(leaky), "--resamples", "5", "--no-baselines"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")] for line in said.splitlines() if "the training part" in line]
    counts = {line[2]: line[3] for line in lines}
    assert counts == {
        "patient": "5",
        "equal image": "5",
        "image looks alike": counts["image looks alike"],
        "equal text": "0",
    }
    assert "Leaks" in (tmp_path / "run/run.html").read_text() and "patient-test0" not in said
    assert main([*words, "--out", str(tmp_path / "off"), "--no-leak-check"]) == 0
    assert "equal image" not in capsys.readouterr().out


def test_a_training_part_that_is_not_there_is_said(leaky, tmp_path, capsys):
    own = tmp_path / "own"
    shutil.copytree(leaky, own)
    (own / "records/train.jsonl").unlink()
    words = ["benchmark", "unimed/any", "no:", "--data", str(own), "--resamples", "5", "--worst", "0"]
    with pytest.warns(UserWarning, match="no training part to compare with"):
        assert main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "no training data to compare with" in said and "prior" not in said


def test_records_of_a_model_are_compared_as_well(leaky, tmp_path, capsys):
    layouts.omnimedvqa(tmp_path / "omni")
    words = ["benchmark", "omnimedvqa", "no:", "--data", str(tmp_path / "omni"), "--resamples", "5", "--no-baselines"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert "no training data to compare with" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "b"), "--against", str(leaky)]) == 0
    assert "the records in leaky" in capsys.readouterr().out
