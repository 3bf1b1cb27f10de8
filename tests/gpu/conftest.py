"""A project whose engines were built on this GPU, and its opened artifacts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import installed, missing_driver
from model_artifacts.records import Backend, Precision
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from tests.conftest import TINY

if TYPE_CHECKING:
    from pipeline.records import Artifact

GIVEN = "PIPELINE_TEST_CONFIG"
"""A host without torch names the configuration of a project here that has been through `doit` there."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, and skip it where there is no GPU."""
    reason = missing_driver()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


TINY_ON_A_GPU = TINY.replace("[fp32, fp16, bf16, int8]", "[fp32, fp16, int8]").replace("[16MiB, 32MiB]", "[64MiB]")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been through every stage on this host."""
    if installed("torch"):
        folder = tmp_path_factory.mktemp("gpu")
        (folder / "pipeline.yaml").write_text(TINY_ON_A_GPU)
        return _built(folder / "pipeline.yaml")
    if GIVEN not in os.environ:
        pytest.skip(f"torch is not installed here, and {GIVEN} names no project")
    return Project.load(Path(os.environ[GIVEN]), STAGES)


_MODULES = (
    "eager-fp32",
    "eager-fp16-channels_last",
    "inductor-fp16",
    "dynamo-fp16-b1-ws64MiB",
    "dynamo-fp16-b1-2-4-ws64MiB",
    "dynamo-fp32-b1-ws64MiB",
    "torch_compile-fp16-b1-ws64MiB",
)


@pytest.fixture(scope="session")
def modules(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same project, in which torch's modules have been built and validated."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "pipeline.yaml").write_text(TINY_ON_A_GPU)
    shutil.copytree(project.paths.root, folder / "artifacts")
    found = Project.load(folder / "pipeline.yaml", STAGES)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        list(threads.map(lambda name: _through(found, name, folder / "pipeline.yaml"), _MODULES))
    return found


def _through(project: Project, name: str, config: Path) -> None:
    """Build and validate a module, as doit does it."""
    subject = f"{project.plan.model}/{project.plan.module_targets[0].name}/{name}"
    for stage in ("build", "validate"):
        subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-m", "pipeline", stage, subject, "--config", str(config)], check=False
        )


def _built(config: Path) -> Project:
    """Run every step but those of the CPU and of modules."""
    project = Project.load(config, STAGES)
    plan = project.plan
    targets = tuple(f"{plan.model}/{target.name}" for target in plan.engine_targets)
    for step in project.schedule.steps:
        engine = step.subject.startswith(targets) and step.stage != "benchmark"
        if engine or step.stage not in {"build", "validate", "benchmark"}:
            assert main([step.stage, step.subject, "--config", str(config)]) == 0, step
    return project


def engine_of(project: Project, precision: Precision, *, fixed: bool) -> Artifact:
    """Return the engine of a precision with one batch size, or with several."""
    for variant in project.plan.variants:
        if variant.backend is Backend.TENSORRT and variant.precision is precision and variant.profile:
            artifact = project.artifact(variant)
            if variant.profile.is_fixed is fixed and artifact.outcome is Outcome.DONE:
                return artifact
    pytest.fail(f"the project has no such {precision.value} engine")


@pytest.fixture
def fixed(project: Project) -> Artifact:
    """An fp16 engine of batch 1."""
    return engine_of(project, Precision.FP16, fixed=True)


@pytest.fixture
def ranged(project: Project) -> Artifact:
    """An fp16 engine of several batch sizes."""
    return engine_of(project, Precision.FP16, fixed=False)
