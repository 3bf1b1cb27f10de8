"""Evidence of a release: refused unless it is whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ReleaseError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.releases.verification import verify_release
from tests.conftest import COMMIT
from tests.support.releases import listing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.stages.release.stage import Release


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is that of a commit."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)


def without_parts(folder: Path) -> None:
    """Have a bill of materials tell of nothing."""
    bill = json.loads((folder / "bom.cdx.json").read_text())
    (folder / "bom.cdx.json").write_text(json.dumps({**bill, "components": []}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "report.html").unlink(), "the release has no report.html"),
        (lambda folder: (folder / "NOTICES.txt").unlink(), "the release has no NOTICES.txt"),
        (lambda folder: (folder / "bom.cdx.json").unlink(), "the release has no bom.cdx.json"),
        (lambda folder: (folder / "bom.cdx.json").write_bytes(b"\xff"), "bom.cdx.json cannot be read"),
        (lambda folder: (folder / "bom.cdx.json").write_text("[]"), "the release's evidence is damaged"),
        (without_parts, r"the bill of materials does not match the release's files: tiny/onnx/.*\.onnx"),
    ],
)
def test_evidence_is_demanded_in_full(released: Release, change: Callable[[Path], object], message: str) -> None:
    """A missing part of the evidence is refused, even if sums and provenance match the remaining files."""
    change(released.folder)
    statement = json.loads((released.folder / "provenance.intoto.json").read_text())
    beyond = {"SHA256SUMS", "model.sig", "provenance.intoto.json"}
    there = {name: sha256_of(released.folder / name) for name in sorted(listing(released.folder) - beyond)}
    statement["subject"] = [{"name": name, "digest": {"sha256": digest}} for name, digest in there.items()]
    (released.folder / "provenance.intoto.json").write_text(json.dumps(statement))
    there["provenance.intoto.json"] = sha256_of(released.folder / "provenance.intoto.json")
    (released.folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in there.items()))
    with pytest.raises(ReleaseError, match=message):
        verify_release(released.folder)
