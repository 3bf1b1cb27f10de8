"""URLs of releases in OCI registries: `oci://host[:port]/repository[:tag|@sha256:digest]`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from model_artifacts.errors import StoreError, shortened

SCHEMES = ("oci://", "oci+http://")
"""With TLS, and without it: nobody sends bytes or passwords unprotected without writing so."""
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
"""One name of a repository's path, as the OCI distribution specification has it."""
_URL = re.compile(
    rf"(?P<scheme>oci(?:\+http)?)://(?P<host>[A-Za-z0-9.-]+(?::\d{{1,5}})?)/(?P<repository>{_NAME}(?:/{_NAME})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})|@sha256:(?P<digest>[0-9a-f]{64}))?"
)
_REPOSITORY = re.compile(rf"{_NAME}(?:/{_NAME})*")
_LONGEST = 255
"""Most characters of a repository's path: registries allow no more with the host."""


@dataclass(frozen=True)
class Reference:
    """A repository of a registry, and what the URL names in it."""

    host: str
    """Name of the registry's host, with its port if the URL has one."""
    repository: str
    """Path of the repository, such as `team/resnet18`."""
    tag: str = ""
    """Tag in the URL; empty without one."""
    digest: str = ""
    """SHA-256 in the URL, in hexadecimal; empty without one."""
    plain: bool = False
    """True for HTTP without TLS, as `oci+http://` asks for."""

    @property
    def shown(self) -> str:
        """The repository's URL in messages."""
        return f"{SCHEMES[self.plain]}{self.host}/{self.repository}"

    @property
    def name(self) -> str:
        """The tag or the digest in the URL; empty if it names the repository alone."""
        return self.tag or self.digest

    @property
    def root(self) -> str:
        """The URL of the registry's API."""
        host = "registry-1.docker.io" if self.host == "docker.io" else self.host
        return f"{'http' if self.plain else 'https'}://{host}/v2/"


def is_registry(url: str) -> bool:
    """Return True for the URL of an OCI registry."""
    return url.lower().startswith(SCHEMES)


def reference_of(url: str) -> Reference:
    """Return what a URL of an OCI registry names.

    Raises:
        StoreError: the URL has another form, or a name and a password, which belong into docker's credential store.
    """
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise StoreError(
            "the registry's URL holds a name or a password, which other programs could read",
            expected="oci://host/repository",
            fix="run `docker login HOST`, which keeps them, and leave them out",
        )
    found = _URL.fullmatch(url)
    if not found or len(found["repository"]) > _LONGEST:
        raise StoreError(
            f"{shortened(url)!r} names no repository",
            expected="oci://host[:port]/repository, with :tag or @sha256: and 64 digits if need be; all in lower case",
            fix="use oci+http:// for a registry without TLS",
        )
    return Reference(
        host=found["host"],
        repository=found["repository"],
        tag=found["tag"] or "",
        digest=found["digest"] or "",
        plain=found["scheme"] == "oci+http",
    )


def check_repository(name: str) -> None:
    """Check the path of another repository of the same registry.

    Raises:
        StoreError: it is none.
    """
    if not _REPOSITORY.fullmatch(name) or len(name) > _LONGEST:
        raise StoreError(f"{shortened(name)!r} is no repository", expected="its path alone, such as team/resnet18")
