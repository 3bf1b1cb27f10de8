"""Traces of torch, run as they are compiled, and compared with the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model_artifacts.errors import ExportError, one_line
from model_artifacts.sessions.arithmetic import call, strict_fp32, tensors, torch_batch
from model_artifacts.sessions.feeds.batches import rows_of_batch
from model_artifacts.sessions.onnx import named
from pipeline.stages.common.sizes.expected import require_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from model_artifacts.sessions.onnx import Outputs
    from pipeline.stages.common.sizes.expected import Expected

_CHECKS = (torch.ops.aten._assert_scalar.default, torch.ops.aten._assert_tensor_metadata.default)  # noqa: SLF001 - the operators' names
"""The operators that Torch-TensorRT drops from a trace (2.11, `remove_assert_nodes`)."""


def without_checks(program: torch.export.ExportedProgram) -> nn.Module:
    """Return a trace as it is compiled: without its checks."""
    module = program.module(check_guards=False)
    for node in [node for node in module.graph.nodes if node.target in _CHECKS]:
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def require_trace(run: nn.Module, wanted: Sequence[Expected], what: str) -> None:
    """Refuse a trace that computes something else than the network.

    Args:
        run: the trace without its checks.
        wanted: the network's own outputs.
        what: the trace, as messages name it.

    Raises:
        ExportError: an output differs, or torch cannot run the trace.
    """
    require_outputs(wanted, [_outputs(run, item, what) for item in wanted], what)


def _outputs(run: nn.Module, expected: Expected, what: str) -> tuple[Outputs, ...]:
    """Run a trace on the samples of the network's outputs, in each of their batches."""
    found = []
    for size in expected.batches:
        batch = torch_batch(rows_of_batch(expected.images, slice(size)))
        try:
            with strict_fp32():
                outputs = [output.detach().numpy() for output in tensors(call(run, batch))]
        except Exception as exc:  # torch raises almost any type
            raise ExportError(
                f"torch cannot run {what}",
                where=f"{expected.precision.value}, in a batch of {size}{expected.where}",
                got="; ".join(part for part in (one_line(exc), expected.cause) if part),
                fix=expected.fix,
            ) from exc
        found.append(named(expected.names, outputs))
    return tuple(found)
