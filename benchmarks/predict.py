"""Say what `predict` costs by part: decode, resize, normalise, check, run and answer, and the parts' sum beside it.

    python benchmarks/predict.py artifacts/ --batch 64                     the artifact that `load` takes here
    python benchmarks/predict.py artifacts/ --input uint8 --output top5    one with other ends

All parts take turns with whole calls of `predict` in one process, on the same JPEGs of ImageNet's size, 500 x 375.
Times are medians per image. `run` has the copies and the network. Of an engine, `network` is a call with a batch that
lies in the GPU's memory, and `copy` the rest.

Each part is timed on one thread. `predict` gets several batches, and reads the next one by several threads while one
runs; `in turn` does the parts of the same batches one after the other, on one thread.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from model_artifacts import Requirements, load
from model_artifacts.deployment.answers import answers_of
from model_artifacts.deployment.inputs import checked_batch
from model_artifacts.host.environment import threads
from model_artifacts.records import Backend
from model_artifacts.sessions.preprocessing import feed_shape, to_feed, to_pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_artifacts.deployment.model import Model
    from model_artifacts.records import Gpu

ROUNDS = 5
"""Rounds of all parts in turns, after one that is not counted."""


def jpegs(count: int) -> list[bytes]:
    """Return JPEGs of smooth noise, 500 x 375 pixels."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 256, (47, 62, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def parts_of(model: Model, files: list[bytes], batches: int, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Return the parts of `predict` on a batch, each on what the part before gives, and the whole on several batches.

    Args:
        model: the open model.
        files: the images of a batch.
        batches: the number of batches.
        stack: frees the GPU's memory of the batch.
    """
    spec, kind = model.preprocessing, model.entry.io.input
    facts = model._facts  # noqa: SLF001 - as `predict` hands them on

    def decoded() -> list[Image.Image]:
        images: list[Image.Image] = [Image.open(io.BytesIO(file)) for file in files]
        for image in images:
            image.load()
        return images

    def in_turn() -> None:
        for _ in range(batches):
            pixels = np.stack([to_pixels(image, spec) for image in decoded()])
            answers_of(model(to_feed(pixels, spec, kind)), facts, None, model.entry.io)

    images = decoded()
    pixels = np.stack([to_pixels(image, spec) for image in images])
    batch = to_feed(pixels, spec, kind)
    outputs: Any = model(batch)
    found: dict[str, Callable[[], object]] = {
        "decode": decoded,
        "resize": lambda: np.stack([to_pixels(image, spec) for image in images]),
        "normalise": lambda: to_feed(pixels, spec, kind),
        "check": lambda: checked_batch(batch, feed_shape(spec, kind), kind),
        "call": lambda: model(batch),
        "answer": lambda: answers_of(outputs, facts, None, model.entry.io),
        "in turn": in_turn,
        "predict": lambda: model.predict(files * batches),
    }
    gpu = model.resolution.place.gpu
    if gpu is not None and model.entry.backend is Backend.TENSORRT:
        there = on_gpu(batch, gpu, stack)
        found["network"] = lambda: model(there)
    return found


def on_gpu(batch: np.ndarray[Any, Any], gpu: Gpu, stack: ExitStack) -> Any:  # noqa: ANN401 - as `Model` takes it
    """Return a copy of a batch in a GPU's memory, which the stack frees."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    with cuda.using(gpu):
        array = stack.enter_context(closing(cuda.Memory(batch.nbytes))).array(batch.shape, batch.dtype)
        stream = stack.enter_context(closing(cuda.Stream()))
        cuda.copy_to_gpu(array, batch, stream)
        stream.synchronize()
    return array


def in_turns(parts: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Call all parts in turns, and return the median time of each in ms."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(1 + ROUNDS):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            taken[name] += [(time.perf_counter() - began) * 1e3] if number else []
    return {name: median(found) for name, found in taken.items()}


def print_parts(model: Model, found: dict[str, float], count: int, batches: int) -> None:
    """Print each part per image, with its share of `in turn`, and its ratio to the run of the artifact."""
    call = found.pop("call")
    found["run"] = max(0.0, call - found["check"])
    whole, predicted = (found.pop(name) / batches for name in ("in turn", "predict"))
    if "network" in found:
        found["copy"] = max(0.0, found["run"] - found["network"])
    print(f"{model.entry.id}: {batches} batches of {count} images, {threads()} cores")
    print(f"{'part':<16}{'us an image':>12}{'of in turn':>12}{'of run':>9}")
    for name in ("decode", "resize", "normalise", "check", "run", "copy", "network", "answer"):
        if name in found:
            shown = f"  of it {name}" if name in {"copy", "network"} else name
            taken = found[name]
            print(f"{shown:<16}{taken / count * 1e3:12.1f}{taken / whole:12.1%}{taken / found['run']:9.2f}")
    total = sum(taken for name, taken in found.items() if name not in {"copy", "network"})
    print(f"{'sum of parts':<16}{total / count * 1e3:12.1f}{total / whole:12.1%}{total / found['run']:9.2f}")
    for name, taken in (("in turn", whole), ("predict", predicted)):
        print(f"{name:<16}{taken / count * 1e3:12.1f}{taken / whole:12.1%}{taken / found['run']:9.2f}")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="?", default=Path("artifacts"))
    parser.add_argument("--batch", type=int, default=32, help="images a batch; the artifact must take so many")
    parser.add_argument("--batches", type=int, default=4, help="batches of a call of predict")
    parser.add_argument("--precision")
    parser.add_argument("--input", default="float32")
    parser.add_argument("--output", default="logits")
    options = parser.parse_args()
    wanted = Requirements(batch=options.batch, precision=options.precision, input=options.input, output=options.output)
    with load(options.artifacts, wanted) as model, ExitStack() as stack:
        parts = parts_of(model, jpegs(options.batch), options.batches, stack)
        print_parts(model, in_turns(parts), options.batch, options.batches)
    return 0


if __name__ == "__main__":
    sys.exit(main())
