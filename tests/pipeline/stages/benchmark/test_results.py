"""Results of a benchmark: samples, medians and baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from model_artifacts.records import Clock, Layout
from pipeline.stages.benchmark.messages import Samples, SampleSet
from pipeline.stages.benchmark.results import Measured, baseline_latencies, samples_on_disk

if TYPE_CHECKING:
    from pipeline.planning.project import Project


def test_samples_say_which_restart_and_round_they_are_of() -> None:
    """The stored samples suffice to compute every percentile and interval again, and the host's part."""
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


def test_a_cuda_graph_is_held_against_eager_without_one(built: Project) -> None:
    """Speed-ups are over eager FP32 between two events with contiguous images, as users run it."""
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
