"""Parts of a batch that run at once: those of a network and a batch range, and real engines for one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from model_artifacts.records import AxisRange, BatchRange, EngineFlavour, Graph, TensorSpec
from model_artifacts.tensorrt.flavour import load_flavour
from pipeline.adapters.trials.parts import Parts, parts_of
from tests.support.engine_requests import build, request_for, request_of, with_setting

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project

IMAGE = TensorSpec(name="image", shape=("batch", 3, 8, 8), dtype="float32", layout="NCHW")
LOGITS = TensorSpec(name="logits", shape=("batch", 16), dtype="float32", layout="NC")


def fixed(size: int) -> BatchRange:
    """Return the range of one batch size."""
    return BatchRange(min=size, opt=size, max=size)


def test_the_engine_is_for_one_part() -> None:
    """Its own batch is a share of what callers send."""
    assert parts_of(fixed(64), 4, [IMAGE, LOGITS]) == Parts(4, fixed(16))
    assert parts_of(fixed(64), 1, []) == Parts(1, fixed(64))


HEIGHT = AxisRange(name="height", min=8, opt=8, max=16)


@pytest.mark.parametrize(
    ("profile", "ends", "says"),
    [
        (fixed(63), [IMAGE, LOGITS], "a batch of 63 has no 4 equal parts"),
        (BatchRange(min=4, opt=8, max=8), [IMAGE, LOGITS], "an engine for several sizes runs each batch as a whole"),
        (BatchRange(min=1, opt=8, max=8, tuned=(4, 8)), [], "an engine for several sizes runs each batch as a whole"),
        (BatchRange(min=8, opt=8, max=8, axes=(HEIGHT,)), [], "an engine for several sizes"),
        (fixed(64), [IMAGE.model_copy(update={"shape": (64, 3, 8, 8)})], "the batch size of image is fixed"),
        (fixed(8), [IMAGE, LOGITS], "a part of logits has 128 bytes, 128 more than a multiple of 256"),
    ],
    ids=["indivisible", "range", "profiles", "axes", "fixed in the graph", "unaligned"],
)
def test_a_batch_that_stays_whole_says_why(profile: BatchRange, ends: list[TensorSpec], says: str) -> None:
    """The setting is recorded as unsupported for this engine, and the engine is built without it."""
    number, left, obstacle = parts_of(profile, 4, ends)
    assert (number, left) == (1, profile)
    assert obstacle.startswith(says)


def test_a_real_engine_for_a_part_has_the_records_of_the_batch(built: Project) -> None:
    """Tensors and memory are those of the whole batch, and the digest is no other engine's."""
    flavour = load_flavour(EngineFlavour.TENSORRT_RTX)
    whole = request_of(built, Graph.FP16, fixed(128), workspace_bytes=2**26)
    split = build(flavour, with_setting(whole, "batch_parts", 2))
    half = build(flavour, replace(whole, profile=fixed(64)))
    assert split.built_for.batch_parts == 2
    assert [item.shape[0] for item in (*split.inputs, *split.outputs)] == [128, 128]
    assert split.memory.activation_bytes == 2 * half.memory.activation_bytes
    assert split.memory.weights_bytes == half.memory.weights_bytes
    settings = {item.name: item for item in split.settings}
    assert settings["batch_parts"].applied
    assert settings["profile"].value == "b128"
    assert split.layers_sha256 != half.layers_sha256
    assert half.built_for.batch_parts == 1
    assert "batch_parts" not in half.built_for.to_json()


@pytest.mark.parametrize(
    ("node", "kind", "note", "rows"),
    [
        (helper.make_node("Greater", ["image", "one"], ["out"]), TensorProto.BOOL, "out is of the type BOOL", 128),
        (
            helper.make_node("Slice", ["image", "one", "end", "first", "three"], ["out"]),
            TensorProto.FLOAT,
            "out has 21 rows for a batch of 64",
            43,
        ),
        (
            helper.make_node("Reshape", ["image", "wide"], ["out"]),
            TensorProto.FLOAT,
            "out has 32 rows for a batch of 64",
            64,
        ),
    ],
    ids=["a type without arrays", "rows of some samples", "rows of two samples"],
)
def test_a_real_engine_whose_parts_would_be_others_is_built_as_a_whole(
    tmp_path: Path, node: onnx.NodeProto, kind: int, note: str, rows: int
) -> None:
    """How many rows there are shows once the batch is known: 21 and 21 would be no 43."""
    file = tmp_path / "odd.onnx"
    onnx.save(odd(node, kind), file)
    whole = replace(request_for(file), profile=fixed(128), workspace_bytes=2**26)
    engine = build(load_flavour(EngineFlavour.TENSORRT_RTX), with_setting(whole, "batch_parts", 2))
    (setting,) = [item for item in engine.settings if item.name == "batch_parts"]
    assert not setting.applied
    assert setting.note.startswith(note)
    assert engine.built_for.batch_parts == 1
    assert [item.shape[0] for item in (*engine.inputs, *engine.outputs)] == [128, rows]


def odd(node: onnx.NodeProto, kind: int) -> onnx.ModelProto:
    """Return a graph of one operator whose output's rows are not those of its samples."""
    values = {"first": [0], "one": [1], "three": [3], "end": [2**31 - 1], "wide": [-1, 128]}
    used = [helper.make_tensor(name, TensorProto.INT64, [len(values[name])], values[name]) for name in node.input[1:]]
    if kind == TensorProto.BOOL:
        used = [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64])
    out = helper.make_tensor_value_info("out", kind, ["rows", 128 if "wide" in node.input else 64])
    graph = helper.make_graph([node], "odd", [image], [out], used)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_real_engine_without_equal_parts_is_built_as_a_whole(built: Project) -> None:
    """The record says why the setting is not applied."""
    flavour = load_flavour(EngineFlavour.TENSORRT_RTX)
    engine = build(flavour, with_setting(request_of(built, Graph.FP16), "batch_parts", 2))
    (setting,) = [item for item in engine.settings if item.name == "batch_parts"]
    assert (setting.applied, setting.value) == (False, "2")
    assert setting.note == "an engine for several sizes runs each batch as a whole"
    assert engine.built_for.batch_parts == 1
