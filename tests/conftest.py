"""What tests share: a small configuration, and one project that has been through every stage."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.__main__ import main
from pipeline.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parent.parent

signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell that starts the tests in the background has SIGINT ignored, which everything they start would inherit."""

TINY = """\
model:
  name: tiny
  factory: tests.tiny_model:make
  weights: sample
preprocessing: {resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
data: {calibration: 32, validation: 100}
precisions: [fp32, fp16, bf16, int8]
profiles: [1, {min: 1, opt: 2, max: 4}]
workspaces: [16MiB, 32MiB]
benchmark: {batches: [1, 2], restarts: 2, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2, streams: 2}
"""


@pytest.fixture(scope="session")
def built_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose tiny project has been through every stage; nobody writes to it."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "pipeline.yaml").write_text(TINY)
    config = str(folder / "pipeline.yaml")
    before = Path.cwd()
    os.chdir(REPOSITORY)  # where `tests.tiny_model` can be imported from
    try:
        project = Project.load(folder / "pipeline.yaml")
        for step in project.plan.steps:
            assert main([step.stage.value, step.subject, "--config", config]) == 0, step
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def built(built_folder: Path) -> Project:
    """The finished tiny project, to be read only."""
    return Project.load(built_folder / "pipeline.yaml")


@pytest.fixture
def copied(built_folder: Path, tmp_path: Path) -> Path:
    """A copy of the finished tiny project's folder, to do anything with."""
    folder = tmp_path / "project"
    shutil.copytree(built_folder, folder)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what doit needs, the tiny model's configuration, and nothing built."""
    folder = tmp_path / "a checkout with späces"
    (folder / "tests").mkdir(parents=True)
    (folder / "artifacts").mkdir()
    for name in ("dodo.py", "pyproject.toml", "tests/__init__.py", "tests/tiny_model.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "pipeline.yaml").write_text(TINY)
    return folder


@pytest.fixture
def finished(checkout: Path, built_folder: Path) -> Path:
    """Such a folder with everything built."""
    shutil.copytree(built_folder / "artifacts", checkout / "artifacts", dirs_exist_ok=True)
    return checkout


@pytest.fixture(scope="session")
def wheels(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that outlives the run, unless pytest's cache is off."""
    kept: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    return kept.mkdir("wheels") if kept else tmp_path_factory.mktemp("wheels")


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a configuration and returns its file."""

    def write(text: str) -> Path:
        file = tmp_path / "pipeline.yaml"
        file.write_text(text)
        return file

    return write


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts where `tests.tiny_model` can be imported from."""
    monkeypatch.chdir(REPOSITORY)
