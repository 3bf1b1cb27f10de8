"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

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
    """What a build made of a variant: `<model>/<target>/<variant>/artifact.json`."""

    variant: Variant
    outcome: Outcome
    reason: str = ""
    retryable: bool = Field(default=False, alias="mendable")
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
