"""Settings of TensorRT's engine builds: the section `tensorrt` of `pipeline.yaml`."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from model_artifacts.records import EngineFlavour, KernelSpecialization, Record
from pipeline.config.values import (
    INT32_MAX,
    PORTABLE_COMPUTE_CAPABILITIES,
    Flag,
    Seconds,
    in_yaml,
    parse_auto,
    parse_bytes,
    parse_compute_capabilities,
    with_defaults,
)

_KNOB = re.compile(r"-[^\s=]+=\S+")


def check_build_route(value: str) -> str:
    """Return a build route with single spaces between its knobs.

    Raises:
        ValueError: the text is empty, or a part of it is no `-name=value`.
    """
    knobs = value.split()
    wrong = [knob for knob in knobs if not _KNOB.fullmatch(knob)]
    if wrong or not knobs:
        raise ValueError(f"expected knobs such as '-name=value', got {in_yaml(wrong[0] if wrong else value)}")
    return " ".join(knobs)


class TacticSource(str, Enum):
    """A library or group of kernels that a builder may use. Each flavour supports some of them."""

    CUBLAS = "cublas"
    CUBLAS_LT = "cublas_lt"
    CUDNN = "cudnn"
    EDGE_MASK_CONVOLUTIONS = "edge_mask_convolutions"
    JIT_CONVOLUTIONS = "jit_convolutions"


class HardwareCompatibility(str, Enum):
    """The other GPUs that an engine runs on, beside the one that it was tuned on."""

    NONE = "none"
    AMPERE_PLUS = "ampere_plus"
    SAME_COMPUTE_CAPABILITY = "same_compute_capability"


class TilingOptimizationLevel(str, Enum):
    """The effort of the search for tiles that several kernels in a row keep in the L2 cache."""

    NONE = "none"
    FAST = "fast"
    MODERATE = "moderate"
    FULL = "full"


_LATER_SETTINGS = (
    "tiling_optimization_level",
    "l2_limit_for_tiling",
    "max_num_tactics",
    "max_aux_streams",
    "sparse_weights",
    "weight_streaming",
    "strict_nans",
    "build_route",
    "avg_timing_iterations",
    "batch_parts",
    "attempt",
)
"""The build settings that are younger than the first keys. With its default, such a setting is in no key."""


class TensorRTConfig(Record):
    """Settings of the engine builds. A setting that a flavour cannot apply is recorded as unsupported."""

    flavour: Annotated[EngineFlavour | None, BeforeValidator(parse_auto)] = None
    """None, written `auto`, takes `tensorrt` if it is installed, else `tensorrt_rtx`."""
    compute_capabilities: Annotated[tuple[int, ...], BeforeValidator(parse_compute_capabilities)] = (
        PORTABLE_COMPUTE_CAPABILITIES
    )
    """GPU generations that one TensorRT-RTX engine runs on.

    `80+` is Ampere and everything later. Empty, written `current`, is this host's GPU. TensorRT ignores the setting,
    because its engines always belong to the GPU that built them.
    """
    optimization_level: Annotated[int, Field(strict=True, ge=0, le=5)] | None = None
    """The effort of the search for faster kernels, 0 to 5. None is the flavour's default."""
    tactic_sources: Annotated[tuple[TacticSource, ...], Field(min_length=1)] | None = None
    """None is the flavour's default."""
    max_num_tactics: Annotated[int, Field(strict=True, ge=1, le=INT32_MAX)] | None = None
    """The most tactics to time where there is a choice. None leaves the number to the library."""
    avg_timing_iterations: Annotated[int, Field(strict=True, ge=1, le=INT32_MAX)] | None = None
    """The runs of a tactic whose mean is its time. None is the library's default, which is 1."""
    attempt: Annotated[int, Field(strict=True, ge=1, le=INT32_MAX)] = 1
    """The set of timings to choose tactics by. Each number begins its own: timings vary, and so do the engines."""
    tiling_optimization_level: TilingOptimizationLevel = TilingOptimizationLevel.NONE
    """A higher level searches longer, and may help engines that the memory bandwidth limits."""
    l2_limit_for_tiling: Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(parse_bytes)] = None
    """The bytes of the L2 cache that tiling may count on. None leaves the number to the library."""
    max_aux_streams: Annotated[int, Field(strict=True, ge=0, le=INT32_MAX)] | None = None
    """The most CUDA streams beside the caller's own. 0 keeps to that one; None leaves the number to the library."""
    batch_parts: Annotated[int, Field(strict=True, ge=1, le=INT32_MAX)] = 1
    """The equal parts of a batch that run at once. Engines for one batch size alone can have several."""
    sparse_weights: Flag = False
    """Kernels for weights with 2:4 sparsity, where the weights have it. They are left as they are."""
    strict_nans: Flag = False
    """No simplification, such as 0 · x to 0, that could hide a NaN or an infinity."""
    weight_streaming: Flag = False
    """Engines that keep weights in the host's memory if the GPU has too little."""
    build_route: Annotated[str, AfterValidator(check_build_route)] | None = None
    """The compiler's knobs as `-name=value`, separated by spaces. None is the library's default."""
    hardware_compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    version_compatible: Flag = False
    """Engines that later versions of TensorRT run, too. The build host needs the lean runtime for it."""
    refit: Flag = False
    """Engines with replaceable weights. If only the weights are new, a TensorRT engine is not built again."""
    strip_plan: Flag = False
    """Engines without weights. The runner adds those of the ONNX file."""
    timing_cache: Flag = True
    """Reuse of kernel timings by later builds."""
    kernel_specialization: KernelSpecialization = KernelSpecialization.EAGER
    """Compilation of kernels for single shapes, by the runtime of TensorRT-RTX."""
    build_timeout_seconds: Seconds = 3600.0
    """Time limit of one build, in seconds."""

    @property
    def build_settings(self) -> TensorRTConfig:
        """The settings that change an engine. All others have their defaults."""
        return with_defaults(self, "flavour", "timing_cache", "kernel_specialization", "build_timeout_seconds")

    @property
    def key_settings(self) -> dict[str, object]:
        """The build settings as a staleness key holds them: a later one only if it differs from its default."""
        settings, defaults = (item.model_dump(mode="json") for item in (self.build_settings, TensorRTConfig()))
        return {
            name: value for name, value in settings.items() if name not in _LATER_SETTINGS or value != defaults[name]
        }


def portable_target(compute_capabilities: tuple[int, ...]) -> str:
    """Return the target name of engines that TensorRT-RTX builds ahead of time: `rtx-sm80+`, `rtx-sm75-89`."""
    portable = compute_capabilities == PORTABLE_COMPUTE_CAPABILITIES
    return "rtx-sm80+" if portable else "rtx-sm" + "-".join(map(str, compute_capabilities))
