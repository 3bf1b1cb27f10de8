"""Say how many queries a second the loader and `doit load` take, without a GPU: the host's own limit.

    python benchmarks/server_rates.py            both tables
    python benchmarks/server_rates.py --profile  the functions that take the time of LoadGen's queries

The network computes nothing: a runner sleeps as long as a GPU would run, and gives its thread up meanwhile. Table one
is LoadGen's Server scenario on the system under test of `doit load`. Table two is threads that call the loader with
joined batches. `CPU` is the processor's time of a query or a call, of all threads; other work on the machine changes it
least. To compare two versions, run each in turn.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import threading
import time
from typing import Any

import numpy as np

from model_artifacts.records import LoadSettings, Scenario
from model_artifacts.serving.batching import Batcher, Batching
from model_artifacts.serving.pool import Pool
from pipeline.stages.load.loadgen import Ask, run_loadgen
from pipeline.stages.load.system import serving

IMAGES = 64
BOUND_MS = 10.0
CLASSES = 1000


class Sleeper:
    """A runner that sleeps, and keeps the sizes of its batches."""

    def __init__(self, milliseconds: float) -> None:
        self._seconds = milliseconds / 1e3
        self.sizes: list[int] = []

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - as every runner
        """Return zeros."""
        self.sizes.append(len(batch))
        if self._seconds:
            time.sleep(self._seconds)
        return np.zeros((len(batch), CLASSES), np.float32)


def show_queries(options: argparse.Namespace) -> None:
    """Print what LoadGen's Server scenario finds at each rate."""
    images = np.zeros((IMAGES, *options.sample), np.uint8)
    print(f"{options.contexts} contexts, batches up to {options.batch}, images of {images[0].nbytes:,} bytes")
    print(f"{'a batch ms':>10}{'queries/s':>11}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'images':>8}{'CPU us':>8}")
    settings = LoadSettings(contexts=options.contexts, batch=options.batch, max_delay_ms=0.0)
    for milliseconds in options.milliseconds:
        for rate in options.rates:
            runs = [Sleeper(milliseconds) for _ in range(options.contexts)]
            ask = Ask(
                scenario=Scenario.SERVER,
                images=IMAGES,
                expected=rate,
                bound_ms=BOUND_MS,
                min_seconds=options.seconds,
                max_seconds=3 * options.seconds,
                seed=1,
            )
            with serving(runs, images, settings, None) as system:
                began = time.process_time()
                answer = run_loadgen(ask, system.issue)
                taken = time.process_time() - began
                system.check()
            mean = np.mean([size for run in runs for size in run.sizes])
            times = f"{answer.p50_ms:9.3f}{answer.p90_ms:9.3f}{answer.p99_ms:9.3f}"
            print(f"{milliseconds:10g}{rate:11,.0f}{times}{mean:8.1f}{1e6 * taken / answer.queries:8.2f}", flush=True)


def show_calls(options: argparse.Namespace) -> None:
    """Print what threads that call the loader one after another get."""
    image = np.zeros((1, *options.sample), np.uint8)
    print(f"{'a batch ms':>10}{'threads':>11}{'calls/s':>9}{'p50 ms':>9}{'p90 ms':>9}{'images':>8}{'CPU us':>8}")
    for milliseconds in options.milliseconds:
        for count in options.threads:
            runs = [Sleeper(milliseconds) for _ in range(options.contexts)]
            batcher = Batcher(Pool(runs), Batching(options.batch, 0.0), None)
            times: list[float] = []
            end = time.perf_counter() + options.seconds

            def call(batcher: Batcher = batcher, times: list[float] = times, end: float = end) -> None:
                while (began := time.perf_counter()) < end:
                    batcher(image)
                    times.append(time.perf_counter() - began)

            began, used = time.perf_counter(), time.process_time()
            callers = [threading.Thread(target=call) for _ in range(count)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            taken, used = time.perf_counter() - began, time.process_time() - used
            batcher.close()
            p50, p90 = np.percentile(times, (50, 90)) * 1e3
            mean = np.mean([size for run in runs for size in run.sizes])
            rate = f"{len(times) / taken:9,.0f}{p50:9.3f}{p90:9.3f}"
            print(f"{milliseconds:10g}{count:11}{rate}{mean:8.1f}{1e6 * used / len(times):8.2f}", flush=True)


def main() -> int:
    """Print the tables or the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5])
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[0.0, 0.5], help="the time of a batch")
    parser.add_argument("--sample", type=int, nargs="+", default=[32, 32, 3], help="the shape of an image")
    parser.add_argument("--contexts", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="the time of a row")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(show_queries, options)
        pstats.Stats(profile).sort_stats("tottime").print_stats(28)
        return 0
    show_queries(options)
    show_calls(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
