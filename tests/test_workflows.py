"""What CI is told to run exists."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pipeline.commands import COMMANDS

from .conftest import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))


def steps(text: str) -> list[dict[str, Any]]:
    """Return the steps of a workflow's jobs."""
    return [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]


def commands() -> list[str]:
    """Return the lines of shell that workflows and their document run."""
    runs = [step["run"] for path in WORKFLOWS for step in steps(path.read_text()) if "run" in step]
    told = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs/ci.md").read_text(), re.DOTALL)
    return [line.strip() for text in (*runs, *told) for line in text.replace("\\\n", " ").splitlines()]


def test_every_task_is_one() -> None:
    """`doit NAME` of the workflows and of docs/ci.md is in `doit list`."""
    listed = subprocess.run(
        [sys.executable, "-m", "doit", "list"], check=True, cwd=REPOSITORY, capture_output=True, text=True
    )
    known = {line.split()[0] for line in listed.stdout.splitlines()}
    asked = {found[1] for line in commands() if (found := re.search(r"\bdoit(?: config=\S+)? ([a-z]+)\b(?!=)", line))}
    assert {"release", "verify"} <= asked <= known


def test_every_command_is_one() -> None:
    """`python -m pipeline NAME` is a command, with options that it has."""
    asked = [line.split("python -m pipeline ")[1] for line in commands() if "python -m pipeline " in line]
    assert {line.split()[0] for line in asked} == {"push", "pull", "tag"}
    for line in asked:
        name = line.split()[0]
        assert name in COMMANDS
        command = [sys.executable, "-m", "pipeline", name, "--help"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own
        assert [option for option in re.findall(r"--[a-z-]+", line) if option not in told] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_secrets_reach_only_the_steps_that_need_them(path: Path) -> None:
    """No job, and no step that runs the project's own code from a pull request, has them."""
    text = path.read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert all("secrets" not in str(job.get("env", "")) for job in jobs.values())
    holders = [step.get("run", "") for step in steps(text) if "secrets" in str(step.get("env", ""))]
    assert all("python -m pipeline" in run for run in holders)


def test_what_runs_for_pull_requests_may_write_nothing() -> None:
    """Whoever opens one decides what runs."""
    said = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    assert said["permissions"] == {"contents": "read"}
    assert "secrets" not in (REPOSITORY / ".github/workflows/ci.yml").read_text()
