"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from enum import Enum

from pydantic import PositiveInt

from model_artifacts.records.accuracy import Accuracy, GateCheck, RowCheck
from model_artifacts.records.artifacts import BuiltFor, EngineMemory, LayerShare, ModuleContents, Setting, WeightWarning
from model_artifacts.records.base import FileRecord, Milliseconds, Record, Sha256, Share, StageRecord, Tool
from model_artifacts.records.inputs import Preprocessing, TensorSpec, WeightsOrigin
from model_artifacts.records.latency import BatchTiming, ColdStart, Doubt
from model_artifacts.records.variants import Backend, BatchRange, Graph, Precision


class Status(str, Enum):
    """What the manifest says of an artifact."""

    DEPLOYABLE = "deployable"
    BUILT = "built"
    REJECTED = "rejected"
    FAILED = "failed"
    SKIPPED = "skipped"


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
    profile: BatchRange | None
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
