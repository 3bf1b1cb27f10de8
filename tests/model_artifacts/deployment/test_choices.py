"""The choice of an artifact to deploy, its reasons, and speed-ups over eager FP32."""

from __future__ import annotations

import pytest

from model_artifacts.deployment.choices import (
    Speedup,
    choices_of,
    latency_of,
    speedup_of,
    ties_of,
    timing_of,
    verdict_of,
)
from model_artifacts.records import (
    Backend,
    BatchTiming,
    Clock,
    FileRecord,
    ImageInput,
    Io,
    Layout,
    ManifestEntry,
    Milestone,
    Precision,
    Status,
    TensorSpec,
)
from tests.support.manifests import SHA, entry, manifest, timing


def test_the_fastest_deployable_artifact_is_taken() -> None:
    """A rejected one may be faster; it is not deployed."""
    fast = entry("fast", timing(1, 1.0), status=Status.REJECTED)
    good, slow = entry("good", timing(1, 2.0)), entry("slow", timing(1, 3.0))
    choice = choices_of([fast, slow, good])[0]
    assert (choice.goal, choice.entry, choice.ties) == ("lowest latency, batch 1", good, ())
    assert choice.why == "p50 2.000 ms (95 %: 1.980 to 2.020) by the host's clock, 2.00× eager FP32"


def test_one_round_of_one_restart_has_no_interval() -> None:
    """A point is no interval of 95 %."""
    once = timing(1, 2.0).model_copy(update={"p50_low_ms": 2.0, "p50_high_ms": 2.0})
    (choice, *_) = choices_of([entry("once", once)])
    assert choice.why.startswith("p50 2.000 ms (no interval, of one round) by the host's clock")


def test_of_ties_the_smallest_file_is_taken_and_the_others_are_named() -> None:
    """The smallest file wins among equal latencies."""
    small = FileRecord(path="s", bytes=10, sha256=SHA)
    best, near = entry("best", timing(1, 1.0)), entry("near", timing(1, 1.01), file=small)
    choice = choices_of([best, near])[0]
    assert choice.entry == near
    assert choice.ties == (best.id,)


def test_a_baseline_is_measured_and_never_chosen() -> None:
    """Eager PyTorch and inductor serve to compare: neither `load` nor a release takes them."""
    baselines = [entry("e", timing(1, 0.1), backend=backend) for backend in (Backend.EAGER, Backend.INDUCTOR)]
    good = entry("good", timing(1, 2.0))
    assert [choice.entry for choice in choices_of([*baselines, good])] == [good, good, good]
    assert verdict_of(manifest(*baselines)) == {}


def test_a_recipe_is_not_the_smallest_file() -> None:
    """Its kilobytes say nothing of the engine that it makes."""
    recipe = entry("r", file=FileRecord(path="m/recipe.json", bytes=10, sha256=SHA))
    good = entry("good")
    assert choices_of([recipe, good])[2].entry == good


def test_latencies_of_two_clocks_are_not_compared() -> None:
    """Latencies by the host's clock are never compared with those of a CUDA graph on the GPU."""
    host, graph = entry("host", timing(1, 0.19)), entry("graph", timing(1, 0.2, clock=Clock.GPU_GRAPH))
    choice = choices_of([host, graph])[0]
    assert choice.entry == graph
    assert "as a CUDA graph" in choice.why


def test_ties_are_of_one_device_and_of_what_may_be_deployed() -> None:
    """A rejected artifact is nobody's rival; each device has its own fastest; one alone ties with nothing."""
    fast = entry("fast", timing(1, 0.1), status=Status.REJECTED)
    good, near = entry("good", timing(1, 1.0)), entry("near", timing(1, 1.01))
    cpu = [entry("cpu", timing(1, 9.0), device="a CPU"), entry("alike", timing(1, 9.1), device="a CPU")]
    alone = entry("alone", timing(1, 1.0), device="another GPU")
    assert ties_of([fast, good, near, *cpu, alone], 1) == {good.id, near.id, *(item.id for item in cpu)}
    assert ties_of([fast, good, near], 8) == frozenset()


def test_throughput_counts_every_batch_and_several_streams() -> None:
    """The most images a second, whatever the batch and however many at once; copies are not work."""
    plain = entry("plain", timing(1, 1.0, clock=Clock.GPU), timing(8, 4.0, clock=Clock.GPU))
    streams = entry("streams", timing(8, 2.0, clock=Clock.STREAMS), timing(8, 1.0, clock=Clock.COPIES))
    choice = choices_of([plain, streams])[1]
    assert choice.entry == streams
    assert choice.why.startswith("4,000 images/s in batches of 8, several streams")


@pytest.mark.parametrize(
    ("shapes", "counted"),
    [
        ([("batch", 3, 224, 224)], "images"),
        ([("batch", 224, 224, 3)], "images"),
        ([("batch", "sequence")], "samples"),
        ([("batch", 3, 32, 32), ("batch", 16)], "samples"),
        ([], "images"),
    ],
    ids=["pixels first", "pixels last", "tokens", "an image with tokens", "unknown"],
)
def test_what_is_no_image_is_not_called_one(shapes: list[tuple[int | str, ...]], counted: str) -> None:
    """The rate of a model of tokens is in samples a second."""
    inputs = tuple(TensorSpec(name=str(at), shape=shape, dtype="float32", layout="") for at, shape in enumerate(shapes))
    found = entry("a", timing(8, 2.0)).model_copy(update={"inputs": inputs})
    assert found.counted == counted
    (choice,) = [item for item in choices_of([found]) if item.goal == "highest throughput"]
    assert f"4,000 {counted}/s in batches of 8" in choice.why


def test_the_smallest_is_by_gpu_memory_where_that_was_measured() -> None:
    """On a GPU its memory counts, elsewhere the file's size."""
    a = entry("a", file=FileRecord(path="s", bytes=10, sha256=SHA))
    b = entry("b", device_memory_bytes=5_000_000)
    assert choices_of([a, b])[2].why == "5.0 MB of GPU memory"
    assert choices_of([a])[2].why == "10 bytes on disk"


def test_what_a_choice_leaves_out_is_said() -> None:
    """Artifacts with other ends are no candidates beside plain ones, however fast; alone they are."""
    plain = entry("plain", timing(1, 2.0))
    pixels = entry("pixels", timing(1, 1.0), io=Io(input=ImageInput.UINT8))
    slower = entry("halves", timing(1, 1.5), io=Io(input=ImageInput.FLOAT16))
    silent = entry("silent", io=Io(input=ImageInput.FLOAT16))
    latency, images, smallest = choices_of([plain, pixels, slower])
    assert latency.entry == images.entry == smallest.entry == plain
    said = "2 with another input or output (`io`) are not compared"
    assert (images.left_out, smallest.left_out) == (said, said)
    assert latency.left_out == f"{said}; the fastest takes 1.000 ms: cpu-x86_64/pixels"
    assert choices_of([plain, silent])[0].left_out == "1 with another input or output (`io`) is not compared"
    alone = choices_of([pixels, slower])[0]
    assert (alone.entry, alone.left_out) == (pixels, "")
    assert choices_of([plain])[0].left_out == ""


def test_copies_are_no_throughput_and_no_latency_that_ranks() -> None:
    """Host to host is shown, and compares nothing; several batches at once are no latency."""
    item = entry("x", timing(1, 2.0, clock=Clock.PINNED), timing(1, 1.0, clock=Clock.OVERLAPPED), timing(1, 3.0))
    latency, images, _ = choices_of([item])
    assert latency.timing is not None
    assert latency.timing.clock is Clock.PINNED
    assert images.why.startswith("333 images/s")


def test_nothing_deployable_gives_no_choice() -> None:
    """A verdict that cannot be given says so."""
    choices = choices_of([entry("bad", timing(1, 1.0), status=Status.REJECTED)])
    assert [choice.entry for choice in choices] == [None, None, None]
    assert {choice.why for choice in choices} == {"nothing that may be deployed was timed", "nothing may be deployed"}


def test_a_latency_is_the_graph_s_with_contiguous_images() -> None:
    """An artifact's latency is that of its CUDA graph with contiguous images; several streams give none."""
    graph = timing(1, 2.0, clock=Clock.GPU_GRAPH)
    found = entry(
        "x",
        timing(1, 1.0, clock=Clock.STREAMS),
        timing(1, 1.5, clock=Clock.GPU_GRAPH, layout=Layout.CHANNELS_LAST),
        timing(1, 3.0, clock=Clock.GPU),
        graph,
        timing(8, 1.0, clock=Clock.GPU_GRAPH),
    )
    assert latency_of(found, 1) == graph
    assert latency_of(found, 2) is None


def test_each_device_has_its_own_verdict() -> None:
    """Only deployable artifacts count."""
    gpu, cpu = entry("gpu", timing(1, 1.0)), entry("cpu", timing(1, 9.0), device="a CPU")
    rejected = entry("bad", timing(1, 0.1), status=Status.REJECTED, device="another")
    verdict = verdict_of(manifest(gpu, cpu, rejected))
    assert {device: choices[0].entry for device, choices in verdict.items()} == {"a GPU, driver 580": gpu, "a CPU": cpu}


def _eager(*timings: BatchTiming, **changes: object) -> ManifestEntry:
    return entry("eager-fp32", *timings, backend=Backend.EAGER, precision=Precision.FP32, **changes)


def _faster(p50: float, spread: float, factor: float, clock: Clock = Clock.HOST) -> BatchTiming:
    return timing(1, p50, spread, clock).model_copy(update={"speedup": factor})


def test_a_clear_winner_has_the_factor_of_the_medians() -> None:
    """Two decimals, where nothing ties."""
    eager, fast = _eager(timing(1, 10.0)), _faster(2.0, 0.01, 5.0)
    found = speedup_of(entry("fast"), fast, [eager])
    assert found == Speedup(5.0)
    assert (found.short, found.phrase) == ("5.00×", "5.00× eager FP32")


@pytest.mark.parametrize(
    ("spread", "factor", "least"), [(0.0, 5.0, 5.0), (0.25, 5.0, 4.0), (0.1, 12.9, 11.0), (0.0, 9.99, 9.9)]
)
def test_a_tie_has_the_least_factor_that_the_intervals_allow(spread: float, factor: float, least: float) -> None:
    """It is rounded down, so that it is never claimed too much."""
    eager = _eager(timing(1, 2.0 * factor, 0.0))
    found = speedup_of(entry("fast"), _faster(2.0, spread, factor), [eager], tied=True)
    assert found == Speedup(least, at_least=True)


def test_the_interval_of_eager_counts_as_well() -> None:
    """The least factor is of the fastest eager FP32 and the slowest artifact."""
    found = speedup_of(entry("fast"), _faster(2.0, 0.0, 5.0), [_eager(timing(1, 10.0, 0.2))], tied=True)
    assert found == Speedup(4.0, at_least=True)
    assert (found.short, found.phrase) == ("≥4.0×", "at least 4.0× eager FP32")


def test_an_overlap_with_eager_is_no_speedup() -> None:
    """Whatever the medians say."""
    found = speedup_of(entry("fast"), _faster(2.0, 0.5, 5.0), [_eager(timing(1, 10.0, 0.8))])
    assert found == Speedup(None)
    assert (found.short, found.phrase) == ("", "not told apart from eager FP32")


def test_a_graph_is_compared_with_eager_without_a_graph() -> None:
    """Eager FP32 on another device, at another batch or by another clock says nothing."""
    graph = _faster(2.0, 0.5, 5.0, Clock.GPU_GRAPH)
    others = [
        _eager(timing(1, 2.0, 0.5, Clock.GPU_GRAPH), timing(8, 2.0, 0.5, Clock.GPU)),
        _eager(timing(1, 2.0, 0.5, Clock.GPU), device="another"),
    ]
    assert speedup_of(entry("fast"), graph, others) == Speedup(5.0)
    assert speedup_of(entry("fast"), graph, [*others, _eager(timing(1, 2.5, 0.1, Clock.GPU))]) == Speedup(None)


def test_without_a_baseline_there_is_none() -> None:
    """A timing without a factor has no speed-up, and eager FP32 is itself."""
    plain = timing(1, 1.0).model_copy(update={"speedup": None})
    assert speedup_of(entry("fast"), plain, []) is None
    assert speedup_of(_eager(), _faster(1.0, 0.1, 1.0), []) == Speedup(1.0)


def test_the_choice_claims_no_more_than_the_intervals() -> None:
    """A choice among ties has the least factor, also where eager FP32 may not be deployed."""
    eager = _eager(timing(1, 10.0, 0.0), status=Status.REJECTED)
    first, second = entry("a", _faster(2.0, 0.25, 5.0)), entry("b", _faster(2.1, 0.25, 4.76))
    assert choices_of([eager, first, second])[0].why.endswith(", at least 4.0× eager FP32")
    near = eager.model_copy(update={"timings": (timing(1, 2.2, 0.2),)})
    assert choices_of([near, first])[0].why.endswith(", not told apart from eager FP32")


def test_a_milestone_belongs_to_the_timing_that_it_shows() -> None:
    """The faster of its two latencies; nothing without an artifact."""
    graph, launched = timing(1, 0.2, clock=Clock.GPU_GRAPH), timing(1, 0.3, clock=Clock.GPU)
    fast = entry("fast", launched, graph, timing(8, 0.1, clock=Clock.GPU))
    row = Milestone(
        gpu="a GPU", batch=1, label="x", id=fast.id, status=Status.DEPLOYABLE, p50_ms=0.3, graph_ms=0.2, speedup=2.0,
        relative_l2=None,
    )  # fmt: skip
    assert timing_of(row, [fast]) == (graph, fast)
    assert timing_of(row.model_copy(update={"graph_ms": None}), [fast]) == (launched, fast)
    assert timing_of(row.model_copy(update={"id": None}), [fast]) == (None, None)


def test_other_ends_are_chosen_only_without_the_network_s_own() -> None:
    """`load` without requirements takes none of them, however fast they are."""
    ended = entry("ended", timing(1, 1.0), io=Io(input=ImageInput.UINT8))
    plain = entry("plain", timing(1, 2.0))
    assert {choice.entry for choice in choices_of([ended, plain])} == {plain}
    assert {choice.entry for choice in choices_of([ended])} == {ended}
