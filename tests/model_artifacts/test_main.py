"""The command line cannot be taken over by files of the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

HOSTILE = "open(__file__ + '.hijacked', 'w').close(); raise SystemExit(0)"
"""Ends whatever imports it as if all were well."""

PYTHONS = {
    "runpy",
    "importlib",
    "warnings",
    "contextlib",
    "collections",
    "keyword",
    "operator",
    "reprlib",
    "functools",
    "types",
}
"""Modules that `python -m` itself takes from the current folder, before any code of ours runs."""
OURS = {"pipeline", "errors", "records", "cli", "host", "releases", "deployment", "sessions", "main", "boundary"}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a file for every module of Python, of all installed packages, and of our own names."""
    names = sys.stdlib_module_names | packages_distributions().keys() | OURS
    for name in filter(str.isidentifier, names - PYTHONS - {"model_artifacts"}):
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    return tmp_path


@pytest.mark.parametrize("arguments", [["host"], ["verify", "absent"], ["resolve", "absent"]], ids=" ".join)
@pytest.mark.parametrize("command", ["module", "script"])
def test_no_file_of_the_current_folder_is_imported(hostile: Path, command: str, arguments: list[str]) -> None:
    """Neither `model-artifacts` nor `python -m model_artifacts` imports what lies in the current folder."""
    script = Path(sys.executable).with_name("model-artifacts")
    start = [sys.executable, "-m", "model_artifacts"] if command == "module" else [sys.executable, str(script)]
    if command == "script" and not script.exists():
        pytest.skip("the package is not installed")
    done = subprocess.run(  # noqa: S603 - our own
        [*start, *arguments],
        check=False,
        cwd=hostile,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert sorted(path.name for path in hostile.glob("*.hijacked")) == []
    assert done.returncode == (0 if arguments == ["host"] else 1), done.stderr
    assert ("error: " in done.stderr) is (arguments != ["host"])
