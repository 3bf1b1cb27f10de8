"""A user's ONNX file as a torch module, run by ONNX Runtime on the processor: the FP32 reference of such a model.

Importing this module imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from model_artifacts.errors import SourceError, one_line
from model_artifacts.host.environment import threads

if TYPE_CHECKING:
    from pathlib import Path

_DTYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
"""Types of an input that arrays in float32 are converted to; others stay as they are."""
_ERRORS = 3
"""ONNX Runtime's log level of errors."""


class OnnxNetwork(nn.Module):
    """A graph with all of ONNX Runtime's optimisations off."""

    def __init__(self, file: Path, batch: int | None = None) -> None:
        """Load a graph.

        Args:
            file: the ONNX file, with all of its data in it.
            batch: the one batch size that the graph takes; None if it takes any. Images are run in such batches, the
                last of them filled up with copies of its last image.

        Raises:
            SourceError: ONNX Runtime cannot load the file.
        """
        super().__init__()
        self._batch = batch
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = _ERRORS
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime's exceptions have no common public base
            raise SourceError(
                "ONNX Runtime cannot load the ONNX file, so that there is no FP32 reference",
                where=str(file),
                got=one_line(exc),
                fix="export it with operators of ONNX alone, in an operator set that this onnxruntime knows",
            ) from exc
        given = self._session.get_inputs()
        self.input_names = tuple(item.name for item in given)
        self._dtypes = tuple(_DTYPES.get(item.type) for item in given)
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the graph's output, as a tensor, or several in the graph's order.

        Args:
            inputs: the tensor of each input, in the graph's order and any layout of memory, such as float32 (batch,
                channels, height, width).
        """
        arrays = [
            np.ascontiguousarray(tensor.detach().numpy(), dtype=dtype)
            for tensor, dtype in zip(inputs, self._dtypes, strict=True)
        ]
        count = len(arrays[0])
        size = self._batch or count
        parts: list[list[Any]] = []
        for start in range(0, count, size):
            there = min(size, count - start)
            cut = [array[start : start + size] for array in arrays]
            filled = [np.concatenate([part, *[part[-1:]] * (size - there)]) if there < size else part for part in cut]
            found = self._session.run(self.output_names, dict(zip(self.input_names, filled, strict=True)))
            parts.append([output[:there] for output in found])
        outputs = tuple(torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True))
        return outputs if len(outputs) > 1 else outputs[0]
