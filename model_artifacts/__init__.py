"""Loads, resolves, verifies and moves artifacts; imports neither torch nor the build half."""

TYPE_CHECKING = False  # as type checkers know it; `python -m` would take `typing` from the current folder

if TYPE_CHECKING:
    from model_artifacts.deployment.loading import load, resolve, this_host
    from model_artifacts.deployment.model import Model
    from model_artifacts.deployment.predictions import ClassScore, DetectedBox, Prediction
    from model_artifacts.deployment.resolution import Requirements, Resolution
    from model_artifacts.errors import ArtifactError, BusyError
    from model_artifacts.records import DeploymentHost, Precision
    from model_artifacts.releases.signature import Verifier
    from model_artifacts.releases.store import pull, push
    from model_artifacts.serving.batching import Batching

__all__ = [
    "ArtifactError",
    "Batching",
    "BusyError",
    "ClassScore",
    "DeploymentHost",
    "DetectedBox",
    "Model",
    "Precision",
    "Prediction",
    "Requirements",
    "Resolution",
    "Verifier",
    "load",
    "pull",
    "push",
    "resolve",
    "this_host",
]

__version__ = "0.1.0"

_HOMES = {
    "DeploymentHost": "records",
    "Model": "deployment.model",
    "ArtifactError": "errors",
    "Batching": "serving.batching",
    "BusyError": "errors",
    "ClassScore": "deployment.predictions",
    "DetectedBox": "deployment.predictions",
    "Precision": "records",
    "Prediction": "deployment.predictions",
    "Resolution": "deployment.resolution",
    "Verifier": "releases.signature",
    "Requirements": "deployment.resolution",
    "load": "deployment.loading",
    "pull": "releases.store",
    "push": "releases.store",
    "resolve": "deployment.loading",
    "this_host": "deployment.loading",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
