"""The power of the gates for networks of two heads: the class and the box of a digit, from shared maps.

    python benchmarks/head_gates.py            the tables of docs/accuracy.md; an hour of one busy core
    python benchmarks/head_gates.py --seeds 0  a third of the networks

Three families are trained on scikit-learn's digits at random places, several seeds of each. Honest builds are those of
`gates.py` and `quantized_gates.py`, on ten resampled sets of images. Each head is judged apart, as the task `tensors`
judges several outputs, and a build is rejected if one head is. A fault changes the trunk, one head, the images or the
outputs of an fp16 build, and counts as caught if it is not faithful: honest builds lose parts of a head beyond the
margin. The last column is of one norm over both heads, held to twice its own rounding, which no gate uses.
"""

from __future__ import annotations

import argparse
import copy
import logging
import operator
import sys
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from faults import FAULTS
from gates import EMULATED, OLD, SETS, Subject, run, smallest, yardstick_of
from gates import honest as honest_builds
from head_networks import HEADS, TRUNKS, Rows, TwoHeads, found_digits, trained_heads
from onnx import numpy_helper
from quantized import CALIBRATION, GRAPHS, Quantized, quantize, run_graph
from quantized import honest as honest_quantized
from torch import nn

from model_artifacts.records import FileRecord, Graph, Precision, Question, Task
from model_artifacts.sessions.torch_model import Typed
from pipeline.stages.common.rows import Span
from pipeline.stages.export.graph import to_onnx
from pipeline.stages.rounding.emulation import RUNS
from pipeline.stages.rounding.spread import spread_of, widest
from pipeline.stages.validate.judgement import judge_logits
from pipeline.stages.validate.metrics import measure, relative_l2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from faults import Fault
    from head_networks import Found

    from pipeline.stages.validate.judgement import Yardstick

    Logits = npt.NDArray[np.float32]
    Samples = npt.NDArray[np.intp]

SAMPLES = 320
SPANS = (Span("scores", (10,), slice(0, 10)), Span("boxes", (4,), slice(10, 14)))
_KEPT = FileRecord(path="emulated.npy", bytes=0, sha256="0" * 64)


class Heads(NamedTuple):
    """A trained network, and the yardsticks of each precision, one a head."""

    name: str
    model: Rows
    subject: Subject
    yardsticks: dict[Precision, tuple[Yardstick, ...]]
    together: dict[Precision, float]
    """The rounding's quantile of one norm over both heads."""
    emulated: dict[Precision, Logits]
    quantized: tuple[Quantized, ...]


class Answer(NamedTuple):
    """The questions that a gate answers with no, and the answer of one norm over both heads."""

    unfaithful: tuple[str, ...]
    """The heads that are not faithful."""
    too_lossy: bool
    by_one_norm: bool


def judged(item: Heads, rows: Logits, precision: Precision, samples: Samples | None = None) -> Answer:
    """Return the answers to a build's outputs, on some samples or all."""
    chosen = np.arange(len(rows)) if samples is None else samples
    got, want = rows[chosen], item.subject.reference[chosen]
    unfaithful, lossy = [], False
    for span, own in zip(SPANS, item.yardsticks[precision], strict=True):
        yardstick = own
        if precision in item.emulated:
            yardstick = own._replace(emulated=item.emulated[precision][chosen][:EMULATED, span.columns])
        ours, theirs = got[:, span.columns], want[:, span.columns]
        accuracy = measure(ours, theirs, None, task=Task.TENSORS)
        failed = [check for check in judge_logits(ours, theirs, None, accuracy, yardstick).checks if not check.passed]
        lossy |= any(check.question is Question.GOOD_ENOUGH for check in failed)
        if any(check.question is Question.FAITHFUL for check in failed):
            unfaithful.append(span.name)
    return Answer(tuple(unfaithful), lossy, relative_l2(got, want) > max(2 * item.together[precision], 1e-5))


def _yardsticks(
    runs: list[Logits], reference: Logits, precision: Precision, name: str
) -> tuple[tuple[Yardstick, ...], float]:
    """Return the yardstick of each head, and the quantile of both together, from the emulations of a precision."""
    graph = Graph.FP32 if precision is Precision.TF32 else Graph(precision.value)
    found = []
    for span in SPANS:
        spread = widest([spread_of(rows[:, span.columns], reference[:, span.columns], span.shape) for rows in runs])
        if spread is None:
            sys.exit(f"{name}: {precision.value} does not hold its values")
        own = yardstick_of(spread, graph, precision, "by hand", _KEPT if precision in GRAPHS else None)
        found.append(own._replace(task=Task.TENSORS, sample_shape=span.shape))
    whole = widest([spread_of(rows, reference) for rows in runs])
    return tuple(found), whole.relative_l2_high if whole else 0.0


def item_of(name: str, model: Rows, data: Found) -> Heads:
    """Measure a network's own rounding in every precision, and quantise it."""
    images = data.images[:SAMPLES]
    reference = run(model, images)
    subject = Subject(name, model, images, data.classes[:SAMPLES].numpy(), reference, {})
    yardsticks, together, emulated, quantized = {}, {}, {}, []
    first = reference[:EMULATED]
    for precision in OLD:
        runs = [run(model, images[:EMULATED], precision, sums=sums) for _, sums in RUNS[precision]]
        yardsticks[precision], together[precision] = _yardsticks(runs, first, precision, name)
    _, channels, height, width = images.shape
    fp32 = to_onnx(Typed(model.body, torch.float32), (channels, height, width), 17, tuple(HEADS)).model
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp32.graph.initializer}
    calibration = data.images[SAMPLES : SAMPLES + CALIBRATION]
    for precision in GRAPHS:
        made = quantize(fp32, weights, calibration, precision)
        emulated[precision] = run_graph(made, images)
        yardsticks[precision], together[precision] = _yardsticks(
            [emulated[precision][:EMULATED]], first, precision, name
        )
        own = Quantized(
            subject, precision, fp32, weights, calibration, made, emulated[precision], yardsticks[precision][0]
        )
        quantized.append(own)
    return Heads(name, model, subject, yardsticks, together, emulated, tuple(quantized))


def builds_of(item: Heads) -> Iterator[tuple[str, Precision, Logits]]:
    """Yield the honest builds of a network: their name, precision and rows."""
    yield from honest_builds(item.subject)
    for made in item.quantized:
        for name, rows in honest_quantized(made):
            yield f"{made.precision.value}, {name}", made.precision, rows


def show_honest(items: list[Heads]) -> int:
    """Print the honest builds that are rejected, on resampled sets, and return the number called unfaithful."""
    print("\n| honest build | not faithful | not good enough |\n|---|---|---|")
    found: dict[str, list[Answer]] = {}
    for item in items:
        for name, precision, rows in builds_of(item):
            for seed in range(SETS):
                samples = np.random.default_rng(seed).integers(len(rows), size=len(rows))
                found.setdefault(name, []).append(judged(item, rows, precision, samples))
    alarms = 0
    for name, answers in found.items():
        unfaithful = sum(bool(answer.unfaithful) for answer in answers)
        alarms += unfaithful
        print(
            f"| {name} | {unfaithful} of {len(answers)} | {sum(answer.too_lossy for answer in answers)} |", flush=True
        )
    return alarms


def _of_head(index: int, change: Callable[[Logits, float], Logits]) -> Callable[[Logits, float], Logits]:
    """Return a change of one head's values alone."""

    def changed(rows: Logits, size: float) -> Logits:
        result = rows.copy()
        result[:, SPANS[index].columns] = change(rows[:, SPANS[index].columns], size)
        return result

    return changed


def _mixed(rows: Logits, size: float) -> Logits:
    return rows + np.float32(size) * (np.roll(rows, 1, axis=0) - rows)


def _swapped(rows: Logits, size: float) -> Logits:
    swapped = rows.copy()
    swapped[:, :2] += np.float32(size) * (rows[:, 1::-1] - rows[:, :2])
    return swapped


def _less(rows: Logits, size: float) -> Logits:
    less = rows.copy()
    less[:, 1] *= 1 - size
    return less


_SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
OF_ROWS = (
    ("all values less by the share size", lambda rows, size: rows * np.float32(1 - size)),
    ("one value less by the share size", _less),
    ("two values swapped, to the share size", _swapped),
    ("mixed with the image before, to the share size", _mixed),
)
"""Faults of one head's outputs."""
_PLACES: tuple[tuple[str, Callable[[nn.Module], nn.Module]], ...] = tuple(
    (name, operator.methodcaller("get_submodule", name)) for name in ("trunk", "scores", "boxes")
)


def _with_fault(item: Heads, fault: Fault, size: float, part: Callable[[nn.Module], nn.Module]) -> Answer:
    """Return the answers to a build with a fault in a part of the network, or in its images."""
    model = copy.deepcopy(item.model)
    with torch.no_grad():
        _, images = fault.change(part(model.body), item.subject.images, size)
    return judged(item, run(model, images, fault.precision), fault.precision)


def _can(item: Heads, fault: Fault, part: Callable[[nn.Module], nn.Module]) -> bool:
    """Return whether a part of the network has the kind of layer that a fault is of."""
    kind = fault.of or (nn.Conv2d if "tile" in fault.what else None)
    modules = part(item.model.body).modules()
    return kind is None or any(isinstance(module, kind) for module in modules)


def show_faults(items: list[Heads]) -> None:
    """Print the size from which each fault is caught, by its place."""
    print("\n| fault | of | sizes tried | caught from | named | by one norm from |\n|---|---|---|---|---|---|")
    for fault in FAULTS:
        of_images = fault.change.__name__ == "<lambda>"
        for place, part in (("images", _PLACES[0][1]),) if of_images else _PLACES:
            able = [item for item in items if _can(item, fault, part)]
            rows = [[_with_fault(item, fault, size, part) for size in fault.sizes] for item in able]
            _show(fault.what, place, fault.sizes, rows)
    for what, change in OF_ROWS:
        for index, span in enumerate(SPANS):
            broken = _of_head(index, change)
            answers = [
                [judged(item, broken(plain, size), Precision.FP16) for size in _SHARES]
                for item, plain in (
                    (item, run(item.subject.model, item.subject.images, Precision.FP16)) for item in items
                )
            ]
            _show(what, span.name, _SHARES, answers)


def _show(what: str, place: str, sizes: tuple[float, ...], rows: list[list[Answer]]) -> None:
    if not rows:
        return
    caught, one = ([[bool(answer[at]) for answer in row] for row in rows] for at in (0, 2))
    named = {name for row in rows for answer in row for name in answer.unfaithful}
    cells = f"{smallest(sizes, caught)} | {', '.join(sorted(named))} | {smallest(sizes, one)}"
    print(f"| {what} | {place} | {', '.join(f'{size:g}' for size in sizes)} | {cells} |", flush=True)


def _score(item: Heads, data: Found) -> str:
    """Return how good the reference is: its top-1, and its boxes' mean error in pixels."""
    rows, boxes = item.subject.reference, data.boxes[:SAMPLES].numpy()
    top1 = (rows[:, SPANS[0].columns].argmax(axis=1) == item.subject.labels).mean()
    return f"{top1:.1%} | {np.abs(rows[:, SPANS[1].columns] - boxes).mean():.2f}"


def main() -> int:
    """Print the tables; return 1 if an honest build was called unfaithful, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(TRUNKS), choices=list(TRUNKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the digits, places and weights")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser gives advice that the export has followed
    shown = (Precision.FP16, Precision.BF16, Precision.INT8, Precision.FP8)
    print(
        "| network | top-1 | error of a box, pixels | "
        + " | ".join(f"{kind.value}'s rounding" for kind in shown)
        + " |"
    )
    print("|---" * (3 + len(shown)) + "|")
    items = []
    for seed in arguments.seeds:
        data = found_digits(seed)
        for name in arguments.networks:
            model = trained_heads(partial(TwoHeads, name), data, slice(SAMPLES + CALIBRATION, None), seed)
            item = item_of(f"{name}, seed {seed}", model, data)
            items.append(item)
            highs = [[own.rounding.relative_l2_high for own in item.yardsticks[kind]] for kind in shown]
            cells = " | ".join(", ".join(f"{high:.1e}" for high in pair) for pair in highs)
            print(f"| {item.name} | {_score(item, data)} | {cells} |", flush=True)
    alarms = show_honest(items)
    show_faults(items)
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
