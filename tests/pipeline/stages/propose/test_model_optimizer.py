"""The process of Model Optimizer: another interpreter, which may be missing, wrong, old, broken or slow."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from model_artifacts.errors import QuantizeError
from pipeline.stages.propose import model_optimizer
from pipeline.stages.propose.model_optimizer import VARIABLE, Job, interpreter, quantize_elsewhere
from tests.support import model_optimizer as stand_ins
from tests.support.quantized_graphs import residual_graph

COPIES = """
import shutil


def quantize(source, mode, data, calibration_eps, output_path):
    assert mode == "int8" and calibration_eps == ["cpu"]
    assert {name: batch.shape for name, batch in data.items()} == {"image": (2, 3, 32, 32)}
    shutil.copy(source, output_path)
"""
FAILS = """
def quantize(*arguments, **settings):
    raise ValueError("no rule for the operator Frobnicate")
"""
WRITES_NOTHING = """
def quantize(*arguments, **settings):
    pass
"""
HANGS = """
import os
import re
import subprocess
import time
from pathlib import Path


def quantize(source, *arguments, **settings):
    child = subprocess.Popen(["sleep", "600"])
    Path(source).with_name("processes").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """The files of a call."""
    onnx.save(residual_graph(), tmp_path / "fp32.onnx")
    np.savez(tmp_path / "inputs.npz", image=np.zeros((2, 3, 32, 32), np.float32))
    return Job(tmp_path / "fp32.onnx", tmp_path / "inputs.npz", "int8", tmp_path / "quantized.onnx")


def refused(python: object, job: Job, seconds: float = 60.0) -> str:
    """Return the message of the error."""
    with pytest.raises(QuantizeError) as caught:
        quantize_elsewhere(str(python), job, seconds)
    return str(caught.value)


def test_another_interpreter_writes_the_graph(job: Job, tmp_path: Path) -> None:
    """It gets the inputs by their names, and tells its version."""
    assert quantize_elsewhere(str(stand_ins.interpreter(tmp_path / "env", COPIES)), job) == "0.47.0"
    assert job.output.read_bytes() == job.source.read_bytes()


def test_an_interpreter_without_it_is_told(job: Job) -> None:
    """This one has no Model Optimizer, and is started as the user's would be."""
    message = refused(sys.executable, job)
    assert "Model Optimizer is not installed" in message
    assert "No module named 'modelopt'" in message
    assert "uv pip install" in message


def test_an_interpreter_that_is_missing_is_told(job: Job, tmp_path: Path) -> None:
    """So is a file that may not be run."""
    for file in (tmp_path / "nowhere", job.source):
        message = refused(file, job)
        assert f"Model Optimizer is not installed: {file} cannot be started" in message
        assert VARIABLE in message


def test_a_command_that_is_no_python_is_told(job: Job, tmp_path: Path) -> None:
    """With its status and what it has printed."""
    message = refused(stand_ins.command(tmp_path / "other", "echo what is this; exit 3"), job)
    assert "does not run Python" in message
    assert "exit status 3: what is this" in message


def test_an_older_version_is_refused(job: Job, tmp_path: Path) -> None:
    """Its places were never tried."""
    message = refused(stand_ins.interpreter(tmp_path / "env", COPIES, "0.33.1"), job)
    assert "Model Optimizer 0.33.1 is too old" in message
    assert "expected: 0.47 or later" in message


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (FAILS, "exit status 1, no file: .*ValueError: no rule for the operator Frobnicate"),
        (WRITES_NOTHING, "exit status 0, no file"),
    ],
    ids=["fails", "writes nothing"],
)
def test_a_failure_has_its_reason(job: Job, tmp_path: Path, body: str, got: str) -> None:
    """The last lines that it printed say it."""
    with pytest.raises(QuantizeError, match=r"Model Optimizer 0.47.0 cannot quantise the graph") as caught:
        quantize_elsewhere(str(stand_ins.interpreter(tmp_path / "env", body)), job)
    assert re.search(got, caught.value.got)


def test_what_hangs_ends_with_all_that_it_has_started(job: Job, tmp_path: Path) -> None:
    """At the time limit."""
    env = stand_ins.interpreter(tmp_path / "env", HANGS)
    assert "Model Optimizer gave no result in 8 s" in refused(env, job, 8.0)
    for process in map(int, job.source.with_name("processes").read_text().split()):
        deadline = time.monotonic() + 30
        while _runs(process) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _runs(process)


def _runs(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_variable_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde is the home folder; without the variable this interpreter serves if it has Model Optimizer."""
    monkeypatch.setenv(VARIABLE, "~/env/bin/python")
    assert interpreter() == os.path.expanduser("~/env/bin/python")  # noqa: PTH111 - the other way to say it
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(QuantizeError, match="Model Optimizer is not installed") as caught:
        interpreter()
    assert "uv venv" in str(caught.value)
    monkeypatch.setattr(model_optimizer, "find_spec", lambda _: object())
    assert interpreter() == sys.executable
