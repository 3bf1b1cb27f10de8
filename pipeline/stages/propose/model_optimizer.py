"""FP32 ONNX file → the ONNX file that Model Optimizer makes of it, by another interpreter, within a time limit.

`nvidia-modelopt[onnx]` asks for other versions of onnx and of ONNX Runtime than this project, so that it has an
environment of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from model_artifacts.errors import QuantizeError
from pipeline.system.isolation import last_lines
from pipeline.system.processes import kill_session

VARIABLE = "MODEL_OPTIMIZER_PYTHON"
"""The environment variable that names the interpreter: a fact of this machine, and so in no configuration."""
LEAST = (0, 47)
"""The first version that was tried here."""
SECONDS = 600.0
"""Time limit in seconds, a choice: ResNet18 takes 10 on two cores."""
INSTALL = (
    "make an environment for it: `uv venv ~/model-optimizer --python 3.12`, `uv pip install --python "
    f"~/model-optimizer/bin/python 'nvidia-modelopt[onnx]'`; then set {VARIABLE}=~/model-optimizer/bin/python"
)
_SCRIPT = Path(__file__).with_name("script.py")
_ANSWER = TypeAdapter(dict[str, str])


class Job(NamedTuple):
    """Files of one call."""

    source: Path
    """The FP32 graph. Model Optimizer writes intermediate files beside it."""
    inputs: Path
    """The arrays of the graph's inputs by name, an .npz archive."""
    precision: str
    """`int8` or `fp8`."""
    output: Path
    """The quantised graph, which is written."""


def interpreter() -> str:
    """Return the interpreter that has Model Optimizer: that of the environment variable, else this one if it has it.

    Raises:
        QuantizeError: there is none.
    """
    if named := os.environ.get(VARIABLE, "").strip():
        return str(Path(named).expanduser())
    if find_spec("modelopt"):
        return sys.executable
    raise QuantizeError(
        f"Model Optimizer is not installed: {VARIABLE} names no interpreter that has it",
        expected=f"{VARIABLE}=/path/to/an/environment/bin/python",
        fix=INSTALL,
    )


def quantize_elsewhere(python: str, job: Job, seconds: float = SECONDS) -> str:
    """Quantise a graph by Model Optimizer, with its defaults, on the processor.

    Args:
        python: the interpreter that has it.
        job: the files.
        seconds: the time limit.

    Returns:
        Model Optimizer's version.

    Raises:
        QuantizeError: the interpreter cannot be started or has no Model Optimizer, or an older one than was tried here;
            or that failed, took too long, or wrote nothing. The message has the last lines of what it printed.
    """
    answer, log = job.output.with_suffix(".json"), job.output.with_suffix(".log")
    # Isolated, so that it sees neither this project's packages nor the modules beside the script.
    command = [python, "-I", str(_SCRIPT), *map(str, job), str(answer)]
    status = _ran(command, log, seconds)
    found = _answered(answer)
    said = "; ".join(last_lines(log)) or "nothing"
    if reason := found.get("missing"):
        raise QuantizeError(f"Model Optimizer is not installed: {python} says: {reason}", where=VARIABLE, fix=INSTALL)
    version = found.get("version", "")
    if not version:
        raise QuantizeError(
            "the interpreter for Model Optimizer does not run Python",
            where=f"{VARIABLE}={python}",
            expected="the python of an environment with nvidia-modelopt[onnx]",
            got=f"exit status {status}: {said}",
            fix=INSTALL,
        )
    if _release(version) < LEAST:
        least = ".".join(map(str, LEAST))
        raise QuantizeError(
            f"Model Optimizer {version} is too old",
            where=f"{VARIABLE}={python}",
            expected=f"{least} or later",
            got=version,
            fix=f"`uv pip install --python {python} 'nvidia-modelopt[onnx]>={least}'`",
        )
    if status or not job.output.is_file():
        raise QuantizeError(
            f"Model Optimizer {version} cannot quantise the graph",
            where=job.precision,
            expected="exit status 0, and an ONNX file",
            got=f"exit status {status}, {'a' if job.output.is_file() else 'no'} file: {said}",
            fix="leave `quantization.placement` at auto",
        )
    return version


def _ran(command: list[str], log: Path, seconds: float) -> int:
    """Run a command in a session of its own, with all output in the log; return its exit status."""
    try:
        with (
            log.open("wb") as stream,
            subprocess.Popen(  # noqa: S603 - the user's interpreter, a script of this project, and files
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, text=True, start_new_session=True
            ) as process,
        ):
            try:
                return process.wait(seconds)
            except BaseException as exc:  # also an interrupt: what it has started ends with it
                kill_session(process)
                if isinstance(exc, subprocess.TimeoutExpired):
                    raise QuantizeError(
                        f"Model Optimizer gave no result in {seconds:g} s",
                        got="; ".join(last_lines(log)) or "nothing",
                        fix="leave `quantization.placement` at auto",
                    ) from exc
                raise
    except OSError as exc:
        raise QuantizeError(
            f"Model Optimizer is not installed: {command[0]} cannot be started",
            where=VARIABLE,
            expected="the python of an environment with nvidia-modelopt[onnx]",
            got=exc.strerror or str(exc),
            fix=INSTALL,
        ) from exc


def _answered(file: Path) -> dict[str, str]:
    """Return the script's answer; nothing if it never began."""
    try:
        return _ANSWER.validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; none of a text that has no such numbers."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else ()
