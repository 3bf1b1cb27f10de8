"""`Config` → what there is to do: the variants of the matrix and the steps that make them. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

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
from pipeline.config.settings import Baseline, Executor, ModuleFormat
from pipeline.config.values import PORTABLE_COMPUTE_CAPABILITIES
from pipeline.planning.steps import _LAST, Dependencies, Stage, Step
from pipeline.planning.targets import Machines, engine_targets_of

if TYPE_CHECKING:
    from model_artifacts.records import Gpu
    from pipeline.config.settings import Config, FarmTarget
    from pipeline.planning.targets import GpuTarget
    from pipeline.records import FarmHost


_T = TypeVar("_T")

_QUANTIZED = {Precision.INT8, Precision.FP8}
_QDQ = {Graph.INT8, Graph.FP8}
"""Whole, and as TensorRT takes them."""
_SAVED_BY = {ModuleFormat.EXPORTED_PROGRAM: Backend.DYNAMO, ModuleFormat.AOT_INDUCTOR: Backend.DYNAMO_AOTI}
_HALF = {Precision.FP16, Precision.BF16}
_FASTEST_FIRST = (Precision.FP16, Precision.BF16, Precision.TF32, Precision.FP32)
"""What tensor cores take in channels_last without a copy."""


@dataclass(frozen=True)
class Plan:
    """Everything that a configuration asks for, on a host."""

    config: Config
    host: Host = field(default_factory=Host)
    """This machine."""
    farm: tuple[FarmHost, ...] = ()
    """The workers of every one of the configuration's `farm.targets`, where those build."""

    @property
    def model(self) -> str:
        """The model's name, which every subject begins with."""
        return self.config.model.name

    @cached_property
    def graphs(self) -> tuple[Graph, ...]:
        """The ONNX files that the variants need; the FP32 one is what the others are quantised from."""
        wanted = {variant.graph for variant in self.variants if variant.graph} | {Graph.FP32}
        return tuple(graph for graph in Graph if graph in wanted)

    @cached_property
    def _machines(self) -> tuple[Machines, ...]:
        """Where engines are built and GPUs run them: here, or on the farm's workers."""
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
        """What engines are built for.

        `rtx-sm80+` is TensorRT-RTX's portable default and `rtx-sm75-89` a list; `sm90-h100-80gb-hbm3-trt10.15` is a
        GPU type, by a flavour that tunes on the GPU.
        """
        return tuple(target for place in self._machines for target in engine_targets_of(place))

    @cached_property
    def module_targets(self) -> tuple[GpuTarget, ...]:
        """What torch's modules run on: `sm90-h100-80gb-hbm3-torch2.11`; of workers, those that have torch."""
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
        """What engines and modules are built for, by name."""
        return {target.name: target for target in (*self.engine_targets, *self.module_targets)}

    def engine_target(self, variant: Variant) -> GpuTarget:
        """Return what an engine is built for."""
        return self._gpu_targets[variant.target]

    def gpu(self, target: str) -> Gpu | None:
        """Return the GPU that a target's variants are run on here; None for the CPU's, and where there is none."""
        found = self._gpu_targets.get(target)
        return found.gpu if found else None

    def workers(self, step: Step) -> FarmHost | None:
        """Return who runs a step; None for this machine, which runs what every target shares."""
        if step.stage in {Stage.BUILD, Stage.VALIDATE, Stage.PROFILE}:
            target = self.variant(step.subject).target
        elif step.stage is Stage.BENCHMARK:
            target = self.target(step.subject)
        else:
            return None
        return self.workers_of(target)

    def workers_of(self, target: str) -> FarmHost | None:
        """Return who runs the variants of a target; None for this machine."""
        found = self._gpu_targets.get(target)
        return found.workers if found else None

    def baseline(self, target: str) -> Variant | None:
        """Return what a target's latencies are held against: eager FP32 on the same processor or GPU."""
        at = self._gpu_targets.get(target)
        there = [item for item in self.module_targets if at and (item.gpu, item.workers) == (at.gpu, at.workers)]
        homes = [item.name for item in there] if at else [CPU_TARGET]
        return next((item for item in self.variants if item.target in homes and _is_baseline(item)), None)

    def hardware(self, variant: Variant) -> str:
        """Return what hardware a variant runs on, as a phrase."""
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
        """Eager FP32 is the baseline; ONNX Runtime runs every graph that a CPU can."""
        variants = [Variant(model=self.model, target=CPU_TARGET, backend=Backend.EAGER, precision=Precision.FP32)]
        for graph in Graph:
            if graph.precision not in self.config.precisions or (graph.is_mixed and not self._left(graph)):
                continue
            backend = Backend.ONNX_REFERENCE if graph is Graph.BF16 else Backend.ONNXRUNTIME
            variants.append(
                Variant(model=self.model, target=CPU_TARGET, backend=backend, precision=graph.precision, graph=graph)
            )
        return variants

    def _gpu_variants(self) -> list[Variant]:
        """Engines, then torch's modules: precision × profile × workspace, smallest first."""
        engines = [
            variant for target in self.engine_targets for variant in self._compiled(Backend.TENSORRT, target.name)
        ]
        modules = [variant for target in self.module_targets for variant in self._modules(target.name)]
        return [*engines, *modules]

    def _modules(self, target: str) -> list[Variant]:
        """What users compare with, eager FP32 whatever the precisions; then Torch-TensorRT's ways."""
        cast = [precision for precision in self.config.precisions if precision not in _QUANTIZED]
        plain = partial(Variant, model=self.model, target=target)
        found = [plain(backend=Backend.EAGER, precision=item) for item in dict.fromkeys((Precision.FP32, *cast))]
        found += [item.model_copy(update={"layout": Layout.CHANNELS_LAST}) for item in found if item.precision in _HALF]
        baselines = self.config.benchmark.baselines
        if Baseline.INDUCTOR in baselines and cast:
            found.append(plain(backend=Backend.INDUCTOR, precision=min(cast, key=_FASTEST_FIRST.index)))
        found += [
            plain(backend=Backend.ONNXRUNTIME, precision=graph.precision, graph=graph)
            for graph in (Graph.FP32, Graph.FP16)
            if graph.precision in cast and Baseline.ONNXRUNTIME in baselines
        ]
        for backend in (Backend.TORCH_COMPILE, *(_SAVED_BY[form] for form in self.config.torch_tensorrt.formats)):
            found += self._compiled(backend, target)
        return found

    def _compiled(self, backend: Backend, target: str) -> list[Variant]:
        return [
            Variant(
                model=self.model,
                target=target,
                backend=backend,
                precision=precision,
                graph=graph,
                profile=profile,
                workspace=workspace,
            )
            for precision in self.config.precisions
            if precision not in _QUANTIZED or backend is Backend.TENSORRT  # a module is cast, and int8 is no cast
            for graph in (self._graphs_of(precision) if backend is Backend.TENSORRT else (None,))
            for profile in self.config.profiles
            for workspace in self._workspaces(target)
        ]

    def _graphs_of(self, precision: Precision) -> tuple[Graph, ...]:
        """Return the graphs that engines of a precision are built from; TF32's is FP32's, multiplied otherwise."""
        if precision is Precision.TF32:
            return (Graph.FP32,)
        mixed = [graph for graph in (Graph.INT8_MIXED, Graph.FP8_MIXED) if graph.precision is precision]
        return (Graph(precision.value), *(graph for graph in mixed if self._left(graph)))

    def _left(self, graph: Graph) -> tuple[str, ...]:
        return self.config.leave_unquantized.of(graph)

    def _workspaces(self, target: str) -> list[Workspace]:
        """Return the sizes on a target, smallest first; percentages are of its GPU's memory."""
        gpu = self.gpu(target)
        memory = gpu.memory_bytes if gpu else None
        sized = [(workspace.bytes(memory) or 0, workspace.label) for workspace in self.config.workspaces]
        return [Workspace(bytes=size, label=label) for size, label in sorted(sized)]

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """What the variants run on; one interleaved benchmark each."""
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

    @cached_property
    def _families(self) -> dict[Variant, list[Variant]]:
        """The variants by what they have in common but for the workspace."""
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
        return self._find(variant_id, self._by_id, "variant")

    @cached_property
    def _by_id(self) -> dict[str, Variant]:
        return {variant.id: variant for variant in self.variants}

    def graph(self, subject: str) -> Graph:
        """Return the graph that `resnet18/fp16` names.

        Raises:
            UsageError: the plan has no such graph.
        """
        return self._find(subject, {f"{self.model}/{graph.value}": graph for graph in self.graphs}, "graph")

    def quantized(self, subject: str) -> Graph:
        """Return the int8 or fp8 graph that `resnet18/int8` names, whole and as TensorRT takes it.

        Raises:
            UsageError: the plan has no such graph.
        """
        known = {f"{self.model}/{graph.value}": graph for graph in self.graphs if graph in _QDQ}
        return self._find(subject, known, "quantised graph")

    def target(self, subject: str) -> str:
        """Return the target that `resnet18/cpu-x86_64` names.

        Raises:
            UsageError: the plan has no such target.
        """
        return self._find(subject, {f"{self.model}/{target}": target for target in self.targets}, "target")

    def check_model(self, subject: str) -> None:
        """Check that `subject` is this plan's model.

        Raises:
            UsageError: it is not.
        """
        self._find(subject, {self.model: self.model}, "model")

    @staticmethod
    def _find(name: str, known: dict[str, _T], kind: str) -> _T:
        if name in known:
            return known[name]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise UsageError(
            f"no {kind} {name!r} in this configuration",
            expected=("one of " if close else "") + (", ".join(close) or ", ".join(list(known)[:5])),
            fix="`python -m pipeline plan` lists every step",
        )

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step that `doit` runs, in an order in which they can run."""
        graphs = [self.graph_step(graph) for graph in self.graphs]
        return (
            Step(Stage.SOURCE, self.model),
            Step(Stage.DATA, self.model),
            *sorted(graphs, key=lambda step: step.stage is Stage.QUANTIZE),
            *(Step(Stage.BUILD, variant.id) for variant in self.variants),
            *(Step(Stage.VALIDATE, variant.id) for variant in self.variants),
            *(Step(Stage.BENCHMARK, f"{self.model}/{target}") for target in self.targets),
            Step(Stage.MANIFEST, self.model),
            Step(Stage.REPORT, self.model),
        )

    @cached_property
    def on_demand(self) -> tuple[Step, ...]:
        """Steps that are run by their name only: nothing is decided by what they tell."""
        quantized = [graph for graph in self.graphs if graph in _QDQ]
        return (
            *(Step(Stage.PROFILE, variant.id) for variant in self.variants),
            *(Step(Stage.SENSITIVITY, f"{self.model}/{graph.value}") for graph in quantized),
        )

    def dependencies(self, step: Step) -> Dependencies:
        """Return the steps that come before one."""
        if step.stage is Stage.SOURCE:
            return Dependencies()
        if step.stage in {Stage.DATA, Stage.EXPORT}:
            return Dependencies(self._of(Stage.SOURCE))
        if step.stage is Stage.QUANTIZE:
            return Dependencies((*self._of(Stage.DATA), self.graph_step(Graph.FP32)))
        if step.stage is Stage.BUILD:
            return self._before_build(self.variant(step.subject))
        if step.stage is Stage.VALIDATE:
            # Where the engine is the same, so is its accuracy.
            follows = self._smaller(Stage.VALIDATE, self.variant(step.subject))
            return Dependencies((*self._of(Stage.DATA), Step(Stage.BUILD, step.subject)), follows)
        if step.stage is Stage.BENCHMARK:
            return self._before_benchmark(step)
        if step.stage is Stage.SENSITIVITY:
            return Dependencies((*self._of(Stage.DATA), self.graph_step(Graph.FP32)))
        if step.stage is Stage.PROFILE:
            return Dependencies((*self._of(Stage.DATA), Step(Stage.BUILD, step.subject)))
        if step.stage is Stage.REPORT:
            return Dependencies(self._of(Stage.MANIFEST))
        return Dependencies(follows=tuple(other for other in self.steps if other.stage not in _LAST))

    def _before_build(self, variant: Variant) -> Dependencies:
        """A graph, or the weights; and builds with smaller workspaces, whose engine this one may turn out to be."""
        required = (self.graph_step(variant.graph),) if variant.graph else self._of(Stage.SOURCE)
        return Dependencies(required, self._smaller(Stage.BUILD, variant))

    def _smaller(self, stage: Stage, variant: Variant) -> tuple[Step, ...]:
        """Return the step of the next smaller workspace, which comes after that of the one before."""
        smaller = self._next_smaller.get(variant.id)
        return (Step(stage, smaller),) if smaller else ()

    @cached_property
    def _next_smaller(self) -> dict[str, str]:
        """The next smaller workspace's variant, by variant, for those that have one."""
        found: dict[str, str] = {}
        for family in self._families.values():
            smaller = last = None
            for size, variant_id in sorted((item.workspace.bytes, item.id) for item in family if item.workspace):
                if last and last[0] < size:
                    smaller = last[1]
                if smaller:
                    found[variant_id] = smaller
                last = size, variant_id
        return found

    def _before_benchmark(self, step: Step) -> Dependencies:
        """The images; and everything that would disturb the clock: all builds, validations and earlier benchmarks.

        On a farm's workers that is what runs there; this machine also sends and takes what those do.
        """
        workers = self.workers(step)
        earlier = self._of(Stage.BENCHMARK)
        others = (*self._of(Stage.BUILD), *self._of(Stage.VALIDATE), *earlier[: earlier.index(step)])
        if workers:
            others = tuple(other for other in others if self.workers(other) == workers)
        return Dependencies(self._of(Stage.DATA), others)

    def graph_step(self, graph: Graph) -> Step:
        """Return the step that makes an ONNX file."""
        stage = Stage.QUANTIZE if graph.precision in _QUANTIZED else Stage.EXPORT
        return Step(stage, f"{self.model}/{graph.value}")

    def _of(self, stage: Stage) -> tuple[Step, ...]:
        return self._by_stage.get(stage, ())

    @cached_property
    def _by_stage(self) -> dict[Stage, tuple[Step, ...]]:
        return {stage: tuple(step for step in self.steps if step.stage is stage) for stage in Stage}


def _is_baseline(variant: Variant) -> bool:
    return variant.backend is Backend.EAGER and variant.precision is Precision.FP32
