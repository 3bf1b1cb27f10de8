"""The outcome of the adapter on NVIDIA's own bindings of three versions of TensorRT, without a GPU."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.tensorrt_contract import ALL, SYMBOLS
from tests.support.tensorrt_drive import Report
from tests.support.wheels import Wheel, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stubs of TensorRT's libraries: one library under all of their names."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler (cc, gcc) for the stub libraries")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    subprocess.run(  # noqa: S603 - fixed arguments
        [compiler, "-shared", "-fPIC", "-o", folder / "stub.so", folder / "stub.c"], check=True, capture_output=True
    )
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers"):
        for bindings in ALL:
            (folder / f"lib{library}.so.{bindings.major}").symlink_to("stub.so")
    return folder


@pytest.fixture(scope="session")
def drive(stubs: Path, wheels: Path) -> Callable[[Wheel], subprocess.CompletedProcess[str] | str]:
    """A function that drives the adapter on a flavour, once a session; it returns the reason where it cannot."""

    @functools.cache
    def driven(bindings: Wheel) -> subprocess.CompletedProcess[str] | str:
        folder = unpacked(bindings, wheels)
        if isinstance(folder, str):
            return folder
        libraries = os.pathsep.join(filter(None, (str(stubs), os.environ.get("LD_LIBRARY_PATH"))))
        return subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-m", "tests.support.tensorrt_drive", folder],
            check=False,
            cwd=REPOSITORY,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            capture_output=True,
            text=True,
        )

    return driven


@pytest.fixture(params=ALL, ids=str)
def bindings(request: pytest.FixtureRequest) -> Wheel:
    """Every flavour, unless a test says which."""
    chosen: Wheel = request.param
    return chosen


@pytest.fixture
def report(bindings: Wheel, drive: Callable[[Wheel], subprocess.CompletedProcess[str] | str]) -> Report:
    """The outcome of the adapter on a flavour's genuine bindings, in a process of their own."""
    done = drive(bindings)
    if isinstance(done, str):
        pytest.skip(done)
    assert done.returncode == 0, done.stderr
    return Report.model_validate_json(done.stdout)
