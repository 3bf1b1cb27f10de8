"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from enum import Enum

from pydantic import PositiveInt, model_validator

from model_artifacts.records.base import Record, Whole


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


class BatchRange(Record):
    """The batch sizes that an engine takes: from `min` to `max`, tuned for `opt`."""

    min: Whole
    opt: Whole
    max: Whole

    @model_validator(mode="after")
    def _ordered(self) -> BatchRange:
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
    profile: BatchRange | None = None
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


class KernelSpecialization(str, Enum):
    """When TensorRT-RTX compiles kernels for the shapes that an engine of several batch sizes really sees."""

    EAGER = "eager"
    """Before the first batch of a size runs."""
    LAZY = "lazy"
    """In the background, while slower kernels serve."""
    NONE = "none"
