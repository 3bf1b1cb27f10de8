"""Variants of the build matrix: target, backend, precision, graph, batch range and workspace."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from pydantic import PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from model_artifacts.records.base import AxisRange, Record, Whole, without_defaults
from model_artifacts.records.inputs import PLAIN, Io

if TYPE_CHECKING:
    from model_artifacts.records.hosts import Gpu

CPU_TARGET = "cpu-x86_64"
"""Target of artifacts for the processor."""
GPU_TARGET = "gpu"
"""Target of torch modules on a host without a GPU."""
STAND_IN = "its graph is TensorRT's, which processors run slowly"
"""Reason against a deployment of a variant that stands in for TensorRT."""


class Precision(str, Enum):
    """The type that convolutions and matrix products compute in."""

    FP32 = "fp32"
    """IEEE single precision, strict: multiplications take unrounded inputs."""
    TF32 = "tf32"
    """FP32 tensors; tensor cores multiply them with mantissas of 10 bits."""
    FP16 = "fp16"
    """IEEE half precision."""
    BF16 = "bf16"
    """bfloat16."""
    INT8 = "int8"
    """8-bit integers."""
    FP8 = "fp8"
    """8-bit floating point, E4M3."""


class Graph(str, Enum):
    """An ONNX graph of the model. The graph sets the precision, builder flags never do."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    """QDQ for TensorRT: symmetric int8 activations, biases left in floating point."""
    INT8_CPU = "int8-cpu"
    """QDQ for x86 processors: asymmetric uint8 activations."""
    FP8 = "fp8"
    """QDQ in E4M3 at the places of INT8; everything else in FP16."""
    INT8_MIXED = "int8-mixed"
    """INT8 without the layers that the configuration leaves unquantised."""
    INT8_MIXED_CPU = "int8-mixed-cpu"
    """INT8_CPU without those layers."""
    FP8_MIXED = "fp8-mixed"
    """FP8 without those layers."""

    @property
    def precision(self) -> Precision:
        """The precision that the graph computes in."""
        return Precision(self.value.split("-", maxsplit=1)[0])

    @property
    def is_mixed(self) -> bool:
        """True if the configuration leaves layers of the graph unquantised."""
        return self in {Graph.INT8_MIXED, Graph.INT8_MIXED_CPU, Graph.FP8_MIXED}

    @property
    def for_x86(self) -> bool:
        """True if the graph's activations are for x86 processors rather than for TensorRT."""
        return self in {Graph.INT8_CPU, Graph.INT8_MIXED_CPU}

    @property
    def for_tensorrt(self) -> bool:
        """True if the graph is quantised, with its Q/DQ pairs at the places where TensorRT wants them."""
        return self.precision in {Precision.INT8, Precision.FP8} and not self.for_x86


class Backend(str, Enum):
    """Backend that runs an artifact."""

    EAGER = "eager"
    """PyTorch in eager mode."""
    ONNXRUNTIME = "onnxruntime"
    """ONNX Runtime."""
    ONNXRUNTIME_TENSORRT = "onnxruntime_tensorrt"
    """ONNX Runtime's TensorRT provider."""
    ONNX_REFERENCE = "onnx-reference"
    """ONNX's reference evaluator."""
    TENSORRT = "tensorrt"
    """A TensorRT engine, of either flavour."""
    INDUCTOR = "inductor"
    """torch.compile's own compiler, with max-autotune."""
    DYNAMO = "dynamo"
    """Torch-TensorRT ahead of time, saved as an ExportedProgram."""
    DYNAMO_AOTI = "dynamo_aoti"
    """Torch-TensorRT ahead of time, saved as an AOTInductor package."""
    TORCH_COMPILE = "torch_compile"
    """Torch-TensorRT just in time, from a recipe."""

    @property
    def is_baseline(self) -> bool:
        """True for a baseline, which serves for comparison and is never deployed."""
        return self in {Backend.EAGER, Backend.INDUCTOR, Backend.ONNXRUNTIME_TENSORRT, Backend.ONNX_REFERENCE}

    @property
    def is_onnxruntime(self) -> bool:
        """True if ONNX Runtime runs the artifact."""
        return self in {Backend.ONNXRUNTIME, Backend.ONNXRUNTIME_TENSORRT}

    @property
    def is_torch_tensorrt(self) -> bool:
        """True if Torch-TensorRT makes the artifact."""
        return self in {*AHEAD_OF_TIME, Backend.TORCH_COMPILE}

    @property
    def is_module(self) -> bool:
        """True if the artifact runs as a torch module."""
        return self.is_torch_tensorrt or self in {Backend.EAGER, Backend.INDUCTOR}

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Layouts of the images to run. inductor and torch_compile compile for each layout anew, so they run one."""
        only_contiguous = self in {Backend.INDUCTOR, Backend.TORCH_COMPILE} or not self.is_module
        return (Layout.CONTIGUOUS,) if only_contiguous else tuple(Layout)


AHEAD_OF_TIME = frozenset({Backend.DYNAMO, Backend.DYNAMO_AOTI})
"""Backends whose modules Torch-TensorRT compiles once and saves."""


class Layout(str, Enum):
    """Memory layout of an image batch, or of a convolution's weights."""

    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"


class BatchRange(Record):
    """Batch sizes that an engine takes: from `min` to `max`, tuned for `opt`, or for each of several sizes."""

    min: Whole
    """Smallest batch size."""
    opt: Whole
    """Batch size that the engine is tuned for; of several sizes the largest."""
    max: Whole
    """Largest batch size."""
    tuned: tuple[Whole, ...] = ()
    """Batch sizes with an optimization profile of their own, in ascending order. A batch between two of them runs as
    the larger one, and the surplus rows are dropped. Empty for one profile of the whole range; the JSON leaves it out
    then."""
    axes: tuple[AxisRange, ...] = ()
    """Ranges of other axes, such as `height`, by which an artifact takes samples of several sizes. The JSON leaves it
    out if it takes one size."""

    @model_validator(mode="after")
    def _ordered(self) -> BatchRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"expected min ≤ opt ≤ max, got min {self.min}, opt {self.opt}, max {self.max}")
        if self.tuned:
            self._check_tuned()
        return self

    def _check_tuned(self) -> None:
        """Check the sizes with profiles of their own.

        Raises:
            ValueError: there is one alone, they are in no ascending order, or the range is another one.
        """
        if self.axes:
            raise ValueError("expected one range of batch sizes beside other axes, got several sizes")
        written = ", ".join(map(str, self.tuned))
        if len(self.tuned) == 1:
            raise ValueError(f"expected at least two sizes, got [{written}]; write {written} for one")
        if list(self.tuned) != sorted(set(self.tuned)):
            raise ValueError(f"expected sizes in ascending order, each once, got [{written}]")
        if (self.min, self.opt, self.max) != (1, self.tuned[-1], self.tuned[-1]):
            raise ValueError(
                f"expected min 1, opt and max {self.tuned[-1]} for the sizes {written}, "
                f"got min {self.min}, opt {self.opt}, max {self.max}"
            )

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"tuned", "axes"})

    def takes(self, batch: int) -> bool:
        """Return True if a batch size lies in the range."""
        return self.min <= batch <= self.max

    def padded(self, batch: int) -> int:
        """Return the batch size that runs for a batch of the range: the next one with a profile, or itself."""
        return next((size for size in self.tuned if size >= batch), batch)

    @property
    def is_fixed(self) -> bool:
        """True if the range is a single batch size."""
        return self.min == self.max

    @property
    def profiles(self) -> tuple[tuple[int, int, int], ...]:
        """The optimization profiles: the smallest batch, the one that it is tuned for, and the largest of each."""
        return tuple((size, size, size) for size in self.tuned) or ((self.min, self.opt, self.max),)

    @property
    def tuned_for(self) -> tuple[int, ...]:
        """The batch sizes that the engine is tuned for, in ascending order."""
        return self.tuned or (self.opt,)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes `min`, `opt` and `max`, or those with profiles of their own; each once, in ascending order."""
        return self.tuned or tuple(sorted({self.min, self.opt, self.max}))

    @property
    def label(self) -> str:
        """Short name: `b8` for a fixed batch, `b1-8-32` for a range, `each1-8-32` for a profile of each size.

        Other axes follow: `b8-height160-224-320`.
        """
        if self.tuned:
            return f"each{'-'.join(map(str, self.tuned))}"
        batch = f"b{self.min}" if self.is_fixed else f"b{self.min}-{self.opt}-{self.max}"
        return "-".join([batch, *(axis.label for axis in self.axes)])

    @property
    def phrase(self) -> str:
        """The range in words: `1-32, tuned for 8`; `1-64, tuned for each of 1, 8, 64`."""
        sizes = ", ".join(map(str, self.tuned_for))
        return f"{self.min}-{self.max}, tuned for {'each of ' if self.tuned else ''}{sizes}"


class Workspace(Record):
    """Limit of the scratch memory that the builder may plan with."""

    bytes: PositiveInt
    """The limit in bytes."""
    label: str
    """The limit as the configuration writes it, such as `1GiB`."""

    @property
    def name(self) -> str:
        """The workspace in names of variants, such as `ws1GiB`."""
        return f"ws{self.label}"


class Variant(Record):
    """One cell of the matrix."""

    model: str
    """Name of the model."""
    target: str
    """Hosts that the artifact is for, such as `cpu-x86_64`."""
    backend: Backend
    """Backend that runs the artifact."""
    precision: Precision
    """Requested precision."""
    graph: Graph | None = None
    """ONNX graph of the artifact; None for backends without one."""
    profile: BatchRange | None = None
    """Batch range; None if the artifact takes any batch size."""
    workspace: Workspace | None = None
    """The builder's limit of scratch memory; None for backends without one."""
    layout: Layout = Layout.CONTIGUOUS
    """Memory layout of the weights."""
    io: Io = PLAIN
    """The input and the output. The JSON leaves out the network's own."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"io"})

    @property
    def name(self) -> str:
        """Name within the target: `fp16-b1-8-32-ws1GiB` for an engine, `…-uint8-top5` for one with other ends.

        Other backends put their own name in front.
        """
        backend = [] if self.backend is Backend.TENSORRT else [self.backend.value]
        graph = self.graph if self.graph and self.graph.precision is self.precision else None
        kind = graph.value if graph else self.precision.value  # tf32 shares the graph of fp32
        profile = [self.profile.label] if self.profile else []
        workspace = [self.workspace.name] if self.workspace else []
        layout = [] if self.layout is Layout.CONTIGUOUS else [self.layout.value]
        return "-".join([*backend, kind, *profile, *workspace, *layout, *self.io.words])

    @property
    def family(self) -> Variant:
        """The same variant without a workspace, common to all variants that differ in the workspace only."""
        return self.model_copy(update={"workspace": None})

    @property
    def stands_in(self) -> bool:
        """True for a variant that shows on a processor what TensorRT's graph computes; it is slow, and never deployed.

        It is a quantised graph for TensorRT in ONNX Runtime without its fusions. Processors have a graph of their own.
        """
        return self.target == CPU_TARGET and self.graph is not None and self.graph.for_tensorrt

    @property
    def id(self) -> str:
        """Identifier in commands, folders and the manifest: `model/target/name`."""
        return f"{self.model}/{self.target}/{self.name}"


class KernelSpecialization(str, Enum):
    """Time at which TensorRT-RTX compiles kernels for the actual shapes of an engine with several batch sizes."""

    EAGER = "eager"
    """Compile before the first batch of a size runs."""
    LAZY = "lazy"
    """Compile in the background, while slower kernels run."""
    NONE = "none"
    """Never compile kernels for a shape."""


def module_target(gpu: Gpu, torch: str) -> str:
    """Return the target of torch modules on a GPU, such as `sm90-h100-80gb-hbm3-torch2.11`."""
    return f"{gpu.slug}-torch{major_minor(torch)}"


def major_minor(version: str) -> str:
    """Return the first two parts of a version; an empty string for "absent"."""
    return "" if version == "absent" else ".".join(version.split(".")[:2])
