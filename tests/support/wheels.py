"""Genuine wheels of libraries that are not installed, unpacked so that tests can look into them."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DOWNLOAD_SECONDS = 120


@dataclass(frozen=True)
class Wheel:
    """A wheel, as PyPI has it."""

    package: str
    version: str
    last_python: tuple[int, int] = (3, 13)

    @property
    def major(self) -> int:
        """The first part of its version."""
        return int(self.version.partition(".")[0])

    def __str__(self) -> str:
        return self.version


def unpacked(wheel: Wheel, cache: Path) -> Path | str:
    """Return the folder of an unpacked wheel, fetched where it is not there yet; the reason where it cannot be."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the wheels that are tested are those for Linux on x86-64"
    if sys.version_info[:2] > wheel.last_python:
        return f"{wheel.package} {wheel.version} has no wheel for Python {PYTHON}"
    folder = cache / f"{wheel.package}-{wheel.version}-py{PYTHON}"
    if folder.is_dir():
        return folder
    problems = []
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        for number, installer in enumerate(installers()):
            target = Path(scratch) / str(number)
            problem = fetch([*installer, f"{wheel.package}=={wheel.version}"], target)
            if not problem:
                target.rename(folder)
                return folder
            problems.append(problem)
    why = "; ".join(problems) or "neither pip nor uv is there"
    return f"{wheel.package} {wheel.version} for Python {PYTHON} cannot be fetched: {why}"


def installers() -> Iterator[list[str]]:
    """Yield the commands that can unpack a wheel for this Python, whichever Python they run on themselves."""
    pip = ["--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=10", "--quiet"]
    pip += ["--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_17_x86_64"]
    pip += [f"--python-version={PYTHON}", "--implementation=cp"]
    if importlib.util.find_spec("pip"):
        yield [sys.executable, "-m", "pip", "install", *pip]
    if python := shutil.which("python3"):
        yield [python, "-m", "pip", "install", *pip]
    if uv := shutil.which("uv"):
        platforms = ["--python-platform=x86_64-manylinux_2_28", f"--python-version={PYTHON}"]
        yield [uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--quiet", *platforms]


def fetch(command: list[str], folder: Path) -> str:
    """Return why a command could not unpack a wheel into a folder; nothing where it did."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [*command, f"--target={folder}"],
            check=False,
            env={**os.environ, "UV_HTTP_RETRIES": "1"},
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    said = [line.strip() for line in done.stderr.splitlines() if re.match(r"error|\s+cause:", line, re.IGNORECASE)]
    return (said[-1] if said else f"exit status {done.returncode}") if done.returncode else ""
