"""Metrics judged by the bounds of a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.records import GateCheck, Graph, LayerShare, Precision, Question, RowCheck
from pipeline.config.settings import Gate
from pipeline.stages.validate.gates import (
    IN_GRAPH,
    Bounds,
    at_most,
    bounds_of,
    executed_precision,
    judge_distance,
    judge_finite,
    judge_layers,
    judge_loss,
    judge_loss_of_part,
    judge_rows,
    reason_of,
)
from pipeline.stages.validate.loss import judge_drop
from pipeline.stages.validate.metrics import Answers, largest_sample, measure
from tests.support.records import rounding_of

if TYPE_CHECKING:
    import numpy.typing as npt


def logits(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return rows of logits."""
    return np.array(rows, dtype=np.float32)


def layers(*found: tuple[Precision | None, int]) -> tuple[LayerShare, ...]:
    """Return shares of layers, the most frequent first."""
    return tuple(LayerShare(precision=precision, layers=count, examples=()) for precision, count in found)


@pytest.mark.parametrize(
    ("asked", "found", "relative_l2", "executed"),
    [
        (Precision.FP32, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.FP32, layers((Precision.FP32, 20)), 4e-4, Precision.TF32),
        (Precision.FP32, layers((Precision.FP32, 19), (Precision.TF32, 1)), 1e-6, Precision.TF32),
        (Precision.TF32, layers((Precision.TF32, 20)), 4e-4, Precision.TF32),
        (Precision.TF32, layers((Precision.FP32, 20)), 4e-4, Precision.TF32),
        (Precision.TF32, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.FP16, layers((Precision.FP16, 20), (Precision.FP32, 1)), 1e-3, Precision.FP16),
        (Precision.FP16, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.INT8, layers((Precision.INT8, 19), (Precision.FP16, 1)), 0.05, Precision.INT8),
        (Precision.FP16, layers((None, 20)), 1e-3, None),
        (Precision.FP32, (), 1e-3, None),
    ],
)
def test_executed_precision_is_that_of_most_layers(
    asked: Precision, found: tuple[LayerShare, ...], relative_l2: float, executed: Precision | None
) -> None:
    """The precision of most convolutions is the engine's, and the distance separates TF32 from strict FP32."""
    assert executed_precision(asked, found, relative_l2, 1e-5) is executed


@pytest.mark.parametrize(
    ("claimed", "found", "value", "passed"),
    [
        (Precision.FP16, layers((Precision.FP16, 20)), "100.0%", True),
        (Precision.FP16, layers((Precision.FP16, 19), (Precision.FP32, 1)), "95.0%", True),
        (Precision.FP16, layers((Precision.FP16, 18), (Precision.FP32, 2)), "90.0%, beside 2 layers in fp32", False),
        (Precision.FP16, layers((Precision.FP32, 20)), "0.0%, beside 20 layers in fp32", False),
        (Precision.TF32, layers((Precision.FP32, 10), (Precision.TF32, 10)), "100.0%", True),
        (Precision.FP32, layers((Precision.FP32, 10), (Precision.TF32, 10)), "50.0%, beside 10 layers in tf32", False),
        (Precision.INT8, layers((Precision.INT8, 4), (Precision.FP16, 1)), "80.0%", True),
        (Precision.INT8, layers((Precision.INT8, 2), (Precision.FP16, 1)), "66.7%", True),
        (Precision.INT8, layers((Precision.INT8, 3), (Precision.FP16, 2)), "60.0%, beside 2 layers in fp16", False),
        (Precision.INT8, layers((Precision.FP16, 1)), "0.0%, beside 1 layer in fp16", False),
        (Precision.FP8, layers((Precision.FP8, 19), (Precision.FP16, 1)), "95.0%", True),
        (Precision.BF16, layers((None, 20)), "0.0%, beside 20 layers in an unknown type", False),
    ],
)
def test_layers_are_held_against_the_claimed_precision(
    claimed: Precision, found: tuple[LayerShare, ...], value: str, *, passed: bool
) -> None:
    """An engine that claims a precision multiplies in it, but for a few layers; quantisers leave more."""
    bound = "80%" if claimed in {Precision.INT8, Precision.FP8} else "95%"
    assert judge_layers(claimed, found) == (
        GateCheck(metric="executed precision", bound=f"≥ {bound} {claimed.value}", value=value, passed=passed),
    )


def test_rejection_for_types_alone_says_that_the_numbers_are_right() -> None:
    """TensorRT 10.6 computes a bf16 network's depthwise convolutions in fp16: 16 of efficientnet-lite0's 49."""
    checks = judge_layers(Precision.BF16, layers((Precision.BF16, 33), (Precision.FP16, 16)))
    reason = "executed precision 67.3%, beside 16 layers in fp16, gate ≥ 95% bf16"
    assert reason_of(checks).startswith("near enough to the network, but the library computes layers in other types")
    assert reason_of(checks).endswith(reason)
    far = at_most("relative L2", 1.0, 0.1)
    assert reason_of((far, *checks)).startswith("not faithful to the network in this precision")


def test_layers_that_a_proposal_leaves_are_its_own_fault() -> None:
    """Neither the library's nor the host's, unless the numbers fail, too; without one an ONNX file is another's."""
    few = layers((Precision.INT8, 1), (Precision.FP16, 3))
    checks = (*judge_layers(Precision.INT8, few), *judge_layers(Precision.INT8, few, IN_GRAPH))
    reason = reason_of(checks, proposed=True)
    assert reason.startswith("near enough to the network, but the places that Model Optimizer proposed leave too many")
    assert reason.endswith("precision in the graph 25.0%, beside 3 layers in fp16, gate ≥ 80% int8")
    assert reason_of((at_most("relative L2", 1.0, 0.1), *checks), proposed=True).startswith("not faithful")
    assert reason_of(checks).startswith("not faithful")


@pytest.mark.parametrize(
    ("quantized", "left_out", "passed"), [(16, 4, True), (13, 4, True), (12, 4, False), (0, 20, False)]
)
def test_layers_that_are_left_on_request_are_not_held_against_an_engine(
    quantized: int, left_out: int, *, passed: bool
) -> None:
    """The bound is of the others; an engine with nothing quantised is not int8, whatever was left."""
    found = layers(*([(Precision.INT8, quantized)] if quantized else []), (Precision.FP16, 20 - quantized))
    (check,) = judge_layers(Precision.INT8, found, left_out=left_out)
    assert (check.bound, check.passed) == (f"≥ 80% int8 of all but {left_out}", passed)


@pytest.mark.parametrize(("quantized", "passed"), [(3, True), (2, False)])
def test_each_output_may_have_its_last_layer_in_floating_point(quantized: int, *, passed: bool) -> None:
    """The quantiser leaves one for each of three heads, which are half of a short network."""
    found = layers((Precision.INT8, quantized), (Precision.FP16, 6 - quantized))
    assert judge_layers(Precision.INT8, found, outputs=3)[0].passed == passed
    assert not judge_layers(Precision.INT8, found)[0].passed


def test_artifact_that_tells_no_layers_is_not_held_against_them() -> None:
    """ONNX Runtime tells nothing, and a network may have no convolution."""
    assert judge_layers(Precision.FP16, ()) == ()


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (np.nan, False), (np.inf, False)])
def test_extreme_images_give_finite_logits(value: float, *, passed: bool) -> None:
    """Whatever the images, logits are numbers."""
    assert [check.passed for check in judge_finite("finite", logits((1, value)))] == [passed]


def test_what_was_not_run_is_not_judged() -> None:
    """Without extreme images there is no check."""
    assert judge_finite("finite", None) == ()


ROUNDING = rounding_of(Graph.FP16, high=0.02, sample=0.05)
BOUNDS = bounds_of(Gate(), ROUNDING, 2.0)


def failed(got: npt.NDArray[np.float32], want: npt.NDArray[np.float32], bounds: Bounds, gate: Gate) -> list[str]:
    """Return the checks of the distance that fail."""
    checks = judge_distance(measure(got, want, None), largest_sample(got, want), bounds, gate)
    return [check.metric for check in checks if not check.passed]


def test_bounds_are_multiples_of_the_networks_own_rounding() -> None:
    """Twice the quantile for all samples, four times the largest for one, and at least a tenth of it."""
    assert pytest.approx((0.04, 0.2, 0.002)) == (BOUNDS.relative_l2, BOUNDS.sample_l2, BOUNDS.least_l2)
    assert BOUNDS.source == " (2 × its own rounding, 0.02)"
    assert BOUNDS.emulation_l2 is None


def test_a_bound_of_the_configuration_stands_in_place_of_the_networks() -> None:
    """Whoever names a distance means it."""
    assert bounds_of(Gate(relative_l2=0.3), ROUNDING, 2.0) == Bounds(0.3, "")


def test_fp32_has_a_floor() -> None:
    """Its own rounding is so small that a transform of a kernel makes several times as much."""
    strict = ROUNDING.model_copy(update={"precision": Precision.FP32, "relative_l2_high": 1e-6, "sample_l2_high": 2e-6})
    bounds = bounds_of(Gate(), strict, 2.0)
    assert bounds == Bounds(1e-5, " (the floor)", sample_l2=1e-5)


@pytest.mark.parametrize(
    ("precision", "factor"), [(Precision.FP16, 4), (Precision.BF16, 8), (Precision.INT8, 8), (Precision.FP8, 8)]
)
def test_the_worst_sample_of_a_coarse_type_may_lie_farther(precision: Precision, factor: int) -> None:
    """An image beyond the calibrated ranges, or one that rounding disturbs most, need not be among 64 emulated ones."""
    rounding = ROUNDING.model_copy(update={"precision": precision})
    sample = bounds_of(Gate(), rounding, 2).sample_l2
    assert sample == pytest.approx(factor * (rounding.sample_l2_high or 0))


@pytest.mark.parametrize(("high", "bound"), [(0.2, 0.9), (0.3, 1.2)])
def test_a_lost_sample_is_no_cut_off_one(high: float, bound: float) -> None:
    """A quantised graph's wider bound ends before a sample without output, unless the usual factor is beyond it."""
    rounding = ROUNDING.model_copy(update={"precision": Precision.INT8, "sample_l2_high": high})
    assert bounds_of(Gate(), rounding, 2).sample_l2 == pytest.approx(bound)


def test_an_artifact_within_the_rounding_is_faithful() -> None:
    """A distance of one rounding passes every check."""
    want = logits((3, 4), (4, 3))
    assert failed(want * 1.02, want, BOUNDS, Gate()) == []


@pytest.mark.parametrize(
    ("factor", "metrics"),
    [
        (1.05, ["relative L2"]),
        (1.5, ["relative L2", "distance of the worst sample"]),
        (1.0001, ["relative L2 that its type must show"]),
    ],
)
def test_too_far_and_too_near_are_not_faithful(factor: float, metrics: list[str]) -> None:
    """Fp16 that is as near as FP32 has not been computed in fp16."""
    want = logits((3, 4), (4, 3))
    assert failed(want * np.float32(factor), want, BOUNDS, Gate()) == metrics


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_rejected(bad: float) -> None:
    """NaN or infinity in a single logit is no faithful result."""
    assert "finite outputs" in failed(logits((1, bad), (0, 1)), logits((1, 0), (0, 1)), BOUNDS, Gate())


def test_a_network_beyond_the_precisions_range_is_named() -> None:
    """If the emulation overflows, no distance can be a bound."""
    bounds = bounds_of(Gate(), ROUNDING.model_copy(update={"relative_l2_high": None}), 2.0)
    want = logits((3, 4))
    assert bounds.source == "a value beyond its range, when emulated"
    assert failed(want, want, bounds, Gate()) == ["rounding of the precision"]
    assert judge_rows((RowCheck(batch=1, reference_l2=9, relative_l2=9),), bounds) == ()
    reason = reason_of(judge_distance(measure(want, want, None), 0.0, bounds, Gate()))
    assert reason.startswith("the network's own values do not fit this precision: rounding of the precision a value")


def test_a_precision_that_leaves_nothing_of_the_outputs_is_named() -> None:
    """Twice a distance of 1 would let an output of zeros pass; one that is right is no fault of the library."""
    lost = ROUNDING.model_copy(update={"relative_l2_high": 1.0, "relative_l2_low": 0.99})
    want = logits((3, 4))
    bounds = bounds_of(Gate(), lost, 2.0)
    for found in (np.zeros_like(want), want * np.float32(1.001)):
        assert failed(found, want, bounds, Gate()) == ["rounding of the precision"]
        reason = reason_of(judge_distance(measure(found, want, None), 0.0, bounds, Gate()))
        assert reason.startswith("the network's own values do not fit this precision: rounding of the precision no")
    nearly = ROUNDING.model_copy(update={"relative_l2_high": 0.89})
    assert bounds_of(Gate(), nearly, 2.0).relative_l2 == pytest.approx(1.78)
    assert bounds_of(Gate(relative_l2=0.1), lost, 2.0).relative_l2 == 0.1


def test_a_network_that_could_not_be_emulated_says_why() -> None:
    """Nothing is called faithful by a bound that nobody knows."""
    unknown = ROUNDING.model_copy(
        update={"relative_l2_high": None, "trouble": "it cannot be emulated\n  got:  no kernel"}
    )
    assert bounds_of(Gate(), unknown, 2.0) == Bounds(None, "it cannot be emulated;  got:  no kernel")
    assert bounds_of(Gate(relative_l2=0.1), unknown, 2.0).relative_l2 == 0.1
    want = logits((3, 4))
    reason = reason_of(judge_distance(measure(want, want, None), 0.0, bounds_of(Gate(), unknown, 2.0), Gate()))
    assert reason.startswith("no bound is known for this precision (look at the output of the step `rounding`)")


def test_a_cosine_is_held_where_the_gate_has_one() -> None:
    """It is no default: a relative distance says more."""
    want = logits((1, 0), (0, 1))
    wide = Bounds(10.0, "")
    assert failed(want[::-1], want, wide, Gate(cosine=0.9)) == ["cosine"]
    assert failed(want[::-1], want, wide, Gate()) == []


def checks_of_loss(lost: int, *, margin: float, proof: bool = False, gate: Gate | None = None) -> list[bool]:
    """Return the outcomes for 1,000 labelled samples."""
    labels = np.zeros(1000, dtype=np.int64)
    want = np.tile(np.array([1, 0], dtype=np.float32), (1000, 1))
    got = want.copy()
    got[:lost] = (0, 1)
    loss = judge_drop(Answers(1000, lost, 0), margin)
    checks = judge_loss(measure(got, want, labels), loss, gate or Gate(), margin, require_proof=proof)
    assert {check.question for check in checks} == {Question.GOOD_ENOUGH}
    return [check.passed for check in checks]


@pytest.mark.parametrize(
    ("lost", "gate", "passed"),
    [
        (0, Gate(), [True]),
        (1, Gate(), [True]),
        (10, Gate(), [False]),
        (1, Gate(top1_agreement=0.99, class_drop=0.001), [True, True]),
        (10, Gate(top1_agreement=0.99), [False, False]),
    ],
)
def test_a_part_of_the_samples_fails_what_it_disproves(lost: int, gate: Gate, passed: list[bool]) -> None:
    """Of 64 samples one lost answer is 1.6 %, which shows no loss of a point; ten show one."""
    labels = np.zeros(64, dtype=np.int64)
    want = np.tile(np.array([1, 0], dtype=np.float32), (64, 1))
    got = want.copy()
    got[:lost] = (0, 1)
    loss = judge_drop(Answers(64, lost, 0), 0.01, is_part=True)
    checks = judge_loss_of_part(measure(got, want, labels), loss, gate, 0.01)
    assert [check.passed for check in checks] == passed
    assert {check.question for check in checks} == {Question.GOOD_ENOUGH}


def test_a_loss_within_the_margin_is_good_enough() -> None:
    """Below the margin it passes; beyond it fails; between it passes unless proof is asked for."""
    assert checks_of_loss(2, margin=0.01) == [True]
    assert checks_of_loss(11, margin=0.01) == [False]
    assert checks_of_loss(9, margin=0.01) == [True]
    assert checks_of_loss(9, margin=0.01, proof=True) == [False]


def test_bounds_of_agreement_and_of_a_class_are_held_where_the_gate_has_them() -> None:
    """They are no defaults."""
    assert checks_of_loss(2, margin=0.01, gate=Gate(top1_agreement=0.999, class_drop=0.001)) == [True, False, False]


def test_rows_are_judged_by_their_worst_batch_size() -> None:
    """Each of both distances is that of the batch size where it is largest, which is named."""
    rows = (
        RowCheck(batch=1, reference_l2=0.05, relative_l2=0.0),
        RowCheck(batch=3, reference_l2=0.01, relative_l2=0.2),
    )
    far, moved = judge_rows(rows, BOUNDS)
    assert (far.value, far.passed) == ("0.05 at batch 1", False)
    assert (moved.value, moved.passed) == ("0.2 at batch 3", False)


def test_a_part_of_the_samples_may_lie_a_little_farther() -> None:
    """Fewer samples vary more than all of them, for which the bound is made."""
    far, _ = judge_rows((RowCheck(batch=1, reference_l2=0.043, relative_l2=0.0),), BOUNDS)
    assert far.passed


def test_no_rows_are_not_judged() -> None:
    """An artifact without runs at batch sizes has no check of its rows."""
    assert judge_rows((), BOUNDS) == ()


def test_a_rejection_names_the_question_that_failed_first() -> None:
    """A reference that is worth nothing makes other checks void, and an unfaithful artifact's loss is no network's."""

    def check(question: Question, *, passed: bool) -> GateCheck:
        return GateCheck(metric=question.value, bound="1", value="2", passed=passed, question=question)

    enough = check(Question.GOOD_ENOUGH, passed=False)
    faithful = check(Question.FAITHFUL, passed=False)
    assert reason_of((check(Question.REFERENCE, passed=True),)) == ""
    assert reason_of((enough,)).startswith("faithful, but this network loses too much in this precision: good enough 2")
    assert reason_of((enough, faithful)).startswith("not faithful")
    assert reason_of((enough, check(Question.REFERENCE, passed=False))).startswith("the reference is not worth")


@pytest.mark.parametrize(
    ("graph", "part", "expected"),
    [
        pytest.param(Graph.FP16, 0.01, 0.02, id="fp16"),
        pytest.param(Graph.INT8, 0.01, 0.04, id="int8"),
        pytest.param(Graph.INT8, 0.3, 0.9, id="not-a-lost-part"),
        pytest.param(Graph.INT8, 0.6, 1.2, id="beyond-it-alone"),
    ],
)
def test_an_image_beyond_the_ranges_may_fill_a_part(graph: Graph, part: float, expected: float) -> None:
    """A part of a quantised graph may lie twice as far as that of another type, but no farther than a lost one."""
    rounding = rounding_of(graph, high=0.01, sample=0.02).model_copy(update={"part_l2_high": (part,)})
    assert bounds_of(Gate(), rounding, 2).part_l2 == pytest.approx((expected,))


@pytest.mark.parametrize(
    ("graph", "drawn", "expected"),
    [
        pytest.param(Graph.FP16, 0.01, 0.02, id="many-samples"),
        pytest.param(Graph.FP16, 0.1, 0.14, id="few-samples"),
        pytest.param(Graph.FP16, 5.0, 0.9, id="not-a-lost-part"),
        pytest.param(Graph.INT8, 0.1, 0.14, id="int8"),
        pytest.param(Graph.INT8, 0.02, 0.04, id="int8-of-many-samples"),
    ],
)
def test_a_part_of_few_samples_has_room_for_another_draw(graph: Graph, drawn: float, expected: float) -> None:
    """The bound is the larger one: the multiple of the quantile, or another draw of the rounding by other kernels."""
    rounding = rounding_of(graph, high=0.01, sample=0.02)
    rounding = rounding.model_copy(update={"part_l2_high": (0.01,), "part_l2_redrawn": (drawn,)})
    assert bounds_of(Gate(), rounding, 2).part_l2 == pytest.approx((expected,))


@pytest.mark.parametrize(
    ("low", "expected"),
    [
        pytest.param(None, 0.002, id="unknown"),
        pytest.param(0.015, 0.002, id="even-samples"),
        pytest.param(0.004, 0.001, id="one-sample-makes-it"),
    ],
)
def test_less_rounding_need_show_where_one_sample_makes_it(low: float | None, expected: float) -> None:
    """An artifact that is judged without that sample has less."""
    rounding = ROUNDING.model_copy(update={"relative_l2_low": low})
    assert bounds_of(Gate(), rounding, 2).least_l2 == pytest.approx(expected)
