"""Records of the farm's machines."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model_artifacts.records import SCHEMA_VERSION, DeploymentHost, DigestedRecord, GitState, Host, Record


class FarmHost(Record):
    """The common host of all workers of one kind, which one or more of the farm's targets require."""

    worker_kind: str = Field(alias="needs")
    """Kind of the workers, such as `H100 with tensorrt`."""
    host: DeploymentHost
    """Description of these workers, which are all alike."""

    @property
    def machine(self) -> Host:
        """GPUs and libraries of these workers."""
        return self.host.host


class FarmNode(Record):
    """A machine of the farm at the time of its inspection."""

    id: str
    """The cluster's identifier, new each time that a machine joins."""
    host: DeploymentHost
    """The machine's own description."""


class FarmRecord(DigestedRecord):
    """Result of `python -m pipeline farm`: `farm.json`, from which plans are made."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of the record's schema."""
    hosts: tuple[FarmHost, ...]
    """One entry per kind of worker."""
    nodes: tuple[FarmNode, ...] = ()
    """The inspected machines, sorted by identifier."""
    here: str | None = None
    """On a worker, its own kind; None on the driver."""
    git: GitState | None = None
    """On a worker, the checkout of the driver; None on the driver, and outside a repository."""
