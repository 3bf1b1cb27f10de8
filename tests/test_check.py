"""The tests of a changed file, and the commands of `doit check`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.check import main, own_tests

README = REPOSITORY / "README.md"


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("pipeline/planning/keys.py", "tests/pipeline/planning/test_keys.py"),
        ("pipeline/cli/tasks.py", "tests/pipeline/cli/test_tasks.py"),
        ("tests/pipeline/test_faults.py", "tests/pipeline/test_faults.py"),
        ("pipeline/stages/manifest/spec.py", None),
        ("pipeline/planning/none.py", None),
        ("pipeline/planning/__init__.py", None),
        ("docs/ci.md", None),
        ("tests/conftest.py", None),
    ],
)
def test_a_modules_tests_are_those_of_its_mirror(file: str, tests: str | None) -> None:
    """A module is tested by the file of the same path, a test file by itself."""
    assert own_tests(Path(file)) == (Path(tests) if tests else None)


def test_files_without_tests_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing passes unseen: without any test the status is 1, and the nearest tests are named."""
    assert main(["pipeline/stages/manifest/spec.py", "/etc/passwd"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        (
            "pipeline/stages/manifest/spec.py: has no test file of its own; "
            "`pytest tests/pipeline/stages/manifest` runs those nearby"
        ),
        "/etc/passwd: has no test file of its own; `pytest tests` runs those nearby",
    ]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each pytest that would be started; each ends with status 5."""
    found: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        found.append(command[3:])
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_the_tests_of_files_run_once_with_their_options(
    started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A module and its own test file are one, options reach pytest, and its status is the command's."""
    tests = "tests/pipeline/planning/test_keys.py"
    assert main(["--all", "pipeline/planning/keys.py", str(REPOSITORY / tests)]) == 5
    assert started == [[tests, "--all"]]
    assert capsys.readouterr().out.splitlines()[0] == f"pipeline/planning/keys.py: {tests}"


def test_without_files_everything_runs(started: list[list[str]]) -> None:
    """The command is the README's, and `--all` is handed on."""
    (readmes,) = re.findall(r"^pip install uv && uv run pytest (.*?)\s+#", README.read_text(), re.MULTILINE)
    assert main([]) == main(["--all"]) == 5
    assert started == [readmes.split(), [*readmes.split(), "--all"]]
