"""Measure the reading of a folder of JPEGs: images a second by number of processes, and peak memory.

python benchmarks/images.py --images 2000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from model_artifacts.host.environment import threads
from model_artifacts.records import Interpolation, Preprocessing
from pipeline.stages.common.classes import classes_of
from pipeline.stages.common.images import open_folder

SPEC = Preprocessing(resize=256, crop=224, interpolation=Interpolation.BILINEAR, mean=(0.5,) * 3, std=(0.5,) * 3)
TIMES = 4
"""Ratio of the second folder's size to the first's; their peak memories must be equal."""


def fill(folder: Path, count: int) -> None:
    """Write JPEGs of noise with ImageNet's size, 500 x 375 pixels."""
    (folder / "class").mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(random.integers(0, 256, (47, 62, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / "class" / f"{index:06}.jpg", quality=85)


def read(folder: Path, workers: int) -> None:
    """Read a folder; print the images a second and this process's peak memory in MB."""
    images = open_folder(folder, 1, classes_of(None, None, 1))
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        images.read(SPEC, range(len(images.files)), Path(scratch) / "pixels.npy", workers=workers)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(images.files) / seconds:.1f} {peak:.0f}")


def main() -> None:
    """Print the table; each row is measured in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--read", nargs=2, metavar=("FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(Path(options.read[0]), int(options.read[1]))
        return
    print("images  processes  images/s  peak memory of the main process, MB")
    with tempfile.TemporaryDirectory() as scratch:
        rates = []
        for count in (options.images, options.images * TIMES):
            folder = Path(scratch) / str(count)
            fill(folder, count)
            for workers in sorted({1, threads()}):
                command = [sys.executable, __file__, "--read", str(folder), str(workers)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - fixed arguments
                rate, peak = done.stdout.split()
                rates.append(float(rate))
                print(f"{count:>6}  {workers:>9}  {rate:>8}  {peak:>4}", flush=True)
    print(f"{threads()} processes read {rates[-1] / rates[-2]:.2f} times as fast as one")


if __name__ == "__main__":
    main()
