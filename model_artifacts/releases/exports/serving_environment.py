"""A release → the files that name the packages to serve it with, as MLflow's environment managers read them. Pure.

Source: "Additional Logged Files" and "Environment Variables" of docs/latest/ml/model, and `mlflow.utils.environment`.
"""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, shortened
from model_artifacts.host.environment import version
from model_artifacts.records import CPU_TARGET, EngineFlavour

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model_artifacts.records import ManifestEntry

REQUIREMENTS, CONDA, VIRTUALENV = "requirements.txt", "conda.yaml", "python_env.yaml"
"""Names in the folder, as MLflow reads them."""
_MLFLOW = "mlflow>=3,<4"
"""The server that calls the model; the tests load a model by 3.17."""
_PIP = "pip"
_DISTRIBUTIONS = {EngineFlavour.TENSORRT: "tensorrt", EngineFlavour.TENSORRT_RTX: "tensorrt-rtx"}


def requirements_of(entries: Sequence[ManifestEntry]) -> tuple[str, ...]:
    """Return the packages that run a release's artifacts, as pip wants them.

    An engine wants the TensorRT that built it. Of several versions, that of the first engine is taken, because an
    environment has one. Only one ONNX Runtime fits, too: that with CUDA, unless all ONNX files are for a processor.
    torch and Torch-TensorRT are not among them: they come from an index of their own.

    Args:
        entries: the artifacts that may be loaded, the best first.

    Raises:
        ReleaseError: the version of an engine's TensorRT has anything but numbers. Files for pip would hold it.
    """
    ours = version("model-artifacts")
    onnx = [entry.target for entry in entries if entry.backend.is_onnxruntime]
    extra = f"[onnxruntime{'' if set(onnx) == {CPU_TARGET} else '-gpu'}]" if onnx else ""
    engines: dict[EngineFlavour, str] = {}
    for entry in entries:
        if entry.built_for:
            if not entry.built_for.numbers:
                raise ReleaseError(
                    f"the version of TensorRT that built {entry.id} is none that pip could be told",
                    expected="numbers between points, such as 10.15.1.29",
                    got=ascii(shortened(entry.built_for.version)),
                    fix="build the engine with a released TensorRT; if the manifest was changed, do not use it",
                )
            engines.setdefault(entry.built_for.flavour, entry.built_for.version)
    libraries = (f"{_DISTRIBUTIONS[flavour]}=={exact}" for flavour, exact in sorted(engines.items()))
    pinned = f"=={ours}" if ours != "absent" else ""  # a checkout that is not installed
    return (_MLFLOW, f"model-artifacts{extra}{pinned}", *libraries)


def environment_files(requirements: Sequence[str]) -> Mapping[str, str]:
    """Return the content of each file by its name. JSON is YAML, and needs no package.

    Args:
        requirements: the packages, as pip wants them. Python is this one, because both formats ask for a version.
    """
    python = platform.python_version()
    virtualenv = {"python": python, "build_dependencies": [_PIP], "dependencies": [f"-r {REQUIREMENTS}"]}
    packages = [f"python={python}", _PIP, {_PIP: [*requirements]}]
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": packages}
    return {
        REQUIREMENTS: "".join(f"{line}\n" for line in requirements),
        VIRTUALENV: json.dumps(virtualenv, indent=1) + "\n",
        CONDA: json.dumps(conda, indent=1) + "\n",
    }
