"""Variant with another input or output → its ONNX file, for a runtime or for TensorRT's builder."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import onnx

from model_artifacts.errors import BuildError, UnsupportedError, one_line
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import ImageInput, Precision
from pipeline.adapters import onnx_graph
from pipeline.adapters.onnx_ends import inputs_of, outputs_of, with_ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import AxisRange, TensorSpec, Variant
    from pipeline.adapters.tensorrt_builder import EngineRequest
    from pipeline.planning.project import Project
    from pipeline.records import Artifact


class Ends(NamedTuple):
    """Inputs and outputs of an artifact."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def store_graph(project: Project, artifact: Artifact) -> Artifact:
    """Write the ONNX file of a variant with another input or output, and return the artifact with it.

    Args:
        project: the project.
        artifact: the same with the network's own input and output.

    Raises:
        UnsupportedError: the graph or the precision cannot have this input or output.
        BuildError: the result is no valid graph.
        StorageError: the file cannot be written.
    """
    variant = artifact.variant
    if artifact.file is None:
        raise BuildError(f"{variant.id} has no graph")
    path = project.paths.graph(variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        _write(project, variant, project.file(artifact.file), temporary)
    ends = ends_in_words(project, variant, artifact.inputs, artifact.outputs)
    file = describe_file(path, project.paths.root)
    return artifact.model_copy(update={"file": file, "inputs": ends.inputs, "outputs": ends.outputs})


@contextmanager
def with_own_ends(project: Project, variant: Variant, request: EngineRequest) -> Iterator[EngineRequest]:
    """Yield the request of an engine for the graph with the variant's input and output.

    The graph is written beside nothing that stays: the engine is the artifact.

    Raises:
        UnsupportedError: the graph or the precision cannot have this input or output.
        BuildError: the result is no valid graph.
    """
    if variant.io.is_plain:
        yield request
        return
    with tempfile.TemporaryDirectory(prefix="io-") as folder:
        plain, older = Path(folder, "model.onnx"), Path(folder, "model.opset17.onnx")
        _write(project, variant, request.onnx, plain)
        if request.onnx_opset17:
            _write(project, variant, request.onnx_opset17, older)
        yield replace(request, onnx=plain, onnx_opset17=older if request.onnx_opset17 else None)


def ends_in_words(
    project: Project, variant: Variant, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Ends:
    """Return the inputs and outputs of an artifact with the meaning of their values.

    Args:
        project: the project.
        variant: the variant.
        inputs: those of the artifact, or of the graph with the network's own.
        outputs: the same.
    """
    if variant.io.is_plain:
        return Ends(inputs, outputs)
    return Ends(inputs_of(variant.io, project.source().preprocessing, inputs), outputs_of(variant.io, outputs))


def require_ends(ends: Ends, engine: Ends) -> None:
    """Check that an engine has the types and shapes that its variant says.

    Raises:
        BuildError: the builder has changed them.
    """
    for want, got in zip((*ends.inputs, *ends.outputs), (*engine.inputs, *engine.outputs), strict=True):
        if (want.name, want.shape, want.dtype) != (got.name, got.shape, got.dtype):
            raise BuildError(
                "the engine has another input or output than its graph",
                expected=f"{want.name}: {want.dtype} {want.shape}",
                got=f"{got.name}: {got.dtype} {got.shape}",
            )


def named_as(
    outputs: tuple[TensorSpec, ...], graph: tuple[TensorSpec, ...], axes: tuple[AxisRange, ...]
) -> tuple[TensorSpec, ...]:
    """Return an engine's outputs with the names that their dynamic axes have in the graph: engines keep none.

    Args:
        outputs: the outputs as the builder shows them.
        graph: the outputs of the graph.
        axes: the axes of the images that the engine's profile leaves open.

    Raises:
        BuildError: an output has one size where it must follow such an axis.
    """
    wanted, named = {spec.name: spec.shape for spec in graph}, {axis.name for axis in axes}
    found = []
    for spec in outputs:
        pairs = list(zip(spec.shape[1:], wanted.get(spec.name, spec.shape)[1:], strict=True))
        if any(want in named and isinstance(size, int) for size, want in pairs):
            raise BuildError(
                "the engine has one size of an output that follows the input",
                where=f"output {spec.name!r}",
                expected=f"({', '.join(map(str, wanted[spec.name]))})",
                got=f"({', '.join(map(str, spec.shape))})",
                fix="let the network take the input's own size, such as `size=image.shape[-2:]`, and no constant",
            )
        shape = (want if isinstance(size, str) and isinstance(want, str) else size for size, want in pairs)
        found.append(spec.model_copy(update={"shape": (spec.shape[0], *shape)}))
    return tuple(found)


def _write(project: Project, variant: Variant, graph: Path, file: Path) -> None:
    if variant.io.input is ImageInput.FLOAT16 and variant.precision is Precision.FP32:
        raise UnsupportedError("float16 images are rounded more than strict FP32 may round")
    try:
        model = with_ends(onnx.load(graph), variant.io, project.source().preprocessing)
        onnx_graph.check(model)
    except UnsupportedError:
        raise
    except Exception as exc:  # protobuf's DecodeError, OSError, and the errors of the checker and of shape inference
        raise BuildError(f"{graph} cannot be given another input or output", got=one_line(exc)) from exc
    onnx_graph.save(model, file)
