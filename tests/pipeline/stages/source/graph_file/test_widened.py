"""ONNX files in other floating-point types are taken as their FP32 graph, which is tried against the file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_artifacts.errors import SourceError
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.manifest.stage import make_manifest
from pipeline.stages.source.graph_file import widened
from pipeline.stages.source.stage import make_source
from tests.support.onnx_models import in_bfloat16, in_double, make, project_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[[str], Path]


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in float16, with its ends."""
    made: onnx.ModelProto = convert_float_to_float16(model)
    return made


def autocast() -> onnx.ModelProto:
    """Return a model that computes its end in float16."""
    down = helper.make_node("Cast", ["logits"], ["half"], to=TensorProto.FLOAT16)
    up = helper.make_node("Cast", ["half"], ["scores:0"], to=TensorProto.FLOAT)
    return make(tail=[down, up])


COMPARED, ALONE = "apart from those of its own", "was not compared with the file's own"
FILES = {
    "float16": (in_half(make()), "float16", COMPARED),
    "float64": (in_double(make()), "float64", ALONE),
    "autocast": (autocast(), "float16", COMPARED),
    "bfloat16": (in_bfloat16(make(opset=22)), "bfloat16", ALONE),
}


@pytest.mark.parametrize(("model", "kind", "said"), FILES.values(), ids=FILES)
def test_the_stored_graph_is_in_float32(  # noqa: PLR0913 - a case, and pytest's fixtures
    model: onnx.ModelProto, kind: str, said: str, tmp_path: Path, write_config: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """The record, its sentence and a warning say so; the file's own run is compared where ONNX Runtime has one."""
    caplog.set_level(logging.INFO)
    project = project_of(model, tmp_path, write_config)
    record = make_source(project)
    assert record.onnx is not None
    assert record.onnx.widened == (kind,)
    alone = ", not compared with the file's own run" if said == ALONE else ""
    assert record.origin_detail == f"own.onnx, its {kind} in float32{alone}"
    assert (record.onnx.own_distance is None) == bool(record.onnx.uncompared) == (said == ALONE)
    assert record.onnx.uncompared in caplog.text
    assert f"computes in {kind}" in caplog.text
    assert f"{said} {kind}" in caplog.text
    stored = onnx.load(project.paths.source_onnx)
    kinds = {item.data_type for item in stored.graph.initializer}
    assert kinds <= {TensorProto.FLOAT, TensorProto.INT64}
    assert stored.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_the_manifest_has_the_reason_against_a_comparison(tmp_path: Path, write_config: Write) -> None:
    """Who deploys an artifact sees that nothing has tried the reference against the file itself."""
    project = project_of(in_bfloat16(make(opset=22)), tmp_path, write_config)
    record = make_source(project)
    make_data(project, restore_model(project))
    model = make_manifest(project).model
    assert record.onnx is not None
    assert model is not None
    assert model.uncompared == record.onnx.uncompared
    assert "ONNX Runtime cannot run it in its own bfloat16 on a processor: " in model.uncompared
    assert '"uncompared"' in project.paths.manifest.read_text()


def test_a_file_in_float32_says_nothing(tmp_path: Path, write_config: Write) -> None:
    """Its record has no further field."""
    project = project_of(make(), tmp_path, write_config)
    make_source(project)
    text = project.paths.source.read_text()
    assert not [name for name in ("widened", "own_distance", "uncompared") if name in text]


def test_float16_that_overflows_is_said(tmp_path: Path, write_config: Write, caplog: pytest.LogCaptureFixture) -> None:
    """The FP32 run is finite, so that it is a reference."""
    grow = helper.make_node("Mul", ["logits", "many"], ["scores:0"])
    model = in_half(make(tail=[grow], extra=[("many", np.full((1, 5), 60_000, np.float32))]))
    record = make_source(project_of(model, tmp_path, write_config, task="tensors"))
    assert record.onnx is not None
    assert record.onnx.uncompared == "it gives infinities or NaN in its own float16"
    assert "gives infinities or NaN in its own float16" in caplog.text


def test_weights_beyond_float32_are_refused(tmp_path: Path, write_config: Write) -> None:
    """The tensor is named."""
    model = in_double(make())
    values = np.array([1e300] + [0.0] * 4)
    bias = next(item for item in model.graph.initializer if item.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(values, "bias"))
    with pytest.raises(SourceError, match=r"(?s)too large for float32.*'bias'.*model.float\(\)"):
        make_source(project_of(model, tmp_path, write_config))


def test_a_graph_that_computes_something_else_is_refused(
    tmp_path: Path, write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stands in for the file's own outputs unseen."""
    monkeypatch.setattr(widened, "APART", {"float16": 1e-9})
    with pytest.raises(SourceError, match=r"(?s)something else in float32 than in float16.*at most 1e-09 apart"):
        make_source(project_of(in_half(make()), tmp_path, write_config))
