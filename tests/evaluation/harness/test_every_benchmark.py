"""Every declared benchmark runs on a few drawn cases in the layout in which it is downloaded."""

import json

import pytest
from evaluation.harness import drawn, layouts

from unimed.data.contracts import contract_problems
from unimed.evaluation.benchmarks.declaring import benchmarks
from unimed.evaluation.contestants.base import asked
from unimed.evaluation.harness.frozen import Frozen, read_lines
from unimed.evaluation.harness.plan import Plan, execute

ALL = benchmarks()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Maker -> folder that it wrote, each once."""
    made = {}

    def folder(name):
        maker = layouts.maker_of(name)
        assert maker is not None, f"{name}: add a maker of a few cases to layouts.MAKERS"
        key = maker if not name.startswith("zero_shot/") else name
        if key not in made:
            made[key] = tmp_path_factory.mktemp("layout") / "data"
            maker(made[key])
        return made[key]

    return folder


def test_the_benchmarks_of_the_field_are_declared():
    held = {name.split("/")[1] for name in ALL}
    assert {"vqa_rad", "slakevqa_en", "path_vqa", "pmc_vqa", "omnimedvqa", "medxpertqa_mm", "mmmu_med", "ms_cxr",
            "chestxray8", "padchest_gr", "padchest_gr_zero", "padchest_gr_one", "padchest_gr_many", "images",
            "images_ct",
            "images_xray", "text_3d", "rexgroundingct", "msd_liver", "totalsegmentator", "mimic_caption",
            "iu_xray"} <= held  # fmt: skip
    assert sum(name.startswith("zero_shot/") for name in ALL) == 21


@pytest.mark.parametrize("name", ALL)
def test_it_runs_on_drawn_cases(name, folders, tmp_path):
    one, folder = ALL[name], folders(name)
    if not name.startswith("unimed/"):
        assert one.license and one.homepage.startswith("http") and one.layout and one.folder, name
    samples = list(one.dataset(folder)[i] for i in range(len(one.dataset(folder))))
    assert samples and all(contract_problems(sample) == [] for sample in samples)
    assert len({sample.sample_id for sample in samples}) == len(samples)
    parts = [samples]
    if one.train is not None:
        train = one.dataset(folder, "train")
        parts.append([train[i] for i in range(len(train))])
        assert parts[1]
    for sample in samples:
        shown = asked(sample)
        assert shown.conversation[0][1] or shown.regions, "it can be asked"
    right = drawn.perfect(samples, tmp_path / "right.jsonl")
    numbers = {}
    for word in (f"predictions:{right}", "no:"):
        plan = Plan(name, word, data=str(folder), resamples=5, worst=1, leak_check=word == "no:", baselines=False)
        manifest, text = execute(plan, tmp_path / word[:2])
        assert manifest["failed"] == 0 and "Research use only" in text
        numbers[word[:2]] = manifest["headline"]["mean"]["value"]
        # A run gives the numbers of the scorer, which recordings of published scripts hold still.
        lines = read_lines(tmp_path / word[:2] / "predictions.jsonl").values()
        summary = one.rows(samples, Frozen(lines))[1]
        assert all(manifest["numbers"][key] == pytest.approx(value, nan_ok=True) for key, value in summary.items()
                   if isinstance(value, float) and value == value)  # fmt: skip
    if manifest["headline"]["metric"] == "false_mask_rate":
        assert numbers["pr"] == numbers["no"] == 0, "nothing is pointed at where nothing is"
    else:
        assert numbers["pr"] > 0.99 and numbers["no"] < 0.7, numbers
    rows = [json.loads(line) for line in (tmp_path / "pr" / "cases.jsonl").read_text().splitlines()]
    assert rows and {"case", "group", "dataset", "task", "target", "kind"} <= set(rows[0])
