"""Actions of doit's tasks: steps that are forked, and those that are known to be skipped."""

from __future__ import annotations

import io
import os
import signal
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import missing_driver
from pipeline.cli import main
from pipeline.cli.actions import ForkedStep, SkippedStep
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from pipeline.stages.export.spec import SPEC as EXPORT
from pipeline.stages.manifest.spec import SPEC as MANIFEST
from pipeline.system.forks import ForkServer, current_server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path
    from typing import Any

    from pipeline.planning.spec import StageSpec

STEP = Step("export", "tiny/fp16")


def forked(arguments: Sequence[str], spec: StageSpec[Any] = EXPORT) -> ForkedStep:
    """Return an action in a fork of these tests' server."""
    server = current_server()
    assert isinstance(server, ForkServer)
    return ForkedStep(server, STEP, list(arguments), spec)


def die(_connection: Connection, arguments: Sequence[str]) -> None:
    """Say something, and die as when memory is short."""
    print(*arguments, flush=True)  # noqa: T201 - that is the point
    os.kill(os.getpid(), signal.SIGKILL)


def test_lines_of_a_forked_step_have_its_name_before_them(capfd: pytest.CaptureFixture[str]) -> None:
    """Both streams are passed on line by line, and kept for doit; nothing is written past them."""
    out, err = io.StringIO(), io.StringIO()
    action = forked(["export", "tiny/fp61"])
    failure = action.execute(out, err)
    assert failure is not None
    assert failure.get_msg().strip() == "exit status 2"
    lines = err.getvalue().splitlines()
    assert lines[0].startswith("export:tiny/fp16: error: ")
    assert all(line.startswith("export:tiny/fp16: ") for line in lines)
    assert action.err == "".join(f"{line.removeprefix('export:tiny/fp16: ')}\n" for line in lines)
    assert (out.getvalue(), action.out, action.result) == ("", "", action.err)
    assert capfd.readouterr() == ("", "")


def test_a_table_has_no_name_before_its_lines() -> None:
    """It is as wide as the terminal without one."""
    err = io.StringIO()
    forked(["manifest", "nobody"], MANIFEST).execute(None, err)
    assert err.getvalue().startswith("error: ")


def test_a_killed_step_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last words are passed on, the message names the signal, and the next step runs."""
    monkeypatch.setattr(main, "run_forked", die)
    out = io.StringIO()
    failure = forked(["last words"]).execute(out)
    assert failure is not None
    assert "killed by SIGKILL, as the kernel does when memory is short" in failure.get_msg()
    assert out.getvalue() == "export:tiny/fp16: last words\n"
    monkeypatch.undo()
    assert forked(["plan", "--help"]).execute() is None


@pytest.mark.skipif(not missing_driver(), reason="there is a GPU here")
def test_a_reason_is_said_once_for_all_steps_that_share_it(copied: Path) -> None:
    """Fifty variants of a GPU that is not there give one line, and a record each."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    variants = [variant for variant in project.plan.variants if variant.target == "gpu"]
    assert len(variants) > 1
    out, said = io.StringIO(), set[str]()
    for variant in variants:
        project.paths.artifact(variant).unlink()
        assert SkippedStep(project, Step("build", variant.id), said).execute(out) is None
        assert project.paths.artifact(variant).is_file()
    assert out.getvalue() == f"build:{variants[0].id}: skipped: no NVIDIA driver found\n"
