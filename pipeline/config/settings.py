"""`pipeline.yaml` → `Config`: the only reader of the configuration, and every check that needs nothing else."""

from __future__ import annotations

import difflib
import re
from enum import Enum
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from model_artifacts.errors import ConfigError, UsageError
from model_artifacts.records import EngineFlavour, Gpu, Graph, Host, Precision, Preprocessing, Profile, Record, Whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from pipeline.config.yaml_source import Location, YamlSource

KNOWN_COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
"""What TensorRT-RTX of any version can build for without a GPU (its `ComputeCapability` enumerations)."""

PORTABLE_COMPUTE_CAPABILITIES = (80, 86, 89, 120)
"""What TensorRT-RTX builds for by default: Ampere, Ada and Blackwell, and whatever comes later (its documentation,
"CPU-Only AOT and TensorRT-RTX Engines")."""

R = TypeVar("R", bound=Record)

Number = Annotated[float, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]

_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?B|B)?|\d+(\.\d+)?\s*%", re.ASCII)
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

_SIZE_EXAMPLES = "a size such as 256MiB or 1GiB"


def _profile(value: object) -> object:
    """A bare number is a fixed batch."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"expected a batch of at least 1, got {value}")
        return {"min": value, "opt": value, "max": value}
    if not isinstance(value, dict):
        raise ValueError(f"expected a batch size or {{min, opt, max}}, got {value!r}")  # noqa: TRY004 - as above
    return value


def _auto(value: object) -> object:
    return None if value == "auto" else value


def _device(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or (isinstance(value, int) and value < 0):
        raise ValueError(f"expected a GPU's number, its UUID, or all, got {value!r}")
    return str(value)


def _compute_capabilities(value: object) -> object:
    """`80+` is the portable default; a list is sorted, and every entry must be known; `current` is none."""
    if value in ("current", ()):
        return ()
    if value in ("80+", PORTABLE_COMPUTE_CAPABILITIES):
        return PORTABLE_COMPUTE_CAPABILITIES
    known = ", ".join(map(str, KNOWN_COMPUTE_CAPABILITIES))
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected 80+, current or a list out of {known}, got {value!r}")
    unknown = [item for item in value if type(item) is not int or item not in KNOWN_COMPUTE_CAPABILITIES]
    if unknown:
        raise ValueError(f"unknown compute capability {unknown[0]!r}; expected 80+, current or a list out of {known}")
    return tuple(sorted(set(value)))


def _workspace(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"expected {_SIZE_EXAMPLES}, got {value!r}")  # noqa: TRY004 - pydantic collects ValueErrors
    return {"text": str(value).strip()}


class WorkspaceSize(Record):
    """A workspace as written: bytes, or a percentage of the GPU's total memory."""

    text: str

    @model_validator(mode="after")
    def _is_a_size(self) -> WorkspaceSize:
        if not _SIZE.fullmatch(self.text):
            raise ValueError(f"expected {_SIZE_EXAMPLES}, got {self.text!r}")
        if self.percent is not None:
            if not 0 < self.percent <= 100:  # noqa: PLR2004 - per cent
                raise ValueError(f"expected a share above 0 % and up to 100 %, got {self.text!r}")
            return self
        try:
            size = TypeAdapter(ByteSize).validate_python(self.text)
        except ValidationError:
            raise ValueError(f"expected {_SIZE_EXAMPLES}, got {self.text!r}") from None
        if size <= 0:
            raise ValueError(f"expected a size above 0, got {self.text!r}")
        return self

    @property
    def percent(self) -> float | None:
        """The share of the GPU's memory, in per cent, if that is what was written."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", self.text)
        return float(match[1]) if match else None

    @property
    def label(self) -> str:
        """The text as a file name may hold it: `1GiB`, `25pct`."""
        return re.sub(r"\s+", "", self.text).replace("%", "pct")

    def bytes(self, gpu_memory_bytes: int | None) -> int | None:
        """Return the size in bytes; None for a percentage where no GPU's memory is known."""
        if self.percent is None:
            return int(TypeAdapter(ByteSize).validate_python(self.text))
        return None if gpu_memory_bytes is None else max(int(gpu_memory_bytes * self.percent / 100), 1)


def _factory(value: str) -> str:
    if not _FACTORY.fullmatch(value):
        raise ValueError(f"expected package.module:function, got {value!r}")
    return value


class ModelConfig(Record):
    """Which model, and whose weights."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "resnet18"
    factory: Annotated[str, AfterValidator(_factory)] = "torchvision.models:resnet18"
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


class KernelSpecialization(str, Enum):
    """When TensorRT-RTX compiles kernels for the shapes that an engine of several batch sizes really sees."""

    EAGER = "eager"
    """Before the first batch of a size runs."""
    LAZY = "lazy"
    """In the background, while slower kernels serve."""
    NONE = "none"


def _without(settings: R, *names: str) -> R:
    """Return settings as if some of them had been left out."""
    return settings.model_copy(update={name: type(settings).model_fields[name].default for name in names})


class TensorRTConfig(Record):
    """How engines are built. What a flavour cannot apply is recorded as such beside the engine."""

    flavour: Annotated[EngineFlavour | None, BeforeValidator(_auto)] = None
    """None, written `auto`, takes `tensorrt` where it is installed, else `tensorrt_rtx`."""
    compute_capabilities: Annotated[tuple[int, ...], BeforeValidator(_compute_capabilities)] = (
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


def _share(unit: str, size: float) -> Callable[[object], object]:
    """Return a validator of a share with its unit: `3%`, `0.1pt`; a bare number says nothing of its unit."""

    def validate(value: object) -> object:
        number = value.removesuffix(unit).strip() if isinstance(value, str) and value.endswith(unit) else ""
        if not re.fullmatch(r"\d+(\.\d+)?", number):
            raise ValueError(
                f"expected a number with its unit, such as {3 if unit == '%' else 0.1}{unit}, got {value!r}"
            )
        return float(number) * size

    return validate


class ReleaseConfig(Record):
    """What this build is held against."""

    manifest: Annotated[str, StringConstraints(min_length=1)]
    """The released build's manifest.json."""
    max_latency_increase: Annotated[float, BeforeValidator(_share("%", 0.01))] = 0.03
    """Beyond noise: where the intervals overlap, nothing has changed."""
    max_top1_drop: Annotated[float, BeforeValidator(_share("pt", 0.01))] = 0.001


class Executor(str, Enum):
    """Where the steps of GPUs run."""

    LOCAL = "local"
    RAY = "ray"
    """On workers of a Ray cluster that have what a target needs."""


_RAYS_OWN = re.compile(r"CPU|GPU|memory|object_store_memory|(node|accelerator_type):.*")


def _own_resource(name: str) -> str:
    if _RAYS_OWN.fullmatch(name):
        raise ValueError(f"{name} is a resource of Ray's own; expected one that nodes declare")
    return name


class FarmTarget(Record):
    """What is built on the farm, and what a worker must have for it."""

    flavour: EngineFlavour
    accelerator: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """The type of GPU as Ray calls it: H100, A10G, L4. None takes workers without one, which build ahead of time."""
    compute_capabilities: Annotated[tuple[int, ...] | None, BeforeValidator(_compute_capabilities)] = None
    """Instead of those of `tensorrt:`; left out, those."""
    resources: tuple[Annotated[str, StringConstraints(min_length=1), AfterValidator(_own_resource)], ...] = ()
    """Custom resources that nodes declare: what tells two kinds of H100, or of installations, apart."""
    steps_per_gpu: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    """How many steps share a GPU, and its memory, that time nothing; whatever is timed has one to itself."""

    @property
    def needs(self) -> str:
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
    preprocessing: Annotated[Preprocessing | None, BeforeValidator(_auto)] = None
    """None, written `auto`, takes the weights' own."""
    data: DataConfig = DataConfig()
    device: Annotated[str, BeforeValidator(_device)] = "0"
    """Which GPU engines are built for and run on: CUDA's number, a UUID, or `all` different types."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = (
        Precision.FP32,
        Precision.FP16,
        Precision.BF16,
        Precision.INT8,
    )
    profiles: Annotated[tuple[Annotated[Profile, BeforeValidator(_profile)], ...], Field(min_length=1)]
    workspaces: Annotated[tuple[Annotated[WorkspaceSize, BeforeValidator(_workspace)], ...], Field(min_length=1)]
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


def load_config(file: Path, host: Host | None = None) -> Config:
    """Read and check a configuration.

    Args:
        file: the YAML file.
        host: whose GPUs `device` and percentages of memory mean; None is one without.

    Raises:
        ConfigError: lists every problem with its `file:line:column`.
    """
    from pipeline.config.yaml_source import parse_yaml  # noqa: PLC0415 - what loads an engine reads no YAML

    try:
        data = file.read_bytes()
    except OSError as exc:
        raise UsageError(
            f"the configuration {file} cannot be read: {exc.strerror}",
            fix="run from the project's folder, or name a file: `--config FILE`, with doit `config=FILE`",
        ) from exc
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError(file, [f"{file}:1:1: not UTF-8 text: {exc.reason} at byte {exc.start}"]) from exc
    source = parse_yaml(file, text)
    if source.data is None and source.problems:
        raise ConfigError(file, source.problems)
    try:
        config = Config.model_validate(source.data)
    except ValidationError as exc:
        raise ConfigError(file, _sorted(file, (*source.problems, *_problems(source, exc)))) from None
    crossed = [f"{source.position(place)}: {text}" for place, text in _cross_checks(config, host or Host())]
    if source.problems or crossed:
        raise ConfigError(file, _sorted(file, (*source.problems, *crossed)))
    return config


def _cross_checks(config: Config, host: Host) -> list[tuple[Location, str]]:
    """What no single value can know: (location, problem) pairs."""
    on_farm = config.executor is Executor.RAY
    gpus = () if on_farm else config.gpus(host)
    problems = [*(_farm_checks(config) if on_farm else _device_checks(config, host, gpus))]
    if config.farm and not on_farm:
        problems.append((("farm",), "is of `executor: ray`, and the executor is local; add that, or take this out"))
    memory = gpus[0].memory_bytes if gpus else None
    for index, batch in enumerate(config.timed_batches):
        if not any(profile.takes(batch) for profile in config.profiles):
            labels = ", ".join(profile.label for profile in config.profiles)
            problems.append((("benchmark", "batches", index), f"batch {batch} lies in no profile ({labels})"))
    left = config.leave_unquantized
    for precision, names in ((Precision.INT8, left.int8), (Precision.FP8, left.fp8)):
        if names and precision not in config.precisions:
            refusal = f"layers of {precision.value} are named, and `precisions` does not have it"
            problems.append((("leave_unquantized", precision.value), refusal))
    lists: dict[Location, list[str]] = {
        ("precisions",): [precision.value for precision in config.precisions],
        ("profiles",): [profile.label for profile in config.profiles],
        ("workspaces",): [str(item.bytes(memory) or item.text) for item in config.workspaces],
        ("leave_unquantized", "int8"): list(config.leave_unquantized.int8),
        ("leave_unquantized", "fp8"): list(config.leave_unquantized.fp8),
        ("torch_tensorrt", "formats"): [form.value for form in config.torch_tensorrt.formats],
        ("benchmark", "batches"): [str(batch) for batch in config.timed_batches],
        ("farm", "targets"): [target.model_dump_json(exclude={"steps_per_gpu"}) for target in config.farm_targets],
    }
    for place, entries in lists.items():
        repeats = [(index, entry) for index, entry in enumerate(entries) if entry in entries[:index]]
        problems += [((*place, index), f"listed twice: {entry}") for index, entry in repeats]
    return problems


def _device_checks(config: Config, host: Host, gpus: tuple[Gpu, ...]) -> Iterator[tuple[Location, str]]:
    """Yield what this host's GPUs refuse."""
    if host.gpus and not gpus:
        there = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in host.gpus)
        yield ("device",), f"no GPU {config.device!r} here; expected one of {there}, or all"
    if not config.tensorrt.compute_capabilities and not host.gpus:
        refusal = "`current` is this host's GPU, and it has none; expected 80+ or a list of compute capabilities"
        yield ("tensorrt", "compute_capabilities"), refusal
    for index, workspace in enumerate(config.workspaces):
        if workspace.percent is not None and not host.gpus:
            refusal = f"{workspace.text!r} is a share of a GPU's memory, and this host has none; expected bytes: 1GiB"
            yield ("workspaces", index), refusal


def _farm_checks(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield what cannot be, or says nothing, where workers build."""
    if config.farm is None:
        yield ("executor",), "ray takes a key `farm`: {targets: [{accelerator: H100, flavour: tensorrt}]}"
    if config.device != "0":
        yield ("device",), "is a GPU of this machine, and `farm.targets` says what is built for; leave it out"
    if config.tensorrt.flavour:
        yield ("tensorrt", "flavour"), "every one of `farm.targets` names its own; leave it out"
    if config.torch_tensorrt.engine_cache:
        yield ("torch_tensorrt", "engine_cache"), "is kept on one machine, and workers keep none; leave it out"
    names: dict[str, int] = {}
    for index, target in enumerate(config.farm_targets):
        yield from _target_checks(config, target, ("farm", "targets", index))
        if ahead := config.compute_capabilities_of(target):
            name = portable_target(ahead)
            if (first := names.setdefault(name, index)) != index:
                same = f"makes the same engines as farm.targets[{first}], {name}"
                yield ("farm", "targets", index), f"{same}; give it other `compute_capabilities`, or `current`"


def _target_checks(config: Config, target: FarmTarget, place: Location) -> Iterator[tuple[Location, str]]:
    """Yield what one of the farm's targets cannot be."""
    if target.builds_on_its_gpu and target.compute_capabilities is not None:
        yield (*place, "compute_capabilities"), "TensorRT builds for the GPU that it runs on; leave it out"
    if target.accelerator is not None:
        return
    if target.steps_per_gpu > 1:
        yield (*place, "steps_per_gpu"), "is of a target with a GPU; expected `accelerator`, or leave it out"
    if not config.compute_capabilities_of(target):
        kind = "TensorRT" if target.builds_on_its_gpu else "`compute_capabilities: current`"
        yield place, f"{kind} builds on the GPU that it is for; expected `accelerator`, such as H100"
    for workspace in config.workspaces:
        if workspace.percent is not None:
            yield place, f"workspace {workspace.text!r} is a share of a GPU's memory; expected `accelerator`, or bytes"


def portable_target(compute_capabilities: tuple[int, ...]) -> str:
    """Return what engines are grouped under that TensorRT-RTX builds ahead of time: `rtx-sm80+`, `rtx-sm75-89`."""
    portable = compute_capabilities == PORTABLE_COMPUTE_CAPABILITIES
    return "rtx-sm80+" if portable else "rtx-sm" + "-".join(map(str, compute_capabilities))


def _problems(source: YamlSource, error: ValidationError) -> list[str]:
    """Say each of pydantic's errors with its position."""
    problems = []
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        if detail["type"] == "too_short" and detail["input"]:
            continue  # its items are wrong, and said to be
        if location in source.unreadable:
            continue  # said to be
        place = source.key_position(location) if detail["type"] == "extra_forbidden" else source.position(location)
        problems.append(f"{place}: {_explain(detail, location, _name(location))}")
    return problems


def _sorted(file: Path, problems: Iterable[str]) -> list[str]:
    """Each problem once, in the order of the file; those of one position in the order in which they were found."""

    def order(problem: str) -> tuple[int, int]:
        line, column, _ = problem.removeprefix(f"{file}:").split(":", 2)
        return int(line), int(column)

    return sorted(dict.fromkeys(problems), key=order)


def _name(location: Location) -> str:
    """`profiles[1].max`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".") if location else "the file"


_EXPECTED = {
    "model_type": "a mapping",
    "tuple_type": "a list",
    "too_short": "at least one entry",
}
"""What pydantic says in Python's words, in YAML's."""


def _explain(detail: ErrorDetails, location: Location, name: str) -> str:
    got = detail["input"]
    if detail["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {name!r}; {hint}"
    if detail["type"] == "missing":
        return f"missing key {name!r}"
    if detail["type"] == "value_error":
        return f"{name}: {detail['ctx']['error']}"
    if detail["type"] == "enum":
        close = difflib.get_close_matches(str(got), re.findall(r"'([^']*)'", detail["ctx"]["expected"]), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{name}: expected {detail['ctx']['expected']}, got {got!r}{hint}"
    if detail["type"] in _EXPECTED:
        return f"{name}: expected {_EXPECTED[detail['type']]}, got {got!r}"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{name}: {message}, got {got!r}"


def _known_keys(location: Location) -> list[str]:
    """Return the keys that the mapping at `location` may have."""
    model: type[BaseModel] = Config
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [
            annotation,
            *get_args(annotation),
            *(inner for arg in get_args(annotation) for inner in get_args(arg)),
        ]
        model = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return list(model.model_fields)
