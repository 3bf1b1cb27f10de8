"""The labels in a file of arrays, as each task has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import ConfigError, DataError
from model_artifacts.records import Task
from pipeline.planning.project import Project
from pipeline.stages.common.tensors.arrays import open_arrays
from pipeline.stages.data.tensors import labels_of
from tests.support.configs import MATRIX

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

CLASSES = np.array([0, 2, 1])
ROWS = np.array([[0, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("truth", "task", "count", "dtype", "shape"),
    [
        (CLASSES.astype(np.uint8), Task.CLASSIFICATION, 3, "int64", (3,)),
        (CLASSES * 1000, Task.EMBEDDING, 3, "int64", (3,)),
        (ROWS.astype(bool), Task.MULTILABEL, 3, "uint8", (2, 3)),
        (ROWS.astype(np.float32), Task.REGRESSION, 3, "float64", (2, 3)),
        (CLASSES, Task.REGRESSION, 1, "float64", (3, 1)),
        (ROWS.astype(np.float16), Task.TENSORS, 8, "float16", (2, 3)),
    ],
    ids=["classes", "classes-of-vectors", "sets", "numbers", "one-number", "own-metric"],
)
def test_labels_are_those_of_the_task(
    truth: npt.NDArray[Any], task: Task, count: int, dtype: str, shape: tuple[int, ...]
) -> None:
    """The same values, in the type of other sources of labels."""
    found = labels_of(truth, task, count, "a file")
    assert (str(found.dtype), found.shape) == (dtype, shape)
    assert found.ravel().tolist() == truth.ravel().tolist()


@pytest.mark.parametrize(
    ("truth", "task", "message"),
    [
        (CLASSES.astype(np.float32), Task.CLASSIFICATION, r"whole numbers \(samples,\).*float32 \(3,\)"),
        (ROWS, Task.CLASSIFICATION, r"whole numbers \(samples,\).*int64 \(2, 3\)"),
        (CLASSES + 1, Task.CLASSIFICATION, "classes from 0 to 2.*3 of sample 1"),
        (CLASSES - 1, Task.CLASSIFICATION, "classes from 0 to 2.*-1 of sample 0"),
        (CLASSES, Task.MULTILABEL, r"numbers \(samples, 3\).*\(3,\)"),
        (ROWS + 1, Task.MULTILABEL, "1 for a label that the sample has.*2 of sample 0"),
        (ROWS[:, :2], Task.REGRESSION, r"numbers \(samples, 3\).*\(2, 2\)"),
        (np.array([[0, np.nan, 1]]), Task.REGRESSION, "finite numbers.*nan of sample 0"),
    ],
    ids=["fractions", "sets", "beyond", "negative", "classes", "counts", "columns", "nan"],
)
def test_other_labels_are_refused(truth: npt.NDArray[Any], task: Task, message: str) -> None:
    """The message has the file, the type and the first sample that is wrong."""
    with pytest.raises(DataError, match=rf"(?s)no labels of this task.*inputs\.npz.*{message}"):
        labels_of(truth, task, 3, "inputs.npz, array 'answers'")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("answer", r"expected the name of an array in the file, got 'answer'; it has vector, answers, names"),
        ("names", r"array 'names': expected numbers, .* got <U1 \(4,\)"),
        ("short", r"array 'short': expected a label for each sample, got 3"),
        ("one", r"array 'one': expected numbers, with the sample as first axis, got int64 \(\)"),
    ],
    ids=["unknown", "texts", "fewer", "one-for-all"],
)
def test_an_array_that_is_no_label_is_refused(tmp_path: Path, labels: str, message: str) -> None:
    """At the setting that names it, before the other arrays are looked at."""
    arrays = {"vector": np.zeros((4, 2), np.float32), "answers": np.arange(4), "names": np.array([*"abcd"])}
    arrays |= {"short": np.arange(3), "one": np.array(1)}
    kept = {name: array for name, array in arrays.items() if name not in {"short", "one"} - {labels}}
    np.savez(tmp_path / "inputs.npz", **kept)  # type: ignore[arg-type]  # numpy's own types take no mapping of names
    project = _project(tmp_path, f"data: {{tensors: inputs.npz, labels: {labels}}}\n")
    with pytest.raises(ConfigError, match=rf"pipeline\.yaml:1:37: `data.labels`: .*inputs\.npz: {message}"):
        open_arrays(project, tmp_path / "inputs.npz", labels)


def _project(folder: Path, text: str) -> Project:
    (folder / "pipeline.yaml").write_text(text + MATRIX)
    return Project.load(folder / "pipeline.yaml", ())


def test_labels_are_no_input(tmp_path: Path) -> None:
    """Nor without the setting, where their type would be refused."""
    np.savez(tmp_path / "inputs.npz", vector=np.zeros((4, 2), np.float32), answers=np.arange(4, dtype=np.uint8))
    project = _project(tmp_path, "data: {tensors: inputs.npz}\n")
    arrays = open_arrays(project, tmp_path / "inputs.npz", "answers")
    assert arrays.names == ("vector",)
    truth = arrays.truth()
    assert truth is not None
    assert truth.tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="array 'answers': expected float32, int64, int32, got uint8"):
        open_arrays(project, tmp_path / "inputs.npz")
