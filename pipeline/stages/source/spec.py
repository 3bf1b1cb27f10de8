"""The stage `source`: the weights and the preprocessing of the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from model_artifacts.host.factory_code import code_of
from model_artifacts.records import WeightsOrigin
from pipeline.planning.keys import code_version, file_digest, make_key
from pipeline.planning.spec import MODEL, StageSpec
from pipeline.records import SourceRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import Key
    from pipeline.planning.project import Project

VERSION = 2
"""Raise it when the same configuration gives other weights. Since 2 torchvision builds its networks."""


def source_key(project: Project, _model: str) -> Key:
    """Return the key of the weights."""
    model = project.config.model
    return make_key(
        factory=model.factory,
        factory_code=code_of(model.factory),
        weights=model.weights.file,
        checkpoint=file_digest(project, model.weights.file) if model.weights.is_file else None,
        preprocessing=project.config.preprocessing,
        torch=version("torch"),
        torchvision=version("torchvision"),
        scikit_learn=version("scikit-learn"),
        **({"weights_key": model.weights.key} if model.weights.key is not None else {}),
        **code_version(VERSION),
    )


def _retried(project: Project, record: SourceRecord) -> Iterator[str]:
    """Yield a reason if `auto` took the sample model and torch's cache has ImageNet's weights by now."""
    if record.origin is not WeightsOrigin.SAMPLE or not record.awaited_file:
        return
    if project.config.model.weights.file != "auto":
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    checkpoints = Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints"
    if (checkpoints / record.awaited_file).is_file():
        yield "the weights that could not be downloaded are there by now"


SPEC = StageSpec(
    name="source",
    sentence="The model's weights and its preprocessing: IMAGENET1K_V1, a checkpoint, or the sample model.",
    subjects=MODEL,
    version=VERSION,
    record=SourceRecord,
    records=lambda paths, _plan, _model: (paths.source,),
    files=lambda paths, _plan, _model: (paths.weights,),
    key=source_key,
    run="pipeline.stages.source.stage:run",
    retried=_retried,
    needs_torch=True,
    maker_fields=frozenset({"factory_code", "checkpoint", "torch", "torchvision", "scikit_learn"}),
)
