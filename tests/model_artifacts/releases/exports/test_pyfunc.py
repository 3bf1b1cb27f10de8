"""A release as a folder for MLflow, which MLflow's own code loads."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts import load
from model_artifacts.cli.main import main
from model_artifacts.errors import ReleaseError, RunError, UsageError
from model_artifacts.records import ImageInput, Io
from model_artifacts.releases.exports.pyfunc import DATA, MODEL, ServedModel, export_pyfunc
from model_artifacts.releases.exports.serving_environment import CONDA, REQUIREMENTS, VIRTUALENV, requirements_of
from model_artifacts.releases.verification import verify_release
from tests.conftest import REPOSITORY
from tests.support.stores import listing

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Manifest
    from pipeline.stages.release.stage import Release

ENVIRONMENT = {REQUIREMENTS, CONDA, VIRTUALENV}
SECONDS = 300
"""The longest that a download, or MLflow's start, may take."""
BY_MLFLOW = """
import json, sys, yaml
import mlflow.pyfunc, numpy
from mlflow.pyfunc import get_model_dependencies
from mlflow.utils.virtualenv import _get_python_env
from pathlib import Path
model = mlflow.pyfunc.load_model(sys.argv[1])
numpy.save(sys.argv[3], model.predict(numpy.load(sys.argv[2])))
try:
    model.predict(numpy.load(sys.argv[2]).astype("float64"))
except mlflow.exceptions.MlflowException as exc:
    print("refused:", exc)
print(json.dumps({
    "metadata": model.metadata.metadata,
    "virtualenv": _get_python_env(Path(sys.argv[1])).to_dict(),
    "pip": Path(get_model_dependencies(sys.argv[1])).read_text().splitlines(),
    "conda": yaml.safe_load(Path(get_model_dependencies(sys.argv[1], format="conda")).read_text()),
}))
"""


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MLflow, whose dependencies have the versions of this environment."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("MLflow is installed by uv, which is not here")
    folder = tmp_path_factory.mktemp("mlflow")
    frozen = subprocess.run(  # noqa: S603 - fixed
        [uv, "pip", "freeze", "--python", sys.executable, "--exclude-editable"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (folder / "constraints.txt").write_text("".join(f"{line}\n" for line in frozen.splitlines() if "==" in line))
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder / "site")]
    command += ["--constraints", str(folder / "constraints.txt"), "mlflow-skinny==3.17.2", "pandas"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)  # noqa: S603 - fixed
    if done.returncode:
        pytest.skip(f"MLflow cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "site"


def batch_of(manifest: Manifest, count: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a batch of noise for a release's artifacts."""
    shape = [size if isinstance(size, int) else 1 for size in manifest.artifacts[0].inputs[0].shape[1:]]
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def test_mlflow_loads_and_runs_it(released: Release, tmp_path: Path, mlflow: Path) -> None:
    """By its own `load_model`, with the outputs of `load`; its signature refuses another type."""
    made = export_pyfunc(released.folder, tmp_path / "model")
    batch = batch_of(made.manifest)
    np.save(tmp_path / "batch.npy", batch)
    arguments = [str(made.folder), str(tmp_path / "batch.npy"), str(tmp_path / "outputs.npy")]
    done = subprocess.run(  # noqa: S603 - fixed
        [sys.executable, "-c", BY_MLFLOW, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{mlflow}"},
    )
    assert done.returncode == 0, done.stderr
    with load(released.folder) as model:
        assert np.array_equal(np.load(tmp_path / "outputs.npy"), model(batch))
    assert "refused:" in done.stdout
    known = json.loads(done.stdout.splitlines()[-1])
    assert [item["id"] for item in known["metadata"]["artifacts"]] == [entry.id for entry in made.manifest.artifacts]
    python = platform.python_version()
    assert known["pip"] == list(requirements_of(made.manifest.artifacts))
    assert known["virtualenv"] == {
        "python": python,
        "build_dependencies": ["pip"],
        "dependencies": [f"-r {REQUIREMENTS}"],
    }
    assert known["conda"]["dependencies"] == [f"python={python}", "pip", {"pip": known["pip"]}]


def test_the_folder_holds_the_release_as_it_is(released: Release, tmp_path: Path) -> None:
    """From its folder or its archive, evidence and all; a second export replaces the first."""
    for source in (released.folder, released.archive, released.folder):
        export_pyfunc(source, tmp_path / "model")
        assert listing(tmp_path / "model" / DATA) == listing(released.folder)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {MODEL, DATA, *ENVIRONMENT}


def test_the_signature_is_of_an_artifact_that_load_takes(
    released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow refuses batches by it, and `load` takes no pixels without being asked. None other is no model for it."""
    verified = verify_release(released.folder)
    plain = verified.artifacts[0]
    pixels = plain.inputs[0].model_copy(update={"name": "pixels", "dtype": "uint8"})
    other = plain.model_copy(update={"io": Io(input=ImageInput.UINT8), "inputs": (pixels,)})
    changed = verified.model_copy(update={"artifacts": (other, plain)})
    monkeypatch.setattr("model_artifacts.releases.exports.pyfunc.verify_release", lambda *_: changed)
    export_pyfunc(released.folder, tmp_path / "model")
    (given,) = json.loads(json.loads((tmp_path / "model" / MODEL).read_text())["signature"]["inputs"])
    assert given["tensor-spec"]["dtype"] == "float32"
    changed = verified.model_copy(update={"artifacts": (other,)})
    with pytest.raises(ReleaseError, match=r"(?s)no artifact that MLflow could load.*\(uint8\)"):
        export_pyfunc(released.folder, tmp_path / "model")


def test_what_fails_its_verification_is_not_exported(released: Release, tmp_path: Path) -> None:
    """The older export stays."""
    export_pyfunc(released.folder, tmp_path / "model")
    before = listing(tmp_path / "model")
    with (released.folder / "report.html").open("a") as file:
        file.write(" ")
    with pytest.raises(ReleaseError, match=r"report\.html"):
        export_pyfunc(released.folder, tmp_path / "model")
    assert listing(tmp_path / "model") == before


def test_other_files_are_never_replaced(released: Release, tmp_path: Path) -> None:
    """Nor the release itself."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="got other files in"):
        export_pyfunc(released.folder, tmp_path / "ours")
    for place in (released.folder, released.folder / "mlflow", released.folder.parent):
        with pytest.raises(UsageError, match="expected a folder beside the release"):
            export_pyfunc(released.folder, place)
    assert (tmp_path / "ours/thesis.tex").read_text() == "years"


def test_an_artifact_that_was_damaged_since_is_not_opened(released: Release, tmp_path: Path) -> None:
    """Its digest is checked when MLflow loads it."""
    made = export_pyfunc(released.folder, tmp_path / "model")
    for entry in made.manifest.artifacts:
        assert entry.file is not None
        path = made.folder / DATA / entry.file.path
        path.write_bytes(path.read_bytes()[:-1] + b"\0\1")
    with pytest.raises(RunError):
        ServedModel(made.folder / DATA)


def test_a_model_takes_a_batch_and_no_parameters(released: Release, tmp_path: Path) -> None:
    """As MLflow would pass them."""
    made = export_pyfunc(released.folder, tmp_path / "model")
    model = ServedModel(made.folder / DATA)
    assert model.predict(batch_of(made.manifest), {}).shape[0] == 2
    with pytest.raises(UsageError, match="expected no parameters, got temperature"):
        model.predict(batch_of(made.manifest), {"temperature": 1})


def test_the_command_writes_it_beside_the_release(released: Release, capsys: pytest.CaptureFixture[str]) -> None:
    """And says how to load it."""
    assert main(["mlflow", str(released.archive)]) == 0
    name = released.archive.name.removesuffix(".tar.zst")
    folder = released.archive.with_name(f"{name}-mlflow")
    assert (folder / MODEL).is_file()
    assert f'mlflow.pyfunc.load_model("{folder}")' in capsys.readouterr().out
