"""`unimed doctor` names what is missing or does not fit, with the remedy."""

import json

import pytest

from unimed.commands import doctor as verb


def test_it_prints_versions_devices_and_extras(capsys):
    code = verb.doctor([])
    said = capsys.readouterr().out
    assert "torch" in said and "device: cpu" in said and "extra dev" in said and "Research use only" in said
    assert (code == 0) == ("no problem found" in said)
    verb.doctor(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["base_gb"] > 0.5 and 0 <= found["sizes"]["cuda_gb"] <= found["sizes"]["base_gb"]
    assert found["packages"]["torch"] and found["caches"]["unimed"]["free_bytes"] > 0


@pytest.mark.parametrize(
    ("package", "version", "problem"),
    [("nibabel", "", "nibabel is missing"), ("nibabel", "1.0", "nibabel is 1.0, tested were"), ("deepspeed", "", None)],
)
def test_what_is_wrong_comes_with_its_remedy(package, version, problem, monkeypatch, capsys):
    real = verb._version_of
    monkeypatch.setattr(verb, "_version_of", lambda name: version if name == package else real(name))
    code, said = verb.doctor([]), capsys.readouterr().out
    if problem is None:  # an extra may be missing
        assert f"pip install 'unimed[{package}]'" in said
    else:
        assert code == 1 and problem in said and f"pip install '{package}" in said


def test_values_of_secrets_are_not_printed(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("UNIMED_PATIENT_SALT", "very_secret")
    verb.doctor([])
    verb.doctor(["--json"])
    assert "very_secret" not in capsys.readouterr().out


def test_a_gpu_build_without_a_gpu_is_told_with_the_way_out(monkeypatch, capsys):
    monkeypatch.setattr(verb, "_sizes", lambda: {"base_gb": 6.5, "cuda_gb": 4.0})
    monkeypatch.setattr(verb, "_devices", lambda problems: ["cpu, AVX2, 1 threads"])
    verb.doctor([])
    assert "CPU build" in capsys.readouterr().out
    monkeypatch.setattr(verb, "_devices", lambda problems: ["cpu, AVX2, 1 threads", "cuda:0, x"])
    verb.doctor([])
    printed = capsys.readouterr().out
    assert "CPU build" not in printed and "6.5 GB, 4.0 GB of it CUDA" in printed
