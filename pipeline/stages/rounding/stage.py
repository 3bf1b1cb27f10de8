"""Model and precision → the distance that this precision's own rounding makes (`<model>/rounding/`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from model_artifacts.errors import CrashedError, OverdueError, RunError, one_line
from model_artifacts.host.environment import now, tools, version
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.progress import Bars
from model_artifacts.records import Graph, Precision
from model_artifacts.sessions.arithmetic import call, tensors, torch_batch
from model_artifacts.sessions.feeds.batches import rows_of_batch, size_of
from model_artifacts.sessions.torch_model import fold_batch_norms
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.keys import key_of
from pipeline.records import OutputRounding, Rounding, RoundingRun, ShownRounding, SizedRounding
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.probe import at_sizes, inputs_of, shape_of
from pipeline.stages.common.rows import as_shown, lifted, load_rows, rows_of, shown_share, spans_of
from pipeline.stages.common.samples import loader_of, to_batch
from pipeline.stages.rounding.emulation import RUNS, emulating
from pipeline.stages.rounding.quantized import run_graph
from pipeline.stages.rounding.spec import SAMPLES, shown_outputs
from pipeline.stages.rounding.spread import farthest, spread_of, widest
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from model_artifacts.records import FileRecord, Io
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.planning.plan import Arithmetic
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import SizedSamples
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
        OverdueError: it took longer than the project allows. Nothing is recorded.
    """
    key = key_of(project, project.plan.rounding_step(arithmetic))
    data = project.data()
    images = loader_of(project, data.validation)(0, SAMPLES)
    spans = spans_of(project.source())
    reference = load_rows(project.file(data.reference), spans)[: size_of(images)]
    quantized = arithmetic.precision in QUANTIZED_PRECISIONS
    results, trouble = _results(project, arithmetic, images, spans)
    task = project.source().task
    spreads = [
        [spread_of(logits[:, columns], reference[:, columns], shape, task) for logits in results.values()]
        for _, shape, columns in spans
    ]
    each = [widest(found) for found in spreads]
    shown = tuple(_of_output(io, [*results.values()], reference) for io in shown_outputs(project))
    whole = _of_spread("", farthest(each))
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
        relative_l2_high=whole.relative_l2_high,
        relative_l2_low=whole.relative_l2_low,
        sample_l2_high=whole.sample_l2_high,
        margin_noise=found.margin_noise if (found := farthest(each)) else None,
        part_l2_high=whole.part_l2_high if len(spans) == 1 else (),
        part_l2_redrawn=whole.part_l2_redrawn if len(spans) == 1 else (),
        part_sizes=whole.part_sizes if len(spans) == 1 else (),
        outputs=tuple(map(_of_spread, (span.name for span in spans), each)) if len(spans) > 1 else (),
        shown=shown,
        trouble=trouble,
        repeatable=arithmetic.precision is not Precision.FP32
        or bool(trouble)
        or _is_repeatable(project, rows_of_batch(images, slice(_BATCH))),
        logits=kept,
        sizes=tuple(_at_size(project, arithmetic, sized) for sized in data.sizes),
    )
    return project.write(project.paths.rounding(arithmetic), record)


def _at_size(project: Project, arithmetic: Arithmetic, sized: SizedSamples) -> SizedRounding:
    """Return the distances for samples of another size than their own."""
    own = project.source().preprocessing
    spec = at_sizes(own, sized.sizes) if own else None
    images, reference = to_batch(project.pixels(sized.pixels), spec), np.load(project.file(sized.reference))
    task, spans = project.source().task, spans_of(project.source(), sized.shapes)
    results, trouble = _results(project, arithmetic, images, spans)
    each = [
        widest([spread_of(logits[:, columns], reference[:, columns], shape, task) for logits in results.values()])
        for _, shape, columns in spans
    ]
    found = farthest(each)
    whole, alone = _of_spread("", found), len(spans) == 1
    return SizedRounding(
        axes=sized.axes,
        relative_l2_high=whole.relative_l2_high,
        relative_l2_low=whole.relative_l2_low,
        sample_l2_high=whole.sample_l2_high,
        margin_noise=found.margin_noise if found else None,
        part_l2_high=whole.part_l2_high if alone else (),
        part_l2_redrawn=whole.part_l2_redrawn if alone else (),
        part_sizes=whole.part_sizes if alone else (),
        outputs=() if alone else tuple(map(_of_spread, (span.name for span in spans), each)),
        trouble=trouble,
    )


def _emulator(project: Project, *, quantized: bool) -> str:
    """Return the libraries that emulate."""
    torch_, onnxruntime = f"torch {version('torch')}", f"ONNX Runtime {version('onnxruntime-gpu')}"
    if quantized:
        return onnxruntime
    return f"{torch_}, {onnxruntime}" if project.source().onnx else torch_


def _results(
    project: Project, arithmetic: Arithmetic, images: Batch, spans: Sequence[Span]
) -> tuple[dict[str, Logits], str]:
    """Return the logits of each emulation by its name; none, and the reason, if the network or the graph cannot be run.

    The gate may have a bound of its own. Else the validation rejects, with this reason.
    """
    try:
        if arithmetic.precision in QUANTIZED_PRECISIONS:
            return _quantized(project, arithmetic, images, spans), ""
        return _emulated(project, arithmetic, images), ""
    except OverdueError:  # the budget's doing, which says nothing about the network
        raise
    except (RunError, CrashedError) as exc:
        return {}, str(exc)


def _of_spread(name: str, spread: Spread | None) -> OutputRounding:
    """Return the distances of an output, or of all together; None in each if a logit is not finite."""
    if spread is None:
        return OutputRounding(name=name, relative_l2_high=None, sample_l2_high=None)
    return OutputRounding(
        name=name,
        relative_l2_high=spread.relative_l2_high,
        relative_l2_low=spread.relative_l2_low,
        sample_l2_high=spread.sample_l2_high,
        part_l2_high=spread.part_l2_high,
        part_l2_redrawn=spread.part_l2_redrawn,
        part_sizes=spread.part_sizes,
    )


def _of_output(io: Io, results: Sequence[Logits], reference: Logits) -> ShownRounding:
    """Return the distances of emulations in what an output shows of the logits."""
    shown = [spread_of(lifted(as_shown(logits, io), reference), reference) for logits in results]
    found = _of_spread(io.answer, widest(shown))
    return ShownRounding(
        output=io.answer,
        relative_l2_high=found.relative_l2_high,
        relative_l2_low=found.relative_l2_low,
        sample_l2_high=found.sample_l2_high,
        share=shown_share(reference, io),
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
        return run_isolated(
            emulate_graph,
            file,
            arithmetic.precision,
            images,
            _BATCH,
            runs,
            timeout_seconds=project.run_seconds,
            rerun=rerun,
        )
    except OverdueError:
        raise
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


def _quantized(project: Project, arithmetic: Arithmetic, images: Batch, spans: Sequence[Span]) -> dict[str, Logits]:
    """Return the logits of a Q/DQ graph as ONNX Runtime computes them, which rounds where the graph says so."""
    file = project.file(project.onnx(arithmetic.graph).file)
    rerun = project.command(project.plan.rounding_step(arithmetic))
    outputs = run_isolated(run_graph, file, images, _BATCH, timeout_seconds=project.run_seconds, rerun=rerun)
    return {"Q/DQ pairs of the graph": rows_of(outputs, spans)}


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
