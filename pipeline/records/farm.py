"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model_artifacts.records import SCHEMA_VERSION, DeploymentHost, Host, Record


class FarmHost(Record):
    """What the workers of one or more of the farm's targets are: those that a target's needs name are all alike."""

    worker_kind: str = Field(alias="needs")
    """What a target asks of its workers: `H100 with tensorrt`."""
    host: DeploymentHost

    @property
    def machine(self) -> Host:
        """The GPUs and libraries of these workers."""
        return self.host.host


class FarmNode(Record):
    """A machine of the farm, as it was when it was looked at."""

    id: str
    """Which the cluster gives each time that a machine joins it."""
    host: DeploymentHost


class FarmRecord(Record):
    """The farm, as `python -m pipeline farm` has found it: `farm.json`. Plans are made from it."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    hosts: tuple[FarmHost, ...]
    nodes: tuple[FarmNode, ...] = ()
    here: str | None = None
    """On a worker: the needs of which it is a host."""
