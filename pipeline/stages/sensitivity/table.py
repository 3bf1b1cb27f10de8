"""The sensitivities of layers as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from model_artifacts.cli.tables import console_for
from pipeline.stages.common.tables import without_empty_columns

if TYPE_CHECKING:
    from typing import TextIO

    from model_artifacts.records import Accuracy
    from pipeline.records import Sensitivity


def print_sensitivity(record: Sensitivity, stream: TextIO) -> None:
    """Print each node's sensitivity, and the line for pipeline.yaml that leaves the proposed nodes unquantised."""
    console = console_for(stream)
    graph = record.graph.value
    judging = f"{record.samples} calibration images judge, {record.calibrated_on} give ranges"
    console.print(Text(f"one node at a time in {graph}: {judging}"))
    rows = [
        (
            f"{layer.distance:.1e}",
            f"{layer.cosine:.6f}",
            record.measured(layer.loss),
            f"{layer.weights:,}",
            layer.name,
            layer.kind,
        )
        for layer in record.layers
    ]
    console.print(without_empty_columns(("rel. L2", "cosine", record.measure, "weights"), ("node", "operator"), rows))
    console.print(Text(f"all nodes in {graph}: {_words(record, record.plain, record.plain_loss)}"))
    if not record.proposal:
        console.print(Text("these images pass the gate: no node has to stay in floating point"))
        return
    verdict = "these images pass the gate" if record.kept else "these images still MISS the gate; use fp16"
    words = _words(record, record.proposed, record.proposed_loss)
    console.print(Text(f"all nodes but {len(record.proposal)}: {words}; {verdict}"))
    if record.kept:
        names = ", ".join(record.proposal)
        stream.write(f"to add variants {graph}-mixed beside {graph}, put this line into pipeline.yaml:\n")
        stream.write(f"leave_unquantized: {{{graph}: [{names}]}}\n")


def _words(record: Sensitivity, accuracy: Accuracy, loss: float) -> str:
    distances = f"relative L2 {accuracy.relative_l2:.1e}, cosine {accuracy.cosine:.6f}"
    return f"{distances}, {record.measure} {record.measured(loss)}"
