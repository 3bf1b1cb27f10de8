"""Docker's configuration and its credential helpers."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StoreError
from model_artifacts.releases.oci.credentials import Credentials, credentials_for

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "correct-horse-battery-staple"  # noqa: S105 - it opens nothing
HOST = "registry.example:5000"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's configuration, empty; programs are looked for beside it alone."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text("{}")
    return file


def helper(folder: Path, name: str, script: str) -> None:
    """Write a credential helper."""
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\nread -r host\n{script}\n")
    program.chmod(0o755)


def basic(user: str = "someone", password: str = SECRET) -> str:
    """Return a name and a password as docker keeps them."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("auths", "expected"),
    [
        ({HOST: {"auth": basic()}}, Credentials("someone", SECRET)),
        ({f"https://{HOST}": {"auth": basic()}}, Credentials("someone", SECRET)),
        ({HOST: {"auth": basic("someone", "a:b")}}, Credentials("someone", "a:b")),
        ({HOST: {"username": "someone", "password": SECRET}}, Credentials("someone", SECRET)),
        ({HOST: {"auth": basic("x", ""), "identitytoken": SECRET}}, Credentials(refresh=SECRET)),
        ({HOST: {}}, None),
        ({"other.example": {"auth": basic()}}, None),
        ({}, None),
    ],
    ids=["auth", "with-scheme", "colon", "plain", "token", "empty", "another", "none"],
)
def test_credentials_are_those_of_the_registry(
    config: Path, auths: dict[str, dict[str, str]], expected: Credentials | None
) -> None:
    """Of no other one."""
    config.write_text(json.dumps({"auths": auths, "HttpHeaders": {}, "currentContext": "x"}))
    assert credentials_for(HOST) == expected


def test_docker_hub_has_a_name_of_its_own(config: Path) -> None:
    """As `docker login` keeps it."""
    config.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": basic()}}}))
    assert credentials_for("docker.io") == Credentials("someone", SECRET)


def test_without_a_configuration_nothing_is_known(config: Path) -> None:
    """Most machines have none."""
    config.unlink()
    assert credentials_for(HOST) is None


def test_a_user_without_a_home_folder_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number alone: a public registry needs none."""
    for name in ("DOCKER_CONFIG", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    assert credentials_for("ghcr.io") is None


def test_helpers_come_before_the_file(config: Path) -> None:
    """The registry's own helper, then the common one; one that knows nothing leaves it to the file."""
    known = json.dumps({"Username": "helped", "Secret": SECRET})
    helper(config.parent, "ours", f"[ \"$host\" = {HOST} ] && echo '{known}'")
    helper(config.parent, "token", f"""echo '{{"Username": "<token>", "Secret": "{SECRET}"}}'""")
    helper(config.parent, "empty", "echo credentials not found in native keychain; exit 1")
    auths = {HOST: {"auth": basic()}}
    for settings, expected in (
        ({"credHelpers": {HOST: "ours"}, "credsStore": "token"}, Credentials("helped", SECRET)),
        ({"credHelpers": {"other.example": "ours"}, "credsStore": "token"}, Credentials(refresh=SECRET)),
        ({"credsStore": "empty"}, Credentials("someone", SECRET)),
    ):
        config.write_text(json.dumps({"auths": auths, **settings}))
        assert credentials_for(HOST) == expected


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        ("absent", "", "names a credential helper that is missing"),
        ("../x", "", "names a credential helper that is missing"),
        ("failing", f"echo {SECRET}; echo {SECRET} >&2; exit 3", "exit status 3"),
        ("odd", f'echo \'{{"Username": "{SECRET}"}}\'', "gave no credentials"),
        ("noise", f"echo {SECRET}", "gave no credentials"),
    ],
)
def test_a_helper_that_does_not_help_is_named(config: Path, name: str, script: str, message: str) -> None:
    """Its words are not shown: they may hold the secret."""
    if script:
        helper(config.parent, name, script)
    config.write_text(json.dumps({"credsStore": name}))
    with pytest.raises(StoreError, match=message) as caught:
        credentials_for(HOST)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"auths": "{SECRET}"}}',
        f'{{"auths": {{"{HOST}": {{"auth": "{SECRET}"}}}}}}',
        f'{{"auths": {{"{HOST}": {{"auth": "{base64.b64encode(SECRET.encode()).decode()}"}}}}}}',
        SECRET,
    ],
    ids=["no-mapping", "no-base64", "no-colon", "no-json"],
)
def test_a_damaged_configuration_is_told_and_not_shown(config: Path, text: str) -> None:
    """It may hold secrets."""
    config.write_text(text)
    with pytest.raises(StoreError) as caught:
        credentials_for(HOST)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_credentials_show_no_secret() -> None:
    """Not even in a traceback with its variables."""
    for made in (Credentials("someone", SECRET), Credentials(refresh=SECRET)):
        assert SECRET not in f"{made!r} {made}"
        assert SECRET in made.secrets
    assert repr(Credentials()) == "Credentials(none)"
