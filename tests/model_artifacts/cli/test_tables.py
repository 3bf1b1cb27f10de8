"""The manifest as a table in the terminal."""

from __future__ import annotations

import io
import re

import pytest

from model_artifacts.cli.tables import console_for, print_table
from model_artifacts.deployment.choices import latency_of
from model_artifacts.records import (
    Accuracy,
    Backend,
    BatchTiming,
    Clock,
    Doubt,
    FileRecord,
    Interpolation,
    ManifestEntry,
    ManifestModel,
    Milestone,
    Precision,
    Preprocessing,
    Status,
    WeightsOrigin,
)
from tests.support.manifests import SKIPPED, manifest

ACCURACY = Accuracy(
    samples=100,
    finite=True,
    cosine=0.9999,
    cosine_min=0.99,
    relative_l2=0.00123,
    max_abs=0.1,
    top1_agreement=0.985,
    top1_agreement_low=0.95,
    top1_agreement_high=0.99,
    top1=0.75,
    top1_drop=0.01,
    worst_sample=3,
)
MODEL = ManifestModel(
    name="m",
    factory="a:b",
    weights_origin=WeightsOrigin.SAMPLE,
    weights_detail="a sample",
    weights_sha256="0" * 64,
    class_names=None,
    preprocessing=Preprocessing(resize=8, crop=8, interpolation=Interpolation.NEAREST, mean=(0.5,), std=(0.5,)),
    images="digits",
    labelled=True,
    reference_top1=0.76,
)


def _timing(batch: int, p50_ms: float, speedup: float | None) -> BatchTiming:
    return BatchTiming(
        batch=batch, runs=5, p50_ms=p50_ms, p90_ms=p50_ms, p99_ms=p50_ms, throughput_per_s=1, speedup=speedup
    )


def _engine(**changes: object) -> ManifestEntry:
    values: dict[str, object] = {
        "id": "m/rtx-sm80+/fp16-b1-ws1GiB",
        "status": Status.DEPLOYABLE,
        "reason": "",
        "file": FileRecord(path="m/rtx-sm80+/fp16-b1-ws1GiB/model.engine", bytes=23_456_789, sha256="0" * 64),
        "accuracy": ACCURACY,
        "timings": (_timing(1, 1.234, 2.5),),
    }
    return SKIPPED.model_copy(update=values | changes)


def _printed(
    *entries: ManifestEntry,
    model: ManifestModel | None = MODEL,
    stream: io.StringIO | None = None,
    milestones: tuple[Milestone, ...] = (),
) -> str:
    shown = manifest(*entries, milestones=milestones).model_copy(update={"model": model})
    stream = stream or io.StringIO()
    print_table(shown, stream)
    return stream.getvalue()


def _row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return line.split()


def _cells(text: str, name: str) -> str:
    return " ".join(_row(text, name))


def test_ties_with_the_fastest_are_marked() -> None:
    """Latencies whose intervals overlap with the lowest's are not told apart; a clear winner has no mark."""
    fast = _timing(1, 1.0, None).model_copy(update={"p50_low_ms": 0.9, "p50_high_ms": 1.1})
    near = _timing(1, 1.05, None)
    slow = _timing(1, 2.0, None)
    text = _printed(
        *(_engine(id=f"m/t/{name}", timings=(item,)) for name, item in zip("abc", (fast, near, slow), strict=True))
    )
    assert [_row(text, f"t/{name}")[5] for name in "abc"] == ["≈", "≈", "2.00"]
    assert "≈ not told apart from the fastest that may be deployed on its device: their 95 % intervals overlap" in text
    assert "≈" not in _printed(_engine(id="m/t/a", timings=(fast,)), _engine(id="m/t/c", timings=(slow,)))


def test_a_noisy_run_says_so_once() -> None:
    """Each reason for doubt is told once, with how many artifacts it touches."""
    noisy = {"noise": (Doubt(what="restarts differ", detail="by up to 7%"),)}
    text = _printed(_engine(id="m/t/a", **noisy), _engine(id="m/t/b", **noisy), _engine(id="m/t/c"))
    assert text.count("a noisy run: restarts differ (2 of 3 artifacts)") == 1


def test_row_shows_size_accuracy_latency_speedup_and_status() -> None:
    """A finished artifact's row has a cell for each, in units that are written out."""
    expected = "rtx-sm80+/fp16-b1-ws1GiB 23.5 MB 75.0% 1.2e-03 1.23 ms 2.50× deployable"
    assert _cells(_printed(_engine()), "rtx") == expected


def test_header_names_the_columns_and_every_batch() -> None:
    """Each batch that anything was timed at has its columns, smallest first."""
    text = _printed(_engine(timings=(_timing(8, 4, 2),)), _engine(timings=(_timing(1, 1, 2),)))
    expected = "variant size top-1 rel. L2 b1 p50 speed-up b8 p50 speed-up status"
    assert _cells(text, "variant") == expected


def test_batch_that_was_not_timed_is_empty() -> None:
    """An artifact that takes no such batch has empty cells there."""
    text = _printed(_engine(timings=(_timing(8, 4, 2),)), _engine(id="m/cpu/eager", timings=(_timing(1, 1, 3),)))
    assert _cells(text, "cpu/eager") == "cpu/eager 23.5 MB 75.0% 1.2e-03 1.00 ms 3.00× deployable"


def test_latency_without_a_baseline_has_no_speedup() -> None:
    """A latency without a timed eager FP32 has no speed-up."""
    text = _printed(_engine(timings=(_timing(1, 1.234, None),)))
    assert "×" not in text
    assert "1.23 ms" in text


def test_unlabelled_images_are_judged_by_agreement() -> None:
    """Without labels the column is the agreement with the reference, and is called that."""
    entry = _engine(accuracy=ACCURACY.model_copy(update={"top1": None, "top1_drop": None}))
    text = _printed(entry, model=MODEL.model_copy(update={"labelled": False}))
    assert _row(text, "variant")[2] == "agreement"
    assert "98.5%" in text


def test_top1_of_zero_is_shown() -> None:
    """A top-1 of nothing is a result, not a missing one."""
    assert " 0.0%" in _printed(_engine(accuracy=ACCURACY.model_copy(update={"top1": 0.0})))


def test_shared_file_is_marked() -> None:
    """An artifact that shares another's file has its size marked with an equals sign."""
    sharing = _engine(id="m/rtx-sm80+/fp16-b1-ws2GiB", equals=("m/rtx-sm80+/fp16-b1-ws1GiB",))
    text = _printed(_engine(equals=("m/rtx-sm80+/fp16-b1-ws2GiB",)), sharing)
    assert _row(text, "rtx-sm80+/fp16-b1-ws1GiB")[1] == "23.5"
    assert _row(text, "rtx-sm80+/fp16-b1-ws2GiB")[1] == "=23.5"


def test_a_recipe_has_no_size() -> None:
    """The bytes of a recipe say nothing of the engine that it makes."""
    file = FileRecord(path="m/t/torch_compile-fp16/recipe.json", bytes=2_000, sha256="0" * 64)
    assert _row(_printed(_engine(id="m/t/torch_compile-fp16", file=file)), "t/torch_compile-fp16")[1] == "recipe"


@pytest.mark.parametrize(
    ("clocks", "shown"),
    [
        ((Clock.HOST, Clock.GPU, Clock.GPU_GRAPH), Clock.GPU_GRAPH),
        ((Clock.HOST, Clock.GPU), Clock.GPU),
        ((Clock.HOST,), Clock.HOST),
    ],
)
def test_preferred_timing_is_the_gpus_own(clocks: tuple[Clock, ...], shown: Clock) -> None:
    """The CUDA graph's clock comes first, then the GPU's, then the host's."""
    timings = tuple(_timing(1, 1.0, None).model_copy(update={"clock": clock}) for clock in clocks)
    found = latency_of(_engine(timings=timings), 1)
    assert found is not None
    assert found.clock is shown


def test_preferred_timing_of_a_batch_that_was_not_timed_is_none() -> None:
    """There is nothing to show of a batch that nobody timed."""
    assert latency_of(_engine(), 2) is None


def test_latency_below_a_millisecond_has_microseconds() -> None:
    """Latencies below a millisecond show microseconds, since engines differ by those."""
    assert "0.212 ms" in _printed(_engine(timings=(_timing(1, 0.2123, None),)))


def test_other_executed_precision_is_told() -> None:
    """An FP32 engine that multiplied in TF32 says so beside its status."""
    entry = _engine(precision=Precision.FP32, executed=Precision.TF32)
    assert _cells(_printed(entry), "rtx").endswith("deployable (tf32)")


def test_executed_precision_that_was_asked_for_is_not_told() -> None:
    """An artifact that computed in its own precision has no remark."""
    entry = _engine(precision=Precision.FP16, executed=Precision.FP16)
    assert _cells(_printed(entry), "rtx").endswith("deployable")


def test_smallest_workspace_is_starred_and_explained() -> None:
    """The recommended workspace has a mark, and a line below explains the mark."""
    small, large = "m/rtx-sm80+/fp16-b1-ws1GiB", "m/rtx-sm80+/fp16-b1-ws2GiB"
    text = _printed(_engine(smallest_workspace=small), _engine(id=large, smallest_workspace=small))
    assert _row(text, "rtx-sm80+/fp16-b1-ws1GiB")[-2:] == ["deployable", "*"]
    assert _row(text, "rtx-sm80+/fp16-b1-ws2GiB")[-1] == "deployable"
    assert "* the smallest workspace within 1 % of the best latency" in text.splitlines()


def test_reason_is_printed_once_and_referred_to() -> None:
    """Reasons stand below the table, each once, under the number that the rows give."""
    other = SKIPPED.model_copy(update={"id": "m/gpu/x", "reason": "another reason"})
    text = _printed(SKIPPED, SKIPPED.model_copy(update={"id": "m/gpu/torch_compile-fp32"}), other)
    assert _row(text, "gpu/dynamo-fp32") == ["gpu/dynamo-fp32", "skipped", "[1]"]
    assert _row(text, "gpu/torch_compile-fp32") == ["gpu/torch_compile-fp32", "skipped", "[1]"]
    assert _row(text, "gpu/x") == ["gpu/x", "skipped", "[2]"]
    assert text.splitlines()[-2:] == ["[1] 2 skipped: no NVIDIA driver found", "[2] 1 skipped: another reason"]


def test_reasons_that_need_attention_come_first() -> None:
    """The numbers are those of the rows, and a status is said once."""
    built = SKIPPED.model_copy(update={"id": "m/a", "status": Status.BUILT, "reason": "built, not yet validated"})
    failed = SKIPPED.model_copy(update={"id": "m/z", "status": Status.FAILED, "reason": "it died"})
    lines = _printed(built, SKIPPED, failed).splitlines()[-3:]
    assert lines == ["[3] 1 failed: it died", "[1] 1 built: not yet validated", "[2] 1 skipped: no NVIDIA driver found"]


@pytest.mark.parametrize("status", list(Status))
def test_every_status_is_shown(status: Status) -> None:
    """Whatever became of an artifact, its row says so."""
    assert _row(_printed(_engine(status=status)), "rtx")[-1] == status.value


def test_log_file_has_no_colours() -> None:
    """A log file gets no escape sequences, and lines wide enough for the table."""
    text = _printed(_engine(), SKIPPED)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) > 80


def test_terminal_is_asked_for_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal no line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("TERM", "dumb")
    text = _printed(_engine(), SKIPPED, stream=_Terminal())
    assert max(map(len, text.splitlines())) <= 90


def test_a_process_behind_a_pipe_is_told_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables are as wide as the terminal that doit shows them in; a width that is no number counts as none."""
    monkeypatch.setenv("MODEL_ARTIFACTS_COLUMNS", "80")
    assert console_for(io.StringIO()).width == 80
    monkeypatch.setenv("MODEL_ARTIFACTS_COLUMNS", "wide")
    assert console_for(io.StringIO()).width == 160


class _Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_empty_manifest_is_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without artifacts there is a header alone, as wide as in any log, whatever the environment's width is."""
    monkeypatch.setenv("COLUMNS", "20")
    assert " ".join(_printed().splitlines()[-1].split()) == "variant size top-1 rel. L2 status"


def _milestone(**changes: object) -> Milestone:
    row = Milestone(
        gpu="NVIDIA H100",
        batch=1,
        label="dynamo FP16",
        id="m/sm90-torch2.11/dynamo-fp16",
        status=Status.DEPLOYABLE,
        p50_ms=0.31,
        graph_ms=0.19,
        speedup=7.5,
        relative_l2=3.9e-3,
    )
    return row.model_copy(update=changes)


def test_milestones_are_a_table_for_each_gpu_and_batch() -> None:
    """Each has a title, and a row has both latencies, the speed-up, the accuracy, the status and the artifact."""
    text = _printed(milestones=(_milestone(), _milestone(batch=64)))
    assert "from eager FP32 to the best engine: NVIDIA H100, batch 1\n" in text
    assert "from eager FP32 to the best engine: NVIDIA H100, batch 64\n" in text
    (row, _) = [line.split() for line in text.splitlines() if line.startswith("dynamo FP16")]
    assert " ".join(row) == ("dynamo FP16 0.310 ms 0.190 ms 7.50× 3.9e-03 deployable sm90-torch2.11/dynamo-fp16")


def test_a_milestone_that_nothing_reached_is_shown_as_such() -> None:
    """A kind that the plan does not have, or that was not timed, leaves its cells empty."""
    nothing = _milestone(id=None, status=Status.SKIPPED, p50_ms=None, graph_ms=None, speedup=None, relative_l2=None)
    assert _cells(_printed(milestones=(nothing,)), "dynamo FP16") == "dynamo FP16 skipped"


def test_without_milestones_there_is_no_such_table() -> None:
    """A manifest without timings on a GPU has no table of milestones."""
    assert "the best engine" not in _printed(_engine())


def test_a_target_that_was_skipped_as_a_whole_is_one_row() -> None:
    """Forty rows that all say the same are said once, with how many they are; other targets keep theirs."""
    others = [SKIPPED.model_copy(update={"id": f"m/gpu/{index}"}) for index in range(3)]
    text = _printed(*others, _engine(target="rtx-sm80+"))
    assert _cells(text, "gpu/*") == "gpu/* (3 variants) skipped [1]"
    assert "gpu/0" not in text
    assert _row(text, "rtx")[-1] == "deployable"


def test_a_target_with_several_reasons_keeps_its_rows() -> None:
    """Each artifact of a target has its row if the reasons differ."""
    other = SKIPPED.model_copy(update={"id": "m/gpu/other", "reason": "torch is not installed here"})
    text = _printed(SKIPPED, other)
    assert (_cells(text, "gpu/dynamo"), _cells(text, "gpu/other")) == (
        "gpu/dynamo-fp32 skipped [1]",
        "gpu/other skipped [2]",
    )


@pytest.mark.parametrize(
    ("columns", "hidden"),
    [
        (120, None),
        (95, None),
        (75, "speed-up"),
        (65, "speed-up, rel. L2"),
        (54, "speed-up, rel. L2, b8 p50"),
        (44, "speed-up, rel. L2, b8 p50, size"),
        (30, None),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns(
    monkeypatch: pytest.MonkeyPatch, columns: int, hidden: str | None
) -> None:
    """Values are shown whole and a line names the missing columns; no column is left out in vain."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    shown = _printed(_engine(target="rtx-sm80+", timings=(_timing(1, 1.0, 2), _timing(8, 4.0, 2))), stream=_Terminal())
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    (*_, last) = " ".join(text.split()).split("columns that a wider terminal shows: ")
    assert last.partition(" ≈")[0] == hidden if hidden else "wider terminal" not in text
    assert columns == 30 or ("1.00 ms" in text and "…" not in text)


def test_a_log_file_gets_all_columns() -> None:
    """However many batch sizes were timed."""
    text = _printed(_engine(timings=tuple(_timing(2**power, 1.0, 2) for power in range(10))))
    assert "a wider terminal" not in text


def test_a_narrow_terminal_gets_the_variants_below_their_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns every artifact has one line, with as many columns as there is room for."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    target = "nvidia-h100-80gb-hbm3-sm90-trt11.0.0"
    timings = (_timing(1, 1.0, 2), _timing(8, 4.0, 2))
    names = ("torch_compile-int8-mixed-b1-8-32-ws256MiB", "fp16-b1-ws1GiB")
    entries = [_engine(id=f"m/{target}/{name}", target=target, timings=timings) for name in names]
    text = _printed(*entries, _engine(id="m/cpu/eager", target="cpu", timings=timings), stream=_Terminal())
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    table = lines[lines.index(next(line for line in lines if line.startswith("variant"))) + 1 :]
    assert [line.split()[0] for line in table[:5]] == [target, *names, "cpu", "eager"]
    assert [line.split()[-1] for line in table[:5] if line.startswith("  ")] == ["deployable"] * 3


def test_long_names_take_several_lines_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant with ranges of height and width hides no value: at 80 columns its numbers and its status are whole."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    name = "fp16-b1-4-8-height48-64-96-width48-64-128-ws256MiB"
    timings = (_timing(1, 1.0, 2), _timing(8, 4.0, 2))
    long = _engine(id=f"m/rtx-sm80+/{name}", target="rtx-sm80+", timings=timings)
    short = _engine(id="m/rtx-sm80+/fp16-b1-ws1GiB", target="rtx-sm80+", timings=timings)
    lines = [line.rstrip() for line in _printed(long, short, stream=_Terminal()).splitlines()]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    start = lines.index("rtx-sm80+") + 1
    assert "".join(line[:30].strip() for line in lines[start : start + 2]) == name
    assert lines[start].endswith("≈ 1.00 ms  ≈ 4.00 ms  deployable")
    assert lines[start + 2].startswith("  fp16-b1-ws1GiB ")
    assert "columns that a wider terminal shows: speed-up, rel. L2" in " ".join(lines)


def test_milestones_have_one_line_each_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow terminal gets fewer columns of a milestone, and a line that names the others."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    text = _printed(milestones=(_milestone(),), stream=_Terminal())
    (row,) = [line for line in text.splitlines() if line.startswith("dynamo FP16")]
    assert row.endswith("sm90-torch2.11/dynamo-fp16")
    assert "7.50×" in row
    assert "columns that a wider terminal shows: rel. L2" in text


def test_a_speedup_beside_a_tie_is_the_least_that_the_intervals_allow() -> None:
    """A factor of three digits claims a difference that the mark beside it denies."""
    eager = _engine(id="m/t/eager", backend=Backend.EAGER, precision=Precision.FP32, timings=(_wide(10.0, 1.0, 1.0),))
    fast, near = (
        _engine(id=f"m/t/{name}", timings=(_wide(ms, 0.1, 10 / ms),)) for name, ms in (("a", 2.0), ("b", 2.1))
    )
    text = _printed(eager, fast, near)
    assert _cells(text, "t/a").endswith("≈ 2.00 ms ≥4.2× deployable")
    assert _cells(text, "t/b").endswith("≈ 2.10 ms ≥4.0× deployable")
    assert _cells(text, "t/eager").endswith(" 10.00 ms 1.00× deployable")
    assert "≥ the least speed-up over eager FP32 that the intervals allow" in text


def test_an_artifact_that_is_not_told_apart_from_eager_has_no_speedup() -> None:
    """A latency whose interval overlaps with that of eager FP32 is no gain, whatever its median."""
    eager = _engine(id="m/t/eager", backend=Backend.EAGER, precision=Precision.FP32, timings=(_wide(10.0, 9.0, 1.0),))
    fast = _engine(id="m/t/a", timings=(_wide(1.8, 0.9, 5.42),))
    text = _printed(eager, fast)
    assert "×" not in text.replace("≥ the least", "")
    assert "≈ 1.80 ms deployable" in _cells(text, "t/a")


def test_an_accuracy_of_fewer_images_is_no_number() -> None:
    """The reference evaluator's top-1 on 8 images is not beside those on 500."""
    few = _engine(id="m/t/few", accuracy=ACCURACY.model_copy(update={"samples": 8, "top1": 1.0}))
    text = _printed(_engine(), few)
    assert "100.0%" not in text
    assert _cells(text, "t/few") == "t/few 23.5 MB † of 8 ≈ 1.23 ms ≥2.5× deployable"
    assert "† judged on fewer images than the others, so not comparable" in text
    assert "†" not in _printed(_engine())


def _wide(p50_ms: float, spread: float, speedup: float) -> BatchTiming:
    interval = {"p50_low_ms": p50_ms - spread, "p50_high_ms": p50_ms + spread}
    return _timing(1, p50_ms, speedup).model_copy(update=interval)


def test_a_latency_by_another_clock_is_marked() -> None:
    """A call by the host's clock is not beside a CUDA graph's; eager FP32 is what others are compared with."""
    graph = _timing(1, 0.2, 5.0).model_copy(update={"clock": Clock.GPU_GRAPH})
    gpu = _timing(1, 1.0, 1.0).model_copy(update={"clock": Clock.GPU})
    eager = _engine(id="m/t/eager", backend=Backend.EAGER, precision=Precision.FP32, timings=(gpu,))
    text = _printed(_engine(id="m/t/a", timings=(graph,)), _engine(id="m/t/b", timings=(_timing(1, 0.3, 3.0),)), eager)
    assert "‡ 0.300 ms" in _cells(text, "t/b")
    assert "‡" not in _cells(text, "t/a") + _cells(text, "t/eager")
    assert "‡ measured by the host's clock, so not comparable with the others" in text
    assert "‡" not in _printed(_engine(device="one", timings=(graph,)), _engine(id="m/t/b", device="another"))


def test_an_agreement_is_not_shown_as_top1() -> None:
    """An artifact without a top-1 has an empty cell among those that have one."""
    other = _engine(id="m/t/other", accuracy=ACCURACY.model_copy(update={"top1": None}), timings=())
    assert _cells(_printed(_engine(), other), "t/other") == "t/other 23.5 MB 1.2e-03 deployable"


def test_a_milestone_of_fewer_images_has_no_distance() -> None:
    """Its distance to the reference is that of other images."""
    few = _engine(id="m/sm90-torch2.11/dynamo-fp16", accuracy=ACCURACY.model_copy(update={"samples": 8}))
    stream = io.StringIO()
    print_table(manifest(_engine(), few, milestones=(_milestone(),)), stream)
    assert "3.9e-03" not in stream.getvalue()
