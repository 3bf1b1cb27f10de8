"""Settings of what is timed: the benchmark, and the load on demand."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from model_artifacts.records import Record, Scenario
from pipeline.config.values import Count, Number, Repeats, Seconds, with_defaults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config.files.yaml_source import Location

_LONGEST_MS = 60_000
"""A bound or a delay beyond a minute has another unit."""
_MOST_BATCH = 4096
_MOST_CONTEXTS = 128


class Baseline(str, Enum):
    """A baseline that is timed on a GPU for comparison. Eager PyTorch always is one."""

    INDUCTOR = "inductor"
    """torch.compile with max-autotune, in the fastest precision. No default: it tunes for minutes."""
    ONNXRUNTIME = "onnxruntime"
    """ONNX Runtime's CUDA provider."""
    ONNXRUNTIME_TENSORRT = "onnxruntime_tensorrt"
    """ONNX Runtime's TensorRT provider, in fp16 and int8, with each profile and the largest workspace. Not a default:
    it builds an engine for each.
    """


class BenchmarkConfig(Record):
    """Settings of what is timed: the benchmark, and the load on demand."""

    baselines: tuple[Baseline, ...] = (Baseline.ONNXRUNTIME,)
    batches: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Batch sizes to time. None takes those that the profiles are tuned for."""
    restarts: Repeats = 3
    """Repetitions of the whole measurement, each in fresh processes."""
    warmup_runs: Repeats = 2
    """The least number of runs in a warm-up median. Warm-up ends when two medians in a row agree within 2 %."""
    warmup_seconds: Seconds = 1.0
    """The longest warm-up at each batch size, in seconds."""
    rounds: Repeats = 2
    """Rounds in each restart. A round times every variant once: A B C A B C."""
    runs_per_round: Repeats = 4
    """The least number of runs of a variant in a round."""
    gpu_round_ms: Annotated[Number, Field(gt=0, le=60_000)] = 50.0
    """The least duration of a variant's round on a GPU, in milliseconds, because runs there are short."""
    streams: Annotated[int, Field(strict=True, ge=1, le=128)] = 4
    """Batches that an engine runs at once in the throughput measurement. 1 leaves the measurement out."""
    buffers: Annotated[int, Field(strict=True, ge=1, le=4)] = 3
    """Batches of an engine under way at once, with the copies of some beside the computation of another. 1 leaves this
    measurement out.
    """

    @property
    def timing_settings(self) -> BenchmarkConfig:
        """The settings that change the latencies. All others have their defaults."""
        return with_defaults(self, "baselines")

    @property
    def restart_settings(self) -> BenchmarkConfig:
        """The settings that change the latencies of one restart: their number does not."""
        return with_defaults(self, "baselines", "restarts")


class LoadConfig(Record):
    """Settings of `doit load`, which searches over contexts × batches × delays."""

    scenarios: Annotated[tuple[Scenario, ...], Field(min_length=1)] = tuple(Scenario)
    """The patterns of queries."""
    p99_ms: Annotated[tuple[Annotated[Number, Field(gt=0, le=_LONGEST_MS)], ...], Field(min_length=1)] = (2.0, 10.0)
    """The bounds of the 99th percentile of a server's latency, in milliseconds."""
    contexts: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=1, le=_MOST_CONTEXTS)], ...], Field(min_length=1)
    ] = (1, 2, 4)
    """Batches that run at once."""
    batches: Annotated[tuple[Annotated[Count, Field(le=_MOST_BATCH)], ...], Field(min_length=1)] | None = None
    """The most images of joined batches. None takes those that an artifact was tuned for."""
    max_delay_ms: Annotated[tuple[Annotated[Number, Field(ge=0, le=_LONGEST_MS)], ...], Field(min_length=1)] = (
        0.0,
        1.0,
    )
    """Times that a call waits for others to join it, in milliseconds."""
    min_duration_seconds: Seconds = 5.0
    """The shortest run. MLPerf itself asks for 600 s."""
    max_duration_seconds: Seconds = 60.0
    """The time after which a run ends with what it has; too few queries are no result."""
    confirmation_seconds: Seconds = 20.0
    """The shortest run that confirms a server's rate, with other arrivals than those of the search."""
    timeout_seconds: Seconds = 7200.0
    """Time limit of one artifact, in seconds."""

    @property
    def run_settings(self) -> LoadConfig:
        """The settings that change the results. All others have their defaults."""
        return with_defaults(self, "timeout_seconds")


def load_problems(load: LoadConfig) -> Iterator[tuple[Location, str]]:
    """Yield the settings that contradict each other, as pairs of location and text."""
    for name, value in (
        ("min_duration_seconds", load.min_duration_seconds),
        ("confirmation_seconds", load.confirmation_seconds),
    ):
        if value > load.max_duration_seconds:
            longer = f"{value:g} is longer than `load.max_duration_seconds`, {load.max_duration_seconds:g}"
            yield ("load", name), f"`load.{name}`: {longer}; shorten it or raise that"
