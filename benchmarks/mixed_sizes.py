"""Time engines of several batch sizes as a server calls them: another size at each call, by four ways of CUDA graphs.

    python benchmarks/mixed_sizes.py --config benchmarks/gpu.yaml    after `doit config=…`, on a GPU host

All ways run the same calls in turns, in one process, from arrays in the host's memory to logits there. A row has the
median time of a call, the graphs captured, and the ratio to the first way, which is the session's own. The last way
pads each batch to the next power of two. Only engines of one input are timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import numpy as np

from model_artifacts.host import cuda
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import Backend, Status
from model_artifacts.tensorrt import graphs
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.opening import gpu_of, open_serialized
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from model_artifacts.records import BatchRange
    from model_artifacts.sessions.engine import Session
    from pipeline.records import Artifact

ROUNDS, CALLS = 7, 300
"""Rounds of all ways in turns, and calls a round."""


class Way(NamedTuple):
    """A way to run batches of many sizes."""

    name: str
    graphs: int
    """The most CUDA graphs; 0 for none."""
    pads: bool = False


WAYS = (
    Way("a graph for each size", graphs.MOST_GRAPHS),
    Way("eight graphs", 8),
    Way("no graphs", 0),
    Way("padded to powers of two", graphs.MOST_GRAPHS, pads=True),
)


def padded(size: int, batches: BatchRange) -> int:
    """Return the next power of two that the engine takes."""
    return max(batches.min, min(batches.max, 1 << (size - 1).bit_length()))


def patterns(batches: BatchRange) -> dict[str, list[int]]:
    """Return sequences of batch sizes, by their names."""
    chance = np.random.default_rng(0)
    span = batches.max - batches.min + 1
    few = [batches.min + round(index * (span - 1) / 8) for index in range(9)]
    rare = np.minimum(chance.geometric(min(1.0, 6 / span), CALLS) - 1, span - 1) + batches.min
    return {
        "nine sizes in turn": (few * CALLS)[:CALLS],
        "every size, at random": chance.integers(batches.min, batches.max + 1, CALLS).tolist(),
        "small sizes most often": [int(size) for size in rare],
    }


def run_calls(session: Session, images: npt.NDArray[np.generic], sizes: Sequence[int]) -> float:
    """Return the seconds that calls of these sizes take together."""
    began = time.perf_counter()
    for size in sizes:
        session(images[:size])
    return time.perf_counter() - began


def compare(project: Project, artifact: Artifact) -> None:
    """Print the rows of an engine."""
    capture, captured = cuda.Stream.capture, [0]

    def counted(stream: cuda.Stream, work: Callable[[], None]) -> cuda.Graph:
        captured[0] += 1
        return capture(stream, work)

    with ExitStack() as stack:
        engine = stack.enter_context(open_serialized(project, artifact))
        if len(engine.inputs) != 1:
            print("not timed: it has several inputs")
            return
        batches, (image,) = engine.batches, engine.inputs
        drawn = np.random.default_rng(0).random((batches.max, *map(int, image.shape[1:])), np.float32)
        images = (255 * drawn).astype(image.dtype)
        stack.enter_context(patch.object(cuda.Stream, "capture", counted))
        for pattern, sizes in patterns(batches).items():
            seconds: dict[str, list[float]] = {way.name: [] for way in WAYS}
            captures = dict.fromkeys(seconds, 0)
            with ExitStack() as opened:
                sessions = [opened.enter_context(engine.session(cuda_graph=way.graphs > 0)) for way in WAYS]
                for number in range(1 + ROUNDS):  # the first one captures, compiles and is not counted
                    for way, session in zip(WAYS, sessions, strict=True):
                        wanted = [padded(size, batches) for size in sizes] if way.pads else sizes
                        captured[0] = 0
                        with patch.object(graphs, "MOST_GRAPHS", way.graphs):
                            taken = run_calls(session, images, wanted)
                        captures[way.name] += captured[0]
                        seconds[way.name] += [taken] if number else []
            medians = {name: statistics.median(values) / CALLS * 1e6 for name, values in seconds.items()}
            base = medians[WAYS[0].name]
            for name, median in medians.items():
                print(f"{pattern:<24} {name:<24} {median:10.1f} {captures[name]:9d} {median / base:7.3f}")


def main() -> int:
    """Print the tables of all deployable engines that take several batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("benchmarks/gpu.yaml"))
    options = parser.parse_args()
    if reason := missing_driver():
        print(f"nothing can be timed here: {reason}", file=sys.stderr)
        return 1
    project = Project.load(options.config, STAGES)
    deployable = {entry.id for entry in project.manifest().artifacts if entry.status is Status.DEPLOYABLE}
    found = [
        variant
        for variant in project.plan.variants
        if variant.backend is Backend.TENSORRT and variant.profile and not variant.profile.is_fixed
        if variant.id in deployable
    ]
    for variant in found:
        artifact = project.artifact(variant)
        print(f"\n{variant.id}\n{'sizes':<24} {'way':<24} {'us a call':>10} {'captures':>9} {'ratio':>7}")
        with exclusive(gpu_of(project, artifact)):
            compare(project, artifact)
    if not found:
        print(f"{options.config} has no deployable engine of several batch sizes", file=sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
