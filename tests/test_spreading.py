"""The order in which xdist's workers begin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

TESTS = {
    "test_a.py": "def test_1(): pass\ndef test_2(): pass\n",
    "test_b.py": "def test_1(): pass\ndef test_2(built_folder): pass\n",
    "test_c.py": "import pytest\npytestmark = pytest.mark.faults\ndef test_1(): pass\n",
    "test_d.py": "import pytest\ndef test_1(): pass\n@pytest.mark.early\ndef test_2(): pass\n",
}
CONFTEST = """\
import pytest

pytest_plugins = ("tests.support.spreading",)

@pytest.fixture
def built_folder():
    pass
"""


@pytest.mark.parametrize(
    ("workers", "order"),
    [
        ((), ["a 1", "a 2", "b 1", "b 2", "c 1", "d 1", "d 2"]),
        (("-n", "1"), ["c 1", "d 1", "d 2", "b 1", "b 2", "a 1", "a 2"]),
    ],
    ids=["alone", "workers"],
)
def test_workers_begin_with_what_takes_long(tmp_path: Path, workers: tuple[str, ...], order: list[str]) -> None:
    """What takes long comes first, then what needs the built project; a run without workers keeps its order."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  faults\n  early\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(  # noqa: S603 - fixed arguments
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:cov", *workers],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = [line for line in done.stdout.splitlines() if "PASSED" in line]
    assert [" ".join(re.findall(r"test_(\w)\.py::test_(\d)", line)[0]) for line in passed] == order
    assert ("WorkStealingScheduling" in done.stdout) is bool(workers)
