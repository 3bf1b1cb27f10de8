"""The wheel on its own: installed without torch and without the build half, with both ends of its version ranges."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts import Precision, Requirements, load
from model_artifacts.releases.store import push
from tests.conftest import REPOSITORY
from tests.support.registries import PROGRAM, running

if TYPE_CHECKING:
    from pipeline.stages.release.stage import Release

EXTRAS = ("onnxruntime", "verify", "store", "oci", "triton")
INSTALL_SECONDS = 300
UNREACHABLE = re.compile(r"Failed to fetch|error sending request|dns error|timed out|Connection refused", re.IGNORECASE)
"""Messages of uv about a registry that does not answer; a resolution that fails is not among them."""

HOSTILE = """\
from pathlib import Path

Path(__file__).with_name("hijacked").touch()
raise SystemExit(0)
"""
"""A module of the application's own, which ends whatever imports it as if all were well."""

DEPLOY = """\
import json, sys
from pathlib import Path

import numpy as np
import model_artifacts
from model_artifacts import Precision, Requirements, Verifier, load, pull, resolve
from model_artifacts.host import cuda
from model_artifacts.releases.verification import verify_release

release, key, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
manifest = verify_release(release, Verifier(key))
pulled = pull(url, Path("pulled"), verifier=Verifier(key))
resolved = resolve("pulled")
with load("pulled", Requirements(precision=Precision.FP32)) as model:
    logits = model(np.load("batch.npy"))
    classes = [found.name for found in model.predict(np.load("images.npy"))]
print(json.dumps({
    "module": model_artifacts.__file__,
    "verified": len(manifest.artifacts),
    "resolved": resolved.entry.id,
    "logits": logits.tolist(),
    "classes": classes,
    "imported": sorted({"torch", "pipeline"} & sys.modules.keys()),
}))
"""

NAMES = """\
import sys
from operator import attrgetter

import pynvml
from cuda.bindings import driver, runtime

for name in sys.argv[1:]:
    module, _, attribute = name.partition(".")
    attrgetter(attribute)({"driver": driver, "pynvml": pynvml, "runtime": runtime}[module])
"""
"""Looks up names of CUDA and NVML, which no host without a driver can call."""


def uv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run uv with its usual cache, and skip the test where uv or the package registry is missing."""
    if not shutil.which("uv"):
        pytest.skip("uv is not installed")
    hidden = {"XDG_CACHE_HOME", "VIRTUAL_ENV", "PYTHONPATH"}
    done = subprocess.run(  # noqa: S603 - fixed arguments
        ["uv", "--quiet", *arguments],  # noqa: S607 - wherever it is installed
        check=False,
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name not in hidden} | {"UV_HTTP_RETRIES": "1"},
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    if done.returncode != 0 and UNREACHABLE.search(done.stderr):
        pytest.skip(f"the package registry cannot be reached: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as the project's build backend makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--out-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(params=["lowest-direct", "highest"])
def environment(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path) -> Path:
    """A fresh virtual environment with the wheel and one end of its ranges."""
    folder = tmp_path / "environment"
    extras = ",".join(EXTRAS)
    # uv takes a wheel's own requirements for indirect ones: pyproject.toml names them directly.
    direct = ["-r", str(REPOSITORY / "pyproject.toml"), *(f"--extra={extra}" for extra in EXTRAS)]
    options = [f"--python={folder}", "--only-binary=:all:", f"--resolution={request.param}"]
    uv("venv", "--python", sys.executable, folder)
    uv("pip", "install", *options, f"{wheel}[{extras}]", *direct)
    return folder


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """The folder of an application that has modules of its own by names of ours, such as `pipeline.py`."""
    folder = tmp_path / "application"
    folder.mkdir()
    for name in ("pipeline", "errors", "records", "host", "cli"):
        (folder / f"{name}.py").write_text(HOSTILE)
    return folder


def run(folder: Path, *command: str | Path) -> str:
    """Run a command in a folder without this process's Python path, and return its standard output."""
    passed = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "TMPDIR"}
    done = subprocess.run(  # noqa: S603 - the environment's own commands
        command,
        check=False,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **passed},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_deployment_half_alone(wheel: Path) -> None:
    """No module of the build half, no test and no data lies in it."""
    names = zipfile.ZipFile(wheel).namelist()
    others = [name for name in names if not re.match(r"model_artifacts(-[^/]+\.dist-info)?/", name)]
    assert others == []
    assert "model_artifacts/py.typed" in names
    tracked = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "model_artifacts").rglob("*.py")}
    assert tracked <= {*names}


@pytest.mark.part(1)
def test_installed_wheel_deploys_a_release(
    environment: Path, application: Path, released: Release, keys: tuple[Path, Path], s3: str
) -> None:
    """It verifies, pulls, resolves, loads and predicts beside a hostile `pipeline.py`, and imports no torch."""
    generator = np.random.default_rng(0)
    batch = generator.standard_normal((2, 3, 32, 32), dtype=np.float32)
    np.save(application / "batch.npy", batch)
    np.save(application / "images.npy", generator.integers(0, 256, (3, 48, 40, 3), dtype=np.uint8))
    push(s3, released.folder, ["latest"])
    with load(released.folder, Requirements(precision=Precision.FP32)) as model:
        expected = model(batch)

    code = "".join(path.read_text() for path in (REPOSITORY / "model_artifacts").rglob("*.py"))
    python, script = environment / "bin/python", environment / "bin/model-artifacts"
    told = json.loads(run(application, python, "-c", DEPLOY, released.folder, keys[1], s3))
    assert Path(told["module"]).is_relative_to(environment)
    assert told["imported"] == []
    assert told["verified"] > 0
    assert told["resolved"].startswith("tiny/cpu-")
    assert len(told["classes"]) == 3
    np.testing.assert_allclose(told["logits"], expected, rtol=1e-3, atol=1e-4)

    for command in ([script], [python, "-m", "model_artifacts"]):
        assert json.loads(run(application, *command, "resolve", "pulled", "--json"))
        assert run(application, *command, "verify", released.folder, "--key", keys[1])
    if PROGRAM:
        with running(application.with_name("registry")) as server:
            run(application, script, "push", server.url("team/tiny"), released.folder)
            assert run(application, script, "pull", server.url("team/tiny"), "from-a-registry", "--for-host")
    assert run(application, script, "triton", "pulled", "--output", "models")
    assert list((application / "models").glob("*/*/config.pbtxt"))
    assert json.loads(run(application, script, "host"))
    run(application, python, "-c", NAMES, *re.findall(r"\b(?:runtime|driver)\.cu[\w.]+|\bpynvml\.\w+", code))
    assert not (application / "hijacked").exists()
