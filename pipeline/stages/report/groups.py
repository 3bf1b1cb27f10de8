"""Artifacts that are not deployable → groups of one status and one reason. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model_artifacts.records import ManifestEntry

_ORDER = (Status.FAILED, Status.REJECTED, Status.BUILT, Status.SKIPPED)
"""The statuses that need attention come first."""


class Group(NamedTuple):
    """Artifacts that share a status and its reason."""

    status: Status
    reason: str
    entries: tuple[ManifestEntry, ...]

    @property
    def command(self) -> str:
        """The command that may help; empty where another run on this host gives the same result."""
        if self.status is not Status.FAILED:
            return ""
        return self.entries[0].rerun if len(self.entries) == 1 else "doit"


def groups_of(entries: Iterable[ManifestEntry]) -> tuple[Group, ...]:
    """Return the groups of the artifacts that are not deployable, failures first, then the larger group first."""
    found: dict[tuple[Status, str], list[ManifestEntry]] = {}
    for entry in entries:
        if entry.status is not Status.DEPLOYABLE:
            found.setdefault((entry.status, entry.reason), []).append(entry)
    groups = [Group(status, reason, tuple(members)) for (status, reason), members in found.items()]
    return tuple(sorted(groups, key=lambda group: (_ORDER.index(group.status), -len(group.entries))))
