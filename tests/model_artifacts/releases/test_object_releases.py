"""Tags of a store, each of which is one model's."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import UsageError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import write_record
from model_artifacts.releases.store import push, read_tags

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.stages.release.stage import Release


@pytest.fixture
def second(released: Release, tmp_path: Path) -> Path:
    """The same release, of another model."""
    folder = tmp_path / "second"
    shutil.copytree(released.folder, folder)
    (folder / "model.sig").unlink()
    assert released.manifest.model is not None
    own = {
        "model": released.manifest.model.model_copy(update={"name": "second"}),
        "artifacts": tuple(item.model_copy(update={"model": "second"}) for item in released.manifest.artifacts),
    }
    evidence = [folder / name for name in ("manifest.json", "provenance.intoto.json", "SHA256SUMS")]
    before = [sha256_of(path) for path in evidence]
    write_record(evidence[0], released.manifest.model_copy(update=own))
    for path, digest in zip(evidence, before, strict=False):
        for later in evidence[evidence.index(path) + 1 :]:  # each lists those before it
            later.write_text(later.read_text().replace(digest, sha256_of(path)))
    return folder


def test_a_tag_stays_with_its_model(store: Path, released: Release, second: Path) -> None:
    """Whoever pulls a tag would get another model. A tag that does not read tells of none."""
    first = push(str(store), released.folder)
    with pytest.raises(UsageError, match=r"(?s)the tag latest names.*expected: tiny.*got: +second.*--tag second"):
        push(str(store), second)
    assert read_tags(str(store)) == (("latest", first.digest),)
    other = push(str(store), second, ["second"])
    assert read_tags(str(store)) == (("latest", first.digest), ("second", other.digest))
    (store / "tags/latest.json").write_text("{")
    push(str(store), second)
    assert read_tags(str(store)) == (("latest", other.digest), ("second", other.digest))
