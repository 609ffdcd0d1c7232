"""The check of a GPU is checked where there is none: every part of it runs on the CPU with small sizes."""

import json

import gpu_check
import pytest
import torch


def test_every_check_runs_and_is_written_down(tmp_path, capsys):
    assert gpu_check.main(["--device", "cpu", "--out", str(tmp_path)]) == 0, capsys.readouterr()
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [row["check"] for row in report["checks"]] == list(gpu_check.CHECKS)
    numbers = {row["check"]: row["numbers"] for row in report["checks"]}
    assert numbers["decoding"]["rows_with_the_same_tokens"] == 1 and numbers["decoders"]["largest_difference"] == 0
    assert 0 < numbers["full_width_step"]["share_of_matrix_peak"] < 1
    assert numbers["strategies"] == {"ranks": 1, "strategies": "single"}
    page = (tmp_path / "gpu_check.md").read_text()
    assert page.startswith("# Check on CPU") and "share_of_matrix_peak" in page


def test_a_failure_hides_no_other_check_and_is_the_exit_code(tmp_path, monkeypatch, capsys):
    def broken(device, full):
        raise RuntimeError("kernel not found")

    monkeypatch.setattr(gpu_check, "CHECKS", {"broken": broken, "fine": lambda device, full: {"number": 2.0}})
    assert gpu_check.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "1 of 2 checks are well; not: broken" in capsys.readouterr().out
    page = (tmp_path / "gpu_check.md").read_text()
    assert "kernel not found" in page and "number 2" in page
    (row, other) = gpu_check.run(torch.device("cpu"), budget_s=-1)["checks"]
    assert row["state"] == other["state"] == "left out"


def test_masks_that_differ_from_those_of_the_cpu_fail(monkeypatch):
    monkeypatch.setattr(gpu_check, "distance", lambda one, other: 0.5)
    with pytest.raises(ValueError, match="differ by 5.0e-01"):
        gpu_check.decoders(torch.device("cpu"), False)


def test_without_cuda_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == gpu_check.NO_DEVICE
    assert "sees no CUDA device here; nothing was checked" in capsys.readouterr().err
