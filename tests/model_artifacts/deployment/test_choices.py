"""The choice of an artifact to deploy, and its reasons."""

from __future__ import annotations

from model_artifacts.deployment.choices import choices_of, latency_of, ties_of, verdict_of
from model_artifacts.records import Backend, Clock, FileRecord, Layout, Status
from tests.support.manifests import SHA, entry, manifest, timing


def test_the_fastest_deployable_artifact_is_taken() -> None:
    """A rejected one may be faster; it is not deployed."""
    fast = entry("fast", timing(1, 1.0), status=Status.REJECTED)
    good, slow = entry("good", timing(1, 2.0)), entry("slow", timing(1, 3.0))
    choice = choices_of([fast, slow, good])[0]
    assert (choice.goal, choice.entry, choice.ties) == ("lowest latency, batch 1", good, ())
    assert choice.why == "p50 2.000 ms (95 %: 1.980 to 2.020) by the host's clock, 2.00× eager FP32"


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


def test_the_smallest_is_by_gpu_memory_where_that_was_measured() -> None:
    """On a GPU its memory counts, elsewhere the file's size."""
    a = entry("a", file=FileRecord(path="s", bytes=10, sha256=SHA))
    b = entry("b", device_memory_bytes=5_000_000)
    assert choices_of([a, b])[2].why == "5.0 MB of GPU memory"
    assert choices_of([a])[2].why == "0.0 MB on disk"


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
