"""The packages that MLflow installs to serve a release."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ReleaseError
from model_artifacts.host.environment import version
from model_artifacts.records import CPU_TARGET, Backend, BuiltFor, EngineFlavour
from model_artifacts.releases.exports.serving_environment import CONDA, VIRTUALENV, environment_files, requirements_of
from tests.support.manifests import entry

if TYPE_CHECKING:
    from model_artifacts.records import ManifestEntry

OURS = version("model-artifacts")


def engine(flavour: EngineFlavour, exact: str) -> BuiltFor:
    """Return the facts of an engine that this TensorRT built ahead of time."""
    return BuiltFor(flavour=flavour, version=exact, gpu=None, compute_capabilities=(90,))


CPU = entry("a", backend=Backend.ONNXRUNTIME, target=CPU_TARGET)
CUDA = entry("b", backend=Backend.ONNXRUNTIME, target="sm90")
RTX = entry("c", backend=Backend.TENSORRT, built_for=engine(EngineFlavour.TENSORRT_RTX, "1.4.0.76"))
LATER = entry("d", backend=Backend.TENSORRT, built_for=engine(EngineFlavour.TENSORRT_RTX, "1.6.1.120"))
DATACENTER = entry("e", backend=Backend.TENSORRT, built_for=engine(EngineFlavour.TENSORRT, "10.15.1.29"))


@pytest.mark.parametrize(
    ("entries", "extra", "libraries"),
    [
        ([CPU], "[onnxruntime]", ()),
        ([CPU, CUDA], "[onnxruntime-gpu]", ()),
        ([RTX, LATER], "", ("tensorrt-rtx==1.4.0.76",)),
        ([LATER, RTX, DATACENTER, CPU], "[onnxruntime]", ("tensorrt==10.15.1.29", "tensorrt-rtx==1.6.1.120")),
        ([], "", ()),
    ],
    ids=["processor", "cuda", "first-engine", "two-flavours", "nothing"],
)
def test_packages_are_those_of_the_artifacts(
    entries: list[ManifestEntry], extra: str, libraries: tuple[str, ...]
) -> None:
    """One TensorRT of each flavour, by its exact version, and one ONNX Runtime."""
    assert requirements_of(entries) == ("mlflow>=3,<4", f"model-artifacts{extra}=={OURS}", *libraries)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a checkout."""
    monkeypatch.setattr("model_artifacts.releases.exports.serving_environment.version", lambda _: "absent")
    assert requirements_of([]) == ("mlflow>=3,<4", "model-artifacts")


def test_both_managers_get_the_same_packages() -> None:
    """That of virtual environments by the file of requirements."""
    files = environment_files(["one==1", "two"])
    assert files["requirements.txt"] == "one==1\ntwo\n"
    assert json.loads(files[VIRTUALENV])["dependencies"] == ["-r requirements.txt"]
    assert json.loads(files[CONDA])["dependencies"][-1] == {"pip": ["one==1", "two"]}


@pytest.mark.parametrize("exact", ["1.0\n--index-url=http://x", "10.15.1.post1", "1.0 ; x", "1.", "", "absent"])
def test_a_version_that_is_no_version_is_refused(exact: str) -> None:
    """A line of its own in the files would be an option of pip."""
    wrong = entry("f", backend=Backend.TENSORRT, built_for=engine(EngineFlavour.TENSORRT, exact))
    with pytest.raises(ReleaseError, match=r"(?s)TensorRT that built m/cpu-x86_64/f.*expected: numbers"):
        requirements_of([RTX, wrong])
