"""Builds, validates, benchmarks and lists the deployable artifacts of a torch model.

`python -m pipeline --help` explains the stages; `doit list` shows them in order. A deployment takes what is named here,
which needs neither torch nor doit: `with pipeline.load("artifacts/") as model: logits = model(batch)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.deployment import Model, load, resolve, this_host
    from pipeline.errors import PipelineError
    from pipeline.records import DeploymentHost, Precision
    from pipeline.release.signature import Verifier
    from pipeline.resolution import Resolution, Wish
    from pipeline.store import pull, push

__all__ = [
    "DeploymentHost",
    "Model",
    "PipelineError",
    "Precision",
    "Resolution",
    "Verifier",
    "Wish",
    "load",
    "pull",
    "push",
    "resolve",
    "this_host",
]

__version__ = "0.1.0"

_HOMES = {
    "DeploymentHost": "records",
    "Model": "deployment",
    "PipelineError": "errors",
    "Precision": "records",
    "Resolution": "resolution",
    "Verifier": "release.signature",
    "Wish": "resolution",
    "load": "deployment",
    "pull": "store",
    "push": "store",
    "resolve": "deployment",
    "this_host": "deployment",
}


def __getattr__(name: str) -> object:
    """Import what a deployment takes when it is taken: `doit list` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - the same

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
