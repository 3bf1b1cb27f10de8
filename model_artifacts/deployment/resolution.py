"""Manifest × host × requirements → the artifact to take, and the reasons against the others. Pure.

The order of preference is fixed, not measured: an engine tuned on this type of GPU, another engine that runs here, a
Torch-TensorRT module, an ONNX file. Within one tier the faster artifact at the required batch size wins, or the one
with more throughput. Artifacts that were not measured here come after those that were. Among them the nearest evidence
counts: a timing at the nearest batch size, on a device as like this one as there is. It promises no latency.
"""

from __future__ import annotations

import math
import re
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from model_artifacts.deployment.evidence import Evidence, Nearness, medians_of, nearest
from model_artifacts.errors import ResolveError
from model_artifacts.host.environment import tensorrt_of
from model_artifacts.records import (
    CPU_TARGET,
    Backend,
    ImageInput,
    Precision,
    Status,
    is_applied,
    module_target,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from model_artifacts.deployment.requirements import Requirements
    from model_artifacts.records import DeploymentHost, EngineFlavour, Gpu, ManifestEntry

_X86 = "x86_64"
LEAST_ONNXRUNTIME = (1, 20)
"""The oldest ONNX Runtime that runs the ONNX files, as the extra `onnxruntime` demands it."""
_NEEDS_ONNXRUNTIME = "needs onnxruntime"
_NO_GPU = "needs an NVIDIA GPU with its driver"


class Tier(IntEnum):
    """A measure of how well an artifact suits a host, best first: the order of preference."""

    EXACT_ENGINE = 0
    COMPATIBLE_ENGINE = 1
    TORCH_TENSORRT = 2
    ONNX = 3

    @property
    def phrase(self) -> str:
        """The tier's phrase in messages."""
        return {
            Tier.EXACT_ENGINE: "an engine tuned on this GPU",
            Tier.COMPATIBLE_ENGINE: "an engine that also runs on this GPU",
            Tier.TORCH_TENSORRT: "a Torch-TensorRT module",
            Tier.ONNX: "an ONNX file",
        }[self]


class Device(NamedTuple):
    """A device of a host that an artifact runs on."""

    tier: Tier
    gpu: Gpu | None
    """The GPU; None for the CPU."""


class Rejection(NamedTuple):
    """An artifact that is not taken."""

    id: str
    reason: str


class Resolution(NamedTuple):
    """The artifact to take."""

    entry: ManifestEntry
    place: Device
    latency_ms: float | None
    """The median at the required batch size, if measured on such a GPU or processor."""
    throughput_per_s: float | None
    """Images per second, at the required batch size or the best one."""
    rejected: tuple[Rejection, ...]
    """All other artifacts, in the manifest's order."""
    evidence: Evidence | None = None
    """The timing that ranked an artifact that was not measured so; None if it was, or was timed nowhere."""


class _Candidate(NamedTuple):
    entry: ManifestEntry
    place: Device
    latency_ms: float | None
    throughput_per_s: float | None
    evidence: Evidence | None
    """The nearest timing; None if the artifact was timed nowhere."""

    def measured(self, requirements: Requirements) -> float | None:
        """Return the required speed as measured on this device; None without such a timing."""
        return self.throughput_per_s if requirements.throughput else self.latency_ms

    def rank(self, requirements: Requirements) -> tuple[float, ...]:
        """Return the sort key: tier, then speed, measured before estimated, then accuracy."""
        accuracy = self.entry.accuracy.relative_l2 if self.entry.accuracy else math.inf
        measured = self.measured(requirements)
        if measured is not None:
            return (self.place.tier, -1.0, -measured if requirements.throughput else measured, accuracy)
        return (self.place.tier, *(self.evidence.rank if self.evidence else (math.inf, math.inf)), accuracy)


class _Artifacts(Protocol):
    """A manifest, or what else lists artifacts."""

    @property
    def artifacts(self) -> tuple[ManifestEntry, ...]: ...


def resolve_entry(
    manifest: _Artifacts,
    host: DeploymentHost,
    requirements: Requirements,
    unusable: Mapping[str, str] = MappingProxyType({}),
) -> Resolution:
    """Return the artifact to take on a host.

    Args:
        manifest: the artifacts.
        host: the host to run on.
        requirements: the caller's requirements.
        unusable: the reasons against artifacts that cannot be opened whatever the host, such as missing files, by id.

    Raises:
        ResolveError: no artifact suits; the message has the reason for each.
    """
    candidates: list[_Candidate] = []
    reasons: dict[str, str] = {}
    for entry in manifest.artifacts:
        found = unusable.get(entry.id) or _candidate(entry, host, requirements)
        if isinstance(found, _Candidate):
            candidates.append(found)
        else:
            reasons[entry.id] = found
    if not candidates:
        raise ResolveError(
            "no artifact of the manifest suits this host and the requirements",
            got="".join(f"\n    {name}: {reason}" for name, reason in reasons.items()) or "an empty manifest",
            fix="; or ".join([*_installs(reasons.values()), "build for this host (`doit`), or lower the requirements"]),
        )
    best, *others = sorted(candidates, key=lambda item: (item.rank(requirements), item.entry.id))
    reasons.update({item.entry.id: _why_not(item, best, requirements) for item in others})
    rejected = (Rejection(entry.id, reasons[entry.id]) for entry in manifest.artifacts if entry.id in reasons)
    evidence = best.evidence if best.measured(requirements) is None else None
    return Resolution(best.entry, best.place, best.latency_ms, best.throughput_per_s, tuple(rejected), evidence)


def _installs(reasons: Collection[str]) -> list[str]:
    """Return the commands that install the runtime of an artifact that lacks nothing else."""
    found = (reason.rpartition(": ")[2] for reason in reasons if reason.startswith(_NEEDS_ONNXRUNTIME))
    return list(dict.fromkeys(found))


def _why_not(item: _Candidate, best: _Candidate, requirements: Requirements) -> str:
    """Return the reason why an artifact that suits is not the one to take."""
    if item.place.tier != best.place.tier:
        return f"fits, but falls back: {item.place.tier.phrase}, and there is {best.place.tier.phrase}"
    mine, its = item.measured(requirements), best.measured(requirements)
    unit = f"{item.entry.counted}/s" if requirements.throughput else f"ms at batch {requirements.timed_batch}"
    if mine is None and its is not None:
        return f"fits, but was not timed here ({unit})"
    if mine is None and best.evidence and (item.evidence is None or item.evidence.rank != best.evidence.rank):
        return f"fits, but is not known to be faster: {item.evidence or 'timed nowhere'}, against {best.evidence}"
    if mine is not None and its is not None and mine != its:
        return f"fits, but {mine:.4g} {unit} against {its:.4g}"
    return (
        "fits, but is less accurate"
        if item.rank(requirements) > best.rank(requirements)
        else "fits equally, but comes later by name"
    )


def _candidate(entry: ManifestEntry, host: DeploymentHost, requirements: Requirements) -> _Candidate | str:
    """Return an artifact that suits, or the reason why it does not."""
    if entry.status is not Status.DEPLOYABLE:
        names_status = entry.reason.startswith(entry.status.value)
        return entry.reason if names_status else f"{entry.status.value}: {entry.reason}".removesuffix(": ")
    if is_applied("strip_plan", entry.settings) and entry.weights is None:
        return "was built without its weights, and the manifest names no file of them"
    if reason := _unmet(entry, requirements):
        return reason
    places = _places(entry, host)
    if isinstance(places, str):
        return places
    refusals = [_too_large(entry, place, host, requirements) for place in places]
    if all(refusals):
        return refusals[0]
    place = places[refusals.index("")]
    wanted = requirements.batch if requirements.throughput else requirements.timed_batch
    near = nearest(entry, place.gpu, host.processor, wanted)
    times = medians_of(entry) if near and near.nearness is Nearness.SAME else {}
    latency = times.get(requirements.timed_batch)
    if requirements.max_latency_ms is not None:
        where = place.gpu.name if place.gpu else host.processor
        if latency is None:
            return f"was not timed at batch {requirements.timed_batch} on {where}"
        if latency > requirements.max_latency_ms:
            got = f"{latency:.4g} ms at batch {requirements.timed_batch}"
            return f"{got}, required at most {requirements.max_latency_ms:g} ms"
    counted = times.items() if requirements.batch is None else [(requirements.batch, latency or 0.0)]
    rates = [1e3 * batch / milliseconds for batch, milliseconds in counted if milliseconds]
    return _Candidate(entry, place, latency, max(rates, default=None), near)


def _unmet(entry: ManifestEntry, requirements: Requirements) -> str:
    """Return the requirements that an artifact cannot meet on any host; empty if it meets them all."""
    if requirements.precision is not None and entry.precision != requirements.precision:
        return f"{entry.precision.value}, required {Precision(requirements.precision).value}"
    if entry.io.input != requirements.input:
        return f"takes {entry.io.input.value} images, required {ImageInput(requirements.input).value}"
    if entry.io.answer != requirements.output:
        return f"gives {entry.io.answer}, required {requirements.output}"
    profile = entry.profile
    needed = None if requirements.throughput and requirements.batch is None else requirements.timed_batch
    if profile and needed is not None and not profile.min <= needed <= profile.max:
        return f"takes batches of {profile.min} to {profile.max}, required {needed}"
    top1 = entry.accuracy.top1 if entry.accuracy else None
    if requirements.min_top1 is not None and (top1 is None or top1 < requirements.min_top1):
        got = "was validated without labels" if top1 is None else f"top-1 {top1:.1%}"
        return f"{got}, required at least {requirements.min_top1:.1%}"
    return ""


def _places(entry: ManifestEntry, host: DeploymentHost) -> list[Device] | str:
    """Return the devices of a host that an artifact runs on, the best first, or the reason why there are none."""
    if entry.backend is Backend.TENSORRT:
        return _places_of_engine(entry, host)
    if entry.backend.is_torch_tensorrt:
        return _places_of_module(entry, host)
    if entry.backend is not Backend.ONNXRUNTIME:
        return f"{entry.backend.value} is a baseline to compare with, not to deploy"
    return _places_of_onnx(entry, host)


def _places_of_onnx(entry: ManifestEntry, host: DeploymentHost) -> list[Device] | str:
    """Return the devices for an ONNX file, which needs ONNX Runtime with the provider of its target and nothing else.

    GPUs of the type that the file was validated on come first.
    """
    on_cpu = entry.target == CPU_TARGET
    if on_cpu and host.machine != _X86:
        return f"needs an x86-64 processor, got {host.machine}"
    if not on_cpu and (host.driver == "absent" or not host.host.gpus):
        return _NO_GPU
    if lacks := _lacks_onnxruntime(host, on_cpu=on_cpu):
        return lacks
    if on_cpu:
        return [Device(Tier.ONNX, None)]
    gpus = _roomiest_first(host.host.gpus, host)
    name = entry.gpu.name if entry.gpu else ""
    return [Device(Tier.ONNX, gpu) for gpu in sorted(gpus, key=lambda gpu: gpu.name != name)]


def _lacks_onnxruntime(host: DeploymentHost, *, on_cpu: bool) -> str:
    """Return what a host lacks to run ONNX files, with the command that installs it; empty if nothing."""
    have = host.onnxruntime
    install = f"`pip install 'model-artifacts[onnxruntime{'' if on_cpu else '-gpu'}]'`"
    if have.version == "absent":
        return f"{_NEEDS_ONNXRUNTIME}, which is not installed there: {install}"
    numbers = re.match(r"(\d+)\.(\d+)", have.version)  # nightly versions go on with letters
    if numbers and (int(numbers[1]), int(numbers[2])) < LEAST_ONNXRUNTIME:
        return f"{_NEEDS_ONNXRUNTIME} {'.'.join(map(str, LEAST_ONNXRUNTIME))} or later, got {have.version}: {install}"
    if not on_cpu and host.onnxruntime_cuda is False:
        return f"{_NEEDS_ONNXRUNTIME} with CUDA, got {have.name} {have.version}: {install}"
    return ""


def _places_of_engine(entry: ManifestEntry, host: DeploymentHost) -> list[Device] | str:
    built_for = entry.built_for
    if built_for is None:
        return "does not record the TensorRT and GPU it is for"
    if host.driver == "absent" or not host.host.gpus:
        return _NO_GPU
    versions = {tool.name: tool.version for tool in host.host.flavours}
    have = versions.get(built_for.flavour.value, "absent")
    if not built_for.runs_with(built_for.flavour, have):
        return f"needs {built_for.flavour.value} {built_for.version}, got {have}"
    if reason := _driver_too_old(host, built_for.flavour):
        return reason
    fitting = [gpu for gpu in host.host.gpus if built_for.runs_on(gpu)]
    if not fitting:
        numbers = ", ".join(map(str, built_for.compute_capabilities))
        return f"is for {built_for.gpu or 'GPUs'} (SM {numbers}), got {_names(host.host.gpus)}"
    exact = [gpu for gpu in fitting if gpu.name == built_for.gpu and have == built_for.version]
    others = [gpu for gpu in fitting if gpu not in exact]
    return [
        Device(tier, gpu)
        for tier, gpus in ((Tier.EXACT_ENGINE, exact), (Tier.COMPATIBLE_ENGINE, others))
        for gpu in _roomiest_first(gpus, host)
    ]


def _roomiest_first(gpus: Sequence[Gpu], host: DeploymentHost) -> list[Gpu]:
    """Return GPUs by their free memory, largest first; those of unknown free memory come last, in their own order."""
    free = {gpu.uuid: bytes_ for gpu, bytes_ in zip(host.host.gpus, host.free_memory_bytes, strict=True)}
    return sorted(gpus, key=lambda gpu: -(free[gpu.uuid] or 0))


def _places_of_module(entry: ManifestEntry, host: DeploymentHost) -> list[Device] | str:
    if entry.module is None:
        return "does not record the libraries that made it"
    have = {tool.name: tool.version for tool in (*host.host.flavours, host.torch_tensorrt)}
    have["torch"] = host.host.torch
    for tool in entry.module.libraries:
        if have.get(tool.name, "absent") != tool.version:
            return f"needs {tool.name} {tool.version}, got {have.get(tool.name, 'absent')}"
    if reason := _driver_too_old(host, tensorrt_of(host.torch_tensorrt)):
        return reason
    return _on_gpu_target(entry, host, Tier.TORCH_TENSORRT)


def _driver_too_old(host: DeploymentHost, flavour: EngineFlavour) -> str:
    needed = host.cuda_that_the_driver_lacks(flavour)
    return f"needs a driver for CUDA {needed}, got {host.driver}, for CUDA {host.driver_cuda}" if needed else ""


def _on_gpu_target(entry: ManifestEntry, host: DeploymentHost, tier: Tier) -> list[Device] | str:
    """Return the GPUs of the type that a target of torch was built on."""
    fitting = [gpu for gpu in host.host.gpus if module_target(gpu, host.host.torch) == entry.target]
    if host.driver != "absent" and fitting:
        return [Device(tier, gpu) for gpu in _roomiest_first(fitting, host)]
    return f"is for {entry.target}, got {_names(host.host.gpus)} with torch {host.host.torch}"


def _names(gpus: Sequence[Gpu]) -> str:
    return ", ".join(f"{gpu.name} (SM {gpu.compute_capability})" for gpu in gpus) or "no GPU"


def _too_large(entry: ManifestEntry, place: Device, host: DeploymentHost, requirements: Requirements) -> str:
    """Return the reason why an artifact does not fit into a GPU's memory; empty if it fits.

    The measured memory counts or, without a measurement, the builder's own figure.
    """
    planned = entry.memory.activation_bytes + (entry.memory.weights_bytes or 0) if entry.memory else None
    needed = entry.device_memory_bytes if entry.device_memory_bytes is not None else planned
    if place.gpu is None:
        return ""
    if requirements.max_memory_bytes is not None and needed is None:
        return "does not record how much of the GPU's memory it takes"
    free = host.free_memory_bytes[host.host.gpus.index(place.gpu)]
    bounds = {"required at most": requirements.max_memory_bytes, "free are": free}
    for words, bound in bounds.items():
        if needed is not None and bound is not None and needed > bound:
            return f"takes {needed / 2**20:.0f} MiB of the GPU's memory, {words} {bound / 2**20:.0f} MiB"
    return ""
