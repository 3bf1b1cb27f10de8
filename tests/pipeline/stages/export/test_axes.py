"""The axes of a graph's outputs, beside those of the network's own outputs."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from model_artifacts.errors import ExportError
from pipeline.stages.export.axes import name_outputs


def graph_of(*shape: int | str | None) -> onnx.GraphProto:
    """Return a graph with one output of this shape."""
    return helper.make_graph([], "graph", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)])


@pytest.mark.parametrize("given", ["((height - 1)//4) + 1", "height", None], ids=["formula", "name", "unknown"])
def test_an_axis_that_follows_gets_the_networks_name(given: str | None) -> None:
    """The batch and the fixed axes stay what they are."""
    graph = graph_of("batch", 3, given, 7)
    name_outputs(graph, [(3, "out_axis_2", 7)])
    dims = graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "out_axis_2", 7]


@pytest.mark.parametrize(
    ("shape", "wanted", "got"),
    [
        (("batch", 3, 32), (3, "height"), r"\(batch, 3, 32\)"),
        (("batch", "height", 32), (3, 32), r"\(batch, height, 32\)"),
        (("batch", None, 32), (3, 32), r"\(batch, \?, 32\)"),
        (("batch", 4, "height"), (3, "height"), r"\(batch, 4, height\)"),
        (("batch", 3), (3, "height"), r"\(batch, 3\)"),
    ],
    ids=["of one size", "follows", "unknown", "other classes", "fewer axes"],
)
def test_a_graph_with_other_axes_is_refused(
    shape: tuple[int | str | None, ...], wanted: tuple[int | str, ...], got: str
) -> None:
    """A trace that keeps one size, or lets another axis follow, computes something else."""
    with pytest.raises(ExportError, match=rf"(?s)in another way than the network's.*'out'.*{got}"):
        name_outputs(graph_of(*shape), [wanted])
