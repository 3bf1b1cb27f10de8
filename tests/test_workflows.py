"""The commands of the workflows exist."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.conftest import REPOSITORY

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
    """Each `model-artifacts COMMAND` of the workflows and of docs/ci.md exists, with its options."""
    asked = [line.split("model-artifacts ")[1] for line in commands() if "model-artifacts " in line]
    assert {line.split()[0] for line in asked} == {"push", "pull", "tag"}
    for line in asked:
        command = [sys.executable, "-m", "model_artifacts", line.split()[0], "--help"]
        explained = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own
        assert [option for option in re.findall(r"--[a-z-]+", line) if option not in explained] == []


def step_named(words: str) -> dict[str, Any]:
    """Return the release's step whose name holds these words."""
    text = (REPOSITORY / ".github/workflows/release.yml").read_text()
    return next(step for step in steps(text) if words in step.get("name", ""))


def run_step(
    words: str, folder: Path, stand_in: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a step as GitHub does, with a stand-in for `uv run model-artifacts`; return its arguments, too."""
    (folder / "bin").mkdir()
    (folder / "bin/uv").write_text(f'#!/bin/sh\nshift 2\necho "$@" >> asked\n{stand_in}\n')
    (folder / "bin/uv").chmod(0o755)
    (folder / "pipeline.yaml").touch()
    done = subprocess.run(  # noqa: S603 - the repository's own
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step_named(words)["run"]],  # noqa: S607
        check=False,
        cwd=folder,
        env={"PATH": f"{folder}/bin:/usr/bin:/bin", "STORE": "store", "GPU": "h100", **environment},
        capture_output=True,
        text=True,
    )
    return done, (folder / "asked").read_text().splitlines()


def test_a_store_that_cannot_be_read_ends_the_release(tmp_path: Path) -> None:
    """Or else nothing would be held against the last release, and nobody told."""
    done, asked = run_step("Hold this build", tmp_path, "exit 1")
    assert done.returncode == 1
    assert asked == ["tag store"]


@pytest.mark.parametrize(("tags", "held"), [("latest-h100 abc", True), ("latest-l4 abc", False)])
def test_a_build_is_held_against_the_last_release_where_there_is_one(tmp_path: Path, tags: str, *, held: bool) -> None:
    """A build is compared with the last release of the same type of GPU."""
    done, asked = run_step("Hold this build", tmp_path, f'[ "$1" = pull ] || echo {tags}')
    assert done.returncode == 0
    assert asked == ["tag store", *(["pull store released --tag latest-h100"] if held else [])]
    assert ("released/manifest.json" in (tmp_path / "ci.yaml").read_text()) is held


@pytest.mark.parametrize(
    ("ref", "moves", "tags"),
    [
        ("v1.2.3", "true", "--tag v1.2.3-h100 --tag latest-h100"),
        ("fix/a/bug", "false", "--tag fix-a-bug-h100"),
    ],
)
def test_what_is_pushed_has_tags_that_a_store_takes(tmp_path: Path, ref: str, moves: str, tags: str) -> None:
    """A branch's slashes are none; and no branch but the default one is the latest release."""
    done, asked = run_step("Push it", tmp_path, "", GITHUB_REF_NAME=ref, MOVES_LATEST=moves)
    assert done.returncode == 0
    assert asked == [f"push store {tags}"]
    assert "default_branch" in step_named("Push it")["env"]["MOVES_LATEST"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_secrets_reach_only_the_steps_that_need_them(path: Path) -> None:
    """No job, and no step that runs the project's own code from a pull request, has them."""
    text = path.read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert all("secrets" not in str(job.get("env", "")) for job in jobs.values())
    holders = [step.get("run", "") for step in steps(text) if "secrets" in str(step.get("env", ""))]
    assert all("uv run model-artifacts" in run for run in holders)


def test_what_runs_for_pull_requests_may_write_nothing() -> None:
    """Workflows of pull requests have read access only, because their author decides the code."""
    said = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    assert said["permissions"] == {"contents": "read"}
    assert "secrets" not in (REPOSITORY / ".github/workflows/ci.yml").read_text()


def test_the_long_campaigns_run_whole_every_night() -> None:
    """A schedule runs all of what other runs take a part of."""
    text = (REPOSITORY / ".github/workflows/nightly.yml").read_text()
    triggers = yaml.safe_load(text)[True]  # YAML 1.1 reads `on` as a boolean
    assert re.fullmatch(r"\d+ \d+ \* \* \*", triggers["schedule"][0]["cron"])
    assert "uv run doit check --all" in [step.get("run") for step in steps(text)]
