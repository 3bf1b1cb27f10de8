"""Registries on loopback, and repositories in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.faulty_proxy import before
from tests.support.registries import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.faulty_proxy import Proxy
    from tests.support.registries import RegistryServer


@pytest.fixture(autouse=True)
def _no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's and containers' configuration of the user who runs the tests is not read, and the cache not written."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers/registries.conf").touch()
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "containers/registries.conf"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses before another attempt are short."""
    monkeypatch.setattr("model_artifacts.releases.oci.transport._FIRST_PAUSE", 0.02)
    monkeypatch.setattr("model_artifacts.releases.oci.attempts._PAUSE", 0.02)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry for everybody, without TLS."""
    with running(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """The path of a repository that no other test uses."""
    name: str = request.node.name
    return "team/" + "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-").replace(
        "--", "-"
    )


@pytest.fixture
def url(server: RegistryServer, repository: str) -> str:
    """An empty repository."""
    return server.url(repository)


@pytest.fixture
def proxy(server: RegistryServer) -> Iterator[Proxy]:
    """A proxy before the registry, without faults."""
    with before(server.port) as started:
        yield started
