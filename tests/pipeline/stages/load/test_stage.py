"""Artifacts under load: for real on the processor, with the record, the manifest and the page that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import RetryableError, RunError, UnsupportedError
from model_artifacts.host.environment import now
from model_artifacts.records import Scenario
from pipeline.cli.main import main
from pipeline.planning.freshness import freshness_of, is_current
from pipeline.planning.keys import key_of
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import LoadReport, Outcome
from pipeline.stages import STAGES
from pipeline.stages.load import stage as loading
from pipeline.stages.load.stage import load_variant, refuse

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("mlperf_loadgen", reason="the extra `load` is not installed here")

CPU = "tiny/cpu-x86_64"
VARIANT = f"{CPU}/onnxruntime-fp32"
SHORT = """\
load:
  {scenarios: [single_stream, offline, server], p99_ms: [0.0001, 60000], contexts: [1], batches: [2],
  max_delay_ms: [0], min_duration_seconds: 0.1, confirmation_seconds: 0.1, max_duration_seconds: 20}
"""


@pytest.fixture
def project(copied: Path) -> Project:
    """The tiny project with short runs and a bound that any machine keeps."""
    config = copied / "pipeline.yaml"
    config.write_text(config.read_text() + SHORT)
    return Project.load(config, STAGES)


def test_what_an_artifact_serves_is_recorded_and_shown(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """The command prints the results; the record, LoadGen's summaries, the manifest and the page have them."""
    variant = project.plan.variant(VARIANT)
    before = project.manifest()
    config = ["--config", str(project.config_file)]
    assert main(["load", VARIANT, *config]) == 0
    shown = capfd.readouterr().out
    assert "server, p99 ≤ 60000 ms" in shown
    assert "no result: p99 ≤ 0.0001 ms: one image alone takes" in shown

    report = project.load_report(variant)
    assert report.load is not None
    assert [item.scenario for item in report.load.results] == [
        Scenario.SINGLE_STREAM,
        Scenario.OFFLINE,
        Scenario.SERVER,
    ]
    server = report.load.results[-1]
    assert server.rate_per_s > 0
    assert server.queries >= 1000
    assert server.p99_ms <= 60_000
    assert report.runs[-1].valid
    assert report.summaries is not None
    text = project.file(report.summaries).read_text()
    assert text.count("MLPerf Results Summary") == len(report.runs)
    assert is_current(project, Step("load", VARIANT))

    assert not is_current(project, Step("manifest", "tiny"))
    assert main(["manifest", "tiny", *config]) == 0
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    assert entries[VARIANT].load == report.load
    assert [entry.id for entry in entries.values() if entry.load] == [VARIANT]
    others = [entry for entry in before.artifacts if entry.id != VARIANT]
    assert [entry for entry in entries.values() if entry.id != VARIANT] == others
    assert main(["report", "tiny", *config]) == 0
    page = project.paths.report.read_text(encoding="utf-8")
    assert "<h3>Under load</h3>" in page
    assert f"{server.rate_per_s:,.0f}" in page


def test_manifest_without_loads_keeps_its_key(project: Project) -> None:
    """The settings of `load` change nothing that was built, and no key holds a record that is not there."""
    assert is_current(project, Step("manifest", "tiny"))
    assert is_current(project, Step("report", "tiny"))
    fields = {field.name: field.value for field in project.manifest().key.fields}
    assert "load.json" not in fields["records"]


def test_other_settings_make_the_results_stale(project: Project) -> None:
    """Another bound is another search; another time limit is not."""
    variant = project.plan.variant(VARIANT)
    step = Step("load", VARIANT)
    nothing = LoadReport(key=key_of(project, step), built_at=now(), variant_id=VARIANT, outcome=Outcome.DONE)
    project.write(project.paths.load(variant), nothing)
    assert is_current(project, step)
    config = project.config_file
    longer = config.read_text().replace("max_duration_seconds: 20", "max_duration_seconds: 20, timeout_seconds: 9")
    config.write_text(longer)
    assert is_current(Project.load(config, STAGES), step)
    config.write_text(config.read_text().replace("[0.0001, 60000]", "[7]"))
    assert any("settings" in reason for reason in freshness_of(Project.load(config, STAGES), step).reasons)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("eager-fp32", "never deployed: a baseline for comparison"),
        ("onnxruntime-int8", "never deployed: its graph is TensorRT's"),
    ],
    ids=["baseline", "stand-in"],
)
def test_artifacts_that_are_never_deployed_are_skipped(
    project: Project, capfd: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    """They cost no run, and the line says why."""
    assert main(["load", f"{CPU}/{name}", "--config", str(project.config_file)]) == 0
    assert f"skipped: {says}" in capfd.readouterr().out
    report = project.load_report(project.plan.variant(f"{CPU}/{name}"))
    assert (report.outcome, report.load, report.retryable) == (Outcome.SKIPPED, None, False)


def test_only_what_passed_its_gate_is_loaded(project: Project) -> None:
    """A rejected artifact, one that was not validated and one that was not built are refused, each with its reason."""
    variant = project.plan.variant(VARIANT)
    artifact, accuracy = project.artifact(variant), project.accuracy(variant)
    refuse(artifact, accuracy)
    missed = accuracy.checks[0].model_copy(update={"passed": False})
    with pytest.raises(UnsupportedError, match="not deployable: too far off"):
        refuse(artifact, accuracy.model_copy(update={"checks": (missed,), "reason": "too far off"}))
    with pytest.raises(RetryableError, match="not validated: no GPU"):
        refuse(artifact, accuracy.model_copy(update={"outcome": Outcome.SKIPPED, "reason": "no GPU\nhere"}))
    with pytest.raises(UnsupportedError, match="not built: too old"):
        refuse(artifact.model_copy(update={"outcome": Outcome.SKIPPED, "reason": "too old"}), accuracy)


def test_load_that_fails_is_tried_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure has its reason in the record, no results, and is never cached."""

    def fails(*_: object, **__: object) -> None:
        raise RunError("the artifact failed under load: out of memory")

    monkeypatch.setattr(loading, "run_isolated", fails)
    variant = project.plan.variant(VARIANT)
    report = load_variant(project, variant)
    assert (report.outcome, report.load, report.files) == (Outcome.FAILED, None, ())
    assert "out of memory" in report.reason
    assert freshness_of(project, Step("load", VARIANT)).reasons == ("it failed the last time",)
    assert main(["load", VARIANT, "--config", str(project.config_file)]) == 1


def test_missing_loadgen_is_a_skip_that_names_the_extra(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package nothing is opened; once it is installed, the next run tries again."""
    monkeypatch.setattr("pipeline.stages.load.loadgen.installed", lambda _: False)
    report = load_variant(project, project.plan.variant(VARIANT))
    assert (report.outcome, report.retryable) == (Outcome.SKIPPED, True)
    assert "the extra `load`" in report.reason
