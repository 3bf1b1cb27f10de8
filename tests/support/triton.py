"""Artifacts that Triton can run."""

from __future__ import annotations

from typing import Any

from model_artifacts.records import Backend, BatchRange, Graph, Manifest, ManifestEntry, RowCheck, TensorSpec
from tests.support.deployables import engine
from tests.support.manifests import entry, manifest, timing

IMAGE = TensorSpec(name="image", shape=("batch", 3, 32, 32), dtype="float32", layout="NCHW")
LOGITS = TensorSpec(name="logits", shape=("batch", 10), dtype="float32", layout="NC")
RANGE = BatchRange(min=1, opt=4, max=8)
ONE = BatchRange(min=1, opt=1, max=1)
H100_MODEL = "sm90/m-fp16-b1-4-8-trt"


def plan(name: str, *milliseconds: float, profile: BatchRange = RANGE, **changes: Any) -> ManifestEntry:
    """Return an engine of TensorRT for the H100."""
    return engine(name, *milliseconds, profile=profile, inputs=(IMAGE,), outputs=(LOGITS,), **changes)


def package(name: str, *milliseconds: float, **changes: Any) -> ManifestEntry:
    """Return an AOTInductor package for the H100."""
    return plan(name, *milliseconds, backend=Backend.DYNAMO_AOTI, built_for=None, **changes)


def onnx(name: str, graph: Graph, *batches: int, **changes: Any) -> ManifestEntry:
    """Return an ONNX file that ONNX Runtime ran on the processor, validated at these batch sizes and timed at 1."""
    rows = tuple(RowCheck(batch=batch, reference_l2=0.0, relative_l2=0.0) for batch in batches)
    facts = {"graph": graph, "precision": graph.precision, "inputs": (IMAGE,), "outputs": (LOGITS,), "rows": rows}
    return entry(name, timing(1, 1.0)).model_copy(update=facts | changes)


def of(*entries: ManifestEntry) -> Manifest:
    """Return a manifest of these."""
    return manifest(*entries)
