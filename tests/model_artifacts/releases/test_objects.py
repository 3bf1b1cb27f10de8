"""Objects of a store: URLs, secrets and missing packages."""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from model_artifacts.errors import StoreError
from model_artifacts.records.releases import HostRelease
from model_artifacts.releases.objects import ObjectStore, without_secrets
from model_artifacts.releases.store import collect_garbage, pull, push, read_tags
from tests.support.stores import left_by_a_pull, leftovers, listing, part_of
from tests.support.web import served

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


# Failures that must not pass for an empty store.


@pytest.mark.parametrize("url", ["folder", "s3"], indirect=True)
def test_a_folder_that_cannot_be_listed_is_not_empty(
    url: str, released: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its tags, every release would be garbage."""
    push(url, released.folder)
    store = ObjectStore(url)
    assert store.objects("tags")
    system = type(store._fs)  # noqa: SLF001 - where the failure comes from

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for name in {"ls", "_ls", "_lsdir"} & set(dir(system)):
        monkeypatch.setattr(system, name, refused)
    with pytest.raises(StoreError, match=r"(?s)listing tags failed.*the store refuses access"):
        ObjectStore(url).objects("tags")
    with pytest.raises(StoreError, match="failed"):
        collect_garbage(url, timedelta(0), delete=True)


def test_a_part_of_a_release_names_no_file_elsewhere() -> None:
    """The record of a pull for one host has the same rules for paths as a listing."""
    for path in ("../x", "/x", "a\x1b[2J"):
        with pytest.raises(ValidationError, match="expected paths"):
            HostRelease(artifact="a", paths=(path,))


# From web servers: slow, cut, resumed and refused.


def test_a_web_server_is_enough_to_pull_from(store: Path, released: Release, tmp_path: Path) -> None:
    """It needs no listing of its files; nothing can be pushed to it."""
    push(str(store), released.folder)
    with served(store) as (url, _):
        pull(url, tmp_path / "models")
        with pytest.raises(StoreError, match="can only be pulled from"):
            push(url, released.folder)
        with pytest.raises(StoreError, match="has no tag prod"):
            pull(url, tmp_path / "models", "prod")
    assert listing(tmp_path / "models") == listing(released.folder)


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_file_goes_on(store: Path, released: Release, tmp_path: Path, *, ranges: bool) -> None:
    """The rest of it is asked for; a server without byte ranges sends it from its beginning."""
    place = left_by_a_pull(tmp_path / "models", push(str(store), released.folder).digest)
    whole = (released.folder / "manifest.json").read_bytes()
    part_of(place, "manifest.json").write_bytes(whole[:1000])
    with served(store) as (url, server):
        server.ranges = ranges
        pull(url, tmp_path / "models")
        assert [span for _, span in server.asked if span] == ["bytes=1000-"]
    assert listing(tmp_path / "models") == listing(released.folder)


@pytest.mark.parametrize("excess", [0, 5])
def test_a_part_that_is_complete_or_too_long_is_settled(
    store: Path, released: Release, tmp_path: Path, excess: int
) -> None:
    """The server refuses a range beyond the end: the file is fetched from its beginning."""
    place = left_by_a_pull(tmp_path / "models", push(str(store), released.folder).digest)
    part_of(place, "manifest.json").write_bytes((released.folder / "manifest.json").read_bytes() + bytes(excess))
    with served(store) as (url, _):
        pull(url, tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)


def test_a_connection_that_is_cut_is_resumed_by_the_next_pull(store: Path, released: Release, tmp_path: Path) -> None:
    """No byte that has arrived travels again."""
    push(str(store), released.folder)
    with served(store) as (url, server):
        server.cut_after, server.seconds = 30_000, 0.1
        with pytest.raises(StoreError, match=r"reading blobs/.* failed"):
            pull(url, tmp_path / "models")
        assert len(leftovers(tmp_path / "models")) == 1
        server.cut_after, server.seconds = None, 0.0
        server.asked.clear()
        pull(url, tmp_path / "models")
        assert {span for _, span in server.asked if span} & {"bytes=20000-", "bytes=30000-"}
    assert listing(tmp_path / "models") == listing(released.folder)


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(
    store: Path, released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence has a limit, a whole file has none: aiohttp's own is 300 s."""
    push(str(store), released.folder)
    monkeypatch.setattr("model_artifacts.releases.objects._SILENT_SECONDS", 0.5)
    with served(store) as (url, server):
        assert ObjectStore(url)._fs.client_kwargs["timeout"].total is None  # noqa: SLF001 - 300 s are too long to wait
        largest = max(path.stat().st_size for path in released.folder.rglob("*") if path.is_file())
        server.seconds, server.piece = 0.2, largest // 4  # it takes longer than silence may
        pull(url, tmp_path / "models")
        server.seconds, server.piece = 2.0, 20_000
        with pytest.raises(StoreError, match=r"[Tt]imeout"):
            pull(url, tmp_path / "others")
    assert listing(tmp_path / "models") == listing(released.folder)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"(?s)401.*the store refuses access"),
        (403, r"(?s)403.*the store refuses access"),
        (404, "has no tag latest"),
        (429, r"(?s)429.*try again later"),
        (500, r"(?s)500.*try again later"),
        (503, r"(?s)503.*try again later"),
    ],
)
def test_a_refusal_is_told_as_what_it_is(tmp_path: Path, status: int, message: str) -> None:
    """Only 404 says that there is no such tag."""
    with served(tmp_path) as (url, server):
        server.status = HTTPStatus(status)
        with pytest.raises(StoreError, match=message) as caught:
            pull(url, tmp_path / "models")
        assert ("has no tag" in str(caught.value)) == (status == HTTPStatus.NOT_FOUND)


def test_a_refused_connection_is_no_missing_tag(tmp_path: Path) -> None:
    """Pulling and listing tags say so."""
    with served(tmp_path) as (url, _):
        pass
    for work in (lambda: pull(url, tmp_path / "models"), lambda: read_tags(url)):
        with pytest.raises(StoreError, match=r"failed\n.*Connect"):
            work()


def test_a_large_listing_is_read_to_its_end(tmp_path: Path) -> None:
    """A read of a stream returns what has arrived, not all of it."""
    data = bytes(range(256)) * 4000
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/x").write_bytes(data)
    with served(tmp_path) as (url, _):
        assert ObjectStore(url).read("blobs/x", len(data)) == data
        with pytest.raises(StoreError, match="too large"):
            ObjectStore(url).read("blobs/x", len(data) - 1)
