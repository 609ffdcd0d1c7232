"""What runs of one recipe differ by: the intervals hold runs and patients."""

import pytest

from unimed.commands.spread import spread as command
from unimed.evaluation.cases import case_row
from unimed.evaluation.spread import spread
from unimed.evaluation.tables import write_cases


def rows(shift, patients=6):
    found = []
    for number in range(12):
        patient, dice = f"p{number % patients}", 0.5 + shift + 0.01 * number
        about = dict(patient=patient, task="referring", target="brain")
        found.append(case_row(f"c{number}", "mask", dice=dice, copy_baseline_dice=0.4, **about))
        found.append(case_row(f"c{number}", "presence", present=False, predicted_voxels=number % 2, **about))
        correct = dict(correct=1.0, majority_baseline=float(number < 6), language_only=0.0)
        counts = dict(tp=1, fp=number % 2, fn=0, hit=float(number < 6))
        found.append(case_row(f"c{number}", "instances", dice=dice, **counts, **about))
        found.append(case_row(f"c{number}", "answer", patient=patient, task="vqa", **correct))
    return found


def test_intervals_hold_what_runs_differ_by():
    same = {(line["measure"], line["of"]): line for line in spread([rows(0.0)] * 3, resamples=200)}
    far = {(line["measure"], line["of"]): line for line in spread([rows(-0.3), rows(0.0), rows(0.3)], resamples=200)}
    one, other = same["dice", "referring, brain"], far["dice", "referring, brain"]
    assert one["value"].value == pytest.approx(0.555) == other["value"].value
    assert other["runs"] == pytest.approx([0.255, 0.555, 0.855]) and one["cases"] == 12
    assert one["value"].low < 0.555 < one["value"].high
    assert other["value"].high - other["value"].low > 4 * (one["value"].high - one["value"].low)
    assert same["dice above the copied mask", "referring, brain"]["value"].value == pytest.approx(0.155)
    assert same["false masks", "referring"]["value"].value == 0.5
    assert same["findings: hit rate", ""]["value"].value == 0.5
    assert same["findings: instance F1", ""]["value"].value == pytest.approx((1 + 2 / 3) / 2)
    assert same["finding dice", "brain"]["value"].value == same["findings: dice", ""]["value"].value
    assert same["correct above the majority answer", "vqa"]["value"].value == 0.5


def test_consistency_is_compared_where_every_run_showed_something():
    about = dict(kind="consistency", task="referring", target="brain")
    one, other = (
        [case_row(f"c{n}", patient=f"p{n}", mirror_dice=value, **about) for n in cases]
        for cases, value in (((0, 1, 2), 0.5), ((1, 2, 3), 0.7))
    )
    (line,) = (line for line in spread([one, other], resamples=20) if line["measure"] == "mirror dice")
    assert line["cases"] == 2 and line["runs"] == pytest.approx([0.5, 0.7])
    assert not spread([one[:1], other[2:]], resamples=20)


def test_the_same_cases_in_every_run(tmp_path, capsys):
    with pytest.raises(ValueError, match="two at least"):
        spread([rows(0.0)])
    with pytest.raises(ValueError, match="not tested on the same cases"):
        spread([rows(0.0), rows(0.0)[3:]])
    for name, shift in (("a", 0.0), ("b", 0.1)):
        write_cases(tmp_path / name / "test" / "scores.jsonl", rows(shift))
    assert command([str(tmp_path / "a"), str(tmp_path / "b"), "--resamples", "20"]) == 0
    assert "0.555 0.655" in capsys.readouterr().out
    assert command([str(tmp_path / "a"), str(tmp_path)]) == 1
    assert "test/scores.jsonl" in capsys.readouterr().err
