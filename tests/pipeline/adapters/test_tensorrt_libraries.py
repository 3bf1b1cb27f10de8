"""TensorRT's optional libraries, and the messages about those that are missing."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.records import EngineFlavour
from model_artifacts.tensorrt.flavour import BuildLog, Flavour
from pipeline.adapters import tensorrt_libraries
from pipeline.adapters.tensorrt_libraries import lean_runtime_version, missing_lean_runtime, missing_library

if TYPE_CHECKING:
    from pathlib import Path

ABSENT = "cannot open shared object file: No such file or directory"


def flavour_of(version: str) -> Flavour:
    """Return a TensorRT of a version; its module is not used."""
    nothing: Any = None
    return Flavour(EngineFlavour.TENSORRT, version, nothing)


@pytest.fixture(autouse=True)
def _cuda_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed bindings are those for CUDA 13."""
    monkeypatch.setattr(tensorrt_libraries, "cuda_major", lambda _: 13)


@pytest.mark.parametrize(
    ("name", "says", "fix"),
    [
        (
            "libnvinfer_builder_resource_sm90.so.10.15.1",
            "the builder's kernels for SM 90",
            "`tensorrt-cu13-libs` in version 10.15.1,",
        ),
        (
            "libnvinfer_builder_resource.so.10.7.0",
            "the builder's kernels\n",
            "`tensorrt-cu13-libs` in version 10.7.0,",
        ),
        (
            "libnvinfer_lean.so.10",
            "the lean runtime, which `version_compatible: true` puts into the engine",
            "`tensorrt-lean-cu13-libs` in the version of the bindings,",
        ),
        ("libnvinfer_plugin.so.10", "a library of TensorRT", "`tensorrt-cu13-libs` in the version of the bindings,"),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "createInferBuilder: Error Code 6: API Usage Error (Unable to load library: {0}: {0}: {1})",
        "Error Code 6 (Unable to load library: {0}: {0}: {1} In Impl at /_src/runtime/dispatch/libLoader.cpp:305)",
    ],
)
def test_a_missing_library_is_named_with_its_package(name: str, says: str, fix: str, form: str) -> None:
    """The message has the library, its purpose, the loader's own words and the package to install."""
    log = BuildLog()
    log.add("ERROR", form.format(name, ABSENT))
    error = str(missing_library(log))

    assert f"{name} cannot be loaded: {says}" in error
    assert fix in error
    assert re.search(rf"got: +{re.escape(ABSENT)}\n", error)


def test_the_message_of_8_has_no_reason() -> None:
    """TensorRT 8 names the library alone."""
    log = BuildLog()
    log.add("ERROR", "Error Code 6: Internal Error (Unable to load library: libnvinfer_builder_resource.so.8.4.1)")

    assert "libnvinfer_builder_resource.so.8.4.1 cannot be loaded: the builder's kernels" in str(missing_library(log))


def test_other_errors_name_no_library() -> None:
    """A log without the message is no matter of libraries."""
    log = BuildLog()
    log.add("ERROR", "Could not infer output types for operation")

    assert missing_library(log) is None


@pytest.mark.parametrize(("version", "number"), [("10.15.1.29", 101501), ("8.6.1", 8601), ("11.2.1.2", 110201)])
def test_a_lean_runtime_of_the_same_version_will_do(monkeypatch: pytest.MonkeyPatch, version: str, number: int) -> None:
    """The library's number is compared with the version of the bindings."""
    monkeypatch.setattr(tensorrt_libraries, "lean_runtime_version", lambda _: number)

    assert missing_lean_runtime(flavour_of(version)) == ""


def test_a_lean_runtime_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with the lean runtime of another version could not be run."""
    monkeypatch.setattr(tensorrt_libraries, "lean_runtime_version", lambda _: 101600)

    assert missing_lean_runtime(flavour_of("10.15.1.29")) == (
        "libnvinfer_lean.so.10 is of another version (101600); install `tensorrt-lean-cu13-libs==10.15.1.29`"
    )


def test_a_lean_runtime_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason has the loader's words and the package to install."""

    def absent(name: str) -> int:
        raise OSError(f"{name}: {ABSENT}")

    monkeypatch.setattr(tensorrt_libraries, "lean_runtime_version", absent)

    assert missing_lean_runtime(flavour_of("10.6.0")) == (
        f"libnvinfer_lean.so.10 cannot be loaded (libnvinfer_lean.so.10: {ABSENT}); "
        "install `tensorrt-lean-cu13-libs==10.6.0`"
    )


def test_packages_of_8_name_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages of TensorRT 8.6 have no CUDA in their names."""
    monkeypatch.setattr(tensorrt_libraries, "cuda_major", lambda _: None)
    monkeypatch.setattr(tensorrt_libraries, "lean_runtime_version", lambda _: 0)

    assert missing_lean_runtime(flavour_of("8.6.1")).endswith("install `tensorrt-lean-libs==8.6.1`")


def test_a_lean_runtime_is_looked_for_on_the_loaders_path() -> None:
    """Without the package, the loader searches, and its error is passed on."""
    with pytest.raises(OSError, match=r"libnvinfer_lean\.so\.99"):
        lean_runtime_version("libnvinfer_lean.so.99")


def test_a_lean_runtime_is_looked_for_in_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package need not be on the loader's path."""
    package = tmp_path / "tensorrt_lean_libs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "libnvinfer_lean.so.99").write_bytes(b"no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt_lean_libs", raising=False)

    with pytest.raises(OSError, match=re.escape(str(package))):
        lean_runtime_version("libnvinfer_lean.so.99")
