"""`pipeline.yaml` → `Config`: the only reader of the configuration, and every check that needs nothing else."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from model_artifacts.records import (
    BatchRange,
    EngineFlavour,
    KernelSpecialization,
    Precision,
    Preprocessing,
    Record,
    Whole,
)
from pipeline.config.values import (
    PORTABLE_COMPUTE_CAPABILITIES,
    Flag,
    Number,
    WorkspaceSize,
    check_factory,
    check_own_resource,
    parse_auto,
    parse_batch_range,
    parse_compute_capabilities,
    parse_device,
    parse_workspace,
    share_of,
)

if TYPE_CHECKING:
    from model_artifacts.records import Gpu, Graph, Host


R = TypeVar("R", bound=Record)


class ModelConfig(Record):
    """Which model, and whose weights."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "resnet18"
    factory: Annotated[str, AfterValidator(check_factory)] = "torchvision.models:resnet18"
    weights: str = "auto"
    """auto | IMAGENET1K_V1 | sample | factory | a path ending in .pth, .pt or .safetensors."""
    download_timeout_seconds: Annotated[Number, Field(gt=0)] = 10.0
    """How long a download may be silent before it counts as failed."""


class DataConfig(Record):
    """Which images, and how many."""

    images: str = "auto"
    """auto | digits | photographs | the path of a folder with one folder of images a class."""
    calibration: Whole = 128
    validation: Whole = 500


class Unquantized(Record):
    """Layers that stay in FP16 in variants of their own, `int8-mixed` and `fp8-mixed`: see `doit sensitivity`."""

    int8: tuple[str, ...] = ()
    fp8: tuple[str, ...] = ()

    def of(self, graph: Graph) -> tuple[str, ...]:
        """Return the layers that are left unquantised in a graph."""
        if not graph.is_mixed:
            return ()
        return self.fp8 if graph.precision is Precision.FP8 else self.int8


class TacticSource(str, Enum):
    """Where a builder may take kernels from; which of them a flavour knows is its own affair."""

    CUBLAS = "cublas"
    CUBLAS_LT = "cublas_lt"
    CUDNN = "cudnn"
    EDGE_MASK_CONVOLUTIONS = "edge_mask_convolutions"
    JIT_CONVOLUTIONS = "jit_convolutions"


class HardwareCompatibility(str, Enum):
    """Which other GPUs an engine that was tuned on one shall run on."""

    NONE = "none"
    AMPERE_PLUS = "ampere_plus"
    SAME_COMPUTE_CAPABILITY = "same_compute_capability"


def _without(settings: R, *names: str) -> R:
    """Return settings as if some of them had been left out."""
    return settings.model_copy(update={name: type(settings).model_fields[name].default for name in names})


class TensorRTConfig(Record):
    """How engines are built. What a flavour cannot apply is recorded as such beside the engine."""

    flavour: Annotated[EngineFlavour | None, BeforeValidator(parse_auto)] = None
    """None, written `auto`, takes `tensorrt` where it is installed, else `tensorrt_rtx`."""
    compute_capabilities: Annotated[tuple[int, ...], BeforeValidator(parse_compute_capabilities)] = (
        PORTABLE_COMPUTE_CAPABILITIES
    )
    """The GPU generations that one TensorRT-RTX engine runs on; `80+` is Ampere and everything later; empty, written
    `current`, is this host's GPU. TensorRT's engines belong to the GPU that built them, always."""
    optimization_level: Annotated[int, Field(strict=True, ge=0, le=5)] | None = None
    """How long the builder looks for faster kernels; None leaves the flavour's default."""
    tactic_sources: Annotated[tuple[TacticSource, ...], Field(min_length=1)] | None = None
    """None leaves the flavour's default."""
    hardware_compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    version_compatible: Flag = False
    refit: Flag = False
    """Engines whose weights can be replaced; where nothing else is new, TensorRT's are not built again."""
    strip_plan: Flag = False
    timing_cache: Flag = True
    kernel_specialization: KernelSpecialization = KernelSpecialization.EAGER
    build_timeout_seconds: Annotated[Number, Field(gt=0)] = 3600.0

    @property
    def build_settings(self) -> TensorRTConfig:
        """What changes an engine; the rest is as if it had been left out."""
        return _without(self, "flavour", "timing_cache", "kernel_specialization", "build_timeout_seconds")


class ModuleFormat(str, Enum):
    """How a module that was compiled ahead of time is saved."""

    EXPORTED_PROGRAM = "exported_program"
    AOT_INDUCTOR = "aot_inductor"
    """Takes a C++ compiler and, on two cores, three quarters of a minute."""


class TorchTensorRTConfig(Record):
    """How Torch-TensorRT compiles modules. What a version does not have is recorded as such beside the module."""

    formats: Annotated[tuple[ModuleFormat, ...], Field(min_length=1)] = (ModuleFormat.EXPORTED_PROGRAM,)
    """How `dynamo` modules are saved; each is an artifact of its own."""
    min_block_size: Whole = 5
    """How many operators in a row are worth a TensorRT engine; fewer stay in PyTorch."""
    optimization_level: Annotated[int, Field(strict=True, ge=0, le=5)] | None = None
    """How long the builder looks for faster kernels; None leaves the library's default."""
    require_full_compilation: Flag = False
    """Fail where an operator would stay in PyTorch."""
    engine_cache: Flag = False
    """Keep engines between builds, in a folder for each variant and source: the library's key ignores the workspace.

    Such engines can be refitted with other weights, and may be slower for it.
    """
    build_timeout_seconds: Annotated[Number, Field(gt=0)] = 3600.0

    @property
    def build_settings(self) -> TorchTensorRTConfig:
        """What changes a module; the rest is as if it had been left out."""
        return _without(self, "formats", "build_timeout_seconds")


class Gate(Record):
    """The bounds that a variant must keep to be deployable."""

    cosine: Annotated[Number, Field(ge=-1, le=1)]
    relative_l2: Annotated[Number, Field(ge=0)]
    top1_agreement: Annotated[Number, Field(ge=0, le=1)]
    top1_drop: Annotated[Number, Field(ge=-1, le=1)]
    class_drop: Annotated[Number, Field(ge=-1, le=1)] | None = None
    """Of the worst class; None records it without judging."""


class Gates(Record):
    """One gate a precision, against the strict FP32 reference. The numbers come from the design."""

    fp32: Gate = Gate(cosine=0.99999, relative_l2=1e-5, top1_agreement=0.999, top1_drop=0.001)
    tf32: Gate = Gate(cosine=0.99999, relative_l2=2e-3, top1_agreement=0.999, top1_drop=0.001)
    fp16: Gate = Gate(cosine=0.9999, relative_l2=5e-3, top1_agreement=0.995, top1_drop=0.002)
    bf16: Gate = Gate(cosine=0.999, relative_l2=3e-2, top1_agreement=0.99, top1_drop=0.005)
    int8: Gate = Gate(cosine=0.99, relative_l2=0.12, top1_agreement=0.98, top1_drop=0.01)
    fp8: Gate = Gate(cosine=0.99, relative_l2=0.12, top1_agreement=0.98, top1_drop=0.01)
    require_proof: Flag = False
    """Reject what agrees often enough, but on too few samples to prove it (Wilson 95 %)."""

    def of(self, precision: Precision) -> Gate:
        """Return the gate of a precision."""
        gates = {
            Precision.FP32: self.fp32,
            Precision.TF32: self.tf32,
            Precision.FP16: self.fp16,
            Precision.BF16: self.bf16,
            Precision.INT8: self.int8,
            Precision.FP8: self.fp8,
        }
        return gates[precision]


class ValidationConfig(Record):
    """How variants are judged."""

    reference_evaluator_samples: Whole = 8
    """How many samples the slow reference evaluator sees (bf16, which no CPU runtime runs)."""
    timeout_seconds: Annotated[Number, Field(gt=0)] = 1800.0
    """How long one engine may take."""


class Baseline(str, Enum):
    """What else is built and timed on a GPU, for comparison; eager always is."""

    INDUCTOR = "inductor"
    """torch.compile with max-autotune, in the fastest of the precisions: it tunes for minutes for each batch size."""
    ONNXRUNTIME = "onnxruntime"
    """ONNX Runtime's CUDA provider."""


class BenchmarkConfig(Record):
    """What is timed."""

    baselines: tuple[Baseline, ...] = tuple(Baseline)

    batches: Annotated[tuple[Whole, ...], Field(min_length=1)] | None = None
    """Left out, the batch that each profile is tuned for."""
    restarts: Whole = 3
    """How often every variant is opened and timed anew, each time in a fresh process."""
    warmup_runs: Whole = 2
    """A median of at least so many runs; variants warm up until two such medians in a row agree within 2 %."""
    warmup_seconds: Annotated[Number, Field(gt=0)] = 1.0
    """No longer than this, at each batch size."""
    rounds: Whole = 2
    """Of each restart; every round times every variant once: A B C A B C."""
    runs_per_round: Whole = 4
    gpu_round_ms: Annotated[Number, Field(gt=0)] = 50.0
    """On a GPU, where a run is short, a round goes on for as long."""
    streams: Whole = 4
    """How many batches an engine runs at once where throughput counts; 1 leaves that out."""

    @property
    def timing_settings(self) -> BenchmarkConfig:
        """What changes how latencies are measured; the rest is as if it had been left out."""
        return _without(self, "baselines")


class ReleaseConfig(Record):
    """What this build is held against."""

    manifest: Annotated[str, StringConstraints(min_length=1)]
    """The released build's manifest.json."""
    max_latency_increase: Annotated[float, BeforeValidator(share_of("%", 0.01))] = 0.03
    """Beyond noise: where the intervals overlap, nothing has changed."""
    max_top1_drop: Annotated[float, BeforeValidator(share_of("pt", 0.01))] = 0.001


class Executor(str, Enum):
    """Where the steps of GPUs run."""

    LOCAL = "local"
    RAY = "ray"
    """On workers of a Ray cluster that have what a target needs."""


class FarmTarget(Record):
    """What is built on the farm, and what a worker must have for it."""

    flavour: EngineFlavour
    accelerator: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """The type of GPU as Ray calls it: H100, A10G, L4. None takes workers without one, which build ahead of time."""
    compute_capabilities: Annotated[tuple[int, ...] | None, BeforeValidator(parse_compute_capabilities)] = None
    """Instead of those of `tensorrt:`; left out, those."""
    resources: tuple[Annotated[str, StringConstraints(min_length=1), AfterValidator(check_own_resource)], ...] = ()
    """Custom resources that nodes declare: what tells two kinds of H100, or of installations, apart."""
    steps_per_gpu: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    """How many steps share a GPU, and its memory, that time nothing; whatever is timed has one to itself."""

    @property
    def worker_kind(self) -> str:
        """What a worker must have, as a phrase: `H100 with tensorrt`; workers of one phrase are all alike."""
        return f"{self.accelerator or 'a processor'} with {' and '.join((self.flavour.value, *sorted(self.resources)))}"

    @property
    def builds_on_its_gpu(self) -> bool:
        """Whether an engine belongs to the GPU that has built it, whatever `compute_capabilities` says."""
        return self.flavour is EngineFlavour.TENSORRT


class FarmConfig(Record):
    """Which cluster, and for what it builds."""

    address: Annotated[str, StringConstraints(min_length=1)] = "auto"
    """The head's `host:port`; `auto` is the cluster that this machine is a node of."""
    targets: Annotated[tuple[FarmTarget, ...], Field(min_length=1)]
    retries: Annotated[int, Field(strict=True, ge=0)] = 2
    """How often a step is run again, elsewhere, whose worker was lost."""
    step_timeout_seconds: Annotated[Number, Field(gt=0)] = 7200.0
    """How long a step may take on a worker; waiting for one does not count."""
    queue_timeout_seconds: Annotated[Number, Field(gt=0)] = 86400.0
    """How long a step may wait for a worker that is free."""
    connect_timeout_seconds: Annotated[Number, Field(gt=0)] = 120.0
    """How long the cluster may take to be reached, and each of its machines to say what it is."""


class Config(Record):
    """All of `pipeline.yaml`."""

    artifacts: Annotated[str, StringConstraints(min_length=1)] = "artifacts"
    model: ModelConfig = ModelConfig()
    preprocessing: Annotated[Preprocessing | None, BeforeValidator(parse_auto)] = None
    """None, written `auto`, takes the weights' own."""
    data: DataConfig = DataConfig()
    device: Annotated[str, BeforeValidator(parse_device)] = "0"
    """Which GPU engines are built for and run on: CUDA's number, a UUID, or `all` different types."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = (
        Precision.FP32,
        Precision.FP16,
        Precision.BF16,
        Precision.INT8,
    )
    profiles: Annotated[tuple[Annotated[BatchRange, BeforeValidator(parse_batch_range)], ...], Field(min_length=1)]
    workspaces: Annotated[tuple[Annotated[WorkspaceSize, BeforeValidator(parse_workspace)], ...], Field(min_length=1)]
    leave_unquantized: Unquantized = Unquantized()
    tensorrt: TensorRTConfig = TensorRTConfig()
    torch_tensorrt: TorchTensorRTConfig = TorchTensorRTConfig()
    gates: Gates = Gates()
    validation: ValidationConfig = ValidationConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    release: ReleaseConfig | None = None
    """What this build is held against; None where nothing was released yet."""
    cache: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Where machines share what they build: a folder, s3:// or gs://; None shares nothing."""
    executor: Executor = Executor.LOCAL
    """Where the steps of GPUs run; everything else runs here."""
    farm: FarmConfig | None = None

    @property
    def farm_targets(self) -> tuple[FarmTarget, ...]:
        """What is built elsewhere; none where everything is built here."""
        return self.farm.targets if self.farm else ()

    def compute_capabilities_of(self, target: FarmTarget) -> tuple[int, ...]:
        """Return what a farm's target builds engines for ahead of time; empty for its GPU alone."""
        if target.builds_on_its_gpu:
            return ()
        own = target.compute_capabilities
        return self.tensorrt.compute_capabilities if own is None else own

    @property
    def timed_batches(self) -> tuple[int, ...]:
        """The batch sizes that are timed."""
        return self.benchmark.batches or tuple(sorted({profile.opt for profile in self.profiles}))

    def gpus(self, host: Host) -> tuple[Gpu, ...]:
        """Return those of the host's GPUs that `device` names: one, none, or the first of every type."""
        if self.device == "all":
            types = {gpu.slug: gpu for gpu in reversed(host.gpus)}
            return tuple(sorted(types.values(), key=lambda gpu: gpu.index))
        return tuple(gpu for gpu in host.gpus if self.device in {str(gpu.index), gpu.uuid})


def portable_target(compute_capabilities: tuple[int, ...]) -> str:
    """Return what engines are grouped under that TensorRT-RTX builds ahead of time: `rtx-sm80+`, `rtx-sm75-89`."""
    portable = compute_capabilities == PORTABLE_COMPUTE_CAPABILITIES
    return "rtx-sm80+" if portable else "rtx-sm" + "-".join(map(str, compute_capabilities))
