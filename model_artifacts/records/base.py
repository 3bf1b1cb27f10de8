"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import Enum
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, model_validator

if TYPE_CHECKING:
    from collections.abc import Collection

SCHEMA_VERSION = 1
"""The version of every record on disk; part of every staleness key."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[int, Field(strict=True, ge=1)]
"""A whole number of at least 1; `true` and `"8"` are not numbers."""
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
Microseconds = Annotated[float, Field(ge=0)]


class Record(BaseModel):
    """Frozen, closed, and comparable; NaN and infinity are refused because JSON has neither."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> str:
        """Return the record as JSON in canonical form: sorted keys, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


class Precision(str, Enum):
    """The type that convolutions and matrix products compute in."""

    FP32 = "fp32"
    """Strict: IEEE single precision, nothing rounded on the way into a multiplication."""
    TF32 = "tf32"
    """FP32 tensors whose mantissas are cut to 10 bits for multiplications on tensor cores."""
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    """E4M3."""


class Graph(str, Enum):
    """An ONNX file of the model. Precision lives in the graph, never in builder flags."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    """QDQ as TensorRT wants it: symmetric int8 activations, biases left in floating point."""
    INT8_CPU = "int8-cpu"
    """QDQ as x86 accelerates it: asymmetric uint8 activations."""
    FP8 = "fp8"
    """QDQ in E4M3 at INT8's places; everything else in FP16."""
    INT8_MIXED = "int8-mixed"
    """INT8 but for the layers that the configuration leaves unquantised."""
    INT8_MIXED_CPU = "int8-mixed-cpu"
    """INT8_CPU but for those."""
    FP8_MIXED = "fp8-mixed"
    """FP8 but for those."""

    @property
    def precision(self) -> Precision:
        """The precision that the graph computes in."""
        return Precision(self.value.split("-", maxsplit=1)[0])

    @property
    def is_mixed(self) -> bool:
        """Whether layers of it are left unquantised on request."""
        return self in {Graph.INT8_MIXED, Graph.INT8_MIXED_CPU, Graph.FP8_MIXED}

    @property
    def for_x86(self) -> bool:
        """Whether its activations are as x86 accelerates them, rather than as TensorRT takes them."""
        return self in {Graph.INT8_CPU, Graph.INT8_MIXED_CPU}


class Backend(str, Enum):
    """What runs an artifact."""

    EAGER = "eager"
    ONNXRUNTIME = "onnxruntime"
    ONNX_REFERENCE = "onnx-reference"
    TENSORRT = "tensorrt"
    INDUCTOR = "inductor"
    """torch.compile's own, with max-autotune."""
    DYNAMO = "dynamo"
    """Torch-TensorRT ahead of time, saved as an ExportedProgram."""
    DYNAMO_AOTI = "dynamo_aoti"
    """The same, saved as an AOTInductor package."""
    TORCH_COMPILE = "torch_compile"
    """Torch-TensorRT just in time, from a recipe."""

    @property
    def is_baseline(self) -> bool:
        """Whether it is there to compare with, and never deployed."""
        return self in {Backend.EAGER, Backend.INDUCTOR, Backend.ONNX_REFERENCE}

    @property
    def is_torch_tensorrt(self) -> bool:
        """Whether Torch-TensorRT makes it."""
        return self in {*AHEAD_OF_TIME, Backend.TORCH_COMPILE}

    @property
    def is_module(self) -> bool:
        """Whether it runs as a torch module."""
        return self.is_torch_tensorrt or self in {Backend.EAGER, Backend.INDUCTOR}

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """How the images may lie that it is run with; inductor chooses by itself, and tunes for minutes for each."""
        only_contiguous = self is Backend.INDUCTOR or not self.is_module
        return (Layout.CONTIGUOUS,) if only_contiguous else tuple(Layout)


AHEAD_OF_TIME = frozenset({Backend.DYNAMO, Backend.DYNAMO_AOTI})
"""What Torch-TensorRT compiles once and saves."""


class Layout(str, Enum):
    """How an image batch, or a convolution's weights, lie in memory."""

    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"


class Outcome(str, Enum):
    """How a stage ended for a variant."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


class Status(str, Enum):
    """What the manifest says of an artifact."""

    DEPLOYABLE = "deployable"
    BUILT = "built"
    REJECTED = "rejected"
    FAILED = "failed"
    SKIPPED = "skipped"


class Profile(Record):
    """The batch sizes that an engine takes: from `min` to `max`, tuned for `opt`."""

    min: Whole
    opt: Whole
    max: Whole

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"expected min ≤ opt ≤ max, got min {self.min}, opt {self.opt}, max {self.max}")
        return self

    def takes(self, batch: int) -> bool:
        """Return whether a batch of this size lies in the range."""
        return self.min <= batch <= self.max

    @property
    def is_fixed(self) -> bool:
        """It is one batch size, not a range."""
        return self.min == self.max

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that it names, each once, in order."""
        return tuple(sorted({self.min, self.opt, self.max}))

    @property
    def label(self) -> str:
        """`b8` for a fixed batch, `b1-8-32` for a range."""
        return f"b{self.min}" if self.is_fixed else f"b{self.min}-{self.opt}-{self.max}"


class Workspace(Record):
    """The most scratch memory that the builder may plan with."""

    bytes: PositiveInt
    label: str

    @property
    def name(self) -> str:
        """`ws1GiB`."""
        return f"ws{self.label}"


class Variant(Record):
    """One cell of the matrix."""

    model: str
    target: str
    backend: Backend
    precision: Precision
    graph: Graph | None = None
    profile: Profile | None = None
    workspace: Workspace | None = None
    layout: Layout = Layout.CONTIGUOUS
    """Of the weights."""

    @property
    def name(self) -> str:
        """`fp16-b1-8-32-ws1GiB` for an engine; other backends put their name in front."""
        backend = [] if self.backend is Backend.TENSORRT else [self.backend.value]
        graph = self.graph if self.graph and self.graph.precision is self.precision else None
        kind = graph.value if graph else self.precision.value  # tf32 has the graph of fp32
        profile = [self.profile.label] if self.profile else []
        workspace = [self.workspace.name] if self.workspace else []
        layout = [] if self.layout is Layout.CONTIGUOUS else [self.layout.value]
        return "-".join([*backend, kind, *profile, *workspace, *layout])

    @property
    def family(self) -> Variant:
        """What it has in common with the variants that differ from it in the workspace only."""
        return self.model_copy(update={"workspace": None})

    @property
    def id(self) -> str:
        """`model/target/name`: what commands, folders and the manifest call it."""
        return f"{self.model}/{self.target}/{self.name}"


class Interpolation(str, Enum):
    """How an image is resized (Pillow's filters of these names)."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Preprocessing(Record):
    """From an image file to the network's input: resize the short side, centre crop, scale to [0, 1], normalise.

    The input is float32 in NCHW order; one mean makes it greyscale, three RGB.
    """

    resize: Whole
    crop: Whole
    interpolation: Interpolation
    mean: tuple[Annotated[float, Field(strict=True)], ...]
    std: tuple[Annotated[float, Field(strict=True)], ...]

    @model_validator(mode="after")
    def _consistent(self) -> Preprocessing:
        if self.crop > self.resize:
            raise ValueError(f"expected crop ≤ resize, got crop {self.crop}, resize {self.resize}")
        if len(self.mean) not in {1, 3} or len(self.mean) != len(self.std):
            raise ValueError(
                "expected one mean and one std (greyscale) or three of each (RGB), "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"expected every std above 0, got {list(self.std)}")
        return self

    @property
    def channels(self) -> int:
        """1 for greyscale, 3 for RGB."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        return (self.channels, self.crop, self.crop)


class FileRecord(Record):
    """A file under artifacts/, by its path there, its size and its digest."""

    path: str
    bytes: Count
    sha256: Sha256


class TensorSpec(Record):
    """An input or output: a string in the shape is a dynamic axis."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    layout: str


class Tool(Record):
    """A package that took part, with its full version."""

    name: str
    version: str


class Gpu(Record):
    """A GPU of this host."""

    index: Count
    """CUDA's ordinal."""
    uuid: str
    name: str
    compute_capability: PositiveInt
    """Major and minor in one number: 90 is SM 9.0."""
    memory_bytes: PositiveInt

    @property
    def slug(self) -> str:
        """What a folder calls its type: `sm90-h100-80gb-hbm3`."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower().removeprefix("nvidia ")).strip("-")
        return f"sm{self.compute_capability}-{words}"


class InstalledTensorRT(NamedTuple):
    """A TensorRT of a host."""

    flavour: EngineFlavour
    version: str
    """Its full version, "absent" where it is not installed."""
    cuda_major: int | None


class Host(Record):
    """What a plan depends on besides the configuration."""

    gpus: tuple[Gpu, ...] = ()
    """In CUDA's order."""
    flavours: tuple[Tool, ...] = ()
    """The TensorRTs that are installed, by module and full version, the preferred one first."""
    cuda_majors: tuple[int | None, ...] = ()
    """The CUDA that each of them is made for, by its major version; None where its package does not say."""
    torch: str = "absent"
    """torch's version."""

    def tensorrt(self, flavour: EngineFlavour) -> InstalledTensorRT:
        """Return what is installed of a TensorRT."""
        majors = (*self.cuda_majors, *[None] * len(self.flavours))
        known = {tool.name: (tool.version, cuda) for tool, cuda in zip(self.flavours, majors, strict=False)}
        version, cuda = known.get(flavour.value, ("absent", None))
        return InstalledTensorRT(flavour, version, cuda)


class DeploymentHost(Record):
    """What a machine has that runs artifacts: `python -m pipeline host` prints it, `resolve --host` reads it."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    machine: str
    """As the kernel calls it: `x86_64`."""
    processor: str
    """Its name, and how many cores may be used."""
    host: Host
    free_memory_bytes: tuple[Count | None, ...]
    """Of each of its GPUs; None where that is not known."""
    driver: str
    """The NVIDIA driver's version, "absent" where there is none."""
    driver_cuda: int | None = None
    """The latest CUDA that the driver runs, by its major version; None where that is not known."""
    torch_tensorrt: Tool
    onnxruntime: Tool

    @model_validator(mode="after")
    def _tells_of_every_gpu(self) -> DeploymentHost:
        if len(self.free_memory_bytes) != len(self.host.gpus):
            raise ValueError(
                f"expected the free memory of {len(self.host.gpus)} GPUs, got {len(self.free_memory_bytes)}"
            )
        return self

    def cuda_that_the_driver_lacks(self, flavour: EngineFlavour) -> int | None:
        """Return the CUDA that the installed TensorRT takes, where the driver is too old for it.

        A driver runs every CUDA of its own major version and of earlier ones
        (docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
        """
        needed = self.host.tensorrt(flavour).cuda_major
        return needed if needed and self.driver_cuda and self.driver_cuda < needed else None


class FarmHost(Record):
    """What the workers of one or more of the farm's targets are: those that a target's needs name are all alike."""

    needs: str
    """What a target asks of its workers: `H100 with tensorrt`."""
    host: DeploymentHost


class FarmNode(Record):
    """A machine of the farm, as it was when it was looked at."""

    id: str
    """Which the cluster gives each time that a machine joins it."""
    host: DeploymentHost


class FarmRecord(Record):
    """The farm, as `python -m pipeline farm` has found it: `farm.json`. Plans are made from it."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    hosts: tuple[FarmHost, ...]
    nodes: tuple[FarmNode, ...] = ()
    here: str | None = None
    """On a worker: the needs of which it is a host."""


class EngineFlavour(str, Enum):
    """Which TensorRT, by the name of its module."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt_rtx"


_AMPERE = 80
"""The compute capability that `ampere_plus` begins with."""


_MAJORS = {(8, 10), (10, 11)}
"""Across which major versions TensorRT runs version-compatible engines: its support matrix, "Engine Portability"
(docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/support-matrix.html). TensorRT-RTX runs its own version's
alone (docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/engine-compatibility.html).
"""


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers; none of what is no version, such as "absent"."""
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


class BuiltFor(Record):
    """What a serialized engine runs on: the flavour that made it, in this version, on these GPUs."""

    flavour: EngineFlavour
    version: str
    gpu: str | None
    """The name of the GPU that it was tuned on; None for one built ahead of time."""
    compute_capabilities: tuple[int, ...]
    """Of that GPU; or the list that it was built for ahead of time."""
    version_compatible: bool = False
    """Later versions of TensorRT run it, too; no earlier one does."""
    hardware_compatibility: str = "none"
    """Which other GPUs run it: `none`, `same_compute_capability` or `ampere_plus`."""

    def runs_on(self, gpu: Gpu) -> bool:
        """Return whether a GPU is one of those."""
        if self.gpu is None:  # built ahead of time; the library itself says what of a list it takes
            return gpu.compute_capability >= min(self.compute_capabilities)
        if self.hardware_compatibility == "ampere_plus":
            return gpu.compute_capability >= _AMPERE
        if self.hardware_compatibility == "same_compute_capability":
            return gpu.compute_capability in self.compute_capabilities
        return gpu.name == self.gpu

    def runs_with(self, flavour: EngineFlavour, version: str) -> bool:
        """Return whether a TensorRT is one of those: the same version, or a later one where it was built for that."""
        if self.flavour is not flavour or self.version == version:
            return self.flavour is flavour
        if not self.version_compatible or flavour is not EngineFlavour.TENSORRT:
            return False
        made, have = _numbers(self.version), _numbers(version)
        return have >= made and (have[:1] == made[:1] or (made[0], have[0]) in _MAJORS)


class KeyField(Record):
    """One thing that a result depends on, flattened to text."""

    name: str
    value: str


class Key(Record):
    """The staleness key: a result is current while its key is."""

    fields: tuple[KeyField, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the fields as canonical JSON."""
        text = json.dumps([[field.name, field.value] for field in self.fields], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class StageRecord(Record):
    """What every stage writes beside its results."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    key: Key
    built_at: AwareDatetime
    toolchain: tuple[Tool, ...] = ()

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The files that this record vouches for."""
        return ()


class WeightsOrigin(str, Enum):
    """Where the weights came from."""

    IMAGENET1K_V1 = "IMAGENET1K_V1"
    CHECKPOINT = "checkpoint"
    FACTORY = "factory"
    SAMPLE = "sample"


class SourceRecord(StageRecord):
    """The model as the rest of the pipeline takes it: `<model>/source/source.json`."""

    model: str
    factory: str
    origin: WeightsOrigin
    origin_detail: str
    weights: FileRecord
    parameters: Count
    classes: PositiveInt
    class_names: tuple[str, ...] | None
    replaced_head: str | None
    """The name of the final linear layer, where the sample model has one of its own."""
    preprocessing: Preprocessing

    @property
    def input(self) -> TensorSpec:
        """What the model takes."""
        shape = ("batch", *self.preprocessing.input_shape)
        return TensorSpec(name="image", shape=shape, dtype="float32", layout="NCHW")

    @property
    def output(self) -> TensorSpec:
        """What the model gives."""
        return TensorSpec(name="logits", shape=("batch", self.classes), dtype="float32", layout="NC")

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The weights."""
        return (self.weights,)


class ImagesOrigin(str, Enum):
    """Where the images came from."""

    DIGITS = "digits"
    PHOTOGRAPHS = "photographs"
    FOLDER = "folder"


class DataRecord(StageRecord):
    """Calibration and validation batches, and what the FP32 reference says of them: `<model>/data/data.json`.

    Pixels are uint8 NHWC after resize and crop, before normalisation; logits are float32 (samples, classes).
    """

    origin: ImagesOrigin
    origin_detail: str
    preprocessing: Preprocessing
    calibration: FileRecord
    calibration_samples: PositiveInt
    validation: FileRecord
    validation_samples: PositiveInt
    labels: FileRecord | None
    reference: FileRecord
    reference_top1: Share | None
    unreadable: tuple[str, ...]
    names: FileRecord | None = None
    """The validation samples' files, where they are of a folder: a JSON list of paths in it."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Pixels, labels and names where there are any, and the reference's logits."""
        optional = tuple(file for file in (self.labels, self.names) if file)
        return (self.calibration, self.validation, *optional, self.reference)


class TensorCast(Record):
    """What casting one tensor to a narrower type does to its values."""

    name: str
    elements: Count
    underflow: Count
    """Non-zero values that become zero."""
    subnormal: Count
    """Values that stay non-zero below the type's smallest normal number."""
    overflow: Count
    """Finite values that become infinite."""


class OnnxRecord(StageRecord):
    """An ONNX file: `<model>/onnx/<graph>.json`."""

    graph: Graph
    file: FileRecord
    canonical_sha256: Sha256
    """Digest of what the graph computes: see `onnx_graph.canonical_digest`."""
    structure_sha256: Sha256
    """Digest of the same but for the weights' values: see `onnx_graph.structure_digest`."""
    opset: PositiveInt
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    folded_batch_norms: Count
    casts: tuple[TensorCast, ...]
    calibration_sha256: Sha256 | None = None
    left_unquantized: tuple[str, ...] = ()
    """Layers that the configuration leaves in floating point."""
    opset17: FileRecord | None = None
    """The same QDQ graph for TensorRT 8.6, whose parser ends at opset 17: FP32 instead of FP16 around what is
    quantised, and weights in FP32 behind Q/DQ pairs. None where `file` itself is of opset 17, or the FP32 graph is
    not."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The ONNX files."""
        return (self.file, self.opset17) if self.opset17 else (self.file,)


class Setting(Record):
    """A build setting: applied, or asked for where the flavour cannot."""

    name: str
    value: str
    applied: bool
    note: str = ""


def is_applied(name: str, settings: Collection[Setting]) -> bool:
    """Return whether a setting was asked for, and the flavour has applied it."""
    return any(setting.name == name and setting.applied for setting in settings)


class EngineMemory(Record):
    """What an engine says it needs."""

    activation_bytes: Count
    """Of each execution context: activations and scratch (`device_memory_size`)."""
    weights_bytes: Count | None
    """None where the builder does not say."""


class LayerShare(Record):
    """How many of an engine's convolutions and matrix products multiply in a type."""

    precision: Precision | None
    """None for one that the inspector does not tell, or that is none of ours."""
    layers: PositiveInt
    examples: tuple[str, ...]
    """Names of a few of them."""


class WeightWarning(Record):
    """What a builder said of weights that it converted."""

    issue: str
    """In its own words, such as `Detected subnormal FP16 values`."""
    weights: PositiveInt
    """How many tensors."""


class OperatorCalls(Record):
    """An operator, and how often a module calls it."""

    name: str
    calls: PositiveInt


class ModuleContents(Record):
    """What Torch-TensorRT made of a module, and what it left."""

    segments: Count
    """TensorRT engines in it."""
    torch_operators: tuple[str, ...]
    """Operators that stayed in PyTorch, each once."""
    calls: tuple[OperatorCalls, ...] = ()
    """The same with how often each is called, the most frequent first; older records have none."""
    layers: tuple[LayerShare, ...] = ()
    """The types of its engines' convolutions and matrix products, from their inspector."""
    libraries: tuple[Tool, ...]
    """What made it, and what it takes to load it: torch and Torch-TensorRT in these versions."""


class Recipe(Record):
    """How to make a module that cannot be saved: `recipe.json`."""

    variant: Variant
    factory: str
    code: str = ""
    """The digest of the factory's file, or the version of the package that it comes from; older recipes have none."""
    replaced_head: str | None
    classes: PositiveInt
    weights: FileRecord
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(channels, height, width)."""
    warm_up: tuple[PositiveInt, ...]
    """The batch sizes that are compiled before the first one counts."""
    settings: tuple[Setting, ...]
    libraries: tuple[Tool, ...]


class Artifact(StageRecord):
    """What a build made of a variant: `<model>/<target>/<variant>/artifact.json`."""

    variant: Variant
    outcome: Outcome
    reason: str = ""
    mendable: bool = False
    """Whether it was skipped for what this host may have the next time: then it is tried again."""
    file: FileRecord | None = None
    log: FileRecord | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    settings: tuple[Setting, ...] = ()
    memory: EngineMemory | None = None
    built_for: BuiltFor | None = None
    """What an engine runs on."""
    module: ModuleContents | None = None
    """What is in a Torch-TensorRT module."""
    timing_cache_sha256: Sha256 | None = None
    """Digest of the timing cache after the build, for flavours that time tactics."""
    structure_sha256: Sha256 | None = None
    """Of the graph that an engine was built from: with other weights for the same structure it can be refitted."""
    layers_sha256: Sha256 | None = None
    """Digest of the engine's layers; equal for engines that do the same work."""
    same_as: str | None = None
    """The variant whose file this one shares, because both engines are the same."""
    build_seconds: Annotated[float, Field(ge=0)] = 0.0
    weight_warnings: tuple[WeightWarning, ...] = ()

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The artifact's file and the builder's log, where there are such."""
        return tuple(file for file in (self.file, self.log) if file)


class GateCheck(Record):
    """One bound of a gate against the value that was measured."""

    metric: str
    bound: str
    value: str
    passed: bool


class ClassDrop(Record):
    """A class, and how much less of it is recognised than by the reference."""

    name: str
    """As the model calls it, or its number."""
    samples: PositiveInt
    drop: float
    """The reference's share of right answers less this one's."""


class RowCheck(Record):
    """How far a row's logits depend on the rows beside it, at one batch size."""

    batch: PositiveInt
    reference_l2: Annotated[float, Field(ge=0)]
    """The distance of the first samples' logits to the reference's, run in batches of this size."""
    relative_l2: Annotated[float, Field(ge=0)]
    """The largest ‖a - b‖ / ‖a‖ of a row's logits a, and b of the same row among others: in another place of the batch,
    and beside copies of one."""


class Accuracy(Record):
    """How close an artifact's logits are to the FP32 reference's."""

    samples: PositiveInt
    finite: bool
    cosine: float
    """Mean over the samples of the cosine between the two rows of logits."""
    cosine_min: float
    relative_l2: float
    """‖logits - reference‖ / ‖reference‖, over all samples (Frobenius norm)."""
    max_abs: float
    top1_agreement: Share
    top1_agreement_low: Share
    """Lower end of the Wilson score interval at 95 %."""
    top1_agreement_high: Share
    top1: Share | None
    """Share of samples whose label is predicted, where there are labels."""
    top1_drop: float | None
    """The reference's top-1 less this one's."""
    top5: Share | None = None
    """Share of samples whose label is among the five largest logits, where there are labels and more classes."""
    top5_drop: float | None = None
    worst_class: ClassDrop | None = None
    """The class whose share of right answers drops most, of those with enough samples."""
    worst_sample: Count


class LayerSensitivity(Record):
    """What quantising one layer, and no other, does to the logits."""

    name: str
    """What `leave_unquantized` in pipeline.yaml calls it."""
    kind: str
    """Its ONNX operator."""
    weights: Count
    """How many values."""
    relative_l2: Annotated[float, Field(ge=0)]
    cosine: Annotated[float, Field(ge=-1, le=1)]
    top1_agreement: Share


class Sensitivity(StageRecord):
    """How much each layer minds being quantised: `<model>/onnx/<graph>.sensitivity.json`."""

    graph: Graph
    samples: PositiveInt
    """Calibration images; those of validation stay unseen."""
    calibration_sha256: Sha256
    layers: tuple[LayerSensitivity, ...]
    """The most sensitive first."""
    plain: Accuracy
    """With every layer quantised."""
    proposal: tuple[str, ...]
    """The layers to leave unquantised for the gate to be kept: the fewest of the most sensitive."""
    proposed: Accuracy
    """With those left."""
    kept: bool
    """Whether the gate is kept then."""


class AccuracyReport(StageRecord):
    """A variant judged by its precision's gate: `accuracy.json` beside the artifact."""

    variant_id: str
    outcome: Outcome
    reason: str = ""
    mendable: bool = False
    """Whether it was skipped for what this host may have the next time: then it is tried again."""
    evaluator: str = ""
    accuracy: Accuracy | None = None
    checks: tuple[GateCheck, ...] = ()
    proven: bool = False
    """The Wilson lower bound clears the agreement gate too."""
    executed: Precision | None = None
    """What the artifact computed in, as far as it can be told: an fp32 engine that multiplied in TF32 says tf32, and is
    held to tf32's gate."""
    layers: tuple[LayerShare, ...] = ()
    """The types of an engine's convolutions and matrix products, from its inspector."""
    rows: tuple[RowCheck, ...] = ()
    """At the smallest, the best, the largest and an odd batch size that the artifact takes."""
    device: str = ""

    @property
    def passed(self) -> bool:
        """Every check of the gate passed."""
        return self.outcome is Outcome.DONE and all(check.passed for check in self.checks)


class Clock(str, Enum):
    """What a latency is the time of."""

    HOST = "host"
    """A call: input and output in the host's memory, by the host's clock."""
    GPU = "gpu"
    """The work on the GPU, between two events on its stream; input and output stay there."""
    GPU_GRAPH = "gpu-graph"
    """The same, replayed as a CUDA graph."""
    COPIES = "copies"
    """The graph with the copies from and to pinned memory of the host around it, all on one stream."""
    STREAMS = "streams"
    """Several batches at once, each on its own stream: the time a batch. Throughput, not latency."""

    @property
    def phrase(self) -> str:
        """How it was timed, as a message says it."""
        return {
            Clock.HOST: "by the host's clock",
            Clock.GPU: "on the GPU, without a CUDA graph",
            Clock.GPU_GRAPH: "on the GPU, as a CUDA graph",
            Clock.COPIES: "with the copies to and from the GPU",
            Clock.STREAMS: "a batch, with several streams",
        }[self]


CLOCKS = (Clock.GPU_GRAPH, Clock.GPU, Clock.COPIES, Clock.HOST, Clock.STREAMS)
"""The one that tells most of an engine first."""


def ranking_clock(clocks: Collection[Clock]) -> Clock:
    """Return the clock that variants are compared by: a CUDA graph's, without one the GPU's, on a CPU the host's.

    Every other one is paced by the host's launches and copies too.

    Args:
        clocks: those that a variant was timed by, at least one.
    """
    return min(clocks, key=CLOCKS.index)


class BatchTiming(Record):
    """Latencies of whole batches."""

    batch: PositiveInt
    clock: Clock = Clock.HOST
    layout: Layout = Layout.CONTIGUOUS
    """Of the images."""
    runs: PositiveInt
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds
    p50_low_ms: Milliseconds | None = None
    p50_high_ms: Milliseconds | None = None
    """The ends of the median's 95 % bootstrap interval, over all rounds of all restarts."""
    throughput_per_s: Annotated[float, Field(ge=0)]
    """Images a second: batch / p50."""
    speedup: float | None
    """p50 of eager FP32 at this batch, measured in the same rounds, over this p50."""
    enqueue_us: Microseconds | None = None
    """Median time that the host spends to put one batch on the GPU's stream."""

    @property
    def interval_ms(self) -> tuple[float, float]:
        """The ends of the median's interval; the median itself twice where there is none."""
        return (
            self.p50_ms if self.p50_low_ms is None else self.p50_low_ms,
            self.p50_ms if self.p50_high_ms is None else self.p50_high_ms,
        )

    def ties_with(self, other: BatchTiming) -> bool:
        """Return whether two medians cannot be told apart, because their intervals overlap."""
        (low, high), (other_low, other_high) = self.interval_ms, other.interval_ms
        return max(low, other_low) <= min(high, other_high)


class ColdStart(Record):
    """From opening an artifact to its first result, in a process that has CUDA and the library loaded."""

    seconds: Annotated[float, Field(ge=0)]
    cached_seconds: Annotated[float, Field(ge=0)] | None
    """The same with the runtime cache that lies beside the engine, where the flavour has one."""


class Range(Record):
    """What a sensor showed over a run."""

    low: float
    median: float
    high: float


class Conditions(Record):
    """What NVML told of a GPU while something was timed on it."""

    sm_clock_mhz: Range
    memory_clock_mhz: Range
    temperature_c: Range
    power_w: Range
    throttled_by: tuple[str, ...]
    """Why its clocks were held down, in NVML's words, each once; being idle is no reason."""


class Doubt(Record):
    """A reason not to trust latencies to the last digit."""

    what: str
    """A sentence that many variants may share."""
    detail: str
    """How much, or which, of this variant."""

    def __str__(self) -> str:
        """Return both as one sentence."""
        return f"{self.what}: {self.detail}"


class BenchmarkReport(StageRecord):
    """A variant's latencies: `benchmark.json` beside the artifact."""

    variant_id: str
    outcome: Outcome
    reason: str = ""
    mendable: bool = False
    """Whether it was skipped for what this host may have the next time: then it is tried again."""
    device: str = ""
    threads: Count = 0
    timings: tuple[BatchTiming, ...] = ()
    samples: FileRecord | None = None
    """Every latency measured: npz, one array `<clock>_batch_<n>` a clock and batch size, in milliseconds."""
    cold_start: ColdStart | None = None
    device_memory_bytes: Count | None = None
    """What it had taken from the GPU's free memory after its first run of every timed batch size, CUDA's own context
    not counted."""
    runtime_cache: FileRecord | None = None
    """The kernels that TensorRT-RTX compiled for this GPU, for the next process to load."""
    disturbed_by: tuple[str, ...] = ()
    """Other processes that computed on the GPU meanwhile."""
    restarts: Count = 0
    """How often it was opened and timed anew, each time in a fresh process."""
    conditions: Conditions | None = None
    noise: tuple[Doubt, ...] = ()
    """Why these latencies are not to be trusted to the last digit."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The raw samples, and the runtime cache."""
        return tuple(file for file in (self.samples, self.runtime_cache) if file)


class LayerTime(Record):
    """A layer of an engine, or a node of an ONNX graph, and the time that it takes."""

    name: str
    kind: str
    """Its type, in the library's words."""
    precision: Precision | None = None
    """What it multiplies in, or gives; None where it is not told."""
    tactic: str = ""
    """The kernel that the builder chose."""
    shape: str = ""
    """Of its first output, such as `1x64x112x112`."""
    weights: Count = 0
    """How many values; 0 also where they are not told."""
    median_us: Microseconds
    """For one batch."""
    share: Share
    """Of the time of all layers."""


class HotFunction(Record):
    """A kernel of a GPU, or an operator of torch on a CPU, and the time spent in it."""

    name: str
    calls: PositiveInt
    total_us: Microseconds
    """In all calls."""
    share: Share
    """Of the time in all functions."""


class LayerProfile(StageRecord):
    """What takes a variant's time: `layers.json` beside the artifact."""

    variant_id: str
    outcome: Outcome
    reason: str = ""
    """Why there is no profile, or what is missing from it."""
    mendable: bool = False
    """Whether it was skipped for what this host may have the next time: then it is tried again."""
    device: str = ""
    batch: Count = 0
    runs: Count = 0
    """How many batches the times are of."""
    layers: tuple[LayerTime, ...] = ()
    """The hottest first."""
    copy_share: Share = 0.0
    """Of the layers' time, in those that only reformat, convert or copy."""
    functions: tuple[HotFunction, ...] = ()
    """The hottest first."""
    profilers: tuple[Tool, ...] = ()
    """What measured layers and functions."""
    command: str = ""
    """What recorded the trace."""
    trace: FileRecord | None = None
    """For Nsight Systems to open."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The trace."""
        return (self.trace,) if self.trace else ()


class GitState(Record):
    """The commit that built the manifest."""

    commit: str
    dirty: bool


class ManifestModel(Record):
    """What deployments need to know of a model, whichever artifact they take."""

    name: str
    factory: str
    weights_origin: WeightsOrigin
    weights_detail: str
    weights_sha256: Sha256
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing
    images: str
    labelled: bool
    reference_top1: Share | None


class GpuType(Record):
    """A type of GPU, of which there may be many."""

    name: str
    compute_capability: PositiveInt
    """90 is SM 9.0."""


class ManifestEntry(Record):
    """One artifact of the manifest."""

    id: str
    model: str
    target: str
    kind: Backend
    precision: Precision
    graph: Graph | None
    profile: Profile | None
    workspace_bytes: int | None
    status: Status
    reason: str
    file: FileRecord | None
    built_for: BuiltFor | None
    module: ModuleContents | None
    executed: Precision | None
    """What it computed in, where that can be told and was seen."""
    layers: tuple[LayerShare, ...]
    device_memory_bytes: int | None
    cold_start: ColdStart | None
    runtime_cache: FileRecord | None
    smallest_workspace: str | None
    """Of the variants that differ in the workspace only, the one with the smallest that is within 1 % of the best
    latency."""
    equals: tuple[str, ...]
    """Variants whose engine is the same, and which share this file."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    build_seconds: float | None
    weight_warnings: tuple[WeightWarning, ...]
    memory: EngineMemory | None
    settings: tuple[Setting, ...]
    evaluator: str
    accuracy: Accuracy | None
    checks: tuple[GateCheck, ...]
    proven: bool
    gpu: GpuType | None
    """What it was made, validated and timed on; None for a processor, and where no GPU was there."""
    device: str
    """What it was timed on, with the driver or how many cores."""
    timings: tuple[BatchTiming, ...]
    rows: tuple[RowCheck, ...]
    noise: tuple[Doubt, ...]
    toolchain: tuple[Tool, ...]
    rerun: str
    """The command that builds it again."""


class Milestone(Record):
    """One step on the way from eager FP32 to the best engine, at one batch size on one GPU."""

    gpu: str
    batch: PositiveInt
    label: str
    id: str | None
    """The fastest artifact of its kind that may be deployed, or else one that tells why there is none; None where the
    plan has no such artifact."""
    status: Status
    p50_ms: Milliseconds | None
    """As users run it: without a CUDA graph."""
    graph_ms: Milliseconds | None
    """Replayed as a CUDA graph."""
    speedup: float | None
    """Eager FP32's `p50_ms`, in the same rounds, over the better of the two."""
    relative_l2: float | None


class Manifest(StageRecord):
    """`artifacts/manifest.json`: what was built, and what of it may be deployed. Sorted, so that diffs are readable."""

    git: GitState | None
    """The commit that was checked out when the manifest was last written; what is up to date is not written again."""
    host: str
    model: ManifestModel | None
    artifacts: tuple[ManifestEntry, ...]
    milestones: tuple[Milestone, ...]
    """From eager FP32 to the best engine, where anything was timed on a GPU."""


def _check_paths(files: Collection[FileRecord]) -> None:
    """Refuse paths that lead out of the folder that they are relative to, and one that is there twice."""
    paths = [file.path for file in files]
    for path in paths:
        parts = path.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\\" in path or "\0" in path:
            raise ValueError(f"expected paths that stay in their folder, got {path!r}")
    if len(set(paths)) < len(paths):
        raise ValueError("expected each path once")


class StoredRelease(Record):
    """`releases/<its SHA-256>.json` of a store: the files of a release, each of which is an object by its digest."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    name: str
    """As its folder was called: `<model>-<commit>`."""
    files: Annotated[tuple[FileRecord, ...], Field(min_length=1, max_length=100_000)]
    """Sorted by their paths below the release's folder."""

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> StoredRelease:
        _check_paths(self.files)
        return self

    @property
    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)


class CachedStep(Record):
    """`cache/results/<stage>/<key>.json` of a store: what a step made; each file of it is an object by its digest."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    record: FileRecord
    """The step's own, by its path below artifacts/."""
    files: Annotated[tuple[FileRecord, ...], Field(max_length=1000)]
    """What that record vouches for."""

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> CachedStep:
        _check_paths((self.record, *self.files))
        return self


class StoreTag(Record):
    """`tags/<name>.json` of a store: which release a name stands for."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    release: Sha256


class ReportRecord(StageRecord):
    """The report for people: `artifacts/report.json` beside `report.html`."""

    outcome: Outcome
    """FAILED where the build breaks a bound that the configuration sets against a released one."""
    reason: str = ""
    file: FileRecord

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The page."""
        return (self.file,)
