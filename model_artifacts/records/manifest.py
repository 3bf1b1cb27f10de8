"""The manifest and its parts: the model, the artifacts and the milestones."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

from pydantic import (
    AwareDatetime,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from model_artifacts.records.accuracy import Accuracy, GateCheck, RowCheck
from model_artifacts.records.artifacts import BuiltFor, EngineMemory, LayerShare, ModuleContents, Setting, WeightWarning
from model_artifacts.records.base import (
    Argument,
    FileRecord,
    GitState,
    Key,
    Milliseconds,
    Record,
    Sha256,
    Share,
    StageRecord,
    TensorSpec,
    Tool,
    call_of,
    without_defaults,
)
from model_artifacts.records.decoding import Decoding
from model_artifacts.records.inputs import PLAIN, Io, Preprocessing, Task, WeightsOrigin
from model_artifacts.records.latency import BatchTiming, ColdStart, Doubt, Link, Load
from model_artifacts.records.variants import Backend, BatchRange, Graph, KernelSpecialization, Precision

if TYPE_CHECKING:
    from typing_extensions import Self


class Status(str, Enum):
    """Deployment status of an artifact."""

    DEPLOYABLE = "deployable"
    """Built, run in full by its own runtime, and within its precision's gate."""
    BUILT = "built"
    """Built, but not validated on its hardware, or validated by an evaluator that no deployment uses."""
    REJECTED = "rejected"
    """Outside its precision's gate."""
    FAILED = "failed"
    """Without a successful build or validation, or with a failed benchmark."""
    SKIPPED = "skipped"
    """Not built, because this host, flavour or graph does not support it."""


class ManifestModel(Record):
    """Facts about the model that all artifacts share."""

    name: str
    """Name of the model in the configuration."""
    factory: str
    """The model's factory, `module:function`; empty for a model that is an ONNX file."""
    arguments: tuple[Argument, ...] = ()
    """Arguments that the factory is called with."""
    weights_origin: WeightsOrigin
    """Origin of the weights."""
    weights_detail: str
    """Description of that origin, such as a file's name."""
    weights_sha256: Sha256
    """Digest of the file of weights."""
    class_names: tuple[str, ...] | None
    """Names of the classes, in the order of the logits, or of a regression's numbers; None if unknown."""
    preprocessing: Preprocessing | None
    """Steps from an image file to the input; None for a model of tensors, whose artifacts name their inputs."""
    images: str
    """Description of the images for calibration and validation."""
    labelled: bool
    """True if the validation images have labels."""
    reference_top1: Share | None
    """The FP32 reference's share of correct answers on the validation images; None without labels."""
    task: Task = Task.CLASSIFICATION
    """Task of the model. The JSON of a classification leaves it out."""
    threshold: Share = 0.5
    """Least sigmoid of a class that is an answer, of a multilabel network. The JSON leaves out the default."""
    decoding: Decoding | None = None
    """Step from a detector's outputs to boxes; None for other tasks, and with a function of the user's own. The JSON
    leaves it out then."""
    postprocess: str | None = None
    """That function, which no artifact holds; None without one. The JSON leaves it out then."""
    uncompared: str = ""
    """Reason why the FP32 reference of an ONNX file in other types was not compared with the file's own run; empty if
    it was, and for other models. The JSON leaves it out then."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), _LATER)

    @property
    def network(self) -> str:
        """The call that makes the network, such as `timm:create_model(model_name='levit_128s')`, or an ONNX file."""
        return call_of(self.factory, self.arguments) if self.factory else "an ONNX file"


_LATER = frozenset({"task", "threshold", "decoding", "postprocess", "uncompared"})
"""Facts about a model that the first manifests do not have."""


class GpuType(Record):
    """A type of GPU, rather than one device of that type."""

    name: str
    """CUDA's name of the type."""
    compute_capability: PositiveInt
    """Major and minor version in one number: 90 is SM 9.0."""


class GpuPictures(Record):
    """Verdict on an artifact's answers to pictures that a GPU decoded and resized."""

    passed: bool
    """True if the loss of answers is within the margin, as the gate judges it."""
    reason: str = ""
    """Reason against it; empty if it passed."""
    gpu: str
    """Name of the GPU that decoded: GPUs decode JPEG by different units."""
    decoder: str
    """Libraries that decoded and resized, with their versions."""
    samples: PositiveInt
    """Number of validation pictures."""


class ManifestEntry(Record):
    """One artifact of the manifest."""

    id: str
    """Variant of the artifact: `model/target/name`."""
    model: str
    """Name of the model."""
    target: str
    """Hosts that the artifact is for, such as `cpu-x86_64`."""
    backend: Backend = Field(alias="kind")
    """Backend that runs the artifact."""
    precision: Precision
    """Requested precision."""
    graph: Graph | None
    """ONNX graph of the artifact; None for backends without one."""
    profile: BatchRange | None
    """Batch range; None if the artifact takes any batch size."""
    workspace_bytes: int | None
    """The builder's limit of scratch memory, in bytes; None for backends without one."""
    status: Status
    """Deployment status."""
    reason: str
    """Reason for the status; empty for a deployable artifact."""
    file: FileRecord | None
    """The artifact's file; None if there is none."""
    built_for: BuiltFor | None
    """Hosts that run the engine; None for other artifacts."""
    module: ModuleContents | None
    """Contents of a Torch-TensorRT module; None for other artifacts."""
    executed: Precision | None
    """Precision that the artifact computed in; None if unknown."""
    layers: tuple[LayerShare, ...]
    """Types of the engine's convolutions and matrix products, from its inspector."""
    device_memory_bytes: int | None
    """GPU memory in use after one run of every timed batch size, without CUDA's own context."""
    cold_start: ColdStart | None
    """Time to the first result; None if it was not measured."""
    runtime_cache: FileRecord | None
    """Kernels that TensorRT-RTX compiled for this GPU; None for other artifacts."""
    kernel_specialization: KernelSpecialization = KernelSpecialization.EAGER
    """Time at which TensorRT-RTX compiled kernels for the shapes in use while the engine was timed, and does so in
    `load`. The JSON leaves out `eager`."""
    weights: FileRecord | None = None
    """ONNX file with the weights of an engine that was built without them; None for other artifacts."""
    smallest_workspace: str | None
    """Variant with the smallest workspace and a latency within 1 % of the best, among the variants that differ in the
    workspace only. None if none of them was timed."""
    equals: tuple[str, ...]
    """Variants with the same engine, which share this file."""
    inputs: tuple[TensorSpec, ...]
    """The artifact's inputs."""
    outputs: tuple[TensorSpec, ...]
    """The artifact's outputs."""
    io: Io = PLAIN
    """The images that it takes, and the answer that it gives. The JSON leaves out the network's own."""
    build_seconds: float | None
    """Duration of the build; None without a build."""
    weight_warnings: tuple[WeightWarning, ...]
    """The builder's warnings about weights."""
    memory: EngineMemory | None
    """GPU memory that the engine needs; None for other artifacts."""
    settings: tuple[Setting, ...]
    """Build settings, applied or unsupported."""
    evaluator: str
    """Library and version that ran the validation; empty without a validation."""
    accuracy: Accuracy | None
    """Accuracy against the FP32 reference, of several outputs the one that is farthest off; None without a
    validation."""
    accuracies: tuple[Accuracy, ...] = ()
    """Accuracy of each output, of a model with several. The JSON of one output leaves it out."""
    checks: tuple[GateCheck, ...]
    """Checks of the precision's gate."""
    proven: bool
    """True if the lower end of the agreement's Wilson interval passes the gate, too."""
    gpu: GpuType | None
    """GPU that built, validated and timed the artifact; None for a processor, and on hosts without a GPU."""
    device: str
    """Device that timed the artifact, with its driver or its number of cores."""
    timings: tuple[BatchTiming, ...]
    """Latencies, one entry per batch size, clock and layout."""
    load: Load | None = None
    """Results under load, of `doit load`; None without one. The JSON leaves it out then."""
    rows: tuple[RowCheck, ...]
    """Dependence of a row's logits on the other rows, one entry per checked batch size."""
    gpu_pictures: GpuPictures | None = None
    """Proof that pictures may be decoded on the GPU, by `doit pictures`. The JSON leaves it out without one."""
    noise: tuple[Doubt, ...]
    """Reasons for doubt about the latencies."""
    toolchain: tuple[Tool, ...]
    """Packages that built the artifact."""
    commits: tuple[GitState, ...] = ()
    """Checkouts that made the weights, the graph, the artifact and its verdict, in this order, each once. Empty if one
    of them is unknown, as outside a repository."""
    rerun: str
    """The command that builds the artifact again."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        later = {"accuracies", "io", "kernel_specialization", "load", "gpu_pictures"}
        return without_defaults(self, serialize(self), later)

    @property
    def counted(self) -> str:
        """Return the plural of a batch's entries: `images`, or `samples` of a model that takes other arrays."""
        is_image = len(self.inputs) == 1 and len(self.inputs[0].shape) == len("NCHW")
        return "images" if is_image or not self.inputs else "samples"

    @property
    def device_type(self) -> str:
        """Name of the type of GPU, or of the processor with its cores; empty on a processor that did not time it."""
        return self.gpu.name if self.gpu else self.device

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The files that opening the artifact takes: its own, its runtime cache and its weights, as far as named."""
        return tuple(file for file in (self.file, self.runtime_cache, self.weights) if file)


class Milestone(Record):
    """A step on the way from eager FP32 to the best engine, at one batch size on one GPU."""

    gpu: str
    """Name of the GPU."""
    batch: PositiveInt
    """Number of images in a batch."""
    label: str
    """Name of the step, such as `dynamo FP16`."""
    id: str | None
    """The fastest deployable artifact of this step, or else one whose reason explains why there is none. None in older
    manifests, if the plan has no such artifact."""
    status: Status
    """Status of that artifact; `skipped` without one."""
    p50_ms: Milliseconds | None
    """Median latency without a CUDA graph, as users run it."""
    graph_ms: Milliseconds | None
    """Median latency of a replayed CUDA graph."""
    speedup: float | None
    """Eager FP32's `p50_ms`, in the same rounds, divided by the lower of these two latencies."""
    relative_l2: float | None
    """Relative L2 distance of the artifact's logits to the reference."""


class ManifestPart(Record):
    """One of several models of a manifest, with the facts of its own build. Its artifacts name it as their `model`."""

    name: str
    """Name of the model in the configuration."""
    key: Key
    """Staleness key of this model's part."""
    built_at: AwareDatetime
    """Time of the last change of this part, in UTC, to the second."""
    toolchain: tuple[Tool, ...]
    """Packages that made this part, with their versions."""
    git: GitState | None
    """Checkout at the last change of this part; None outside a repository."""
    host: str
    """Operating system and architecture of the machine that made this part."""
    model: ManifestModel | None
    """The model; None if its source or its data are missing."""

    @model_validator(mode="after")
    def _describes_its_model(self) -> Self:
        if self.model is not None and self.model.name != self.name:
            raise ValueError(f"the part of {self.name!a} describes another model, {self.model.name!a}")
        return self


class Manifest(StageRecord):
    """`artifacts/manifest.json`: all artifacts with their deployment status. Sorted, so that diffs are readable."""

    git: GitState | None
    """Checkout at the last change of the manifest, which is not written again while it is up to date. None outside a
    repository, and for models of several checkouts. The artifacts may be of earlier commits, which `commits` names."""
    host: str
    """Operating system and architecture, such as `Linux x86_64`."""
    model: ManifestModel | None
    """The model; None if its source or its data are missing, and in a manifest of several models."""
    models: tuple[ManifestPart, ...] = ()
    """The models of a manifest of several, sorted by name. The JSON of one model leaves it out."""
    artifacts: Annotated[tuple[ManifestEntry, ...], Field(max_length=10_000)]
    """One entry per variant, sorted by id."""
    milestones: tuple[Milestone, ...]
    """Steps from eager FP32 to the best engine; empty if nothing was timed on a GPU."""
    links: tuple[Link, ...] = ()
    """Rates of the copies to and from each GPU, as measured beside the latencies. The JSON leaves it out if empty."""

    @model_validator(mode="after")
    def _models_are_whole(self) -> Self:
        names = [part.name for part in self.models]
        if not names:
            return self._of_one_model()
        if len(names) == 1 or names != sorted(set(names)) or self.model is not None:
            raise ValueError("`models` has several models, each once and sorted by name, in place of `model`")
        if strange := sorted({entry.model for entry in self.artifacts} - set(names)):
            raise ValueError(f"`models` lacks {strange[0]}, of which there are artifacts")
        return self

    def _of_one_model(self) -> Self:
        """Return itself: the facts of one model must not be taken for another one's artifacts.

        Raises:
            ValueError: the artifacts are of several models, or of another one than `model`.
        """
        named = {entry.model for entry in self.artifacts} | ({self.model.name} if self.model else set())
        if len(named) > 1:
            two = " and ".join(sorted(map(ascii, named))[:2])
            raise ValueError(f"without `models` all is of one model, but there are {two}")
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"models", "links"})
