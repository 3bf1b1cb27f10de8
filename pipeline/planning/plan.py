"""`Config` → `Plan`: the variants of the matrix, and the targets that they are for. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from model_artifacts.errors import UsageError
from model_artifacts.records import (
    CPU_TARGET,
    GPU_TARGET,
    Backend,
    EngineFlavour,
    Graph,
    Host,
    Layout,
    Precision,
    Variant,
    Workspace,
    module_target,
)
from pipeline.config.benchmark import Baseline
from pipeline.config.settings import Executor, ModuleFormat
from pipeline.config.values import PORTABLE_COMPUTE_CAPABILITIES, QUANTIZED_PRECISIONS
from pipeline.planning.steps import Step
from pipeline.planning.targets import Machines, engine_targets_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from model_artifacts.records import Gpu
    from pipeline.config.settings import Config, FarmTarget
    from pipeline.planning.targets import GpuTarget
    from pipeline.records import FarmHost


_T = TypeVar("_T")

QDQ = {Graph.INT8, Graph.FP8}
"""Graphs whose every layer is quantised, in the form that TensorRT takes."""
_SAVED_BY = {ModuleFormat.EXPORTED_PROGRAM: Backend.DYNAMO, ModuleFormat.AOT_INDUCTOR: Backend.DYNAMO_AOTI}
_HALF = {Precision.FP16, Precision.BF16}
_FASTEST_FIRST = (Precision.FP16, Precision.BF16, Precision.TF32, Precision.FP32)
"""Precisions whose tensor cores take channels_last without a copy."""


class Arithmetic(NamedTuple):
    """A graph and the precision that runs it: they decide how a network rounds."""

    graph: Graph
    precision: Precision

    @property
    def name(self) -> str:
        """The last part of its subject: the graph's name, or `tf32`, which runs the FP32 graph."""
        return self.precision.value if self.precision is Precision.TF32 else self.graph.value


STRICT_FP32, TF32 = (Arithmetic(Graph.FP32, precision) for precision in (Precision.FP32, Precision.TF32))


def arithmetic_of(variant: Variant, executed: Precision | None = None) -> Arithmetic:
    """Return the arithmetic of a variant. A torch module has the graph of its precision.

    Args:
        variant: the variant.
        executed: the precision that it computed in, if known. An FP32 variant that multiplied in TF32 has TF32's.
    """
    if variant.precision is Precision.FP32 and executed is Precision.TF32:
        return TF32
    plain = Graph.FP32 if variant.precision is Precision.TF32 else Graph(variant.precision.value)
    return Arithmetic(variant.graph or plain, variant.precision)


@dataclass(frozen=True)
class Plan:
    """The variants and targets of a configuration on a host."""

    config: Config
    host: Host = field(default_factory=Host)
    """This machine."""
    farm: tuple[FarmHost, ...] = ()
    """The workers of each entry of `farm.targets`; empty without a farm."""

    @property
    def model(self) -> str:
        """The model's name, the first part of every subject."""
        return self.config.model.name

    @cached_property
    def graphs(self) -> tuple[Graph, ...]:
        """The ONNX files that the variants need, and FP32, from which the others are quantised."""
        wanted = {variant.graph for variant in self.variants if variant.graph} | {Graph.FP32}
        return tuple(graph for graph in Graph if graph in wanted)

    @cached_property
    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """The arithmetics of the variants, and TF32, which a library may choose in place of FP32."""
        found = {*map(arithmetic_of, self.variants), TF32}
        return tuple(
            Arithmetic(graph, precision) for graph in Graph for precision in Precision if (graph, precision) in found
        )

    @cached_property
    def _machines(self) -> tuple[Machines, ...]:
        """The machines that build and run GPU variants: this one, or each kind of the farm's workers."""
        tensorrt = self.config.tensorrt
        if self.config.executor is Executor.RAY:
            return tuple(self._machines_on_farm(target) for target in self.config.farm_targets)
        found = next((EngineFlavour(tool.name) for tool in self.host.flavours), EngineFlavour.TENSORRT_RTX)
        flavour = tensorrt.flavour or found
        ahead = tensorrt.compute_capabilities if flavour is EngineFlavour.TENSORRT_RTX else ()
        gpus = self.config.gpus(self.host)
        return (Machines(gpus, self.host.torch, *self.host.tensorrt(flavour), ahead),)

    def _machines_on_farm(self, target: FarmTarget) -> Machines:
        workers = next(item for item in self.farm if item.worker_kind == target.worker_kind)
        host = workers.machine
        installed = host.tensorrt(target.flavour)
        return Machines(
            gpus=host.gpus[:1] if target.accelerator else (),
            torch=host.torch,
            flavour=target.flavour,
            flavour_version=installed.version,
            cuda_major=installed.cuda_major,
            compute_capabilities=self.config.compute_capabilities_of(target),
            workers=workers,
        )

    @cached_property
    def engine_targets(self) -> tuple[GpuTarget, ...]:
        """The targets of engines.

        `rtx-sm80+` is TensorRT-RTX's portable default and `rtx-sm75-89` a list; `sm90-h100-80gb-hbm3-trt10.15` is a
        GPU type, for a flavour that times tactics on the GPU.
        """
        return tuple(target for place in self._machines for target in engine_targets_of(place))

    @cached_property
    def module_targets(self) -> tuple[GpuTarget, ...]:
        """The targets of torch's modules, such as `sm90-h100-80gb-hbm3-torch2.11`; only workers with torch have one."""
        found: dict[str, GpuTarget] = {}
        for place in self._machines:
            for gpu in place.gpus if place.workers is None or place.torch != "absent" else ():
                target = place.target(module_target(gpu, place.torch), gpu)
                found.setdefault(target.name, target)
        if not found and self.config.executor is Executor.LOCAL:
            return (self._machines[0].target(GPU_TARGET, None),)
        return tuple(found.values())

    @cached_property
    def _gpu_targets(self) -> dict[str, GpuTarget]:
        """The targets of engines and modules, by name."""
        return {target.name: target for target in (*self.engine_targets, *self.module_targets)}

    def engine_target(self, variant: Variant) -> GpuTarget:
        """Return the target of an engine."""
        return self._gpu_targets[variant.target]

    def gpu(self, target: str) -> Gpu | None:
        """Return the GPU that runs a target's variants; None for the CPU's target, and on a host without that GPU."""
        found = self._gpu_targets.get(target)
        return found.gpu if found else None

    def workers_of(self, target: str) -> FarmHost | None:
        """Return the workers that run the variants of a target; None for this machine."""
        found = self._gpu_targets.get(target)
        return found.workers if found else None

    def baseline(self, target: str) -> Variant | None:
        """Return the baseline of a target's latencies: eager FP32 on the same processor or GPU.

        A model that is an ONNX file has none, because PyTorch cannot run it.
        """
        if self.config.model.onnx is not None:
            return None
        at = self._gpu_targets.get(target)
        there = [item for item in self.module_targets if at and (item.gpu, item.workers) == (at.gpu, at.workers)]
        homes = [item.name for item in there] if at else [CPU_TARGET]
        return next((item for item in self.variants if item.target in homes and _is_baseline(item)), None)

    def hardware(self, variant: Variant) -> str:
        """Return the hardware that a variant runs on, as a phrase."""
        if variant.target == CPU_TARGET:
            return "an x86-64 processor"
        target = self._gpu_targets[variant.target]
        if not target.compute_capabilities:
            return f"an {target.gpu.name}" if target.gpu else "an NVIDIA GPU"
        if target.compute_capabilities == PORTABLE_COMPUTE_CAPABILITIES:
            return "an SM80+ GPU"
        return "a GPU of SM " + ", ".join(map(str, target.compute_capabilities))

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The matrix, in the order in which it is built and shown."""
        return (*self._cpu_variants(), *self._gpu_variants())

    def _cpu_variants(self) -> list[Variant]:
        """Return the CPU's variants: eager FP32 as the baseline, and each graph that ONNX Runtime can run."""
        variants = [Variant(model=self.model, target=CPU_TARGET, backend=Backend.EAGER, precision=Precision.FP32)]
        for graph in Graph:
            if graph.precision not in self.config.precisions or (graph.is_mixed and not self._left(graph)):
                continue
            backend = Backend.ONNX_REFERENCE if graph is Graph.BF16 else Backend.ONNXRUNTIME
            plain = Variant(
                model=self.model, target=CPU_TARGET, backend=backend, precision=graph.precision, graph=graph
            )
            variants += self._in_each_form(plain)
        return variants

    def _gpu_variants(self) -> list[Variant]:
        """Return engines, then torch's modules: precision × batch range × workspace, smallest first."""
        engines = [
            variant for target in self.engine_targets for variant in self._compiled(Backend.TENSORRT, target.name)
        ]
        modules = [variant for target in self.module_targets for variant in self._modules(target.name)]
        return [*engines, *modules]

    def _modules(self, target: str) -> list[Variant]:
        """Return the baselines (eager FP32 in every configuration), then Torch-TensorRT's modules."""
        cast = [precision for precision in self.config.precisions if precision not in QUANTIZED_PRECISIONS]
        eager = dict.fromkeys((Precision.FP32, *(self.config.torch_tensorrt.precisions or cast)))
        plain = partial(Variant, model=self.model, target=target)
        found = [plain(backend=Backend.EAGER, precision=item) for item in eager]
        found += [item.model_copy(update={"layout": Layout.CHANNELS_LAST}) for item in found if item.precision in _HALF]
        baselines = self.config.benchmark.baselines
        if Baseline.INDUCTOR in baselines and cast:
            found.append(plain(backend=Backend.INDUCTOR, precision=min(cast, key=_FASTEST_FIRST.index)))
        found += [
            variant
            for graph in (Graph.FP32, Graph.FP16)
            if graph.precision in cast and Baseline.ONNXRUNTIME in baselines
            for variant in self._in_each_form(
                plain(backend=Backend.ONNXRUNTIME, precision=graph.precision, graph=graph)
            )
        ]
        if Baseline.ONNXRUNTIME_TENSORRT in baselines:
            found += [
                plain(
                    backend=Backend.ONNXRUNTIME_TENSORRT,
                    precision=graph.precision,
                    graph=graph,
                    profile=profile,
                    workspace=self._workspaces(target)[-1],
                )
                for graph in (Graph.FP16, Graph.INT8)
                if graph.precision in self.config.precisions
                for profile in self.config.profiles
            ]
        for backend in (Backend.TORCH_COMPILE, *(_SAVED_BY[form] for form in self.config.torch_tensorrt.formats)):
            found += self._compiled(backend, target)
        return found

    def _compiled(self, backend: Backend, target: str) -> list[Variant]:
        """Return the engines of a target, or its modules: a module is cast, and int8 is no cast."""
        precisions, profiles = self.config.precisions, self.config.profiles
        if backend is not Backend.TENSORRT:
            wanted = self.config.torch_tensorrt
            precisions = tuple(item for item in wanted.precisions or precisions if item not in QUANTIZED_PRECISIONS)
            profiles = wanted.profiles or profiles
        plain = partial(Variant, model=self.model, target=target, backend=backend)
        return [
            plain(precision=precision, graph=graph, profile=profile, workspace=workspace, io=item.io)
            for precision in precisions
            for graph in (self._graphs_of(precision) if backend is Backend.TENSORRT else (None,))
            for profile in profiles
            for item in self.config.io
            for workspace in self._workspaces(target)
        ]

    def _in_each_form(self, variant: Variant) -> list[Variant]:
        """Return a variant with each input and output; a baseline that is never deployed has the network's own."""
        if variant.backend.is_baseline:
            return [variant]
        return [variant.model_copy(update={"io": item.io}) for item in self.config.io]

    def _graphs_of(self, precision: Precision) -> tuple[Graph, ...]:
        """Return the graphs that engines of a precision are built from; TF32 takes the FP32 graph."""
        if precision is Precision.TF32:
            return (Graph.FP32,)
        mixed = [graph for graph in (Graph.INT8_MIXED, Graph.FP8_MIXED) if graph.precision is precision]
        return (Graph(precision.value), *(graph for graph in mixed if self._left(graph)))

    def _left(self, graph: Graph) -> tuple[str, ...]:
        return self.config.leave_unquantized.of(graph)

    def _workspaces(self, target: str) -> list[Workspace]:
        """Return the workspaces on a target, smallest first; a percentage is of its GPU's memory."""
        gpu = self.gpu(target)
        memory = gpu.memory_bytes if gpu else None
        sized = [(workspace.bytes(memory) or 0, workspace.label) for workspace in self.config.workspaces]
        return [Workspace(bytes=size, label=label) for size, label in sorted(sized)]

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The targets of the variants; each has one interleaved benchmark."""
        return tuple(dict.fromkeys(variant.target for variant in self.variants))

    def variants_on(self, target: str) -> tuple[Variant, ...]:
        """Return the variants of a target, in order."""
        return self._by_target.get(target, ())

    @cached_property
    def _by_target(self) -> dict[str, tuple[Variant, ...]]:
        found: dict[str, list[Variant]] = {}
        for variant in self.variants:
            found.setdefault(variant.target, []).append(variant)
        return {target: tuple(variants) for target, variants in found.items()}

    @property
    def families(self) -> Iterable[list[Variant]]:
        """The variants in groups that differ in the workspace only."""
        return self._families.values()

    @cached_property
    def _families(self) -> dict[Variant, list[Variant]]:
        """The variants, grouped by everything but the workspace."""
        families: dict[Variant, list[Variant]] = {}
        for variant in self.variants:
            families.setdefault(variant.family, []).append(variant)
        return families

    def family(self, variant: Variant) -> tuple[Variant, ...]:
        """Return the variants that differ from `variant` in a smaller workspace only, smallest first."""
        return tuple(
            other
            for other in self._families.get(variant.family, ())
            if other.workspace and variant.workspace and other.workspace.bytes < variant.workspace.bytes
        )

    def variant(self, variant_id: str) -> Variant:
        """Return the variant of this id.

        Raises:
            UsageError: there is none; the message names the closest.
        """
        return find_named(variant_id, self.variants_by_id, "variant")

    @cached_property
    def variants_by_id(self) -> dict[str, Variant]:
        """The variants, by their ids."""
        return {variant.id: variant for variant in self.variants}

    @cached_property
    def targets_by_subject(self) -> dict[str, str]:
        """The targets, by the name that a step has for one: `resnet18/cpu-x86_64`."""
        return {f"{self.model}/{target}": target for target in self.targets}

    def rounding_step(self, arithmetic: Arithmetic) -> Step:
        """Return the step that emulates an arithmetic."""
        return Step("rounding", f"{self.model}/{arithmetic.name}")

    def graph_step(self, graph: Graph) -> Step:
        """Return the step that makes an ONNX file."""
        return Step("quantize" if graph.precision in QUANTIZED_PRECISIONS else "export", f"{self.model}/{graph.value}")


def find_named(name: str, known: Mapping[str, _T], noun: str) -> _T:
    """Return the entry of a name.

    Raises:
        UsageError: there is none; the message lists the closest names.
    """
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise UsageError(
        f"no {noun} {name!r} in this configuration",
        expected=("one of " if close else "") + (", ".join(close) or ", ".join(list(known)[:5])),
        fix="`python -m pipeline plan` lists every step, with the `--config` of this command if it has one",
    )


def _is_baseline(variant: Variant) -> bool:
    return variant.backend is Backend.EAGER and variant.precision is Precision.FP32
