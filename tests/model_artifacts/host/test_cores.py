"""Cores of this process: its affinity and its control groups' quotas, of both versions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host import cores
from model_artifacts.host.cores import cpu_quota, usable_cores

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        pytest.param("0::/", {"cpu.max": "50000 100000"}, 0.5, id="a container of version 2"),
        pytest.param("0::/", {"cpu.max": "max 100000"}, None, id="no quota"),
        pytest.param("0::/", {}, None, id="no controller"),
        pytest.param("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5, id="a group above"),
        pytest.param(
            "0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0, id="the smaller of two"
        ),
        pytest.param(
            "4:cpu,cpuacct:/\n1:name=systemd:/",
            {"cpu,cpuacct/cpu.cfs_quota_us": "25000", "cpu,cpuacct/cpu.cfs_period_us": "50000"},
            0.5,
            id="version 1",
        ),
        pytest.param("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, id="1, free"),
        pytest.param(
            "3:cpu,cpuacct:/docker/x",
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            3.0,
            id="version 1, seen from inside",
        ),
        pytest.param("2:cpuset:/", {"cpuset/cpu.cfs_quota_us": "1"}, None, id="another controller"),
        pytest.param("0::/", {"cpu.max": "nonsense"}, None, id="unreadable"),
    ],
)
def test_quotas(own: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    """The smallest quota of this process's groups and of those above counts."""
    mount = tmp_path / "cgroup"
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n")

    assert cpu_quota(mount, tmp_path / "own") == quota


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    """Nothing there is no quota."""
    assert cpu_quota(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 0.5), (1e6, None), (None, None)])
def test_affinity_counts_too(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: float | None) -> None:
    """A quota beyond the affinity adds no core."""
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)

    assert usable_cores() == (len(os.sched_getaffinity(0)) if expected is None else expected)
