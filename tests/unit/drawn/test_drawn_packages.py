"""Fetching the drawings: a changed archive and a registry that does not answer."""

import hashlib
import io
import json
import stat
import tarfile
from pathlib import Path

import pytest
from drawn import packages
from drawn.packages import PACKAGES, Package, fetch, icons
from drawn.vocabulary import SETS


def archive_of(collection: dict) -> bytes:
    content = json.dumps(collection).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        member = tarfile.TarInfo("package/icons.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def package_of(content: bytes) -> Package:
    return Package("@drawings/some", "1.0.0", hashlib.sha256(content).hexdigest())


def npm_that(tmp_path: Path, script: str) -> list[str]:
    path = tmp_path / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [str(path)]


def test_every_set_has_a_pinned_package() -> None:
    assert {p.name for p in PACKAGES} == set(SETS.values())


def test_a_fetched_archive_is_checked_kept_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive_of({"icons": {"fox": {"body": "<g/>"}}})
    (tmp_path / "served.bin").write_bytes(content)
    command = npm_that(tmp_path, f"cp {tmp_path}/served.bin some-1.0.0.tgz")
    monkeypatch.setattr(packages, "npm_command", lambda: command)
    archive = fetch(package_of(content), tmp_path / "cache")
    assert icons(archive)["icons"]["fox"]["body"] == "<g/>"
    monkeypatch.setattr(packages, "npm_command", lambda: ["false"])
    assert fetch(package_of(content), tmp_path / "cache") == archive


def test_a_changed_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served.bin").write_bytes(archive_of({"icons": {}}))
    command = npm_that(tmp_path, f"cp {tmp_path}/served.bin some-1.0.0.tgz")
    monkeypatch.setattr(packages, "npm_command", lambda: command)
    with pytest.raises(RuntimeError, match="must have SHA-256"):
        fetch(package_of(b"something else"), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tgz"))


def test_a_registry_that_does_not_answer_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "npm_command", lambda: npm_that(tmp_path, "exit 1"))
    with pytest.raises(RuntimeError, match=r"npm must fetch .* run the same command again"):
        fetch(package_of(b"x"), tmp_path / "cache")
