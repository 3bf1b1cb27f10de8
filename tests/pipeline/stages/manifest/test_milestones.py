"""The way from eager FP32 to the best engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import Backend, BatchRange, BatchTiming, Clock, Layout, Precision, Status
from pipeline.stages.manifest.milestones import milestones_of
from tests.support.hosts import H100
from tests.support.manifests import SKIPPED

if TYPE_CHECKING:
    from model_artifacts.records import Gpu, ManifestEntry, Milestone


def timing(
    batch: int,
    p50_ms: float,
    clock: Clock = Clock.GPU,
    layout: Layout = Layout.CONTIGUOUS,
    speedup: float | None = None,
) -> BatchTiming:
    """Return a latency, and how it compared with eager FP32 in the same rounds."""
    return BatchTiming(
        batch=batch,
        clock=clock,
        layout=layout,
        runs=5,
        p50_ms=p50_ms,
        p90_ms=p50_ms,
        p99_ms=p50_ms,
        throughput_per_s=1,
        speedup=speedup,
    )


def entry(
    backend: Backend,
    precision: Precision,
    *timings: BatchTiming,
    name: str = "",
    status: Status = Status.DEPLOYABLE,
    profile: BatchRange | None = None,
) -> ManifestEntry:
    """Return an artifact that ran on the GPU."""
    found = {
        "id": f"m/gpu/{name or backend.value}-{precision.value}",
        "backend": backend,
        "precision": precision,
        "timings": timings,
        "status": status,
        "profile": profile,
    }
    return SKIPPED.model_copy(update=found)


def on_the_h100(target: str) -> Gpu | None:
    """Return the GPU of a target."""
    return H100 if target == "gpu" else None


def row(rows: tuple[Milestone, ...], label: str) -> Milestone:
    """Return the row of a kind; there must be one."""
    (found,) = (item for item in rows if item.label == label)
    return found


EAGER = entry(Backend.EAGER, Precision.FP32, timing(1, 2.0, speedup=1.0), timing(1, 0.5, Clock.GPU_GRAPH, speedup=4.0))


def test_rows_come_in_the_order_of_the_story() -> None:
    """One row for each kind that the plan has."""
    engine, module = entry(Backend.TENSORRT, Precision.INT8, timing(1, 0.1)), entry(Backend.DYNAMO, Precision.FP16)
    rows = milestones_of([engine, module, EAGER], on_the_h100)
    assert [item.label for item in rows] == ["eager FP32", "dynamo FP16", "the best engine"]
    assert {item.gpu for item in rows} == {H100.name}


def test_speedups_are_over_eager_as_users_run_it() -> None:
    """Eager FP32 without a CUDA graph is 1; others count by the better of both ways, in the rounds that they shared."""
    graph = timing(1, 0.2, Clock.GPU_GRAPH, speedup=11.0)  # eager took 2.2 ms then
    module = entry(Backend.DYNAMO, Precision.FP16, timing(1, 0.4, speedup=5.5), graph)
    rows = milestones_of([EAGER, module], on_the_h100)
    assert row(rows, "eager FP32").speedup == 1.0
    assert row(rows, "dynamo FP16").speedup == 11.0
    assert (row(rows, "dynamo FP16").p50_ms, row(rows, "dynamo FP16").graph_ms) == (0.4, 0.2)


def test_the_fastest_of_a_kind_is_shown() -> None:
    """The fastest of several workspaces or formats stands for its backend."""
    slow = entry(Backend.DYNAMO, Precision.FP16, timing(1, 0.4), name="slow")
    fast = entry(Backend.DYNAMO_AOTI, Precision.FP16, timing(1, 0.3), name="fast")
    assert row(milestones_of([EAGER, slow, fast], on_the_h100), "dynamo FP16").id == "m/gpu/fast-fp16"


def test_what_may_not_be_deployed_gives_way() -> None:
    """A rejected artifact is shown only where there is no other, however fast it is."""
    good = entry(Backend.TENSORRT, Precision.FP16, timing(1, 0.3), name="good")
    bad = entry(Backend.TENSORRT, Precision.INT8, timing(1, 0.1), name="bad", status=Status.REJECTED)
    assert row(milestones_of([EAGER, bad, good], on_the_h100), "the best engine").id == "m/gpu/good-fp16"
    alone = row(milestones_of([EAGER, bad], on_the_h100), "the best engine")
    assert (alone.id, alone.status) == ("m/gpu/bad-int8", Status.REJECTED)


def test_each_batch_size_has_its_own_rows() -> None:
    """An artifact counts for the sizes that it takes; without eager FP32 at a size there is no speed-up."""
    fixed = entry(Backend.TENSORRT, Precision.FP16, timing(8, 0.6), profile=BatchRange(min=8, opt=8, max=8))
    rows = milestones_of([EAGER, fixed], on_the_h100)
    assert [(item.batch, item.label) for item in rows] == [
        (1, "eager FP32"),
        (8, "eager FP32"),
        (8, "the best engine"),
    ]
    assert (row(rows, "the best engine").p50_ms, row(rows, "the best engine").speedup) == (0.6, None)


def test_images_in_channels_last_do_not_count() -> None:
    """Rows are about images as everybody has them."""
    module = entry(Backend.DYNAMO, Precision.FP16, timing(1, 0.1, layout=Layout.CHANNELS_LAST), timing(1, 0.4))
    assert row(milestones_of([EAGER, module], on_the_h100), "dynamo FP16").p50_ms == 0.4


def test_nothing_is_said_of_a_cpu() -> None:
    """Artifacts of a CPU are no milestones."""
    assert milestones_of([EAGER], lambda _: None) == ()


def test_what_was_not_timed_is_no_step() -> None:
    """Without any latency on the GPU there is no way to show."""
    assert milestones_of([SKIPPED], on_the_h100) == ()
