"""Runs of `doit` in a folder, and the steps that ran."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
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


def in_a_terminal(command: list[str], folder: Path, columns: int) -> tuple[int, str]:
    """Run a command in a terminal of 24 rows, and return its exit status and everything that it wrote."""
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    with subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs, env=environment) as process:  # noqa: S603
        os.close(theirs)
        read = b""
        with suppress(OSError):  # Linux ends a closed terminal's output with EIO
            while part := os.read(ours, 1 << 16):
                read += part
    os.close(ours)
    return process.returncode, read.decode()


def ran(output: str) -> set[str]:
    """Return the tasks that said something; the manifest's table stands for its own."""
    said = {line.split(": ")[0] for line in output.splitlines() if line.partition(":")[0] in STAGES}
    return said | ({"manifest:tiny"} if "speed-up" in output else set())


STAGES = {"source", "data", "export", "quantize", "build", "validate", "benchmark", "manifest"}
