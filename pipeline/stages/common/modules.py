"""Torch module → a session that turns batches into logits, on the CPU or on a GPU."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from model_artifacts.errors import RunError
from model_artifacts.records import Backend
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.module import FORMATS, Loaded, Saved, load_compiled
from model_artifacts.sessions.torch_model import DTYPES, Typed, in_layout
from pipeline.stages.common.model import restore_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_artifacts.records import Gpu
    from pipeline.planning.project import Project
    from pipeline.records import Artifact


_MAX_AUTOTUNE: dict[str, str | int | bool | Callable[..., object]] = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}
"""What torch calls max-autotune-no-cudagraphs, without what it prints of every kernel it tries.

Its own CUDA graphs are off: the session captures every module's in the same way.
"""


def load_module(project: Project, artifact: Artifact, gpu: Gpu | None) -> Loaded:
    """Return an artifact's module, where it runs. Its file's digest must have been checked.

    Args:
        project: where the artifact lies.
        artifact: a module of any backend.
        gpu: which GPU; None is the CPU.

    Raises:
        UnsupportedError: this host lacks Torch-TensorRT or its driver.
        RunError: it was made by other versions, or cannot be read.
    """
    variant = artifact.variant
    if not variant.backend.is_torch_tensorrt:
        typed = Typed(restore_model(project), DTYPES[variant.precision]).eval()
        module = in_layout(typed, FORMATS[variant.layout]).to(torch_tensorrt_runtime.device_of(gpu))
        if variant.backend is Backend.EAGER:
            return Loaded(module)
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # of inductor about its own code
        return Loaded(
            torch.compile(  # type: ignore[arg-type]  # a module again
                module, options=_MAX_AUTOTUNE, dynamic=False, fullgraph=True
            )
        )
    if artifact.module is None or artifact.file is None:
        raise RunError(f"{variant.id} does not say what made it")
    saved = Saved(variant, artifact.module, project.file(artifact.file), project.source().factory)
    return load_compiled(project.paths.root, saved, gpu)


def load_libraries(artifact: Artifact) -> None:
    """Import what an artifact takes, so that a cold start does not count the import.

    Raises:
        UnsupportedError: this host lacks it.
    """
    if artifact.variant.backend.is_torch_tensorrt:
        torch_tensorrt_runtime.load_library()
