"""Uploads to a real registry that go on in another command, and hints that are stale, damaged or wrong."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StoreError
from model_artifacts.releases.oci.references import reference_of
from model_artifacts.releases.oci.registry import Registry
from tests.support.faulty_proxy import Fault, Proxy
from tests.support.registries import needs_registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = needs_registry

CHUNK = 200_000
DATA = bytes(range(256)) * 5_000
"""More than six chunks."""
SHA256 = hashlib.sha256(DATA).hexdigest()
UPLOAD = """
import sys
from pathlib import Path
from model_artifacts.releases.oci import uploads
from model_artifacts.releases.oci.references import reference_of
from model_artifacts.releases.oci.registry import Registry
uploads._CHUNK = int(sys.argv[1])
Registry(reference_of(sys.argv[2])).upload(sys.argv[3], Path(sys.argv[4]).stat().st_size, Path(sys.argv[4]), print)
"""
"""The upload of a file, as a process of its own that can be killed."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a MB goes in many chunks."""
    monkeypatch.setattr("model_artifacts.releases.oci.uploads._CHUNK", CHUNK)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to send."""
    path = tmp_path / "engine.plan"
    path.write_bytes(DATA)
    return path


def send(url: str, file: Path, report: Callable[[int], None] = lambda _: None) -> None:
    """Send the file."""
    Registry(reference_of(url)).upload(SHA256, len(DATA), file, report)


def interrupt(url: str, file: Path) -> None:
    """Send three chunks of the file, as a push that another transfer or Ctrl-C ends."""
    reports: list[int] = []

    def cancelled(count: int) -> None:
        reports.append(count)
        if len(reports) == 3:
            raise StoreError("interrupted")

    with pytest.raises(StoreError, match="interrupted"):
        send(url, file, cancelled)


def chunks(proxy: Proxy) -> list[int]:
    """Return the bytes of each request that sent some."""
    return [asked.sent for asked in proxy.asked if asked.method in {"PATCH", "PUT"} and "/blobs/" in asked.path]


def hints(tmp_path: Path) -> list[Path]:
    """Return the files that hold uploads."""
    return list((tmp_path / "cache/model-artifacts/uploads").glob("*"))


def test_a_killed_push_goes_on_in_the_next(proxy: Proxy, repository: str, file: Path, tmp_path: Path) -> None:
    """With the chunks that the registry has; a chunk that a proxy had only in part is sent again."""
    url = proxy.url(repository)
    reached, killed = threading.Event(), threading.Event()

    def third_never_arrives(asked: object) -> Fault | None:
        del asked
        if len(chunks(proxy)) < 3:
            return None
        reached.set()
        killed.wait(60)
        return Fault(502)

    proxy.fault = third_never_arrives
    command = [sys.executable, "-c", UPLOAD, str(CHUNK), url, SHA256, str(file)]
    sending = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL)  # noqa: S603 - fixed
    assert reached.wait(60)
    sending.send_signal(signal.SIGKILL)
    sending.wait()
    killed.set()
    assert len(hints(tmp_path)) == 1
    proxy.fault = lambda _: None
    proxy.asked.clear()
    reports: list[int] = []
    send(url, file, reports.append)
    assert sum(chunks(proxy)) == len(DATA) - 2 * CHUNK
    assert sum(reports) == len(DATA)
    assert not any(asked.method == "POST" for asked in proxy.asked)
    assert Registry(reference_of(url)).blob_bytes(SHA256) == len(DATA)
    assert hints(tmp_path) == []


def test_a_cancelled_push_goes_on_in_the_next(proxy: Proxy, repository: str, file: Path, tmp_path: Path) -> None:
    """A transfer ends after a chunk, so that docker's registry keeps what it has."""
    url = proxy.url(repository)
    interrupt(url, file)
    proxy.asked.clear()
    send(url, file)
    assert sum(chunks(proxy)) == len(DATA) - 3 * CHUNK
    assert hints(tmp_path) == []


@pytest.mark.parametrize(
    "hint", [b"", b"{", b'{"location": ""}', b'{"location": 3}'], ids=["empty", "cut", "no-url", "number"]
)
def test_a_hint_that_cannot_be_read_is_none(
    proxy: Proxy, repository: str, file: Path, tmp_path: Path, hint: bytes
) -> None:
    """As after a full disk."""
    url = proxy.url(repository)
    interrupt(url, file)
    hints(tmp_path)[0].write_bytes(hint)
    proxy.asked.clear()
    send(url, file)
    assert sum(chunks(proxy)) == len(DATA)
    assert hints(tmp_path) == []


def test_a_hint_at_another_server_is_never_asked(
    proxy: Proxy, url: str, repository: str, file: Path, tmp_path: Path
) -> None:
    """Only the registry itself hears of an upload to it."""
    interrupt(url, file)
    hints(tmp_path)[0].write_text(f'{{"location": "{proxy.url(repository).replace("oci+http", "http")}"}}')
    send(url, file)
    assert proxy.asked == []
    assert Registry(reference_of(url)).blob_bytes(SHA256) == len(DATA)


@pytest.mark.parametrize("status", [403, 404, 410], ids=str)
def test_an_upload_that_the_registry_has_forgotten_begins_again(
    proxy: Proxy, repository: str, file: Path, status: int
) -> None:
    """As after a week, or a restart with another secret."""
    url = proxy.url(repository)
    interrupt(url, file)
    proxy.fault = lambda asked: Fault(status) if asked.method == "GET" and "/uploads/" in asked.path else None
    proxy.asked.clear()
    send(url, file)
    assert sum(chunks(proxy)) == len(DATA)


def test_an_upload_of_other_bytes_begins_again(proxy: Proxy, repository: str, file: Path, tmp_path: Path) -> None:
    """The registry compares the digest; what comes of it is the file."""
    url = proxy.url(repository)
    file.write_bytes(bytes(len(DATA)))
    interrupt(url, file)  # of a file that was damaged then
    file.write_bytes(DATA)
    proxy.asked.clear()
    reports: list[int] = []
    send(url, file, reports.append)
    assert sum(chunks(proxy)) == len(DATA) + len(DATA) - 3 * CHUNK
    assert sum(reports) == len(DATA)
    assert Registry(reference_of(url)).blob_bytes(SHA256) == len(DATA)
    assert hints(tmp_path) == []


def test_two_pushes_at_once_share_no_upload(proxy: Proxy, repository: str, file: Path, tmp_path: Path) -> None:
    """The second one begins its own."""
    url = proxy.url(repository)
    interrupt(url, file)
    with hints(tmp_path)[0].open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        proxy.asked.clear()
        send(url, file)
    assert sum(chunks(proxy)) == len(DATA)


def test_a_cache_that_cannot_be_written_ends_no_upload(
    url: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container without a home."""
    (tmp_path / "in-the-way").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "in-the-way"))
    send(url, file)
    assert Registry(reference_of(url)).blob_bytes(SHA256) == len(DATA)


def test_a_mounted_blob_ends_an_upload(proxy: Proxy, repository: str, file: Path) -> None:
    """Without a byte of it."""
    url = proxy.url(repository)
    send(proxy.url("team/elsewhere"), file)
    interrupt(url, file)
    proxy.asked.clear()
    Registry(reference_of(url)).upload(SHA256, len(DATA), file, lambda _: None, "team/elsewhere")
    assert chunks(proxy) == []
    assert Registry(reference_of(url)).blob_bytes(SHA256) == len(DATA)
