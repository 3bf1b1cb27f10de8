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


def print_sensitivity(found: Sensitivity, stream: TextIO) -> None:
    """Print how much each layer minds being quantised, and what to write into pipeline.yaml."""
    console = console_for(stream)
    kind = found.graph.value
    console.print(Text(f"each layer alone in {kind}, {found.samples} calibration images"))
    rows = [
        (
            f"{layer.relative_l2:.1e}",
            f"{layer.cosine:.6f}",
            f"{layer.top1_agreement:.1%}",
            f"{layer.weights:,}",
            layer.name,
            layer.kind,
        )
        for layer in found.layers
    ]
    console.print(without_empty_columns(("rel. L2", "cosine", "agreement", "weights"), ("layer", "operator"), rows))
    console.print(Text(f"all of them in {kind}: {_accuracy_of(found.plain)}"))
    if not found.proposal:
        console.print(Text("which keeps the gate on these images: nothing has to stay in floating point"))
        return
    verdict = "which keeps the gate on these images" if found.kept else "which still MISSES the gate: take fp16"
    console.print(Text(f"all but {len(found.proposal)}: {_accuracy_of(found.proposed)}, {verdict}"))
    if found.kept:
        names = ", ".join(found.proposal)
        stream.write(f"in pipeline.yaml, for variants {kind}-mixed beside {kind}:\n")
        stream.write(f"leave_unquantized: {{{kind}: [{names}]}}\n")


def _accuracy_of(accuracy: Accuracy) -> str:
    return (
        f"relative L2 {accuracy.relative_l2:.1e}, cosine {accuracy.cosine:.6f}, agreement {accuracy.top1_agreement:.1%}"
    )
