"""A small network that was searched once: on the processor, with engines that are built and skipped."""

from __future__ import annotations

import io
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.tune.tuning import Wishes, tune
from tests.conftest import REPOSITORY, TINY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEARCHED = (
    TINY.replace("[fp32, fp16, bf16, int8]", "[fp32, int8]")
    .replace("[1, {min: 1, opt: 2, max: 4}]", "[1]")
    .replace("[16MiB, 32MiB]", "[16MiB]")
    .replace("batches: [1, 2]", "batches: [1]")
    + "gates: {int8: {relative_l2: 1.3e-2}}\n"
)
"""int8 misses this gate, and keeps it with one layer left in floating point, by 6 % with one thread or with two."""
HOUR = Wishes(budget_seconds=3600.0)


@pytest.fixture(scope="session")
def searched_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the search, and `printed.txt` with what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "pipeline.yaml").write_text(SEARCHED)
    before = os.getcwd()  # noqa: PTH109 - to return there
    os.chdir(REPOSITORY)  # where `tests.support.tiny_model` can be imported from
    try:
        stream = io.StringIO()
        tune(Project.load(folder / "pipeline.yaml", STAGES), HOUR, stream)
        (folder / "printed.txt").write_text(stream.getvalue())
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def searched(searched_folder: Path) -> Project:
    """The project of the search, to be read only."""
    return Project.load(searched_folder / "pipeline.yaml", STAGES)


@pytest.fixture
def copied_search(searched_folder: Path, tmp_path: Path) -> Project:
    """A copy of the search, to go on with."""
    shutil.copytree(searched_folder, tmp_path / "copy", symlinks=True)
    return Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)
