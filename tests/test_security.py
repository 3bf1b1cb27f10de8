"""Files of strangers run nothing, and secrets stay where they are. Archives: test_release; checkpoints: test_model."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch._export.serde.schema import SCHEMA_VERSION

import model_artifacts as pipeline
from model_artifacts.errors import ConfigError, RunError
from model_artifacts.host.environment import flavours, installed_torch_tensorrt, version
from model_artifacts.host.hashes import describe_file, sha256_of
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Backend, GitState, Manifest, ModuleContents
from model_artifacts.sessions.torch_tensorrt_runtime import libraries
from pipeline.cli.main import main
from pipeline.config.loading import load_config
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.build import module as torchtrt
from pipeline.stages.release.stage import make_release
from tests.conftest import REPOSITORY, TINY
from tests.support.deployables import machine, module
from tests.support.hosts import H100, host
from tests.support.parts import long_test
from tests.support.records import with_digest
from tests.support.torch_tensorrt_stub import Library, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "correct-horse-battery-staple"  # noqa: S105 - it opens nothing


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        """Return the call that unpickling makes."""
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that a payload leaves when it runs."""
    return tmp_path / "the payload has run"


def test_the_payload_works(mark: Path) -> None:
    """Or else nothing here would be shown."""
    pickle.loads(pickle.dumps(Payload(mark)))  # noqa: S301 - our own
    assert mark.is_dir()


def test_a_module_with_another_digest_is_not_loaded(copied: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed module is refused before torch unpickles it."""
    path = copied / "artifacts" / "manifest.json"
    manifest = read_record(path, Manifest)
    file = next(item.file for item in manifest.artifacts if item.file)
    stranger = copied / "artifacts" / file.path
    stranger.write_bytes(pickle.dumps(Payload(mark)))
    entry = module("module", 0.1).model_copy(update={"model": "tiny", "file": file})
    write_record(path, manifest.model_copy(update={"artifacts": (entry,)}))
    monkeypatch.setattr("model_artifacts.deployment.loading.this_host", lambda: machine(H100))
    with pytest.raises(RunError, match="is damaged, or is not the recorded file"), pipeline.load(path.parent):
        pass
    assert not mark.exists()


def rewritten(path: Path, changed: Callable[[str, bytes], bytes], more: dict[str, bytes]) -> None:
    """Write a .pt2 anew: each part as a function gives it, and more parts."""
    with zipfile.ZipFile(path) as old:
        parts = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in ({name: changed(name, data) for name, data in parts.items()} | more).items():
            new.writestr(f"{path.stem}/{name}", data)


def called_pickled(path: Path, folder: str, name: str, payload: bytes) -> None:
    """Have an archive say that a tensor of it is a pickle."""
    meta = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}

    def changed(part: str, data: bytes) -> bytes:
        if part != f"data/{folder}/model_{folder}_config.json":
            return data
        tensors = json.loads(data)["config"]
        return json.dumps({"config": {**tensors, next(iter(tensors), "x"): meta}}).encode()

    rewritten(path, changed, {f"data/{folder}/{name}": payload})


def in_the_format_of_2_7(path: Path, payload: bytes) -> None:
    """Write a file in the format of torch 2.7."""
    with zipfile.ZipFile(path) as old:
        program = next(old.read(name) for name in old.namelist() if name.endswith("models/model.json"))
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        new.writestr("serialized_exported_program.json", program)
        for name in ("state_dict", "constants", "example_inputs"):
            new.writestr(f"serialized_{name}.pt", payload)


PICKLES: dict[str, Callable[[Path, bytes], None]] = {
    "a weight": lambda path, payload: called_pickled(path, "weights", "weight_9", payload),
    "a constant": lambda path, payload: called_pickled(path, "constants", "tensor_9", payload),
    "older weights": lambda path, payload: rewritten(path, lambda _, data: data, {"data/weights/model.pt": payload}),
    "older constants": lambda path, payload: rewritten(
        path, lambda _, data: data, {"data/constants/model.pt": payload}
    ),
    "sample inputs": lambda path, payload: rewritten(
        path, lambda _, data: data, {"data/sample_inputs/model.pt": payload}
    ),
    "an old format": in_the_format_of_2_7,
}


@pytest.mark.parametrize("where", PICKLES)
def test_a_module_of_the_right_digest_runs_no_pickle(
    copied: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A pickle anywhere in a .pt2 is refused, and later users of pickle are not affected."""
    use(Library(), monkeypatch)
    artifacts = copied / "artifacts"
    path, pickled = artifacts / "model.pt2", io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    torch.save(Payload(mark), pickled)
    PICKLES[where](path, pickled.getvalue())
    made_by = ModuleContents(segments=1, torch_operators=(), libraries=libraries())
    target = f"sm90-h100-80gb-hbm3-torch{'.'.join(version('torch').split('.')[:2])}"
    changes = {"model": "tiny", "file": describe_file(path, artifacts), "module": made_by, "target": target}
    entry = module("module", 0.1).model_copy(update=changes)
    manifest = read_record(artifacts / "manifest.json", Manifest)
    write_record(artifacts / "manifest.json", manifest.model_copy(update={"artifacts": (entry,)}))
    here = machine(
        H100, host=host(H100, flavours=flavours(), torch=version("torch")), torch_tensorrt=installed_torch_tensorrt()
    )
    monkeypatch.setattr("model_artifacts.deployment.loading.this_host", lambda: here)
    with pytest.raises(RunError, match="holds pickled objects, which are not loaded"), pipeline.load(artifacts):
        pass
    assert not mark.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_an_engine_cache_of_an_artifacts_folder_is_not_used(
    built: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch-TensorRT unpickles only engines that this user's builds wrote, in a private folder."""
    settings = built.config.torch_tensorrt.model_copy(update={"engine_cache": True})
    project = Project(
        Plan(built.config.model_copy(update={"torch_tensorrt": settings}), host(H100)), built.paths, STAGES
    )
    variant = next(item for item in project.plan.variants if item.backend is Backend.DYNAMO)
    use(Library(), monkeypatch)
    assert torchtrt._make(project, variant, H100, tmp_path / "made.pt2")
    cache = torchtrt.request_of(project, variant, H100).engine_cache
    assert cache is not None
    assert not cache.is_relative_to(project.paths.root)
    assert cache.is_relative_to(os.environ["XDG_CACHE_HOME"])
    assert cache.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["calibration", "validation", "reference", "labels"])
def test_arrays_are_read_without_pickle(copied: Path, mark: Path, name: str) -> None:
    """An array of objects runs no code, even with the recorded digest."""
    config = copied / "pipeline.yaml"
    paths = Project.load(config, STAGES).paths
    file = getattr(paths, name)
    np.save(file, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    record = paths.data.read_text()
    digest = sha256_of(file)
    data = Project.load(config, STAGES).data()
    known = {
        "calibration": data.calibration,
        "validation": data.validation,
        "reference": data.reference,
        "labels": data.labels,
    }
    old = known[name]
    assert old is not None
    paths.data.write_text(with_digest(record.replace(old.sha256, digest)))
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
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: GitState(commit="c" * 40, dirty=False))
    project = Project.load(copied / "pipeline.yaml", STAGES)
    for variant in project.plan.variants:
        cache = project.paths.engine_cache(variant)
        cache.mkdir(parents=True)
        (cache / "blob.bin").write_bytes(pickle.dumps(1))
    made = make_release(project)
    assert [path for path in made.folder.rglob("*") if "cache" in path.as_posix()] == []


@long_test
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
