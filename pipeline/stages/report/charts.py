"""The manifest's entries → plotly figures, drawn from records alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import plotly.graph_objects as go

from model_artifacts.deployment.choices import compares, is_eager, latency_of
from model_artifacts.records import Layout, Status, ranking_clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model_artifacts.records import BatchTiming, Clock, ManifestEntry
    from pipeline.stages.report.floors import Peak, Work

_MARKS = {Status.DEPLOYABLE: "circle", Status.REJECTED: "x"}
_SMALLEST_L2 = 1e-7
"""Relative L2 at which exact artifacts are drawn, because a logarithmic axis has no zero."""


_MOST_LABELS = 12
"""Points that all have their names beside them; more names would cover each other."""


class Chart(NamedTuple):
    """A figure with its title."""

    title: str
    figure: go.Figure


def short(entry: ManifestEntry) -> str:
    """Return an artifact's id without the model's name."""
    return entry.id.split("/", 1)[1]


def pareto(entries: Sequence[ManifestEntry], batch: int) -> Chart | None:
    """Draw latency (ms, with 95 % intervals) against relative L2 to the reference, at one batch size.

    Returns:
        the chart; None if no entry has both an accuracy and a timing at this batch size. An accuracy on fewer images
        than the others' does not compare, and is left out.
    """
    timed = [(entry, timing) for entry in entries if compares(entry, entries) and (timing := latency_of(entry, batch))]
    if not timed:
        return None
    figure = go.Figure()
    best = frontier(timed)
    labels = _labels(timed, best)
    for backend in dict.fromkeys(entry.backend for entry, _ in timed):
        members = [(entry, timing) for entry, timing in timed if entry.backend is backend]
        figure.add_trace(_points(backend.value, members, labels))
    if len(best) > 1:
        figure.add_trace(
            go.Scatter(
                name="Pareto frontier",
                mode="lines",
                x=[timing.p50_ms for _, timing in best],
                y=[_distance(entry) for entry, _ in best],
                line={"dash": "dot", "shape": "hv"},
                hoverinfo="skip",
            )
        )
    clocks = ", ".join(dict.fromkeys(timing.clock.phrase for _, timing in timed))
    figure.update_xaxes(
        title=f"median latency, ms ({clocks})", type="log", tickformat="~g"
    )  # the default shows 0.2 as "2"
    figure.update_yaxes(title="relative L2 to the FP32 reference", type="log", exponentformat="power", dtick=1)
    return Chart(f"Latency against accuracy, batch {batch}", figure)


def frontier(timed: Sequence[tuple[ManifestEntry, BatchTiming]]) -> list[tuple[ManifestEntry, BatchTiming]]:
    """Return the Pareto frontier of the deployable entries by latency and relative L2, the fastest first."""
    best: list[tuple[ManifestEntry, BatchTiming]] = []
    for entry, timing in sorted(timed, key=lambda item: (item[1].p50_ms, _distance(item[0]))):
        if entry.status is Status.DEPLOYABLE and (not best or _distance(entry) < _distance(best[-1][0])):
            best.append((entry, timing))
    return best


def _distance(entry: ManifestEntry) -> float:
    return max(entry.accuracy.relative_l2 if entry.accuracy else 0.0, _SMALLEST_L2)


def _labels(
    timed: Sequence[tuple[ManifestEntry, BatchTiming]], best: Sequence[tuple[ManifestEntry, BatchTiming]]
) -> dict[str, tuple[str, str]]:
    """Return the names and their places beside the points, by the artifacts' ids.

    Among many points only the frontier and eager FP32 have names; the others show theirs under the pointer. Neighbours
    on the same height take turns above and below their points.
    """
    named = timed if len(timed) <= _MOST_LABELS else [*best, *(item for item in timed if is_eager(item[0]))]
    order = sorted({entry.id: (timing.p50_ms, entry) for entry, timing in named}.values(), key=lambda item: item[0])
    return {
        entry.id: (short(entry).removeprefix(f"{entry.target}/"), ("top center", "bottom center")[index % 2])
        for index, (_, entry) in enumerate(order)
    }


def _points(
    name: str, members: list[tuple[ManifestEntry, BatchTiming]], labels: dict[str, tuple[str, str]]
) -> go.Scatter:
    low, high = zip(*(timing.interval_ms for _, timing in members), strict=True)
    medians = [timing.p50_ms for _, timing in members]
    return go.Scatter(
        name=name,
        mode="markers+text",
        text=[labels.get(entry.id, ("", ""))[0] for entry, _ in members],
        textposition=[labels.get(entry.id, ("", "top center"))[1] for entry, _ in members],
        textfont={"size": 11},
        x=medians,
        y=[_distance(entry) for entry, _ in members],
        error_x={
            "type": "data",
            "array": [end - middle for end, middle in zip(high, medians, strict=True)],
            "arrayminus": [middle - end for end, middle in zip(low, medians, strict=True)],
        },
        customdata=[f"{short(entry)}<br>{entry.status.value}, {timing.clock.phrase}" for entry, timing in members],
        hovertemplate="%{customdata}<br>%{x:.4g} ms, relative L2 %{y:.2g}<extra></extra>",
        marker={"size": 10, "symbol": [_MARKS.get(entry.status, "diamond") for entry, _ in members]},
    )


def batch_scaling(
    entries: Sequence[ManifestEntry], work: Work | None, peak: Peak | None, links: Mapping[str, float] | None = None
) -> Chart | None:
    """Draw the best throughput (images/s) by batch size, with the limits of the GPU's arithmetic, bandwidth and link.

    Args:
        entries: the entries of one device.
        work: the work of one image; None draws no limits.
        peak: the GPU's peak rates; None draws no limits.
        links: the images/s that the copies to and from the GPU allow, by the type of the input.

    Returns:
        the chart; None if fewer than two batch sizes were timed.
    """
    from pipeline.stages.report.floors import floor_of  # noqa: PLC0415 - imports onnx, which is slow

    lines = _best_rates(entries)
    batches = {batch for rates in lines.values() for batch in rates}
    if len(batches) < 2:  # noqa: PLR2004 - one size shows no scaling
        return None
    figure = go.Figure()
    for name, rates in lines.items():
        figure.add_trace(_line(name, sorted(rates), [rates[size] for size in sorted(rates)]))
    if work and peak:
        sizes = sorted(batches)
        floors = [floor_of(work, peak, size) for size in sizes]
        for name, times in (
            ("limit of arithmetic, FP16", [floor.arithmetic_ms for floor in floors]),
            ("limit of bandwidth, FP16", [floor.bandwidth_ms for floor in floors]),
        ):
            bound = [size / time * 1e3 for size, time in zip(sizes, times, strict=True)]
            figure.add_trace(_line(name, sizes, bound, dash="dot"))
    for kind, rate in (links or {}).items():
        sizes = sorted(batches)
        figure.add_trace(_line(f"limit of copies, {kind} input", sizes, [rate] * len(sizes), dash="dash"))
    counted = entries[0].counted
    figure.update_xaxes(title=f"{counted} a batch", type="log", tickvals=sorted(batches))
    figure.update_yaxes(title=f"{counted} a second", type="log", tickformat=",~g")
    return Chart("Throughput by batch size", figure)


def _best_rates(entries: Sequence[ManifestEntry]) -> dict[str, dict[int, float]]:
    """Return the best throughput of deployable entries, images/s by batch size, for each backend and precision.

    Engines of different batch sizes share a line, because another batch size means another engine. A line tells its
    clock if another one has another: a call by the host's clock takes longer than the same work by the GPU's.
    """
    lines: dict[str, dict[int, float]] = {}
    drawn = [entry for entry in entries if entry.status is Status.DEPLOYABLE and entry.timings]
    several = len({_clock_of(entry) for entry in drawn}) > 1
    for entry in drawn:
        clock = _clock_of(entry)
        name = f"{entry.backend.value} {entry.precision.value}{f', {clock.phrase}' if several else ''}"
        for timing in _contiguous(entry):
            if timing.clock is clock:
                line = lines.setdefault(name, {})
                line[timing.batch] = max(timing.throughput_per_s, line.get(timing.batch, 0.0))
    return lines


def _contiguous(entry: ManifestEntry) -> list[BatchTiming]:
    return [timing for timing in entry.timings if timing.layout is Layout.CONTIGUOUS]


def _clock_of(entry: ManifestEntry) -> Clock:
    """Return the clock of an entry's points: the CUDA graph's if there is one."""
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
    """Draw the latency (ms) by workspace (MiB), one line for each family of engines.

    Returns:
        the chart; None if no family was timed with two workspaces.
    """
    lines: dict[str, dict[int, float]] = {}
    for entry in entries:
        batch = entry.profile.opt if entry.profile else 0
        timing = latency_of(entry, batch)
        if entry.workspace_bytes and timing:
            name = f"{entry.target}: {entry.backend.value} {entry.precision.value} b{batch}"
            lines.setdefault(name, {})[entry.workspace_bytes] = timing.p50_ms
    figure = go.Figure()
    for name, latencies in lines.items():
        if len(latencies) > 1:
            sizes = sorted(latencies)
            figure.add_trace(_line(name, [size / 2**20 for size in sizes], [latencies[size] for size in sizes]))
    if not figure.data:
        return None
    ticks = sorted({size for latencies in lines.values() for size in latencies})
    figure.update_xaxes(
        title="workspace, MiB",
        type="log",
        tickvals=[size / 2**20 for size in ticks],
        ticktext=[f"{size / 2**20:g}" for size in ticks],
    )
    figure.update_yaxes(title="median latency, ms", rangemode="tozero")
    return Chart("Workspace", figure)
