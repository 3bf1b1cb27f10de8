"""The layout of the artifacts folder: `Variant` → path, never the reverse."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.records import sized_name

if TYPE_CHECKING:
    from model_artifacts.records import EngineFlavour, FileRecord, Gpu, Graph, Variant
    from pipeline.config.axes import Sizes
    from pipeline.config.tensorrt import TensorRTConfig
    from pipeline.planning.plan import Arithmetic

_RESTART = "benchmark.restart-"
"""The beginning of the names of a restart's files."""


@dataclass(frozen=True)
class Paths:
    """The layout of an artifacts folder for one model."""

    root: Path
    model: str
    of_several: bool = False
    """True if the configuration has several models, each of which has a report of its own."""

    @property
    def folder(self) -> Path:
        """The folder of this model."""
        return self.root / self.model

    @property
    def report(self) -> Path:
        """The report, a page for people."""
        return (self.folder if self.of_several else self.root) / "report.html"

    @property
    def front(self) -> Path:
        """The page to begin with: the report, or of several models the one that leads to their reports."""
        return self.root / "report.html"

    @property
    def report_record(self) -> Path:
        """The record of the report."""
        return self.report.with_suffix(".json")

    @property
    def manifest(self) -> Path:
        """The manifest."""
        return self.root / "manifest.json"

    @property
    def farm(self) -> Path:
        """The record of the farm's workers."""
        return self.root / "farm.json"

    @property
    def releases(self) -> Path:
        """The releases: a folder and an archive each."""
        return self.root / "release"

    @property
    def digests(self) -> Path:
        """A cache of digests of unchanged files; deleting it costs only time."""
        return self.root / ".digests.sqlite3"

    @property
    def owner(self) -> Path:
        """The record of the configuration that ran last."""
        return self.folder / "configuration.json"

    @property
    def source(self) -> Path:
        """The record of the model's source."""
        return self.folder / "source" / "source.json"

    @property
    def weights(self) -> Path:
        """The weights that every other stage takes."""
        return self.folder / "source" / "weights.safetensors"

    @property
    def source_onnx(self) -> Path:
        """The ONNX file that is the model itself, with its external data taken in."""
        return self.folder / "source" / "model.onnx"

    @property
    def source_samples(self) -> Path:
        """The first samples of `data.tensors`, with a field for each input."""
        return self.folder / "source" / "samples.npy"

    @property
    def data(self) -> Path:
        """The record of the images and of the reference's logits."""
        return self.folder / "data" / "data.json"

    @property
    def calibration(self) -> Path:
        """uint8 NHWC pixels for calibration."""
        return self.folder / "data" / "calibration.npy"

    @property
    def validation(self) -> Path:
        """uint8 NHWC pixels for validation."""
        return self.folder / "data" / "validation.npy"

    @property
    def labels(self) -> Path:
        """int64 class indices of the validation samples."""
        return self.folder / "data" / "labels.npy"

    @property
    def sample_names(self) -> Path:
        """The file names of the validation samples, if they come from a folder."""
        return self.folder / "data" / "samples.json"

    @property
    def reference(self) -> Path:
        """float32 logits of the FP32 reference on the validation samples."""
        return self.folder / "data" / "reference.npy"

    @property
    def references(self) -> Path:
        """The same of several outputs, an array by the name of each."""
        return self.folder / "data" / "reference.npz"

    def sized_validation(self, sizes: Sizes) -> Path:
        """The first validation images in another size, uint8."""
        return self.folder / "data" / f"validation-{_sizes_name(sizes)}.npy"

    def sized_reference(self, sizes: Sizes) -> Path:
        """The FP32 reference's logits of these images."""
        return self.folder / "data" / f"reference-{_sizes_name(sizes)}.npy"

    def onnx(self, graph: Graph) -> Path:
        """An ONNX file."""
        return self.folder / "onnx" / f"{graph.value}.onnx"

    def onnx_opset17(self, graph: Graph) -> Path:
        """The form of an ONNX file that TensorRT 8.6 reads."""
        return self.folder / "onnx" / f"{graph.value}.opset17.onnx"

    def onnx_record(self, graph: Graph) -> Path:
        """The record of an ONNX file."""
        return self.folder / "onnx" / f"{graph.value}.json"

    @property
    def ranges(self) -> Path:
        """The ranges of the FP32 graph's activations; deleting it costs only time."""
        return self.folder / "onnx" / "ranges.npz"

    @property
    def means(self) -> Path:
        """The mean inputs of the FP32 graph's convolutions; deleting it costs only time."""
        return self.folder / "onnx" / "means.npz"

    def sensitivity(self, graph: Graph) -> Path:
        """The record of the layers' sensitivities to quantisation."""
        return self.folder / "onnx" / f"{graph.value}.sensitivity.json"

    def proposal(self, graph: Graph) -> Path:
        """The record of the places of Q/DQ pairs by Model Optimizer."""
        return self.folder / "onnx" / f"{graph.value}.proposal.json"

    def rounding(self, arithmetic: Arithmetic) -> Path:
        """The record of a precision's own rounding."""
        return self.folder / "rounding" / f"{arithmetic.name}.json"

    def rounding_logits(self, arithmetic: Arithmetic) -> Path:
        """float32 logits of an emulated precision on the first validation samples."""
        return self.folder / "rounding" / f"{arithmetic.name}.npy"

    @property
    def tune(self) -> Path:
        """The search of `doit tune`; deleting it costs only time."""
        return self.folder / "tune"

    def variant(self, variant: Variant) -> Path:
        """A variant's own folder."""
        return self.folder / variant.target / variant.name

    def artifact(self, variant: Variant) -> Path:
        """The record of a build."""
        return self.variant(variant) / "artifact.json"

    def engine(self, variant: Variant) -> Path:
        """A serialized TensorRT engine."""
        return self.variant(variant) / "model.engine"

    def graph(self, variant: Variant) -> Path:
        """An ONNX file with another input or output than the network's own."""
        return self.variant(variant) / "model.onnx"

    def module(self, variant: Variant) -> Path:
        """A saved Torch-TensorRT module; torch wants this suffix for ExportedPrograms and AOTInductor packages."""
        return self.variant(variant) / "model.pt2"

    def recipe(self, variant: Variant) -> Path:
        """The recipe of a module that cannot be saved."""
        return self.variant(variant) / "recipe.json"

    def engine_cache(self, variant: Variant) -> Path:
        """The engines that Torch-TensorRT keeps between builds of one variant."""
        return self.engine_cache_of(self.variant(variant))

    @staticmethod
    def engine_cache_of(folder: Path) -> Path:
        """Return the engine cache of the variant in a folder.

        Its engines are pickles, which Torch-TensorRT loads unchecked. They lie in this user's own cache, since an
        artifacts folder may have come from somebody else.
        """
        return _own_cache("engine-cache", folder)

    def inductor_cache(self, variant: Variant) -> Path:
        """The kernels that inductor tuned in the first restart of a benchmark."""
        return self.inductor_cache_of(self.variant(variant))

    @staticmethod
    def inductor_cache_of(folder: Path) -> Path:
        """Return inductor's kernels of the variant in a folder: code, which lies in this user's own cache, too."""
        return _own_cache("inductor-cache", folder)

    def timing_cache(
        self, flavour: EngineFlavour, version: str, gpu: Gpu | None, settings: TensorRTConfig | None = None
    ) -> Path:
        """The timing cache of one version of a flavour on one GPU type, for every model's engines and modules.

        Means of several iterations lie apart, and so does each further attempt: the library would take the times of
        others in place of its own.
        """
        iterations, attempt = (settings.avg_timing_iterations, settings.attempt) if settings else (None, 1)
        apart = f"-avg{iterations}" if iterations and iterations > 1 else ""
        apart += f"-attempt{attempt}" if attempt > 1 else ""
        return self.root / "timing-cache" / f"{flavour.value}-{version}-{gpu.slug if gpu else 'none'}{apart}.bin"

    def runtime_cache(self, variant: Variant) -> Path:
        """The kernels that TensorRT-RTX compiled for this GPU."""
        return self.variant(variant) / "runtime.cache"

    def provider_cache(self, variant: Variant, onnx: FileRecord) -> Path:
        """The engines that ONNX Runtime's TensorRT provider built of an ONNX file."""
        return self.variant(variant) / "provider-cache" / onnx.sha256[:16]

    def build_log(self, variant: Variant) -> Path:
        """The builder's log."""
        return self.variant(variant) / "build.log"

    def accuracy(self, variant: Variant) -> Path:
        """The record of a variant's validation."""
        return self.variant(variant) / "accuracy.json"

    def benchmark(self, variant: Variant) -> Path:
        """The record of a variant's latencies."""
        return self.variant(variant) / "benchmark.json"

    def pictures(self, variant: Variant) -> Path:
        """The record of a variant's answers to pictures that a GPU decoded."""
        return self.variant(variant) / "pictures.json"

    def layers(self, variant: Variant) -> Path:
        """The record of a variant's profile."""
        return self.variant(variant) / "layers.json"

    def trace(self, variant: Variant) -> Path:
        """The recording of Nsight Systems."""
        return self.variant(variant) / "profile.nsys-rep"

    def profile_log(self, variant: Variant) -> Path:
        """The profilers' log."""
        return self.variant(variant) / "profile.log"

    def load(self, variant: Variant) -> Path:
        """The record of a variant's results under load."""
        return self.variant(variant) / "load.json"

    def load_summaries(self, variant: Variant) -> Path:
        """LoadGen's own summaries of all runs of that record, one below the other."""
        return self.variant(variant) / "load.mlperf_log_summary.txt"

    def load_log(self, variant: Variant) -> Path:
        """The log of the process under load."""
        return self.variant(variant) / "load.log"

    def samples(self, variant: Variant) -> Path:
        """Every measured latency, as arrays."""
        return self.variant(variant) / "benchmark.npz"

    def restart(self, variant: Variant, number: int) -> Path:
        """The record of one restart of a benchmark; the first one is 1."""
        return self.variant(variant) / f"{_RESTART}{number}.json"

    def restart_samples(self, variant: Variant, number: int) -> Path:
        """The latencies of one restart, as arrays."""
        return self.variant(variant) / f"{_RESTART}{number}.npz"

    def restarts(self, variant: Variant) -> dict[Path, int]:
        """Return the files of all restarts on disk, however many are configured, with their numbers."""
        return self.restarts_in(self.variant(variant))

    @staticmethod
    def restarts_in(folder: Path) -> dict[Path, int]:
        """Return the files of all restarts in a variant's folder, with their numbers."""
        numbers = {
            path: path.stem.removeprefix(_RESTART)
            for path in sorted(folder.glob(f"{_RESTART}*"))
            if path.suffix in {".json", ".npz"}
        }
        return {path: int(number) for path, number in numbers.items() if number.isdecimal()}


def _own_cache(kind: str, folder: Path) -> Path:
    """Return a place in this user's own cache for the variant in a folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "model-artifact-pipeline" / kind / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()


def _sizes_name(sizes: Sizes) -> str:
    """Return sizes for names of files: `height160-width320`."""
    return "-".join(sized_name(axis, size) for axis, size in sizes)
