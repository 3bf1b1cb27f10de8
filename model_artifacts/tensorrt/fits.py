"""The library and the GPUs that an engine was built for × this host → a refusal, before the engine is read. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import RunError

if TYPE_CHECKING:
    from model_artifacts.records import BuiltFor, Gpu
    from model_artifacts.tensorrt.flavour import Flavour


def check_fits(built_for: BuiltFor, flavour: Flavour, gpu: Gpu) -> None:
    """Check that an engine is built for this library and this GPU, before either reads it.

    Raises:
        RunError: it is built for another; the message names both.
    """
    fix = "build it here (`doit`), or take the artifact of this host's target"
    if not built_for.runs_with(flavour.name, flavour.version):
        got = f"{built_for.flavour.value} {built_for.version}"
        raise RunError("the engine is for another TensorRT", expected=str(flavour), got=got, fix=fix)
    if not built_for.runs_on(gpu):
        numbers = ", ".join(map(str, built_for.compute_capabilities))
        raise RunError(
            "the engine is for another GPU",
            expected=f"{gpu.name} (SM {gpu.compute_capability})",
            got=f"{built_for.gpu or 'GPUs'} (SM {numbers})",
            fix=fix,
        )
