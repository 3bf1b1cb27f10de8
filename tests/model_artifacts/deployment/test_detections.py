"""A detector's raw outputs as boxes, equal to torchvision's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_convert
from torchvision.ops import nms as torchvision_nms

from model_artifacts.deployment.detections import classes_of, decode, nms
from model_artifacts.errors import RunError
from model_artifacts.records import Activation, BoxAxis, BoxFormat, BoxUnits, Decoding, TensorSpec

SIZE = (48, 64)
TWO = {"boxes": "boxes", "scores": "scores"}


def boxes_and_scores(seed: int, count: int, classes: int = 3) -> tuple[np.typing.NDArray[Any], np.typing.NDArray[Any]]:
    """Return boxes (1, count, 4) as left, top, right, bottom in pixels, and scores (1, count, classes)."""
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 40, (1, count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(1, 20, (1, count, 2))], axis=2)
    boxes[..., [1, 3]] = boxes[..., [1, 3]].clip(0, SIZE[0])
    boxes[..., 3] = np.maximum(boxes[..., 3], boxes[..., 1] + 0.5)
    scores = random.uniform(0, 1, (1, count, classes)).round(2)  # some are equal
    return boxes.astype(np.float32), scores.astype(np.float32)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 60), threshold=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]))
def test_the_suppression_is_torchvisions(seed: int, count: int, threshold: float) -> None:
    """The same boxes stay, in the same order."""
    boxes, scores = boxes_and_scores(seed, count, 1)
    expected = torchvision_nms(torch.from_numpy(boxes[0]), torch.from_numpy(scores[0, :, 0]), threshold)
    np.testing.assert_array_equal(nms(boxes[0], scores[0, :, 0], threshold), expected.numpy())


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), form=st.sampled_from(BoxFormat), units=st.sampled_from(BoxUnits))
def test_detections_are_torchvisions(seed: int, form: BoxFormat, units: BoxUnits) -> None:
    """Each class is suppressed apart, whatever the format and the units of the boxes."""
    boxes, scores = boxes_and_scores(seed, 40)
    given_boxes = torch.from_numpy(boxes)
    if form is BoxFormat.CXCYWH:
        given_boxes = box_convert(given_boxes, "xyxy", "cxcywh")
    if units is BoxUnits.NORMALISED:
        given_boxes = given_boxes / torch.tensor([SIZE[1], SIZE[0]] * 2)
    decoding = Decoding(**TWO, format=form, units=units, score_threshold=0.305, iou_threshold=0.4, most=1000)
    (found,) = decode({"boxes": given_boxes.numpy(), "scores": scores}, decoding, SIZE)
    places, labels = np.nonzero(scores[0] > 0.305)
    kept = batched_nms(
        torch.from_numpy(boxes[0, places]), torch.from_numpy(scores[0, places, labels]), torch.from_numpy(labels), 0.4
    ).numpy()
    wanted = sorted(
        zip(-scores[0, places, labels][kept], labels[kept], map(tuple, boxes[0, places][kept]), strict=True)
    )
    got = sorted(zip(-found.scores, found.labels, map(tuple, found.boxes), strict=True))
    assert [item[:2] for item in got] == [item[:2] for item in wanted]
    corners = [np.array([item[2] for item in side]) for side in (got, wanted)]
    np.testing.assert_allclose(corners[0], corners[1], atol=1e-3)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(
    ("activation", "expected", "label"),
    [(Activation.NONE, 0.8, 1), (Activation.SIGMOID, 1 / (1 + np.exp(-0.8)), 1), (Activation.SOFTMAX, 0.42, 0)],
    ids=lambda item: item.value if isinstance(item, Activation) else "",
)
def test_scores_come_from_the_activation(activation: Activation, expected: float, label: int) -> None:
    """A softmax has a background in front of the classes, which is no answer."""
    boxes = np.array([[[1, 2, 9, 8]]], np.float32)
    decoding = Decoding(**TWO, format=BoxFormat.XYXY, activation=activation, most=1)
    (found,) = decode({"boxes": boxes, "scores": np.array([[[0.1, 0.8]]], np.float32)}, decoding, SIZE)
    if activation is Activation.SOFTMAX:
        expected = float(torch.softmax(torch.tensor([0.1, 0.8]), 0)[1])
    assert found.scores[0] == pytest.approx(expected)
    assert found.labels[0] == label


def test_one_map_has_boxes_and_scores() -> None:
    """A map (4 + classes, boxes), as of YOLO."""
    one = np.zeros((2, 6, 3), np.float32)
    one[0, :, 1] = [20, 10, 8, 4, 0.1, 0.9]
    first, second = decode({"out": one}, Decoding(score_threshold=0.2), SIZE)
    assert first.boxes.tolist() == [[16, 8, 24, 12]]
    assert first.labels.tolist() == [1]
    assert len(second.scores) == 0


@pytest.mark.parametrize("one", [False, True], ids=["two-outputs", "one-output"])
@pytest.mark.parametrize("axis", [None, *BoxAxis], ids=lambda item: item.value if item else "usual")
@pytest.mark.parametrize("objectness", [False, True], ids=["plain", "objectness"])
def test_heads_of_any_order_mean_the_same(axis: BoxAxis | None, *, one: bool, objectness: bool) -> None:
    """Axes in either order, and scores with an objectness that multiplies them, give the detections of plain ones."""
    boxes, scores = boxes_and_scores(5, 30)
    whole = np.random.default_rng(6).uniform(0.5, 1, (1, 30, 1)).astype(np.float32)
    shared: dict[str, Any] = {"format": BoxFormat.XYXY, "score_threshold": 0.3, "iou_threshold": 0.4}
    (expected,) = decode({"boxes": boxes, "scores": scores * whole if objectness else scores}, two(**shared), SIZE)
    numbers = np.concatenate([whole, scores], axis=2) if objectness else scores
    decoding = two(one=one, **shared, box_axis=axis, objectness=objectness)
    given = {"out": np.concatenate([boxes, numbers], axis=2)} if one else {"boxes": boxes, "scores": numbers}
    if axis is BoxAxis.LAST or (axis is None and one):
        given = {name: array.swapaxes(1, 2) for name, array in given.items()}
    (found,) = decode(given, decoding, SIZE)
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-6)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert len(found.scores)
    specs = [
        TensorSpec(name=name, shape=("batch", *array.shape[1:]), dtype="float32", layout="")
        for name, array in given.items()
    ]
    assert classes_of(decoding, specs) == 3


def two(*, one: bool = False, **changes: Any) -> Decoding:
    """Return a decoding of two outputs, or of one."""
    return Decoding(**({} if one else TWO), **changes)


def test_an_objectness_is_no_class() -> None:
    """It has the sigmoid of its own logit; alone it is refused, and so is one beside a background."""
    boxes = np.array([[[1, 2, 9, 8]]], np.float32)
    decoding = two(format=BoxFormat.XYXY, activation=Activation.SIGMOID, objectness=True)
    (found,) = decode({"boxes": boxes, "scores": np.array([[[1.0, -1.0, 2.0]]], np.float32)}, decoding, SIZE)
    assert found.labels.tolist() == [1, 0]
    assert found.scores[0] == pytest.approx(1 / (1 + np.exp(-1)) / (1 + np.exp(-2)))
    specs = [
        TensorSpec(name=name, shape=("batch", 9, size), dtype="float32", layout="")
        for name, size in (("boxes", 4), ("scores", 1))
    ]
    with pytest.raises(RunError, match=r"(?s)no class.*a score of any object and of one class or more"):
        classes_of(decoding, specs)
    with pytest.raises(
        RunError, match=r"(?s)boxes \(batch, 4, boxes\) and scores \(batch, objectness \+ classes, boxes\)"
    ):
        classes_of(two(objectness=True, box_axis=BoxAxis.LAST), specs)
    with pytest.raises(ValueError, match="whose background says the same"):
        two(activation=Activation.SOFTMAX, objectness=True)
    assert not {"box_axis", "objectness"} & two().model_dump().keys()


def test_boxes_are_cut_to_the_image() -> None:
    """What lies outside as a whole, or has no area, is no detection; the best of all stay."""
    boxes = np.array([[[-5, -5, 10, 10], [70, 0, 80, 9], [5, 5, 5, 9], [60, 40, 99, 99]]], np.float32)
    scores = np.array([[[0.5], [0.9], [0.9], [0.7]]], np.float32)
    decoding = Decoding(**TWO, format=BoxFormat.XYXY)
    (found,) = decode({"boxes": boxes, "scores": scores}, decoding, SIZE)
    assert found.boxes.tolist() == [[60, 40, 64, 48], [0, 0, 10, 10]]
    (found,) = decode({"boxes": boxes, "scores": scores}, decoding.model_copy(update={"most": 1}), SIZE)
    assert found.scores.tolist() == [np.float32(0.7)]


@pytest.mark.parametrize("broken", ["boxes", "scores"])
def test_an_image_that_is_not_finite_has_no_detections(broken: str) -> None:
    """Other images keep theirs."""
    boxes, scores = (np.concatenate([item, item]) for item in boxes_and_scores(0, 20))
    outputs = {"boxes": boxes, "scores": scores}
    outputs[broken][0, 3, 1] = np.nan
    first, second = decode(outputs, Decoding(**TWO, format=BoxFormat.XYXY), SIZE)
    assert len(first.scores) == 0
    assert len(second.scores) > 0


def specs(**shapes: tuple[int, ...]) -> list[TensorSpec]:
    """Return outputs of these shapes for one image."""
    return [
        TensorSpec(name=name, shape=("batch", *shape), dtype="float32", layout="") for name, shape in shapes.items()
    ]


def test_the_number_of_classes_is_that_of_the_scores() -> None:
    """Without the background."""
    two = specs(scores=(9, 3), boxes=(9, 4))
    assert classes_of(Decoding(**TWO), two) == 3
    assert classes_of(Decoding(**TWO, activation=Activation.SOFTMAX), two) == 2
    assert classes_of(Decoding(), specs(out=(7, 9))) == 3


@pytest.mark.parametrize(
    ("decoding", "outputs", "message"),
    [
        (Decoding(**TWO), specs(boxes=(9, 5), scores=(9, 3)), r"boxes \(batch, boxes, 4\)"),
        (Decoding(**TWO), specs(boxes=(9, 4), scores=(8, 3)), "does not suit"),
        (Decoding(**TWO), specs(boxes=(9, 4)), "does not suit"),
        (Decoding(**TWO, activation=Activation.SOFTMAX), specs(boxes=(9, 4), scores=(9, 1)), "background"),
        (Decoding(), specs(out=(4, 9)), r"4 \+ classes"),
        (Decoding(), specs(out=(5,)), r"4 \+ classes"),
        (Decoding(), specs(boxes=(9, 4), scores=(9, 3)), "the names of two"),
    ],
    ids=["five", "counts", "missing", "background", "no class", "flat", "two"],
)
def test_other_outputs_are_refused(decoding: Decoding, outputs: list[TensorSpec], message: str) -> None:
    """The message has what there is."""
    with pytest.raises(RunError, match=rf"(?s){message}.*\(batch, "):
        classes_of(decoding, outputs)
