"""Settings of `pipeline.yaml`: one record for each of its sections, with the defaults and the bounds of every value."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, field_serializer

from model_artifacts.records import (
    Argument,
    AxisRange,
    BatchRange,
    Decoding,
    EngineFlavour,
    Precision,
    Preprocessing,
    Record,
    Task,
)
from pipeline.config.axes import InputAxes, Sizes, axes_of_all, checked_sizes, parse_input_axes, parse_profile
from pipeline.config.benchmark import BenchmarkConfig, LoadConfig
from pipeline.config.ends import IoConfig
from pipeline.config.graphs.rewrites import RewritesConfig
from pipeline.config.places import check_cache, check_folder, check_path
from pipeline.config.quantization import QuantizationConfig
from pipeline.config.tasks import MetricConfig, parse_metric
from pipeline.config.tensorrt import TensorRTConfig
from pipeline.config.values import (
    Count,
    Drop,
    Flag,
    Name,
    Number,
    Seconds,
    WorkspaceSize,
    check_factory,
    check_model_name,
    check_own_resource,
    parse_arguments,
    parse_auto,
    parse_classes,
    parse_compute_capabilities,
    parse_device,
    parse_numbers,
    parse_weights,
    parse_workspace,
    share_of,
    with_defaults,
)

if TYPE_CHECKING:
    from model_artifacts.records import Gpu, Graph, Host


ParsedBatchRange = Annotated[BatchRange, BeforeValidator(parse_profile)]


class WeightsConfig(Record):
    """The model's weights. Text alone stands for `file`."""

    file: Annotated[str, AfterValidator(check_path)] = "auto"
    """auto, sample, factory, a name of torchvision's weights such as IMAGENET1K_V1, or the path of a file."""
    key: str | None = None
    """The keys that lead to the state dict in a file of several, joined by dots. None takes the one that fits."""

    @property
    def is_file(self) -> bool:
        """True if the weights come from a file: the text has a suffix or a folder, or is the name of a file."""
        path = Path(self.file)
        is_path = bool(path.suffix) or len(path.parts) > 1
        return is_path or (self.file not in {"auto", "sample", "factory"} and path.is_file())


class ModelConfig(Record):
    """The model: its factory and its weights."""

    name: Annotated[Name, AfterValidator(check_model_name)] = "resnet18"
    """The folder below `artifacts`."""
    factory: Annotated[str, AfterValidator(check_factory)] = "torchvision.models:resnet18"
    """`package.module:function` or `package.module:Class.method`; it returns a torch.nn.Module."""
    onnx: Annotated[str, AfterValidator(check_path)] | None = None
    """The path of an ONNX file, which is the model in place of a factory with its weights. None takes the factory."""
    arguments: Annotated[tuple[Argument, ...], BeforeValidator(parse_arguments)] = ()
    """The factory's arguments. Paths count from the folder that the pipeline runs in, as all others do."""
    weights: Annotated[WeightsConfig, BeforeValidator(parse_weights)] = WeightsConfig()
    task: Task = Task.CLASSIFICATION
    """The meaning of the network's output, which decides the metric that makes an artifact good enough."""
    threshold: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """The least sigmoid of a class that is an answer, of `task: multilabel`."""
    tolerance: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], BeforeValidator(parse_numbers)] = ()
    """The acceptable error of a value: one for all numbers of a regression or outputs of tensors, or one for each."""
    metric: Annotated[MetricConfig | None, BeforeValidator(parse_metric)] = None
    """The user's own measure of `task: tensors`. None judges distances."""
    decoding: Decoding | None = None
    """The step from a detector's raw outputs to boxes, of `task: detection`. None takes `postprocess`."""
    postprocess: Annotated[str, AfterValidator(check_factory)] | None = None
    """`package.module:function`: a detector's outputs → boxes, scores and classes of each image. None decodes them."""
    download_timeout_seconds: Seconds = 10.0
    """Seconds without a byte after which a download has failed."""

    @field_serializer("arguments")
    def _as_written(self, arguments: tuple[Argument, ...]) -> dict[str, object]:
        return {argument.name: argument.value for argument in arguments}


class DataConfig(Record):
    """The images and their numbers."""

    images: Annotated[str, AfterValidator(check_path)] = "auto"
    """auto, digits, photographs, or the path of a folder with one folder of images for each class."""
    tensors: Annotated[str, AfterValidator(check_path)] | None = None
    """A npz file with an array for each input of the model, in the place of images. The first axis is the sample."""
    axes: Annotated[tuple[InputAxes, ...], BeforeValidator(parse_input_axes)] = ()
    """The names of the axes of these arrays behind the sample, a list by the name of each input, and of `labels` that
    follow the inputs. `profiles` may give a named one a range."""
    calibration: Count = 512
    """Images for the calibration of quantised graphs. A folder gives at most half of its images."""
    validation: Count = 500
    """Images for validation."""
    classes: Annotated[tuple[str, ...] | str | None, BeforeValidator(parse_classes)] = None
    """Names of the classes in the order of the logits, or a file with them. None takes those of the weights."""
    masks: Annotated[str, AfterValidator(check_path)] | None = None
    """A segmentation's folder of PNG masks, with the images' paths. A value is a class, and 255 is not judged."""
    labels: Annotated[str, AfterValidator(check_path)] | None = None
    """A CSV table with a row for each image, of several labels or of a regression; `classes` for an embedding; COCO's
    JSON file for a detector. Of `tensors` the name of the array of labels in that file."""

    @field_serializer("axes")
    def _as_written(self, axes: tuple[InputAxes, ...]) -> dict[str, object]:
        return {item.input: list(item.axes) for item in axes}


class Unquantized(Record):
    """Layers that stay in FP16 in the variants `int8-mixed` and `fp8-mixed`. `doit sensitivity` proposes them."""

    int8: tuple[str, ...] = ()
    fp8: tuple[str, ...] = ()

    def of(self, graph: Graph) -> tuple[str, ...]:
        """Return the names of the layers that stay unquantised in a graph."""
        if not graph.is_mixed:
            return ()
        return self.fp8 if graph.precision is Precision.FP8 else self.int8


class ModuleFormat(str, Enum):
    """The file format of a module that was compiled ahead of time."""

    EXPORTED_PROGRAM = "exported_program"
    AOT_INDUCTOR = "aot_inductor"
    """Needs a C++ compiler. Saving takes about 45 s on two cores."""


class TorchTensorRTConfig(Record):
    """Settings of Torch-TensorRT. A setting that a version lacks is recorded as unsupported beside the module."""

    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] | None = None
    """The precisions of the matrix to compile modules in, with eager beside them. None takes all that are casts."""
    profiles: Annotated[tuple[ParsedBatchRange, ...], Field(min_length=1)] | None = None
    """The profiles of the matrix to compile modules for. None takes all."""
    formats: Annotated[tuple[ModuleFormat, ...], Field(min_length=1)] = (ModuleFormat.EXPORTED_PROGRAM,)
    """The file formats of `dynamo` modules. Each is an artifact of its own."""
    min_block_size: Count = 5
    """The least number of successive operators for a TensorRT engine. Fewer stay in PyTorch."""
    optimization_level: Annotated[int, Field(strict=True, ge=0, le=5)] | None = None
    """The effort of the search for faster kernels, 0 to 5. None is the library's default."""
    require_full_compilation: Flag = False
    """Failure of the build if an operator would stay in PyTorch."""
    engine_cache: Flag = False
    """Reuse of engines by later builds, from a folder for each variant and source.

    The folders are apart because the library's own cache key ignores the workspace. Cached engines can be refitted with
    other weights, and may be slower for that reason.
    """
    build_timeout_seconds: Seconds = 3600.0
    """Time limit of one build, in seconds."""

    @property
    def build_settings(self) -> TorchTensorRTConfig:
        """The settings that change a module. All others have their defaults."""
        return with_defaults(self, "precisions", "profiles", "formats", "build_timeout_seconds")


class Gate(Record):
    """Bounds of one precision, in place of those that come from the network. None leaves the default."""

    cosine: Annotated[Number, Field(ge=-1, le=1)] | None = None
    """The least cosine similarity of the logits, as a mean over the samples. None has no such bound."""
    relative_l2: Annotated[Number, Field(ge=0, le=1)] | None = None
    """The largest relative L2 error of the logits. None takes a multiple of the precision's own rounding."""
    top1_agreement: Annotated[Number, Field(ge=0, le=1)] | None = None
    """The least share of samples with the same top-1 class. None has no such bound."""
    top1_drop: Annotated[Drop, Field(ge=-1)] | None = None
    """The largest drop of the top-1 accuracy; 0.01 is one percentage point. None takes the margin of `gates`."""
    class_drop: Annotated[Drop, Field(ge=-1)] | None = None
    """The largest drop of the top-1 accuracy of the worst class. None records the drop without a bound."""


class Gates(Record):
    """The bounds that a variant must keep to be deployable, against the strict FP32 reference.

    A variant must be faithful, which `rounding` bounds, and good enough, which `margin` bounds. docs/accuracy.md has
    the power of both.
    """

    rounding: Annotated[Number, Field(gt=0, le=100)] = 2.0
    """The largest distance from the reference, as a multiple of the one that the precision's own rounding makes in this
    network."""
    margin: Annotated[Drop, Field(ge=0)] = 0.01
    """The largest drop of the top-1 accuracy; 0.01 is one percentage point. Without labels, the largest share of other
    answers; for an embedding, of vectors that moved half way to their nearest neighbour. For tensors, the largest
    relative L2 of a part."""
    require_proof: Flag = False
    """Rejection of variants whose drop lies within the margin, on too few samples to prove it (Tango, 95 %)."""
    require_reference: Flag = True
    """Rejection of all variants while the FP32 reference does not depend on the image or is no better than chance."""
    fp32: Gate = Gate()
    tf32: Gate = Gate()
    fp16: Gate = Gate()
    bf16: Gate = Gate()
    int8: Gate = Gate()
    fp8: Gate = Gate()

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
    """Settings of the validation."""

    reference_evaluator_samples: Count = 8
    """Samples for the slow reference evaluator. It runs bf16, which no CPU runtime runs."""
    stand_in_samples: Count = 64
    """Samples for TensorRT's int8 and fp8 graphs on a processor, which is slow and is never deployed."""
    timeout_seconds: Seconds = 1800.0
    """Time limit of one engine, in seconds."""


class ReleaseConfig(Record):
    """The released build that this one is compared with, and the accepted differences."""

    manifest: Annotated[str, AfterValidator(check_path)]
    """The path of the released build's manifest.json."""
    max_latency_increase: Annotated[float, BeforeValidator(share_of("%", 0.01))] = 0.03
    """The largest relative increase of a latency, beyond noise. If the intervals overlap, nothing has changed."""
    max_top1_drop: Annotated[float, BeforeValidator(share_of("pt", 0.01))] = 0.001
    """The largest drop of the top-1 accuracy, for other tasks of the mean cosine; 0.001 is 0.1 percentage points."""


class Executor(str, Enum):
    """The place where the steps of GPUs run."""

    LOCAL = "local"
    """This machine."""
    RAY = "ray"
    """Workers of a Ray cluster that meet a target's requirements."""


class FarmTarget(Record):
    """A target that the farm builds for, and its requirements of a worker."""

    flavour: EngineFlavour
    accelerator: Name | None = None
    """Ray's name of the GPU type: H100, A10G, L4. None takes workers without a GPU, which build ahead of time."""
    compute_capabilities: Annotated[tuple[int, ...] | None, BeforeValidator(parse_compute_capabilities)] = None
    """GPU generations in place of `tensorrt.compute_capabilities`. None takes those."""
    resources: tuple[Annotated[str, StringConstraints(min_length=1), AfterValidator(check_own_resource)], ...] = ()
    """Custom resources that nodes declare. They tell apart two kinds of H100, or two installations."""
    steps_per_gpu: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    """Steps without timing that share a GPU and its memory. A step that times kernels or latencies runs alone."""

    @property
    def worker_kind(self) -> str:
        """The requirements of a worker as a phrase: `H100 with tensorrt`. Workers with one phrase are all alike."""
        return f"{self.accelerator or 'a processor'} with {' and '.join((self.flavour.value, *sorted(self.resources)))}"

    @property
    def builds_on_its_gpu(self) -> bool:
        """True if an engine belongs to the GPU that built it, regardless of `compute_capabilities`."""
        return self.flavour is EngineFlavour.TENSORRT


class FarmConfig(Record):
    """The Ray cluster and the targets that it builds for."""

    address: Annotated[str, StringConstraints(min_length=1)] = "auto"
    """The head's `host:port`. `auto` is the cluster that this machine is a node of."""
    targets: Annotated[tuple[FarmTarget, ...], Field(min_length=1)]
    retries: Annotated[int, Field(strict=True, ge=0, le=1000)] = 2
    """Further attempts of a step on other machines after the loss of its worker."""
    step_timeout_seconds: Seconds = 7200.0
    """Time limit of a step on a worker, in seconds. The wait for a worker does not count."""
    queue_timeout_seconds: Seconds = 86400.0
    """The longest wait for a free worker, in seconds."""
    connect_timeout_seconds: Seconds = 120.0
    """Time limit for the connection, and for each machine's description of itself, in seconds."""


class Config(Record):
    """All of `pipeline.yaml`."""

    artifacts: Annotated[str, AfterValidator(check_folder)] = "artifacts"
    """The output folder, relative to the configuration file."""
    model: ModelConfig = ModelConfig()
    preprocessing: Annotated[Preprocessing | None, BeforeValidator(parse_auto)] = None
    """None, written `auto`, takes the preprocessing of the weights."""
    data: DataConfig = DataConfig()
    device: Annotated[str, BeforeValidator(parse_device)] = "0"
    """The GPU to build for and run on: CUDA's number, a UUID, or `all` for one of each type."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = (
        Precision.FP32,
        Precision.FP16,
        Precision.BF16,
        Precision.INT8,
    )
    profiles: Annotated[tuple[ParsedBatchRange, ...], Field(min_length=1)]
    workspaces: Annotated[tuple[Annotated[WorkspaceSize, BeforeValidator(parse_workspace)], ...], Field(min_length=1)]
    io: Annotated[tuple[IoConfig, ...], Field(min_length=1)] = (IoConfig(),)
    """The inputs and outputs of artifacts: each makes the matrix once."""
    rewrites: RewritesConfig = RewritesConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    leave_unquantized: Unquantized = Unquantized()
    tensorrt: TensorRTConfig = TensorRTConfig()
    torch_tensorrt: TorchTensorRTConfig = TorchTensorRTConfig()
    gates: Gates = Gates()
    validation: ValidationConfig = ValidationConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    load: LoadConfig = LoadConfig()
    release: ReleaseConfig | None = None
    """The released build for comparison. None compares nothing."""
    cache: Annotated[str, AfterValidator(check_cache)] | None = None
    """The cache that machines share: a folder, s3:// or gs://. None shares nothing."""
    executor: Executor = Executor.LOCAL
    """The place where the steps of GPUs run. All other steps run on this machine."""
    farm: FarmConfig | None = None

    @property
    def farm_targets(self) -> tuple[FarmTarget, ...]:
        """The farm's targets. Empty if this machine builds everything."""
        return self.farm.targets if self.farm else ()

    def compute_capabilities_of(self, target: FarmTarget) -> tuple[int, ...]:
        """Return the compute capabilities that a farm target builds for ahead of time. Empty is its own GPU alone."""
        if target.builds_on_its_gpu:
            return ()
        own = target.compute_capabilities
        return self.tensorrt.compute_capabilities if own is None else own

    @property
    def timed_batches(self) -> tuple[int, ...]:
        """The batch sizes that are timed: those of `benchmark.batches`, else those that the profiles are tuned for."""
        return self.benchmark.batches or tuple(sorted({size for item in self.profiles for size in item.tuned_for}))

    @property
    def axes(self) -> tuple[AxisRange, ...]:
        """The dynamic axes beside the batch, with the sizes that any of the profiles takes."""
        return axes_of_all(profile.axes for profile in self.profiles)

    @property
    def checked_sizes(self) -> tuple[Sizes, ...]:
        """The sizes of these axes at which artifacts are compared with the reference: of each profile, and of all.

        An ONNX file takes the ranges of all profiles together, and so sizes that no profile takes.
        """
        ranges = (*(profile.axes for profile in self.profiles), self.axes)
        return tuple(dict.fromkeys(sizes for axes in ranges for sizes in checked_sizes(axes)))

    def gpus(self, host: Host) -> tuple[Gpu, ...]:
        """Return the host's GPUs that `device` names: one, none, or the first of every type."""
        if self.device == "all":
            types = {gpu.slug: gpu for gpu in reversed(host.gpus)}
            return tuple(sorted(types.values(), key=lambda gpu: gpu.index))
        return tuple(gpu for gpu in host.gpus if self.device in {str(gpu.index), gpu.uuid})
