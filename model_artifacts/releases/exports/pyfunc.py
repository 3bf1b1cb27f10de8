"""A release as a folder that MLflow loads as a model of its flavour `python_function`; and what loads it there.

    MLmodel             the flavour, the signature of inputs and outputs, the release's artifacts; JSON, which is YAML
    requirements.txt    this package, MLflow, and the libraries of the artifacts; conda.yaml and python_env.yaml name it
    release/            the release, whole or as it was pulled

MLflow imports this module by its name and calls `_load_pyfunc`, which chooses an artifact for the machine as `load`
does. Source: "Filesystem format" of docs/latest/python_api/mlflow.pyfunc.html.
"""

from __future__ import annotations

import atexit
import json
import platform
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.deployment.loading import load
from model_artifacts.errors import ReleaseError, UsageError, listed
from model_artifacts.host.files import replacing_folder
from model_artifacts.releases.archive import unpacked
from model_artifacts.releases.exports.serving_environment import CONDA, VIRTUALENV, environment_files, requirements_of
from model_artifacts.releases.verification import verify_release

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from model_artifacts.deployment.model import Model
    from model_artifacts.records import Manifest, ManifestEntry, TensorSpec
    from model_artifacts.releases.signature import Verifier
    from model_artifacts.sessions.onnx import Outputs

MODEL, DATA = "MLmodel", "release"
"""Names in the folder, as MLflow reads the first."""


class Exported(NamedTuple):
    """A written folder."""

    folder: Path
    manifest: Manifest
    """The release's manifest."""


def export_pyfunc(release: Path, folder: Path, verifier: Verifier | None = None) -> Exported:
    """Verify a release, then write it as a folder for MLflow, replacing an older one.

    Args:
        release: the release's folder, also as `pull` has installed it, or its archive.
        folder: the folder to write: absent, empty, or one that this function wrote before.
        verifier: the required signature; None checks no signature.

    Raises:
        ReleaseError: the release fails its verification, or has no artifact with the network's own input and output.
        UsageError: the folder holds other files, or is the release's own or inside of it.
        StorageError: the folder cannot be written.
    """
    _check_replaceable(folder, release)
    with unpacked(release) as source:
        manifest = verify_release(source, verifier)
        plain = [entry for entry in manifest.artifacts if entry.io.is_plain]
        if not plain:
            raise ReleaseError(
                "the release has no artifact that MLflow could load",
                expected="one with the network's own input and output, which `load` takes without being asked",
                got=listed([f"{entry.id} ({', '.join(entry.io.words)})" for entry in manifest.artifacts]) or "none",
                fix="release a finished build",
            )
        with replacing_folder(folder) as scratch:
            shutil.copytree(source, scratch / DATA)
            verify_release(scratch / DATA, verifier)  # what was copied, not what was there
            for name, text in environment_files(requirements_of(plain)).items():
                (scratch / name).write_text(text, encoding="utf-8")
            (scratch / MODEL).write_text(json.dumps(_described(manifest), indent=1) + "\n", encoding="utf-8")
    return Exported(folder, manifest)


def _check_replaceable(folder: Path, release: Path) -> None:
    """Check that a folder may be replaced.

    Raises:
        UsageError: it holds other files, or the release lies in it or around it.
    """
    inner, outer = folder.resolve(), release.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise UsageError(f"expected a folder beside the release, got {folder}")
    if folder.is_dir() and any(folder.iterdir()) and not ((folder / MODEL).is_file() and (folder / DATA).is_dir()):
        raise UsageError(f"expected an empty folder or an older export, got other files in {folder}")


def _described(manifest: Manifest) -> dict[str, object]:
    """Return the content of `MLmodel`."""
    first = next(entry for entry in manifest.artifacts if entry.io.is_plain)  # `load` takes no other one
    return {
        "artifact_path": "model",
        "flavors": {
            "python_function": {
                "data": DATA,
                "env": {"conda": CONDA, "virtualenv": VIRTUALENV},
                "loader_module": __name__,
                "python_version": platform.python_version(),
            }
        },
        "metadata": {"model": first.model, "artifacts": [_facts(entry) for entry in manifest.artifacts]},
        "signature": {
            "inputs": json.dumps([_tensor(item, named=len(first.inputs) > 1) for item in first.inputs]),
            "outputs": json.dumps([_tensor(item, named=len(first.outputs) > 1) for item in first.outputs]),
        },
        "utc_time_created": manifest.built_at.strftime("%Y-%m-%d %H:%M:%S.%f"),
    }


def _facts(entry: ManifestEntry) -> dict[str, str]:
    """Return what a person chooses an artifact by; `load` reads the release's own manifest."""
    built = entry.built_for
    facts = {
        "id": entry.id,
        "backend": entry.backend.value,
        "precision": entry.precision.value,
        "target": entry.target,
        "tensorrt": f"{built.flavour.value} {built.version}" if built else "",
        "gpu": (built.gpu if built else None) or (entry.gpu.name if entry.gpu else ""),
    }
    return {name: value for name, value in facts.items() if value}


def _tensor(spec: TensorSpec, *, named: bool) -> dict[str, object]:
    """Return a tensor as MLflow's signature has it: the batch, and whatever is no number, of any size."""
    shape = [-1, *(size if isinstance(size, int) else -1 for size in spec.shape[1:])]
    tensor: dict[str, object] = {"type": "tensor", "tensor-spec": {"dtype": spec.dtype, "shape": shape}}
    return {"name": spec.name, **tensor} if named else tensor


class ServedModel:
    """The model that MLflow calls. It stays open until the process ends."""

    def __init__(self, folder: Path) -> None:
        """Choose an artifact for this machine, check its digest, and open it.

        Args:
            folder: the release's folder.

        Raises:
            ResolveError: no artifact suits.
            RunError: the artifact's file is damaged, or cannot be run.
        """
        self._open = ExitStack()
        self.model: Model = self._open.enter_context(load(folder))
        atexit.register(self._open.close)

    def predict(self, model_input: npt.NDArray[np.float32], params: Mapping[str, object] | None = None) -> Outputs:
        """Return the outputs of images that are preprocessed already.

        Args:
            model_input: float32 (batch, channels, height, width).
            params: none; the model takes no parameters.

        Returns:
            float32 (batch, classes), and so on, as `Model.__call__` has it.

        Raises:
            UsageError: there are parameters.
            RunError: the artifact does not take such a batch.
        """
        if params:
            raise UsageError(f"expected no parameters, got {', '.join(params)}")
        return self.model(model_input)


def _load_pyfunc(path: str) -> ServedModel:
    """Return the model in a folder, as MLflow asks for it."""
    return ServedModel(Path(path))
