"""The last screen of a run: the artifacts to deploy, before the table of all."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.cli.answers import Place, answer_in_short, devices_here, print_manifest
from model_artifacts.records import (
    Backend,
    FileRecord,
    Interpolation,
    ManifestModel,
    Precision,
    Preprocessing,
    Status,
    WeightsOrigin,
)
from tests.support.manifests import SHA, SKIPPED, entry, manifest, timing

if TYPE_CHECKING:
    from model_artifacts.records import ManifestEntry

MODEL = ManifestModel(
    name="m",
    factory="a:b",
    weights_origin=WeightsOrigin.SAMPLE,
    weights_detail="a sample",
    weights_sha256=SHA,
    class_names=None,
    preprocessing=Preprocessing(resize=8, crop=8, interpolation=Interpolation.NEAREST, mean=(0.5,), std=(0.5,)),
    images="digits",
    labelled=True,
    reference_top1=0.76,
)
CPU = "a CPU, 2 cores"
HERE = Place(Path("artifacts"), frozenset({CPU}), "doit")
FAST = entry("fast", timing(1, 1.0), device=CPU, file=FileRecord(path="m/fast.onnx", bytes=1_000_000, sha256=SHA))
BUILT = entry(
    "fp16",
    id="m/rtx-sm80+/fp16",
    target="rtx-sm80+",
    status=Status.BUILT,
    reason="built, not yet validated: needs an SM80+ GPU (no NVIDIA driver found)",
    device="",
)


class _Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def _printed(
    *entries: ManifestEntry,
    model: ManifestModel | None = None,
    place: Place = HERE,
    stream: io.StringIO | None = None,
) -> str:
    stream = stream or io.StringIO()
    print_manifest(manifest(*entries).model_copy(update={"model": model}), place, stream)
    return stream.getvalue()


def _answer(*entries: ManifestEntry, place: Place = HERE) -> list[str]:
    """Return the lines above the table."""
    return [line.strip() for line in _printed(*entries, place=place).split("\nvariant ")[0].splitlines()]


def test_the_answer_names_an_artifact_for_each_goal_with_its_file_and_the_commands() -> None:
    """Latency, throughput and size, by device; the file is written once where all are the same artifact."""
    assert _answer(FAST) == [
        "",
        f"to deploy on {CPU} (this machine):",
        "lowest latency, batch 1: cpu-x86_64/fast",
        "p50 1.000 ms (95 %: 0.9900 to 1.010) by the host's clock, 2.00× eager FP32",
        "artifacts/m/fast.onnx",
        "highest throughput: cpu-x86_64/fast",
        "1,000 images/s in batches of 1, one batch after the other, 2.00× eager FP32",
        "smallest file: cpu-x86_64/fast",
        "1.0 MB on disk",
        "",
        "to load what suits this machine, in Python:",
        "from model_artifacts import load",
        'with load("artifacts") as model: print(model.entry.id, model.entry.inputs)',
        "to choose by your bounds: model-artifacts resolve artifacts --max-latency-ms 5",
        "to release all that may be deployed: doit release",
    ]


def test_an_archive_has_no_paths_and_no_command_to_load_it() -> None:
    """Nothing can be loaded from a `.tar.zst`."""
    lines = _answer(FAST, place=Place(None, frozenset({CPU})))
    assert not [line for line in lines if "artifacts" in line or "release" in line]


def test_a_device_that_is_not_here_is_said_to_be_another_machine() -> None:
    """The choice of an H100 is none for this processor; this machine's comes first."""
    lines = _answer(entry("other", timing(1, 0.1), device="an H100"), FAST)
    headings = [line for line in lines if line.startswith("to deploy on")]
    assert headings == [f"to deploy on {CPU} (this machine):", "to deploy on an H100 (another machine):"]
    assert "nothing was timed on this machine" not in " ".join(lines)
    lines = _answer(entry("other", timing(1, 0.1), device="an H100"))
    assert "nothing was timed on this machine; `model-artifacts resolve` says what suits it" in lines


def test_what_was_built_and_not_run_is_told_by_target() -> None:
    """A CPU host says which engines wait for a GPU."""
    lines = _answer(FAST, BUILT, BUILT.model_copy(update={"id": "m/rtx-sm80+/fp32"}))
    assert lines[lines.index("built, but not proven here:") + 1] == (
        "2 of rtx-sm80+: not yet validated: needs an SM80+ GPU (no NVIDIA driver found)"
    )


@pytest.mark.parametrize("backend", [Backend.EAGER, Backend.INDUCTOR, Backend.ONNXRUNTIME_TENSORRT])
def test_a_baseline_is_never_the_answer(backend: Backend) -> None:
    """`load` and `release` take no baseline, however fast it is."""
    baseline = entry("b", timing(1, 0.1), device=CPU, backend=backend, precision=Precision.FP32)
    lines = _answer(baseline, FAST)
    assert "lowest latency, batch 1: cpu-x86_64/fast" in lines
    assert "lowest latency, batch 1: cpu-x86_64/b" not in lines
    assert _answer(baseline)[1] == "to deploy: nothing, of 1 artifacts"


def test_nothing_to_deploy_comes_first_with_its_reasons_and_the_next_thing_to_do() -> None:
    """Failures come before what this host lacks, and the advice is about them."""
    failed = entry("bad", status=Status.FAILED, reason="validation failed: killed", device="")
    lines = _answer(SKIPPED, SKIPPED, failed)
    assert lines == [
        "",
        "to deploy: nothing, of 3 artifacts",
        "1 failed: validation failed: killed",
        "2 skipped: no NVIDIA driver found",
        "what to do: run `doit` again: each failed step prints its error, and the command that repeats it",
    ]


def test_the_next_thing_to_do_names_the_configuration() -> None:
    """Without it, `doit` would run for another one."""
    other = HERE._replace(doit="doit config=other.yaml")
    assert "to release all that may be deployed: doit config=other.yaml release" in _answer(FAST, place=other)
    for status in (Status.FAILED, Status.BUILT, Status.SKIPPED):
        entries = entry("bad", status=status, reason="x", device="")
        assert "what to do: run `doit config=other.yaml` " in " ".join(_answer(entries, place=other))
        assert "what to do: run `doit` " in " ".join(_answer(entries, place=HERE._replace(doit="")))


def test_what_was_not_timed_is_named_without_a_choice() -> None:
    """An artifact that passed its gate may be deployed, although nobody knows how fast it is."""
    lines = _answer(FAST.model_copy(update={"timings": (), "device": ""}))
    assert lines[1:3] == ["to deploy, but not timed yet:", "cpu-x86_64/fast"]


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_an_answer(status: Status) -> None:
    """Whatever became of the only artifact, the first lines say whether to deploy it."""
    lines = _answer(FAST.model_copy(update={"status": status, "reason": "" if status is Status.DEPLOYABLE else "x"}))
    assert lines[1].startswith("to deploy on" if status is Status.DEPLOYABLE else "to deploy: nothing")


def test_no_line_is_wider_than_80_columns_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names, paths and reasons are wrapped; those of the table are below their target."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    target = "nvidia-h100-80gb-hbm3-sm90-trt11.0.0"
    name = f"m/{target}/torch_compile-int8-mixed-b1-8-32-ws256MiB"
    long = FAST.model_copy(
        update={"id": name, "target": target, "file": FileRecord(path="a/" * 60, bytes=1, sha256=SHA)}
    )
    text = _printed(long, BUILT, SKIPPED, model=MODEL, stream=_Terminal())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "torch_compile-int8-mixed-b1-8-32-ws256MiB" in text


def test_the_answer_in_short_has_each_device() -> None:
    """The line that ends a run names the fastest of each device."""
    other = entry("other", timing(1, 0.1), device="an H100")
    assert (
        answer_in_short(manifest(FAST, other)) == "to deploy for the lowest latency: cpu-x86_64/fast, cpu-x86_64/other"
    )
    assert answer_in_short(manifest(SKIPPED)) == "to deploy: nothing that was timed"


def test_this_machine_is_known_by_its_processor() -> None:
    """Benchmarks record the same name."""
    assert any(re.search(r", [\d.]+ cores$", name) for name in devices_here())


def test_the_model_stands_first() -> None:
    """The weights' and the images' origin stand above everything."""
    assert _printed(SKIPPED, model=MODEL).splitlines()[:2] == ["", "m: a sample; images: digits"]
    assert _printed(SKIPPED).splitlines()[1].startswith("to deploy")


def test_brackets_are_printed_as_they_are() -> None:
    """A path or a reason with brackets in it is text, not markup."""
    model = MODEL.model_copy(update={"weights_detail": "the file [bold]v2[/]/x.pth", "images": "a [/b] c"})
    text = _printed(SKIPPED.model_copy(update={"reason": "see [red]this[/red] [/x]"}), model=model)
    assert "the file [bold]v2[/]/x.pth; images: a [/b] c" in text
    assert text.count("see [red]this[/red] [/x]") == 2


@pytest.mark.parametrize(("top1", "warned"), [(0.05, True), (0.12, True), (0.2, False)])
def test_a_reference_at_chance_is_never_silent(top1: float, warned: bool) -> None:  # noqa: FBT001 - a parameter
    """Artifacts that agree with an untrained network are listed below a warning."""
    classes = tuple(f"c{index}" for index in range(10))
    model = MODEL.model_copy(update={"reference_top1": top1, "class_names": classes})
    few = FAST.accuracy.model_copy(update={"samples": 100}) if FAST.accuracy else None
    text = _printed(FAST.model_copy(update={"accuracy": few}), model=model)
    assert (f"the FP32 reference's top-1 of {top1:.1%} is no better than chance (10.0%)" in text) is warned
