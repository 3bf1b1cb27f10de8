"""Models that Triton Inference Server can run of a manifest: hosts, names, platforms, files and batch sizes.

    cpu/<model>-<graph>-onnx                   ONNX files on a processor
    sm90/<model>-<precision>-<batches>-trt     TensorRT engines for GPUs of SM 9.0
    sm90/<model>-<precision>-<batches>-aoti    AOTInductor packages of Torch-TensorRT (Triton's platform `torch_aoti`)
    sm90/<model>-<graph>-onnx-gpu              ONNX files on such GPUs

Each kind of host has a repository of its own, because a server ends if it cannot load one of its models.

Deployable artifacts that Triton cannot run are left out, each with a reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.deployment.files import is_plain_name
from model_artifacts.records import (
    CPU_TARGET,
    Backend,
    EngineFlavour,
    Layout,
    Precision,
    Status,
    is_applied,
    ranking_clock,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from model_artifacts.records import BatchTiming, LoadResult, Manifest, ManifestEntry, TensorSpec

CPU = "cpu"
"""Kind of host without a GPU."""
_MOST_GRAPHS = 64
"""The most CUDA graphs of an engine: as many as the loader keeps, by which the load was measured."""


class Platform(Enum):
    """A way to run a model in Triton: platform, backend, and the file's name there."""

    TENSORRT = ("tensorrt_plan", "tensorrt", "model.plan")
    AOTI = ("torch_aoti", "pytorch", "model.pt2")
    ONNX = ("onnxruntime_onnx", "onnxruntime", "model.onnx")


class LeftOut(NamedTuple):
    """A deployable artifact that is not in the repository."""

    id: str
    reason: str
    """Reason, as a clause."""


@dataclass(frozen=True)
class TritonModel:
    """A model of a repository: one network in one precision for one batch range, on one kind of host."""

    host: str
    """Kind of host: `cpu`, `sm90` for GPUs of SM 9.0, or `gpu` if the type of GPU is unknown."""
    name: str
    platform: Platform
    entry: ManifestEntry
    tuned: LoadResult | None = None
    """The result of `doit load` whose settings the server takes; None for Triton's defaults."""
    p99_ms: float | None = None
    """The bound in milliseconds that was asked for; None for the strictest."""

    @property
    def path(self) -> str:
        """The model's folder below that of all repositories."""
        return f"{self.host}/{self.name}"

    @property
    def on_gpu(self) -> bool:
        """True if it runs on a GPU."""
        return self.host != CPU

    @property
    def filename(self) -> str:
        """Name of the artifact's file in the repository: an engine's has its SM, since Triton takes a plain one."""
        capability = _capability(self.entry)
        if self.platform is Platform.TENSORRT and capability is not None:
            return f"model.sm{capability}.plan"
        return self.platform.value[2]

    @property
    def files_by_capability(self) -> dict[str, str]:
        """The file's name by compute capability ("9.0"), Triton's `cc_model_filenames`; empty if any GPU will do.

        Only an engine has it: a server with another GPU names the missing file, and never reads the engine.
        """
        capability = _capability(self.entry)
        if self.platform is not Platform.TENSORRT or capability is None:
            return {}
        return {f"{capability // 10}.{capability % 10}": self.filename}

    @property
    def max_batch(self) -> int:
        """Largest batch that Triton may compose of requests; 0 if each request must be a batch of an accepted size.

        Of an artifact that takes any batch it is the largest that was validated. Triton composes batches of any size
        from 1 on. An artifact that takes no single image is therefore not batched,
        and the shape of an engine with a fixed batch size includes that size. Triton pads nothing either: of an engine
        with a profile for each of several sizes it runs batches of exactly these.
        """
        profile = self.entry.profile
        if profile is None:
            return max((row.batch for row in self.entry.rows), default=1)
        if profile.tuned:
            return 0
        return profile.max if profile.min == 1 < profile.max else 0

    @property
    def profiles(self) -> list[str]:
        """Numbers of the engine's optimization profiles, of which Triton chooses by the shape; [] for its first alone.

        Source: `ModelInstanceState::GetMostOptimizedProfile` of Triton's TensorRT backend.
        """
        tuned = self.entry.profile.tuned if self.entry.profile and self.platform is Platform.TENSORRT else ()
        return [str(number) for number in range(len(tuned))]

    @property
    def preferred_batch(self) -> int | None:
        """Batch size that won under load, or that has the most images per second if larger ones have fewer; else None.

        Triton stops at the largest preferred size (`DynamicBatchScheduler::GetDynamicBatch` of its core). A preferred
        size that is not the best one would therefore slow every larger batch down. Without any, Triton takes all
        requests that wait, up to the largest batch.
        """
        if self.tuned:
            return min(self.tuned.settings.batch, self.max_batch) or None
        timings = _rankable(self.entry)
        largest = timings.get(self.max_batch)
        best = max(timings.values(), key=lambda timing: timing.batch / timing.p50_ms, default=None)
        if largest is None or best is None or best.batch >= largest.batch:
            return None
        slowest, fastest = best.interval_ms[1] / best.batch, largest.interval_ms[0] / largest.batch  # ms an image
        return best.batch if slowest < fastest else None

    @property
    def composes(self) -> bool:
        """True if Triton is to compose batches of requests: batches of one image were not measured to be best."""
        return self.max_batch > 1 and self.preferred_batch != 1

    @property
    def instances(self) -> int:
        """Number of instances on each GPU, or on the processor: the contexts that won under load, else 1."""
        return self.tuned.settings.contexts if self.tuned else 1

    @property
    def max_delay_us(self) -> int:
        """Longest time in microseconds that a request waits for others; 0 without a measured one."""
        return round(self.tuned.settings.max_delay_ms * 1e3) if self.tuned and self.composes else 0

    @property
    def graph_batches(self) -> tuple[int, ...] | None:
        """Batch sizes of which Triton captures CUDA graphs; () for the one size of an engine, None for no graphs.

        The loader runs engines so, by which the load was measured. Without a measurement, Triton keeps its default.
        """
        if self.platform is not Platform.TENSORRT or self.tuned is None or len(self.profiles) > 1:
            return None  # the batch axis of several profiles is free, and graphs are of one shape
        return tuple(range(1, min(self.preferred_batch or 1, _MOST_GRAPHS) + 1)) if self.max_batch else ()

    @property
    def origin(self) -> str:
        """Origin of the settings, as a phrase: a result of `doit load`, or Triton's defaults."""
        load, tuned = self.entry.load, self.tuned
        if load is None or tuned is None:
            asked = load is not None and self.p99_ms is not None
            reason = f"no result within p99 {self.p99_ms:g} ms" if asked else "no result of `doit load`"
            return f"Triton's defaults and the benchmark: {reason}"
        rate = f"{tuned.rate_per_s:,.0f} {self.entry.counted}/s within p99 {tuned.p99_bound_ms or 0:g} ms"
        return f"`doit load`: {rate}, by LoadGen {load.loadgen} on {load.device}"

    def dims(self, spec: TensorSpec) -> tuple[int, ...]:
        """Return a tensor's shape for Triton, -1 for a free size; without the batch axis if Triton composes batches."""
        sample = tuple(size if isinstance(size, int) else -1 for size in spec.shape[1:])
        if self.max_batch:
            return sample
        profile = self.entry.profile
        return (profile.min if profile and profile.is_fixed else -1, *sample)


def plan_models(
    manifest: Manifest, absent: Collection[str] = (), p99_ms: float | None = None
) -> tuple[tuple[TritonModel, ...], tuple[LeftOut, ...]]:
    """Return the models that Triton can run, sorted by host and name, and the deployable artifacts that are left out.

    Args:
        manifest: the artifacts.
        absent: ids of artifacts whose files are not there, as after a pull for one host.
        p99_ms: the bound in milliseconds whose settings models take; None takes the strictest that was kept.
    """
    left: dict[str, str] = {}
    entries = []
    for entry in manifest.artifacts:
        if entry.status is not Status.DEPLOYABLE or entry.backend.is_baseline:
            continue
        missing = "was not pulled: its file is missing" if entry.id in absent else ""
        if reason := missing or _obstacle(entry) or _flat_input(entry):
            left[entry.id] = reason
        else:
            entries.append(entry)
    models: dict[str, TritonModel] = {}
    for entry in sorted(_of_one_tensorrt(entries, left), key=lambda entry: (_milliseconds(entry), entry.id)):
        tuned = entry.load.server(p99_ms) if entry.load else None
        model = TritonModel(_host(entry), _name(entry), _platform(entry), entry, tuned, p99_ms)
        best = models.setdefault(model.path, model).entry
        if best is not entry:
            left[entry.id] = f"{best.id} takes its place: as fast or faster, and Triton tells GPUs apart by SM alone"
    order = [entry.id for entry in manifest.artifacts if entry.id in left]
    return tuple(models[path] for path in sorted(models)), tuple(LeftOut(name, left[name]) for name in order)


def _of_one_tensorrt(entries: Sequence[ManifestEntry], left: dict[str, str]) -> list[ManifestEntry]:
    """Return the artifacts that one server can run; `left` receives the engines of an older TensorRT for that host."""
    newest: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        newest[_host(entry)] = max(_version(entry), newest.get(_host(entry), ()))
    fitting = [entry for entry in entries if entry.built_for is None or _version(entry) == newest[_host(entry)]]
    kept = {entry.id for entry in fitting}
    reason = "other engines are of a newer TensorRT, and a server has one version"
    left.update({entry.id: reason for entry in entries if entry.id not in kept})
    return fitting


def _obstacle(entry: ManifestEntry) -> str:
    """Return the reason why Triton cannot run a deployable artifact; empty if it can."""
    if not is_plain_name(entry.model):
        return "the name of its model is none that a build gives"
    if entry.built_for and not entry.built_for.compute_capabilities:
        return "the compute capability that it was built for is unknown"
    if entry.built_for and not entry.built_for.numbers:
        return f"the version of its TensorRT is {entry.built_for.version!a}, and no numbers that can be compared"
    if entry.backend is Backend.DYNAMO:
        return "Triton loads torch's AOTInductor packages (`formats: [aot_inductor]`), but no ExportedPrograms"
    if entry.backend is Backend.TORCH_COMPILE:
        return "a recipe is compiled in Python when it is opened, so that Triton has nothing to load"
    if entry.backend is Backend.TENSORRT:
        return _obstacle_of_engine(entry)
    return _obstacle_of_graph(entry) if entry.backend is Backend.ONNXRUNTIME else ""


def _obstacle_of_engine(entry: ManifestEntry) -> str:
    """Return the reason why Triton cannot run an engine; empty if it can."""
    if entry.built_for is None or entry.built_for.flavour is not EngineFlavour.TENSORRT:
        return "Triton runs TensorRT engines, but none of TensorRT-RTX"
    if entry.built_for.gpu is None:
        return "the GPU that it was built for is unknown"
    if entry.built_for.batch_parts > 1:
        return f"its batch runs {entry.built_for.parts_phrase}, and Triton would take one for a batch"
    return "it was built without its weights" if is_applied("strip_plan", entry.settings) else ""


def _obstacle_of_graph(entry: ManifestEntry) -> str:
    """Return the reason why Triton's ONNX Runtime cannot run an ONNX file as it was validated; empty if it can."""
    if any(spec.ranges for spec in entry.inputs):
        return "its graph takes images of any size, and Triton would not refuse those outside of the validated range"
    if entry.graph and entry.graph.for_tensorrt:
        return "its Q/DQ pairs are placed for TensorRT; the validation ran without optimisers that Triton leaves on"
    if entry.graph and entry.target != CPU_TARGET and entry.precision is Precision.FP32:
        return "it was validated without TF32, which Triton's ONNX Runtime leaves on"
    return ""


def _flat_input(entry: ManifestEntry) -> str:
    """Return the reason why Triton cannot send an input; empty if it can."""
    flat = [spec.name for spec in entry.inputs if len(spec.shape) == 1]
    return f"its input {flat[0]!r} has no axis but the batch, and Triton's inputs need one more" if flat else ""


def _platform(entry: ManifestEntry) -> Platform:
    if entry.backend is Backend.TENSORRT:
        return Platform.TENSORRT
    return Platform.AOTI if entry.backend is Backend.DYNAMO_AOTI else Platform.ONNX


def _name(entry: ManifestEntry) -> str:
    """Return the model's name; artifacts that Triton's clients cannot tell apart share one."""
    return "-".join([_plain_name(entry), *entry.io.words])


def _plain_name(entry: ManifestEntry) -> str:
    """Return the name of the artifact with the network's own input and output."""
    platform = _platform(entry)
    if platform is Platform.ONNX:
        graph = entry.graph.value if entry.graph else entry.precision.value
        return f"{entry.model}-{graph}-onnx{'' if entry.target == CPU_TARGET else '-gpu'}"
    precision = entry.graph.value if entry.graph and entry.graph.is_mixed else entry.precision.value
    batches = entry.profile.label if entry.profile else "any"
    return f"{entry.model}-{precision}-{batches}-{'trt' if platform is Platform.TENSORRT else 'aoti'}"


def _version(entry: ManifestEntry) -> tuple[int, ...]:
    return entry.built_for.numbers if entry.built_for else ()


def _rankable(entry: ManifestEntry) -> dict[int, BatchTiming]:
    """Return the timings by batch size, by the clock that ranks artifacts and of images as Triton sends them."""
    timings = [timing for timing in entry.timings if timing.layout is Layout.CONTIGUOUS]
    timings = [timing for timing in timings if timing.clock.is_latency and timing.p50_ms > 0]
    if not timings:
        return {}
    clock = ranking_clock({timing.clock for timing in timings})
    return {timing.batch: timing for timing in timings if timing.clock is clock}


def _milliseconds(entry: ManifestEntry) -> float:
    """Return the median latency in ms at the tuned batch size, by the ranking clock; infinite without a timing."""
    timing = _rankable(entry).get(entry.profile.opt if entry.profile else 1)
    return timing.p50_ms if timing else math.inf


def _host(entry: ManifestEntry) -> str:
    """Return the kind of host: `cpu`, `sm90` for GPUs of SM 9.0, or `gpu` if the type of GPU is unknown."""
    if _platform(entry) is Platform.ONNX and entry.target == CPU_TARGET:
        return CPU
    capability = _capability(entry)
    return "gpu" if capability is None else f"sm{capability}"


def _capability(entry: ManifestEntry) -> int | None:
    """Return the compute capability that the file was built or validated on, such as 90 for SM 9.0."""
    if entry.built_for:
        return entry.built_for.compute_capabilities[0]
    return entry.gpu.compute_capability if entry.gpu else None
