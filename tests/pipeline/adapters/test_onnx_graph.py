"""ONNX files: the digest of their computation, their operator sets, and the losses of a cast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import InferenceSession

from model_artifacts.records import Graph, Precision
from pipeline.adapters import onnx_graph
from pipeline.adapters.onnx_graph import (
    canonical_digest,
    check,
    convert,
    count_cast,
    layer_shares,
    opset_of,
    save,
    structure_digest,
    tensor_specs,
    to_opset,
    use_oldest_ir,
)
from pipeline.records import TensorCast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.planning.project import Project

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def graph(
    *,
    weight: np.ndarray[Any, np.dtype[Any]] = WEIGHT,
    alpha: float = 1.0,
    opset: int = 18,
    output: str = "y",
    initializers: tuple[str, ...] = ("w", "unused"),
) -> onnx.ModelProto:
    """Return a graph of one Gemm."""
    values = {"w": numpy_helper.from_array(weight, "w"), "unused": numpy_helper.from_array(WEIGHT, "unused")}
    node = helper.make_node("Gemm", ["x", "w"], [output], name="gemm", alpha=alpha, transB=1)
    return helper.make_model(
        helper.make_graph(
            [node],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 2])],
            [values[name] for name in initializers],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )


def with_constant(value: onnx.TensorProto) -> onnx.ModelProto:
    """Return a graph that adds a Constant node's value."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Add", ["x", "c"], ["y"])],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        )
    )


def with_branches(name: str, operator: str = "Neg") -> onnx.ModelProto:
    """Return a graph with an If, whose branches hold a node of this name."""

    def branch(kind: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT, [3])
        return helper.make_graph([helper.make_node(kind, ["x"], ["z"], name=name)], "branch", [], [output])

    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch(operator), else_branch=branch("Identity"))
    return helper.make_model(
        helper.make_graph(
            [node],
            "graph",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
                helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        )
    )


def with_function(operator: str) -> onnx.ModelProto:
    """Return a graph that calls a local function of one operator."""
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    body = helper.make_function("local", "F", ["a"], ["b"], [helper.make_node(operator, ["a"], ["b"])], opset[:1])
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("F", ["x"], ["y"], domain="local")],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        ),
        opset_imports=opset,
        functions=[body],
    )


def _rename(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = "another"


def _describe(model: onnx.ModelProto) -> None:
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "words"
    model.graph.node[0].attribute[0].doc_string = "words"


def _produce(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version, model.ir_version = "other", "9.9", model.ir_version + 1


def _annotate(model: onnx.ModelProto) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "built", "today"


def _reorder_attributes(model: onnx.ModelProto) -> None:
    attributes = list(model.graph.node[0].attribute)[::-1]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(attributes)


def _reencode(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend(WEIGHT.ravel().tolist())


@pytest.mark.parametrize("change", [_rename, _describe, _produce, _annotate, _reorder_attributes, _reencode])
def test_digest_ignores(change: Callable[[onnx.ModelProto], None]) -> None:
    """Names of nodes, words, the producer, the order of attributes and the encoding of weights do not count."""
    model = graph()
    before = canonical_digest(model)

    change(model)

    assert canonical_digest(model) == before


def test_digest_ignores_the_order_of_weights() -> None:
    """The order of weights does not change the digest, because their names identify them."""
    assert canonical_digest(graph()) == canonical_digest(graph(initializers=("unused", "w")))


@pytest.mark.parametrize(
    "other",
    [
        graph(alpha=2.0),
        graph(weight=WEIGHT + np.float32(1e-7)),
        graph(weight=WEIGHT.reshape(3, 2)),
        graph(weight=WEIGHT.view(np.int32)),
        graph(opset=19),
        graph(output="z"),
        graph(initializers=("w",)),
    ],
    ids=["attribute", "weight", "shape", "type", "opset", "output", "initialisers"],
)
def test_digest_notices(other: onnx.ModelProto) -> None:
    """A change of an attribute, a weight, a shape, a type, the operator set or a name of an output counts."""
    assert canonical_digest(other) != canonical_digest(graph())


def test_structure_ignores_what_weights_hold() -> None:
    """Other values of the weights keep the digest of the structure and change that of the computation."""
    other = graph(weight=WEIGHT + np.float32(1e-7))
    assert structure_digest(other) == structure_digest(graph())
    assert structure_digest(other) != canonical_digest(other)


@pytest.mark.parametrize(
    "other",
    [
        graph(alpha=2.0),
        graph(weight=WEIGHT.reshape(3, 2)),
        graph(weight=WEIGHT.view(np.int32)),
        graph(opset=19),
        graph(output="z"),
        graph(initializers=("w",)),
    ],
    ids=["attribute", "shape", "type", "opset", "output", "initialisers"],
)
def test_structure_notices(other: onnx.ModelProto) -> None:
    """A change of anything but the weights' values changes the structure's digest, as it does the computation's."""
    assert structure_digest(other) != structure_digest(graph())


def test_digest_notices_an_operator() -> None:
    """Another operator changes the digest of a graph."""
    model = graph()
    before = canonical_digest(model)
    model.graph.node[0].op_type = "MatMul"

    assert canonical_digest(model) != before


def test_digest_notices_an_input() -> None:
    """Another shape of an input changes the digest of a graph."""
    model = graph()
    before = canonical_digest(model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8

    assert canonical_digest(model) != before


def test_digest_is_of_the_file(tmp_path: Path) -> None:
    """Writing and reading a graph keeps its digest."""
    onnx.save(graph(), tmp_path / "a.onnx")

    assert canonical_digest(onnx.load(tmp_path / "a.onnx")) == canonical_digest(graph())


def test_digest_holds_external_weights(tmp_path: Path) -> None:
    """Weights in a file beside the graph count like those in it."""
    onnx.save(graph(), tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0, location="a.bin")

    assert canonical_digest(onnx.load(tmp_path / "a.onnx")) == canonical_digest(graph())


def test_digest_ignores_how_constants_are_encoded() -> None:
    """A constant in a node's attribute is its value, as a weight is."""
    raw = numpy_helper.from_array(WEIGHT[0], "c")
    plain = helper.make_tensor("c", TensorProto.FLOAT, [3], WEIGHT[0].tolist())

    assert canonical_digest(with_constant(raw)) == canonical_digest(with_constant(plain))


def test_digest_notices_a_constant() -> None:
    """Another value in a node's attribute changes the digest."""
    first, second = (numpy_helper.from_array(row, "c") for row in WEIGHT)

    assert canonical_digest(with_constant(first)) != canonical_digest(with_constant(second))


def test_digest_ignores_names_in_branches() -> None:
    """Names of nodes do not count in the body of an If either."""
    assert canonical_digest(with_branches("a")) == canonical_digest(with_branches("b"))


def test_digest_notices_a_branch() -> None:
    """Another operator in the body of an If changes the digest."""
    assert canonical_digest(with_branches("a")) != canonical_digest(with_branches("a", "Abs"))


def test_digest_notices_a_function() -> None:
    """Another body of a function that the graph calls changes the digest."""
    assert canonical_digest(with_function("Neg")) != canonical_digest(with_function("Abs"))


def test_opset_is_the_default_domains() -> None:
    """The operator set is ONNX's own, wherever it stands in the list."""
    model = graph(opset=20)
    model.opset_import.insert(0, helper.make_opsetid("com.microsoft", 1))

    assert opset_of(model) == 20


@pytest.mark.parametrize(("rank", "layout"), [(4, "NCHW"), (2, "NC")])
def test_specs_name_their_layout(rank: int, layout: str) -> None:
    """Four axes are an image batch, two are logits."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 3, 8, 8][:rank])

    (spec,) = tensor_specs([value])

    assert (spec.shape, spec.dtype, spec.layout) == (("batch", 3, 8, 8)[:rank], "float16", layout)


def test_valid_graph_passes() -> None:
    """A graph that is valid passes the check in silence."""
    check(graph())


@pytest.mark.parametrize("most", [0, 1024])
def test_contradictory_shapes_do_not_pass(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that contradict each other are found, whether or not the checker sees the weights."""
    monkeypatch.setattr(onnx_graph, "_SMALL", most)

    with pytest.raises(onnx.shape_inference.InferenceError):
        check(graph(weight=WEIGHT.reshape(3, 2)))


def test_conversion_keeps_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter does not see the weights, and the converted model has them, once and as inputs never."""
    monkeypatch.setattr(onnx_graph, "_SMALL", 0)
    model = graph(opset=18)

    convert(model, 17)

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert (opset_of(model), model.ir_version, [value.name for value in model.graph.input]) == (17, 8, ["x"])
    assert len(model.graph.initializer) == 2
    np.testing.assert_array_equal(values["w"], WEIGHT)


def test_saved_model_is_read_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose weights were written one by one holds the same model, for onnx and for ONNX Runtime."""
    monkeypatch.setattr(onnx_graph, "_SMALL", 5)
    model = graph(weight=np.arange(600, dtype=np.float32).reshape(2, 300), opset=17)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 300
    use_oldest_ir(model)
    model.producer_name, model.graph.doc_string = "somebody", "words"
    file = tmp_path / "a.onnx"

    save(model, file)

    again = onnx.load(file)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    inputs = np.ones((1, 300), np.float32)
    np.testing.assert_array_equal(
        InferenceSession(file).run(None, {"x": inputs})[0], [[np.arange(300).sum(), np.arange(300, 600).sum()]]
    )


def test_failed_conversion_changes_nothing() -> None:
    """A model whose operator has no older form stays as it is."""
    model = with_constant(numpy_helper.from_array(WEIGHT[0], "c"))
    model.opset_import[0].version = 18
    model.graph.node[1].op_type = "NoSuchOperator"
    before = model.SerializeToString(deterministic=True)

    with pytest.raises((RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        convert(model, 17)

    assert model.SerializeToString(deterministic=True) == before


def reduction(noop: int) -> onnx.ModelProto:
    """Return a mean over the last axis as opset 18 writes it, with its axes as an input."""
    axes = numpy_helper.from_array(np.array([-1]), "axes")
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=0, noop_with_empty_axes=noop)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [2, 3]), ("y", [2]))
    ]
    return helper.make_model(
        helper.make_graph([node], "graph", values[:1], values[1:], [axes]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def test_lowering_moves_axes_into_an_attribute() -> None:
    """A reduction of opset 18 becomes that of 17, in the IR version of its time, and computes the same."""
    lowered = to_opset(reduction(noop=0), 17)

    assert (opset_of(lowered), lowered.ir_version) == (17, 8)
    assert [(node.name, list(node.input)) for node in lowered.graph.node] == [("mean", ["x"])]
    (mean,) = ReferenceEvaluator(lowered).run(None, {"x": WEIGHT})
    np.testing.assert_array_equal(mean, np.array([1, 4], np.float32))


def test_raising_keeps_the_results() -> None:
    """A graph of opset 17 in 19 computes the same, in the IR version that knows float8."""
    raised = to_opset(to_opset(reduction(noop=0), 17), 19)

    assert (opset_of(raised), raised.ir_version) == (19, 9)
    np.testing.assert_array_equal(ReferenceEvaluator(raised).run(None, {"x": WEIGHT})[0], np.array([1, 4], np.float32))


def test_conversion_leaves_the_model() -> None:
    """The model that is converted stays as it was."""
    model = reduction(noop=0)
    before = model.SerializeToString(deterministic=True)

    to_opset(model, 17)

    assert model.SerializeToString(deterministic=True) == before


def test_what_cannot_be_lowered() -> None:
    """A reduction over no axes that does nothing has no counterpart in opset 17, and that is an error."""
    with pytest.raises(onnx.checker.ValidationError, match="noop_with_empty_axes"):
        to_opset(reduction(noop=1), 17)


def test_cast_is_counted() -> None:
    """Values that become zero, subnormal or infinite count; those that already were zero or infinite do not."""
    wide = np.array([0, 1, 1e-9, -1e-5, 7e4, np.inf], np.float32)

    with np.errstate(over="ignore"):
        cast = count_cast("w", wide, wide.astype(np.float16), 2.0**-14)

    assert cast == TensorCast(name="w", elements=6, underflow=1, subnormal=1, overflow=1)


# What a graph multiplies in.


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        (Graph.FP32, [(Precision.FP32, 3)]),
        (Graph.FP16, [(Precision.FP16, 3)]),
        (Graph.BF16, [(Precision.BF16, 3)]),
        (Graph.INT8, [(Precision.INT8, 2), (Precision.FP32, 1)]),
        (Graph.INT8_CPU, [(Precision.INT8, 2), (Precision.FP32, 1)]),
    ],
)
def test_layers_multiply_in_the_type_of_their_operands(
    built: Project, kind: Graph, shares: list[tuple[Precision, int]]
) -> None:
    """Each graph tells the type that its layers compute in; dequantised operands count as quantised."""
    found = layer_shares(onnx.load(built.paths.onnx(kind)))
    assert [(share.precision, share.layers) for share in found] == shares


def test_one_quantised_operand_makes_no_quantised_product() -> None:
    """A product with one operand in floating point is a product in floating point."""
    model = graph()
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    model.graph.initializer.append(scale)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3), np.int8), "stored"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["stored", "scale"], ["wide"]))
    model.graph.node[1].input[1] = "wide"
    assert [(share.precision, share.examples) for share in layer_shares(model)] == [(Precision.FP32, ("gemm",))]


def test_a_layer_that_reads_an_output_has_a_type() -> None:
    """A graph may give a tensor that a later layer reads, whose type stands with the outputs."""
    model = graph()
    middle = model.graph.node[0].output[0]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), np.float32), "more"))
    model.graph.node.append(helper.make_node("MatMul", [middle, "more"], ["last"], name="last"))
    model.graph.output.append(helper.make_tensor_value_info("last", TensorProto.FLOAT, None))
    assert [(share.precision, share.layers) for share in layer_shares(model)] == [(Precision.FP32, 2)]
