"""A calibrated graph, from which any choice of its nodes is quantised."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.stages.quantize.bias_correction import correct_biases
from pipeline.stages.quantize.rewriting import leave, leave_idle

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    import numpy.typing as npt
    import onnx

    Means = dict[str, npt.NDArray[np.float32]]
    Weights = dict[str, npt.NDArray[np.float32]]


class Calibrated(NamedTuple):
    """TensorRT's quantised graph in its FP32 form, with the FP32 weights."""

    model: onnx.ModelProto
    weights: Weights
    """FP32 initialisers by name."""
    means: Means
    """Mean inputs of the convolutions."""
    is_proposed: bool = False
    """True if the pairs stand where they were proposed, of use to kernels or not."""

    def leaving(self, names: Collection[str]) -> onnx.ModelProto:
        """Return the graph with the named nodes in floating point, and those that quantising is of no more use for.

        The biases of the others are corrected, as `make_quantized` corrects them.
        """
        left = leave(self.model, self.weights, names)
        return self._corrected(left if self.is_proposed else leave_idle(left, self.weights))

    def quantizing(self, name: str) -> onnx.ModelProto:
        """Return the graph with all nodes but the named one in floating point, and its bias corrected."""
        others = [node.name for node in self.model.graph.node if node.name != name]
        return self._corrected(leave(self.model, self.weights, others))

    def _corrected(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return correct_biases(model, self.weights, self.means)
