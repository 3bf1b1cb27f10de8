"""This build against a released one."""

from __future__ import annotations

import pytest

from model_artifacts.deployment.comparison import Turn, breaches_of, compare, worth_telling
from model_artifacts.records import BatchTiming, Clock, ManifestEntry, Status
from pipeline.config.settings import ReleaseConfig
from tests.support.manifests import accuracy, entry, manifest, timing

BOUNDS = ReleaseConfig(manifest="released.json", max_latency_increase="3%", max_top1_drop="0.1pt")


def turn_of(before: BatchTiming, after: BatchTiming) -> tuple[Turn, str]:
    """Return which way a latency went, and the bound that it breaks."""
    changes = compare(manifest(entry("a", before)), manifest(entry("a", after)), BOUNDS)
    (change,) = [change for change in changes if change.metric.startswith("p50")]
    return change.turn, change.breach


def without_interval(p50: float) -> BatchTiming:
    """Return a latency as older builds recorded it."""
    return timing(1, p50).model_copy(update={"p50_low_ms": None, "p50_high_ms": None})


@pytest.mark.parametrize(
    ("before", "after", "turn", "breach"),
    [
        (timing(1, 1.0), timing(1, 1.0), Turn.SAME, ""),
        (timing(1, 1.0, 0.1), timing(1, 1.15, 0.1), Turn.SAME, ""),
        (timing(1, 1.0, 0.001), timing(1, 1.02, 0.001), Turn.WORSE, ""),
        (timing(1, 1.0, 0.001), timing(1, 1.05, 0.001), Turn.WORSE, "≤ +3.0%"),
        (timing(1, 1.0, 0.001), timing(1, 0.9, 0.001), Turn.BETTER, ""),
        (without_interval(1.0), without_interval(1.02), Turn.SAME, ""),
        (without_interval(1.0), without_interval(1.04), Turn.WORSE, "≤ +3.0%"),
        (without_interval(1.0), without_interval(0.9), Turn.BETTER, ""),
    ],
)
def test_a_latency_changes_beyond_noise_only(before: BatchTiming, after: BatchTiming, turn: Turn, breach: str) -> None:
    """Overlapping intervals are equal; a slower one is reported within the bound, and is a breach beyond it."""
    assert turn_of(before, after) == (turn, breach)


def test_a_bound_holds_by_the_clock_that_variants_are_compared_by() -> None:
    """A slower host's clock is reported and breaks no bound, except for several streams."""
    clocks = (Clock.GPU_GRAPH, Clock.GPU, Clock.HOST, Clock.STREAMS)
    old = manifest(entry("a", *(timing(1, 1.0, 0.001, clock) for clock in clocks)))
    new = manifest(entry("a", *(timing(1, 1.2, 0.001, clock) for clock in clocks)))
    found = [change for change in compare(old, new, BOUNDS) if change.metric.startswith("p50")]
    assert {change.turn for change in found} == {Turn.WORSE}
    assert [change.metric.rpartition(" ")[2] for change in found if change.breach] == ["gpu-graph", "streams"]


def test_what_is_no_longer_measured_breaks_its_bound() -> None:
    """A benchmark or a validation that failed is no proof that nothing got worse."""
    old = manifest(entry("a", timing(1, 1.0), timing(8, 4.0)))
    new = manifest(entry("a", timing(1, 1.0), accuracy=None))
    found = [(change.metric, change.after, change.turn, change.breach != "") for change in compare(old, new, BOUNDS)]
    assert found[1:] == [
        ("p50 at batch 8, host", "not measured", Turn.WORSE, True),
        ("accuracy", "not measured", Turn.WORSE, True),
    ]


def test_latencies_of_two_devices_are_not_compared() -> None:
    """Another GPU or another driver is another machine."""
    old = manifest(entry("a", timing(1, 1.0, 0.001)))
    new = manifest(entry("a", timing(1, 9.0, 0.001), device="another GPU, driver 580"))
    (change, _) = compare(old, new, BOUNDS)
    assert (change.turn, change.breach) == (Turn.UNKNOWN, "")


@pytest.mark.parametrize(
    ("before", "after", "metric", "turn", "breach"),
    [
        (0.92, 0.92, "top-1", Turn.SAME, ""),
        (0.92, 0.9195, "top-1", Turn.WORSE, ""),
        (0.92, 0.919, "top-1", Turn.WORSE, ""),
        (0.92, 0.918, "top-1", Turn.WORSE, "≥ -0.1 pt"),
        (0.92, 0.93, "top-1", Turn.BETTER, ""),
        (0.92, None, "agreement", Turn.SAME, ""),
    ],
)
def test_top1_may_drop_within_its_bound(
    before: float, after: float | None, metric: str, turn: Turn, breach: str
) -> None:
    """A drop is told, and beyond the bound it is a breach; without labels on both sides agreement is compared."""
    old, new = (manifest(entry("a", accuracy=accuracy(top1=top1))) for top1 in (before, after))
    (change,) = compare(old, new, BOUNDS)
    assert (change.metric, change.turn, change.breach) == (metric, turn, breach)


@pytest.mark.parametrize(
    ("before", "after", "turn", "breach"),
    [
        (Status.DEPLOYABLE, Status.REJECTED, Turn.WORSE, "must stay deployable"),
        (Status.REJECTED, Status.DEPLOYABLE, Turn.BETTER, ""),
        (Status.BUILT, Status.SKIPPED, Turn.UNKNOWN, ""),
    ],
)
def test_a_status_that_changed_is_told(before: Status, after: Status, turn: Turn, breach: str) -> None:
    """An artifact that is no longer deployable breaks the release."""
    old, new = (manifest(entry("a", status=status, accuracy=None)) for status in (before, after))
    (change,) = compare(old, new, BOUNDS)
    assert (change.metric, change.turn, change.breach) == ("status", turn, breach)


def test_artifacts_that_came_and_went_are_told() -> None:
    """A missing deployable artifact is worse; a new artifact is neither worse nor better."""
    changes = compare(manifest(entry("gone"), entry("skipped", status=Status.SKIPPED)), manifest(entry("new")), BOUNDS)
    assert [(change.id.rpartition("/")[2], change.after, change.turn) for change in changes] == [
        ("gone", "absent", Turn.WORSE),
        ("new", "deployable", Turn.UNKNOWN),
        ("skipped", "absent", Turn.UNKNOWN),
    ]


def test_without_bounds_nothing_breaks() -> None:
    """Two manifests can be compared for their own sake."""
    slow = manifest(entry("a", timing(1, 9.0, 0.001)))
    changes = compare(manifest(entry("a", timing(1, 1.0, 0.001))), slow)
    assert breaches_of(changes) == ()
    assert [change.turn for change in worth_telling(changes)] == [Turn.WORSE]


@pytest.mark.parametrize(("top1", "turn", "breach"), [(1.0, Turn.UNKNOWN, ""), (0.5, Turn.WORSE, "≥ -0.1 pt")])
def test_accuracies_on_different_numbers_of_images_are_not_compared(top1: float, turn: Turn, breach: str) -> None:
    """Eight right answers of eight are no gain over 460 of 500; a bound holds all the same."""
    old, new = (manifest(entry("a", accuracy=item)) for item in (accuracy(), accuracy(top1=top1)))
    few = new.artifacts[0].model_copy(update={"accuracy": accuracy(top1=top1).model_copy(update={"samples": 8})})
    (change,) = compare(old, manifest(few), BOUNDS)
    assert (change.turn, change.breach) == (turn, breach)
    assert (change.before, change.after) == ("92.00% of 500", f"{top1:.2%} of 8")


def test_each_output_is_compared_with_itself() -> None:
    """One that got worse shows, though another one is the farthest in both; one that is gone is a breach."""

    def of(**cosines: float) -> ManifestEntry:
        outputs = tuple(
            accuracy().model_copy(update={"output": name, "cosine": value, "top1": None, "top1_agreement": None})
            for name, value in cosines.items()
        )
        return entry("a").model_copy(update={"accuracy": outputs[0], "accuracies": outputs})

    old = manifest(of(boxes=0.99, scores=0.9999, features=1.0))
    changes = compare(old, manifest(of(boxes=0.99, scores=0.995)), BOUNDS)
    assert [(change.metric, change.turn, bool(change.breach)) for change in changes] == [
        ("boxes: cosine", Turn.SAME, False),
        ("scores: cosine", Turn.WORSE, True),
        ("features: accuracy", Turn.WORSE, True),
    ]
