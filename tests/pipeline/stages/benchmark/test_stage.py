"""How artifacts are timed."""

from __future__ import annotations

import multiprocessing
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import Clock, Graph, Layout, Variant
from pipeline.__main__ import main
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import Artifact, BenchmarkReport, Outcome
from pipeline.stages.benchmark.gpu_watch import Reading, Watch, conditions_of
from pipeline.stages.benchmark.messages import Ask, Ready, Samples, SampleSet, Started, Warm
from pipeline.stages.benchmark.results import Measured, baseline_latencies, samples_on_disk
from pipeline.stages.benchmark.stage import Worker, _measure, await_answer, benchmark_target, group, room_of
from pipeline.stages.benchmark.worker import first_batches, takes, time_module, timed
from tests.support.hosts import H100, L4, host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model_artifacts.records import Gpu

CPU = "cpu-x86_64"
HOT, COOL = Reading(900, 2600, 85, 300, 0x20), Reading(1980, 2600, 50, 300, 0)


def by_name(reports: tuple[BenchmarkReport, ...]) -> dict[str, BenchmarkReport]:
    """Return reports by their variant's own name."""
    return {report.variant_id.rpartition("/")[2]: report for report in reports}


def test_calls_are_timed_as_often_and_as_long_as_asked() -> None:
    """A round has at least so many runs, and goes on for at least so long."""
    often = timed(Clock.HOST, Ask(batch=1, runs=3, milliseconds=0.0), lambda: None)
    long = timed(Clock.HOST, Ask(batch=1, runs=1, milliseconds=20.0), lambda: time.sleep(0.001))
    assert len(often.milliseconds) == 3
    assert sum(long.milliseconds) >= 15
    assert len(long.milliseconds) > 1


def test_cpu_latencies_are_by_the_hosts_clock(built: Project) -> None:
    """A processor has no clock of its own, nothing to enqueue and no kernels to keep; a cold start it has, too."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/onnxruntime-fp32"))
    assert {(timing.clock, timing.enqueue_us) for timing in report.timings} == {(Clock.HOST, None)}
    assert (report.runtime_cache, report.disturbed_by, report.conditions) == (None, (), None)
    assert report.cold_start is not None
    assert 0 < report.cold_start.seconds < 60
    assert report.cold_start.cached_seconds is None


def test_batch_outside_a_profile_is_not_taken(built: Project) -> None:
    """An engine is asked for batches of its profile only; what has none takes any."""
    fixed = built.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB")
    dynamic = built.plan.variant("tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB")
    eager = built.plan.variant(f"tiny/{CPU}/eager-fp32")
    assert [batch for batch in (1, 2, 4, 5) if takes(fixed, batch)] == [1]
    assert [batch for batch in (1, 2, 4, 5) if takes(dynamic, batch)] == [1, 2, 4]
    assert [batch for batch in (1, 2, 4, 5) if takes(eager, batch)] == [1, 2, 4, 5]


def test_every_cpu_variant_is_timed_at_every_batch(built: Project) -> None:
    """Each variant that a CPU runs has rounds x runs samples at each configured batch."""
    settings = built.config.benchmark
    for variant in built.plan.variants:
        report = built.benchmark(variant)
        if report.outcome is Outcome.DONE:
            assert [timing.batch for timing in report.timings] == list(built.config.timed_batches)
            runs = settings.restarts * settings.rounds * settings.runs_per_round
            assert {timing.runs for timing in report.timings} == {runs}
            assert report.restarts == settings.restarts
    done = [report.outcome for report in map(built.benchmark, built.plan.variants)].count(Outcome.DONE)
    assert done == 5


def test_the_raw_samples_are_the_summary(built: Project) -> None:
    """The percentiles that a report states are those of the samples that it keeps."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/onnxruntime-fp32"))
    assert report.samples is not None
    settings = built.config.benchmark
    with np.load(built.file(report.samples)) as samples:
        for timing in report.timings:
            name = f"host_batch_{timing.batch}"
            assert timing.p50_ms == pytest.approx(float(np.median(samples[name])), abs=1e-4)
            assert len(samples[name]) == len(samples[f"{name}_restart"]) == len(samples[f"{name}_round"])
            assert set(samples[f"{name}_restart"]) == set(range(settings.restarts))
            assert set(samples[f"{name}_round"]) == set(range(settings.restarts * settings.rounds))


def test_samples_say_which_restart_and_round_they_are_of() -> None:
    """From what is on disk every percentile and interval can be computed again; so can the host's part."""
    found = Measured(cast("Any", None))
    found.keep(0, 1, Samples(Clock.GPU, (1.0, 2.0), (5.0, 6.0)))
    found.keep(1, 1, Samples(Clock.GPU, (3.0,), (7.0,)))
    what = SampleSet(Clock.GPU, 1)
    arrays = {name: values.tolist() for name, values in samples_on_disk(what, found.rounds[what]).items()}
    assert arrays == {
        "gpu_batch_1": [1.0, 2.0, 3.0],
        "gpu_batch_1_restart": [0, 0, 1],
        "gpu_batch_1_round": [0, 0, 1],
        "gpu_batch_1_enqueue_us": [5.0, 6.0, 7.0],
    }


def test_the_baseline_is_as_fast_as_itself(built: Project) -> None:
    """Eager FP32's speed-up over eager FP32 is 1."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/eager-fp32"))
    assert [timing.speedup for timing in report.timings] == [1.0, 1.0]


def test_a_reference_evaluator_is_not_timed(built: Project) -> None:
    """bf16 has no latency on a CPU, and the report says why."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/onnx-reference-bf16"))
    assert report.outcome is Outcome.SKIPPED
    assert "runs no bf16 convolutions" in report.reason


def test_engines_are_not_timed_without_a_gpu(built: Project) -> None:
    """An engine has no latency where no driver is, and the report says why."""
    report = built.benchmark(built.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB"))
    assert (report.outcome, report.reason) == (Outcome.SKIPPED, "no NVIDIA driver found")


def test_one_broken_variant_costs_nobody_else(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A variant that cannot be opened fails alone; one that was never built is skipped; the others are timed."""
    project = Project.load(copied / "pipeline.yaml")
    project.paths.onnx(Graph.FP16).write_bytes(b"not a model")
    project.paths.artifact(project.plan.variant(f"tiny/{CPU}/onnxruntime-int8")).unlink()
    assert main(["benchmark", f"tiny/{CPU}", "--config", str(copied / "pipeline.yaml")]) == 1
    assert f"FAILED: tiny/{CPU}/onnxruntime-fp16: ONNX Runtime cannot load" in capsys.readouterr().out
    reports = {variant.name: project.benchmark(variant) for variant in project.plan.variants if variant.target == CPU}
    assert reports["onnxruntime-fp16"].outcome is Outcome.FAILED
    assert reports["onnxruntime-int8"].reason.startswith("not built")
    assert reports["onnxruntime-fp32"].outcome is Outcome.DONE


def test_a_process_that_dies_is_a_failure_of_its_variant(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant whose process is gone fails with that reason, and the baseline's death leaves others without ratios."""
    (copied / "dying.py").write_text("import os\n\ndef make():\n    os._exit(3)\n")
    monkeypatch.syspath_prepend(str(copied))
    monkeypatch.setenv("PYTHONPATH", str(copied))
    project = Project.load(copied / "pipeline.yaml")
    source = project.paths.source
    source.write_text(source.read_text().replace("tests.support.tiny_model:make", "dying:make"))
    reports = by_name(benchmark_target(project, CPU))
    assert reports["eager-fp32"].outcome is Outcome.FAILED
    assert reports["eager-fp32"].reason == "its process ended without a result (exit status 3)"
    assert reports["onnxruntime-fp32"].outcome is Outcome.DONE
    assert {timing.speedup for timing in reports["onnxruntime-fp32"].timings} == {None}


def test_a_process_that_does_not_answer_is_ended(built: Project) -> None:
    """A variant whose process says nothing in time fails with that reason, and disturbs the others no longer."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    item = Measured(built.plan.variant(f"tiny/{CPU}/eager-fp32"))
    answer = await_answer(Worker(process, ours), item, 0.01)
    process.join(10)
    assert (answer, item.error, process.exitcode) == (None, "no answer in 0 s", -signal.SIGKILL)
    ours.close()
    theirs.close()


def on_an_h100(built: Project) -> Project:
    """Return the finished tiny project, planned for a host with an H100."""
    return Project(Plan(built.config, host(H100)), built.paths)


TORCH = "sm90-h100-80gb-hbm3-torch2.11"


def finished(project: Project, variant: Variant) -> Artifact:
    """Return the record of a build that went well."""
    source = project.source()
    return Artifact(
        key=source.key, built_at=source.built_at, variant=variant, outcome=Outcome.DONE, file=source.weights
    )


def test_each_group_has_the_baseline_first(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more processes are open at once than a host has room for, and each group is held against eager FP32."""
    monkeypatch.setattr("pipeline.stages.benchmark.stage.host_memory_bytes", lambda: 20 * 2**30)
    project = on_an_h100(built)
    artifacts = [finished(project, variant) for variant in project.plan.variants if variant.target == TORCH]
    groups = group(project, TORCH, artifacts)
    assert {members[0].variant.name for members in groups} == {"eager-fp32"}
    assert max(len(members) for members in groups) == 5 + 1
    timed_ids = [artifact.variant.id for members in groups for artifact in members[1:]]
    assert sorted(timed_ids) == sorted(item.variant.id for item in artifacts if item.variant.name != "eager-fp32")


@pytest.mark.parametrize(
    ("gpu", "host_bytes", "room"),
    [
        (None, 2**40, 12),
        (None, 16 * 2**30, 4),
        (H100, 2**40, 12),
        (H100, 32 * 2**30, 8),
        (L4, 2**40, 6),
        (L4.model_copy(update={"memory_bytes": 2**30}), 2**40, 1),
    ],
)
def test_a_small_host_has_room_for_fewer(gpu: Gpu | None, host_bytes: int, room: int) -> None:
    """Every variant's process may take 4 GiB of the host and of the GPU, and one at least is timed."""
    assert room_of(gpu, host_bytes) == room


def test_the_baseline_alone_is_a_group(built: Project) -> None:
    """Where nothing else was built, eager FP32 is timed all the same."""
    project = on_an_h100(built)
    baseline = project.plan.baseline(TORCH)
    assert baseline is not None
    (members,) = group(project, TORCH, [finished(project, baseline)])
    assert [artifact.variant for artifact in members] == [baseline]


def test_engines_are_timed_without_a_baseline_that_was_not_built(built: Project) -> None:
    """A host without torch has no eager FP32; its engines are timed alone."""
    project = on_an_h100(built)
    engines = [finished(project, item) for item in project.plan.variants if item.target == "rtx-sm80+"][:3]
    assert group(project, "rtx-sm80+", engines) == [engines]


def test_nothing_to_time_is_no_group(built: Project) -> None:
    """Where all was skipped, no process is started."""
    assert group(on_an_h100(built), TORCH, []) == []


def test_a_cuda_graph_is_held_against_eager_without_one(built: Project) -> None:
    """Speed-ups are over what users run: eager FP32 between two events, with contiguous images."""
    variant = built.plan.variants[0]
    baseline = Measured(variant)
    baseline.keep(0, 1, Samples(Clock.GPU, (2.0, 4.0)))
    found = Measured(variant, baseline=baseline)
    for clock, layout in ((Clock.GPU_GRAPH, Layout.CONTIGUOUS), (Clock.GPU, Layout.CHANNELS_LAST)):
        ((values,),) = baseline_latencies(found, SampleSet(clock, 1, layout))
        assert list(values) == [2.0, 4.0]
    assert baseline_latencies(found, SampleSet(Clock.HOST, 1)) == []


def test_rounds_are_kept_apart_and_restarts_have_medians() -> None:
    """A round's samples stay together, and a restart's rounds; its median is that of all of them."""
    found = Measured(cast("Any", None))
    for restart, values in ((0, (1.0, 1.0)), (0, (3.0,)), (1, (5.0,))):
        found.keep(restart, 8, Samples(Clock.HOST, values))
    what = SampleSet(Clock.HOST, 8)
    assert [[list(values) for values in rounds] for rounds in found.latencies(what)] == [[[1.0, 1.0], [3.0]], [[5.0]]]
    assert found.medians_of_restarts(what) == [1.0, 5.0]


def test_samples_are_named_by_clock_layout_and_batch() -> None:
    """Contiguous images are what everybody has, and are not mentioned."""
    assert SampleSet(Clock.GPU, 8).name == "gpu_batch_8"
    assert SampleSet(Clock.GPU_GRAPH, 1, Layout.CHANNELS_LAST).name == "gpu-graph_channels_last_batch_1"


class Module:
    """A session that is never run: what is timed of it is replaced."""

    def __init__(self, trouble: str = "") -> None:
        self.trouble, self.graph_trouble = trouble, ""

    def upload(self, *_: object) -> None:
        """Take a batch."""

    def enqueue_kernels(self) -> None:
        """Run."""

    def enqueue(self) -> None:
        """Replay, or find out that it cannot be captured."""
        if self.trouble:
            self.graph_trouble = self.trouble
            raise RunError("cannot be captured", got=self.trouble)

    def enqueue_with_copies(self) -> None:
        """Replay with copies around it."""
        self.enqueue()

    def __call__(self, *_: object) -> None:
        """Run from the host's memory."""


@pytest.fixture
def module_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a GPU's clock be one call."""

    def once(clock: Clock, _ask: object, _run: object, enqueue: Callable[[], None]) -> Samples:
        enqueue()
        return Samples(clock, (1.0,), (2.0,))

    monkeypatch.setattr("pipeline.stages.benchmark.worker.timed_on_gpu", once)


@pytest.mark.usefixtures("module_clock")
def test_a_module_is_timed_by_every_clock() -> None:
    """Without a CUDA graph, with one, and from the host's memory; the layout of the images is kept."""
    found = time_module(cast("Any", Module()), Ask(1, 1, 0.0), np.zeros((1, 3, 2, 2), "f"), Layout.CHANNELS_LAST)
    assert [item.clock for item in found] == [Clock.GPU, Clock.GPU_GRAPH, Clock.COPIES, Clock.HOST]
    assert {(item.layout, item.note) for item in found} == {(Layout.CHANNELS_LAST, "")}


@pytest.mark.usefixtures("module_clock")
def test_a_module_without_a_cuda_graph_says_why() -> None:
    """What cannot be captured is timed without, and the reason goes with the samples."""
    module = cast("Any", Module("operation not permitted when stream is capturing"))
    for _ in range(2):
        found = time_module(module, Ask(1, 1, 0.0), np.zeros((1, 3, 2, 2), "f"), Layout.CONTIGUOUS)
        assert [item.clock for item in found] == [Clock.GPU, Clock.HOST]
        assert {item.note for item in found} == {"no CUDA graph: operation not permitted when stream is capturing"}


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("torch_compile-fp16-b1-2-4-ws16MiB", [1, 2, 4]),
        ("dynamo-fp16-b1-2-4-ws16MiB", [1]),
        ("dynamo-fp16-b1-ws16MiB", [1]),
        ("eager-fp16", [1]),
    ],
)
def test_a_module_is_ready_when_it_is_compiled(built: Project, name: str, batches: list[int]) -> None:
    """A cold start ends with the first result; just in time, when every size of the profile has been compiled."""
    project = on_an_h100(built)
    assert first_batches(project, finished(project, project.plan.variant(f"tiny/{TORCH}/{name}"))) == batches


def with_timing(built: Project, *, restarts: int, rounds: int) -> Project:
    """Return the finished tiny project, configured to time more often."""
    settings = built.config.benchmark.model_copy(update={"restarts": restarts, "rounds": rounds})
    return Project(Plan(built.config.model_copy(update={"benchmark": settings}), built.plan.host), built.paths)


class Answers:
    """The end of a pipe of a variant's process that answers at once, and keeps what it was asked."""

    def __init__(self, name: str, asked: list[tuple[str, str]]) -> None:
        self.name, self.asked = name, asked
        self.waiting: list[object] = [Started()]

    def send(self, message: object) -> None:
        """Take a question, and have its answer ready."""
        if isinstance(message, Started):
            self.waiting.append(Ready())
        elif isinstance(message, Ask):
            kind = "warm up" if message.warm_up_seconds else "time"
            self.asked.append((self.name, f"{kind} {message.batch}"))
            self.waiting.append(Warm(settled=True) if message.warm_up_seconds else (Samples(Clock.HOST, (1.0,)),))

    def poll(self, _seconds: float) -> bool:
        """Say whether there is an answer."""
        return bool(self.waiting)

    def recv(self) -> object:
        """Give the answer."""
        return self.waiting.pop(0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the processes of variants are asked, in its order; none is started."""
    found: list[tuple[str, str]] = []

    @contextmanager
    def worker(_project: Project, artifact: Artifact, *, first: bool) -> Iterator[Worker]:
        found.append((artifact.variant.name, f"opened{' first' if first else ''}"))
        yield Worker(cast("Any", SimpleNamespace(pid=1)), cast("Any", Answers(artifact.variant.name, found)))

    monkeypatch.setattr("pipeline.stages.benchmark.stage._worker", worker)
    return found


def test_rounds_are_interleaved_and_every_restart_opens_all_anew(built: Project, asked: list[tuple[str, str]]) -> None:
    """A B, A B at each batch size, both warmed up before; so that a change of the machine's pace hits all alike."""
    names = ("eager-fp32", "onnxruntime-fp32")
    project = with_timing(built, restarts=2, rounds=3)
    _measure(project, None, [project.artifact(project.plan.variant(f"tiny/{CPU}/{name}")) for name in names])
    settings = project.config.benchmark
    expected = []
    for restart in range(settings.restarts):
        expected += [(name, "opened first" if restart == 0 else "opened") for name in names]
        for batch in built.config.timed_batches:
            expected += [(name, f"warm up {batch}") for name in names]
            expected += [(name, f"time {batch}") for name in names] * settings.rounds
    assert asked == expected


@pytest.mark.usefixtures("asked")
def test_what_the_sensors_showed_in_any_restart_counts(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that were held down in the first restart alone make the run a noisy one."""
    watches = [Watch(readings=[HOT]), *(Watch(readings=[COOL]) for _ in range(9))]

    @contextmanager
    def watching(_gpu: object, _ours: object) -> Iterator[Watch]:
        yield watches.pop(0)

    monkeypatch.setattr("pipeline.stages.benchmark.stage.watching", watching)
    project = with_timing(built, restarts=2, rounds=1)
    (found,) = _measure(project, None, [built.artifact(built.plan.variant(f"tiny/{CPU}/eager-fp32"))])
    assert found.conditions == conditions_of([HOT, COOL])
    assert found.conditions is not None
    assert found.conditions.throttled_by == ("software thermal slowdown",)
