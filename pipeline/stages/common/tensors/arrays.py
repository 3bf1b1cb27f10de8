"""A npz file with an array for each input of the model → its types and shapes, or problems; and its samples.

The arrays are the network's own inputs: nothing is resized, scaled or normalised.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import DataError, listed, one_line
from pipeline.config.loading import placed_error
from pipeline.records import tensor_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.errors import ConfigError
    from model_artifacts.records import TensorSpec
    from pipeline.config.files.yaml_source import Location
    from pipeline.planning.project import Project

PLACE: Location = ("data", "tensors")
"""The setting that names the file."""
LABELS: Location = ("data", "labels")
"""The setting that names the array of labels."""
TYPES = ("float32", "int64", "int32")
"""The types that every runtime takes as an input."""
_WIDER = {"float64": "float32", "float16": "float32", "bool": "int32", "uint8": "int32", "int8": "int32"}
_AXES = 8
"""The most axes of TensorRT's tensors."""
_LEAST = 2
"""One sample for calibration and one for validation."""
_AT_ONCE = 4096
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What zipfile and numpy raise for a file that is damaged, or is none of theirs; RuntimeError for an encrypted one."""


@dataclass(frozen=True)
class Arrays:
    """The arrays of a file, in the model's order once it is known."""

    path: Path
    specs: tuple[TensorSpec, ...]
    """The name, the type and the shape of each; the first axis is the sample."""
    count: int
    """The number of samples."""
    labels: str | None = None
    """The name of the array of labels, which is no input; None without one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays' names."""
        return tuple(spec.name for spec in self.specs)

    def ordered(self, names: Sequence[str]) -> Arrays:
        """Return the arrays in the order of these names, which are theirs."""
        found = {spec.name: spec for spec in self.specs}
        return replace(self, specs=tuple(found[name] for name in names))

    @property
    def row(self) -> np.dtype[Any]:
        """The type of a sample: a field for each input."""
        return np.dtype([(spec.name, spec.dtype, tuple(map(int, spec.shape[1:]))) for spec in self.specs])

    def rows(self, chosen: npt.NDArray[np.int64] | slice, target: npt.NDArray[Any]) -> None:
        """Copy samples, one array after the other, so that one of them at a time is in memory.

        Args:
            chosen: the samples' numbers.
            target: receives them, in the type `row`.

        Raises:
            DataError: the file is damaged, or has changed since it was opened.
        """
        for name in self.names:
            target[name] = self._values(name, chosen)

    def truth(self) -> npt.NDArray[Any] | None:
        """Return the labels of all samples, as they are; None without labels.

        Raises:
            DataError: the file is damaged, or has changed since it was opened.
        """
        return None if self.labels is None else self._values(self.labels, slice(None))

    def _values(self, name: str, chosen: npt.NDArray[np.int64] | slice) -> npt.NDArray[Any]:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                values: npt.NDArray[Any] = arrays[name][chosen]
        except (*_DAMAGED, IndexError) as exc:  # an IndexError of fewer samples than before
            raise DataError(
                "the arrays of `data.tensors` cannot be read",
                where=str(self.path),
                expected="the whole file, as it was when its arrays were first looked at",
                got=one_line(exc),
                fix="write it again, as `numpy.savez` does",
            ) from exc
        return values

    def first(self, count: int) -> npt.NDArray[Any]:
        """Return the first samples, as many as there are."""
        rows = np.empty(min(count, self.count), dtype=self.row)
        self.rows(slice(len(rows)), rows)
        return rows


def open_arrays(project: Project, path: Path, labels: str | None = None) -> Arrays:
    """Read the names, types and shapes of a file's arrays, and check that they can be a model's inputs.

    Args:
        project: the configuration, for the place of problems.
        path: the npz file, of `numpy.savez` or `numpy.savez_compressed`.
        labels: the name of the array of labels; None without one.

    Raises:
        ConfigError: it is no such file, or an array is of another type or number of samples; all problems are listed.
    """
    try:
        found = dict(_headers(path))
    except _DAMAGED as exc:
        text = f"expected a npz file with an array for each input of the model, as `numpy.savez` writes it, got {path}"
        raise problem(project, f"{text}: {one_line(exc)}") from exc
    truth = None if labels is None else found.pop(labels, None)
    if labels is not None and (text := _label_problem(labels, truth, found)):
        raise placed_error(project.config_file, project.plan.model, [(LABELS, f"`data.labels`: {path}: {text}")])
    if problems := list(_problems(found)):
        placed = [(PLACE, f"`data.tensors`: {path}: {text}") for text in problems]
        raise placed_error(project.config_file, project.plan.model, placed)
    specs = tuple(tensor_spec(name, shape[1:], str(dtype)) for name, (shape, dtype) in found.items())
    return Arrays(path, specs, next(iter(found.values()))[0][0], labels)


def problem(project: Project, text: str) -> ConfigError:
    """Return the error of a file of arrays, with the line of the setting that names it."""
    return placed_error(project.config_file, project.plan.model, [(PLACE, f"`data.tensors`: {text}")])


_Header = tuple[tuple[int, ...], "np.dtype[Any]"]


def _headers(path: Path) -> Iterator[tuple[str, _Header]]:
    """Yield the name, shape and type of each array, without reading its values."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]  # numpy's own
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read[version](stream)  # type: ignore[no-untyped-call]  # the same
                yield member.removesuffix(".npy"), (shape, dtype)


def _problems(found: dict[str, _Header]) -> Iterator[str]:
    """Yield all that keeps the arrays from being inputs. Pure."""
    if not found:
        yield "it holds no array; expected one for each input of the model"
    for name, (shape, dtype) in found.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            yield f"array {name!r}: expected a name of letters, digits and `_`, with a letter first"
        if str(dtype) not in TYPES:
            kind = _WIDER.get(str(dtype), "float32")
            advice = f"; cast it, such as `.astype(numpy.{kind})`" if dtype.kind in "fiub" else ""
            yield f"array {name!r}: expected {', '.join(TYPES)}, got {dtype}{advice}"
        if not 1 <= len(shape) <= _AXES or 0 in shape[1:]:
            yield f"array {name!r}: expected 1 to {_AXES} axes, the first of them the sample, got shape {shape}"
    counts = {name: shape[0] for name, (shape, _) in found.items() if shape}
    if len(set(counts.values())) > 1:
        shown = listed([f"{count} of {name!r}" for name, count in counts.items()])
        yield f"expected as many samples in every array, got {shown}"
    elif counts and min(counts.values()) < _LEAST:
        yield f"expected {_LEAST} samples or more, for calibration and for validation, got {min(counts.values())}"


def _label_problem(name: str, truth: _Header | None, others: dict[str, _Header]) -> str:
    """Return what keeps an array from being the labels of the samples; empty if it is them. Pure."""
    if truth is None:
        return f"expected the name of an array in the file, got {name!r}; it has {listed([*others]) or 'none'}"
    shape, dtype = truth
    if dtype.kind not in "biuf" or not shape:
        return f"array {name!r}: expected numbers, with the sample as first axis, got {dtype} {shape}"
    counts = {given[:1] for given, _ in others.values()}
    if counts and counts != {shape[:1]}:
        return f"array {name!r}: expected a label for each sample, got {shape[0]}"
    return ""


def require_finite(project: Project, arrays: Arrays, rows: npt.NDArray[Any]) -> None:
    """Refuse samples with NaN or infinity.

    Raises:
        ConfigError: there are some; the message names the array.
    """
    for spec in arrays.specs:
        if spec.dtype != "float32":
            continue
        for start in range(0, len(rows), _AT_ONCE):
            part = np.ascontiguousarray(rows[spec.name][start : start + _AT_ONCE])
            broken = np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))
            if len(broken):
                text = (
                    f"array {spec.name!r}: expected finite values, got NaN or infinity in {len(broken)} samples or more"
                )
                raise problem(project, f"{arrays.path}: {text}")
