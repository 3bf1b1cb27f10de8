"""Records of the propose stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model_artifacts.records import Count, Graph, Record, Sha256, StageRecord


class PlacedPair(Record):
    """A Q/DQ pair in front of one input of a node."""

    node: str
    """Name of the node in the FP32 graph."""
    kind: str
    """ONNX operator of the node."""
    input: Count
    """Place of the input among the node's inputs, from 0."""
    tensor: str
    """Name of the tensor that the node reads there in the FP32 graph: an activation, a weight, the graph's input."""


class Proposal(StageRecord):
    """Places of Q/DQ pairs by Model Optimizer: `<model>/onnx/<graph>.proposal.json`."""

    graph: Graph
    """The quantised graph, int8 or fp8."""
    structure_sha256: Sha256
    """Digest of the FP32 graph without the weights' values, whose nodes and tensors the pairs name."""
    model_optimizer: str
    """Version of Model Optimizer."""
    pairs: Annotated[tuple[PlacedPair, ...], Field(min_length=1)]
    """The pairs, in the order of the graph's nodes and of their inputs."""
