"""The list of targets and the command that shows it."""

import json
from collections import Counter

import pytest

from unimed.commands.cli import main
from unimed.data.wordings import biomedparse_targets as targets


def test_counts_as_published():
    rows = targets.list_targets("volume")
    assert Counter(row["modality"] for row in rows) == {
        "CT": 135, "MRI": 78, "Ultrasound": 10, "PET": 1, "Electron Microscopy": 6, "Lightsheet Microscopy": 4
    }  # fmt: skip
    assert len({(r["modality"], r["anatomy"], r["target"]) for r in rows}) == 234
    assert len(targets.list_targets("image")) == 112


def test_hierarchy_and_categories():
    assert targets.lineage("left kidney") == ("organ", "kidney", "left kidney")
    assert targets.lineage("liver") == ("organ", "liver") and targets.lineage("teapot") == ()
    assert targets.category("neoplastic polyp") == {"id": 12, "name": "lesion", "parent": "abnormality"}


def test_every_recognisable_target_has_its_distributions():
    for kind in targets.known()["recognition"]:
        for target in targets.recognisable(kind):
            assert len(targets.presence_distributions(kind, target)) == 4, (kind, target)
    assert sum(len(v) for v in targets.known()["presence"].values()) == 64


def test_image_types():
    assert (
        targets.image_type("CT", "abdomen") == "CT-Abdomen"
        and targets.image_type("MRI-FLAIR", "brain") == "MRI-FLAIR-Brain"
    )
    assert targets.image_type("endoscope", "colon") == "Endoscopy" and targets.image_type("OCT") == "OCT"
    with pytest.raises(targets.TargetError, match="CT-Chest"):
        targets.image_type("MRI", "knee")


def test_window_site_follows_the_prompts():
    assert targets.site_of(["left lung in CT", "lung lesion"]) == "lung"
    assert targets.site_of(["CT imaging of the spleen", "Visualization of the liver"]) == "soft tissue"
    assert targets.site_of(["liver", "left lung"]) is None and targets.site_of(["something else"]) is None


def test_command_prints_table_and_json(capsys):
    assert main(["list-tasks", "--modality", "oct"]) == 0
    assert "| image | OCT      | retinal | edema  | 0.894       | 283         |" in capsys.readouterr().out
    assert main(["list-tasks", "--kind", "volume", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 234
    assert main(["list-tasks", "--modality", "sonar"]) == 1
    assert "Lightsheet Microscopy" in capsys.readouterr().err
