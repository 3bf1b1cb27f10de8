"""Compare the time from loading a saved module to its first result with the same by the library's own calls.

python benchmarks/modules.py --config benchmarks/gpu.yaml    after `doit config=benchmarks/gpu.yaml`, on a GPU host
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from model_artifacts.records import Backend
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES

STARTS = 3
"""Starts of each; the shortest counts."""
BOUND = 1.5
"""Largest allowed ratio of the pipeline's time to the library's."""

OURS = """
import sys, time
import numpy as np
from pathlib import Path
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.modules import load_libraries
from pipeline.stages.common.opening import open_module
project = Project.load(Path(sys.argv[1]), STAGES)
artifact = project.artifact(project.plan.variant(sys.argv[2]))
load_libraries(artifact)
import torch
torch.zeros(1, device="cuda")
batch = np.zeros((artifact.variant.profile.opt, *project.source().pictures.input_shape), np.float32)
began = time.perf_counter()
with open_module(project, artifact) as run:
    run(batch)
    print(time.perf_counter() - began)
"""
BARE = """
import sys, time
import torch, torch_tensorrt
torch.zeros(1, device="cuda")
batch = torch.zeros([int(size) for size in sys.argv[2].split(",")])
began = time.perf_counter()
with torch.inference_mode():
    module = torch.export.load(sys.argv[1]).module()
    module(batch.cuda()).cpu()
print(time.perf_counter() - began)
"""


def seconds(script: str, *arguments: str) -> float:
    """Return the shortest time in seconds of several starts of a script, each in a fresh process.

    Raises:
        CalledProcessError: the script failed.
    """
    times = []
    for _ in range(STARTS):
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True
        )
        times.append(float(done.stdout.split()[-1]))
    return min(times)


def main() -> int:
    """Print the table; return 0 if the bound held, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("benchmarks/gpu.yaml"))
    config = parser.parse_args().config
    project = Project.load(config, STAGES)
    held = True
    print(f"{'module':<70} ours s  bare s  ratio")
    for variant in project.plan.variants:
        if variant.backend is not Backend.DYNAMO or variant.profile is None:
            continue
        artifact = project.artifact(variant)
        if artifact.outcome is not Outcome.DONE or artifact.file is None:
            continue
        shape = (variant.profile.opt, *project.source().pictures.input_shape)
        ours = seconds(OURS, str(config), variant.id)
        bare = seconds(BARE, str(project.file(artifact.file)), ",".join(map(str, shape)))
        held = held and ours <= bare * BOUND
        print(f"{variant.target + '/' + variant.name:<70} {ours:6.2f}  {bare:6.2f}  {ours / bare:5.2f}", flush=True)
    print(f"every ratio is within {BOUND}" if held else "A BOUND DID NOT HOLD")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
