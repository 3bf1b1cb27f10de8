"""Models that Triton Inference Server can run of a manifest: names, platforms, files and batch sizes.

    <model>-<precision>-<batches>-trt     TensorRT engines, one file for each type of GPU (`cc_model_filenames`)
    <model>-<precision>-<batches>-aoti    AOTInductor packages of Torch-TensorRT (Triton's platform `torch_aoti`)
    <model>-<graph>-onnx                  ONNX files on the processor; `-onnx-gpu` on GPUs

Deployable artifacts that Triton cannot run are left out, each with a reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import CPU_TARGET, Backend, EngineFlavour, Precision, Status, is_applied, ranking_clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_artifacts.records import Manifest, ManifestEntry, TensorSpec


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
    """A model of the repository: one network in one precision for one batch range."""

    name: str
    platform: Platform
    on_gpu: bool
    entries: tuple[ManifestEntry, ...]
    """Artifacts, one for each type of GPU; a single one if any GPU can run it, or the type is unknown."""

    @property
    def filenames(self) -> tuple[str, ...]:
        """Names of the entries' files in the repository, in the entries' order."""
        plain = self.platform.value[2]
        if not self.by_gpu:
            return (plain,)
        stem, _, suffix = plain.rpartition(".")
        return tuple(f"{stem}.sm{_capability(entry)}.{suffix}" for entry in self.entries)

    @property
    def by_gpu(self) -> bool:
        """True if Triton chooses the file by the GPU; always for an engine, so that no other GPU loads it."""
        return self.platform is Platform.TENSORRT or len(self.entries) > 1

    @property
    def files_by_capability(self) -> dict[str, str]:
        """File names by compute capability ("9.0"), Triton's `cc_model_filenames`; empty if the GPU does not matter."""
        if not self.by_gpu:
            return {}
        names = zip(self.entries, self.filenames, strict=True)
        return {f"{_capability(entry) // 10}.{_capability(entry) % 10}": name for entry, name in names}

    @property
    def max_batch(self) -> int:
        """Largest batch that Triton may compose of requests; 0 if each request must be a batch of an accepted size.

        Of an artifact that takes any batch it is the largest that was validated. Triton composes batches of any size
        from 1 on. An artifact that takes no single image is therefore not batched,
        and the shape of an engine with a fixed batch size includes that size.
        """
        profile = self.entries[0].profile
        if profile is None:
            return max((row.batch for row in self.entries[0].rows), default=1)
        return profile.max if profile.min == 1 < profile.max else 0

    @property
    def preferred_batch(self) -> int | None:
        """Batch size that the engine is tuned for; None without one that Triton composes."""
        profile = self.entries[0].profile
        return profile.opt if profile and self.max_batch and profile.opt > 1 else None

    def dims(self, spec: TensorSpec) -> tuple[int, ...]:
        """Return a tensor's shape for Triton, -1 for a free size; without the batch axis if Triton composes batches."""
        sample = tuple(size if isinstance(size, int) else -1 for size in spec.shape[1:])
        if self.max_batch:
            return sample
        profile = self.entries[0].profile
        return (profile.min if profile and profile.is_fixed else -1, *sample)


def plan_models(manifest: Manifest) -> tuple[tuple[TritonModel, ...], tuple[LeftOut, ...]]:
    """Return the models that Triton can run, sorted by name, and the deployable artifacts that are left out."""
    left: dict[str, str] = {}
    groups: dict[str, list[ManifestEntry]] = {}
    for entry in manifest.artifacts:
        if entry.status is not Status.DEPLOYABLE or entry.backend.is_baseline:
            continue
        if reason := _obstacle(entry):
            left[entry.id] = reason
        else:
            groups.setdefault(_name(entry), []).append(entry)
    models = []
    for name, entries in sorted(groups.items()):
        platform = _platform(entries[0])
        on_gpu = platform is not Platform.ONNX or entries[0].target != CPU_TARGET
        models.append(TritonModel(name, platform, on_gpu, tuple(_choose(entries, left))))
    order = [entry.id for entry in manifest.artifacts if entry.id in left]
    return tuple(models), tuple(LeftOut(name, left[name]) for name in order)


def _obstacle(entry: ManifestEntry) -> str:
    """Return the reason why Triton cannot run a deployable artifact; empty if it can."""
    if entry.backend is Backend.DYNAMO:
        return "Triton loads torch's AOTInductor packages (`formats: [aot_inductor]`), but no ExportedPrograms"
    if entry.backend is Backend.TORCH_COMPILE:
        return "a recipe is compiled in Python when it is opened, so that Triton has nothing to load"
    if entry.backend is Backend.TENSORRT:
        if entry.built_for is None or entry.built_for.flavour is not EngineFlavour.TENSORRT:
            return "Triton runs TensorRT engines, but none of TensorRT-RTX"
        if entry.built_for.gpu is None:
            return "the GPU that it was built for is unknown"
        if is_applied("strip_plan", entry.settings):
            return "it was built without its weights"
    if entry.backend is Backend.ONNXRUNTIME and entry.graph:
        if entry.graph.precision in {Precision.INT8, Precision.FP8} and not entry.graph.for_x86:
            return "its Q/DQ pairs are placed for TensorRT; the validation ran without optimisers that Triton leaves on"
        if entry.target != CPU_TARGET and entry.precision is Precision.FP32:
            return "it was validated without TF32, which Triton's ONNX Runtime leaves on"
    return ""


def _platform(entry: ManifestEntry) -> Platform:
    if entry.backend is Backend.TENSORRT:
        return Platform.TENSORRT
    return Platform.AOTI if entry.backend is Backend.DYNAMO_AOTI else Platform.ONNX


def _name(entry: ManifestEntry) -> str:
    """Return the model's name; artifacts that Triton's clients cannot tell apart share one."""
    platform = _platform(entry)
    if platform is Platform.ONNX:
        graph = entry.graph.value if entry.graph else entry.precision.value
        return f"{entry.model}-{graph}-onnx{'' if entry.target == CPU_TARGET else '-gpu'}"
    precision = entry.graph.value if entry.graph and entry.graph.is_mixed else entry.precision.value
    batches = entry.profile.label if entry.profile else "any"
    return f"{entry.model}-{precision}-{batches}-{'trt' if platform is Platform.TENSORRT else 'aoti'}"


def _choose(entries: Sequence[ManifestEntry], left: dict[str, str]) -> list[ManifestEntry]:
    """Return the fastest artifact for each compute capability; `left` receives the reasons against the others."""
    newest = max(_version(entry) for entry in entries)
    left.update(
        {
            entry.id: "other engines are of a newer TensorRT, and a server has one version"
            for entry in entries
            if _version(entry) != newest
        }
    )
    chosen: dict[int, ManifestEntry] = {}
    fitting = [entry for entry in entries if _version(entry) == newest]
    for entry in sorted(fitting, key=lambda entry: (_milliseconds(entry), entry.id)):
        best = chosen.setdefault(_capability(entry), entry)
        if best is not entry:
            left[entry.id] = f"{best.id} takes its place: as fast or faster, and Triton tells GPUs apart by SM alone"
    return [chosen[capability] for capability in sorted(chosen)]


def _version(entry: ManifestEntry) -> tuple[int, ...]:
    return tuple(int(part) for part in entry.built_for.version.split(".")) if entry.built_for else ()


def _milliseconds(entry: ManifestEntry) -> float:
    """Return the median latency in ms at the tuned batch size, by the ranking clock; infinite without a timing."""
    if not entry.timings:
        return math.inf
    clock = ranking_clock({timing.clock for timing in entry.timings})
    tuned = entry.profile.opt if entry.profile else 1
    times = [timing.p50_ms for timing in entry.timings if timing.clock is clock and timing.batch == tuned]
    return min(times, default=math.inf)


def _capability(entry: ManifestEntry) -> int:
    """Return the compute capability that a file needs, such as 90 for SM 9.0; 0 if any will do."""
    if entry.built_for:
        return entry.built_for.compute_capabilities[0]
    return entry.gpu.compute_capability if entry.gpu and _platform(entry) is not Platform.ONNX else 0
