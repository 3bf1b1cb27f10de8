"""A configuration and the artifacts folder that belongs to it: where every stage begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.atomic import read_record
from pipeline.config import Config, load_config
from pipeline.environment import read_host
from pipeline.paths import Paths
from pipeline.plan import Plan, Stage, Step
from pipeline.records import (
    AccuracyReport,
    Artifact,
    BenchmarkReport,
    DataRecord,
    Graph,
    LayerProfile,
    Manifest,
    OnnxRecord,
    Record,
    ReportRecord,
    Sensitivity,
    SourceRecord,
    Variant,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.records import FileRecord

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Project:
    """What the stages share: the plan, the folders, and the records that are already there.

    Reading a record that is missing or damaged raises `RecordError`, which names the command that makes it.
    """

    plan: Plan
    paths: Paths
    config_file: Path = Path("pipeline.yaml")
    """What the configuration was read from."""

    @classmethod
    def load(cls, file: Path) -> Project:
        """Read the configuration; `artifacts:` is relative to the file's folder.

        Raises:
            ConfigError: the configuration is wrong.
        """
        host = read_host()
        config = load_config(file, host)
        return cls(Plan(config, host), Paths(file.parent / config.artifacts, config.model.name), file)

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.plan.config

    def file(self, record: FileRecord) -> Path:
        """Return where a recorded file lies."""
        return self.paths.root / record.path

    def source(self) -> SourceRecord:
        """Return the record of the model's source."""
        return self._read(self.paths.source, SourceRecord, Stage.SOURCE, self.plan.model)

    def data(self) -> DataRecord:
        """Return the record of the images."""
        return self._read(self.paths.data, DataRecord, Stage.DATA, self.plan.model)

    def onnx(self, graph: Graph) -> OnnxRecord:
        """Return the record of an ONNX file."""
        step = self.plan.graph_step(graph)
        return self._read(self.paths.onnx_record(graph), OnnxRecord, step.stage, step.subject)

    def artifact(self, variant: Variant) -> Artifact:
        """Return the record of a build."""
        return self._read(self.paths.artifact(variant), Artifact, Stage.BUILD, variant.id)

    def accuracy(self, variant: Variant) -> AccuracyReport:
        """Return the record of a validation."""
        return self._read(self.paths.accuracy(variant), AccuracyReport, Stage.VALIDATE, variant.id)

    def benchmark(self, variant: Variant) -> BenchmarkReport:
        """Return the record of a benchmark."""
        subject = f"{self.plan.model}/{variant.target}"
        return self._read(self.paths.benchmark(variant), BenchmarkReport, Stage.BENCHMARK, subject)

    def sensitivity(self, graph: Graph) -> Sensitivity:
        """Return the record of how much each layer minds being quantised."""
        subject = f"{self.plan.model}/{graph.value}"
        return self._read(self.paths.sensitivity(graph), Sensitivity, Stage.SENSITIVITY, subject)

    def layers(self, variant: Variant) -> LayerProfile:
        """Return the record of what takes a variant's time."""
        return self._read(self.paths.layers(variant), LayerProfile, Stage.PROFILE, variant.id)

    def manifest(self) -> Manifest:
        """Return the manifest."""
        return self._read(self.paths.manifest, Manifest, Stage.MANIFEST, self.plan.model)

    def report(self) -> ReportRecord:
        """Return the record of the report."""
        return self._read(self.paths.report_record, ReportRecord, Stage.REPORT, self.plan.model)

    def pixels(self, record: FileRecord) -> npt.NDArray[np.uint8]:
        """Return uint8 NHWC pixels, mapped from disk so that only what is touched is read."""
        import numpy  # noqa: PLC0415,ICN001 - planning does without

        return numpy.load(self.file(record), mmap_mode="r")  # type: ignore[no-any-return]

    def _read(self, path: Path, kind: type[R], stage: Stage, subject: str) -> R:
        return read_record(path, kind, fix=f"run `{Step(stage, subject).command}`")
