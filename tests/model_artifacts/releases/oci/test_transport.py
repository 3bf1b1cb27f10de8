"""Requests to registries: passwords and tokens, redirects, retries, bounds, and words that show no secret."""

from __future__ import annotations

import base64
import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StoreError
from model_artifacts.releases.oci.references import Reference, reference_of
from model_artifacts.releases.oci.transport import BrokenError, Request, Transport
from model_artifacts.releases.store import pull, push, read_tags
from tests.support.faulty_proxy import Asked, Fault, Proxy, before
from tests.support.registries import Login, needs_registry, running
from tests.support.stores import listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.stages.release.stage import Release

SECRET = "correct-horse-battery-staple"  # noqa: S105 - it opens nothing
OURS = Login("someone", SECRET)
TOKEN = "a-token-that-nobody-may-see"  # noqa: S105 - it opens nothing


@pytest.fixture
def logged_in(tmp_path: Path) -> Callable[[str], None]:
    """A function that keeps the name and the password for a host, as `docker login` does."""

    def log_in(host: str) -> None:
        folder = tmp_path / "docker"
        folder.mkdir(exist_ok=True)
        encoded = base64.b64encode(f"{OURS.user}:{OURS.password}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": encoded}}}))

    return log_in


@pytest.fixture
def alone() -> Iterator[Proxy]:
    """A server that answers by faults alone."""
    with before(9) as started:
        yield started


def transport(proxy: Proxy) -> Transport:
    """Return the connection to a proxy."""
    return Transport(reference_of(proxy.url("team/x")))


READ = Request("GET", "team/x/manifests/1.4", "reading 1.4")


# Real registries.


@needs_registry
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_registry_with_passwords_wants_ours(
    released: Release,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged_in: Callable[[str], None],
    *,
    tls: bool,
) -> None:
    """Without one nothing is pushed, with a wrong one neither, and with ours everything comes back."""
    with running(tmp_path / "registry", login=OURS, tls=tls) as server:
        url = server.url("team/tiny")
        if server.certificate:
            with pytest.raises(StoreError, match="its certificate is not trusted here"):
                read_tags(url)
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.certificate))
        with pytest.raises(StoreError, match="status 401") as caught:
            push(url, released.folder)
        assert f"docker login {server.host}" in str(caught.value)
        logged_in(server.host)
        push(url, released.folder)
        pull(url, tmp_path / "models")
        assert listing(tmp_path / "models") == listing(released.folder)
        config = tmp_path / "docker/config.json"
        wrong = base64.b64encode(f"someone:{SECRET}!".encode()).decode()
        config.write_text(json.dumps({"auths": {server.host: {"auth": wrong}}}))
        with pytest.raises(StoreError, match="status 401") as caught:
            pull(url, tmp_path / "models")
        assert SECRET not in str(caught.value)


def test_nothing_is_sent_without_tls_unless_told(alone: Proxy, logged_in: Callable[[str], None]) -> None:
    """An oci:// URL of a server without TLS fails before anything of ours leaves."""
    host = f"127.0.0.1:{alone.port}"
    logged_in(host)
    with pytest.raises(StoreError, match=r"the server speaks no TLS[\s\S]*oci\+http://"):
        read_tags(f"oci://{host}/team/x")
    assert alone.asked == []


# Tokens.


def asking_for_a_token(proxy: Proxy, answer: bytes, realm: str = "", scope: str = "repository:team/x:pull") -> None:
    """Have a server ask for a token of its own realm, and accept one."""
    realm = realm or f"http://127.0.0.1:{proxy.port}/token"

    def fault(asked: Asked) -> Fault:
        if asked.path.startswith("/token"):
            return Fault(200, body=answer)
        if asked.authorization == f"Bearer {TOKEN}":
            return Fault(200, body=b"there")
        return Fault(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="ours",scope="{scope}"'})

    proxy.fault = fault


@pytest.mark.parametrize("name", ["token", "access_token"])
def test_a_token_is_asked_for_with_the_password(alone: Proxy, logged_in: Callable[[str], None], name: str) -> None:
    """Once for all requests; the registry itself never gets the password."""
    logged_in(f"127.0.0.1:{alone.port}")
    asking_for_a_token(alone, json.dumps({name: TOKEN}).encode())
    connection = transport(alone)
    for _ in range(2):
        assert connection.send(READ)[1] == b"there"
    encoded = base64.b64encode(f"{OURS.user}:{OURS.password}".encode()).decode()
    assert [(asked.path.partition("?")[0].rpartition("/")[2], asked.authorization) for asked in alone.asked] == [
        ("1.4", ""),
        ("token", f"Basic {encoded}"),
        ("1.4", f"Bearer {TOKEN}"),
        ("1.4", f"Bearer {TOKEN}"),
    ]
    assert "scope=repository%3Ateam%2Fx%3Apull" in alone.asked[1].path
    assert "service=ours" in alone.asked[1].path


def test_a_refresh_token_is_posted(alone: Proxy, tmp_path: Path) -> None:
    """As OAuth2 has it; no name and no password is sent."""
    (tmp_path / "docker").mkdir()
    auths = {f"127.0.0.1:{alone.port}": {"identitytoken": SECRET}}
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": auths}))
    asking_for_a_token(alone, json.dumps({"token": TOKEN}).encode())
    assert transport(alone).send(READ)[1] == b"there"
    assert [asked.method for asked in alone.asked] == ["GET", "POST", "GET"]
    assert alone.asked[1].sent > 0
    assert SECRET not in alone.asked[1].path
    assert alone.asked[1].authorization == ""


def test_a_realm_that_refuses_is_told(alone: Proxy, logged_in: Callable[[str], None]) -> None:
    """A wrong password, a realm that is not there, and a busy one, which is asked again."""
    logged_in(f"127.0.0.1:{alone.port}")
    asking_for_a_token(alone, b"{}", realm="http://127.0.0.1:9/token")
    with pytest.raises(BrokenError, match="asking for a token failed"):
        transport(alone).send(READ)
    asking_for_a_token(alone, json.dumps({"token": TOKEN}).encode())
    answered = alone.fault
    alone.fault = lambda asked: Fault(403, body=b"{}") if asked.path.startswith("/token") else answered(asked)
    with pytest.raises(StoreError, match="asking for a token failed") as caught:
        transport(alone).send(READ)
    assert "docker login" in str(caught.value)
    busy = iter([Fault(503)])
    alone.fault = lambda asked: next(busy, None) or answered(asked) if "/token" in asked.path else answered(asked)
    assert transport(alone).send(READ)[1] == b"there"


@pytest.mark.parametrize(
    "answer",
    [b"{}", b"[]", b"no JSON", b'{"token": ""}', b'{"token": "a\\nb"}', b'{"token": 7}'],
    ids=["empty", "list", "text", "no-token", "two-lines", "number"],
)
def test_an_answer_without_a_token_is_refused(alone: Proxy, answer: bytes) -> None:
    """Nothing of it becomes a header."""
    asking_for_a_token(alone, answer)
    with pytest.raises(StoreError, match="holds none"):
        transport(alone).send(READ)


def test_a_realm_without_tls_gets_nothing(alone: Proxy) -> None:
    """A registry with TLS may not send the password elsewhere in the clear."""
    connection = Transport(Reference("registry.example", "team/x"))
    challenge = f'Bearer realm="http://127.0.0.1:{alone.port}/token",service="ours"'
    with pytest.raises(StoreError, match="in a way that is refused here"):
        connection._answer_to(challenge)  # noqa: SLF001 - a registry with TLS would need a name
    with pytest.raises(StoreError, match="in a way that is refused here"):
        connection._answer_to("Negotiate")  # noqa: SLF001 - the same
    assert alone.asked == []


# Redirects.


@needs_registry
def test_a_redirect_elsewhere_carries_no_password(
    released: Release, tmp_path: Path, logged_in: Callable[[str], None]
) -> None:
    """Registries send clients to buckets for blobs; the same host with another port is elsewhere, too."""
    with ExitStack() as stack:
        server = stack.enter_context(running(tmp_path / "registry", login=OURS))
        registry = stack.enter_context(before(server.port))
        bucket = stack.enter_context(before(9))
        logged_in(f"127.0.0.1:{registry.port}")
        push(registry.url("team/tiny"), released.folder)

        def elsewhere(asked: Asked) -> Fault | None:
            if asked.method == "GET" and "/blobs/" in asked.path and asked.authorization:
                digest = asked.path.rpartition(":")[2]
                return Fault(307, {"Location": f"http://127.0.0.1:{bucket.port}/{digest}?signed=yes"})
            return None

        def given(asked: Asked) -> Fault:
            return Fault(200, body=server.blob(asked.path[1:65]).read_bytes())

        registry.fault, bucket.fault = elsewhere, given
        pull(registry.url("team/tiny"), tmp_path / "models")
        assert listing(tmp_path / "models") == listing(released.folder)
        assert len(bucket.asked) == len(listing(released.folder))
        assert {asked.authorization for asked in bucket.asked} == {""}


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_a_server_elsewhere_may_not_ask_for_the_password(
    alone: Proxy, logged_in: Callable[[str], None], scheme: str
) -> None:
    """It could name a realm of its own: a refusal there is final."""
    with before(9) as elsewhere:
        logged_in(f"127.0.0.1:{alone.port}")
        realm = f'{scheme} realm="http://127.0.0.1:{elsewhere.port}/token",service="theirs"'
        alone.fault = lambda _: Fault(307, {"Location": f"http://127.0.0.1:{elsewhere.port}/blob"})
        elsewhere.fault = lambda _: Fault(401, {"WWW-Authenticate": realm})
        with pytest.raises(StoreError, match="status 401"):
            transport(alone).send(READ)
        assert [(asked.path, asked.authorization) for asked in elsewhere.asked] == [("/blob", "")]
        assert [asked.authorization for asked in alone.asked] == [""]


def test_redirects_end(alone: Proxy) -> None:
    """A circle, and a redirect to another scheme."""
    alone.fault = lambda asked: Fault(307, {"Location": asked.path})
    with pytest.raises(StoreError, match="redirected too often"):
        transport(alone).send(READ)
    assert len(alone.asked) == 6
    alone.fault = lambda _: Fault(307, {"Location": "file:///etc/passwd"})
    with pytest.raises(StoreError, match="leads to a server without TLS"):
        transport(alone).send(READ)


# Failures.


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(alone: Proxy, status: int) -> None:
    """Five times at most, and with the pause that it asks for."""
    alone.fault = lambda _: Fault(200, body=b"there") if len(alone.asked) == 3 else Fault(status)
    assert transport(alone).send(READ)[1] == b"there"
    alone.asked.clear()
    alone.fault = lambda _: Fault(status, body=b'{"errors": [{"code": "X", "message": "no"}]}')
    with pytest.raises(BrokenError, match=f"status {status}, X: no") as caught:
        transport(alone).send(READ)
    assert "try again later" in str(caught.value)
    assert len(alone.asked) == 5


def test_the_registrys_pause_is_kept(alone: Proxy) -> None:
    """In seconds; a date is not waited for."""
    alone.fault = lambda _: Fault(200) if len(alone.asked) == 3 else Fault(429, {"Retry-After": "1"})
    start = time.monotonic()
    transport(alone).send(READ)
    assert time.monotonic() - start >= 2
    alone.asked.clear()
    alone.fault = lambda _: Fault(200) if len(alone.asked) == 2 else Fault(429, {"Retry-After": "Fri, 31 Dec 2999"})
    transport(alone).send(READ)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b'{"errors": [{"code": "NAME_UNKNOWN", "message": "no such repository"}]}', "NAME_UNKNOWN"),
        (400, b"<html>", "status 400"),
        (403, b'{"errors": []}', "the store refuses access"),
        (418, b"[1]", "status 418"),
    ],
    ids=["unknown", "page", "forbidden", "odd"],
)
def test_a_refusal_is_final_and_told(alone: Proxy, status: int, body: bytes, said: str) -> None:
    """It is asked once, and its words are shown."""
    alone.fault = lambda _: Fault(status, body=body)
    with pytest.raises(StoreError, match=said):
        transport(alone).send(READ)
    assert len(alone.asked) == 1


def test_no_secret_is_shown_that_a_server_echoes(alone: Proxy, logged_in: Callable[[str], None]) -> None:
    """Error pages repeat headers; logs of CI are read by many."""
    logged_in(f"127.0.0.1:{alone.port}")

    def echo(asked: Asked) -> Fault:
        if asked.path.startswith("/token"):
            return Fault(200, body=json.dumps({"token": TOKEN}).encode())
        if not asked.authorization:
            return Fault(401, {"WWW-Authenticate": f'Bearer realm="http://127.0.0.1:{alone.port}/token"'})
        said = f"{asked.authorization} of {OURS.user} {SECRET}, at http://x/y?sig=hidden"
        return Fault(403, body=json.dumps({"errors": [{"code": "DENIED", "message": said}]}).encode())

    alone.fault = echo
    with pytest.raises(StoreError, match="DENIED") as caught:
        transport(alone).send(READ)
    text = str(caught.value)
    assert TOKEN not in text
    assert SECRET not in text
    assert "hidden" not in text


def test_an_answer_without_end_is_cut_off(alone: Proxy) -> None:
    """A manifest fills no memory, and neither does a token or an error."""
    alone.fault = lambda _: Fault(200, body=b"x" * 200_000)
    with pytest.raises(StoreError, match="at most 65,536 bytes"):
        transport(alone).send(READ)
    assert len(transport(alone).send(READ, 200_000)[1]) == 200_000


def test_a_dead_registry_is_told(alone: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer, one that ends each connection, and one that is not there."""
    monkeypatch.setattr("model_artifacts.releases.oci.transport._SILENT_SECONDS", 0.2)
    monkeypatch.setattr("model_artifacts.releases.oci.transport._ATTEMPTS", 2)
    alone.fault = lambda _: Fault(200, body=b"x", seconds=1)
    with pytest.raises(BrokenError, match=r"reading 1\.4 failed"):
        transport(alone).send(READ)
    alone.fault = lambda _: None  # and the registry behind it is none
    with pytest.raises(BrokenError, match=r"reading 1\.4 failed"):
        transport(alone).send(READ)
    with pytest.raises(BrokenError, match=r"reading 1\.4 failed"):
        Transport(reference_of("oci+http://127.0.0.1:9/team/x")).send(READ)


def test_a_netrc_is_not_read(alone: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password is for other programs."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login someone password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    alone.fault = lambda _: Fault(200)
    transport(alone).send(READ)
    assert alone.asked[0].authorization == ""
