"""Files of strangers run nothing, and secrets stay where they are. Archives: test_release; checkpoints: test_model."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import pipeline
from pipeline.__main__ import main
from pipeline.atomic import read_record, sha256_of, write_record
from pipeline.config import load_config
from pipeline.errors import ConfigError, RunError
from pipeline.project import Project
from pipeline.records import GitState, Manifest
from pipeline.release import make_release

from .conftest import REPOSITORY, TINY
from .hosts import H100
from .test_resolution import machine, module

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "correct-horse-battery-staple"  # noqa: S105 - it opens nothing


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        """Say what to call."""
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What is there once a payload has run."""
    return tmp_path / "the payload has run"


def test_the_payload_works(mark: Path) -> None:
    """Or else nothing here would be shown."""
    pickle.loads(pickle.dumps(Payload(mark)))  # noqa: S301 - our own
    assert mark.is_dir()


def test_a_module_with_another_digest_is_not_loaded(copied: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch would unpickle is refused before torch sees it."""
    path = copied / "artifacts" / "manifest.json"
    manifest = read_record(path, Manifest)
    file = next(item.file for item in manifest.artifacts if item.file)
    stranger = copied / "artifacts" / file.path
    stranger.write_bytes(pickle.dumps(Payload(mark)))
    write_record(
        path, manifest.model_copy(update={"artifacts": (module("module", 0.1).model_copy(update={"file": file}),)})
    )
    monkeypatch.setattr("pipeline.deployment.this_host", lambda: machine(H100))
    with pytest.raises(RunError, match="is damaged, or is not what was built"), pipeline.load(path.parent):
        pass
    assert not mark.exists()


@pytest.mark.parametrize("name", ["calibration", "validation", "reference", "labels"])
def test_arrays_are_read_without_pickle(copied: Path, mark: Path, name: str) -> None:
    """Even where the record has the digest of an array of objects, what they hold is not run."""
    config = copied / "pipeline.yaml"
    paths = Project.load(config).paths
    file = getattr(paths, name)
    np.save(file, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    record = paths.data.read_text()
    digest = sha256_of(file)
    data = Project.load(config).data()
    known = {
        "calibration": data.calibration,
        "validation": data.validation,
        "reference": data.reference,
        "labels": data.labels,
    }
    old = known[name]
    assert old is not None
    paths.data.write_text(record.replace(old.sha256, digest))
    for command in (["validate", "tiny/cpu-x86_64/onnxruntime-fp16"], ["quantize", "tiny/int8"]):
        main([*command, "--config", str(config)])
    assert not mark.exists()


def test_a_configuration_makes_no_objects(tmp_path: Path, mark: Path) -> None:
    """YAML's tags of Python are refused, with their position."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(f"{TINY}artifacts: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(ConfigError, match=r"pipeline\.yaml:\d+:\d+: "):
        load_config(file)
    assert not mark.exists()


def test_no_pickle_is_released(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch-TensorRT's engine cache lies beside an artifact, and stays there."""
    monkeypatch.setattr("pipeline.release.git_state", lambda _: GitState(commit="c" * 40, dirty=False))
    project = Project.load(copied / "pipeline.yaml")
    for variant in project.plan.variants:
        cache = project.paths.engine_cache(variant)
        cache.mkdir(parents=True)
        (cache / "blob.bin").write_bytes(pickle.dumps(1))
    made = make_release(project)
    assert [path for path in made.folder.rglob("*") if "cache" in path.as_posix()] == []


def test_secrets_of_the_environment_are_in_no_file_and_no_line(copied: Path) -> None:
    """Steps inherit them, and write none down."""
    config = copied / "pipeline.yaml"
    config.write_text(config.read_text().replace("validation: 100", "validation: 90"))
    names = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    environment = {**os.environ, **dict.fromkeys(names, SECRET)}
    said = b""
    for command in (
        ["data", "tiny"],
        ["build", "tiny/rtx-sm80+/fp16-b1-ws16MiB"],
        ["manifest", "tiny"],
        ["report", "tiny"],
    ):
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-m", "pipeline", *command, "--config", str(config), "--debug"],
            check=True,
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
        )
        said += done.stdout + done.stderr
    assert SECRET.encode() not in said
    found = [path for path in copied.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert found == []
