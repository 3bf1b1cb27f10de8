"""What this host is: package versions, processor, NVIDIA driver, git commit. Read, never guessed."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from pipeline.records import GitState, Tool


def now() -> datetime:
    """Return the present, in UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)


@cache
def version(package: str) -> str:
    """Return the installed version of a package, "absent" where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def tools(*packages: str) -> tuple[Tool, ...]:
    """Return the packages with their versions, Python first."""
    python = Tool(name="python", version=platform.python_version())
    return (python, *(Tool(name=package, version=version(package)) for package in packages))


def threads() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0))


@cache
def processor() -> str:
    """Return the processor's name as the system gives it, with the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {threads()} cores"


@cache
def missing_driver() -> str | None:
    """Return why no NVIDIA driver can be used here, None where one can."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver found"
    from cuda.bindings import driver  # noqa: PLC0415 - 0.2 s that hosts without a driver save

    (status,) = driver.cuInit(0)
    if status == driver.CUresult.CUDA_SUCCESS:
        return None
    return f"the NVIDIA driver does not start: {status.name}"


def git_state(folder: Path) -> GitState | None:
    """Return the commit checked out in `folder` and whether tracked files differ from it; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return GitState(commit=commit, dirty=_git(folder, "status", "--porcelain", "--untracked-files=no") != "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - git is where the PATH says
            check=False,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
