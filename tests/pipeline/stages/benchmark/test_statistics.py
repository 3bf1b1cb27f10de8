"""Statistics of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.records import Clock, Layout
from pipeline.records import Conditions, Range
from pipeline.stages.benchmark.messages import SampleSet
from pipeline.stages.benchmark.statistics import interval_of_median, noise_of, settled, shift_of, summarize

HOST = SampleSet(Clock.HOST, 6)
LATENCIES = st.floats(0.01, 100.0)


def test_percentiles_throughput_and_speedup_by_hand() -> None:
    """A summary holds the percentiles of the samples, images a second, and the ratio of the medians."""
    timing = summarize([[np.array([1.0, 2.0, 3.0])], [np.array([4.0, 10.0])]], HOST, np.array([6.0, 7.0, 5.0]))
    assert (timing.batch, timing.runs, timing.p50_ms) == (6, 5, 3.0)
    assert timing.p90_ms == pytest.approx(7.6)
    assert timing.p99_ms == pytest.approx(9.76)
    assert timing.throughput_per_s == 2000.0
    assert timing.speedup == 2.0


def test_without_a_baseline_there_is_no_speedup() -> None:
    """A summary without eager FP32 beside it claims no speed-up."""
    assert summarize([[np.array([1.0])]], HOST, None).speedup is None


def test_summary_says_what_it_is_the_time_of() -> None:
    """A latency on the GPU has its clock, the images' layout, and the host's time to enqueue it."""
    timing = summarize([[np.array([0.2])]], SampleSet(Clock.GPU_GRAPH, 1, Layout.CHANNELS_LAST), None, 3.5)
    assert (timing.clock, timing.layout, timing.enqueue_us) == (Clock.GPU_GRAPH, Layout.CHANNELS_LAST, 3.5)


ROUNDS = st.lists(st.lists(LATENCIES, min_size=1, max_size=5).map(np.array), min_size=1, max_size=4)


@given(st.lists(ROUNDS, min_size=1, max_size=4))
def test_the_interval_holds_the_median(restarts: list[list[np.ndarray[tuple[int], np.dtype[np.float64]]]]) -> None:
    """Whatever the samples, the median lies between the ends of its interval."""
    timing = summarize(restarts, HOST, None)
    assert timing.p50_low_ms is not None
    assert timing.p50_high_ms is not None
    assert timing.p50_low_ms <= timing.p50_ms <= timing.p50_high_ms


def test_rounds_that_agree_give_a_narrow_interval() -> None:
    """Equal rounds leave no doubt; rounds that differ do, and restarts that differ more."""
    assert interval_of_median([[2.0] * 3] * 3) == (2.0, 2.0)
    low, high = interval_of_median([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert 1.0 <= low < 3.5 < high <= 6.0
    low, high = interval_of_median([[1.0, 1.0], [1.1, 1.1], [1.21, 1.21]])
    factor = 1.1 ** (4.303 / 3**0.5)  # the standard deviation of three logarithms one step apart is that step
    assert low == pytest.approx(1.1 / factor)
    assert high == pytest.approx(1.1 * factor)


@pytest.mark.parametrize(
    ("restarts", "rounds", "between", "within"),
    [(1, 9, 0.0, 0.1), (3, 2, 0.0, 0.02), (3, 2, 0.02, 0.002), (3, 3, 0.02, 0.02), (5, 3, 0.02, 0.002)],
)
def test_the_interval_covers_what_it_says(restarts: int, rounds: int, between: float, within: float) -> None:
    """The intervals of about 95 % of 400 repeated experiments cover the true median, also if restarts differ."""
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        moods = random.normal(1.0, between, (restarts, 1))
        low, high = interval_of_median((moods + random.normal(0.0, within, (restarts, rounds))).tolist())
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 400 <= 0.995


def test_a_shift_by_hand() -> None:
    """The bound is the distance of the means, and Student's t of it: 2.776 with four degrees of freedom."""
    before, now = [1.0, 1.0, 1.0], [1.02, 1.02, 1.02]
    assert shift_of(before, now) == pytest.approx(np.log(1.02))
    spread = [float(np.exp(value)) for value in (-0.01, 0.0, 0.01)]
    assert shift_of(spread, spread) == pytest.approx(2.776 * (0.0002 / 4 * 2 / 3 * 2) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(("before", "now"), [([1.0], [1.0]), ([], [1.0, 1.0]), ([1.0, 1.0, 1.0], [])])
def test_too_few_restarts_tell_no_shift(before: list[float], now: list[float]) -> None:
    """One restart in each session has no spread to compare with."""
    assert shift_of(before, now) is None


@pytest.mark.parametrize(("drift", "between"), [(0.0, 0.005), (0.02, 0.005), (0.04, 0.01)])
def test_equal_variants_of_two_sessions_tie(drift: float, between: float) -> None:
    """Of 300 pairs of equal variants in sessions of different speed, the widened intervals overlap in 95 %."""
    random = np.random.default_rng(2)
    ties = 0
    for _ in range(300):
        ends = []
        sessions = [random.normal(0.0, between, (3, 1)) + shift for shift in (0.0, drift)]
        baselines = [np.exp(moods + random.normal(0.0, 0.002, (3, 1))).ravel().tolist() for moods in sessions]
        widening = (shift_of(*baselines) or 0.0) / 2
        for moods in sessions:
            milliseconds = np.exp(moods + random.normal(0.0, 0.002, (3, 2)))
            timing = summarize(
                [[np.array([value]) for value in rounds] for rounds in milliseconds], HOST, None, None, widening
            )
            ends.append(timing.interval_ms)
        ties += max(ends[0][0], ends[1][0]) <= min(ends[0][1], ends[1][1])
    assert ties / 300 >= 0.95


@pytest.mark.parametrize(
    ("medians", "done"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 1.5], False),
        ([1.0, 1.015], True),
        ([1.0, 1.0, 2.0], False),
        ([9.0, 2.0, 1.97], True),
    ],
)
def test_a_warm_up_ends_when_the_last_two_medians_agree(medians: list[float], *, done: bool) -> None:
    """A warm-up ends once its last two medians agree within two per cent, whatever came before."""
    assert settled(medians) is done


ANY = Range(low=1, median=1, high=1)


def conditions(*reasons: str) -> Conditions:
    """Return conditions with these reasons for slow clocks."""
    return Conditions(sm_clock_mhz=ANY, memory_clock_mhz=ANY, temperature_c=ANY, power_w=ANY, throttled_by=reasons)


def test_a_quiet_run_has_no_noise() -> None:
    """Restarts within 5 %, nobody else, clocks as an application set them: nothing to be said."""
    assert noise_of([[1.0, 1.04], [2.0]], [], [], conditions("clocks set by an application")) == ()


@pytest.mark.parametrize(
    ("restarts", "unsettled", "strangers", "reasons", "said"),
    [
        ([[1.0, 1.0], [1.0, 1.2, 0.9]], [], [], (), "restarts differ: by up to 33%"),
        ([[1.0]], ["batch 8"], [], (), "not settled after warming up: batch 8"),
        ([[1.0]], [], ["process 12 with 640 MiB"], (), "others computed on the GPU: process 12 with 640 MiB"),
        ([[1.0]], [], [], ("power cap",), "the GPU's clocks were held down: power cap"),
    ],
)
def test_each_reason_for_doubt_is_said(
    restarts: list[list[float]], unsettled: list[str], strangers: list[str], reasons: tuple[str, ...], said: str
) -> None:
    """A noisy run says why it is not to be trusted to the last digit."""
    assert [str(doubt) for doubt in noise_of(restarts, unsettled, strangers, conditions(*reasons))] == [said]
