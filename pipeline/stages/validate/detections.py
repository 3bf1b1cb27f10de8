"""Rows of a detector's outputs → detections, by the configured decoding or the user's own function; and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.deployment.detections import NONE, Detections, classes_of, decode
from model_artifacts.errors import RunError, one_line
from pipeline.stages.common.rows import of_each_output, spans_of
from pipeline.stages.validate.tasks.detection import NEAR, DetectionCase, deserving, judge
from pipeline.stages.validate.yardsticks import function_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from model_artifacts.records import Decoding, GateCheck, TensorSpec
    from pipeline.config.settings import Gates
    from pipeline.planning.project import Project
    from pipeline.stages.common.rows import Span
    from pipeline.stages.validate.tasks.case import TaskVerdict

    Rows = npt.NDArray[np.float32]
    Outputs = Mapping[str, Rows]

_BATCH = 32
_PARTS = 3
"""What a function returns for an image: boxes, scores and labels."""


class Detector(NamedTuple):
    """The step from rows of outputs to detections."""

    spans: tuple[Span, ...]
    """The columns of each output, under the name that the network gives it."""
    size: tuple[int, int]
    """The height and the width of the network's input, in pixels."""
    decoding: Decoding | None = None
    """The settings; None takes the function."""
    function: Callable[[dict[str, Rows]], object] | None = None
    name: str = ""
    """The name of that function."""
    classes: int | None = None
    """The number of classes; None if unknown."""

    def at(self, spans: Sequence[Span], size: tuple[int, int]) -> Detector:
        """Return the same step for images of another size.

        Args:
            spans: the columns of each output there.
            size: the height and the width of the images.
        """
        here = tuple(
            own._replace(shape=span.shape, columns=span.columns) for own, span in zip(self.spans, spans, strict=True)
        )
        return self._replace(spans=here, size=size)

    @property
    def threshold(self) -> float:
        """The score above which a box is a detection; 0 if the function decides."""
        return self.decoding.score_threshold if self.decoding else 0.0

    @property
    def most(self) -> int:
        """The largest number of detections of an image."""
        return self.decoding.most if self.decoding else _MOST

    def detections(self, rows: Rows, *, near: bool = False) -> tuple[Detections, ...]:
        """Return the detections of each image.

        Args:
            rows: (samples, values of all outputs).
            near: True for those with scores that nearly reach the threshold, too.

        Raises:
            RunError: the user's function fails, or returns something else than detections.
        """
        found: list[Detections] = []
        decoding = self.decoding
        if decoding is not None and near:
            decoding = decoding.model_copy(update={"score_threshold": NEAR * decoding.score_threshold})
        for start in range(0, len(rows), _BATCH):
            outputs = of_each_output(rows[start : start + _BATCH], self.spans)
            if decoding is not None:
                found += decode(outputs, decoding, self.size)
            else:
                found += self._by_function(outputs)
        return tuple(found)

    def case(self, rows: Rows, reference: Rows, truth: npt.NDArray[np.generic] | None = None) -> DetectionCase:
        """Return the detections of an artifact beside the reference's.

        Args:
            rows: the artifact's outputs (samples, values of all outputs).
            reference: the FP32 network's.
            truth: the labels of the samples; None without.
        """
        own, want = self.detections(rows), self.detections(reference, near=True)
        return DetectionCase(own, want, truth, self.threshold, self.most)

    def judge(
        self,
        rows: Rows,
        reference: Rows,
        truth: npt.NDArray[np.generic] | None,
        gates: Gates,
        *,
        is_part: bool,
    ) -> TaskVerdict:
        """Judge an artifact's detections: are they good enough?

        Args:
            rows: the artifact's outputs (samples, values of all outputs).
            reference: the FP32 network's.
            truth: the labels of the samples; None without.
            gates: the margin.
            is_part: True for an artifact that is never deployed, on a part of the samples.
        """
        case = self.case(rows, reference, truth)
        return judge(case._replace(margin=gates.margin, is_part=is_part, require_proof=gates.require_proof))

    def deserving(self, reference: Rows, truth: npt.NDArray[np.generic] | None) -> tuple[GateCheck, ...]:
        """Judge the FP32 network's own detections: are they worth a comparison?

        Args:
            reference: its outputs (samples, values of all outputs).
            truth: the labels of the samples; None without.
        """
        return deserving(self.case(reference, reference, truth))

    def _by_function(self, outputs: Outputs) -> list[Detections]:
        """Return the detections of a batch by the user's function, which gets copies; none if an output is not finite.

        Raises:
            RunError: it fails, or returns something else than detections.
        """
        count = len(next(iter(outputs.values())))
        finite = np.ones(count, dtype=bool)
        for values in outputs.values():
            finite &= np.isfinite(values).reshape(count, -1).all(axis=1)
        kept = {name: values[finite].copy() for name, values in outputs.items()}
        if self.function is None:
            raise RunError("a detector needs `model.decoding` or `model.postprocess`")
        try:
            given: Any = self.function(kept) if finite.any() else []
        except Exception as exc:  # the user's code raises any type
            raise RunError(f"the function {self.name} fails", got=one_line(exc)) from exc
        if not isinstance(given, (list, tuple)) or len(given) != finite.sum():
            got = f"{len(given)} entries" if isinstance(given, (list, tuple)) else type(given).__name__
            raise self._wrong(f"a list with an entry for each of {finite.sum()} images", got)
        results = iter([self._checked(entry, place) for place, entry in enumerate(given)])
        return [next(results) if right else NONE for right in finite]

    def _checked(self, entry: object, place: int) -> Detections:
        if not isinstance(entry, (list, tuple)) or len(entry) != _PARTS:
            raise self._wrong("boxes, scores and labels for each image", f"{type(entry).__name__} at image {place}")
        boxes, scores, labels = map(np.asarray, entry)
        count = len(scores) if scores.ndim == 1 else -1
        if not count and not boxes.size and not labels.size:
            return NONE
        shapes = f"{boxes.shape}, {scores.shape}, {labels.shape} at image {place}"
        if (boxes.shape, labels.shape) != ((count, 4), (count,)) or {boxes.dtype.kind, scores.dtype.kind} - {*"fiu"}:
            raise self._wrong("arrays of numbers (detections, 4), (detections,), (detections,)", shapes)
        if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
            raise self._wrong("boxes as left, top, right, bottom in pixels of the network's input", f"image {place}")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise self._wrong("scores from 0 to 1", f"{scores.min():g} to {scores.max():g} at image {place}")
        last = np.inf if self.classes is None else self.classes - 1
        if labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels <= last)).all():
            known = "" if self.classes is None else f" to {last}"
            raise self._wrong(f"labels as whole numbers from 0{known}", f"{labels.dtype} {labels[:5]} at image {place}")
        order = np.argsort(-scores, kind="stable")
        return Detections(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64)).at(order)

    def _wrong(self, expected: str, got: str) -> RunError:
        return RunError(f"the function {self.name} returns no detections", expected=expected, got=got)


_MOST = 100
"""COCO's largest number of detections of an image."""


def detector_of(project: Project) -> Detector:
    """Return the step from a project's outputs to detections.

    Args:
        project: source and data must have run.

    Raises:
        RecordError: a record is missing.
        RunError: the outputs do not suit the decoding, or the function cannot be imported.
    """
    source, data, model = project.source(), project.data(), project.config.model
    spans = _named(spans_of(source), source.outputs)
    size = (source.pictures.height, source.pictures.width)
    if model.decoding is not None:
        return Detector(spans, size, model.decoding, classes=classes_of(model.decoding, source.outputs))
    if model.postprocess is None:
        raise RunError("a detector needs `model.decoding` or `model.postprocess`")
    function = function_of(model.postprocess, "postprocess")
    return Detector(spans, size, None, function, model.postprocess, len(data.class_names) if data.class_names else None)


def _named(spans: Sequence[Span], outputs: Sequence[TensorSpec]) -> tuple[Span, ...]:
    """Return the columns of each output under its name, also of a single one."""
    return tuple(
        span._replace(name=spec.name, shape=tuple(int(size) for size in spec.shape[1:]))
        for span, spec in zip(spans, outputs, strict=True)
    )
