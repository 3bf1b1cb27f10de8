"""A project's torch module of any backend, loaded on its device. Importing this module imports torch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from model_artifacts.host.environment import threads
from model_artifacts.records import Backend
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.module import FORMATS, Loaded, load_compiled
from model_artifacts.sessions.torch_model import DTYPES, Typed, in_layout
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.opening import file_on

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
"""The options of torch's mode max-autotune-no-cudagraphs, without its printed line for every kernel tried.

Torch's own CUDA graphs stay off: the session captures every module's graph in the same way.
"""


def load_module(project: Project, artifact: Artifact, gpu: Gpu | None) -> Loaded:
    """Return an artifact's module on its device. The caller has checked the file's digest.

    Args:
        project: the project that holds the artifact.
        artifact: a module of any backend.
        gpu: the GPU; None for the CPU.

    Raises:
        UnsupportedError: this host lacks Torch-TensorRT or its driver.
        RunError: other versions made the module, or it cannot be read.
    """
    torch.set_num_threads(threads())
    variant = artifact.variant
    if variant.backend.is_torch_tensorrt:
        return load_compiled(file_on(project, artifact, gpu))
    typed = Typed(restore_model(project), DTYPES[variant.precision]).eval()
    module = in_layout(typed, FORMATS[variant.layout]).to(torch_tensorrt_runtime.device_of(gpu))
    if variant.backend is Backend.EAGER:
        return Loaded(module)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # inductor about its own code
    return Loaded(
        torch.compile(  # type: ignore[arg-type]  # a module again
            module, options=_MAX_AUTOTUNE, dynamic=False, fullgraph=True
        )
    )


def load_libraries(artifact: Artifact) -> None:
    """Import an artifact's libraries, so that a cold start does not count the import.

    Raises:
        UnsupportedError: this host lacks one of them.
    """
    if artifact.variant.backend.is_torch_tensorrt:
        torch_tensorrt_runtime.load_library()
