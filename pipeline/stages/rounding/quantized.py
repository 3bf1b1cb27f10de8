"""A run of a Q/DQ graph in a process of its own, which imports no torch: that takes longer than a small graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.sessions.onnx import run_stand_in

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs


def run_graph(file: Path, images: Batch, batch: int) -> Outputs:
    """Run a Q/DQ graph.

    Args:
        file: the ONNX file.
        images: as `run_stand_in` takes them.
        batch: the batch size.

    Raises:
        RunError: the graph cannot be loaded or run.
    """
    return run_stand_in(file.read_bytes(), images, batch)
