"""A user's ONNX file, with the external data beside it → one model in memory. Reads are bounded, in one folder."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from model_artifacts.errors import SourceError, listed, one_line
from model_artifacts.host.plain_files import open_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_BYTES = 2**31 - 2**20
"""Most bytes of a file with all external data: later stages keep a graph in one protobuf message, at most 2 GiB."""
_EXTERNAL = onnx.TensorProto.EXTERNAL
_SUB_BYTE = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1}
"""Types with two values in a byte."""


class ReadBytes(NamedTuple):
    """A file that was read."""

    path: Path
    """The file beside the model, as the model names it."""
    sha256: str
    """SHA-256 of all of its bytes."""


class ReadModel(NamedTuple):
    """A model with all of its data in memory."""

    model: onnx.ModelProto
    sha256: str
    """SHA-256 of the file's own bytes."""
    external: tuple[ReadBytes, ...]
    """The files of external data, in the order of their paths."""


def read_model(file: Path) -> ReadModel:
    """Read an ONNX file, and take in its external data.

    Args:
        file: the ONNX file. Its external data lie in its folder, or below it.

    Raises:
        SourceError: a file is missing, damaged or too large, or external data lie outside of the model's folder.
    """
    data = _bytes_of(file, MOST_BYTES, "the ONNX file", "`model.onnx` in pipeline.yaml to name the file")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as exc:
        raise _damaged(file, one_line(exc)) from exc
    if not model.graph.node:
        raise _damaged(file, "no graph in it")
    external = _take_in(model, file, MOST_BYTES - len(data))
    return ReadModel(model, hashlib.sha256(data).hexdigest(), external)


def _damaged(file: Path, got: str) -> SourceError:
    return SourceError(
        "the ONNX file is damaged, or no ONNX file",
        where=str(file),
        expected="a serialized ModelProto, as `onnx.save` writes it",
        got=got,
        fix="copy or export the file again",
    )


def _bytes_of(path: Path, most: int, what: str, fix: str) -> bytes:
    try:
        with open_plain(path) as stream:
            data = stream.read(most + 1)
    except OSError as exc:
        got = exc.strerror or one_line(exc)
        raise SourceError(
            f"{what} cannot be read", where=str(path), got=got, fix=f"put it there, or set {fix}"
        ) from exc
    if len(data) > most:
        raise SourceError(
            f"{what} is too large for one ONNX file",
            where=str(path),
            expected=f"a model of at most {MOST_BYTES:,} bytes with its data",
            got=f"more than {most:,} bytes in this file",
        )
    return data


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of a graph: initialisers and attributes, those of graphs in attributes too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors_of(inner)


def _take_in(model: onnx.ModelProto, file: Path, most: int) -> tuple[ReadBytes, ...]:
    """Put external data into the model itself, and return the files that they came from."""
    apart: dict[str, list[onnx.TensorProto]] = {}
    for tensor in tensors_of(model.graph):
        if tensor.data_location == _EXTERNAL:
            location = external_data_helper.ExternalDataInfo(tensor).location
            apart.setdefault(location, []).append(tensor)
    found = []
    for location, tensors in sorted(apart.items()):
        path = _place_of(location, file, tensors[0].name)
        data = _bytes_of(path, most, "the model's external data", "the model up with its data beside it")
        most -= len(data)
        for tensor in tensors:
            _fill(tensor, data, path)
        found.append(ReadBytes(path, hashlib.sha256(data).hexdigest()))
    return tuple(found)


def _place_of(location: str, file: Path, tensor: str) -> Path:
    """Return the place of external data.

    Raises:
        SourceError: it lies outside of the folders that the model's file has, as it is named and behind links.
    """
    parts = PurePosixPath(location)
    path = file.parent / location
    homes = {file.parent.resolve(), file.resolve().parent}
    inside = any(path.resolve().is_relative_to(home) for home in homes)
    if not location or parts.is_absolute() or ".." in parts.parts or not inside:
        raise SourceError(
            "the ONNX file takes data from outside of its folder",
            where=f"{file}, tensor {tensor!r}",
            expected="a file beside it",
            got=repr(location),
            fix="do not use the file if you do not know why; else save it again: onnx.save(onnx.load(FILE), NEW)",
        )
    return path


def _fill(tensor: onnx.TensorProto, data: bytes, path: Path) -> None:
    """Put a tensor's bytes into it.

    Raises:
        SourceError: the file ends before them, or they are no tensor of this shape.
    """
    info = external_data_helper.ExternalDataInfo(tensor)
    start = info.offset or 0
    count = math.prod(tensor.dims)
    size = _bytes_per(tensor.data_type, count)
    length = len(data) - start if info.length is None else info.length
    if size is None or length != size or start < 0 or start + size > len(data):
        raise SourceError(
            "the model's external data are damaged, or another model's",
            where=f"{path}, tensor {tensor.name!r}",
            expected=f"{size:,} bytes from byte {start:,} on, in a file of {len(data):,} bytes" if size else "numbers",
            got=f"a length of {length:,} bytes",
            fix="copy the model again, with the data that were saved with it",
        )
    tensor.raw_data = data[start : start + size]
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _bytes_per(kind: int, count: int) -> int | None:
    """Return the bytes of so many values of an ONNX type; None for text."""
    if kind in {onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED} or kind not in onnx.TensorProto.DataType.values():
        return None
    if kind in _SUB_BYTE:
        return (count + 1) // 2
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def named(external: tuple[ReadBytes, ...]) -> str:
    """Return the names of files of external data as a phrase; empty if there are none."""
    return f" with {listed([item.path.name for item in external])}" if external else ""
