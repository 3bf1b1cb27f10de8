"""A configuration with its artifacts folder: the start of every stage."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model_artifacts.errors import FarmError, MissingRecordError, RecordError, UnknownFarmError
from model_artifacts.host.environment import (
    driver_version,
    git_state,
    installed_onnxruntime,
    installed_torch_tensorrt,
    read_host,
)
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import (
    GitState,
    Graph,
    Host,
    Manifest,
    Record,
    StageRecord,
    Variant,
    model_names,
    of_model,
)
from pipeline.config.settings import Config, Executor
from pipeline.planning.folder.configurations import read_only_one
from pipeline.planning.paths import Paths
from pipeline.planning.plan import Plan
from pipeline.planning.schedule import Schedule
from pipeline.planning.steps import Step
from pipeline.records import (
    AccuracyReport,
    Artifact,
    BenchmarkReport,
    DataRecord,
    FarmHost,
    FarmRecord,
    LayerProfile,
    LoadReport,
    OnnxRecord,
    Proposal,
    ReportRecord,
    Rounding,
    Sensitivity,
    SourceRecord,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.records import FileRecord, Tool
    from pipeline.config.settings import FarmTarget
    from pipeline.planning.plan import Arithmetic
    from pipeline.planning.spec import StageSpec

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=StageRecord)


@dataclass(frozen=True)
class Project:
    """The plan, the folders and the records on disk, which all stages share.

    Reading a missing or damaged record raises `RecordError`, which names the command that makes it.
    """

    plan: Plan
    paths: Paths
    stages: tuple[StageSpec[Any], ...]
    """The table of stages, in their order: `pipeline.stages.STAGES`."""
    config_file: Path = Path("pipeline.yaml")
    """The file of the configuration."""
    place: Path | None = None
    """The folder of configurations that commands name in place of the file; None if they name the file."""
    on_worker: bool = False
    """True on a worker of a farm, which does not use the shared cache."""
    sent_from: GitState | None = None
    """On a worker, the checkout of the driver, whose code and configuration it has."""
    run_seconds: float = math.inf
    """The most seconds for each process of a quantisation, a rounding or a validation, on any hardware, beside
    `validation.timeout_seconds`: what is left of a search's budget. It is in no key."""

    def command(self, step: Step) -> str:
        """Return the shell command that runs a step of this configuration."""
        return step.command + self._option

    def command_of(self, name: str) -> str:
        """Return the shell command `python -m pipeline NAME` for this configuration, of what is no step: `plan`."""
        return f"python -m pipeline {name}{self._option}"

    @property
    def _option(self) -> str:
        return f" --config {shlex.quote(str(self.named))}" if self._is_other else ""

    @property
    def doit(self) -> str:
        """The shell command that runs all stale steps of this configuration."""
        return "doit" + (f" {shlex.quote(f'config={self.named}')}" if self._is_other else "")

    @property
    def named(self) -> Path:
        """The configuration as commands name it: its file, or the folder of all."""
        return self.place or self.config_file

    @property
    def _is_other(self) -> bool:
        return self.named != Path("pipeline.yaml")

    def named_by(self, place: Path) -> Project:
        """Return the project whose commands name a place: the configuration's file, or the folder of all."""
        return replace(self, place=None if place == self.config_file else place)

    @classmethod
    def load(cls, place: Path, stages: tuple[StageSpec[Any], ...], artifacts: Path | None = None) -> Project:
        """Read a configuration of one model, and the record of the farm.

        Args:
            place: the configuration's file, or a folder with one such file.
            stages: the table of stages.
            artifacts: the artifacts folder; by default the one that the configuration names, relative to its file.

        Raises:
            ConfigError: the configuration is wrong.
            UsageError: it has several models.
            UnknownFarmError: nobody has looked at the farm yet, or the configuration names others of it now.
            FarmError: this is a worker of the farm, and not what it was when that was looked at.
        """
        host = read_host()
        found = read_only_one(place, host)
        paths = Paths(artifacts or found.artifacts, found.config.model.name)
        return cls.of(found.config, host, paths, stages, found.file).named_by(place)

    @classmethod
    def of(cls, config: Config, host: Host, paths: Paths, stages: tuple[StageSpec[Any], ...], file: Path) -> Project:
        """Return the project of one of a file's models.

        Args:
            config: the model's configuration.
            host: this machine.
            paths: the places of its results.
            stages: the table of stages.
            file: the configuration's file.

        Raises:
            UnknownFarmError: nobody has looked at the farm yet, or the configuration names others of it now.
            FarmError: this is a worker of the farm, and not what it was when that was looked at.
        """
        if config.executor is Executor.LOCAL:
            return cls(Plan(config, host), paths, stages, file)
        farm = read_farm(config, paths)
        targets = {target.worker_kind: target for target in config.farm_targets}
        hosts = tuple(
            _adopted(item, targets[item.worker_kind], host) if item.worker_kind == farm.here else item
            for item in farm.hosts
        )
        return cls(Plan(config, host, hosts), paths, stages, file, on_worker=farm.here is not None, sent_from=farm.git)

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.plan.config

    @cached_property
    def schedule(self) -> Schedule:
        """Every step, and the order between them."""
        return Schedule(self.plan, self.stages)

    @cached_property
    def git(self) -> GitState | None:
        """The checkout of the configuration, as it was when first asked; None outside a repository."""
        return self.sent_from if self.on_worker else git_state(self.config_file.parent)

    def write(self, path: Path, record: S) -> S:
        """Write a step's record with the checkout that made the result, and return it.

        Raises:
            StorageError: the file cannot be written.
            NewerRecordError: a newer version of this package wrote the present record.
        """
        made = record.model_copy(update={"git": self.git})
        write_record(path, made)
        return made

    def file(self, record: FileRecord) -> Path:
        """Return the path of a recorded file."""
        return self.paths.root / record.path

    def source(self) -> SourceRecord:
        """Return the record of the model's source."""
        return self._read(self.paths.source, SourceRecord, "source", self.plan.model)

    def data(self) -> DataRecord:
        """Return the record of the images."""
        return self._read(self.paths.data, DataRecord, "data", self.plan.model)

    def onnx(self, graph: Graph) -> OnnxRecord:
        """Return the record of an ONNX file."""
        step = self.plan.graph_step(graph)
        return self._read(self.paths.onnx_record(graph), OnnxRecord, step.stage, step.subject)

    def rounding(self, arithmetic: Arithmetic) -> Rounding:
        """Return the record of a precision's own rounding."""
        step = self.plan.rounding_step(arithmetic)
        return self._read(self.paths.rounding(arithmetic), Rounding, step.stage, step.subject)

    def artifact(self, variant: Variant) -> Artifact:
        """Return the record of a build."""
        return self._read(self.paths.artifact(variant), Artifact, "build", variant.id)

    def accuracy(self, variant: Variant) -> AccuracyReport:
        """Return the record of a validation."""
        return self._read(self.paths.accuracy(variant), AccuracyReport, "validate", variant.id)

    def benchmark(self, variant: Variant) -> BenchmarkReport:
        """Return the record of a benchmark."""
        subject = f"{self.plan.model}/{variant.target}"
        return self._read(self.paths.benchmark(variant), BenchmarkReport, "benchmark", subject)

    def sensitivity(self, graph: Graph) -> Sensitivity:
        """Return the record of the layers' sensitivities to quantisation."""
        subject = f"{self.plan.model}/{graph.value}"
        return self._read(self.paths.sensitivity(graph), Sensitivity, "sensitivity", subject)

    def proposal(self, graph: Graph) -> Proposal:
        """Return the record of the places of Q/DQ pairs by Model Optimizer, for int8 or fp8."""
        subject = f"{self.plan.model}/{graph.value}"
        return self._read(self.paths.proposal(graph), Proposal, "propose", subject)

    def layers(self, variant: Variant) -> LayerProfile:
        """Return the record of a variant's profile."""
        return self._read(self.paths.layers(variant), LayerProfile, "profile", variant.id)

    def load_report(self, variant: Variant) -> LoadReport:
        """Return the record of a variant's results under load."""
        return self._read(self.paths.load(variant), LoadReport, "load", variant.id)

    def manifest(self) -> Manifest:
        """Return this model's part of the folder's manifest."""
        return self._read(self.paths.manifest, Manifest, "manifest", self.plan.model)

    def report(self) -> ReportRecord:
        """Return the record of the report."""
        return self._read(self.paths.report_record, ReportRecord, "report", self.plan.model)

    def pixels(self, record: FileRecord) -> npt.NDArray[Any]:
        """Return uint8 NHWC pixels, or samples of tensors, mapped from disk, so that only the used ones are read."""
        import numpy  # noqa: PLC0415,ICN001 - planning does without

        return numpy.load(self.file(record), mmap_mode="r")  # type: ignore[no-any-return]

    def _read(self, path: Path, kind: type[R], stage: str, subject: str) -> R:
        return self.read(path, kind, fix=f"run `{self.command(Step(stage, subject))}`")

    def read(self, path: Path, kind: type[R], fix: str = "") -> R:
        """Read a record of the artifacts folder, which must be at its place.

        Raises:
            RecordError: it is missing, damaged, edited, or another variant's.
            NewerRecordError: a newer version of this package wrote it.
        """
        record = read_record(path, kind, fix)
        if isinstance(record, Manifest):
            if (names := model_names(record)) and self.plan.model not in names:
                raise MissingRecordError(f"{path} has nothing of {self.plan.model}", fix=fix)
            return of_model(record, self.plan.model)  # type: ignore[return-value]  # R is Manifest
        if isinstance(record, StageRecord) and record.folder and path.parent != self.paths.root / record.folder:
            raise RecordError(f"{path} is the record of {record.folder}", fix=fix)
        if isinstance(record, SourceRecord) and record.model != self.plan.model:  # copied: its manifest would name it
            raise RecordError(f"{path} is the record of the model {record.model}", fix=fix)
        return record

    def records(self, step: Step) -> list[StageRecord | MissingRecordError]:
        """Return the records of a step, with the error in place of each that is missing.

        Raises:
            RecordError: one of them is damaged.
            UsageError: the plan has no such step.
        """
        spec, subject = self.schedule.spec(step.stage), self.schedule.subject(step)
        return [self._read_or_miss(path, spec.record, step) for path in spec.records(self.paths, self.plan, subject)]

    def _read_or_miss(self, path: Path, kind: type[R], step: Step) -> R | MissingRecordError:
        try:
            return self._read(path, kind, step.stage, step.subject)
        except MissingRecordError as exc:
            return exc


def read_farm(config: Config, paths: Paths) -> FarmRecord:
    """Return the record of the farm.

    Raises:
        UnknownFarmError: the record is missing or damaged, or lacks a target of the configuration.
    """
    fix = "run `python -m pipeline farm`, with the `--config` of this command if it has one; `doit` does by itself"
    try:
        record = read_record(paths.farm, FarmRecord, fix=fix)
    except RecordError as exc:
        missing = isinstance(exc, MissingRecordError)
        raise UnknownFarmError("nobody has looked at the farm yet" if missing else exc.what, fix=fix) from exc
    known = {item.worker_kind for item in record.hosts}
    if unknown := [target.worker_kind for target in config.farm_targets if target.worker_kind not in known]:
        raise UnknownFarmError(f"nobody has looked yet at the farm's workers with {unknown[0]}", fix=fix)
    return record


def traits(target: FarmTarget, host: Host, torch_tensorrt: Tool, onnxruntime: Tool) -> dict[str, str]:
    """Return the facts that must be equal on every machine that runs a target's steps, by name.

    For a target without a GPU that is the flavour alone: its machines build engines and run nothing.
    """
    versions = {tool.name: tool.version for tool in host.flavours}
    found = {"TensorRT": f"{target.flavour.value} {versions.get(target.flavour.value, 'absent')}"}
    if target.accelerator:
        found["torch"] = f"torch {host.torch}"
        found["Torch-TensorRT"] = f"{torch_tensorrt.name} {torch_tensorrt.version}"
        found["ONNX Runtime"] = f"{onnxruntime.name} {onnxruntime.version}"
        found["GPU"] = host.gpus[0].name if host.gpus else "no GPU that its driver shows"
    return found


def _adopted(planned: FarmHost, target: FarmTarget, here: Host) -> FarmHost:
    """Return the description of the workers with this worker's own GPU and driver.

    Raises:
        FarmError: this worker differs from the description.
    """
    host = planned.machine
    there = traits(target, host, planned.host.torch_tensorrt, planned.host.onnxruntime)
    for what, got in traits(target, here, installed_torch_tensorrt(), installed_onnxruntime()).items():
        if there[what] != got:
            raise FarmError(
                f"this worker's {what} is not what was planned with",
                expected=f"{there[what]}, as workers with {planned.worker_kind} have had",
                got=got,
                fix="look at the farm again: `python -m pipeline farm`, with the driver's `--config` if it has one",
            )
    if not target.accelerator:
        return planned
    own = tuple(
        gpu.model_copy(update={"index": mine.index, "uuid": mine.uuid})
        for gpu, mine in zip(host.gpus[:1], here.gpus, strict=False)
    )
    adopted = planned.host.model_copy(
        update={
            "host": host.model_copy(update={"gpus": own}),
            "free_memory_bytes": planned.host.free_memory_bytes[:1],
            "driver": driver_version(),
        }
    )
    return planned.model_copy(update={"host": adopted})
