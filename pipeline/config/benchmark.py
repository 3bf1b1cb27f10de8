"""Settings of the benchmark."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field

from model_artifacts.records import Record
from pipeline.config.values import Count, Number, Repeats, Seconds, with_defaults


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
    """Settings of the benchmark."""

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

    @property
    def timing_settings(self) -> BenchmarkConfig:
        """The settings that change the latencies. All others have their defaults."""
        return with_defaults(self, "baselines")

    @property
    def restart_settings(self) -> BenchmarkConfig:
        """The settings that change the latencies of one restart: their number does not."""
        return with_defaults(self, "baselines", "restarts")
