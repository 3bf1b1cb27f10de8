"""ONNX → serialized engine, by whichever flavour: every setting applied, or recorded as unsupported."""

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
"""The first compute capability with hardware for a type (TensorRT's support matrix, "Hardware and Precision")."""


class BuilderSettings:
    """Applies every setting of a request to a builder's configuration, and says how."""

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
        self._said: list[Setting] = []

    def apply(self) -> tuple[Setting, ...]:
        """Return each setting: applied, or unsupported with the reason."""
        config, request, trt = self._config, self._request, self._trt
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
        self._say("workspace_bytes", request.workspace_bytes)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._say("profiling_verbosity", "detailed")
        self._profile()
        set_compute_capabilities(trt, config, request.compute_capabilities)
        if request.compute_capabilities:
            self._say("compute_capabilities", joined(request.compute_capabilities))
        self._precision()
        self._choices()
        self._flags()
        self._timing_cache()
        return tuple(self._said)

    def _say(self, name: str, value: object, unsupported: str = "") -> None:
        self._said.append(Setting(name=name, value=str(value), applied=not unsupported, note=unsupported))

    def _profile(self) -> None:
        wanted = self._request.profile
        profile = self._builder.create_optimization_profile()
        for index in range(self._network.num_inputs):
            tensor = self._network.get_input(index)
            sample = tuple(tensor.shape)[1:]
            if wanted.is_fixed:
                tensor.shape = (wanted.opt, *sample)  # a static shape is twice as fast as a profile of one size
            profile.set_shape(tensor.name, *((batch, *sample) for batch in (wanted.min, wanted.opt, wanted.max)))
        self._config.add_optimization_profile(profile)
        self._say("profile", wanted.label)
        sharing = getattr(self._trt.PreviewFeature, "PROFILE_SHARING_0806", None)
        if sharing is not None and not self._flavour.strongly_typed:
            self._config.set_preview_feature(sharing, True)  # noqa: FBT003 - later ones always share: a context a thread

    def _precision(self) -> None:
        """Set TF32; and where precisions are flags, those of the graph's own types."""
        precision = self._request.precision
        strict = precision is Precision.FP32
        if self._flavour.tunes:
            (self._config.clear_flag if strict else self._config.set_flag)(self._trt.BuilderFlag.TF32)
            self._say("tf32", "off" if strict else "on")
        elif strict:
            self._say("tf32", "off", f"{self._flavour} multiplies FP32 in TF32 whatever the flag says")
        if self._flavour.strongly_typed:
            return
        names = {Precision.FP16: ("FP16",), Precision.INT8: ("INT8", "FP16")}.get(precision, ())
        for name in names:  # a quantised graph's other layers are FP16, as in the graph for later versions
            self._config.set_flag(getattr(self._trt.BuilderFlag, name))
        if names:
            self._say("precision_flags", ", ".join(names))

    def _choices(self) -> None:
        settings, trt = self._request.settings, self._trt
        if settings.optimization_level is not None:
            reason = self._untuned() or self._missing(self._config, "builder_optimization_level")
            if not reason:
                self._config.builder_optimization_level = settings.optimization_level
            self._say("optimization_level", settings.optimization_level, reason)
        if settings.tactic_sources is not None:
            names = [source.name for source in settings.tactic_sources]
            unknown = [name for name in names if not hasattr(trt.TacticSource, name)]
            reason = self._untuned() or (f"{self._flavour} has no {', '.join(unknown)}" if unknown else "")
            mask = sum(1 << int(getattr(trt.TacticSource, name)) for name in names if name not in unknown)
            if not reason and not self._config.set_tactic_sources(mask):
                reason = f"{self._flavour} refuses this choice"
            self._say("tactic_sources", ", ".join(names).lower(), reason)
        if settings.hardware_compatibility is not HardwareCompatibility.NONE:
            name = settings.hardware_compatibility.name
            reason = self._untuned() or self._missing(trt.HardwareCompatibilityLevel, name)
            if not reason:
                self._config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
            self._say("hardware_compatibility", settings.hardware_compatibility.value, reason)

    def _flags(self) -> None:
        settings = self._request.settings
        on_gpu = "" if self._request.gpu else f"{self._flavour} needs a GPU for it"
        wanted = (
            ("version_compatible", settings.version_compatible, self._untuned()),
            ("refit", settings.refit, on_gpu),
            ("strip_plan", settings.strip_plan, on_gpu),
        )
        for name, on, reason in wanted:
            if not on:
                continue
            why_not = reason or self._missing(self._trt.BuilderFlag, name.upper())
            if not why_not:
                self._config.set_flag(getattr(self._trt.BuilderFlag, name.upper()))
            self._say(name, "on", why_not)

    def _timing_cache(self) -> None:
        """Start from what was timed before; what another version or GPU timed is refused by the library."""
        if not self._request.settings.timing_cache:
            self._config.set_flag(self._trt.BuilderFlag.DISABLE_TIMING_CACHE)
            self._say("timing_cache", "off")
            return
        if not self._flavour.tunes:
            self._say("timing_cache", "on", self._untuned())
            return
        cache = self._config.create_timing_cache(self._timings)
        if not self._config.set_timing_cache(cache, False):  # noqa: FBT003 - ignore_mismatch
            cache = self._config.create_timing_cache(b"")
            self._config.set_timing_cache(cache, False)  # noqa: FBT003
            self._say("timing_cache", "from the start", "the stored one is for another version or GPU")
            return
        self._say("timing_cache", "continued" if self._timings else "from the start")

    def _untuned(self) -> str:
        return "" if self._flavour.tunes else f"{self._flavour} builds ahead of time, and has no use for it"

    def _missing(self, owner: object, name: str) -> str:
        return "" if hasattr(owner, name) else f"{self._flavour} has no {name}"


def keeps_timings(flavour: Flavour, request: EngineRequest) -> bool:
    return flavour.tunes and request.settings.timing_cache


def set_compute_capabilities(trt: ModuleType, config: Any, capabilities: tuple[int, ...]) -> None:  # noqa: ANN401 - TensorRT is untyped
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
    return ", ".join(map(str, numbers))


def io_formats(tensors: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(tensor_spec(tensor.name, tuple(tensor.shape), tensor.dtype) for tensor in tensors)
