"""The adapter on the genuine Torch-TensorRT in its dry run, without engines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model_artifacts.host.environment import installed_torch_tensorrt
from pipeline.adapters.torch_tensorrt_builder import times_tactics
from tests.support.torch_tensorrt_dry_run import PRECISIONS, PROFILES, SIZED, Report

REPOSITORY = Path(__file__).parents[3]
AHEAD = [f"tiny {precision.value} {label}" for precision in PRECISIONS for label in PROFILES]
IN_TIME = [f"in time {precision.value}" for precision in PRECISIONS]
OF_SIZES = [f"{kind} of sizes" for kind in SIZED]


@pytest.fixture(scope="module")
def report() -> Report:
    """The outcome of driving the adapter in a process of its own."""
    if installed_torch_tensorrt().version == "absent":
        pytest.skip("Torch-TensorRT is not installed here")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.torch_tensorrt_dry_run"],
        check=False,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Report.model_validate_json(done.stdout.splitlines()[-1])


def test_the_library_that_is_installed_can_be_imported(report: Report) -> None:
    """The installed library can be imported without a driver, despite the flaws of its wheel."""
    assert report.version == installed_torch_tensorrt().version


@pytest.mark.parametrize("name", [*AHEAD, *IN_TIME, *OF_SIZES, "resnet18 fp16 range"])
def test_all_of_the_model_is_one_engine(report: Report, name: str) -> None:
    """Every precision and profile, ahead of time and just in time, leaves nothing to PyTorch."""
    assert (report.cases[name].segments, report.cases[name].stayed) == (1, ())


@pytest.mark.parametrize("name", AHEAD)
def test_the_library_takes_every_setting(report: Report, name: str) -> None:
    """All settings are applied, except explicit typing from 2.13 on and those that its TensorRT ignores."""
    ignored = set() if times_tactics() else {"optimization_level", *(["disable_tf32"] if "fp32" in name else [])}
    ignored |= {"use_explicit_typing"} - set(report.known)
    assert {setting.name for setting in report.cases[name].settings if not setting.applied} == ignored


@pytest.mark.parametrize("name", IN_TIME)
def test_what_runs_just_in_time_is_the_model(report: Report, name: str) -> None:
    """The library's form of the model computes the model's logits, and holds its weights."""
    assert (report.cases[name].same_logits, report.cases[name].inputs) == (True, 1)


def test_every_case_is_judged(report: Report) -> None:
    """Every driven case is in one of the lists of these tests."""
    assert set(report.cases) == {*AHEAD, *IN_TIME, *OF_SIZES, "resnet18 fp16 range"}
