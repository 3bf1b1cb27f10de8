"""The arrays of `data.tensors` beside the inputs of a network: names, types, shapes and their number."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.errors import SourceError, listed
from model_artifacts.host.files import write_bytes
from model_artifacts.host.hashes import describe_file
from model_artifacts.sessions.feeds.samples import Samples
from pipeline.records import tensor_spec
from pipeline.stages.common.tensors.arrays import open_arrays, problem, require_finite
from pipeline.stages.common.tensors.axes import require_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from model_artifacts.records import FileRecord, Preprocessing, TensorSpec
    from pipeline.planning.project import Project
    from pipeline.stages.common.tensors.arrays import Arrays

_KEPT = 16
"""Samples that the source stage keeps for later stages: twice as many as the largest batch that it tries."""
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def samples_for(project: Project, model: nn.Module) -> Samples | None:
    """Return samples of the configured arrays in the order of a network's parameters; None without `data.tensors`.

    Args:
        project: the configuration.
        model: the network of torch.

    Raises:
        ConfigError: the arrays cannot be read, or are not the network's inputs.
        DataError: their values are damaged.
    """
    arrays = _arrays(project)
    if arrays is None:
        return None
    if text := parameter_problem(arrays.names, inspect.signature(model.forward)):
        raise problem(project, f"{arrays.path}: {text}")
    names = [name for name in inspect.signature(model.forward).parameters if name in arrays.names]
    return _kept(project, arrays.ordered(names or arrays.names))


def graph_samples(project: Project, inputs: Sequence[TensorSpec]) -> Samples | None:
    """Return samples of the configured arrays in the order of a graph's inputs; None without `data.tensors`.

    Args:
        project: the configuration.
        inputs: the inputs of the ONNX file; a text is a dynamic axis.

    Raises:
        ConfigError: the arrays cannot be read, or are not the graph's inputs.
        DataError: their values are damaged.
    """
    arrays = _arrays(project)
    if arrays is None:
        return None
    if text := graph_problem(arrays.specs, inputs):
        raise problem(project, f"{arrays.path}: {text}")
    return _kept(project, arrays.ordered([spec.name for spec in inputs]))


def _arrays(project: Project) -> Arrays | None:
    """Return the configured arrays; None without `data.tensors`."""
    config = project.config.data
    return None if config.tensors is None else open_arrays(project, Path(config.tensors), config.labels)


def _kept(project: Project, arrays: Arrays) -> Samples:
    require_axes(project, arrays.specs)
    rows = arrays.first(_KEPT)
    require_finite(project, arrays, rows)
    return Samples(rows)


def specs_of(inputs: Preprocessing | Samples) -> tuple[TensorSpec, ...]:
    """Return the specs of a model's own inputs; none for images."""
    if not isinstance(inputs, Samples):
        return ()
    row = inputs.rows.dtype
    return tuple(tensor_spec(name, row[name].shape, str(row[name].base)) for name in inputs.names)


def require_other_names(inputs: Preprocessing | Samples, outputs: Sequence[str]) -> None:
    """Refuse an input that has the name of an output: in a graph both would be one tensor.

    Args:
        inputs: the preprocessing, or samples of the inputs.
        outputs: the names of the outputs.

    Raises:
        SourceError: there is one.
    """
    given = inputs.names if isinstance(inputs, Samples) else ()
    if both := sorted({*given} & {*outputs}):
        raise SourceError(
            "an input and an output of the network have the same name",
            where=repr(both[0]),
            expected="another name for each, for a graph knows tensors by their names",
            got=f"inputs {listed(given)}; outputs {listed(list(outputs))}",
            fix="rename the parameter of `forward` with its array, or the output",
        )


def takes_several(inputs: Preprocessing | Samples) -> bool:
    """Return true for a model of several inputs."""
    return isinstance(inputs, Samples) and len(inputs.names) > 1


def one_shape(inputs: Preprocessing | Samples) -> tuple[int, ...]:
    """Return the shape of a sample of the first input."""
    return tuple(inputs.rows.dtype[0].shape) if isinstance(inputs, Samples) else inputs.input_shape


def store_samples(project: Project, inputs: Preprocessing | Samples) -> FileRecord | None:
    """Write the samples of a model of tensors, and return the file's record; None for images, whose file is removed."""
    path = project.paths.source_samples
    if not isinstance(inputs, Samples):
        path.unlink(missing_ok=True)
        return None
    buffer = io.BytesIO()
    np.save(buffer, inputs.rows, allow_pickle=False)
    write_bytes(path, buffer.getvalue())
    return describe_file(path, project.paths.root)


def parameter_problem(names: Sequence[str], signature: inspect.Signature) -> str:
    """Return what keeps arrays from being the arguments of a network's `forward`; empty if they are. Pure.

    Artifacts know no arguments of Python: the arrays must be the first parameters, and the others need defaults.
    """
    parameters = signature.parameters.values()
    first = [item for item in parameters if item.kind in _BY_PLACE]
    if any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in parameters) and not first:
        return ""
    taken = [item.name for item in first]
    needed = [item.name for item in parameters if item.default is inspect.Parameter.empty and item.kind in _BY_PLACE]
    if {*taken[: len(names)]} == {*names} and {*needed} <= {*names}:
        return ""
    shown = listed([name if name in needed else f"{name} (has a default)" for name in taken]) or "nothing"
    advice = "rename the arrays, or wrap the network in a module whose `forward` takes them alone"
    return f"expected the arguments of the network's `forward`, {shown}, got {listed(list(names))}; {advice}"


def graph_problem(specs: Sequence[TensorSpec], inputs: Sequence[TensorSpec]) -> str:
    """Return what keeps arrays from being the inputs of a graph; empty if they are. Pure."""
    found = {spec.name: spec for spec in specs}
    names = [spec.name for spec in inputs]
    if found.keys() != {*names}:
        return f"expected the inputs of the ONNX file, {listed(names)}, got {listed(list(found))}; rename the arrays"
    for spec in inputs:
        given = found[spec.name]
        fits = len(given.shape) == len(spec.shape) and all(
            isinstance(there, str) or there in {0, here}
            for here, there in zip(given.shape[1:], spec.shape[1:], strict=False)
        )
        if given.dtype != spec.dtype or not fits:
            return f"array {spec.name!r}: expected {_shown(spec)} as in the ONNX file, got {_shown(given)}"
    return ""


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype} ({', '.join(map(str, spec.shape))})"
