"""The configured ONNX file → the model's source: checked, in one file, with the names of its ends."""

from __future__ import annotations

import logging
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import onnx
import torch

from model_artifacts.errors import CrashedError, SourceError, one_line
from model_artifacts.host.environment import now, tools
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file, sha256_of
from model_artifacts.records import Task, WeightsOrigin
from model_artifacts.sessions.arithmetic import call, relative_l2, tensors, torch_batch
from pipeline.adapters import onnx_graph, onnx_rewrites
from pipeline.adapters.onnx_files import named, read_model, tensors_of
from pipeline.adapters.onnx_network import OnnxNetwork
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import OnnxSource, ReadFile, SourceRecord, tensor_spec
from pipeline.stages.common.probe import probe_batch, shape_of
from pipeline.stages.source import network
from pipeline.stages.source.graph_file.checks import ends_of, require_raw_boxes, require_reference
from pipeline.stages.source.graph_file.names import class_names
from pipeline.stages.source.graph_file.widened import OwnRun, require_own_outputs, take_in_float32
from pipeline.stages.source.outputs import check_outputs
from pipeline.stages.source.spec import with_reads
from pipeline.stages.source.tensors.signature import graph_samples, specs_of, store_samples
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import TypeVarTuple, Unpack

    from model_artifacts.records import Preprocessing
    from model_artifacts.sessions.arithmetic import Result
    from model_artifacts.sessions.feeds.samples import Samples
    from pipeline.adapters.onnx_files import ReadBytes, ReadModel
    from pipeline.planning.project import Project

    Ts = TypeVarTuple("Ts")

T = TypeVar("T")

log = logging.getLogger(__name__)

SAME = 1e-4
"""The largest relative L2 distance between an image's outputs in two batches. FP32's rounding makes about 1e-6."""
FLOOR = 1e-6
"""The root mean square of a difference that counts as none, as in the stage `export`."""
_IMAGES = 3
_UNSAFE = re.compile(r"\W", re.ASCII)
"""Characters of a name that some runtimes and servers do not take."""


class Tried(NamedTuple):
    """Facts that running a graph has shown."""

    shapes: tuple[tuple[int, ...], ...]
    """The shape of each output for one image."""
    batch: int | None
    """The one batch size that the graph takes; None if it takes any."""
    trouble: str
    """The reason why a graph with a dynamic axis takes one image alone; empty if it takes any number."""


def make_graph_source(project: Project, name: str) -> SourceRecord:
    """Store the configured ONNX file, with its external data taken in, as the model's source.

    Args:
        project: the project; its preprocessing is written.
        name: the ONNX file.

    Raises:
        SourceError: the file is missing, damaged, or cannot be the FP32 reference.
        StorageError: the results cannot be written.
    """
    config, prepared, file = project.config, project.config.preprocessing, Path(name)
    key = key_of(project, Step("source", project.plan.model))  # before the file can change
    read = _read(name)
    model, task = read.model, config.model.task
    if task is Task.DETECTION:
        require_raw_boxes(model, name)
    types = take_in_float32(model, name)
    ends = ends_of(model.graph, prepared.input_shape if prepared else None, task, name)
    plain = _use_plain_names(model.graph)
    outputs = plain[len(ends.inputs) :]
    spec = _inputs(project, model, file)
    require_reference(model, name)
    rerun = project.command(Step("source", project.plan.model))
    own = require_own_outputs(model, file, types, spec, ends.batch, rerun) if types else OwnRun()
    whole = _cut_softmax(model) if task is Task.CLASSIFICATION else None
    several = tuple(outputs) if len(outputs) > 1 else ()
    written = onnx.ModelProto(metadata_props=model.metadata_props)
    tried = _store(project, file, model, whole, spec, ends.batch)
    _say(file, ends.batch, tried, cut=whole is not None)
    reads = tuple(map(_record, read.external))
    record = SourceRecord(
        key=with_reads(key, reads),
        built_at=now(),
        toolchain=tools("onnx", "onnxruntime-gpu"),
        model=config.model.name,
        factory="",
        origin=WeightsOrigin.ONNX,
        origin_detail=_detail(file, read, types, cut=whole is not None, compared=not own.uncompared),
        weights=describe_file(project.paths.source_onnx, project.paths.root),
        parameters=_parameters(model),
        classes=sum(map(math.prod, tried.shapes)),
        class_names=_class_names(written, tried.shapes[0], task, name),
        replaced_head=None,
        reads=reads,
        preprocessing=prepared,
        task=task,
        sample_shape=tried.shapes[0] if task.has_parts and not several else None,
        named_outputs=tuple(map(tensor_spec, several, tried.shapes)),
        onnx=_described(model, plain[0], outputs, types, tried.batch, own),
        named_inputs=specs_of(spec),
        samples=store_samples(project, spec),
    )
    return project.write(project.paths.source, record)


def _described(  # noqa: PLR0913 - the facts of a file
    model: onnx.ModelProto, first: str, outputs: Sequence[str], types: tuple[str, ...], batch: int | None, own: OwnRun
) -> OnnxSource:
    """Return what the record says of a file: its first input, its only output, and how it was run."""
    return OnnxSource(
        input=first,
        output=outputs[0] if len(outputs) == 1 else None,
        opset=onnx_graph.opset_of(model),
        batch=batch,
        widened=types,
        own_distance=own.distance,
        uncompared=own.uncompared,
    )


def _store(  # noqa: PLR0913 - two graphs, and how they are run
    project: Project,
    file: Path,
    model: onnx.ModelProto,
    whole: onnx.ModelProto | None,
    spec: Preprocessing | Samples,
    batch: int | None,
) -> Tried:
    """Store a graph, once it is tried; also beside the whole file's softmax, if it was cut off."""
    onnx_graph.forget_origin(model)
    with replacing(project.paths.source_onnx) as temporary:
        onnx_graph.save(model, temporary)
        tried = _apart_from_us(project, file, try_graph, temporary, spec, project.config.model.task, batch)
        if whole is not None:
            _require_softmax(project, file, temporary, whole, spec, tried.batch)
    return tried


def _detail(file: Path, read: ReadModel, widened: Sequence[str], *, cut: bool, compared: bool) -> str:
    """Return the file's name, with the other files that it reads and the changes to its graph."""
    ends = ", in front of its softmax" if cut else ""
    types = f", its {' and '.join(widened)} in float32" if widened else ""
    unseen = "" if compared else ", not compared with the file's own run"
    return f"{file.name}{named(read.external)}{ends}{types}{unseen}"


def _read(name: str) -> ReadModel:
    """Read an ONNX file, and check it.

    Raises:
        SourceError: it is missing, damaged, or changes meanwhile.
    """
    file = Path(name)
    read = read_model(file)
    if read.sha256 != sha256_of(file):
        raise SourceError("the ONNX file changed while it was read", where=name, fix="run it again when it is written")
    onnx_rewrites.drop_initialised_inputs(read.model.graph)
    _check(read.model, file)
    return read


def _inputs(project: Project, model: onnx.ModelProto, file: Path) -> Preprocessing | Samples:
    """Return samples of the configured arrays, or else the written preprocessing.

    Raises:
        SourceError: there is neither.
    """
    found = graph_samples(project, onnx_graph.tensor_specs(list(model.graph.input))) or project.config.preprocessing
    if found is None:
        raise _no_preprocessing(file)
    return found


def _cut_softmax(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Take the softmax off the end of a graph, and return the model as it was; None if it has no softmax there."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    return whole if onnx_rewrites.cut_softmax(model.graph) else None


def _class_names(model: onnx.ModelProto, shape: tuple[int, ...], task: Task, name: str) -> tuple[str, ...] | None:
    """Return the names of the classes in a file; None without any, and for a task without classes."""
    if not task.has_classes:
        return None
    return class_names(model, None if task.takes_several else shape[0], name)


def _no_preprocessing(file: Path) -> SourceError:
    return SourceError(
        "nothing in an ONNX file says how images were prepared in its training",
        where=str(file),
        expected="`preprocessing` in pipeline.yaml, with resize, crop, interpolation, mean and std",
        fix="write the training's own; for pixels from 0 to 1 without more, `mean: [0, 0, 0], std: [1, 1, 1]`",
    )


def _check(model: onnx.ModelProto, file: Path) -> None:
    """Run ONNX's checker. It infers no shapes: many files that run have notes of shapes that are wrong.

    Raises:
        SourceError: the graph is not valid.
    """
    try:
        onnx.checker.check_model(onnx_graph.without_weights(model))
    except onnx.checker.ValidationError as exc:
        raise SourceError(
            "the ONNX file is not valid", where=str(file), got=one_line(exc), fix="export or copy the file again"
        ) from exc


def _use_plain_names(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Give all ends names of letters, digits and underscores, and return them."""
    found = []
    for value in (*graph.input, *graph.output):
        old = value.name
        plain = _UNSAFE.sub("_", old)
        plain = plain if plain[:1].isalpha() else f"value_{plain}"
        while plain != old and plain in onnx_rewrites.values_of(graph):
            plain += "_"
        if plain != old:
            log.info("the name %r has characters that not every runtime takes: artifacts call it %r", old, plain)
            onnx_rewrites.rename(graph, old, plain)
        found.append(plain)
    return tuple(found)


def _record(item: ReadBytes) -> ReadFile:
    here, path = Path.cwd(), item.path.absolute()
    return ReadFile(path=(path.relative_to(here) if path.is_relative_to(here) else path).as_posix(), sha256=item.sha256)


def _parameters(model: onnx.ModelProto) -> int:
    return sum(math.prod(item.dims) for item in tensors_of(model.graph) if item.data_type == onnx.TensorProto.FLOAT)


def _apart_from_us(project: Project, file: Path, function: Callable[[Unpack[Ts]], T], *arguments: Unpack[Ts]) -> T:
    """Run the graph in a process of its own: there are graphs that end ONNX Runtime by a signal."""
    try:
        return run_isolated(function, *arguments, rerun=project.command(Step("source", project.plan.model)))
    except CrashedError as exc:
        raise SourceError(
            "ONNX Runtime cannot run the ONNX file", where=str(file), got=str(exc).replace("\n", ";")
        ) from exc


def _require_softmax(  # noqa: PLR0913 - two graphs, and how they are run
    project: Project, file: Path, stored: Path, whole: onnx.ModelProto, spec: Preprocessing | Samples, batch: int | None
) -> None:
    """Refuse a file whose last softmax is none over the classes, so that its logits would mean something else."""
    with tempfile.TemporaryDirectory() as folder:
        uncut = Path(folder) / "whole.onnx"
        onnx_graph.save(whole, uncut)
        distance = _apart_from_us(project, file, softmax_apart, stored, uncut, spec, batch)
    if distance > SAME:
        raise SourceError(
            "the ONNX file ends in a softmax that is not over the classes",
            where=str(file),
            expected="one over the last axis of (batch, classes)",
            got=f"another output than the softmax of what is in front of it: {distance:.1g} apart (relative L2)",
            fix="end the graph with the logits of each image, or set `model.task: tensors`",
        )


def softmax_apart(stored: Path, uncut: Path, spec: Preprocessing | Samples, batch: int | None) -> float:
    """Return the relative L2 distance of the softmax of a graph's logits to the output of the whole file.

    Args:
        stored: the graph that gives logits.
        uncut: the whole file.
        spec: the preprocessing, or samples of the inputs.
        batch: the one batch size that both take; None if they take any.
    """
    images = torch_batch(probe_batch(spec, _IMAGES))
    logits, shares = (call(OnnxNetwork(file, batch), images) for file in (stored, uncut))
    return relative_l2(*(tensors(item)[0] for item in (torch.softmax(tensors(logits)[0], 1), shares)))


def try_graph(stored: Path, spec: Preprocessing | Samples, task: Task, batch: int | None) -> Tried:
    """Run a graph, and refuse one that gives no output for each image, or another one in another run.

    Args:
        stored: the ONNX file.
        spec: the preprocessing, or samples of the inputs.
        task: the task of the model.
        batch: the size of the batch that its input is written for; None if that axis is dynamic.

    Raises:
        SourceError: it does.
    """
    images = torch_batch(probe_batch(spec, _IMAGES))
    trouble = _trouble_of_batches(OnnxNetwork(stored), OnnxNetwork(stored, 1), images) if batch is None else ""
    batch = 1 if trouble else batch
    graph = OnnxNetwork(stored, batch)
    names = graph.output_names if len(graph.output_names) > 1 else ()
    shapes = network.output_shapes(graph, shape_of(spec), task, names)
    try:
        check_outputs(graph, spec, task, names)
    except SourceError as exc:
        raise SourceError(
            exc.what,
            got=exc.got,
            fix="cut the graph where its output is right: onnx.utils.extract_model(FILE, NEW, [INPUT], [OUTPUT]); for "
            "any numbers set `model.task: tensors`",
        ) from exc
    if _apart(call(graph, images), call(graph, images)) > SAME:
        raise SourceError(
            "the ONNX file gives another output for the same images",
            expected="the same output in every run",
            fix="export the network in evaluation mode, without random numbers",
        )
    return Tried(shapes, batch, trouble)


def _apart(found: Result, expected: Result) -> float:
    """Return the largest relative L2 of an output; what is not finite counts as 0, for the data refuse it by name."""
    cleaned = [[output.nan_to_num() for output in tensors(result)] for result in (found, expected)]
    pairs = [pair for pair in zip(*cleaned, strict=True) if (pair[0] - pair[1]).double().square().mean().sqrt() > FLOOR]
    return max((relative_l2(*pair) for pair in pairs), default=0.0)


def _trouble_of_batches(graph: OnnxNetwork, lone: OnnxNetwork, images: Result) -> str:
    """Return the reason why a graph with a dynamic axis takes one image alone; empty if it takes several."""
    expected = call(lone, images)
    try:
        found = call(graph, images)
    except Exception as exc:  # noqa: BLE001 - onnxruntime's exceptions have no common public base
        return one_line(exc)
    shapes = [[tuple(output.shape) for output in tensors(result)] for result in (found, expected)]
    if shapes[0] != shapes[1]:
        return f"shape {shapes[0]} for {_IMAGES} images"
    distance = _apart(found, expected)
    return f"outputs that are {distance:.1g} apart (relative L2) beside other images" if distance > SAME else ""


def _say(file: Path, written: int | None, tried: Tried, *, cut: bool) -> None:
    if cut:
        log.info("%s ends in a softmax: the logits in front of it are the output, and their softmax is the same", file)
    if tried.trouble:
        log.warning("WARNING: %s has a dynamic batch, but takes one image alone: %s", file, tried.trouble)
    if written or tried.trouble:
        log.info("%s is made for batches of %d; `export` lets it take any, if it can", file, tried.batch)
