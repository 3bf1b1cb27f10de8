"""Names and passwords for registries, from docker's configuration and its credential helpers.

The file and the protocol are docker's (docs.docker.com/reference/cli/docker/login/#credential-stores): `auths`,
`credHelpers` and `credsStore` of `~/.docker/config.json`, or of the folder in DOCKER_CONFIG.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_artifacts.errors import StoreError
from model_artifacts.host.plain_files import read_plain

_MAX_BYTES = 2**20
_SECONDS = 60
"""The longest that a helper may take; some ask a cloud, or a person."""
_DOCKER_HUB = "https://index.docker.io/v1/"
"""Docker's name of its own registry in the configuration."""
_REFRESH = "<token>"
"""User name by which a helper says that the password is a refresh token."""
_NONE = "credentials not found in native keychain"
"""A helper's words for a registry that it knows nothing of."""


@dataclass(frozen=True)
class Credentials:
    """A name and a password, or a token to get others with. Its text shows neither."""

    user: str = ""
    password: str = ""
    refresh: str = ""
    """OAuth2's refresh token, docker's `identitytoken`; empty without one."""

    def __repr__(self) -> str:
        """Return no secret: a traceback may show it."""
        return f"Credentials({'…' if self.secrets else 'none'})"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that no message may show."""
        encoded = self.basic if self.password else ""
        return tuple(text for text in (self.password, self.refresh, encoded) if text)

    @property
    def basic(self) -> str:
        """The name and the password as HTTP's Basic scheme encodes them."""
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class _Auth(BaseModel):
    """An entry of `auths`."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(BaseModel):
    """The part of docker's configuration that concerns registries."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    auths: dict[str, _Auth] = Field(default_factory=dict)
    helpers: dict[str, str] = Field(default_factory=dict, alias="credHelpers")
    store: str = Field(default="", alias="credsStore")


class _Answer(BaseModel):
    """A helper's answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user: str = Field(alias="Username")
    secret: str = Field(alias="Secret")


def credentials_for(host: str) -> Credentials | None:
    """Return the credentials of a registry; None if docker's configuration has none, so that it is asked without.

    Args:
        host: the registry's host, with its port if it has one.

    Raises:
        StoreError: the configuration is damaged, or a helper is missing or fails.
    """
    config = _config()
    names = (_DOCKER_HUB, "index.docker.io") if host in {"docker.io", "registry-1.docker.io"} else (host,)
    helper = next((config.helpers[name] for name in names if name in config.helpers), config.store)
    for name in names:
        if helper and (found := _from_helper(helper, name)):
            return found
    for name in (*names, *(f"https://{name}" for name in names)):
        if entry := config.auths.get(name):
            return _from_entry(entry, host)
    return None


def _config() -> _Config:
    try:
        path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    except RuntimeError:  # a user without a home folder has none
        return _Config()
    try:
        return _Config.model_validate_json(read_plain(path, _MAX_BYTES))
    except FileNotFoundError:
        return _Config()
    except OSError as exc:
        raise StoreError(f"{path} cannot be read", got=exc.strerror or "") from exc
    except ValidationError as exc:
        place = ".".join(map(str, exc.errors(include_url=False, include_input=False)[0]["loc"][:1]))
        raise StoreError(
            f"{path} is no configuration of docker", got=f"{place or 'the file'} cannot be read", fix="log in again"
        ) from None  # the cause holds the file's text


def _from_entry(entry: _Auth, host: str) -> Credentials | None:
    """Return the credentials of an entry; None if it is empty, as beside a helper.

    Raises:
        StoreError: they are encoded otherwise than docker encodes them.
    """
    if entry.identitytoken:
        return Credentials(refresh=entry.identitytoken)
    if not entry.auth:
        return Credentials(entry.username, entry.password) if entry.username and entry.password else None
    try:
        user, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise StoreError(
            f"docker's configuration has damaged credentials for {host}", fix=f"run `docker login {host}` again"
        )
    return Credentials(user, password.strip("\0"))


def _from_helper(name: str, host: str) -> Credentials | None:
    """Return what a helper knows of a registry; None if it knows nothing.

    Raises:
        StoreError: the helper is missing, fails, or answers otherwise than helpers do.
    """
    program = f"docker-credential-{name}"
    found = shutil.which(program) if re.fullmatch(r"[A-Za-z0-9._-]+", name) else None
    if not found:
        raise StoreError(
            f"docker's configuration names a credential helper that is missing: {program}",
            fix="install it, or take it out of docker's config.json",
        )
    try:
        done = subprocess.run(  # noqa: S603 - the program that the user's own configuration names
            [found, "get"], input=host, capture_output=True, check=False, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as exc:
        raise StoreError(f"{program} did not answer for {host}", got=type(exc).__name__) from None
    if done.returncode:
        if _NONE in done.stdout:
            return None
        raise StoreError(f"{program} has no credentials for {host}", got=f"exit status {done.returncode}")
    try:
        answer = _Answer.model_validate(json.loads(done.stdout))
    except ValueError:  # pydantic's errors are ValueErrors; their text would show the secret
        raise StoreError(f"{program} gave no credentials for {host}", expected="Username and Secret in JSON") from None
    return Credentials(refresh=answer.secret) if answer.user == _REFRESH else Credentials(answer.user, answer.secret)
