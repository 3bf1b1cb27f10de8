"""Records of `doit tune`: the points that were tried, the restarts of the finals, and the answer."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, PositiveInt

from model_artifacts.records import Clock, Count, Graph, Milliseconds, Record, StageRecord

Seconds = Annotated[float, Field(ge=0)]
"""A duration in seconds."""


class Choice(Record):
    """Setting of pipeline.yaml in place of the configuration's own."""

    setting: str
    """Its keys, joined by dots, such as `tensorrt.optimization_level`."""
    value: bool | int | str | tuple[str, ...]
    """Its value; a list of layers for `leave_unquantized`, and one of names for `tensorrt.tactic_sources`."""

    @property
    def text(self) -> str:
        """The choice as a line: `tensorrt.optimization_level: 5`; of a list of layers, their number."""
        if isinstance(self.value, tuple):
            layers = self.setting.startswith("leave_unquantized.")
            return f"{self.setting}: {f'{len(self.value)} layers' if layers else ', '.join(self.value)}"
        return f"{self.setting}: {str(self.value).lower() if isinstance(self.value, bool) else self.value}"


STREAM_SETTING = "benchmark.streams"
"""The one setting of a point that only the timing takes: batches that an engine runs at once."""


_ON_GPU = {Clock.GPU_GRAPH, Clock.GPU, Clock.STREAMS}
"""The clocks that count nothing but work on the GPU."""


def are_of_a_kind(one: Clock | None, other: Clock | None) -> bool:
    """Return True if the times of two variants by two clocks may be compared: both on the GPU, or by the same clock."""
    return one is other or {one, other} <= _ON_GPU


class Point(Record):
    """Point of the search: a variant of the plan, with choices that its folder's pipeline.yaml makes."""

    subject: str
    """The variant: `model/target/name`."""
    choices: tuple[Choice, ...] = ()
    """The choices, in the order of their settings; none is the configuration as it is."""

    @property
    def text(self) -> str:
        """The variant's name without the model, and its choices."""
        return ", ".join((self.subject.partition("/")[2], *(choice.text for choice in self.choices)))

    @property
    def built(self) -> Point:
        """The point without what only its timing takes: that of its trial."""
        return self.model_copy(
            update={"choices": tuple(item for item in self.choices if item.setting != STREAM_SETTING)}
        )

    @property
    def streams(self) -> int | None:
        """The number of streams that it is timed with; None is the configuration's."""
        found = next((item.value for item in self.choices if item.setting == STREAM_SETTING), None)
        return found if isinstance(found, int) else None

    def with_choice(self, choice: Choice) -> Point:
        """Return the point with one more choice, or with another value of its setting, in the order of the settings."""
        others = (item for item in self.choices if item.setting != choice.setting)
        choices = sorted((*others, choice), key=lambda item: item.setting)
        return self.model_copy(update={"choices": tuple(choices)})

    def without_choice(self, choice: Choice) -> Point:
        """Return the point without one of its choices."""
        return self.model_copy(update={"choices": tuple(item for item in self.choices if item != choice)})


class TrialVerdict(str, Enum):
    """End of a trial."""

    PASSED = "passed"
    """It kept its gate and the largest accepted drop, and was timed."""
    REJECTED = "rejected"
    """It missed its gate or the largest accepted drop, and was not timed."""
    SKIPPED = "skipped"
    """This host, flavour or graph cannot do it, or not prove it."""
    UNSUPPORTED = "unsupported"
    """The library cannot apply one of its choices, so that it is another point's engine."""
    UNCHANGED = "unchanged"
    """Its choices give the graph of another point, which has the same settings: nothing was built."""
    FAILED = "failed"
    """The build, the validation or the timing ended with an error."""


class ScreenedRule(Record):
    """Rule for the ranges of activations, judged on calibration images without a build: no proof."""

    rule: str
    """The rule, as `quantization.calibration` has it."""
    kept: bool
    """True if these images keep the gate."""
    loss: Annotated[float, Field(ge=0)]
    """Share of answers that are others; as `doit sensitivity` has it for other tasks."""
    distance: Annotated[float, Field(ge=0)]
    """Relative L2 distance to the graph in FP32."""


class RuleScreening(StageRecord):
    """Rules for the ranges of a quantised graph: `<model>/tune/ranges-<graph>.json`."""

    graph: Graph
    """The graph."""
    rules: tuple[ScreenedRule, ...]
    """The rules that are judged, the graph's own first; none if its own outputs are not finite."""
    left: tuple[str, ...] = ()
    """The rules that are not judged, because the budget has ended that."""


class ScreenedBatch(Record):
    """Latency of one batch size, from one restart alone: good enough to sort out, and no claim."""

    batch: PositiveInt
    """Number of images in a batch."""
    clock: Clock
    """Clock that measured it."""
    p50_ms: Milliseconds
    """Median latency."""
    streams_ms: Milliseconds | None = None
    """Median time for a batch with several streams; None where that was not timed."""

    @property
    def image_ms(self) -> float:
        """The least time for an image, over the ways to run a batch."""
        return min(time for time in (self.p50_ms, self.streams_ms) if time is not None) / self.batch


class Trial(StageRecord):
    """Outcome of one point: `<model>/tune/trials/<number>.json`."""

    number: PositiveInt
    """Number of the trial, in the order of the search."""
    point: Point
    """The point."""
    verdict: TrialVerdict
    """The end of the trial."""
    reason: str = ""
    """Reason for any other verdict than `passed`."""
    refused: str = ""
    """The setting that the library cannot apply, of `unsupported`."""
    cut: bool = False
    """True of `failed` if the budget ended one of its steps, so that a larger one tries it again."""
    budget_seconds: Seconds = 0.0
    """The budget that has cut it; 0 for others."""
    seconds: Seconds
    """Time of the trial: build, validation and timing; of a result that was there already, what it took now."""
    screening_seconds: Seconds = 0.0
    """The part of them that the timing took."""
    drop: float | None = None
    """Answers lost, minus those won, per sample; of tensors the relative L2 distance. None if it was not validated."""
    relative_l2: Annotated[float, Field(ge=0)] | None = None
    """Relative L2 distance to FP32's outputs; None if it was not validated."""
    memory_bytes: Count | None = None
    """GPU memory that it took; on a processor the size of its file. None if it was not timed."""
    screened: tuple[ScreenedBatch, ...] = ()
    """Its latencies; none if it was not timed."""
    engine: str = ""
    """Digest of an engine's layers, or of an ONNX file: equal for artifacts that do the same work; empty if unknown."""
    graph: str = ""
    """Digest of the ONNX graph that it is made from; empty if there is none."""
    same_as: int | None = None
    """Number of the earlier trial with the same engine, whose latencies these are; of one that is `unchanged`, that
    with the same graph. None if it was timed itself."""

    @property
    def passed(self) -> bool:
        """True if the point may be deployed by its gate, and was timed."""
        return self.verdict is TrialVerdict.PASSED

    def screening(self, batch: int) -> ScreenedBatch | None:
        """Return the latency at a batch size; None if it was not timed there."""
        return next((item for item in self.screened if item.batch == batch), None)


class FinalSet(Record):
    """Medians of the rounds of one finalist in one restart, at one batch size by one clock."""

    finalist: Count
    """Index among the finalists."""
    batch: PositiveInt
    """Number of images in a batch."""
    clock: Clock
    """Clock that measured them."""
    rounds_ms: tuple[Milliseconds, ...]
    """Median latency of each round."""
    streams: PositiveInt | None = None
    """Number of batches at once, of the clock for several streams."""


class FinalRestart(StageRecord):
    """One restart of the finals, in which all finalists took turns: `<model>/tune/finals/<digest>-<restart>.json`."""

    restart: PositiveInt
    """Number of the restart."""
    finalists: tuple[Point, ...]
    """The finalists."""
    sets: tuple[FinalSet, ...]
    """Their latencies."""
    failures: tuple[str, ...] = ()
    """Reasons of finalists that could not be timed."""
    seconds: Seconds
    """Time of the restart."""


class Standing(Record):
    """Result of a finalist for one objective."""

    point: Point
    """The point."""
    trial: PositiveInt
    """Number of its trial."""
    batch: PositiveInt | None = None
    """Batch size of the value; None for memory."""
    clock: Clock | None = None
    """Clock of the value; None for memory."""
    value: Annotated[float, Field(ge=0)]
    """Milliseconds of a batch, or images per second, or bytes."""
    low: Annotated[float, Field(ge=0)]
    """Lower end of its 95 % interval."""
    high: Annotated[float, Field(ge=0)]
    """Upper end."""
    drop: float
    """Its drop."""
    restarts: Count
    """Number of restarts that the interval is of; 0 for memory."""
    streams: PositiveInt | None = None
    """Number of batches at once, of a throughput by several streams."""


class StreamRate(Record):
    """Throughput with a number of streams."""

    streams: PositiveInt
    """Number of batches at once; 1 is one after the other."""
    batch: PositiveInt
    """Batch size at which it is best."""
    rate: Annotated[float, Field(ge=0)]
    """Images per second."""


class Peer(Record):
    """The best of another backend in the same rounds: a contender that passed its gate, or a baseline without one."""

    subject: str
    """The variant."""
    clock: Clock
    """Clock of this one."""
    winner_clock: Clock
    """Clock of the winner beside it: as a CUDA graph, perhaps, or with several streams, where this one has no such
    time."""
    ratio: Annotated[float, Field(ge=0)]
    """The winner's speed as a multiple of this one's."""
    least: Annotated[float, Field(ge=0)] | None = None
    """The least that the intervals of both allow; None after one restart."""
    most: Annotated[float, Field(ge=0)] | None = None
    """The most."""


class Answer(Record):
    """Winner of one objective, with all finalists behind it."""

    objective: str
    """The objective: `latency at batch 1`, `throughput` or `memory`."""
    standings: tuple[Standing, ...]
    """The finalists, the best first."""
    tied: Count = 0
    """Number of finalists behind the winner whose interval overlaps its own."""
    eager: Peer | None = None
    """Eager FP32 in the same rounds; None for memory, without eager FP32, or after one restart."""
    streams: tuple[StreamRate, ...] = ()
    """The winner's rates with each number of streams that was timed, of a throughput."""
    peers: tuple[Peer, ...] = ()
    """The best of each other backend; none for memory."""
    snippet: str = ""
    """File with the pipeline.yaml that rebuilds the winner, below artifacts/."""


class Effect(Record):
    """Comparisons of one value of a setting with the same point without it."""

    what: str
    """The setting and its value, such as `tensorrt.optimization_level: 5`, or `int8 in place of fp16`."""
    compared: Count
    """Number of pairs of points that differ in this alone, and that both passed."""
    helped: Count
    """Number of pairs in which it was faster by 2 % or more, by their screening."""
    ratio: float | None = None
    """Median of the latencies with it, divided by those without; None without a pair."""
    lost: Count = 0
    """Number of points with it that missed the gate."""
    rescued: Count = 0
    """Number of points that passed with it, and missed the gate without it."""
    note: str = ""
    """Reason why it was never compared."""


class TuneRecord(StageRecord):
    """Answer of `doit tune`: `<model>/tune/tune.json`."""

    budget_seconds: Seconds
    """The budget."""
    spent_seconds: Seconds
    """The time of all trials and finals, those of earlier runs of this search included."""
    max_drop: float | None = None
    """The largest accepted drop, beside the gates; None leaves it to them."""
    complete: bool
    """True if nothing was left to try; false if the budget ended the search, or its finals before the last restart."""
    trials: Count
    """Number of trials."""
    passed: Count
    """Number of those that passed and were timed."""
    answers: tuple[Answer, ...] = ()
    """The winner of each objective; none if nothing passed."""
    frontier: tuple[PositiveInt, ...] = ()
    """Numbers of the trials that no other beats in latency, drop and memory at once."""
    effects: tuple[Effect, ...] = ()
    """How often each choice helped."""
