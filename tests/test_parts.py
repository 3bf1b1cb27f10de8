"""Parts of long campaigns: the same for the same seed, others for another, and all of them on demand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CAMPAIGNS = """\
import pytest
from hypothesis import given, strategies as st

@pytest.mark.part(3)
@pytest.mark.parametrize("case", range(40))
def test_cases(case):
    print("marked", case)

@pytest.mark.part(1, of="both")
def test_one():
    print("marked one")

@pytest.mark.part(1, of="both")
def test_other():
    print("marked other")

def test_loop(part):
    print("looped", *part.of(range(1000), 3), part.number(2000, 5), part.chance.random())

def test_examples():
    seen = []
    @given(st.integers(0, 10**6))
    def check(number):
        seen.append(number)
    check()
    print("drawn", len(seen), sum(seen))
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[str, set[str]]]:
    """A function that runs some campaigns, and returns all that was said and the lines of the tests."""
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "conftest.py").write_text('pytest_plugins = ("tests.support.parts",)')
    (tmp_path / "test_campaigns.py").write_text(CAMPAIGNS)

    def run_with(*options: str) -> tuple[str, set[str]]:
        command = [sys.executable, "-m", "pytest", "-rP", "-p", "no:cacheprovider", "-p", "no:cov", *options]
        done = subprocess.run(  # noqa: S603 - fixed arguments
            command,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CI": "true"},
            capture_output=True,
            text=True,
        )
        return done.stdout, set(re.findall(r"^(?:marked|looped|drawn) .*", done.stdout, re.MULTILINE))

    return run_with


def test_a_seed_gives_the_same_parts(run: Callable[..., tuple[str, set[str]]]) -> None:
    """Cases, loops and examples follow from the printed seed, with workers and without, and from nothing else."""
    said, first = run()
    assert sum(line.startswith("marked") for line in first) == 4
    assert len(first & {"marked one", "marked other"}) == 1
    assert len(first) == 6
    assert any(line.startswith("drawn 25 ") for line in first)
    seed = re.findall(r"^long campaigns: a part of each, which --seed (\d+) takes again", said, re.MULTILINE)
    assert len(seed) == 1
    assert run("--seed", seed[0])[1] == first
    assert run("--seed", seed[0], "-n", "2")[1] == first
    _, other = run("--seed", str(int(seed[0]) + 1))
    assert not {line for line in other & first if not line.startswith("marked")}  # one of a few cases may be the same


def test_workers_have_one_seed(run: Callable[..., tuple[str, set[str]]]) -> None:
    """Without a given seed, the workers of a run collect the same."""
    said, lines = run("-n", "2")
    assert sum(line.startswith("marked") for line in lines) == 4
    assert "errors" not in said


def test_all_takes_the_whole(run: Callable[..., tuple[str, set[str]]]) -> None:
    """With `--all`, no case is left out."""
    _, lines = run("--all")
    assert {f"marked {case}" for case in (*range(40), "one", "other")} < lines
    (looped,) = (line.split() for line in lines if line.startswith("looped"))
    assert looped[1:1002] == [*map(str, range(1000)), "2000"]
    assert any(line.startswith("drawn 100 ") for line in lines)


def test_a_failure_repeats_the_seed(run: Callable[..., tuple[str, set[str]]], tmp_path: Path) -> None:
    """The end of a failed run says how to take its parts again, also where the header is hidden."""
    (tmp_path / "test_campaigns.py").write_text("def test_fails():\n    assert False\n")
    said, _ = run("-q", "--seed", "5")
    assert "which --seed 5 takes again" in said
