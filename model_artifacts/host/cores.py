"""Processor cores that this process may use: its affinity, and the quota of its container."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> float:
    """Return the number of cores that this process may keep busy: no more than its affinity or its quota allows."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return cores if quota is None else min(float(cores), quota)


def cpu_quota(mount: Path = _MOUNT, own: Path = _OWN) -> float | None:
    """Return the CPU quota of this process's control groups, in cores; None without a quota.

    A group is held to the quotas of the groups above it, too. A container sees its own group as the uppermost one.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (`cpu.max`), and `cpu.cfs_quota_us` of version 1.

    Args:
        mount: the folder where control groups are mounted.
        own: the file that names this process's groups.
    """
    found = [quota for folder in _groups(mount, own) if (quota := _quota_of(folder)) is not None]
    return min(found, default=None)


def _groups(mount: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups and of those above, of version 2 and of version 1."""
    lines: list[str] = []
    with suppress(OSError):
        lines = own.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        roots = [mount / controllers, mount / "cpu"] if controllers else [mount, mount / "unified"]
        for root in roots:
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _quota_of(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else _share(int(quota), int(period))
    with suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return _share(int(quota), int(period))
    return None


def _share(quota: int, period: int) -> float | None:
    return quota / period if quota > 0 and period > 0 else None
