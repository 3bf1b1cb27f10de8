"""Names of sets of samples."""

from __future__ import annotations

from model_artifacts.records import Clock, Layout
from pipeline.stages.benchmark.messages import SampleSet


def test_samples_are_named_by_clock_layout_and_batch() -> None:
    """The name omits the common layout, contiguous."""
    assert SampleSet(Clock.GPU, 8).name == "gpu_batch_8"
    assert SampleSet(Clock.GPU_GRAPH, 1, Layout.CHANNELS_LAST).name == "gpu-graph_channels_last_batch_1"
