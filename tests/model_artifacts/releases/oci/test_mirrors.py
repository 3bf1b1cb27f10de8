"""Mirrors: what their configuration means, and reads from real registries that fail, lie or are behind."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StoreError
from model_artifacts.records import FileRecord
from model_artifacts.releases.oci.documents import INDEX_TYPE, ImageIndex
from model_artifacts.releases.oci.mirrors import MirroredRegistry, mirrors_of
from model_artifacts.releases.oci.references import reference_of
from model_artifacts.releases.oci.registry import Registry, Stored
from model_artifacts.releases.store import pull, push
from tests.support.faulty_proxy import Asked, Fault, Proxy, before
from tests.support.registries import Login, RegistryServer, needs_registry, running
from tests.support.stores import listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.stages.release.stage import Release

ORIGIN = "oci://ghcr.io/team/resnet18"
DATA = bytes(range(256)) * 1_000
BLOB = FileRecord(path="engine.plan", bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def configure(tmp_path: Path) -> Callable[[str], None]:
    """A function that writes registries.conf."""

    def write(text: str) -> None:
        (tmp_path / "containers/registries.conf").write_text(text)

    return write


def shown(url: str = ORIGIN) -> list[tuple[str, bool, bool]]:
    """Return the mirrors of a repository, and what each may be asked for."""
    return [(item.reference.shown, item.for_digests, item.for_tags) for item in mirrors_of(reference_of(url))]


# The configuration.


@pytest.mark.parametrize(
    ("table", "mirrors"),
    [
        ('location = "ghcr.io"', "mirror.example/ghcr/team/resnet18"),
        ('prefix = "ghcr.io/team"', "mirror.example/ghcr/resnet18"),
        ('prefix = "ghcr.io/team/resnet18"\nlocation = "ghcr.io/team/resnet18"', "mirror.example/ghcr"),
        ('prefix = "*.io"', "mirror.example/ghcr/team/resnet18"),
        ('prefix = "ghcr.io/tea"', ""),
        ('prefix = "ghcr.io:443"', ""),
        ('prefix = "docker.io"', ""),
        ("", ""),
    ],
    ids=["host", "namespace", "repository", "wildcard", "part-of-a-name", "port", "another", "nothing"],
)
def test_a_table_is_about_the_urls_that_begin_with_its_prefix(
    configure: Callable[[str], None], table: str, mirrors: str
) -> None:
    """The mirror's location takes the place of the prefix."""
    configure(f'[[registry]]\n{table}\n[[registry.mirror]]\nlocation = "mirror.example/ghcr"\n')
    assert [url for url, _, _ in shown()] == ([f"oci://{mirrors}"] if mirrors else [])


def test_the_longest_prefix_counts_and_mirrors_keep_their_order(configure: Callable[[str], None]) -> None:
    """Without TLS only where `insecure` says so; tags only where `pull-from-mirror` does."""
    configure(
        """
        unqualified-search-registries = ["docker.io"]
        [[registry]]
        location = "ghcr.io"
        blocked = true
        [[registry]]
        prefix = "ghcr.io/team"
        [[registry.mirror]]
        location = "one.example/team"
        [[registry.mirror]]
        location = "127.0.0.1:5000/team"
        insecure = true
        pull-from-mirror = "all"
        [[registry.mirror]]
        location = "two.example/team"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "three.example/team"
        pull-from-mirror = "tag-only"
        """
    )
    assert shown() == [
        ("oci://one.example/team/resnet18", True, False),
        ("oci+http://127.0.0.1:5000/team/resnet18", True, True),
        ("oci://two.example/team/resnet18", True, False),
        ("oci://three.example/team/resnet18", False, True),
    ]


def test_mirrors_by_digest_only_tell_no_tag(configure: Callable[[str], None]) -> None:
    """The registry's own setting goes before those of its mirrors."""
    configure(
        '[[registry]]\nlocation = "ghcr.io"\nmirror-by-digest-only = true\n'
        '[[registry.mirror]]\nlocation = "m.example"\npull-from-mirror = "all"\n'
    )
    assert shown() == [("oci://m.example/team/resnet18", True, False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[registry]\n", "is no TOML"),
        ("\x00", "is no TOML"),
        ('[[registry]]\nlocation = "ghcr.io"\n[[registry.mirror]]\n', "registry.0.mirror.0.location: Field required"),
        ('[[registry]]\nlocation = "ghcr.io"\nblocked = "yes"\n', "registry.0.blocked"),
        ('[[registry]]\nlocation = "ghcr.io"\nblocked = true\n', "blocks oci://ghcr.io/team/resnet18"),
        ('[[registry]]\nprefix = "ghcr.io"\nlocation = "x.example"\n', "moves oci://ghcr.io/team/resnet18 elsewhere"),
        ('[[registry]]\nlocation = "ghcr.io"\n[[registry.mirror]]\nlocation = "a b"\n', "names a mirror that is none"),
        (
            '[[registry]]\nlocation = "ghcr.io"\n[[registry.mirror]]\nlocation = "m.example"\npull-from-mirror = "x"\n',
            "registry.0.mirror.0.pull-from-mirror",
        ),
    ],
    ids=["toml", "zero", "no-location", "type", "blocked", "moved", "location", "pull-from-mirror"],
)
def test_a_wrong_configuration_is_refused(configure: Callable[[str], None], text: str, message: str) -> None:
    """With the file and the place in it; nothing is asked past it."""
    configure(text)
    with pytest.raises(StoreError, match=message) as caught:
        mirrors_of(reference_of(ORIGIN))
    assert "registries.conf" in str(caught.value)


def test_a_user_without_a_home_folder_has_the_systems_mirrors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that runs under a number alone."""
    for name in ("CONTAINERS_REGISTRIES_CONF", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    monkeypatch.setattr("model_artifacts.releases.oci.mirrors._SYSTEM", tmp_path)
    (tmp_path / "registries.conf").write_text(
        '[[registry]]\nlocation = "ghcr.io"\n[[registry.mirror]]\nlocation = "m.example"\n'
    )
    assert shown() == [("oci://m.example/team/resnet18", True, False)]


def test_a_file_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path with a mistake in it would else pull past the mirrors."""
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "absent.conf"))
    with pytest.raises(StoreError, match=r"absent\.conf cannot be read"):
        mirrors_of(reference_of(ORIGIN))


def test_the_users_file_and_the_files_beside_it_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In place of the system's file; tables of the folders replace those of the same prefix, by the files' names."""

    def write(path: str, location: str, mirror: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(
            f'[[registry]]\nlocation = "{location}"\n[[registry.mirror]]\nlocation = "{mirror}"\n'
        )

    monkeypatch.delenv("CONTAINERS_REGISTRIES_CONF")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setattr("model_artifacts.releases.oci.mirrors._SYSTEM", tmp_path / "system")
    assert shown() == []
    write("system/registries.conf", "ghcr.io", "system.example")
    assert shown()[0][0] == "oci://system.example/team/resnet18"
    write("user/containers/registries.conf", "quay.io", "user.example")
    assert shown() == []
    write("user/containers/registries.conf.d/1.conf", "ghcr.io", "first.example")
    write("system/registries.conf.d/2.conf", "ghcr.io", "second.example")
    assert shown()[0][0] == "oci://second.example/team/resnet18"
    assert shown("oci://quay.io/x")[0][0] == "oci://user.example/x"


# Reads.


@pytest.fixture(scope="module")
def mirror_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A second registry."""
    with running(tmp_path_factory.mktemp("mirror")) as started:
        yield started


@pytest.fixture
def mirror(mirror_server: RegistryServer) -> Iterator[Proxy]:
    """A proxy before the second registry, without faults."""
    with before(mirror_server.port) as started:
        yield started


@pytest.fixture
def mirrored(
    proxy: Proxy, mirror: Proxy, repository: str, configure: Callable[[str], None], tmp_path: Path
) -> MirroredRegistry:
    """A repository with the blob, the mirror of which has it, too."""
    configure(
        f'[[registry]]\nlocation = "127.0.0.1:{proxy.port}"\n'
        f'[[registry.mirror]]\nlocation = "127.0.0.1:{mirror.port}"\ninsecure = true\n'
    )
    (tmp_path / "blob").write_bytes(DATA)
    for place in (proxy, mirror):
        Registry(reference_of(place.url(repository))).upload(BLOB.sha256, BLOB.bytes, tmp_path / "blob", lambda _: None)
        place.asked.clear()
    reference = reference_of(proxy.url(repository))
    return MirroredRegistry(reference, Registry(reference))


def fetched(mirrored: MirroredRegistry, tmp_path: Path) -> tuple[bytes, int]:
    """Return the blob as it arrives, and the sum of the reports."""
    reports: list[int] = []
    mirrored.fetch(BLOB, tmp_path / "fetched", reports.append, "none")
    return (tmp_path / "fetched").read_bytes(), sum(reports)


def blob_reads(asked: list[Asked]) -> list[str]:
    """Return the ranges of the requests for the blob."""
    return [item.range for item in asked if item.method == "GET" and item.path.endswith(BLOB.sha256)]


@needs_registry
def test_a_blob_comes_from_the_mirror(mirrored: MirroredRegistry, proxy: Proxy, tmp_path: Path) -> None:
    """The origin is not asked."""
    assert fetched(mirrored, tmp_path) == (DATA, len(DATA))
    assert proxy.asked == []


FAULTS = {
    "missing": Fault(404),
    "busy": Fault(503),
    "refused": Fault(403),
    "slow-down": Fault(429),
    "flipped": Fault(altered=lambda data: data[:-1] + b"x"),
    "cut": Fault(cut_after=0),
}


@needs_registry
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_origin_stands_in_for_a_mirror_that_fails(
    mirrored: MirroredRegistry, mirror: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    """It is asked once, a warning says why, and no wrong byte is installed."""
    mirror.fault = lambda _: fault
    assert fetched(mirrored, tmp_path) == (DATA, len(DATA))
    asked = len(mirror.asked)
    assert fetched(mirrored, tmp_path) == (DATA, len(DATA))
    assert len(mirror.asked) == asked
    assert len(caplog.records) == 1
    assert f"the mirror oci+http://127.0.0.1:{mirror.port}" in caplog.text


@needs_registry
@pytest.mark.parametrize("lies", [False, True], ids=["true", "false"])
def test_what_a_mirror_left_is_continued_and_checked_as_a_whole(
    mirrored: MirroredRegistry, mirror: Proxy, proxy: Proxy, tmp_path: Path, *, lies: bool
) -> None:
    """The origin sends the rest; if the mirror's part was wrong, everything again."""
    part = (b"x" if lies else b"") + DATA[lies:100_000]
    (tmp_path / "fetched.part").write_bytes(part)  # of an earlier command
    mirror.fault = lambda _: Fault(503)
    assert fetched(mirrored, tmp_path) == (DATA, len(DATA))
    assert blob_reads(proxy.asked) == (["bytes=100000-", ""] if lies else ["bytes=100000-"])


@needs_registry
def test_without_a_whole_copy_nothing_is_installed(
    mirrored: MirroredRegistry, mirror: Proxy, proxy: Proxy, tmp_path: Path
) -> None:
    """Both give other bytes than those asked for."""
    for place in (mirror, proxy):
        place.fault = lambda _: Fault(altered=lambda data: data[:-1] + b"x")
    with pytest.raises(StoreError, match="differs from its listed digest"):
        fetched(mirrored, tmp_path)
    assert not (tmp_path / "fetched").exists()


def tagged(place: Proxy, repository: str, about: str) -> str:
    """Write an index with the tag `latest`, and return its digest."""
    stored = Stored(ImageIndex(annotations={"about": about}).to_bytes(), INDEX_TYPE)
    Registry(reference_of(place.url(repository))).put_manifest("latest", stored)
    return stored.sha256


@needs_registry
def test_a_manifest_that_the_mirror_lacks_comes_from_the_origin(
    mirrored: MirroredRegistry, mirror: Proxy, proxy: Proxy, repository: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A mirror that is behind is no failure; the next question goes to it again."""
    digest = tagged(proxy, repository, "new")
    stored = mirrored.manifest(f"sha256:{digest}")
    assert stored is not None
    assert stored.sha256 == digest
    assert caplog.records == []
    tagged(mirror, repository, "new")
    proxy.asked.clear()
    assert mirrored.manifest(f"sha256:{digest}") == stored
    assert proxy.asked == []


@needs_registry
def test_a_tag_is_the_origins_to_tell(mirrored: MirroredRegistry, mirror: Proxy, proxy: Proxy, repository: str) -> None:
    """A mirror that is behind, or that someone made so, brings no old release back."""
    new = tagged(proxy, repository, "new")
    tagged(mirror, repository, "old")
    assert mirrored.digest_of("latest") == new
    proxy.fault = lambda _: Fault(503)
    with pytest.raises(StoreError, match="status 503"):
        mirrored.digest_of("latest")


@needs_registry
def test_a_mirror_tells_a_tag_where_it_may_and_the_origin_is_away(  # noqa: PLR0913 - fixtures
    mirrored: MirroredRegistry,
    mirror: Proxy,
    proxy: Proxy,
    repository: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only if the origin cannot be reached, not if it has no such tag; and a warning says so."""
    file = tmp_path / "containers/registries.conf"
    file.write_text(file.read_text() + 'pull-from-mirror = "all"\n')
    old = tagged(mirror, repository, "old")
    assert mirrored.digest_of("latest") is None
    proxy.fault = lambda _: Fault(503)
    assert mirrored.digest_of("latest") == old
    assert f"says that latest is sha256:{old}" in caplog.text
    assert mirrored.manifest(f"sha256:{old}") is not None


@needs_registry
def test_each_host_gets_its_own_password(
    released: Release, proxy: Proxy, repository: str, tmp_path: Path, configure: Callable[[str], None]
) -> None:
    """A release is pulled from a mirror that wants one; the origin, which is not logged in to, never sees it."""
    ours = Login("someone", "correct-horse-battery-staple")
    encoded = base64.b64encode(f"{ours.user}:{ours.password}".encode()).decode()
    with running(tmp_path / "private", login=ours) as private:
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {private.host: {"auth": encoded}}}))
        push(private.url(repository), released.folder)
        push(proxy.url(repository), released.folder)
        proxy.asked.clear()
        configure(
            f'[[registry]]\nlocation = "127.0.0.1:{proxy.port}"\n'
            f'[[registry.mirror]]\nlocation = "{private.host}"\ninsecure = true\n'
        )
        pull(proxy.url(repository), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)
    assert [asked.method for asked in proxy.asked] == ["HEAD"]  # the tag
    assert proxy.asked[0].authorization == ""
