"""Compare every engine's speed with a bare loop over the same plan, which calls TensorRT and CUDA directly.

python benchmarks/gpu.py --config benchmarks/gpu.yaml    after `doit config=benchmarks/gpu.yaml`, on a GPU host
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cuda.bindings import runtime

from model_artifacts.records import Backend, Clock, Status
from model_artifacts.tensorrt.flavour import load_flavour
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.common.opening import open_serialized
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model_artifacts.records import BuiltFor
    from pipeline.records import Artifact

ROUNDS, RUNS = 7, 100
"""Rounds of both in turns, and timed runs a round."""


def cuda(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - cuda-bindings is untyped
    """Return the value of a cuda-bindings call.

    Raises:
        RuntimeError: the call failed.
    """
    if int(result[0]):
        raise RuntimeError(result[0])
    return result[1] if len(result) == 2 else result[1:]  # noqa: PLR2004 - status and value


@contextmanager
def bare(built_for: BuiltFor, plan: bytes, batch: int) -> Iterator[tuple[Callable[[], None], int]]:
    """Yield a function that replays a CUDA graph of the plan, and its stream, without the pipeline's runner.

    Raises:
        RuntimeError: a CUDA call failed, or the plan is for a part of a batch.
    """
    if built_for.batch_parts > 1:
        raise RuntimeError(
            f"the engine runs a batch {built_for.parts_phrase}, and the bare loop would time one of them"
        )
    trt = load_flavour(built_for.flavour).module
    logger = trt.Logger(trt.Logger.ERROR)
    library = trt.Runtime(logger)
    engine = library.deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    stream = cuda(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    image = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    context.set_input_shape(image, (batch, *tuple(engine.get_tensor_shape(image))[1:]))
    buffers = []
    for name in names:
        size = int(np.prod(tuple(context.get_tensor_shape(name)))) * 4
        buffers.append(cuda(runtime.cudaMalloc(size)))
        cuda((*runtime.cudaMemset(buffers[-1], 0, size), None))
        context.set_tensor_address(name, buffers[-1])
    handle = int(stream)
    context.execute_async_v3(handle)
    runtime.cudaStreamSynchronize(stream)
    runtime.cudaStreamBeginCapture(stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    context.execute_async_v3(handle)
    graph = cuda(runtime.cudaStreamEndCapture(stream))
    executable = cuda(runtime.cudaGraphInstantiate(graph, 0))

    def replay() -> None:
        runtime.cudaGraphLaunch(executable, stream)

    yield replay, handle
    runtime.cudaGraphExecDestroy(executable)
    runtime.cudaGraphDestroy(graph)
    for buffer in buffers:
        runtime.cudaFree(buffer)
    runtime.cudaStreamDestroy(stream)


def timed(enqueue: Callable[[], None], stream: int) -> tuple[list[float], list[float]]:
    """Return the ms between two events around each replay, and the host's microseconds to enqueue it."""
    start, end = cuda(runtime.cudaEventCreate()), cuda(runtime.cudaEventCreate())
    latencies, enqueues = [], []
    for _ in range(RUNS):
        enqueue()  # keeps the GPU busy while the host enqueues the timed run, like the pipeline
        runtime.cudaEventRecord(start, stream)
        before = time.perf_counter()
        enqueue()
        enqueues.append((time.perf_counter() - before) * 1e6)
        runtime.cudaEventRecord(end, stream)
        runtime.cudaEventSynchronize(end)
        latencies.append(cuda(runtime.cudaEventElapsedTime(start, end)))
    return latencies, enqueues


def compare(project: Project, artifact: Artifact, batch: int) -> tuple[float, float, float, float]:
    """Time the pipeline's runner and the bare loop in turns.

    Returns:
        the p50 of both in ms, then the median time to enqueue of both in microseconds, the pipeline's first.

    Raises:
        RuntimeError: the artifact is no engine.
    """
    if artifact.file is None or artifact.built_for is None or artifact.variant.profile is None:
        raise RuntimeError(artifact.variant.id)
    plan = project.file(artifact.file).read_bytes()
    ours: list[list[float]] = [[], []]
    theirs: list[list[float]] = [[], []]
    with open_serialized(project, artifact) as engine, engine.session() as session:
        session.prepare(batch)
        with bare(artifact.built_for, plan, batch) as (replay, stream):
            for _ in range(ROUNDS):
                for times, measured in zip(ours, timed(session.enqueue, session.stream.handle), strict=True):
                    times.extend(measured)
                for times, measured in zip(theirs, timed(replay, stream), strict=True):
                    times.extend(measured)
    p50, bare_p50 = statistics.median(ours[0]), statistics.median(theirs[0])
    return p50, bare_p50, statistics.median(ours[1]), statistics.median(theirs[1])


def main() -> int:
    """Print the table; return 0 if every bound held, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("benchmarks/gpu.yaml"))
    project = Project.load(parser.parse_args().config, STAGES)
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    held = True
    print(f"{'variant':<58} batch   ours ms   bare ms  ratio  enqueue us (bare)  pipeline's p50  status")
    for variant in project.plan.variants:
        entry = entries.get(variant.id)
        if variant.backend is not Backend.TENSORRT or entry is None or variant.profile is None:
            continue
        if variant.profile.tuned:  # the bare loop knows one profile; benchmarks/profiles.py times these
            continue
        artifact = project.artifact(variant)
        if artifact.built_for is not None and artifact.built_for.batch_parts > 1:  # and it runs the whole of a file
            print(f"{variant.target + '/' + variant.name:<58} left out: it runs {artifact.built_for.parts_phrase}")
            continue
        if artifact.outcome is not Outcome.DONE or artifact.same_as or entry.status is Status.FAILED:
            continue
        gpu = project.plan.gpu(variant.target)
        with exclusive(gpu):
            ours, theirs, enqueue, bare_enqueue = compare(project, artifact, variant.profile.opt)
        graph = [
            timing.p50_ms
            for timing in entry.timings
            if timing.batch == variant.profile.opt and timing.clock is Clock.GPU_GRAPH
        ]
        shown = f"{graph[0]:.4f}" if graph else "-"
        near = [abs(p50 - theirs) <= max(theirs * 0.02, 0.005) for p50 in (ours, *graph)]
        held = held and all(near) and enqueue <= bare_enqueue + 5.0
        print(
            f"{variant.target + '/' + variant.name:<58} {variant.profile.opt:>5} {ours:>9.4f} {theirs:>9.4f} "
            f"{ours / theirs:>6.3f} {enqueue:>8.2f} ({bare_enqueue:.2f}) {shown:>14}  {entry.status.value}",
            flush=True,
        )
    print(
        "every p50, here and by the pipeline, is within 2 % or 5 us of the bare loop's; every enqueue within 5 us"
        if held
        else "A BOUND DID NOT HOLD"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
