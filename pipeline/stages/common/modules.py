"""A project's torch module of any backend, loaded on its device. Importing this module imports torch."""

from __future__ import annotations

import os
import shutil
import warnings
from typing import TYPE_CHECKING

import torch

from model_artifacts.host.environment import threads
from model_artifacts.records import Backend
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.module import FORMATS, Loaded, load_compiled
from model_artifacts.sessions.torch_model import DTYPES, Typed, TypedInputs, in_layout
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
    kind = TypedInputs if len(project.source().inputs) > 1 else Typed
    typed = kind(restore_model(project), DTYPES[variant.precision]).eval()
    module = in_layout(typed, FORMATS[variant.layout]).to(torch_tensorrt_runtime.device_of(gpu))
    names = project.source().output_names
    if variant.backend is Backend.EAGER:
        return Loaded(module, output_names=names)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # inductor about its own code
    return Loaded(
        torch.compile(  # type: ignore[arg-type]  # a module again
            module, options=_MAX_AUTOTUNE, dynamic=False, fullgraph=True
        ),
        output_names=names,
    )


def keep_tuned(project: Project, artifact: Artifact, *, afresh: bool) -> None:
    """Have inductor keep its kernels in a folder of this variant, and load those that are there.

    Torch's own caches do that (`torch._inductor.config.fx_graph_cache`, `autotune_local_cache`). By default they lie in
    a folder that all models share, in which another program may have left kernels already.

    Args:
        project: the project that holds the artifact.
        artifact: a module of any backend; others than inductor's keep nothing.
        afresh: remove kept kernels, so that this process tunes and its cold start is one.
    """
    if artifact.variant.backend is not Backend.INDUCTOR:
        return
    folder = project.paths.inductor_cache(artifact.variant)
    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


def tuned_here(artifact: Artifact) -> bool:
    """Return whether inductor has compiled and tuned a graph in this process, and not only loaded kept ones."""
    if artifact.variant.backend is not Backend.INDUCTOR:
        return False
    from torch._dynamo.utils import counters  # noqa: PLC0415 - torch has imported it if it compiled anything

    found = counters["inductor"]
    return found["fxgraph_cache_hit"] == 0 or found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"] > 0


def load_libraries(artifact: Artifact) -> None:
    """Import an artifact's libraries, so that a cold start does not count the import.

    Raises:
        UnsupportedError: this host lacks one of them.
    """
    if artifact.variant.backend.is_torch_tensorrt:
        torch_tensorrt_runtime.load_library()
