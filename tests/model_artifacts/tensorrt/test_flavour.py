"""Flavours of TensorRT, and the log of a build."""

from __future__ import annotations

import importlib
import io
import re
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from model_artifacts.errors import UnsupportedError, is_retryable
from model_artifacts.records import EngineFlavour
from model_artifacts.tensorrt.flavour import BuildLog, Flavour, load_flavour, weight_warnings


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    """The installed TensorRT-RTX."""
    return load_flavour(EngineFlavour.TENSORRT_RTX)


def test_flavour_knows_its_version(flavour: Flavour) -> None:
    """The flavour names itself and its full version."""
    assert flavour.name is EngineFlavour.TENSORRT_RTX
    assert str(flavour) == f"tensorrt_rtx {flavour.version}"
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", flavour.version)


def test_tensorrt_rtx_is_strongly_typed_and_builds_ahead_of_time(flavour: Flavour) -> None:
    """Precisions are the graph's, and nothing is timed."""
    assert (flavour.strongly_typed, flavour.tunes) == (True, False)


@pytest.mark.parametrize(
    ("flags", "strongly"),
    [(["EXPLICIT_BATCH"], False), (["EXPLICIT_BATCH", "STRONGLY_TYPED"], True), (["STRONGLY_TYPED"], True), ([], True)],
    ids=["8.6", "10", "11", "without the deprecated flag"],
)
def test_networks_are_strongly_typed_from_10_on(flags: list[str], *, strongly: bool) -> None:
    """TensorRT 11 deprecates the flag; a version without it types strongly all the same."""
    module: Any = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(**dict.fromkeys(flags, 0)))

    assert Flavour(EngineFlavour.TENSORRT, "0", module).strongly_typed is strongly


@pytest.mark.parametrize(
    ("name", "group"),
    [
        (EngineFlavour.TENSORRT_RTX, "`tensorrt-rtx` of .* for building, the dependency group `rtx`"),
        (EngineFlavour.TENSORRT, "`tensorrt` of .* for building, the dependency group `datacenter`"),
    ],
)
@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'x'"), OSError("libnvinfer.so.8: not found")])
def test_flavour_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, name: EngineFlavour, group: str, error: Exception
) -> None:
    """The message names the reason and the package to install if the module or its libraries are missing."""

    def missing(_: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(UnsupportedError, match=rf"(?s){name.value} is not installed.*{re.escape(str(error))}.*{group}"):
        load_flavour(name)


@pytest.mark.parametrize("there", [True, False])
def test_flavour_that_cannot_be_imported_may_be_mended_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    """An installed flavour's missing library is retryable, because no key has it; an absent flavour is not."""

    def missing(_: str) -> None:
        raise OSError("libcudart.so.13: not found")

    monkeypatch.setattr("model_artifacts.tensorrt.flavour.installed", lambda _: there)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UnsupportedError) as caught:
        load_flavour(EngineFlavour.TENSORRT)
    assert is_retryable(caught.value) is there


# The log


def test_log_from_many_threads() -> None:
    """No line is lost or mixed with another where many threads write."""
    log = BuildLog()
    start = threading.Barrier(8)

    def write(name: int) -> None:
        start.wait()
        for number in range(500):
            log.add("INFO", f"{name} {number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = log.text().splitlines()
    for name in range(8):
        own = [line.split()[-1] for line in lines if line.split()[1] == str(name)]
        assert own == [str(number) for number in range(500)]


def test_log_tells_errors_from_the_rest() -> None:
    """Errors are the builder's own and its internal ones."""
    log = BuildLog()
    for severity in ("INFO", "ERROR", "WARNING", "INTERNAL_ERROR"):
        log.add(severity, severity.lower())

    assert log.errors() == ["error", "internal_error"]


def test_log_finds_the_last_match() -> None:
    """A search gives the last line that matches."""
    log = BuildLog()
    for number in (1, 2):
        log.add("INFO", f"need {number} bytes")

    found = log.search(r"need (\d)")

    assert found
    assert found[1] == "2"


def test_log_writes_every_line_at_once() -> None:
    """A file that the log is given has each line before the next is said, so that a crash loses none."""
    file = io.StringIO()
    log = BuildLog(file)

    log.add("INFO", "first")

    assert file.getvalue() == log.text() == "INFO           first\n"


def test_log_finds_nothing() -> None:
    """A search without a match gives nothing."""
    assert BuildLog().search("anything") is None


# What a builder says of weights. The lines are those of TensorRT 8.4, as NVIDIA/TensorRT#2232 quotes them, and of 8.6.


_LOG_8_4 = """\
[08/11/2022-09:48:36] [TRT] [W] Weights [name=Conv_540.weight] had the following issues when converted to FP16:
[08/11/2022-09:48:36] [TRT] [W]  - Subnormal FP16 values detected. 
[08/11/2022-09:48:36] [TRT] [W] If this is not the desired behavior, please modify the weights or retrain.
[08/11/2022-09:48:36] [TRT] [W] Weights [name=Conv_540.weight] had the following issues when converted to FP16:
[08/11/2022-09:48:36] [TRT] [W]  - Subnormal FP16 values detected. 
[08/11/2022-09:48:36] [TRT] [W] Weights [name=Conv_1.weight] had the following issues when converted to FP16:
[08/11/2022-09:48:36] [TRT] [W]  - Subnormal FP16 values detected. 
"""  # noqa: W291 - as it was printed
_LOG_8_6 = """\
WARNING        TensorRT encountered issues when converting weights between types and that could affect accuracy.
WARNING        Check verbose logs for the list of affected weights.
WARNING        - 20 weights are affected by this issue: Detected subnormal FP16 values.
WARNING        - 1 weights are affected by this issue: Detected values less than smallest positive FP16 subnormal value.
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (_LOG_8_4, [("Subnormal FP16 values detected", 2)]),
        (
            _LOG_8_6,
            [
                ("Detected subnormal FP16 values", 20),
                ("Detected values less than smallest positive FP16 subnormal value", 1),
            ],
        ),
        ("INFO           - nothing of weights\n", []),
        ("", []),
    ],
)
def test_warnings_about_weights_are_counted(log: str, said: list[tuple[str, int]]) -> None:
    """Warnings are counted by issue and weight, in the formats of TensorRT 8.4 and 8.6."""
    assert [(warning.issue, warning.weights) for warning in weight_warnings(log)] == said
