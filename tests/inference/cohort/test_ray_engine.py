"""On Ray: the bytes of one process, also where actors are killed. Skipped where Ray is not installed."""

import os
from pathlib import Path

import cohorts
import pytest
from cohorts import DigestOf, manifest, run, tree

pytest.importorskip("ray")


@pytest.mark.slow
def test_actors_give_the_bytes_of_one_process_also_where_one_is_killed(tmp_path, monkeypatch):
    places = [str(Path(cohorts.__file__).parent), str(Path(cohorts.__file__).parent.parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))  # actors import the predictor
    table = manifest(tmp_path / "in", 11)
    run(tmp_path / "one", [table], DigestOf(str(tmp_path / "one.log")), part_rows=3)
    (tmp_path / "ray.log").touch()
    killed = DigestOf(str(tmp_path / "ray.log"), kills={4: 1, 7: 99})
    report = run(tmp_path / "ray", [table], killed, part_rows=3, engine="ray", workers=2)
    assert (report.finished, report.failed) == (11, 1)  # over record 7 every actor dies
    mended = DigestOf(str(tmp_path / "ray.log"))
    assert run(tmp_path / "ray", [table], mended, part_rows=3).exit_code == 0
    assert sorted(mended.worked()) == list(range(11)) and tree(tmp_path / "one") == tree(tmp_path / "ray")
