"""Charts of the report."""

from __future__ import annotations

import pytest

from model_artifacts.records import Backend, Clock, Precision, Status
from pipeline.stages.report.charts import batch_scaling, frontier, pareto, workspace_sweep
from pipeline.stages.report.floors import Peak, Work
from tests.support.manifests import accuracy, entry, timing


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    """The frontier begins with the fastest artifact; slower ones must be more accurate; rejected ones do not count."""
    found = [
        (item, item.timings[0])
        for item in (
            entry("exact", timing(1, 9.0), accuracy=accuracy(1e-6)),
            entry("fast", timing(1, 1.0), accuracy=accuracy(1e-2)),
            entry("beaten", timing(1, 3.0), accuracy=accuracy(1e-2)),
            entry("between", timing(1, 2.0), accuracy=accuracy(1e-3)),
            entry("rejected", timing(1, 0.5), accuracy=accuracy(1e-4), status=Status.REJECTED),
        )
    ]
    assert [item.id.rpartition("/")[2] for item, _ in frontier(found)] == ["fast", "between", "exact"]


def test_nothing_timed_is_nothing_drawn() -> None:
    """A chart of nothing is left out."""
    silent = entry("x")
    assert (pareto([silent], 1), batch_scaling([silent], None, None), workspace_sweep([silent])) == (None, None, None)


def test_latencies_are_drawn_with_their_intervals() -> None:
    """A point lies at the median; its bars end where the interval does."""
    chart = pareto([entry("x", timing(1, 2.0, 0.1))], 1)
    assert chart is not None
    (points,) = chart.figure.data
    assert (points.x, points.y) == ((2.0,), (1e-3,))
    assert points.error_x.array == pytest.approx((0.2,))
    assert points.error_x.arrayminus == pytest.approx((0.2,))


def test_points_have_their_names_beside_them() -> None:
    """Neighbours take turns above and below their points."""
    chart = pareto([entry(name, timing(1, ms)) for name, ms in (("slow", 3.0), ("fast", 1.0), ("mid", 2.0))], 1)
    assert chart is not None
    points = chart.figure.data[0]
    assert points.mode == "markers+text"
    assert points.text == ("slow", "fast", "mid")
    assert points.textposition == ("top center", "top center", "bottom center")
    assert "cpu-x86_64/slow" in points.customdata[0]


def test_among_many_points_only_those_that_matter_have_names() -> None:
    """The frontier and eager FP32 are named; thirty names would cover each other."""
    others = [entry(f"n{index}", timing(1, 2.0 + index)) for index in range(30)]
    eager = entry("eager", timing(1, 99.0), backend=Backend.EAGER, precision=Precision.FP32)
    chart = pareto([entry("fast", timing(1, 1.0)), *others, eager], 1)
    assert chart is not None
    names = [name for trace in chart.figure.data for name in trace.text or ()]
    assert sorted(filter(None, names)) == ["eager", "fast"]


def test_what_is_exact_has_a_place_on_a_logarithmic_axis() -> None:
    """A distance of zero is drawn at the edge."""
    chart = pareto([entry("x", timing(1, 2.0), accuracy=accuracy(0.0))], 1)
    assert chart is not None
    assert chart.figure.data[0].y == (1e-7,)


def test_limits_are_drawn_where_the_gpu_is_known() -> None:
    """Two lines more, from the graph's arithmetic and from its bytes."""
    timed = entry("x", timing(1, 1.0), timing(2, 1.0))
    work, peak = Work(10**6, 10**6, 10**6), Peak(1e12, 1e12)
    for known, lines in ((peak, 3), (None, 1)):
        chart = batch_scaling([timed], work, known)
        assert chart is not None
        assert len(chart.figure.data) == lines
    chart = batch_scaling([timed], work, peak)
    assert chart is not None
    assert chart.figure.data[1].y == pytest.approx((5e5, 5e5))  # 2 x 10^6 operations an image at 10^12 a second


def test_the_limit_of_copies_is_drawn_for_each_input() -> None:
    """A line across all batch sizes, because copies take as long for each image."""
    chart = batch_scaling([entry("x", timing(1, 1.0), timing(2, 1.0))], None, None, {"float32": 5.0, "uint8": 20.0})
    assert chart is not None
    assert [(trace.name, trace.y) for trace in chart.figure.data[1:]] == [
        ("limit of copies, float32 input", (5.0, 5.0)),
        ("limit of copies, uint8 input", (20.0, 20.0)),
    ]


def test_engines_of_one_batch_size_are_one_line() -> None:
    """The line has the best deployable engine of each size, and no rejected one."""
    chart = batch_scaling(
        [
            entry("b1", timing(1, 2.0)),
            entry("slow", timing(1, 4.0)),
            entry("b8", timing(8, 4.0)),
            entry("wrong", timing(8, 1.0), status=Status.REJECTED),
        ],
        None,
        None,
    )
    assert chart is not None
    (line,) = chart.figure.data
    assert (line.x, line.y) == ((1, 8), pytest.approx((500, 2000)))


def test_an_accuracy_of_fewer_images_is_not_drawn() -> None:
    """Its distance is that of other images."""
    few = entry("few", timing(1, 1.0), accuracy=accuracy(1e-2).model_copy(update={"samples": 8}))
    chart = pareto([few, entry("all", timing(1, 2.0))], 1)
    assert chart is not None
    assert [name for trace in chart.figure.data for name in trace.text] == ["all"]


def test_lines_by_several_clocks_say_which() -> None:
    """A throughput by the host's clock is not beside one by the GPU's without a word."""
    graph = entry("a", *(timing(batch, 1.0, clock=Clock.GPU_GRAPH) for batch in (1, 8)))
    host = entry("b", *(timing(batch, 1.0) for batch in (1, 8)), precision=Precision.FP32)
    one, both = (batch_scaling(entries, None, None) for entries in ([host], [graph, host]))
    assert one is not None
    assert both is not None
    assert [trace.name for trace in one.figure.data] == ["onnxruntime fp32"]
    assert [trace.name for trace in both.figure.data] == [
        "onnxruntime fp16, on the GPU, as a CUDA graph",
        "onnxruntime fp32, by the host's clock",
    ]
