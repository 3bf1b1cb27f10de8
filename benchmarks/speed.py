"""Measure the pipeline itself: a full run, a run with nothing to do, `doit list`, and the speed-ups on the CPU.

python benchmarks/speed.py            with a full run into a temporary folder
python benchmarks/speed.py --tests    with the test suite, too
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.planning.project import Project
from pipeline.stages import STAGES

REPOSITORY = Path(__file__).resolve().parent.parent
BUDGETS = {"full run": 180.0, "no-op doit": 1.5, "doit list": 0.8, "pytest --cov": 300.0}
"""Upper bounds in seconds, on 2 cores."""
RATIOS = {"onnxruntime-fp32": 1.8, "onnxruntime-int8-cpu": 2.5}
"""Lower bounds of the speed-up over eager FP32 at batch 1."""


def seconds(*command: str, repeats: int = 1) -> float:
    """Run a Python module in the repository and return the median of its wall times in seconds.

    Raises:
        CalledProcessError: the command failed.
    """
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", *command], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)  # noqa: S603
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def show(name: str, value: float, bound: float, unit: str, *, at_most: bool) -> None:
    """Print a figure with its bound."""
    good = value <= bound if at_most else value >= bound
    print(
        f"{name:<24} {value:8.2f} {unit}   {'≤' if at_most else '≥'} {bound:g}   {'ok' if good else 'MISSED'}",
        flush=True,
    )


def main() -> None:
    """Measure, and print each figure with its bound."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pipeline.yaml"
        shutil.copy(REPOSITORY / "pipeline.yaml", config)
        doit = ("doit", f"config={config}")
        show("full run", seconds(*doit), BUDGETS["full run"], "s", at_most=True)
        show("no-op doit", seconds(*doit, repeats=5), BUDGETS["no-op doit"], "s", at_most=True)
        show("doit list", seconds("doit", "list", repeats=5), BUDGETS["doit list"], "s", at_most=True)
        for entry in Project.load(config, STAGES).manifest().artifacts:
            bound = RATIOS.get(entry.id.rpartition("/")[2])
            first = next((timing for timing in entry.timings if timing.batch == 1), None)
            if bound and first and first.speedup:
                show(entry.id.rpartition("/")[2], first.speedup, bound, "×", at_most=False)
    if "--tests" in sys.argv[1:]:
        show("pytest --cov", seconds("pytest", "-q", "--cov"), BUDGETS["pytest --cov"], "s", at_most=True)


if __name__ == "__main__":
    main()
