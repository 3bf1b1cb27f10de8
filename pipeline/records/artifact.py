"""Record of the build stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model_artifacts.records import (
    BuiltFor,
    EngineMemory,
    FileRecord,
    ModuleContents,
    Setting,
    Sha256,
    StageRecord,
    TensorSpec,
    Variant,
    WeightWarning,
)
from pipeline.records.outcome import Outcome


class Artifact(StageRecord):
    """Result of a variant's build: `<model>/<target>/<variant>/artifact.json`."""

    variant: Variant
    """The variant."""
    outcome: Outcome
    """Outcome of the build."""
    reason: str = ""
    """Reason for a failed or skipped build; empty if it succeeded."""
    retryable: bool = Field(default=False, alias="mendable")
    """True if the variant was skipped, but the next run tries it again, because this host may change."""
    file: FileRecord | None = None
    """The artifact's file; None if there is none."""
    log: FileRecord | None = None
    """The builder's log; None if there is none."""
    inputs: tuple[TensorSpec, ...] = ()
    """The artifact's inputs."""
    outputs: tuple[TensorSpec, ...] = ()
    """The artifact's outputs."""
    settings: tuple[Setting, ...] = ()
    """Build settings, applied or unsupported."""
    memory: EngineMemory | None = None
    """GPU memory that an engine needs; None for other artifacts."""
    built_for: BuiltFor | None = None
    """Hosts that run an engine; None for other artifacts."""
    module: ModuleContents | None = None
    """Contents of a Torch-TensorRT module; None for other artifacts."""
    timing_cache_sha256: Sha256 | None = None
    """Digest of the timing cache after the build, for flavours that time tactics."""
    structure_sha256: Sha256 | None = None
    """Digest of the structure of an engine's graph. The engine can be refitted with other weights of this structure."""
    layers_sha256: Sha256 | None = None
    """Digest of an engine's layers; equal for engines that do the same work."""
    same_as: str | None = None
    """Id of the variant with the same engine, whose file this variant shares; None without one."""
    build_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Duration of the build."""
    weight_warnings: tuple[WeightWarning, ...] = ()
    """The builder's warnings about weights."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The artifact's file and the builder's log, as far as they exist."""
        return tuple(file for file in (self.file, self.log) if file)

    @property
    def folder(self) -> str:
        """The variant's folder, whose path is the variant's id."""
        return self.variant.id
