"""What int8 costs five kinds of networks: the rows of the table in docs/accuracy.md ("int8, by network").

    python benchmarks/int8_networks.py                           four networks, trained on digits and shapes; no GPU
    python benchmarks/int8_networks.py --lite0 PICTURES          efficientnet-lite0 as well, as for `gates.py`
    python benchmarks/int8_networks.py --networks unet --seeds 0 1

The graphs are made by the pipeline's own functions. `sensitivity` proposes the nodes to leave from the calibration
images alone, and other images judge, by their labels. Both graphs are judged: TensorRT's with ONNX Runtime as its
stand-in, and that for x86 as it is deployed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from gates import run
from int8_bodies import mobilenet_v3_small, vit_tiny, yolo
from networks import BATCH, NETWORKS, coloured_digits, lite0, parts, pictures
from onnx import numpy_helper
from quantized import Prepared, copied, run_graph
from task_detectors import DETECTOR
from task_networks import FAMILIES, Flat, labelled, trained
from torch.nn import functional

from model_artifacts.records import Graph, Precision, Task
from model_artifacts.sessions.torch_model import Typed, fold_batch_norms
from pipeline.adapters.onnx_graph import to_opset
from pipeline.config.settings import Gates
from pipeline.stages.common.rows import Span
from pipeline.stages.export.graph import to_onnx
from pipeline.stages.quantize.bias_correction import (
    Centre,
    centre_outputs,
    correct_biases,
    input_means,
    output_shifts,
)
from pipeline.stages.quantize.calibrated import Calibrated
from pipeline.stages.quantize.placing import place_pairs
from pipeline.stages.quantize.rewriting import QUANTIZED_OPERATORS, QUANTIZED_TYPES, quantized_nodes, requantize
from pipeline.stages.quantize.stage import OPSET, _placed
from pipeline.stages.sensitivity.judging import Judged, Meaning, judge, keeps
from pipeline.stages.sensitivity.stage import Ranked, propose
from pipeline.stages.validate.loss import judge_drop
from pipeline.stages.validate.metrics import compare_answers
from pipeline.stages.validate.tasks.case import Case
from pipeline.stages.validate.tasks.registry import JUDGES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import nn

    from pipeline.records import Loss

    Rows = npt.NDArray[np.float32]

JUDGING, CALIBRATION = 640, 256
"""Images that judge, and that calibrate; the rest trains."""
_PICTURES = 1000
_TRAINED: dict[str, tuple[Task, Callable[[], nn.Module], int]] = {
    "mobilenet": (Task.CLASSIFICATION, NETWORKS["mobilenet"], 32),
    "mobilenet_v3_small": (Task.CLASSIFICATION, mobilenet_v3_small, 64),
    "vit_tiny": (Task.CLASSIFICATION, vit_tiny, 32),
    "unet": (Task.SEGMENTATION, FAMILIES[Task.SEGMENTATION]["unet"], 32),
    "yolo": (Task.DETECTION, yolo, 64),
}
"""The task, the network and the size of the images of each name."""


class Item(NamedTuple):
    """A network with its images."""

    name: str
    task: Task
    fp32: onnx.ModelProto
    calibration: torch.Tensor
    images: torch.Tensor
    truth: npt.NDArray[np.generic]
    reference: Rows
    """(images, values)."""
    shape: tuple[int, ...]


class Sets(NamedTuple):
    """The images of a network."""

    calibration: torch.Tensor
    judging: torch.Tensor
    truth: torch.Tensor
    """The labels of those that judge."""


def classifier(make: Callable[[], nn.Module], images: torch.Tensor, labels: torch.Tensor, seed: int) -> nn.Module:
    """Train a classifier, and return it with its batch-norms folded.

    Batch-norms take a tenth of each batch: torchvision's MobileNets take a hundredth, for far longer trainings.
    """
    torch.manual_seed(seed)
    model = make().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    attends = any(isinstance(module, torch.nn.MultiheadAttention) for module in model.modules())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4 if attends else 2e-3)
    for _ in range(20 if attends else 12):
        for part in parts(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
    _, channels, height, width = images.shape
    return fold_batch_norms(model.eval(), (channels, height, width)).model.eval()


def item_of(name: str, seed: int) -> Item:
    """Train a network, and run it."""
    task, make, size = _TRAINED[name]
    rest = slice(JUDGING + CALIBRATION, None)
    shape: tuple[int, ...] = (10,)
    if task is Task.CLASSIFICATION:
        images, truth = coloured_digits(seed)
        if size != images.shape[-1]:
            images = functional.interpolate(images, size=size, mode="bilinear")
        model = classifier(make, images[rest], truth[rest], seed)
    else:
        data = labelled(task, seed)
        images, truth, shape = data.images, data.truth, data.shape
        model = trained(make, data, rest, seed)
    sets = Sets(images[JUDGING : JUDGING + CALIBRATION], images[:JUDGING], truth[:JUDGING])
    return _item(f"{name}, seed {seed}", task, model, sets, shape)


def pretrained(folder: Path) -> Item:
    """Return efficientnet-lite0 with pictures of ImageNet, of which 128 calibrate."""
    images, truth = pictures(folder, _PICTURES)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    sets = Sets(images[order[:128]], images[order[128:]], truth[order[128:]])
    return _item("efficientnet-lite0", Task.CLASSIFICATION, lite0(), sets, (1000,))


def _item(name: str, task: Task, model: nn.Module, sets: Sets, shape: tuple[int, ...]) -> Item:
    _, channels, height, width = sets.judging.shape
    fp32 = to_onnx(Typed(model, torch.float32), (channels, height, width), 17).model
    reference = run(Flat(model).eval(), sets.judging)
    return Item(name, task, fp32, sets.calibration, sets.judging, sets.truth.numpy(), reference, shape)


def weights_of(model: onnx.ModelProto) -> dict[str, Rows]:
    """Return a graph's initialisers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def calibrated(item: Item, images: torch.Tensor) -> Calibrated:
    """Return TensorRT's int8 graph with the ranges of some images."""
    weights = weights_of(item.fp32)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "placed.onnx"
        place_pairs(Prepared(images), Graph.INT8, copied(item.fp32), scratch)
        placed = to_opset(_placed(Graph.INT8, scratch, weights), OPSET)
    means = input_means(item.fp32, Prepared(images))
    return Calibrated(requantize(placed, weights, QUANTIZED_TYPES[Precision.INT8]), weights, means)


def for_x86(item: Item, left: tuple[str, ...]) -> onnx.ModelProto:
    """Return the graph for x86, with some nodes in FP32."""
    given = Prepared(item.calibration)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "placed.onnx"
        place_pairs(given, Graph.INT8_CPU, copied(item.fp32), scratch, left)
        placed = onnx.load(scratch)
    corrected = correct_biases(placed, weights_of(item.fp32), input_means(item.fp32, given))
    return centre_outputs(corrected, output_shifts(corrected, item.fp32, given))


def proposal(item: Item) -> tuple[str, ...]:
    """Return the nodes that `sensitivity` would leave: half of the calibration images give ranges, half judge."""
    judging = item.calibration[1::2]
    made = calibrated(item, item.calibration[::2])
    whole = made.leaving([node.name for node in made.model.graph.node])
    spans = (Span("output", item.shape, slice(None)),)
    detector = DETECTOR if item.task is Task.DETECTION else None
    meaning = Meaning(item.task, spans, detector=detector)
    reference, centre = run_graph(whole, judging), Centre.of(whole, Prepared(item.calibration[::2]))

    def judged_of(model: onnx.ModelProto) -> Judged:
        return judge(run_graph(centre.centred(model), judging), reference, meaning)

    nodes = {node.name: node for node in quantized_nodes(made.model)}
    found = {name: judged_of(made.quantizing(name)).distance for name in nodes}
    layers = frozenset(name for name, node in nodes.items() if node.op_type in QUANTIZED_OPERATORS)
    gates = Gates()
    left, _ = propose(
        Ranked(tuple(sorted(found, key=lambda name: -found[name])), layers),
        judged_of(made.leaving(())),
        lambda names: judged_of(made.leaving(names)),
        lambda judged: keeps(judged, gates.of(Precision.INT8), gates.margin, item.task),
    )
    return left


def run_x86(model: onnx.ModelProto, images: torch.Tensor) -> Rows:
    """Run a graph as it is deployed, with ONNX Runtime's integer kernels."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: part.numpy()})[0] for part in parts(images, BATCH)]
    return np.concatenate([output.reshape(len(output), -1) for output in found])


def shown(item: Item, rows: Rows) -> str:
    """Return the cells of a graph's outputs: relative L2, the drop, its upper bound and the verdict."""
    distance = np.linalg.norm(rows - item.reference) / np.linalg.norm(item.reference)
    gates = Gates()
    loss: Loss | None
    if item.task is Task.CLASSIFICATION:
        loss = judge_drop(compare_answers(rows, item.reference, item.truth.astype(np.int64), 0.0), gates.margin)
    elif item.task is Task.DETECTION:
        loss = DETECTOR.judge(rows, item.reference, item.truth, gates, is_part=False).loss
    else:
        loss = JUDGES[item.task](Case(rows, item.reference, item.shape, item.truth)).loss
    if loss is None:
        sys.exit(f"{item.name}: nothing can be lost")
    return f"{distance:.3f} | {100 * loss.drop:.2f} | {100 * loss.drop_high:.2f} | {loss.verdict.value}"


def show(item: Item) -> None:
    """Print the rows of a network: all of int8, and what `sensitivity` leaves, if it leaves something."""
    left = proposal(item)
    made = calibrated(item, item.calibration)
    for names in dict.fromkeys([(), left]):
        wide = made.leaving(names)
        centred = centre_outputs(wide, output_shifts(wide, item.fp32, Prepared(item.calibration)))
        kept = f"{len(names)} of {len(quantized_nodes(made.model))}"
        suffix = "-mixed" if names else ""
        print(f"| {item.name} | int8{suffix} | {kept} | {shown(item, run_graph(centred, item.images))} |", flush=True)
        rows = run_x86(for_x86(item, names), item.images)
        print(f"| {item.name} | int8{suffix}-cpu | {kept} | {shown(item, rows)} |", flush=True)
    if left:
        print(f"{item.name} leaves {', '.join(left)}", file=sys.stderr)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(_TRAINED), choices=list(_TRAINED))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--lite0", type=Path, metavar="FOLDER", help="efficientnet-lite0, with pictures of ImageNet")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser gives advice that the export has followed
    print("| network | graph | nodes left | relative L2 | drop | at most | |\n|---|---|---|---|---|---|---|")
    for name in options.networks:
        for seed in options.seeds:
            show(item_of(name, seed))
    if options.lite0:
        show(pretrained(options.lite0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
