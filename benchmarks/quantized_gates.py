"""The power of the gates of int8 and fp8: the same two tables as `gates.py`, for quantised graphs.

    python benchmarks/quantized_gates.py                        six networks; nine minutes of a core
    python benchmarks/quantized_gates.py --seeds 0 1 2          each trained three times, on other digits
    python benchmarks/quantized_gates.py --networks vit         one network alone

The graph is made from the FP32 export by the pipeline's own functions, and calibrated on digits that nothing else uses.
Its run under ONNX Runtime is the emulation that the gates measure by. Honest builds compute the same graph otherwise:
with ONNX Runtime's fused integer kernels, or with FP16 around the quantised layers, as TensorRT does for fp8. A fault
changes the graph, its images or its logits.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from faults import FAULTS, OF_LOGITS
from gates import EMULATED, SAMPLES, Build, Rejection, Subject, rejection_of, run, show_honest, smallest
from networks import NETWORKS, SEED, coloured_digits, trained
from quantized import CALIBRATION, GRAPHS, Quantized, copied, honest, quantized_of, run_graph
from quantized_faults import OF_GRAPHS, OF_IMAGES, Fault

from model_artifacts.records import Precision
from model_artifacts.sessions.torch_model import Typed
from pipeline.adapters.onnx_graph import use_oldest_ir
from pipeline.config.settings import Gate
from pipeline.stages.export.graph import to_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from faults import Logits


OLD = Gate(cosine=0.99, relative_l2=0.12, top1_agreement=0.98, top1_drop=0.01)
"""The bounds that were the defaults for every network, in int8 and in fp8."""


def rejects(item: Quantized, logits: Logits, rows: npt.NDArray[np.intp] | None = None) -> Rejection:
    """Return the rejection of logits by the gate, and by the fixed bounds of before; `rows` as in `gates.rejects`."""
    chosen = np.arange(len(logits)) if rows is None else rows
    yardstick = item.yardstick._replace(emulated=item.emulated[chosen][:EMULATED])
    return rejection_of(item.subject, logits, chosen, yardstick, OLD)


def builds_of(items: list[Quantized]) -> Iterator[Build]:
    """Yield the honest builds of all quantised graphs."""
    for item in items:
        expected = item.yardstick.rounding.relative_l2_high or 1
        for name, logits in honest(item):
            named = f"{item.precision.value}, {name}"
            yield Build(named, logits, item.subject.reference, expected, partial(rejects, item, logits))


def show_faults(items: list[Quantized]) -> None:
    """Print the size from which each fault is caught in each precision, and by the fixed bounds."""
    print(
        "\n| fault | sizes tried | int8: caught from | by the fixed bounds | fp8: caught from | by the fixed bounds |"
    )
    print("|---|---|---|---|---|---|")
    for fault in OF_GRAPHS:
        rows = [
            (item, [rejects(item, _result(item, fault, size)) for size in fault.sizes])
            for item in items
            if fault.only in {None, item.precision}
        ]
        _show(fault.what, fault.sizes, rows)
    for other in (fault for fault in FAULTS if fault.what.startswith(OF_IMAGES)):
        rows = []
        for item in items:
            changed = [other.change(torch.nn.Identity(), item.subject.images, size)[1] for size in other.sizes]
            rows.append((item, [rejects(item, run_graph(item.graph, images)) for images in changed]))
        _show(other.what, other.sizes, rows)
    for what, sizes, of_logits in OF_LOGITS:
        _show(
            what, sizes, [(item, [rejects(item, of_logits(item.emulated, size)) for size in sizes]) for item in items]
        )
    wrong: dict[str, list[tuple[Quantized, list[Rejection]]]] = {}
    for item in items:
        other_graph = next(peer for peer in items if peer.subject is item.subject and peer is not item)
        for what, logits in (
            ("FP32 called", item.subject.reference),
            ("fp16 called", run(item.subject.model, item.subject.images, Precision.FP16)),
            ("the other of both called", other_graph.emulated),
        ):
            wrong.setdefault(f"{what} this", []).append((item, [rejects(item, logits)]))
    for what, rows in wrong.items():
        _show(what, (1,), rows)


def _result(item: Quantized, fault: Fault, size: float) -> Logits:
    graph = fault.change(item, copied(item.graph), size)
    use_oldest_ir(graph)
    return run_graph(graph, item.subject.images)


def _show(what: str, sizes: tuple[float, ...], rows: list[tuple[Quantized, list[Rejection]]]) -> None:
    cells = []
    for precision in GRAPHS:
        chosen = [found for item, found in rows if item.precision is precision]
        for caught in (
            [[one.caught for one in row] for row in chosen],
            [[one.by_fixed_bounds for one in row] for row in chosen],
        ):
            if not caught:
                cells.append("")
            elif len(sizes) == 1:
                cells.append(f"in {sum(row[0] for row in caught)} of {len(caught)}")
            else:
                cells.append(smallest(sizes, caught))
    tried = ", ".join(f"{size:g}" for size in sizes) if len(sizes) > 1 else ""
    print(f"| {what} | {tried} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Print the tables; return 1 if an honest build was called unfaithful, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[SEED], help="of the digits, colours and weights")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser gives advice that the export has followed
    items: list[Quantized] = []
    print(
        "| network | top-1 | "
        + " | ".join(f"{kind.value}'s rounding, top-1" for kind in GRAPHS)
        + " |\n|---|---|---|---|"
    )
    for seed in arguments.seeds:
        images, labels = coloured_digits(seed)
        test, truth, rest = images[:SAMPLES], labels[:SAMPLES].numpy(), slice(SAMPLES + CALIBRATION, None)
        for name in arguments.networks:
            model = trained(NETWORKS[name], images[rest], labels[rest], seed)
            subject = Subject(f"{name}, seed {seed}", model, test, truth, run(model, test), {})
            _, channels, height, width = test.shape
            fp32 = to_onnx(Typed(model, torch.float32), (channels, height, width), 17).model
            calibration = images[SAMPLES : SAMPLES + CALIBRATION]
            own = [quantized_of(subject, precision, fp32, calibration) for precision in GRAPHS]
            items += own
            shown = [f"{(subject.reference.argmax(axis=1) == truth).mean():.1%}"]
            for item in own:
                top1 = (item.emulated.argmax(axis=1) == truth).mean()
                shown.append(f"{item.yardstick.rounding.relative_l2_high:.1e}, {top1:.1%}")
            print(f"| {subject.name} | {' | '.join(shown)} |", flush=True)
    print()
    alarms = show_honest(builds_of(items))
    show_faults(items)
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
