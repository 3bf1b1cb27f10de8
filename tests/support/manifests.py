"""Manifests of a GPU with made-up numbers."""

from __future__ import annotations

from datetime import datetime, timezone

from model_artifacts.records import (
    Accuracy,
    Backend,
    BatchRange,
    BatchTiming,
    Clock,
    FileRecord,
    Key,
    Layout,
    Manifest,
    ManifestEntry,
    Milestone,
    Precision,
    Status,
)

SHA = "0" * 64


def timing(
    batch: int, p50: float, spread: float = 0.01, clock: Clock = Clock.HOST, layout: Layout = Layout.CONTIGUOUS
) -> BatchTiming:
    """Return a latency whose interval is this share to both sides."""
    return BatchTiming(
        batch=batch,
        clock=clock,
        layout=layout,
        runs=9,
        p50_ms=p50,
        p90_ms=p50,
        p99_ms=p50,
        p50_low_ms=p50 * (1 - spread),
        p50_high_ms=p50 * (1 + spread),
        throughput_per_s=batch / p50 * 1e3,
        speedup=2.0,
    )


def accuracy(relative_l2: float = 1e-3, top1: float | None = 0.92) -> Accuracy:
    """Return an accuracy that lies this far from the reference."""
    return Accuracy(
        samples=500,
        finite=True,
        cosine=1.0,
        cosine_min=1.0,
        relative_l2=relative_l2,
        max_abs=0.1,
        top1_agreement=0.996,
        top1_agreement_low=0.99,
        top1_agreement_high=0.999,
        top1=top1,
        top1_drop=None if top1 is None else 0.0,
        worst_sample=3,
    )


def entry(name: str, *timings: BatchTiming, **changes: object) -> ManifestEntry:
    """Return a deployable artifact of one megabyte, `m/cpu-x86_64/<name>`."""
    plain = ManifestEntry(
        id=f"m/cpu-x86_64/{name}",
        model="m",
        target="cpu-x86_64",
        backend=Backend.ONNXRUNTIME,
        precision=Precision.FP16,
        graph=None,
        profile=None,
        workspace_bytes=None,
        status=Status.DEPLOYABLE,
        reason="",
        file=FileRecord(path="m/file", bytes=1_000_000, sha256=SHA),
        built_for=None,
        module=None,
        executed=None,
        layers=(),
        device_memory_bytes=None,
        cold_start=None,
        runtime_cache=None,
        smallest_workspace=None,
        equals=(),
        inputs=(),
        outputs=(),
        build_seconds=1.0,
        weight_warnings=(),
        memory=None,
        settings=(),
        evaluator="",
        accuracy=accuracy(),
        checks=(),
        proven=False,
        gpu=None,
        device="a GPU, driver 580",
        timings=timings,
        rows=(),
        noise=(),
        toolchain=(),
        rerun=f"python -m pipeline build m/cpu-x86_64/{name}",
    )
    return plain.model_copy(update=changes)


def manifest(*entries: ManifestEntry, milestones: tuple[Milestone, ...] = ()) -> Manifest:
    """Return a manifest of these artifacts."""
    return Manifest(
        key=Key(fields=()),
        built_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        git=None,
        host="a host",
        model=None,
        artifacts=entries,
        milestones=milestones,
    )


RANGE = BatchRange(min=1, opt=8, max=32)


SKIPPED = entry(
    "dynamo-fp32",
    id="m/gpu/dynamo-fp32",
    target="gpu",
    backend=Backend.DYNAMO,
    precision=Precision.FP32,
    status=Status.SKIPPED,
    reason="no NVIDIA driver found",
    file=None,
    accuracy=None,
    rerun="python -m pipeline build m/gpu/dynamo-fp32",
)
