"""A project whose engines were built on this GPU, and its opened artifacts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host import cuda
from model_artifacts.host.environment import installed, missing_driver, threads
from model_artifacts.records import Backend, Precision
from model_artifacts.tensorrt.flavour import load_flavour
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from tests.conftest import REPOSITORY, TINY

if TYPE_CHECKING:
    from model_artifacts.records import ManifestEntry
    from model_artifacts.tensorrt.flavour import Flavour
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


needs_torch_tensorrt = pytest.mark.skipif(
    not installed("torch_tensorrt"), reason="Torch-TensorRT is not installed here"
)

TINY_ON_A_GPU = TINY.replace("[fp32, fp16, bf16, int8]", "[fp32, fp16, int8]").replace("[16MiB, 32MiB]", "[64MiB]")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose engines in fp16, and one in int8, have been built and validated on this host."""
    if installed("torch"):
        config = tmp_path_factory.mktemp("gpu") / "pipeline.yaml"
        config.write_text(TINY_ON_A_GPU)
        found = Project.load(config, STAGES)
        doit(config, *(f"validate:{name}" for name in _engines(found)))
        assert main(["manifest", found.plan.model, "--config", str(config)]) == 0
        return found
    if GIVEN not in os.environ:
        pytest.skip(f"torch is not installed here, and {GIVEN} names no project")
    return Project.load(Path(os.environ[GIVEN]), STAGES)


def with_one_engine(folder: Path, configuration: str) -> Project:
    """Return a project in a folder, whose one engine has been built, validated and put into the manifest."""
    file = folder / "pipeline.yaml"
    file.write_text(configuration)
    found = Project.load(file, STAGES)
    doit(file, f"validate:{first_engine(found)}")
    assert main(["manifest", found.plan.model, "--config", str(file)]) == 0
    return found


def first_engine(project: Project) -> str:
    """Return the id of the first engine."""
    return next(item.id for item in project.plan.variants if item.backend is Backend.TENSORRT)


@pytest.fixture
def artifact(project: Project) -> Artifact:
    """The record of the first engine of a module's own project."""
    return project.artifact(project.plan.variant(first_engine(project)))


@pytest.fixture
def entry(project: Project) -> ManifestEntry:
    """The same engine in the manifest."""
    return next(item for item in project.manifest().artifacts if item.id == first_engine(project))


def _engines(project: Project) -> list[str]:
    """Return the engines that the tests take: a TensorRT that times tactics needs half a minute for each."""
    return [
        variant.id
        for variant in project.plan.variants
        if variant.backend is Backend.TENSORRT and variant.profile
        if variant.precision is Precision.FP16 or (variant.precision is Precision.INT8 and variant.profile.is_fixed)
    ]


@pytest.fixture(scope="session")
def flavour(project: Project) -> Flavour:
    """The TensorRT of this host, on its first GPU."""
    cuda.use(project.plan.host.gpus[0])
    return load_flavour(project.plan.engine_targets[0].flavour)


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
    target = f"{found.plan.model}/{found.plan.module_targets[0].name}"
    doit(folder / "pipeline.yaml", *(f"validate:{target}/{name}" for name in _MODULES))
    return found


def doit(config: Path, *tasks: str) -> None:
    """Run tasks and all that they need. What fails has its reason in its record, which the tests read."""
    command = [sys.executable, "-m", "doit", f"config={config}", "-n", str(threads()), "--continue", *tasks]
    subprocess.run(command, check=False, cwd=REPOSITORY)  # noqa: S603 - fixed arguments


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
