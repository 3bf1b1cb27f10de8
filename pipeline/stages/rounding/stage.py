"""Model and precision → the distance that this precision's own rounding makes (`<model>/rounding/`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from model_artifacts.errors import CrashedError, RunError, one_line
from model_artifacts.host.environment import now, tools, version
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.progress import Bars
from model_artifacts.records import Graph, Precision
from model_artifacts.sessions.arithmetic import call, tensors, torch_batch
from model_artifacts.sessions.feeds.batches import rows_of_batch, size_of
from model_artifacts.sessions.onnx import run_stand_in
from model_artifacts.sessions.torch_model import fold_batch_norms
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.keys import key_of
from pipeline.records import OutputRounding, Rounding, RoundingRun
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.probe import inputs_of, shape_of
from pipeline.stages.common.rows import load_rows, rows_of, spans_of
from pipeline.stages.common.samples import loader_of
from pipeline.stages.rounding.emulation import RUNS, emulating
from pipeline.stages.rounding.spec import SAMPLES
from pipeline.stages.rounding.spread import farthest, spread_of, widest
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import FileRecord
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs
    from pipeline.planning.plan import Arithmetic
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.stages.common.rows import Span
    from pipeline.stages.rounding.spread import Spread

    Logits = npt.NDArray[np.float32]

_BATCH = 8
"""Images at once. The sums of a convolution need all patches of an image in memory."""


def measure_rounding(project: Project, arithmetic: Arithmetic) -> Rounding:
    """Emulate a precision on the first validation samples, and compare the logits with the FP32 reference.

    Args:
        project: the source and data stages must have run, for a quantised graph also `quantize`.
        arithmetic: the graph and the precision.

    Returns:
        the record, also if the network or the graph cannot be run; it has the reason then.

    Raises:
        RecordError: a record is missing or damaged.
        StorageError: the results cannot be written.
    """
    key = key_of(project, project.plan.rounding_step(arithmetic))
    data = project.data()
    images = loader_of(project, data.validation)(0, SAMPLES)
    spans = spans_of(project.source())
    reference = load_rows(project.file(data.reference), spans)[: size_of(images)]
    quantized = arithmetic.precision in QUANTIZED_PRECISIONS
    try:
        results = _quantized(project, arithmetic, images) if quantized else _emulated(project, arithmetic, images)
        trouble = ""
    except (RunError, CrashedError) as exc:
        # The gate may have a bound of its own. Else the validation rejects, with this reason.
        results, trouble = {}, str(exc)
    task = project.source().task
    spreads = [
        [spread_of(logits[:, columns], reference[:, columns], shape, task) for logits in results.values()]
        for _, shape, columns in spans
    ]
    each = [widest(found) for found in spreads]
    found = farthest(each)
    kept = _keep(project, arithmetic, next(iter(results.values()))) if quantized and results else None
    record = Rounding(
        key=key,
        built_at=now(),
        toolchain=tools("torch", "onnxruntime-gpu"),
        graph=arithmetic.graph,
        precision=arithmetic.precision,
        emulator=_emulator(project, quantized=quantized),
        samples=size_of(images),
        runs=tuple(
            RoundingRun(name=name, relative_l2=largest.relative_l2 if (largest := farthest(of_run)) else None)
            for name, of_run in zip(results, zip(*spreads, strict=True), strict=True)
        ),
        relative_l2_high=found.relative_l2_high if found else None,
        relative_l2_low=found.relative_l2_low if found else None,
        sample_l2_high=found.sample_l2_high if found else None,
        margin_noise=found.margin_noise if found else None,
        part_l2_high=found.part_l2_high if found and len(spans) == 1 else (),
        part_l2_redrawn=found.part_l2_redrawn if found and len(spans) == 1 else (),
        part_sizes=found.part_sizes if found and len(spans) == 1 else (),
        outputs=_of_outputs(spans, each) if len(spans) > 1 else (),
        trouble=trouble,
        repeatable=arithmetic.precision is not Precision.FP32
        or bool(trouble)
        or _is_repeatable(project, rows_of_batch(images, slice(_BATCH))),
        logits=kept,
    )
    return project.write(project.paths.rounding(arithmetic), record)


def _emulator(project: Project, *, quantized: bool) -> str:
    """Return the libraries that emulate."""
    torch_, onnxruntime = f"torch {version('torch')}", f"ONNX Runtime {version('onnxruntime-gpu')}"
    if quantized:
        return onnxruntime
    return f"{torch_}, {onnxruntime}" if project.source().onnx else torch_


def _of_outputs(spans: Sequence[Span], found: Sequence[Spread | None]) -> tuple[OutputRounding, ...]:
    return tuple(
        OutputRounding(
            name=span.name,
            relative_l2_high=spread.relative_l2_high if spread else None,
            relative_l2_low=spread.relative_l2_low if spread else None,
            sample_l2_high=spread.sample_l2_high if spread else None,
            part_l2_high=spread.part_l2_high if spread else (),
            part_l2_redrawn=spread.part_l2_redrawn if spread else (),
            part_sizes=spread.part_sizes if spread else (),
        )
        for span, spread in zip(spans, found, strict=True)
    )


def _emulated(project: Project, arithmetic: Arithmetic, images: Batch) -> dict[str, Logits]:
    """Return the logits of each emulation in torch, by its name."""
    if project.source().onnx:
        return _emulated_graph(project, arithmetic, images)
    model = fold_batch_norms(restore_model(project), shape_of(inputs_of(project))).model.eval()
    found = {}
    for name, sums in RUNS[arithmetic.precision]:

        def run(batch: Batch, *, sums: bool = sums) -> Logits:
            with emulating(arithmetic.precision, sums=sums):
                outputs = tensors(call(model, torch_batch(batch)))
            return np.concatenate([output.detach().numpy().reshape(size_of(batch), -1) for output in outputs], axis=1)

        try:
            found[name] = _run(run, images, f"emulating {arithmetic.name}")
        except (RuntimeError, NotImplementedError, TypeError) as exc:
            raise _not_emulated(arithmetic, exc) from exc
    return found


def _emulated_graph(project: Project, arithmetic: Arithmetic, images: Batch) -> dict[str, Logits]:
    """Return the outputs of each emulation of a model that is an ONNX file: its FP32 graph, node by node."""
    from pipeline.stages.rounding.graph_emulation import emulate_graph  # noqa: PLC0415 - for ONNX files alone

    file = project.file(project.onnx(Graph.FP32).file)
    rerun = project.command(project.plan.rounding_step(arithmetic))
    runs = RUNS[arithmetic.precision]
    try:
        return run_isolated(emulate_graph, file, arithmetic.precision, images, _BATCH, runs, rerun=rerun)
    except (RunError, CrashedError) as exc:
        raise _not_emulated(arithmetic, exc) from exc


def _not_emulated(arithmetic: Arithmetic, exc: Exception) -> RunError:
    return RunError(
        f"the rounding of {arithmetic.name} cannot be emulated",
        got=one_line(exc),
        fix=f"set `gates.{arithmetic.precision.value}.relative_l2` in pipeline.yaml: the largest distance",
    )


def _is_repeatable(project: Project, batch: Batch) -> bool:
    """Return true if the FP32 network gives the same logits for a batch twice."""
    model, images = restore_model(project), torch_batch(batch)
    with torch.no_grad():
        once, again = (tensors(call(model, images)) for _ in range(2))
        return all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def _quantized(project: Project, arithmetic: Arithmetic, images: Batch) -> dict[str, Logits]:
    """Return the logits of a Q/DQ graph as ONNX Runtime computes them, which rounds where the graph says so."""
    file = project.file(project.onnx(arithmetic.graph).file)
    rerun = project.command(project.plan.rounding_step(arithmetic))
    outputs = run_isolated(_run_graph, file, images, rerun=rerun)
    return {"Q/DQ pairs of the graph": rows_of(outputs, spans_of(project.source()))}


def _run_graph(file: Path, images: Batch) -> Outputs:
    """Run a Q/DQ graph, in a process that may crash."""
    return run_stand_in(file.read_bytes(), images, _BATCH)


def _run(run: Callable[[Batch], Logits], images: Batch, phase: str) -> Logits:
    results = []
    with Bars() as bars:
        report = bars.reporting(phase)
        count = size_of(images)
        for start in range(0, count, _BATCH):
            results.append(run(rows_of_batch(images, slice(start, start + _BATCH))))
            report(min(start + _BATCH, count), count)
    return np.concatenate(results)


def _keep(project: Project, arithmetic: Arithmetic, logits: Logits) -> FileRecord:
    path = project.paths.rounding_logits(arithmetic)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, logits)
    return describe_file(path, project.paths.root)


def run(project: Project, arithmetic: Arithmetic, console: Console) -> int:
    """Emulate a precision, and print its distance from FP32."""
    record = measure_rounding(project, arithmetic)
    if record.trouble:
        console.say(f"not emulated: {record.trouble}")
    elif record.relative_l2_high is None:
        console.say(f"not finite: an activation lies beyond the range of {arithmetic.precision.value}")
    else:
        console.say(f"relative L2 {record.relative_l2_high:.1e} by rounding alone, on {record.samples} samples")
    return 0
