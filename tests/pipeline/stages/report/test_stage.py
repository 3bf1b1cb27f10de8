"""The report: its contents, its release bounds, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.errors import RecordError
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import (
    Backend,
    BuiltFor,
    Clock,
    Doubt,
    EngineFlavour,
    Link,
    Manifest,
    Milestone,
    ModuleContents,
    OperatorCalls,
    Status,
    TensorSpec,
)
from pipeline.cli.main import main
from pipeline.planning.freshness import is_current
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.report.stage import make_report
from tests.support.hosts import H100, host
from tests.support.manifests import RANGE, accuracy, entry, timing

if TYPE_CHECKING:
    from collections.abc import Callable


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""


def text_of(project: Project) -> str:
    """Return the report without plotly's own code."""
    html = project.paths.report.read_text(encoding="utf-8")
    return re.sub(r"<script>/\*\*.*?</script>", "", html, count=1, flags=re.DOTALL)


def on_an_h100(copied: Path) -> Project:
    """Return the tiny project on a host with an H100, with a manifest of made-up timings."""
    found = Project.load(copied / "pipeline.yaml", STAGES)
    project = Project(Plan(found.config, host(H100)), found.paths, STAGES)
    target = "sm90-h100-80gb-hbm3-torch2.11"
    eager = entry(
        "eager-fp32", timing(1, 2.0, clock=Clock.GPU), timing(2, 2.2, clock=Clock.GPU), backend=Backend.EAGER,
        model="tiny", id=f"tiny/{target}/eager-fp32", target=target, device_memory_bytes=10**8, accuracy=accuracy(1e-6),
    )  # fmt: skip
    engines = [
        entry(
            f"fp16-{size}", timing(1, 0.2, clock=Clock.GPU_GRAPH), timing(2, 0.25, clock=Clock.GPU_GRAPH),
            id=f"tiny/rtx-sm80+/fp16-b1-2-4-ws{size}MiB", model="tiny", target="rtx-sm80+", backend=Backend.TENSORRT,
            profile=RANGE.model_copy(update={"opt": 2}), workspace_bytes=size * 2**20, device_memory_bytes=10**7,
        )
        for size in (16, 32)
    ]  # fmt: skip
    row = Milestone(
        gpu=H100.name, batch=1, label="the best engine", id=engines[0].id, status=Status.DEPLOYABLE,
        p50_ms=0.21, graph_ms=0.2, speedup=10.0, relative_l2=1e-3,
    )  # fmt: skip
    manifest = found.manifest().model_copy(update={"artifacts": (eager, *engines), "milestones": (row,)})
    write_record(project.paths.manifest, manifest)
    return project


def test_the_report_has_its_verdict_and_every_artifact(built: Project) -> None:
    """The verdict is first; each artifact that ran has a row, and each rejected one a reason."""
    text = text_of(built)
    assert (
        text.index("lowest latency, batch 1")
        < text.index("All artifacts")
        < text.index("Artifacts that are not deployable")
    )
    for item in built.manifest().artifacts:
        assert item.id.split("/", 1)[1] in text
    assert "No NVIDIA driver" in text or "no NVIDIA driver found" in text


def test_latencies_from_host_to_host_stand_beside_the_floor(copied: Path) -> None:
    """The table has the rates of the link, and a row for each deployable engine; without rates there is none."""
    project = on_an_h100(copied)
    eager, first, *rest = project.manifest().artifacts
    ends = {
        "inputs": (TensorSpec(name="image", shape=("batch", 3, 10, 10), dtype="float32", layout="NCHW"),),
        "outputs": (TensorSpec(name="logits", shape=("batch", 10), dtype="float32", layout="NC"),),
        "timings": (*first.timings, timing(1, 0.31, clock=Clock.PINNED), timing(1, 0.25, clock=Clock.OVERLAPPED)),
    }
    link = Link(gpu=H100.name, to_gpu_bytes_per_s=5e10, to_host_bytes_per_s=4e10, copied_bytes=2**26, copies=20)
    changed = {"artifacts": (eager, first.model_copy(update=ends), *rest), "links": (link,)}
    write_record(project.paths.manifest, project.manifest().model_copy(update=changed))
    make_report(project)
    text = text_of(project)
    section = text[text.index("<h3>From host to host") : text.index("<h3>All artifacts")]
    assert "50.0 GB/s to the GPU, 40.0 GB/s to the host" in section
    assert section.count("<td>float32</td>") == 1
    assert all(part in section for part in (">0.2<", ">0.31<br>", ">0.25<br>", ">80 %<", ">2.5e-05<"))
    assert "limit of copies, float32 input" in text
    write_record(project.paths.manifest, project.manifest().model_copy(update={"links": ()}))
    make_report(project)
    assert "From host to host" not in text_of(project)


def test_a_model_of_arrays_has_samples_and_one_round_no_interval(copied: Path) -> None:
    """Nothing of tokens is called an image, and a median alone no interval of 95 %."""
    project = on_an_h100(copied)
    manifest = project.manifest()
    assert manifest.model is not None
    tokens = (TensorSpec(name="tokens", shape=("batch", 8), dtype="int64", layout="NC"),)
    entries = [
        item.model_copy(
            update={
                "inputs": tokens,
                "timings": tuple(
                    found.model_copy(update={"p50_low_ms": found.p50_ms, "p50_high_ms": found.p50_ms})
                    for found in item.timings
                ),
            }
        )
        for item in manifest.artifacts
    ]
    model = manifest.model.model_copy(update={"preprocessing": None, "images": "texts.npz"})
    write_record(project.paths.manifest, manifest.model_copy(update={"artifacts": tuple(entries), "model": model}))
    make_report(project)
    text = text_of(project)
    assert "; data: texts.npz<" in text
    assert "no interval, of one round" in text
    assert "samples/s</th>" in text
    assert "samples a second" in text
    assert "images/s" not in text
    assert "0.2 to 0.2" not in text


def test_top1_has_a_column_where_there_are_labels(built: Project) -> None:
    """Other tasks have none, and are shown without an empty column."""
    page = built.paths.report.read_text()
    assert '<th class="number">top-1</th><th class="number">agreement (95 %)</th>' in page


def test_a_reason_stands_once_with_its_number(built: Project) -> None:
    """Artifacts without a driver are one row, without a command that cannot help."""
    text = text_of(built)
    section = text[text.index("<h2>Artifacts that are not deployable") : text.index("<h2>Glossary")]
    skipped = [item for item in built.manifest().artifacts if item.reason == "no NVIDIA driver found"]
    assert section.count(">no NVIDIA driver found<") == bool(skipped)
    assert (
        not skipped or f'<td class="number">{len(skipped)}</td><td class="text">no NVIDIA driver found</td>' in section
    )
    assert "python -m pipeline build" not in section


def test_the_status_is_beside_the_name(built: Project) -> None:
    """A page of 1,280 pixels does not cut it off, however many batches there are."""
    text = text_of(built)
    table = text[text.index("<h3>All artifacts") : text.index("All latencies, by clock")]
    assert re.findall(r"<th\b[^>]*>([^<]*)</th>", table)[:2] == ["artifact", "status"]
    assert re.search(r"<code>eager-fp32</code></td><td><span class=.status deployable.>deployable", table)


def test_an_accuracy_on_fewer_images_is_not_compared(built: Project) -> None:
    """The reference evaluator's column says on how many images it is in place of a number."""
    few = next(item for item in built.manifest().artifacts if item.evaluator.startswith("onnx.reference"))
    assert few.accuracy is not None
    text = text_of(built)
    table = text[text.index("<h3>All artifacts") : text.index("All latencies, by clock")]
    assert f">on {few.accuracy.samples} images</td>" in table


def test_what_does_not_compare_is_marked_or_left_out(copied: Path) -> None:
    """A distance on 8 images is shown nowhere, and a latency by the host's clock bears a mark."""
    project = on_an_h100(copied)
    eager, few, other = project.manifest().artifacts
    few = few.model_copy(update={"accuracy": accuracy(7.7e-2).model_copy(update={"samples": 8, "cosine": 0.777777})})
    other = other.model_copy(update={"timings": (timing(1, 0.3), *other.timings[1:])})
    write_record(project.paths.manifest, project.manifest().model_copy(update={"artifacts": (eager, few, other)}))
    make_report(project)
    text = text_of(project)
    page = text[text.index("<body>") :]
    assert "‡ 0.3<br>" in page
    assert ">0.2<br>" in page
    assert "7.7e-02" not in page
    assert "0.777777" not in page
    assert "judged on 8 images only" in page
    assert "Nothing may be deployed" not in page


def test_a_baseline_is_not_the_answer(copied: Path) -> None:
    """Without anything else that may be deployed, the page begins with that."""
    project = on_an_h100(copied)
    eager = project.manifest().artifacts[0]
    write_record(project.paths.manifest, project.manifest().model_copy(update={"artifacts": (eager,)}))
    make_report(project)
    text = text_of(project)
    assert 'Nothing may be deployed: <a href="#not-deployable">the reasons</a>' in text
    cards = text[text.index('<div class="cards">') : text.index("<h3>")]
    assert "eager-fp32" not in cards


def test_the_report_needs_nothing_from_a_network(built: Project) -> None:
    """No element of it loads anything."""
    assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", text_of(built)) == []


def test_what_was_not_there_is_not_drawn_but_said(built: Project) -> None:
    """A CPU has no known limits, and nothing here was timed with two workspaces."""
    text = text_of(built)
    assert "No limits of arithmetic and bandwidth: this device&#39;s peak rates are unknown." in text
    assert "No latency by workspace: no engine was timed with two workspaces." in text


def test_a_gpu_has_milestones_floors_and_a_sweep(copied: Path) -> None:
    """A timed GPU has milestones, hardware limits and a comparison of workspaces."""
    project = on_an_h100(copied)
    make_report(project)
    text = text_of(project)
    assert "From eager FP32 to the best engine, batch 1" in text
    assert "limit of arithmetic, FP16" in text
    assert "workspace, MiB" in text
    assert "smallest GPU memory" in text


def test_a_batch_in_parts_says_so(copied: Path) -> None:
    """The engine's file is for one of them."""
    project = on_an_h100(copied)
    manifest, flavour = project.manifest(), EngineFlavour.TENSORRT
    built_for = BuiltFor(flavour=flavour, version="10.6", gpu="H200", compute_capabilities=(90,), batch_parts=2)
    split = tuple(item.model_copy(update={"built_for": built_for}) for item in manifest.artifacts[-1:])
    write_record(project.paths.manifest, manifest.model_copy(update={"artifacts": manifest.artifacts[:-1] + split}))
    make_report(project)
    assert text_of(project).count("in 2 parts at once") == 1


def test_a_noisy_choice_says_so_on_its_card(copied: Path) -> None:
    """The verdict itself has the warning about noise."""
    project = on_an_h100(copied)
    manifest = project.manifest()
    noisy = tuple(
        item.model_copy(update={"noise": (Doubt(what="restarts differ", detail="by up to 9%"),)})
        for item in manifest.artifacts
    )
    write_record(project.paths.manifest, manifest.model_copy(update={"artifacts": noisy}))
    make_report(project)
    text = text_of(project)
    assert text.index("A noisy run: restarts differ: by up to 9%.") < text.index("All artifacts")


def test_every_clock_percentile_and_check_can_be_looked_up(built: Project) -> None:
    """Folded sections have each latency with its tail, and each check with value and bound."""
    text = text_of(built)
    assert "All latencies, by clock" in text
    report = built.benchmark(built.plan.variant("tiny/cpu-x86_64/onnxruntime-fp32"))
    assert all(f"{item.p99_ms:.4g}" in text for item in report.timings)
    checks = built.accuracy(built.plan.variant("tiny/cpu-x86_64/onnxruntime-fp16")).checks
    assert all(f"{check.metric} {check.value}" in text for check in checks)


def test_a_module_that_is_mostly_pytorch_says_so(copied: Path) -> None:
    """The page counts a module's engines and the operators outside them; older records have names alone."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    manifest = project.manifest()
    counted = ModuleContents(
        segments=2,
        torch_operators=("aten.a", "aten.b"),
        calls=(OperatorCalls(name="aten.b", calls=59), OperatorCalls(name="aten.a", calls=1)),
        libraries=(),
    )
    older = counted.model_copy(update={"calls": ()})
    entries = [
        item.model_copy(update={"module": module})
        for item, module in zip(manifest.artifacts, (counted, older), strict=False)
    ]
    write_record(project.paths.manifest, manifest.model_copy(update={"artifacts": tuple(entries)}))
    make_report(project)
    page = text_of(project)
    assert (
        '<td class="number">2</td><td class="number">60</td><td><code>aten.b</code> ×59, <code>aten.a</code></td>'
        in page
    )
    assert '<td class="number">2</td><td class="number">2</td><td><code>aten.a</code>, <code>aten.b</code></td>' in page


def test_what_names_and_reasons_hold_is_text(copied: Path) -> None:
    """A reason that is markup is shown, not run."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    manifest = project.manifest()
    nasty = manifest.artifacts[0].model_copy(update={"reason": "<script>alert(1)</script>", "status": Status.FAILED})
    write_record(project.paths.manifest, manifest.model_copy(update={"artifacts": (nasty, *manifest.artifacts[1:])}))
    make_report(project)
    assert "<script>alert(1)" not in text_of(project)
    assert "&lt;script&gt;alert(1)" in text_of(project)


def test_the_report_is_current_until_something_changes(copied: Path) -> None:
    """It is made again for another manifest, or where the page was edited, and for nothing else."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    step = Step("report", "tiny")
    assert is_current(project, step)
    project.paths.report.write_text("edited")
    assert not is_current(project, step)
    make_report(project)
    assert is_current(project, step)
    project.paths.manifest.write_text(project.paths.manifest.read_text() + "\n")
    assert not is_current(project, step)


# Against a released build.


def released(copied: Path, change: Callable[[Manifest], Manifest]) -> Path:
    """Write a released manifest that differs from this build's, and have the configuration name it."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    path = copied / "released.json"
    write_record(path, change(project.manifest()))
    with (copied / "pipeline.yaml").open("a") as file:
        file.write(f"release: {{manifest: '{path}', max_latency_increase: 3%, max_top1_drop: 0.1pt}}\n")
    return path


def faster(manifest: Manifest) -> Manifest:
    """Return a manifest in which everything had been a million times as fast: beyond the noise of any machine."""

    def hasten(value: float | None) -> float | None:
        return None if value is None else value / 1e6

    entries = tuple(
        item.model_copy(
            update={
                "timings": tuple(
                    found.model_copy(
                        update={name: hasten(getattr(found, name)) for name in ("p50_ms", "p50_low_ms", "p50_high_ms")}
                    )
                    for found in item.timings
                )
            }
        )
        for item in manifest.artifacts
    )
    return manifest.model_copy(update={"artifacts": entries})


def test_the_same_build_keeps_its_release(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing changed beyond noise: exit status 0, and the report says so."""
    released(copied, lambda manifest: manifest)
    assert main(["report", "tiny", "--config", str(copied / "pipeline.yaml")]) == 0
    assert "nothing changed beyond noise" in capsys.readouterr().out
    project = Project.load(copied / "pipeline.yaml", STAGES)
    assert "Nothing changed beyond noise." in text_of(project)


def test_a_slower_build_breaks_its_release(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1 with the changes and each bound that is broken; the failure is never taken for up to date."""
    released(copied, faster)
    assert main(["report", "tiny", "--config", str(copied / "pipeline.yaml")]) == 1
    printed = capsys.readouterr()
    assert "cpu-x86_64/onnxruntime-fp32" in printed.out
    assert "≤ +3.0%" in printed.out
    assert "error: tiny/cpu-x86_64/onnxruntime-fp32: p50 at batch 1, host is worse than released" in printed.err
    project = Project.load(copied / "pipeline.yaml", STAGES)
    assert project.report().outcome is Outcome.FAILED
    assert not is_current(project, Step("report", "tiny"))


def test_a_release_that_is_missing_is_one_message(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unreadable manifest of a release is an error with its path and the fix."""
    released(copied, lambda manifest: manifest).unlink()
    assert main(["report", "tiny", "--config", str(copied / "pipeline.yaml")]) == 1
    said = capsys.readouterr().err
    assert "released.json" in said
    assert "set `release.manifest` in pipeline.yaml" in said


def test_a_host_without_the_page_s_libraries_does_without(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build host needs no page; where a released build is to be held against, its absence is an error."""
    monkeypatch.setattr("pipeline.stages.report.stage.installed", lambda name: name != "plotly")
    command = ["report", "tiny", "--config", str(copied / "pipeline.yaml")]
    assert main(command) == 0
    assert "skipped: plotly not installed here; a release needs the report" in capsys.readouterr().out
    released(copied, lambda manifest: manifest)
    assert main(command) == 1
    assert "the report needs plotly" in capsys.readouterr().err


def test_no_manifest_is_no_report(copied: Path) -> None:
    """The report is of the manifest."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.manifest.unlink()
    with pytest.raises(RecordError):
        make_report(project)


# In a browser.


PROBE = """
<script>
addEventListener("load", () => {
  const table = [...document.querySelectorAll("table.sortable")].find((found) => found.textContent.includes("p99"));
  const column = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent.startsWith("p99"));
  const shown = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[column].textContent));
  const button = table.tHead.rows[0].cells[column].querySelector("button");
  button.click();
  const up = shown();
  button.click();
  const told = {
    up, down: shown(), page: getComputedStyle(document.body).backgroundColor,
    wider: document.documentElement.scrollWidth - innerWidth,
  };
  document.body.append(Object.assign(document.createElement("pre"), { id: "told", textContent: JSON.stringify(told) }));
});
</script>
"""
"""What a person would do with the page, and see of it."""


def browsed(page: Path, width: int, *options: str) -> tuple[str, list[str], dict[str, Any]]:
    """Open a page in headless Chromium, and return its final DOM, its console and the probe's result."""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},2000", "--virtual-time-budget=10000",
        *options, probed.resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)  # noqa: S603 - fixed
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout)
    assert told is not None
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], json.loads(told[1])


in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")


@in_a_browser
@pytest.mark.parametrize("width", [1300, 390])
def test_a_browser_draws_every_chart_without_complaint(copied: Path, width: int) -> None:
    """Headless Chromium: no console errors, each figure is a drawing with points in it, and nothing is cut off."""
    project = on_an_h100(copied)
    make_report(project)
    html, complaints, told = browsed(project.paths.report, width)
    assert complaints == []
    figures = html.count('class="plotly-graph-div')
    assert figures == 4
    assert html.count('class="main-svg"') >= figures
    assert html.count('class="point"') >= 10
    assert told["wider"] <= 0


@in_a_browser
def test_tables_are_sorted_by_a_click(copied: Path) -> None:
    """Once upwards, twice downwards, as numbers."""
    project = on_an_h100(copied)
    make_report(project)
    _, _, told = browsed(project.paths.report, 1300)
    assert told["up"] == sorted(told["up"])
    assert told["down"] == sorted(told["up"], reverse=True)
    assert len(set(told["up"])) > 2


@in_a_browser
def test_the_page_is_dark_where_people_want_that(copied: Path) -> None:
    """The page follows the system's colour scheme."""
    project = on_an_h100(copied)
    make_report(project)
    page = {dark: browsed(project.paths.report, 1300, *options)[2]["page"] for dark, options in SCHEMES.items()}
    assert page == {False: "rgb(255, 255, 255)", True: "rgb(13, 17, 23)"}


SCHEMES = {False: (), True: ("--blink-settings=preferredColorScheme=0",)}


def test_the_page_is_in_the_package() -> None:
    """The template lies beside the code that renders it, so that it is installed with it."""
    import pipeline.stages.report as report_package  # noqa: PLC0415 - its file is what this is about

    assert Path(str(report_package.__file__)).with_name("report.html.jinja").is_file()


def test_the_record_names_the_page(built: Project) -> None:
    """The record beside the page has its digest."""
    record = read_record(built.paths.report_record, type(built.report()))
    assert record.file.path == "report.html"
    assert record.outcome is Outcome.DONE
