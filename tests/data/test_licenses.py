"""Which license binds most, and what a folder says about its parts."""

import json

import pytest

from unimed.data.licenses import (
    UNKNOWN,
    Source,
    asks_for,
    data_source,
    hub_license,
    published,
    read_sources,
    strictest,
    write_sources,
)


@pytest.mark.parametrize(
    ("freer", "stricter"),
    [
        ("CC0-1.0", "MIT"),
        ("Apache-2.0", "CC BY 4.0"),
        ("CC BY 4.0", "CC BY-SA 4.0"),
        ("CC BY-SA 4.0", "CC BY-NC-SA 4.0"),
        ("cc-by-4.0", "cc-by-nc-nd-4.0"),
        ("CC BY-NC-ND 4.0", "PhysioNet Credentialed Health Data License 1.5.0"),
        ("PhysioNet Credentialed Health Data License 1.5.0", UNKNOWN),
        ("Apache-2.0", "BSD-3-Clause for the package; origin of the volume not stated in it"),
        ("CC BY-NC 4.0", "a license of our own making, version 7"),
    ],
)
def test_the_license_that_binds_most_is_found_in_any_order(freer, stricter):
    assert strictest([freer, stricter]) == strictest([stricter, freer]) == stricter
    assert asks_for(freer)[0] < asks_for(stricter)[0]


def test_nothing_known_is_never_taken_for_free():
    assert strictest([]) == UNKNOWN and asks_for("")[0] == asks_for("Wibble Public Grant")[0]
    assert hub_license("Apache-2.0") == "apache-2.0" and hub_license("CC BY 4.0") == "cc-by-4.0"
    assert hub_license("MIT for the package; test files of several origins") == "other"


def test_sources_come_back_and_a_file_of_another_kind_is_refused(tmp_path):
    one = Source("mask decoder", "a.pt", "MIT", "layout sam2")
    write_sources(tmp_path, [one, one, Source("training data", "mine")])
    assert read_sources(tmp_path) == [one, Source("training data", "mine", UNKNOWN)]
    (tmp_path / "sources.json").write_text('{"sources": [{"owner": "x"}]}')
    with pytest.raises(ValueError, match="sources.json"):
        read_sources(tmp_path)
    assert read_sources(tmp_path / "nowhere") == []


def test_the_card_beside_published_weights_names_their_license(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    assert published("weights", tmp_path / "model.pt").license == UNKNOWN
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: sam-license\n---\n# x\n")
    assert published("weights", tmp_path / "model.pt") == Source("weights", "model.pt", "sam-license")
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert published("weights", tmp_path).license == "apache-2.0"


def test_licenses_of_records_are_listed_strictest_first(tmp_path):
    (tmp_path / "records").mkdir()
    row = {"id": "a", "task": "vqa", "question": "?", "answer": "no", "image": "a.png"}
    rows = [row | {"license": "MIT"}, row | {"id": "b", "license": "CC BY-NC 4.0"}, row | {"id": "c"}]
    (tmp_path / "records" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = data_source(tmp_path)
    assert found.license == f"{UNKNOWN}; CC BY-NC 4.0; MIT" and found.detail == "3 records of train"
    assert asks_for(found.license)[0] == asks_for(UNKNOWN)[0]
