"""TensorRT's own bindings and libraries, as far as a host without a GPU allows.

`TENSORRT_SITES` names folders, separated by colons, that hold the packages `tensorrt`, `tensorrt_bindings` and
`tensorrt_libs` of TensorRT 10 or 11. Without it, the installed `tensorrt` is used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_artifacts.host.environment import gpus, installed
from tests.support.tensorrt_site import Site

REPOSITORY = Path(__file__).parents[3]
FOLDERS = [folder for folder in os.environ.get("TENSORRT_SITES", "").split(os.pathsep) if folder]
SITES = FOLDERS or [""]


@pytest.fixture(scope="module", params=SITES, ids=[Path(folder).name or "installed" for folder in SITES])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The outcome of one TensorRT, in a process of its own."""
    folder: str = request.param
    if not folder and not installed("tensorrt"):
        pytest.skip("tensorrt is not installed, and TENSORRT_SITES names no folder with its bindings and libraries")
    paths = {"PYTHONPATH": [str(REPOSITORY), folder], "LD_LIBRARY_PATH": [f"{folder}/tensorrt_libs" if folder else ""]}
    joined = {name: os.pathsep.join(filter(None, (*values, os.environ.get(name)))) for name, values in paths.items()}
    done = subprocess.run(  # noqa: S603 - fixed arguments
        [sys.executable, "-m", "tests.support.tensorrt_site", tmp_path_factory.mktemp("site")],
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, **joined},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Site.model_validate_json(done.stdout)


def test_it_is_the_datacenters_tensorrt(site: Site) -> None:
    """TensorRT 10 and 11 take the types from the graph, and time tactics."""
    assert (site.strongly_typed, site.tunes) == (True, True)


def test_it_has_every_setting(site: Site) -> None:
    """Every setting that the adapters use by name is there."""
    assert site.missing == ()


@pytest.mark.skipif(bool(gpus()), reason="this host has a GPU, and the library creates a builder")
def test_the_lack_of_a_driver_is_explained(site: Site) -> None:
    """Without a driver the bindings raise a TypeError; the error has the library's own words instead."""
    assert site.error.startswith("the builder cannot be created")
    assert "CUDA initialization failure" in site.error


@pytest.mark.skipif(not gpus(), reason="the library creates no builder without a GPU")
def test_every_setting_is_applied(site: Site) -> None:
    """Every setting is kept by the library, or has the reason why not."""
    refused = {setting.name for setting in site.settings if not setting.applied}

    assert refused <= {"lean_runtime", "build_route"}
    assert ("build_route" in refused) is (site.build_routes == "")
