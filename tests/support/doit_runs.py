"""Runs of `doit` in a folder, and the steps that ran."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def doit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run doit in a folder."""
    command = [sys.executable, "-m", "doit", *arguments]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, encoding="utf-8")  # noqa: S603


def begin(folder: Path) -> subprocess.Popen[str]:
    """Start doit, in a session of its own, and return when its first stage is at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "doit"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "begun").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def ran(output: str) -> set[str]:
    """Return the tasks that said something; the manifest's table stands for its own."""
    said = {line.split(": ")[0] for line in output.splitlines() if line.partition(":")[0] in STAGES}
    return said | ({"manifest:tiny"} if "speed-up" in output else set())


STAGES = {"source", "data", "export", "quantize", "build", "validate", "benchmark", "manifest"}
