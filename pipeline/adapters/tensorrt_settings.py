"""Settings of an engine build → TensorRT's builder configuration: each is applied, or recorded as unsupported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import UnsupportedError
from model_artifacts.records import Precision, Setting
from model_artifacts.tensorrt.runtime import tensor_spec
from pipeline.config.settings import HardwareCompatibility

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from model_artifacts.records import TensorSpec
    from model_artifacts.tensorrt.flavour import Flavour
    from pipeline.adapters.tensorrt_builder import EngineRequest


FIRST_COMPUTE_CAPABILITY = {Precision.TF32: 80, Precision.BF16: 80, Precision.INT8: 61, Precision.FP8: 89}
"""The first compute capability with hardware for a precision.

Source: TensorRT's support matrix, "Hardware and Precision".
"""


class BuilderSettings:
    """The settings of a request, applied to a builder's configuration."""

    def __init__(  # noqa: PLR0913 - the parts of a build
        self,
        flavour: Flavour,
        builder: Any,  # noqa: ANN401 - TensorRT's bindings are untyped
        network: Any,  # noqa: ANN401
        config: Any,  # noqa: ANN401
        request: EngineRequest,
        timings: bytes,
    ) -> None:
        self._flavour = flavour
        self._trt = flavour.module
        self._builder = builder
        self._network = network
        self._config = config
        self._request = request
        self._timings = timings
        self._recorded: list[Setting] = []

    def apply(self) -> tuple[Setting, ...]:
        """Apply all settings, and return each as applied, or as unsupported with the reason.

        Raises:
            UnsupportedError: the flavour cannot build for one of the compute capabilities.
        """
        config, request, trt = self._config, self._request, self._trt
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
        self._record("workspace_bytes", request.workspace_bytes)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._record("profiling_verbosity", "detailed")
        self._profile()
        set_compute_capabilities(trt, config, request.compute_capabilities)
        if request.compute_capabilities:
            self._record("compute_capabilities", joined(request.compute_capabilities))
        self._precision()
        self._choices()
        self._flags()
        self._timing_cache()
        return tuple(self._recorded)

    def _record(self, name: str, value: object, unsupported: str = "") -> None:
        """Record a setting: as applied, or as unsupported for a reason."""
        self._recorded.append(Setting(name=name, value=str(value), applied=not unsupported, note=unsupported))

    def _profile(self) -> None:
        """Add the optimization profile of the batch range to every input."""
        sizes = self._request.profile
        profile = self._builder.create_optimization_profile()
        for index in range(self._network.num_inputs):
            tensor = self._network.get_input(index)
            sample = tuple(tensor.shape)[1:]
            if sizes.is_fixed:
                tensor.shape = (sizes.opt, *sample)  # a static shape is twice as fast as a profile of one size
            profile.set_shape(tensor.name, *((batch, *sample) for batch in (sizes.min, sizes.opt, sizes.max)))
        self._config.add_optimization_profile(profile)
        self._record("profile", sizes.label)
        sharing = getattr(self._trt.PreviewFeature, "PROFILE_SHARING_0806", None)
        # A process has one context for each thread. Profile sharing lets all of them use the one profile.
        if sharing is not None and not self._flavour.strongly_typed:
            self._config.set_preview_feature(sharing, True)  # noqa: FBT003 - later versions always share

    def _precision(self) -> None:
        """Set TF32. Without strong typing, also set the flags of the graph's own types."""
        precision = self._request.precision
        strict = precision is Precision.FP32
        if self._flavour.tunes:
            (self._config.clear_flag if strict else self._config.set_flag)(self._trt.BuilderFlag.TF32)
            self._record("tf32", "off" if strict else "on")
        elif strict:
            self._record("tf32", "off", f"{self._flavour} multiplies FP32 in TF32 whatever the flag says")
        if self._flavour.strongly_typed:
            return
        names = {Precision.FP16: ("FP16",), Precision.INT8: ("INT8", "FP16")}.get(precision, ())
        for name in names:  # a quantised graph's other layers run in FP16, as in the graph for later versions
            self._config.set_flag(getattr(self._trt.BuilderFlag, name))
        if names:
            self._record("precision_flags", ", ".join(names))

    def _choices(self) -> None:
        """Set the optional choices: optimization level, tactic sources and hardware compatibility."""
        settings, trt = self._request.settings, self._trt
        if settings.optimization_level is not None:
            reason = self._untuned() or self._missing(self._config, "builder_optimization_level")
            if not reason:
                self._config.builder_optimization_level = settings.optimization_level
            self._record("optimization_level", settings.optimization_level, reason)
        if settings.tactic_sources is not None:
            names = [source.name for source in settings.tactic_sources]
            unknown = [name for name in names if not hasattr(trt.TacticSource, name)]
            reason = self._untuned() or (f"{self._flavour} has no {', '.join(unknown)}" if unknown else "")
            mask = sum(1 << int(getattr(trt.TacticSource, name)) for name in names if name not in unknown)
            if not reason and not self._config.set_tactic_sources(mask):
                reason = f"{self._flavour} refuses this choice"
            self._record("tactic_sources", ", ".join(names).lower(), reason)
        if settings.hardware_compatibility is not HardwareCompatibility.NONE:
            name = settings.hardware_compatibility.name
            reason = self._untuned() or self._missing(trt.HardwareCompatibilityLevel, name)
            if not reason:
                self._config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
            self._record("hardware_compatibility", settings.hardware_compatibility.value, reason)

    def _flags(self) -> None:
        """Set the builder flags: version compatibility, refit and plans without weights."""
        settings = self._request.settings
        on_gpu = "" if self._request.gpu else f"{self._flavour} needs a GPU for it"
        flags = (
            ("version_compatible", settings.version_compatible, self._untuned()),
            ("refit", settings.refit, on_gpu),
            ("strip_plan", settings.strip_plan, on_gpu),
        )
        for name, on, reason in flags:
            if not on:
                continue
            refusal = reason or self._missing(self._trt.BuilderFlag, name.upper())
            if not refusal:
                self._config.set_flag(getattr(self._trt.BuilderFlag, name.upper()))
            self._record(name, "on", refusal)

    def _timing_cache(self) -> None:
        """Start from the timings of earlier builds. The library refuses those of another version or GPU."""
        if not self._request.settings.timing_cache:
            self._config.set_flag(self._trt.BuilderFlag.DISABLE_TIMING_CACHE)
            self._record("timing_cache", "off")
            return
        if not self._flavour.tunes:
            self._record("timing_cache", "on", self._untuned())
            return
        cache = self._config.create_timing_cache(self._timings)
        if not self._config.set_timing_cache(cache, False):  # noqa: FBT003 - ignore_mismatch
            cache = self._config.create_timing_cache(b"")
            self._config.set_timing_cache(cache, False)  # noqa: FBT003
            self._record("timing_cache", "from the start", "the stored one is for another version or GPU")
            return
        self._record("timing_cache", "continued" if self._timings else "from the start")

    def _untuned(self) -> str:
        """Return the refusal of settings that only concern tuning; empty if the flavour tunes."""
        return "" if self._flavour.tunes else f"{self._flavour} builds ahead of time, and has no use for it"

    def _missing(self, owner: object, name: str) -> str:
        """Return the refusal of a name that the flavour lacks; empty if it has the name."""
        return "" if hasattr(owner, name) else f"{self._flavour} has no {name}"


def keeps_timings(flavour: Flavour, request: EngineRequest) -> bool:
    """Return True if a build reads and writes a timing cache."""
    return flavour.tunes and request.settings.timing_cache


def set_compute_capabilities(trt: ModuleType, config: Any, capabilities: tuple[int, ...]) -> None:  # noqa: ANN401 - TensorRT is untyped
    """Set the GPU generations of an engine that is built ahead of time. TensorRT has no such setting.

    Args:
        trt: the flavour's module.
        config: its builder configuration.
        capabilities: such as 89. Empty is the current GPU.

    Raises:
        UnsupportedError: this version cannot build for one of them.
    """
    if not hasattr(trt, "ComputeCapability"):
        return
    if not capabilities:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        return
    known = {name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    config.num_compute_capabilities = len(capabilities)
    for index, number in enumerate(capabilities):
        name = f"SM{number}"
        if name not in known:
            raise UnsupportedError(
                f"{trt.__name__} {trt.__version__} cannot build for SM {number}", expected=", ".join(sorted(known))
            )
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def joined(numbers: tuple[int, ...]) -> str:
    """Return numbers as text: `80, 86`."""
    return ", ".join(map(str, numbers))


def io_formats(tensors: list[Any]) -> tuple[TensorSpec, ...]:
    """Return the specs of a network's inputs or outputs."""
    return tuple(tensor_spec(tensor.name, tuple(tensor.shape), tensor.dtype) for tensor in tensors)
