"""Say what a call of an engine's session, and the check of its batch, cost the host by size, without a GPU.

    python benchmarks/session_calls.py            microseconds a call, by part, on a CUDA in the host's memory
    python benchmarks/session_calls.py --profile  the functions that take the time of a call with one image

The engine computes nothing, and CUDA's functions return at once, except for the copies of `memmove` between pinned and
ordinary memory, which are real. So the figures are the host's own cost: they compare two versions of the code on one
machine, and say nothing about a GPU. All sizes take turns; times are medians, with the quickest call beside.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.deployment.inputs import check_finite
from model_artifacts.host import cuda
from model_artifacts.host.environment import threads
from model_artifacts.records import BatchRange
from model_artifacts.sessions.engine import Engine
from model_artifacts.sessions.feeds.batches import parts_of
from model_artifacts.sessions.feeds.staging import Copiers
from model_artifacts.sessions.onnx import joined
from tests.support.fake_cuda import OK, FakeContext, FakeEngine, FakeRuntime
from tests.support.hosts import H100

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_artifacts.sessions.engine import Session

ROUNDS = 7
"""Rounds of all sizes in turns, after one that is not counted."""
SAMPLE = (3, 224, 224)


class QuickRuntime(FakeRuntime):
    """A CUDA whose copies are put on the stream and never done."""

    def cudaMemcpyAsync(self, *_: object) -> tuple[Any]:  # noqa: N802 - CUDA's function
        """Return at once."""
        return (OK,)

    def cudaStreamSynchronize(self, _: int) -> tuple[Any]:  # noqa: N802 - the same
        """Return at once, and remember nothing."""
        return (OK,)


def quick_engine(fake: FakeRuntime, largest: int) -> Any:  # noqa: ANN401 - as `Engine` takes it
    """Return an engine whose batches compute nothing."""
    loaded = FakeEngine(fake, BatchRange(min=1, opt=largest, max=largest), sample=SAMPLE, classes=1000)
    FakeContext.enqueue = lambda *_: None  # type: ignore[method-assign]  # this process has no other
    return loaded


def joined_call(session: Session, singles: list[Any], join: Callable[[list[Any]], Any]) -> object:
    """Run single images as one batch."""
    return session(join(singles))


def microseconds(call: Callable[[], object], seconds: float = 0.05) -> list[float]:
    """Return the times of calls for a while, at least three."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:  # noqa: PLR2004 - as above
        began = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - began) / 1e3)
    return found


def main() -> int:
    """Print the table or the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, help="threads that copy; by default what suits this host")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    sizes = sorted(options.sizes)
    cuda.runtime = fake = QuickRuntime(2**34)
    with ExitStack() as stack:
        copiers = stack.enter_context(closing(Copiers(options.threads)))
        session = stack.enter_context(Engine(quick_engine(fake, sizes[-1]), H100, copiers).session())
        calls: dict[str, Callable[[], object]] = {}
        for size in sizes:
            array = np.ones((size, *SAMPLE), np.float32)
            target = np.empty_like(array)
            calls[f"call b{size}"] = lambda array=array: session(array)  # type: ignore[misc]  # bound now
            singles = [array[number : number + 1] for number in range(size)]
            if size > 1:
                for name, join in (("joined", joined), ("parts", parts_of)):
                    calls[f"{name} b{size}"] = partial(joined_call, session, singles, join)
            calls[f"check b{size}"] = lambda array=array: check_finite(array)  # type: ignore[misc]  # the same
            calls[f"copy b{size}"] = lambda array=array, target=target: np.copyto(target, array)  # type: ignore[misc]
        if options.profile:
            show_profile(calls[f"call b{sizes[0]}"])
            return 0
        found: dict[str, list[list[float]]] = {name: [] for name in calls}
        for number in range(1 + ROUNDS):
            for name, call in calls.items():
                taken = microseconds(call)
                if number:
                    found[name].append(taken)
    print(f"{threads()} cores; us a call; `check` is the model's own of a batch, `copy` numpy's copy of it")
    print(
        "`joined` is a batch of single images in an array, `parts` the same without that array, as the loader does it"
    )
    print(f"{'':<12}{'median':>10}{'quickest':>10}")
    for name, rounds in found.items():
        print(f"{name:<12}{median(map(median, rounds)):10.1f}{min(map(min, rounds)):10.1f}")
    return 0


def show_profile(call: Callable[[], object]) -> None:
    """Print the functions that take the time of a thousand calls."""
    call()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(1000):
        call()
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(28)


if __name__ == "__main__":
    sys.exit(main())
