"""Stores to push to, and a newer release."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.releases.verification import verify_release

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.stages.release.stage import Release


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder to use as a store."""
    return tmp_path / "store"


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def url(request: pytest.FixtureRequest, store: Path) -> str:
    """Each kind of store that can be written."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    return {"folder": str(store), "file": f"file://{store}", "memory": f"memory://{store.parent.name}"}[request.param]


@pytest.fixture
def newer(released: Release, tmp_path: Path) -> Path:
    """Another release: the same files, but for its licences."""
    folder = tmp_path / "newer"
    shutil.copytree(released.folder, folder)
    (folder / "model.sig").unlink()
    before = hashlib.sha256((folder / "NOTICES.txt").read_bytes()).hexdigest()
    (folder / "NOTICES.txt").write_text("other notices\n")
    after = hashlib.sha256((folder / "NOTICES.txt").read_bytes()).hexdigest()
    for name in ("provenance.intoto.json", "SHA256SUMS"):
        text = (folder / name).read_text().replace(before, after)
        if name == "SHA256SUMS":
            proof = "provenance.intoto.json"
            digest = hashlib.sha256((folder / proof).read_bytes()).hexdigest()
            text = "".join(
                f"{digest}  {proof}\n" if line.endswith(proof) else f"{line}\n" for line in text.splitlines()
            )
        (folder / name).write_text(text)
    verify_release(folder)
    return folder
