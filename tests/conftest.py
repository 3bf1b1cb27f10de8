"""Shared fixtures: a small configuration, and one project that has been through every stage."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from filelock import FileLock

from model_artifacts.records import GitState
from model_artifacts.releases.signature import Signer
from model_artifacts.releases.signing_keys import PrivateKey
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.stage import Release, make_release
from pipeline.system.forks import ForkServer, forking
from tests.support.untraced import LoadedForkServer, trace_less

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ("tests.support.fake_gpu", "tests.support.parts", "tests.support.spreading")

REPOSITORY = Path(__file__).parent.parent
COMMIT = GitState(commit="c" * 40, dirty=False)

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
"""A test is a dozen processes, each of which would compile torch again."""
sys.dont_write_bytecode = False

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
"""Torch is imported later. Its threads would keep the processors from the tests beside while they wait."""

signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell that starts the tests in the background has SIGINT ignored, which everything they start would inherit."""

TINY = """\
model:
  name: tiny
  factory: tests.support.tiny_model:make
  weights: sample
preprocessing: {resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
data: {calibration: 32, validation: 100}
precisions: [fp32, fp16, bf16, int8]
profiles: [1, {min: 1, opt: 2, max: 4}]
workspaces: [16MiB, 32MiB]
benchmark:
  {batches: [1, 2], restarts: 2, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2, streams: 2,
  baselines: [inductor, onnxruntime]}
"""


def pytest_collection_finish() -> None:
    """Take coverage out of the long work of libraries that the tests have imported."""
    trace_less()


@pytest.fixture(scope="session", autouse=True)
def _temporary_files_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The host's locks lie in the temporary folder: tests that run side by side do not wait for each other.

    So do caches, which would else be the user's own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def _same_temporary_folder(_temporary_files_of_their_own: None) -> Iterator[None]:
    """Work that has a process of its own elsewhere sets another one, which would be gone for the next test."""
    before = tempfile.tempdir
    yield
    tempfile.tempdir = before


@pytest.fixture(scope="session", autouse=True)
def _forks(_temporary_files_of_their_own: None) -> Iterator[None]:
    """Isolated work of all tests is done in forks; in a run of many, torch is imported once for all of them."""
    server = LoadedForkServer if "PYTEST_XDIST_WORKER" in os.environ else ForkServer
    with forking(server(dict(os.environ))):
        yield


@pytest.fixture(scope="session")
def built_folder(tmp_path_factory: pytest.TempPathFactory, _temporary_files_of_their_own: None) -> Path:
    """A folder whose tiny project has been through every stage, by one of pytest's processes for all of them.

    Nobody writes to it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    done = folder / "done"
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            _build_everything(folder)
            done.touch()
    return folder


def _build_everything(folder: Path) -> None:
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(TINY)
    config = str(folder / "pipeline.yaml")
    before = Path.cwd()
    os.chdir(REPOSITORY)  # where `tests.support.tiny_model` can be imported from
    try:
        project = Project.load(folder / "pipeline.yaml", STAGES)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)
            for step in project.schedule.steps:
                assert main([step.stage, step.subject, "--config", config]) == 0, step
    finally:
        os.chdir(before)


@pytest.fixture
def built(built_folder: Path) -> Project:
    """The finished tiny project, to be read only."""
    return Project.load(built_folder / "pipeline.yaml", STAGES)


@pytest.fixture
def copied(built_folder: Path, tmp_path: Path) -> Path:
    """A copy of the finished tiny project's folder, to do anything with."""
    folder = tmp_path / "project"
    shutil.copytree(built_folder, folder)
    return folder


def copy_doit_files(folder: Path) -> None:
    """Copy what doit needs to build the tiny model, but for a configuration, to a new folder."""
    (folder / "tests/support").mkdir(parents=True)
    for name in (
        "dodo.py",
        "pyproject.toml",
        "tests/__init__.py",
        "tests/support/__init__.py",
        "tests/support/tiny_model.py",
    ):
        shutil.copy(REPOSITORY / name, folder / name)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with doit's files and the tiny model's configuration, and nothing built."""
    folder = tmp_path / "a checkout with späces"
    copy_doit_files(folder)
    (folder / "artifacts").mkdir()
    (folder / "pipeline.yaml").write_text(TINY)
    return folder


@pytest.fixture
def interrupted(checkout: Path) -> Path:
    """A checkout whose model takes a minute to make; its file `begun` says since when."""
    slow = "    Path('begun').touch()\n    time.sleep(60)\n    return"
    file = checkout / "tests/support/tiny_model.py"
    text = file.read_text().replace("    return", slow)
    imports = "import time\nfrom pathlib import Path\n\nfrom torch import nn"
    file.write_text(text.replace("from torch import nn", imports))
    return checkout


@pytest.fixture
def finished(checkout: Path, built_folder: Path) -> Path:
    """Such a folder with everything built."""
    shutil.copytree(built_folder / "artifacts", checkout / "artifacts", dirs_exist_ok=True)
    return checkout


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private key, and the public one that belongs to it."""
    from tests.support.keys import pem  # noqa: PLC0415 - which GPU hosts do not have the packages for

    return pem(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="session")
def shared_release(built_folder: Path, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A signed release of the finished tiny project, to be read only."""
    folder = tmp_path_factory.mktemp("released") / "project"
    shutil.copytree(built_folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)
        return make_release(Project.load(folder / "pipeline.yaml", STAGES), Signer(PrivateKey(keys[0])))


@pytest.fixture
def released(copied: Path, shared_release: Release, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A signed release in the copy of the finished tiny project, as if it were built from a commit."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)
    made = shared_release
    place = copied / "artifacts" / made.folder.parent.name
    shutil.copytree(made.folder.parent, place)
    return replace(made, folder=place / made.folder.name, archive=place / made.archive.name)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A server on loopback that speaks S3, and its address."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - which GPU hosts do not have

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket there; keys and address come from the environment, as boto has them."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3  # noqa: PLC0415 - the same

    client: Any = boto3.client("s3")
    name = f"bucket-{uuid4().hex}"
    client.create_bucket(Bucket=name)
    return f"s3://{name}/models"


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
    """Every test starts where `tests.support.tiny_model` can be imported from."""
    monkeypatch.chdir(REPOSITORY)
