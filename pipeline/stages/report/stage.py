"""The manifest and its records → `artifacts/report.html`, one self-contained file."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.deployment.choices import (
    choices_of,
    compares,
    is_by_another_clock,
    latency_of,
    may_be_deployed,
    reference_warning,
    speedup_of,
    ties_of,
    timing_of,
)
from model_artifacts.deployment.comparison import breaches_of, compare
from model_artifacts.errors import RecordError, UnsupportedError
from model_artifacts.host.environment import installed, now, processor, tools
from model_artifacts.host.files import write_bytes
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.records import CPU_TARGET, Graph, Manifest
from pipeline.planning.folder.whole import read_released
from pipeline.planning.freshness import current
from pipeline.planning.keys import key_of
from pipeline.planning.plan import arithmetic_of
from pipeline.planning.steps import Step
from pipeline.records import Outcome, ReportRecord
from pipeline.stages.report.changes import print_changes
from pipeline.stages.report.copies import rate_limits, rows_of
from pipeline.stages.report.front import write_front
from pipeline.stages.report.groups import groups_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model_artifacts.deployment.choices import Choice
    from model_artifacts.deployment.comparison import Change
    from model_artifacts.records import BatchTiming, Link, ManifestEntry, Milestone
    from pipeline.planning.plan import Arithmetic
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import (
        BenchmarkReport,
        Conditions,
        DataRecord,
        LayerProfile,
        OnnxRecord,
        Rounding,
        Sensitivity,
    )
    from pipeline.stages.report.charts import Chart
    from pipeline.stages.report.copies import HostToHost
    from pipeline.stages.report.floors import Work


class Report(NamedTuple):
    """The written report, with the comparison to the released build."""

    path: Path
    changes: tuple[Change, ...]
    """Empty if the configuration names no released manifest."""

    @property
    def breaches(self) -> tuple[Change, ...]:
        """Changes that break a configured bound."""
        return breaches_of(self.changes)


class Device(NamedTuple):
    """A GPU or the processor, with the artifacts that run on it."""

    name: str
    entries: tuple[ManifestEntry, ...]
    choices: tuple[Choice, ...]
    milestones: tuple[Milestone, ...]
    charts: tuple[str, ...]
    """Figures as HTML."""
    missing: tuple[str, ...]
    """Reasons for the charts that are missing."""
    conditions: Conditions | None
    """Clocks, temperature and power while it was timed; None if they were not recorded."""
    link: Link | None
    """The rates of copies to and from the GPU; None if they were not measured."""
    copies: tuple[HostToHost, ...]


class Subnormals(NamedTuple):
    """Losses of a cast, with the accuracy of its artifacts."""

    graph: str
    tensors: int
    underflow: int
    subnormal: int
    overflow: int
    worst: tuple[tuple[str, int], ...]
    """Tensors with the most subnormal values, and their numbers."""
    accuracy: tuple[tuple[str, float], ...]
    """Artifacts of this precision, with their relative L2 to the reference."""
    warnings: tuple[str, ...]
    """Warnings of engine builders about weights."""


class OwnRounding(NamedTuple):
    """The distance that a precision's rounding makes in this network, beside those of its artifacts."""

    name: str
    rounding: Rounding
    measured: tuple[float, ...]
    """Relative L2 of the artifacts that computed in it, ascending."""


_WORST = 5
"""Number of tensors shown of a cast."""
_HOTTEST = 10
"""Number of layers, and of kernels, shown of a profile; its record has all."""


def make_report(project: Project) -> Report:
    """Write the report, with a comparison if the configuration names a released manifest.

    Args:
        project: the manifest stage must have run.

    Raises:
        RecordError: the manifest or the released one is missing or damaged.
        StorageError: the report cannot be written.
        NewerRecordError: a newer version of this project wrote the present record.
    """
    manifest = project.manifest()
    release = project.config.release
    changes: tuple[Change, ...] = ()
    if release and (released := read_released(project)):
        changes = compare(released, manifest, release)
    html = _render(project, manifest, changes)
    refuse_newer(project.paths.report_record)
    project.paths.report_record.unlink(missing_ok=True)  # a run killed now leaves no record of another page
    write_bytes(project.paths.report, html.encode("utf-8"))
    report = Report(project.paths.report, changes)
    reason = "; ".join(f"{change.id}: {change.metric}, {change.breach}" for change in report.breaches)
    record = ReportRecord(
        key=key_of(project, Step("report", project.plan.model)),
        built_at=now(),
        toolchain=tools("jinja2", "plotly"),
        outcome=Outcome.FAILED if reason else Outcome.DONE,
        reason=reason,
        file=describe_file(project.paths.report, project.paths.root),
    )
    project.write(project.paths.report_record, record)
    write_front(project)
    return report


def _render(project: Project, manifest: Manifest, changes: tuple[Change, ...]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only the report needs it
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - the same

    environment = Environment(
        loader=PackageLoader("pipeline.stages.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.globals.update(
        latency_of=latency_of,
        compares=lambda entry: compares(entry, manifest.artifacts),
        speedup=lambda entry, timing: _speedup(entry, timing, manifest),
        by_another_clock=lambda entry, timing: is_by_another_clock(entry, timing, manifest.artifacts),
        milestone_distance=lambda row: _milestone_distance(row, manifest),
        milestone_speedup=lambda row: _milestone_speedup(row, manifest),
    )
    environment.tests["deployed"] = may_be_deployed
    template = environment.get_template("report.html.jinja")
    return template.render(
        manifest=manifest,
        devices=_devices(project, manifest),
        subnormals=_subnormals(project, manifest),
        profiles=_profiles(project),
        roundings=_roundings(project, manifest),
        sensitivities=_sensitivities(project),
        data=_data(project),
        hottest=_HOTTEST,
        changes=[change for change in changes if change.turn.value != "same"],
        compared=project.config.release is not None,
        release=project.config.release,
        groups=groups_of(manifest.artifacts),
        warning=reference_warning(manifest),
        plotly=get_plotlyjs(),
    )


def _speedup(entry: ManifestEntry, timing: BatchTiming, manifest: Manifest) -> str:
    """Return a speed-up over eager FP32 as the table of the terminal shows it."""
    tied = entry.id in ties_of(manifest.artifacts, timing.batch)
    found = speedup_of(entry, timing, manifest.artifacts, tied=tied)
    return found.short if found else ""


def _milestone_speedup(row: Milestone, manifest: Manifest) -> str:
    timing, entry = timing_of(row, manifest.artifacts)
    if timing and entry:
        return _speedup(entry, timing, manifest)
    return f"{row.speedup:.2f}×" if row.speedup else ""


def _milestone_distance(row: Milestone, manifest: Manifest) -> float | None:
    """Return a milestone's distance to the reference; None if it is of fewer images than others."""
    _, entry = timing_of(row, manifest.artifacts)
    return None if entry and not compares(entry, manifest.artifacts) else row.relative_l2


def _devices(project: Project, manifest: Manifest) -> list[Device]:
    """Return the devices with their artifacts, of all targets: engines and modules of one GPU are alternatives."""
    by_device: dict[str, list[ManifestEntry]] = {}
    for entry in manifest.artifacts:
        gpu = project.plan.gpu(entry.target)
        name = processor() if entry.target == CPU_TARGET else gpu.name if gpu else ""
        if name:
            by_device.setdefault(name, []).append(entry)
    devices = sorted(by_device.items(), reverse=True)
    return [_device(project, manifest, name, tuple(entries)) for name, entries in devices]


def _device(project: Project, manifest: Manifest, name: str, entries: tuple[ManifestEntry, ...]) -> Device:
    milestones = tuple(row for row in manifest.milestones if row.gpu == name)
    link = next((link for link in manifest.links if link.gpu == name), None)
    charts, missing = _charts(project, name, entries, link)
    reports = [report for entry in entries if (report := _benchmark(project, entry))]
    conditions = next((report.conditions for report in reports if report.conditions), None)
    copies = rows_of(entries, link)
    return Device(name, entries, choices_of(entries), milestones, charts, missing, conditions, link, copies)


def _charts(
    project: Project, name: str, entries: Sequence[ManifestEntry], link: Link | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from pipeline.stages.report.charts import batch_scaling, pareto, workspace_sweep  # noqa: PLC0415 - plotly is slow
    from pipeline.stages.report.floors import peak_of  # noqa: PLC0415 - onnx is slow

    peak = peak_of(name)
    batches = sorted({timing.batch for entry in entries for timing in entry.timings})
    drawn = [pareto(entries, batch) for batch in batches]
    scaling = batch_scaling(entries, _work(project) if peak else None, peak, rate_limits(entries, link))
    sweep = workspace_sweep(entries)
    missing = []
    if not batches:
        missing.append("No latencies: no artifact was timed on this device.")
    if scaling is None and batches:
        missing.append("No throughput by batch size: only one batch size was timed.")
    if scaling is not None and peak is None:
        missing.append("No limits of arithmetic and bandwidth: this device's peak rates are unknown.")
    if sweep is None and batches:
        missing.append("No latency by workspace: no engine was timed with two workspaces.")
    charts = [chart for chart in (*drawn, scaling, sweep) if chart]
    return tuple(_html(chart) for chart in charts), tuple(missing)


def _html(chart: Chart) -> str:
    figure = chart.figure
    figure.update_layout(
        title=chart.title,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 70, "r": 20, "t": 50, "b": 60},
        legend={"orientation": "h", "y": -0.25},
        height=460,
    )
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False})
    )


def _work(project: Project) -> Work | None:
    import onnx  # noqa: PLC0415 - slow

    from pipeline.stages.report.floors import work_of  # noqa: PLC0415 - the same

    try:
        return work_of(onnx.load(project.file(project.onnx(Graph.FP32).file)))
    except (RecordError, OSError):
        return None  # a manifest may outlive the ONNX files; the chart then has no limits


def _benchmark(project: Project, entry: ManifestEntry) -> BenchmarkReport | None:
    try:
        return project.benchmark(project.plan.variant(entry.id))
    except RecordError:
        return None  # never timed, as the manifest reports


def _profiles(project: Project) -> list[LayerProfile]:
    """Return the profiles of the present artifacts; stale ones are left out."""
    profiles = (
        current(project, Step("profile", variant.id), partial(project.layers, variant))
        for variant in project.plan.variants
        if project.paths.layers(variant).is_file()
    )
    return [profile for profile in profiles if profile and profile.outcome is Outcome.DONE]


def _roundings(project: Project, manifest: Manifest) -> list[OwnRounding]:
    """Return the precisions' own rounding; those that were not emulated are left out."""
    measured: dict[Arithmetic, list[float]] = {}
    for entry in manifest.artifacts:
        known = entry.id in project.plan.variants_by_id
        if known and entry.accuracy is not None and compares(entry, manifest.artifacts):
            own = arithmetic_of(project.plan.variants_by_id[entry.id], entry.executed)
            measured.setdefault(own, []).append(entry.accuracy.relative_l2)
    found = []
    for arithmetic in project.plan.arithmetics:
        try:
            rounding = project.rounding(arithmetic)
        except RecordError:
            continue  # never emulated, as its artifacts' entries report
        found.append(OwnRounding(arithmetic.name, rounding, tuple(sorted(measured.get(arithmetic, ())))))
    return found


def _sensitivities(project: Project) -> list[Sensitivity]:
    """Return the sensitivities of the present graphs; stale ones are left out."""
    records = (
        current(
            project, Step("sensitivity", f"{project.plan.model}/{graph.value}"), partial(project.sensitivity, graph)
        )
        for graph in project.plan.graphs
        if project.paths.sensitivity(graph).is_file()
    )
    return [record for record in records if record]


def _data(project: Project) -> DataRecord | None:
    try:
        return project.data()
    except RecordError:
        return None  # a manifest may outlive its images


def _subnormals(project: Project, manifest: Manifest) -> list[Subnormals]:
    losses = []
    for graph in project.plan.graphs:
        try:
            record = project.onnx(graph)
        except RecordError:
            continue  # never exported, as its artifacts' entries report
        if record.casts:
            losses.append(_subnormals_of(record, manifest))
    return losses


def _subnormals_of(record: OnnxRecord, manifest: Manifest) -> Subnormals:
    casts = sorted(record.casts, key=lambda cast: -cast.subnormal)
    entries = [entry for entry in manifest.artifacts if entry.precision is record.graph.precision]
    warnings = (
        f"{item.issue}: {item.weights} weights ({entry.id})" for entry in entries for item in entry.weight_warnings
    )
    return Subnormals(
        record.graph.value,
        len(casts),
        sum(cast.underflow for cast in casts),
        sum(cast.subnormal for cast in casts),
        sum(cast.overflow for cast in casts),
        tuple((cast.name, cast.subnormal) for cast in casts[:_WORST] if cast.subnormal),
        tuple(
            (entry.id, entry.accuracy.relative_l2)
            for entry in entries
            if entry.accuracy and compares(entry, manifest.artifacts)
        ),
        tuple(dict.fromkeys(warnings)),
    )


def run(project: Project, _model: str, console: Console) -> int:
    """Make the report, print the changes since the release, and fail if a bound of the release is broken."""
    missing = [name for name in ("jinja2", "plotly") if not installed(name)]
    if missing and project.config.release is None:  # a build host needs no page, but bounds must be checked
        console.say(f"skipped: {' and '.join(missing)} not installed here; a release needs the report")
        return 0
    if missing:
        raise UnsupportedError(f"the report needs {' and '.join(missing)}", fix="install the dependency group `build`")
    report = make_report(project)
    if project.config.release:
        print_changes(report.changes, sys.stdout)
    console.say(f"the report: {report.path}")
    for breach in report.breaches:
        console.error(
            f"error: {breach.id}: {breach.metric} is {breach.turn.value} than released"
            f"\n  expected: {breach.breach}\n  got:      {breach.after}, released {breach.before}"
        )
    return 1 if report.breaches else 0
