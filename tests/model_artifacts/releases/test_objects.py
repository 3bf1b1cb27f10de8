"""Objects of a store: URLs, secrets and missing packages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StoreError
from model_artifacts.releases.objects import ObjectStore, without_secrets
from model_artifacts.releases.store import pull, push

if TYPE_CHECKING:
    from pipeline.stages.release.stage import Release


# Broken transfers.


def test_a_store_that_cannot_be_written_is_one_message(tmp_path: Path, released: Release) -> None:
    """A file where its folder should be."""
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match=r"(?s)looking for .* failed.*Not a directory"):
        push(str(tmp_path / "store"), released.folder)


# The command line, and what it says.


def test_other_kinds_of_urls_are_refused() -> None:
    """The message names the kind of URL and the supported kinds."""
    with pytest.raises(StoreError, match=r"(?s)is no supported store.*s3://.*got:      ftp://"):
        ObjectStore("ftp://somewhere/models")


def test_a_package_that_is_missing_is_named() -> None:
    """The message names the package that a Google Cloud Storage URL needs."""
    with pytest.raises(StoreError, match=r"(?s)needs a package.*gcsfs"):
        ObjectStore("gs://bucket/models")


def test_secrets_of_urls_are_not_shown() -> None:
    """No message contains a password or a token."""
    url = "http://someone:hunter2@127.0.0.1:9/models?token=hunter3"
    assert without_secrets(f"{url} failed") == "http://…@127.0.0.1:9/models?… failed"
    with pytest.raises(StoreError) as failed:
        pull(url, Path("nowhere"))
    assert "hunter" not in str(failed.value)
