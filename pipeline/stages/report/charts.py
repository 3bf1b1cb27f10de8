"""Entries of the manifest → plotly figures. What a chart shows is in the records, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import plotly.graph_objects as go

from model_artifacts.deployment.choices import latency_of
from model_artifacts.records import Layout, Status, ranking_clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_artifacts.records import BatchTiming, Clock, ManifestEntry
    from pipeline.stages.report.floors import Peak, Work

_MARKS = {Status.DEPLOYABLE: "circle", Status.REJECTED: "x"}
_SMALLEST_L2 = 1e-7
"""What is exact is drawn here, since a logarithm has no zero."""


class Chart(NamedTuple):
    """A figure with its heading."""

    title: str
    figure: go.Figure


def short(entry: ManifestEntry) -> str:
    """Return what a chart calls an artifact: without the model's name."""
    return entry.id.split("/", 1)[1]


def pareto(entries: Sequence[ManifestEntry], batch: int) -> Chart | None:
    """Return latency against the distance to the reference at a batch, with intervals; None where nothing was timed."""
    found = [(entry, timing) for entry in entries if entry.accuracy and (timing := latency_of(entry, batch))]
    if not found:
        return None
    figure = go.Figure()
    for backend in dict.fromkeys(entry.kind for entry, _ in found):
        members = [(entry, timing) for entry, timing in found if entry.kind is backend]
        figure.add_trace(_points(backend.value, members))
    best = frontier(found)
    if len(best) > 1:
        figure.add_trace(
            go.Scatter(
                name="nothing is both faster and nearer",
                mode="lines",
                x=[timing.p50_ms for _, timing in best],
                y=[_distance(entry) for entry, _ in best],
                line={"dash": "dot", "shape": "hv"},
                hoverinfo="skip",
            )
        )
    clocks = ", ".join(dict.fromkeys(timing.clock.phrase for _, timing in found))
    figure.update_xaxes(title=f"median latency, ms ({clocks})", type="log", tickformat="~g")  # not "2" for 0.2
    figure.update_yaxes(title="relative L2 to the FP32 reference", type="log", exponentformat="power", dtick=1)
    return Chart(f"Latency against accuracy, batch {batch}", figure)


def frontier(found: Sequence[tuple[ManifestEntry, BatchTiming]]) -> list[tuple[ManifestEntry, BatchTiming]]:
    """Return the Pareto frontier, the fastest first: what may be deployed, and nothing beats in both measures."""
    best: list[tuple[ManifestEntry, BatchTiming]] = []
    for entry, timing in sorted(found, key=lambda item: (item[1].p50_ms, _distance(item[0]))):
        if entry.status is Status.DEPLOYABLE and (not best or _distance(entry) < _distance(best[-1][0])):
            best.append((entry, timing))
    return best


def _distance(entry: ManifestEntry) -> float:
    return max(entry.accuracy.relative_l2 if entry.accuracy else 0.0, _SMALLEST_L2)


def _points(name: str, members: list[tuple[ManifestEntry, BatchTiming]]) -> go.Scatter:
    low, high = zip(*(timing.interval_ms for _, timing in members), strict=True)
    medians = [timing.p50_ms for _, timing in members]
    return go.Scatter(
        name=name,
        mode="markers",
        x=medians,
        y=[_distance(entry) for entry, _ in members],
        error_x={
            "type": "data",
            "array": [end - middle for end, middle in zip(high, medians, strict=True)],
            "arrayminus": [middle - end for end, middle in zip(low, medians, strict=True)],
        },
        text=[f"{short(entry)}<br>{entry.status.value}, {timing.clock.phrase}" for entry, timing in members],
        hovertemplate="%{text}<br>%{x:.4g} ms, relative L2 %{y:.2g}<extra></extra>",
        marker={"size": 10, "symbol": [_MARKS.get(entry.status, "diamond") for entry, _ in members]},
    )


def batch_scaling(entries: Sequence[ManifestEntry], work: Work | None, peak: Peak | None) -> Chart | None:
    """Return the best images a second by batch, and the rates that the GPU's arithmetic and bandwidth allow."""
    from pipeline.stages.report.floors import floor_of  # noqa: PLC0415 - beside what it is for

    lines = _best_rates(entries)
    batches = {batch for rates in lines.values() for batch in rates}
    if len(batches) < 2:  # noqa: PLR2004 - one size scales with nothing
        return None
    figure = go.Figure()
    for name, found in lines.items():
        figure.add_trace(_line(name, sorted(found), [found[size] for size in sorted(found)]))
    if work and peak:
        sizes = sorted(batches)
        floors = [floor_of(work, peak, size) for size in sizes]
        for name, times in (
            ("limit of arithmetic, FP16", [floor.arithmetic_ms for floor in floors]),
            ("limit of bandwidth, FP16", [floor.bandwidth_ms for floor in floors]),
        ):
            rates = [size / time * 1e3 for size, time in zip(sizes, times, strict=True)]
            figure.add_trace(_line(name, sizes, rates, dash="dot"))
    figure.update_xaxes(title="images a batch", type="log", tickvals=sorted(batches))
    figure.update_yaxes(title="images a second", type="log", tickformat=",~g")
    return Chart("Throughput by batch size", figure)


def _best_rates(entries: Sequence[ManifestEntry]) -> dict[str, dict[int, float]]:
    """Return, by what runs it and in which precision, the most images a second that may be deployed, by batch size.

    Engines of one batch size are points of one line: who scales a batch picks another engine.
    """
    lines: dict[str, dict[int, float]] = {}
    for entry in entries:
        for timing in _contiguous(entry) if entry.status is Status.DEPLOYABLE else ():
            if timing.clock is _clock_of(entry):
                line = lines.setdefault(f"{entry.kind.value} {entry.precision.value}", {})
                line[timing.batch] = max(timing.throughput_per_s, line.get(timing.batch, 0.0))
    return lines


def _contiguous(entry: ManifestEntry) -> list[BatchTiming]:
    return [timing for timing in entry.timings if timing.layout is Layout.CONTIGUOUS]


def _clock_of(entry: ManifestEntry) -> Clock:
    """A line is of one clock: the graph's where there is one."""
    return ranking_clock({timing.clock for timing in entry.timings})


def _line(name: str, x: Sequence[float], y: Sequence[float], dash: str = "solid") -> go.Scatter:
    return go.Scatter(
        name=name,
        mode="lines+markers",
        x=list(x),
        y=list(y),
        line={"dash": dash},
        hovertemplate=f"{name}<br>%{{x}}: %{{y:,.4g}}<extra></extra>",
    )


def workspace_sweep(entries: Sequence[ManifestEntry]) -> Chart | None:
    """Return the latency by workspace, a line for what else is equal; None where nothing was timed with two."""
    lines: dict[str, dict[int, float]] = {}
    for entry in entries:
        batch = entry.profile.opt if entry.profile else 0
        timing = latency_of(entry, batch)
        if entry.workspace_bytes and timing:
            name = f"{entry.target}: {entry.kind.value} {entry.precision.value} b{batch}"
            lines.setdefault(name, {})[entry.workspace_bytes] = timing.p50_ms
    figure = go.Figure()
    for name, found in lines.items():
        if len(found) > 1:
            sizes = sorted(found)
            figure.add_trace(_line(name, [size / 2**20 for size in sizes], [found[size] for size in sizes]))
    if not figure.data:
        return None
    ticks = sorted({size for found in lines.values() for size in found})
    figure.update_xaxes(
        title="workspace, MiB",
        type="log",
        tickvals=[size / 2**20 for size in ticks],
        ticktext=[f"{size / 2**20:g}" for size in ticks],
    )
    figure.update_yaxes(title="median latency, ms", rangemode="tozero")
    return Chart("Workspace", figure)
