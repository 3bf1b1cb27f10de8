"""A project whose engines are a farm's, and the folder of its workers."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host import environment
from model_artifacts.host.record_files import write_record
from pipeline.planning.project import Project
from pipeline.records import FarmRecord
from pipeline.stages import STAGES
from tests.support.farm_steps import FARM, NEEDS
from tests.support.hosts import workers

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(copied: Path) -> Project:
    """The finished tiny project, whose engines are a farm's from now on."""
    (copied / "pipeline.yaml").write_text(FARM)
    write_record(copied / "artifacts/farm.json", FarmRecord(hosts=(workers(NEEDS, environment.read_host()),)))
    return Project.load(copied / "pipeline.yaml", STAGES)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for the files of this test's workers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"pipeline-farm-{os.getuid()}"
