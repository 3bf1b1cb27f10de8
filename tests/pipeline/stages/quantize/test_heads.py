"""Last products of int8 in FP16: what becomes FP16, and what must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.errors import QuantizeError
from model_artifacts.records import Graph
from pipeline.adapters import onnx_graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.quantize.heads import half_heads
from pipeline.stages.quantize.stage import make_quantized
from tests.support.pooled import drawn, graph_of, node, operators, run
from tests.support.quantized_graphs import load, weights

if TYPE_CHECKING:
    from pathlib import Path

POOL = [node("GlobalAveragePool", "image", "pooled"), node("Flatten", "pooled", "flat")]
CONSTANTS = {"weights": drawn(4, 3), "bias": drawn(4, seed=1)}
PRODUCT = node("Gemm", "flat weights bias", "logits", transB=1)
FLAT = {"logits": ("batch", 4)}


def test_a_product_and_its_pool_are_in_half_precision() -> None:
    """The graph takes and gives FP32; the losses of the constants are told."""
    model = graph_of([*POOL, PRODUCT], CONSTANTS, FLAT)
    before = model.SerializeToString()
    found = half_heads(model, ["node_logits"], ["node_pooled"])
    assert operators(found.model) == ["Cast", "GlobalAveragePool", "Flatten", "Gemm", "Cast"]
    assert {values.dtype.name for values in weights(found.model).values()} == {"float16"}
    assert [cast.name for cast in found.casts] == ["weights", "bias"]
    onnx_graph.check(found.model)
    image = drawn(3, 3, 6, 5, seed=2)
    np.testing.assert_allclose(run(found.model, image)[0], run(model, image)[0], rtol=1e-2, atol=1e-2)
    assert model.SerializeToString() == before


def test_a_pair_gives_half_precision_by_itself() -> None:
    """The scale holds the same number; another reader of the pair keeps FP32."""
    scales = {"scale": np.array(0.0625, np.float32)}
    pair = [node("QuantizeLinear", "image scale", "narrow"), node("DequantizeLinear", "narrow scale", "wide")]
    pool = [node("GlobalAveragePool", "wide", "pooled"), POOL[1]]
    model = graph_of([*pair, *pool, PRODUCT, node("Relu", "wide", "seen")], CONSTANTS | scales, FLAT)
    onnx_graph.convert(model, 19)
    found = half_heads(model, ["node_logits"], ["node_pooled"])
    assert operators(found.model).count("DequantizeLinear") == 2
    assert operators(found.model).count("Cast") == 1
    onnx_graph.check(found.model)
    image = drawn(3, 3, 6, 5, seed=2)
    np.testing.assert_allclose(run(found.model, image)[0], run(model, image)[0], rtol=1e-2, atol=1e-2)


def test_what_others_read_stays_as_it_is() -> None:
    """The flattened tensor is an output, too: the product alone is in half precision."""
    model = graph_of([*POOL, PRODUCT], CONSTANTS, FLAT | {"flat": ("batch", 3)})
    assert operators(half_heads(model, ["node_logits"], ["node_pooled"]).model) == [
        "GlobalAveragePool",
        "Flatten",
        "Cast",
        "Gemm",
        "Cast",
    ]


def test_a_product_of_computed_weights_stays() -> None:
    """So does one that reads quantised weights."""
    nodes = [*POOL, node("Relu", "weights", "computed"), node("Gemm", "flat computed bias", "logits", transB=1)]
    model = graph_of(nodes, CONSTANTS, FLAT)
    found = half_heads(model, ["node_logits"], ["node_pooled"])
    assert (found.model, found.casts) == (model, ())


def test_another_node_in_front_is_none_of_it() -> None:
    """It is no pool, so that the product alone is in half precision."""
    found = half_heads(graph_of([*POOL, PRODUCT], CONSTANTS, FLAT), ["node_logits"], [])
    assert operators(found.model) == ["GlobalAveragePool", "Cast", "Flatten", "Gemm", "Cast"]


def test_plain_int8_alone_has_it(copied: Path) -> None:
    """The record tells the cast's losses; the form of opset 17 stays, and so does x86's graph with its key."""
    config = copied / "pipeline.yaml"
    before = Project.load(config, STAGES)
    plain = {graph: before.onnx(graph) for graph in (Graph.INT8, Graph.INT8_CPU)}
    config.write_text(config.read_text() + "quantization: {head: float16}\n")
    project = Project.load(config, STAGES)
    record = make_quantized(project, Graph.INT8)
    assert len(record.casts) == 2
    assert operators(load(project, Graph.INT8))[-5:] == ["Cast", "AveragePool", "Reshape", "Gemm", "Cast"]
    older, now = plain[Graph.INT8].opset17, record.opset17
    assert older
    assert now
    assert now.sha256 == older.sha256
    assert record.key != plain[Graph.INT8].key
    assert make_quantized(project, Graph.INT8_CPU).key == plain[Graph.INT8_CPU].key


def test_a_graph_without_such_a_product_is_refused(copied: Path) -> None:
    """It is in int8."""
    config = copied / "pipeline.yaml"
    config.write_text(config.read_text() + "quantization: {head: float16, last: true}\n")
    with pytest.raises(QuantizeError, match=r"(?s)quantization\.head: no last product.*remove `head`"):
        make_quantized(Project.load(config, STAGES), Graph.INT8)
