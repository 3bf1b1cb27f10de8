"""The most memory that the steps of a large model take: a table of GB and multiples of its weights.

python benchmarks/memory.py          300 million weights in FP32; it needs 6 GB of memory, and no GPU
python benchmarks/memory.py --parameters 50

The bound of a step is three times the weights and 1 GB for Python, torch and onnx. Exit status 1 if one takes more.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

GB = 1e9
STEPS = (("source", "network"), ("export", "network/fp32"), ("export", "network/fp16"))
MODEL = """
from torch import nn


def make():
    layers = [nn.Linear(1024, 1024) for _ in range({small})]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1024)]
    return nn.Sequential(*head, *layers, nn.Linear(1024, {wide}, bias=False), nn.ReLU(), nn.Linear({wide}, 10))
"""
CONFIGURATION = """
model: {name: network, factory: "model:make", weights: factory}
preprocessing: {resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
data: {images: photographs, calibration: 4, validation: 4}
precisions: [fp32, fp16]
profiles: [1]
workspaces: [64MiB]
benchmark: {batches: [1]}
"""
STEP = """
import resource, sys
sys.path.insert(0, "")
from pipeline.__main__ import main
status = main(sys.argv[1:])
print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} KiB")
sys.exit(status)
"""


def peak_bytes(project: Path, stage: str, subject: str) -> int:
    """Run a step of the project in a folder, and return its most resident memory.

    Raises:
        CalledProcessError: the step failed.
    """
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", STEP, stage, subject]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=project, env=environment)  # noqa: S603 - this interpreter
    return int(re.findall(r"peak (\d+) KiB", done.stdout)[-1]) * 1024


def main() -> int:
    """Write a project with one large layer and many small ones, run its steps, and print their memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=300, help="millions of weights")
    options = parser.parse_args()
    weights = options.parameters * 1e6 * 4
    # Half of the weights in one layer: a copy of the largest tensor is as bad as one of the model.
    half = options.parameters * 10**6 // 2
    table = Table(title=f"{options.parameters} million weights in FP32: {weights / GB:.2f} GB")
    for column in ("step", "most memory", "bound"):
        table.add_column(column)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "model.py").write_text(MODEL.format(small=half // 1024**2, wide=half // 1024), encoding="utf-8")
        (project / "pipeline.yaml").write_text(CONFIGURATION, encoding="utf-8")
        for stage, subject in STEPS:
            peak = peak_bytes(project, stage, subject)
            bound = 3 * weights + GB
            failed |= peak > bound
            table.add_row(f"{stage} {subject}", f"{peak / GB:.2f} GB", f"{bound / GB:.2f} GB")
    Console().print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
