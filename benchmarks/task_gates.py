"""The power of the tasks' gates: masks, several labels, numbers, vectors and boxes, by their own answers.

    python benchmarks/task_gates.py                     the tables of docs/accuracy.md; an hour on two cores
    python benchmarks/task_gates.py --tasks multilabel  one task alone

Networks are trained on images made of scikit-learn's digits, several seeds of each. Honest builds are those of
`gates.py` and `quantized_gates.py`, judged on ten resampled sets of images, with their labels and without. Faults are
changes of the network, its images or its outputs, in an fp16 build. Both questions are counted apart: "good enough" is
the new part, and "faithful" holds each part of an output to its own rounding.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from faults import FAULTS
from gates import EMULATED, OLD, SETS, Subject, run, smallest, yardstick_of
from gates import honest as honest_builds
from onnx import numpy_helper
from quantized import CALIBRATION, GRAPHS, Quantized, quantize, run_graph
from quantized import honest as honest_quantized
from task_detectors import DETECTOR
from task_networks import FAMILIES, Labelled, labelled, trained

from model_artifacts.records import FileRecord, Graph, Precision, Question, Task
from model_artifacts.sessions.torch_model import Typed
from pipeline.stages.export.graph import to_onnx
from pipeline.stages.rounding.emulation import RUNS
from pipeline.stages.rounding.spread import spread_of, widest
from pipeline.stages.validate.judgement import case_of, judge_logits
from pipeline.stages.validate.metrics import measure
from pipeline.stages.validate.tasks.registry import DESERVING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from torch import nn

    from pipeline.stages.rounding.spread import Spread
    from pipeline.stages.validate.judgement import Yardstick

    Logits = npt.NDArray[np.float32]
    Rows = npt.NDArray[np.intp]

SAMPLES = 320
_KEPT = FileRecord(path="emulated.npy", bytes=0, sha256="0" * 64)


class Item(NamedTuple):
    """A trained network of a task, and the yardsticks of each precision."""

    name: str
    data: Labelled
    subject: Subject
    yardsticks: dict[Precision, Yardstick]
    emulated: dict[Precision, Logits]
    quantized: tuple[Quantized, ...]


class Answer(NamedTuple):
    """The questions that a gate answers with no, and the share of answers that are lost."""

    unfaithful: bool
    too_lossy: bool
    lost: float = 0.0

    @property
    def caught(self) -> bool:
        """True if the gate rejects the build, for either reason."""
        return self.unfaithful or self.too_lossy


def judged(item: Item, logits: Logits, precision: Precision, rows: Rows | None = None, *, labels: bool) -> Answer:
    """Return the answers to an artifact's outputs, on some samples or all, with labels or without."""
    chosen = np.arange(len(logits)) if rows is None else rows
    yardstick = item.yardsticks[precision]
    if precision in item.emulated:
        yardstick = yardstick._replace(emulated=item.emulated[precision][chosen][:EMULATED])
    got, want = logits[chosen], item.subject.reference[chosen]
    truth = item.data.truth[:SAMPLES].numpy()[chosen] if labels else None
    accuracy = measure(got, want, None, task=item.data.task)
    checks, loss, _ = judge_logits(got, want, truth, accuracy, yardstick)
    if item.data.task is Task.DETECTION:
        _, boxes, loss = DETECTOR.judge(got, want, truth, yardstick.gates, is_part=False)
        checks += boxes
    failed = {check.question for check in checks if not check.passed}
    return Answer(Question.FAITHFUL in failed, Question.GOOD_ENOUGH in failed, loss.drop if loss else 0.0)


def _with_task(yardstick: Yardstick, data: Labelled) -> Yardstick:
    shape = data.shape if data.task.has_parts else None
    return yardstick._replace(task=data.task, sample_shape=shape, tolerance=data.tolerance)


def _yardstick(data: Labelled, spread: Spread | None, graph: Graph, precision: Precision, name: str) -> Yardstick:
    if spread is None:
        sys.exit(f"{name}: {precision.value} does not hold its values")
    kept = _KEPT if precision in GRAPHS else None
    yardstick = yardstick_of(spread, graph, precision, "by hand", kept)
    return _with_task(yardstick, data)


def item_of(name: str, make: Callable[[], nn.Module], data: Labelled, seed: int) -> Item:
    """Train a network, and measure its own rounding in every precision."""
    model = trained(make, data, slice(SAMPLES + CALIBRATION, None), seed)
    images = data.images[:SAMPLES]
    reference = run(model, images)
    subject = Subject(name, model, images, data.truth[:SAMPLES].numpy(), reference, {})
    shape = data.shape if data.task.has_parts else None
    yardsticks, emulated = {}, {}
    for precision in OLD:
        runs = [run(model, images[:EMULATED], precision, sums=sums) for _, sums in RUNS[precision]]
        spread = widest([spread_of(found, reference[:EMULATED], shape, data.task) for found in runs])
        graph = Graph.FP32 if precision is Precision.TF32 else Graph(precision.value)
        yardsticks[precision] = _yardstick(data, spread, graph, precision, name)
    _, channels, height, width = images.shape
    fp32 = to_onnx(Typed(model, torch.float32), (channels, height, width), 17).model
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp32.graph.initializer}
    calibration = data.images[SAMPLES : SAMPLES + CALIBRATION]
    quantized = []
    for precision, graph in GRAPHS.items():
        made = quantize(fp32, weights, calibration, precision)
        emulated[precision] = run_graph(made, images)
        spread = spread_of(emulated[precision][:EMULATED], reference[:EMULATED], shape, data.task)
        yardsticks[precision] = _yardstick(data, spread, graph, precision, name)
        quantized.append(
            Quantized(subject, precision, fp32, weights, calibration, made, emulated[precision], yardsticks[precision])
        )
    return Item(name, data, subject, yardsticks, emulated, tuple(quantized))


def builds_of(item: Item) -> Iterator[tuple[str, Precision, Logits]]:
    """Yield the honest builds of a network: their name, precision and outputs."""
    yield from honest_builds(item.subject)
    for made in item.quantized:
        for name, logits in honest_quantized(made):
            yield f"{made.precision.value}, {name}", made.precision, logits


def show_honest(items: list[Item], sets: int) -> int:
    """Print the honest builds that are rejected, on resampled sets, and return the number called unfaithful."""
    print("| honest build | not faithful | not good enough, with labels | without labels |\n|---|---|---|---|")
    found: dict[str, list[tuple[Answer, Answer]]] = {}
    for item in items:
        for name, precision, logits in builds_of(item):
            for seed in range(sets):
                rows = np.random.default_rng(seed).integers(len(logits), size=len(logits))
                pair = [judged(item, logits, precision, rows, labels=labels) for labels in (True, False)]
                found.setdefault(name, []).append((pair[0], pair[1]))
    alarms = 0
    for name, pairs in found.items():
        unfaithful = sum(answer.unfaithful for answer, _ in pairs)
        alarms += unfaithful
        lossy = [sum(pair[at].too_lossy for pair in pairs) for at in (0, 1)]
        print(f"| {name} | {unfaithful} of {len(pairs)} | {lossy[0]} | {lossy[1]} |", flush=True)
    return alarms


def _of_first_value(change: Callable[[Logits, float], Logits]) -> Callable[[Logits, float, Labelled], Logits]:
    """Return a change of the first class's map, label or number alone."""

    def changed(logits: Logits, size: float, data: Labelled) -> Logits:
        values = logits.reshape(len(logits), data.shape[0], -1).copy()
        place = 4 if data.task is Task.DETECTION else 1 % data.shape[0]  # behind a detector's boxes
        values[:, place] = change(values[:, place], size)
        return values.reshape(logits.shape)

    return changed


def _shifted(logits: Logits, size: float, data: Labelled) -> Logits:
    maps = logits.reshape(-1, *data.shape)
    return np.roll(maps, int(size), axis=-1).reshape(logits.shape)


def _boxes_moved(logits: Logits, size: float, data: Labelled) -> Logits:
    values = logits.reshape(len(logits), *data.shape).copy()
    values[:, 0] += np.float32(size)
    return values.reshape(logits.shape)


def _boxes_wider(logits: Logits, size: float, data: Labelled) -> Logits:
    values = logits.reshape(len(logits), *data.shape).copy()
    values[:, 2:4] *= np.float32(1 + size)
    return values.reshape(logits.shape)


def _mixed(logits: Logits, size: float, _data: Labelled) -> Logits:
    return logits + np.float32(size) * (np.roll(logits, 1, axis=0) - logits)


_LESS = "a class's map, a label, a number less by the share size"
OF_OUTPUTS: tuple[tuple[str, tuple[float, ...], Callable[[Logits, float, Labelled], Logits], set[Task]], ...] = (
    (_LESS, (0.003, 0.01, 0.03, 0.1, 0.3, 1), _of_first_value(lambda one, size: one * np.float32(1 - size)), set(Task)),
    (
        "its logits off by size deviations",
        (0.003, 0.01, 0.03, 0.1, 0.3, 1),
        _of_first_value(lambda one, size: one + np.float32(size) * one.std()),
        set(Task),
    ),
    ("maps shifted by size pixels", (1, 2), _shifted, {Task.SEGMENTATION}),
    ("boxes moved by size pixels", (0.03, 0.1, 0.3, 1, 3), _boxes_moved, {Task.DETECTION}),
    ("boxes larger by the share size", (0.003, 0.01, 0.03, 0.1, 0.3), _boxes_wider, {Task.DETECTION}),
    ("mixed with the image before, to the share size", (0.003, 0.01, 0.03, 0.1, 0.3), _mixed, set(Task)),
)


def show_faults(items: list[Item]) -> None:
    """Print the size from which each fault is caught by both questions, and by "good enough" alone.

    The last column is the largest loss of answers, against the FP32 network's own, that is called deployable.
    """
    print("\n| fault | sizes tried | caught from | by its answers alone, with labels | without labels | missed, lost |")
    print("|---|---|---|---|---|---|")
    plain = {item.name: run(item.subject.model, item.subject.images, Precision.FP16) for item in items}
    for what, sizes, change, tasks in OF_OUTPUTS:
        rows = [
            [_both(item, change(plain[item.name], size, item.data), Precision.FP16) for size in sizes]
            for item in items
            if item.data.task in tasks
        ]
        _show(what, sizes, rows)
    for fault in FAULTS:
        rows = []
        for item in items:
            if fault.of is not None and not any(isinstance(layer, fault.of) for layer in item.subject.model.modules()):
                continue
            row = []
            for size in fault.sizes:
                with torch.no_grad():
                    model, images = fault.change(copy.deepcopy(item.subject.model), item.subject.images, size)
                row.append(_both(item, run(model, images, fault.precision), fault.precision))
            rows.append(row)
        _show(fault.what, fault.sizes, rows)


def _both(item: Item, logits: Logits, precision: Precision) -> tuple[Answer, Answer]:
    """Return the answers to all outputs, with labels and without."""
    return judged(item, logits, precision, labels=True), judged(item, logits, precision, labels=False)


def _show(what: str, sizes: tuple[float, ...], rows: list[list[tuple[Answer, Answer]]]) -> None:
    if not rows:
        return
    ways: tuple[Callable[[tuple[Answer, Answer]], bool], ...] = (
        lambda pair: pair[0].caught,
        lambda pair: pair[0].too_lossy,
        lambda pair: pair[1].too_lossy,
    )
    cells = [smallest(sizes, [[way(pair) for pair in row] for row in rows]) for way in ways]
    missed = [pair[1].lost for row in rows for pair in row if not pair[0].caught]
    cells.append(f"{max(missed):.2%}" if missed else "")
    print(f"| {what} | {', '.join(f'{size:g}' for size in sizes)} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Print the tables; return 1 if an honest build was called unfaithful, or a reference undeserving, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [task.value for task in FAMILIES]
    parser.add_argument("--tasks", nargs="*", default=names, choices=names)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the digits, colours and weights")
    parser.add_argument("--sets", type=int, default=SETS, help="resampled sets of images that judge an honest build")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser gives advice that the export has followed
    alarms = 0
    for name in arguments.tasks:
        task = Task(name)
        items: list[Item] = []
        print(
            f"\n{name}\n\n| network | the reference's score | fp16's rounding | bf16's | int8's |"
            "\n|---|---|---|---|---|"
        )
        for seed in arguments.seeds:
            data = labelled(task, seed)
            for family, make in FAMILIES[task].items():
                item = item_of(f"{family}, seed {seed}", make, data, seed)
                items.append(item)
                checks = _reference(item)
                alarms += not all(passed for passed, _ in checks)
                highs = [item.yardsticks[kind].rounding.relative_l2_high for kind in _SHOWN]
                shown = " | ".join(f"{high:.1e}" for high in highs)
                print(f"| {item.name} | {'; '.join(text for _, text in checks)} | {shown} |", flush=True)
        print()
        alarms += show_honest(items, arguments.sets)
        show_faults(items)
    return 1 if alarms else 0


_SHOWN = (Precision.FP16, Precision.BF16, Precision.INT8)


def _reference(item: Item) -> list[tuple[bool, str]]:
    truth = item.data.truth[:SAMPLES].numpy()
    if item.data.task is Task.DETECTION:
        last = DETECTOR.deserving(item.subject.reference, truth)[-1]
        return [(last.passed, f"{last.metric.removeprefix('reference: ')} {last.value}")]
    case = case_of(item.subject.reference, item.subject.reference, truth, item.yardsticks[Precision.FP32])
    last = DESERVING[item.data.task](case)[-1]
    return [(last.passed, f"{last.metric.removeprefix('reference: ')} {last.value}")]


if __name__ == "__main__":
    sys.exit(main())
