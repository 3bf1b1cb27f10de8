"""Compare the time of refitting an engine with that of rebuilding it with its timing cache, by the installed TensorRT.

    python benchmarks/refit.py --config benchmarks/gpu.yaml    after `doit config=… export`, on a GPU host

The engine is refitted with its own weights, because the time does not depend on their values. Both are measured in
turns, in this process, with the library loaded. The medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from model_artifacts.host import cuda
from model_artifacts.records import BatchRange, Graph
from model_artifacts.tensorrt.flavour import BuildLog, load_flavour
from model_artifacts.tensorrt.refitter import refit_engine
from pipeline.adapters.tensorrt_builder import EngineRequest, build_engine, graph_file
from pipeline.config.tensorrt import TensorRTConfig
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
ROUNDS = 3
"""Repetitions; the median counts."""


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the duration of a call in seconds, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    """Measure both for FP32 and FP16, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("pipeline.yaml"))
    project = Project.load(parser.parse_args().config, STAGES)
    gpu = project.plan.host.gpus[0]
    cuda.use(gpu)
    flavour = load_flavour(project.plan.engine_targets[0].flavour)
    for graph in (Graph.FP32, Graph.FP16):
        record = project.onnx(graph)
        request = EngineRequest(
            onnx=project.file(record.file),
            onnx_opset17=project.file(record.opset17) if record.opset17 else None,
            precision=graph.precision,
            profile=BatchRange(min=1, opt=1, max=1),
            workspace_bytes=2**30,
            compute_capabilities=(),
            gpu=gpu,
            settings=TensorRTConfig(refit=True),
        )
        weights = graph_file(flavour, request)
        with exclusive(gpu):
            cold, first = timed(partial(build_engine, flavour, request, BuildLog()))
            again, refits = [], []
            for _ in range(ROUNDS):
                known = first.timing_cache
                seconds, engine = timed(partial(build_engine, flavour, request, BuildLog(), timings=known))
                again.append(seconds)
                refits.append(timed(partial(refit_engine, flavour, engine.plan, weights, BuildLog()))[0])
        rebuild, refit = statistics.median(again), statistics.median(refits)
        print(
            f"{flavour} {graph.value}: first build {cold:.2f} s, rebuild with its timing cache {rebuild:.2f} s, "
            f"refit {refit:.2f} s: {refit / rebuild:.2f} of a rebuild"
        )


if __name__ == "__main__":
    main()
