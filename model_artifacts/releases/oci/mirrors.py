"""Mirrors of registries: named by containers' own configuration, asked first, and trusted with no byte.

The file is the `registries.conf` of podman, skopeo and CRI-O, in its version 2 (containers-registries.conf(5)). What is
named by a digest comes from a mirror, and else from the origin. A tag is the origin's to tell: a mirror may be behind,
or be made to hold an old release. Only while the origin cannot be reached, mirrors are asked whose `pull-from-mirror`
allows it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_artifacts.errors import StoreError, one_line
from model_artifacts.host.plain_files import read_plain
from model_artifacts.releases.oci.attempts import Counted
from model_artifacts.releases.oci.documents import MAX_BYTES
from model_artifacts.releases.oci.references import Reference, reference_of
from model_artifacts.releases.oci.registry import Registry, Stored
from model_artifacts.releases.oci.transport import BrokenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_artifacts.records import FileRecord

T = TypeVar("T")

log = logging.getLogger(__name__)

_SYSTEM = Path("/etc/containers")
_MAX_BYTES = 2**20


class _Mirror(BaseModel):
    """A `[[registry.mirror]]`."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    location: str
    insecure: bool = False
    pull_from: Literal["all", "digest-only", "tag-only", ""] = Field(default="", alias="pull-from-mirror")


class _Registry(BaseModel):
    """A `[[registry]]`."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    prefix: str = ""
    location: str = ""
    blocked: bool = False
    by_digest_only: bool = Field(default=False, alias="mirror-by-digest-only")
    mirrors: list[_Mirror] = Field(default_factory=list, alias="mirror")

    @property
    def name(self) -> str:
        """The beginning of the URLs that it is about."""
        return self.prefix or self.location

    def matched(self, name: str) -> str:
        """Return the part of a repository's name that it is about; empty for another registry's."""
        host = name.partition("/")[0]
        if self.name.startswith("*."):
            return host if host.endswith(self.name[1:]) else ""
        return self.name if f"{name}/".startswith(f"{self.name.rstrip('/')}/") else ""


class _Config(BaseModel):
    """The part of a file that concerns mirrors."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    registries: list[_Registry] = Field(default_factory=list, alias="registry")


class Mirror(NamedTuple):
    """Another place of a repository."""

    reference: Reference
    for_digests: bool
    """True if it may be asked for what a digest names."""
    for_tags: bool
    """True if it may tell what a tag stands for while the origin cannot be reached."""


def mirrors_of(reference: Reference) -> tuple[Mirror, ...]:
    """Return the mirrors of a repository, in the order in which to ask them.

    Raises:
        StoreError: a file of the configuration cannot be read, or it blocks the registry or moves it elsewhere.
    """
    tables: dict[str, tuple[_Registry, Path]] = {}
    for path in _files():
        for table in _config(path).registries:
            tables[table.name] = table, path  # later files replace
    name = f"{reference.host}/{reference.repository}"
    found = [(table, path) for table, path in tables.values() if table.name and table.matched(name)]
    if not found:
        return ()
    table, path = max(found, key=lambda item: len(item[0].name))
    if table.blocked:
        raise StoreError(f"{path} blocks {reference.shown}", fix="take out `blocked`, or ask those who put it there")
    if table.location and table.location != table.name:
        raise StoreError(
            f"{path} moves {reference.shown} elsewhere, which is not supported here",
            got=f"location {table.location} of the prefix {table.name}",
            fix="name that location as a [[registry.mirror]], or in the URL",
        )
    rest = name.removeprefix(table.matched(name))
    return tuple(_mirror(mirror, table, rest, path) for mirror in table.mirrors)


def _mirror(mirror: _Mirror, table: _Registry, rest: str, path: Path) -> Mirror:
    try:
        reference = reference_of(f"oci{'+http' if mirror.insecure else ''}://{mirror.location.rstrip('/')}{rest}")
    except StoreError as exc:
        raise StoreError(f"{path} names a mirror that is none", got=one_line(exc), fix="repair its location") from exc
    return Mirror(
        reference,
        for_digests=mirror.pull_from != "tag-only",
        for_tags=mirror.pull_from in {"all", "tag-only"} and not table.by_digest_only,
    )


def _files() -> list[Path]:
    """Return the files of the configuration; the later ones count.

    CONTAINERS_REGISTRIES_CONF names the only one. Without it, the user's file or else the system's comes first, then
    all of both folders `registries.conf.d`, by their names.
    """
    if named := os.environ.get("CONTAINERS_REGISTRIES_CONF"):
        return [Path(named)]
    folders = [_SYSTEM]
    with contextlib.suppress(RuntimeError):  # a user without a home folder has no files of their own
        folders.append(Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "containers")
    main = [folder / "registries.conf" for folder in folders if (folder / "registries.conf").is_file()]
    more = [path for folder in folders for path in (folder / "registries.conf.d").glob("*.conf")]
    return main[-1:] + sorted(more, key=lambda path: path.name)


def _config(path: Path) -> _Config:
    if sys.version_info >= (3, 11):  # only where a file is read: the extra `oci` brings tomli
        import tomllib  # noqa: PLC0415
    else:
        import tomli as tomllib  # noqa: PLC0415
    try:
        return _Config.model_validate(tomllib.loads(read_plain(path, _MAX_BYTES).decode()))
    except OSError as exc:
        raise StoreError(f"{path} cannot be read", got=exc.strerror or one_line(exc)) from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path} is no configuration of registries", got=f"{place}: {first['msg']}") from exc
    except ValueError as exc:  # of TOML, with line and column, or of UTF-8
        raise StoreError(f"{path} is no TOML", got=one_line(exc), fix="see containers-registries.conf(5)") from exc


class _Open(NamedTuple):
    """A mirror that is asked."""

    mirror: Mirror
    registry: Registry


class MirroredRegistry:
    """A repository to read from: from its mirrors, then from itself."""

    def __init__(self, reference: Reference, origin: Registry) -> None:
        """Prepare; the configuration is read with the first question.

        Args:
            reference: the repository.
            origin: the repository itself.
        """
        self._reference = reference
        self._origin = origin
        self._given_up: set[Reference] = set()

    @cached_property
    def _all(self) -> tuple[_Open, ...]:
        return tuple(_Open(mirror, Registry(mirror.reference, patient=False)) for mirror in mirrors_of(self._reference))

    def _for_digests(self) -> list[_Open]:
        return [item for item in self._all if item.mirror.for_digests and item.mirror.reference not in self._given_up]

    def _give_up(self, item: _Open, exc: StoreError) -> None:
        """Ask a mirror that has failed no more in this command, and say why."""
        if item.mirror.reference not in self._given_up:
            self._given_up.add(item.mirror.reference)
            log.warning("the mirror %s is left out: %s", item.registry.shown, one_line(exc))

    def digest_of(self, tag: str) -> str | None:
        """Return the SHA-256 that a tag stands for; None without such a tag.

        Raises:
            StoreError: neither the registry can be reached nor a mirror that may answer for it.
        """
        _ = self._all  # a blocked registry is not asked
        try:
            return self._origin.digest_of(tag)
        except BrokenError:
            for item in self._all:
                if item.mirror.for_tags and (digest := self._asked(item, lambda registry: registry.digest_of(tag))):
                    log.warning(
                        "%s cannot be reached: the mirror %s says that %s is sha256:%s",
                        self._origin.shown,
                        item.registry.shown,
                        tag,
                        digest,
                    )
                    return digest
            raise

    def manifest(self, digest: str, limit: int = MAX_BYTES) -> Stored | None:
        """Return a manifest or an index by its digest, as `Registry.manifest` does.

        Raises:
            StoreError: no mirror has it, and the registry cannot be reached or gave other bytes.
        """
        for item in self._for_digests():
            if stored := self._asked(item, lambda registry: registry.manifest(digest, limit)):
                return stored
        return self._origin.manifest(digest, limit)

    def _asked(self, item: _Open, question: Callable[[Registry], T | None]) -> T | None:
        """Return a mirror's answer; None if it has none, or has failed."""
        try:
            return question(item.registry)
        except StoreError as exc:
            self._give_up(item, exc)
            return None

    def fetch(self, file: FileRecord, into: Path, report: Callable[[int], None], fix: str) -> None:
        """Read a blob into a file, as `Registry.fetch` does. What a mirror left of it is continued by the next.

        Raises:
            StoreError: no mirror gave it, and it is missing, it differs, or the registry cannot be reached.
            StorageError: the file cannot be written.
        """
        asked = self._for_digests()
        for item in asked:
            counted = Counted(report)
            try:
                item.registry.fetch(file, into, counted, fix)
            except StoreError as exc:
                report(-counted.total)  # raises if the transfer was cancelled
                self._give_up(item, exc)
            else:
                return
        counted = Counted(report)
        try:
            self._origin.fetch(file, into, counted, fix)
        except BrokenError:
            raise
        except StoreError:
            if not asked:
                raise
            report(-counted.total)
            self._origin.fetch(
                file, into, report, fix
            )  # its first bytes were perhaps a mirror's, and are discarded now
