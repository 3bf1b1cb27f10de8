"""The changes since a release, as a terminal shows them."""

from __future__ import annotations

import io

from model_artifacts.deployment.comparison import Change, Turn
from pipeline.stages.report.changes import print_changes

SLOWER = Change(
    "tiny/nvidia-h200-trt10.6/int8-b1-8-32-ws1GiB",
    "p50 at batch 64, CUDA graph",
    "0.4376 ms",
    "437600 ms",
    Turn.WORSE,
    breach="+99999900.0%, ≤ +3.0%",
)
BETTER = SLOWER._replace(metric="top-1", before="75.0%", after="76.0%", turn=Turn.BETTER, breach="")
SAME = SLOWER._replace(turn=Turn.SAME, breach="")


def test_no_name_or_number_is_cut_in_two() -> None:
    """A fact is a line, however many digits it has; the artifact's name stands above its facts once."""
    stream = io.StringIO()
    print_changes([SLOWER, BETTER, SAME], stream)
    assert stream.getvalue().splitlines() == [
        "comparison with the released build",
        "nvidia-h200-trt10.6/int8-b1-8-32-ws1GiB",
        "  p50 at batch 64, CUDA graph: 0.4376 ms → 437600 ms, worse; broken bound: +99999900.0%, ≤ +3.0%",
        "  top-1: 75.0% → 76.0%, better",
    ]


def test_noise_is_no_change() -> None:
    """One line says that nothing changed."""
    stream = io.StringIO()
    print_changes([SAME], stream)
    assert stream.getvalue() == "comparison with the released build: nothing changed beyond noise\n"
