"""An artifact's logits, judged as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from model_artifacts.records import Graph, Question, Task
from pipeline.config.settings import Gate, Gates
from pipeline.records import Verdict
from pipeline.stages.common.rows import ALONE, parts_of
from pipeline.stages.validate.batches import Measured, check_rows
from pipeline.stages.validate.gates import judge_loss_of_rows, judge_rows, reason_of
from pipeline.stages.validate.judgement import Judgement, Yardstick, judge_logits
from pipeline.stages.validate.metrics import distance, measure, row_dependence
from tests.support.records import file_record, rounding_of

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(10, size=500)
WANT = (np.eye(10)[LABELS] * 5 + RANDOM.normal(size=(500, 10))).astype(np.float32)
NOISE = RANDOM.normal(size=WANT.shape).astype(np.float32)
NOISE *= np.linalg.norm(WANT) / np.linalg.norm(NOISE)
"""As large as the reference, so that a factor is a relative L2."""
INT8 = rounding_of(Graph.INT8, high=0.07, sample=0.2, logits=file_record("int8.npy"))
NEAR: np.typing.NDArray[np.float32] = WANT + np.float32(0.07) * NOISE
EMULATED = NEAR[:64]


def judged(got: np.typing.NDArray[np.float32], *, labels: bool = True, gates: Gates | None = None) -> Judgement:
    """Return the judgement of int8 logits."""
    used = LABELS if labels else None
    yardstick = Yardstick(gates or Gates(), Gate(), INT8, EMULATED)
    return judge_logits(got, WANT, used, measure(got, WANT, used), yardstick)


def failed(judgement: Judgement) -> list[str]:
    """Return the metrics that failed."""
    return [check.metric for check in judgement.checks if not check.passed]


def verdict_of(judgement: Judgement) -> Verdict:
    """Return the verdict on the loss."""
    assert judgement.loss is not None
    return judgement.loss.verdict


def test_logits_near_the_emulated_graph_pass() -> None:
    """The graph's own rounding, and a little of the kernels'."""
    assert failed(judged(NEAR)) == []


def test_logits_as_near_to_the_reference_elsewhere_are_not_the_graphs() -> None:
    """An int8 engine whose error has nothing to do with its graph's has another cause."""
    other = RANDOM.permutation(NOISE)
    assert failed(judged((WANT + 0.07 * other).astype(np.float32))) == ["relative L2 to the emulated graph"]


@pytest.mark.parametrize(("share", "metrics"), [(0.85, []), (1.0, ["relative L2 to the emulated graph"])])
def test_a_detector_draws_a_part_of_its_rounding_anew(share: float, metrics: list[str]) -> None:
    """FP16 around int8 moves boxes as far as int8 does. An error that the graph does not make lies farther."""
    other = np.sqrt(1 - share) * NOISE + np.sqrt(share) * np.random.default_rng(5).permutation(NOISE)
    got = (WANT + 0.07 * other).astype(np.float32)
    yardstick = Yardstick(Gates(), Gate(), INT8, EMULATED, task=Task.DETECTION)
    accuracy = measure(got, WANT, None, task=Task.DETECTION)
    assert failed(judge_logits(got, WANT, None, accuracy, yardstick)) == metrics


@pytest.mark.parametrize("labels", [True, False])
def test_a_loss_is_judged_with_labels_and_without(*, labels: bool) -> None:
    """Three answers in 100 are too many at a margin of one point."""
    got = NEAR.copy()
    got[100:115] = np.roll(WANT[100:115], 1, axis=1)
    judgement = judged(got, labels=labels)
    assert verdict_of(judgement) is Verdict.FAILS
    assert [check.passed for check in judgement.checks if check.question is Question.GOOD_ENOUGH] == [False]


def test_a_part_is_judged_by_what_it_disproves() -> None:
    """A lost answer of 64 rejects what may be deployed. It leaves open what never is, also where proof is asked for."""
    got = NEAR[:64].copy()
    got[:1] = np.roll(WANT[:1], 1, axis=1)
    accuracy = measure(got, WANT[:64], LABELS[:64])
    yardstick = Yardstick(Gates(require_proof=True), Gate(), INT8, EMULATED)
    verdicts = [
        verdict_of(judge_logits(got, WANT[:64], LABELS[:64], accuracy, yardstick._replace(is_part=is_part)))
        for is_part in (False, True)
    ]
    assert verdicts == [Verdict.FAILS, Verdict.NOT_PROVEN]
    judged_part = judge_logits(got, WANT[:64], LABELS[:64], accuracy, yardstick._replace(is_part=True))
    assert [check.passed for check in judged_part.checks if check.question is Question.GOOD_ENOUGH] == [True]


def test_a_wider_margin_accepts_it() -> None:
    """It is the user's to say."""
    got = NEAR.copy()
    got[100:115] = np.roll(WANT[100:115], 1, axis=1)
    assert verdict_of(judged(got, gates=Gates(margin=0.06))) is Verdict.PASSES


def test_an_embedding_is_judged_by_its_neighbours() -> None:
    """Vectors within the rounding that moved half way to their neighbours are faithful, and not good enough."""
    random = np.random.default_rng(1)
    want = np.concatenate([np.full((200, 1), 10.0), random.normal(size=(200, 7)) * 0.05], axis=1).astype(np.float32)
    near, far = ((want + random.normal(size=want.shape) * size).astype(np.float32) for size in (1e-4, 0.03))
    yardstick = Yardstick(Gates(), Gate(), rounding_of(Graph.FP16, high=0.02, sample=0.02), task=Task.EMBEDDING)
    verdicts = {}
    for name, got in (("near", near), ("far", far)):
        accuracy = measure(got, want, None, task=Task.EMBEDDING)
        assert (accuracy.top1_agreement, accuracy.top1) == (None, None)
        assert accuracy.cosine > 0.999
        judgement = judge_logits(got, want, None, accuracy, yardstick)
        verdicts[name] = verdict_of(judgement)
        checks = [check for check in judgement.checks if check.question is Question.GOOD_ENOUGH]
        assert [check.metric for check in checks] == ["vectors that moved half way to their nearest neighbour"]
    assert verdicts == {"near": Verdict.NOT_PROVEN, "far": Verdict.FAILS}
    assert failed(judgement) == ["vectors that moved half way to their nearest neighbour"]


SHAPE = (3, 400)
MAPS = np.random.default_rng(2).normal(size=(50, *SHAPE)) * np.array([300.0, 300.0, 0.2])[:, None]
"""Two rows of boxes in pixels, and one of scores."""


def tensors_judged(got: np.typing.NDArray[np.float64], gates: Gates | None = None) -> Judgement:
    """Return the judgement of FP16 tensors whose own rounding is 1e-3 in every part."""
    want, rows = (array.reshape(len(MAPS), -1).astype(np.float32) for array in (MAPS, got))
    parts = len(parts_of(SHAPE))
    rounding = rounding_of(Graph.FP16, high=1e-3, sample=2e-3).model_copy(update={"part_l2_high": (1e-3,) * parts})
    yardstick = Yardstick(gates or Gates(), Gate(), rounding, task=Task.TENSORS, sample_shape=SHAPE)
    return judge_logits(rows, want, None, measure(rows, want, None, task=Task.TENSORS), yardstick)


def test_tensors_within_their_rounding_pass() -> None:
    """There are no answers, so that no loss is counted."""
    noise = np.random.default_rng(4).normal(size=MAPS.shape)
    judgement = tensors_judged(MAPS * (1 + 1e-3 * noise))
    assert failed(judgement) == []
    assert judgement.loss is None


def test_boxes_do_not_hide_scores() -> None:
    """Scores that are wrong by 40 % are 2e-4 of the whole: the whole keeps its bound, the part breaks both."""
    noise = np.random.default_rng(4).normal(size=MAPS.shape)
    got = MAPS * (1 + 1e-3 * noise)
    got[:, 2] *= 1.4
    judgement = tensors_judged(got)
    assert failed(judgement) == ["relative L2 of axis 1, entry 2", "largest relative L2 of a part"]
    assert failed(tensors_judged(got, Gates(margin=0.5))) == ["relative L2 of axis 1, entry 2"]


def test_a_faithful_precision_may_lose_too_much() -> None:
    """A part that its own rounding moves by more than the margin is not good enough."""
    got = MAPS * (1 + 1e-3 * np.random.default_rng(4).normal(size=MAPS.shape))
    assert failed(tensors_judged(got, Gates(margin=5e-4))) == ["largest relative L2 of a part"]


def test_a_part_that_rounding_moves_beyond_the_margin_is_not_unfaithful() -> None:
    """Its own rounding allows 6 %, at every batch size too, so that the margin of 1 % alone is broken."""
    rounding = rounding_of(Graph.FP16, high=1e-3, sample=2e-3).model_copy(update={"part_l2_high": (1e-3, 1e-3, 0.03)})
    yardstick = Yardstick(Gates(), Gate(), rounding, task=Task.TENSORS, sample_shape=(3,))
    want = (np.random.default_rng(5).normal(size=(50, 3)) * [300, 300, 0.2]).astype(np.float32)
    got = want * np.array([1.0003, 1.0003, 1.05], np.float32)
    assert yardstick.parts is not None
    measured = [Measured(ALONE[0], yardstick.parts)]
    (row,) = check_rows(lambda images: images, lambda start, stop: got[start:stop], want, 50, got, measured)
    faithful, enough = judge_rows((row,), yardstick.bounds), judge_loss_of_rows((row,), 0.01)
    assert [check.passed for check in faithful] == [True, True]
    assert [(check.passed, check.question) for check in enough] == [(False, Question.GOOD_ENOUGH)]
    assert row.part_l2 == pytest.approx(0.05, rel=1e-3)
    judgement = judge_logits(got, want, None, measure(got, want, None, task=Task.TENSORS), yardstick)
    assert reason_of((*judgement.checks, *faithful, *enough)).startswith("faithful, but this network loses too much")


def test_parts_are_weighed_by_their_bounds() -> None:
    """Checks of batch sizes see a part's distance as a share of its own bound."""
    rounding = rounding_of(Graph.FP16, high=1e-3, sample=2e-3).model_copy(update={"part_l2_high": (1e-3, 1e-3, 0.004)})
    parts = Yardstick(Gates(), Gate(), rounding, task=Task.TENSORS, sample_shape=(3,)).parts
    assert parts is not None
    np.testing.assert_allclose(parts.weights, [1, 1, 0.25])
    unseen = rounding.model_copy(update={"part_l2_high": (1e-3, 1e-3, 1e150)})
    parts_of_unseen = Yardstick(Gates(), Gate(), unseen, task=Task.TENSORS, sample_shape=(3,)).parts
    assert parts_of_unseen is not None
    np.testing.assert_allclose(parts_of_unseen.weights, [1, 1, 2e-3 / 0.9])  # where the emulation saw zeros alone
    want = np.array([[300, 300, 0.2], [310, 290, 0.3]], np.float32)
    got = want * np.array([1, 1, 1.5], np.float32)
    assert distance(got, want, None) < 1e-3
    assert distance(got, want, parts) == pytest.approx(0.125)
    assert row_dependence(want, got, None) < 1e-3
    assert row_dependence(want, got, parts) == pytest.approx(0.25 * 0.15 / np.sqrt((0.2**2 + 0.3**2) / 2), rel=1e-4)


def test_images_that_leave_a_part_empty_are_held_to_its_usual_size() -> None:
    """A row of a map that no image of a few fills: 1e-6 instead of nothing is no fault beside values of 1."""
    rounding = rounding_of(Graph.BF16, high=1e-2, sample=2e-2)
    rounding = rounding.model_copy(update={"part_l2_high": (1e-2, 1e-2)})
    want = np.array([[1, 1e-7], [1.1, 2e-7], [0.9, 0]], np.float32)
    got = want * np.array([1.005, 1], np.float32) + np.array([0, 1e-6], np.float32)
    found = []
    for sizes in ((), (1.0, 0.3), (1.0, 1e-6)):
        known = rounding.model_copy(update={"part_sizes": sizes})
        yardstick = Yardstick(Gates(margin=0.5), Gate(), known, task=Task.TENSORS, sample_shape=(2,))
        checks = judge_logits(got, want, None, measure(got, want, None, task=Task.TENSORS), yardstick).checks
        found.append([check.metric for check in checks if check.question is Question.FAITHFUL and not check.passed])
        assert yardstick.parts is not None
        rows = row_dependence(want, got, yardstick.parts), distance(got, want, yardstick.parts)
        assert all((value > 0.02) == (sizes != (1.0, 0.3)) for value in rows)
    assert found == [["relative L2 of axis 1, entry 1"], [], ["relative L2 of axis 1, entry 1"]]


def test_a_part_may_lie_farther_from_the_emulated_graph_than_the_whole() -> None:
    """The quantile bounds the whole; each part has the multiple, beyond which another cause is likely."""
    random = np.random.default_rng(6)
    want = random.normal(size=(64, 12)).astype(np.float32)
    noise = random.normal(size=want.shape).astype(np.float32)
    rounding = rounding_of(Graph.INT8, high=0.07, sample=0.3, logits=file_record("int8.npy"))
    rounding = rounding.model_copy(update={"part_l2_high": (0.07,) * 12})
    emulated = want + np.float32(0.03) * noise
    yardstick = Yardstick(Gates(margin=0.5), Gate(), rounding, emulated, task=Task.TENSORS, sample_shape=(12,))
    found = []
    for size in (0.2, 0.32):
        got = emulated.copy()
        got[:, 2] += np.float32(size) * np.roll(noise[:, 2], 1)
        found.append(failed(judge_logits(got, want, None, measure(got, want, None, task=Task.TENSORS), yardstick)))
    assert found[0] == []
    assert found[1] == [
        "relative L2 to the emulated graph",
        "relative L2 of a part to the emulated graph",
        "relative L2 of axis 1, entry 2",
    ]


def test_the_check_names_the_tolerance() -> None:
    """Scores near 0 are off by all that they are, and by less than the user takes for an error."""
    want = np.tile(np.array([[300.0, 1e-4]], np.float32), (8, 1))
    got = want.copy()
    got[:, 1] = 0
    rounding = rounding_of(Graph.FP16, high=1e-3, sample=2e-3)
    found = {}
    for tolerance in ((), (0.01,)):
        yardstick = Yardstick(Gates(), Gate(), rounding, task=Task.TENSORS, sample_shape=(2,), tolerance=tolerance)
        checks = judge_logits(got, want, None, measure(got, want, None, task=Task.TENSORS), yardstick).checks
        found[tolerance] = {check.metric: check.passed for check in checks}
    assert not found[()]["largest relative L2 of a part"]
    assert found[(0.01,)]["largest relative L2 of a part with an error beyond 0.01"]
