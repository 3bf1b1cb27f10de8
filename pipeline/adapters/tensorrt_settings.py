"""Settings of an engine build → TensorRT's builder configuration: each is applied, or recorded as unsupported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import BuildError, UnsupportedError
from model_artifacts.records import Precision, Setting
from model_artifacts.tensorrt.specs import tensor_spec
from pipeline.adapters.tensorrt_libraries import missing_lean_runtime
from pipeline.adapters.trials.refusals import refusals
from pipeline.config.tensorrt import HardwareCompatibility, TilingOptimizationLevel

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from model_artifacts.records import AxisRange, TensorSpec
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
        self._refusals = refusals(flavour, request.settings)
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
        """Add the optimization profiles of the batch range, and of the other dynamic axes, each for every input.

        Raises:
            BuildError: the graph has a dynamic axis whose range nothing says.
        """
        sizes, axes = self._request.profile, self._request.axes
        inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        specs = io_formats(inputs)  # before a shape is set: it may take the names of the axes away
        for tensor, spec in zip(inputs, specs, strict=True):
            least, most = shape_at(spec, sizes.min, axes, "min"), shape_at(spec, sizes.max, axes, "max")
            fixed = tuple(size if size == other else -1 for size, other in zip(least, most, strict=True))
            if fixed != tuple(tensor.shape):
                tensor.shape = fixed  # a static shape is twice as fast as a profile of one size
        for low, best, high in sizes.profiles:
            profile = self._builder.create_optimization_profile()
            for spec in specs:
                ends = ((low, "min"), (best, "opt"), (high, "max"))
                profile.set_shape(spec.name, *(shape_at(spec, batch, axes, end) for batch, end in ends))
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
        """Set the choices that have a value; without one, the library's default holds."""
        settings, trt = self._request.settings, self._trt
        if settings.optimization_level is not None:
            self._set("optimization_level", settings.optimization_level, attribute="builder_optimization_level")
        if settings.tactic_sources is not None:
            self._tactic_sources([source.name for source in settings.tactic_sources])
        if settings.hardware_compatibility is not HardwareCompatibility.NONE:
            compatibility = settings.hardware_compatibility
            value = getattr(trt.HardwareCompatibilityLevel, compatibility.name, None)
            attribute = "hardware_compatibility_level"
            self._set("hardware_compatibility", value, attribute=attribute, text=compatibility.value)
        if settings.max_num_tactics is not None:
            self._set("max_num_tactics", settings.max_num_tactics)
        if settings.avg_timing_iterations is not None:
            self._set("avg_timing_iterations", settings.avg_timing_iterations)
        if settings.attempt != 1:  # the caller hands over the timings of this attempt alone
            self._record("attempt", settings.attempt, self._refusals.get("attempt", ""))
        self._tiling()
        if settings.max_aux_streams is not None:
            self._set("max_aux_streams", settings.max_aux_streams)
        if settings.build_route is not None:
            self._set("build_route", settings.build_route)

    def _tactic_sources(self, names: list[str]) -> None:
        """Set the libraries and kernels that the builder may use, and read them back."""
        trt, config = self._trt, self._config
        reason = self._refusals.get("tactic_sources", "")
        if not reason:
            mask = sum(1 << int(getattr(trt.TacticSource, name)) for name in names)
            if not config.set_tactic_sources(mask) or config.get_tactic_sources() != mask:
                reason = f"{self._flavour} refuses this choice"
        self._record("tactic_sources", ", ".join(names).lower(), reason)

    def _tiling(self) -> None:
        """Set the effort of the search for tiles, and the L2 cache that they may use."""
        settings = self._request.settings
        level, limit = settings.tiling_optimization_level, settings.l2_limit_for_tiling
        tiles = level is not TilingOptimizationLevel.NONE
        if tiles:
            levels = getattr(self._trt, "TilingOptimizationLevel", None)
            self._set("tiling_optimization_level", getattr(levels, level.name, None), text=level.value)
        if limit is not None:
            unused = "" if tiles else "nothing is tiled, because tiling_optimization_level is none"
            self._set("l2_limit_for_tiling", limit, unused)

    def _set(self, name: str, value: object, refusal: str = "", *, attribute: str = "", text: str = "") -> None:
        """Set an attribute of the configuration, and record it: as unsupported if the library does not keep the value.

        The bindings drop the result of the library's setters, so that a refused value shows only when it is read back.

        Args:
            name: the setting's name.
            value: the value in the library's type.
            refusal: the reason not to try, beside what the library is known to lack; empty to try.
            attribute: the attribute's name; by default the setting's.
            text: the recorded value; by default the value itself.
        """
        attribute = attribute or name
        reason = self._refusals.get(name, refusal)
        if not reason:
            setattr(self._config, attribute, value)
            if getattr(self._config, attribute) != value:
                reason = f"{self._flavour} refuses this value; its log may have the reason"
        self._record(name, text or value, reason)

    def _flags(self) -> None:
        """Set the builder flags."""
        settings = self._request.settings
        on_gpu = "" if self._request.gpu else f"{self._flavour} needs a GPU for it"
        flags = (
            ("version_compatible", settings.version_compatible, ""),
            ("refit", settings.refit, on_gpu),
            ("strip_plan", settings.strip_plan, on_gpu),
            ("sparse_weights", settings.sparse_weights, ""),
            ("strict_nans", settings.strict_nans, ""),
            ("weight_streaming", settings.weight_streaming, ""),
        )
        for name, on, reason in flags:
            if not on:
                continue
            refusal = reason or self._refusals.get(name, "")
            if not refusal:
                self._config.set_flag(getattr(self._trt.BuilderFlag, name.upper()))
            self._record(name, "on", refusal)
            if name == "version_compatible" and not refusal:
                self._lean_runtime()

    def _lean_runtime(self) -> None:
        """Leave the lean runtime out of a version-compatible engine if it cannot be loaded: the build would fail."""
        missing = missing_lean_runtime(self._flavour)
        if missing:
            self._config.set_flag(self._trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
            missing += (
                f". Without it, {self._flavour} runs the engine; a later version needs this lean runtime beside it "
                "(IRuntime.load_runtime)"
            )
        self._record("lean_runtime", "in the engine", missing)

    def _timing_cache(self) -> None:
        """Start from the timings of earlier builds. The library refuses those of another version or GPU."""
        if not self._request.settings.timing_cache:
            self._config.set_flag(self._trt.BuilderFlag.DISABLE_TIMING_CACHE)
            self._record("timing_cache", "off")
            return
        if not self._flavour.tunes:
            self._record("timing_cache", "on", f"{self._flavour} builds ahead of time, and has no use for it")
            return
        cache = self._config.create_timing_cache(self._timings)
        if not self._config.set_timing_cache(cache, False):  # noqa: FBT003 - ignore_mismatch
            cache = self._config.create_timing_cache(b"")
            self._config.set_timing_cache(cache, False)  # noqa: FBT003
            self._record("timing_cache", "from the start", "the stored one is for another version or GPU")
            return
        self._record("timing_cache", "continued" if self._timings else "from the start")


def keeps_timings(flavour: Flavour, request: EngineRequest) -> bool:
    """Return True if a build reads and writes a timing cache."""
    return flavour.tunes and request.settings.timing_cache


def network_flags(flavour: Flavour) -> int:
    """Return the flags of a network whose types are those of its graph, if the flavour has such networks."""
    flags = flavour.module.NetworkDefinitionCreationFlag
    flag = getattr(flags, "STRONGLY_TYPED" if flavour.strongly_typed else "EXPLICIT_BATCH", None)
    return 0 if flag is None else 1 << int(flag)  # TensorRT 11 deprecates the flag: its networks always are


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


def shape_at(spec: TensorSpec, batch: int, axes: tuple[AxisRange, ...], end: str) -> tuple[int, ...]:
    """Return an input's shape at one end of a profile.

    Args:
        spec: the input.
        batch: the batch size there.
        axes: the ranges of the other dynamic axes.
        end: min, opt or max.

    Raises:
        BuildError: an axis has no range.
    """
    ranges = {axis.name: axis for axis in axes}
    shape = [batch]
    for size in spec.shape[1:]:
        if isinstance(size, str) and size not in ranges:
            raise BuildError(
                f"the axis {size!r} of the input {spec.name!r} is dynamic, and has no range",
                expected=f"`{size}: {{min, opt, max}}` in each of `profiles`",
                got=f"({', '.join(map(str, spec.shape))})",
            )
        shape.append(size if isinstance(size, int) else int(getattr(ranges[size], end)))
    return tuple(shape)


def io_formats(tensors: list[Any]) -> tuple[TensorSpec, ...]:
    """Return the specs of a network's inputs or outputs."""
    return tuple(tensor_spec(tensor.name, tuple(tensor.shape), tensor.dtype, _axis_names(tensor)) for tensor in tensors)


def _axis_names(tensor: Any) -> tuple[str, ...]:  # noqa: ANN401 - TensorRT is untyped
    """Return the names that the graph gives an input's axes; empty where it gives none, or the parser keeps none."""
    name_of = getattr(tensor, "get_dimension_name", None)
    return () if name_of is None else tuple(str(name_of(axis) or "") for axis in range(len(tensor.shape)))
