"""The arrays of `data.tensors` → samples for calibration and for validation, in a fixed shuffled order, with labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.errors import DataError
from model_artifacts.records import Task
from pipeline.stages.common.tensors.arrays import open_arrays, problem, require_finite

if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.planning.project import Project

_ROWS, _TABLE = 1, 2
"""The axes of labels: samples, and several labels or numbers of each."""


class SplitTensors(NamedTuple):
    """The samples of a file, apart from their values."""

    total: int
    """The number of all samples in the file."""
    truth: npt.NDArray[Any] | None
    """The labels of the samples for validation, as the task has them; None without labels."""


def split_tensors(project: Project, files: tuple[Path, Path]) -> SplitTensors:
    """Write the samples, and return their labels.

    Args:
        project: the source stage must have run.
        files: the .npy files for calibration and for validation, which get a field for each input.

    Raises:
        ConfigError: the arrays are not the model's inputs, have NaN or infinity, or changed since the source was made.
        DataError: the file is damaged, or its labels are none of this task.
    """
    config, source = project.config.data, project.source()
    path = Path(str(config.tensors))
    arrays = open_arrays(project, path, config.labels)
    if {*arrays.specs} != {*source.named_inputs}:
        text = f"{path} has other arrays than the source was made with; run `{project.doit} source`"
        raise problem(project, text)
    arrays = arrays.ordered([spec.name for spec in source.named_inputs])
    order = np.random.default_rng(0).permutation(arrays.count)
    first = min(config.calibration, max(1, arrays.count // 2))
    for file, chosen in zip(files, (order[:first], order[first : first + config.validation]), strict=True):
        rows = np.lib.format.open_memmap(file, "w+", arrays.row, (len(chosen),))  # type: ignore[no-untyped-call]  # numpy's own
        arrays.rows(chosen, rows)
        rows.flush()
        require_finite(project, arrays, rows)
    truth = arrays.truth()
    if truth is None:
        return SplitTensors(arrays.count, None)
    labels = labels_of(truth, source.task, source.classes, f"{path}, array {arrays.labels!r}")
    return SplitTensors(arrays.count, labels[order[first : first + config.validation]])


def labels_of(truth: npt.NDArray[Any], task: Task, count: int, where: str) -> npt.NDArray[Any]:
    """Return an array of labels as its task has them. Pure.

    Args:
        truth: (samples, …), as the file has it.
        task: the task; of tensors any numbers are labels, which the user's own metric understands.
        count: the number of the network's classes, labels or numbers.
        where: the file and the array, for messages.

    Returns:
        int64 (samples,) classes; uint8 (samples, labels) zeros and ones; or float64 (samples, numbers).

    Raises:
        DataError: the array has another type or shape, or values that are no labels.
    """
    if task in {Task.CLASSIFICATION, Task.EMBEDDING}:
        if truth.dtype.kind not in "iu" or truth.ndim != _ROWS:
            raise _wrong(where, "whole numbers (samples,): the class of each sample", f"{truth.dtype} {truth.shape}")
        outside = np.flatnonzero((truth < 0) | (truth >= count))
        if task is Task.CLASSIFICATION and outside.size:
            raise _wrong(where, f"classes from 0 to {count - 1}", f"{truth[outside[0]]} of sample {outside[0]}")
        return truth.astype(np.int64)
    if task is Task.TENSORS:
        return truth
    rows = truth[:, None] if truth.ndim == _ROWS and count == 1 else truth
    if rows.ndim != _TABLE or rows.shape[1] != count:
        raise _wrong(where, f"numbers (samples, {count})", f"{truth.dtype} {truth.shape}")
    right = np.isin(rows, (0, 1)) if task is Task.MULTILABEL else np.isfinite(rows)
    if not right.all():
        sample, column = np.argwhere(~right)[0]
        expected = "1 for a label that the sample has, 0 for others" if task is Task.MULTILABEL else "finite numbers"
        raise _wrong(where, expected, f"{rows[sample, column]} of sample {sample}")
    return rows.astype(np.uint8 if task is Task.MULTILABEL else np.float64)


def _wrong(where: str, expected: str, got: str) -> DataError:
    return DataError("the array of `data.labels` has no labels of this task", where=where, expected=expected, got=got)
