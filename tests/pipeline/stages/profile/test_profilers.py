"""Profilers' output: rankings and parsers."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.errors import RunError
from model_artifacts.records import Precision
from model_artifacts.tensorrt.inspector import EngineLayer
from pipeline.stages.profile.profilers import rank_functions, rank_layers, read_kernel_summary, read_onnxruntime_profile
from tests.support.nsight import SUMMARY


def conv(name: str = "conv", kind: str = "Convolution") -> EngineLayer:
    """Return a layer."""
    return EngineLayer(name, kind, "tactic", Precision.FP16, "1x64x56x56", 9408)


def test_the_hottest_layer_is_first() -> None:
    """Times are microseconds of a batch, shares are of all layers, and copies are counted."""
    layers, copies = rank_layers([(conv("a"), 0.1), (conv("b"), 0.6), (conv("c", "Reformat"), 0.3)])
    assert [(layer.name, layer.median_us, layer.share) for layer in layers] == [
        ("b", 600.0, 0.6),
        ("c", 300.0, 0.3),
        ("a", 100.0, 0.1),
    ]
    assert copies == 0.3
    assert (layers[0].kind, layers[0].tactic, layers[0].precision) == ("Convolution", "tactic", Precision.FP16)
    assert (layers[0].shape, layers[0].weights) == ("1x64x56x56", 9408)


def test_no_time_has_no_shares() -> None:
    """Layers that take nothing divide nothing by zero."""
    layers, copies = rank_layers([(conv(), 0.0)])
    assert (layers[0].share, copies) == (0.0, 0.0)


def test_the_hottest_function_is_first() -> None:
    """Functions that took no time are left out."""
    found = rank_functions([("a", 1, 1.0), ("b", 2, 3.0), ("idle", 5, 0.0)])
    assert [(item.name, item.calls, item.share) for item in found] == [("b", 2, 0.75), ("a", 1, 0.25)]


def test_a_kernel_summary_is_read() -> None:
    """Names may hold commas, times are nanoseconds, and messages before the table are ignored."""
    found = read_kernel_summary(SUMMARY)
    assert [(item.name, item.calls, item.total_us, item.share) for item in found] == [
        ("sm90_xmma_fprop<half, (int)3>", 20, 3000.0, 0.75),
        ("copy", 40, 1000.0, 0.25),
    ]


@pytest.mark.parametrize(
    "text", ["", "SKIPPED: profile.sqlite does not contain CUDA kernel data.", SUMMARY.replace("3000000", "many")]
)
def test_another_kernel_summary_is_one_error(text: str) -> None:
    """A text that is no table of kernels is an error, not an empty table."""
    with pytest.raises(RunError, match="nsys wrote"):
        read_kernel_summary(text)


def node(name: str, took: int, **told: object) -> dict[str, Any]:
    """Return an event of ONNX Runtime's profile."""
    shown = {"op_name": "Conv", "output_type_shape": [{"float": [1, 8, 4, 4]}], "parameter_size": "400", **told}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": took, "args": shown}


def test_nodes_are_read_without_their_warm_up() -> None:
    """The median of the last runs counts; sessions and fences are no nodes."""
    events = [{"cat": "Session", "name": "run", "dur": 9}, {"cat": "Node", "name": "a_fence_before", "dur": 9}]
    events += [node("a", took) for took in (900, 20, 30, 40)]
    ((layer, taken),) = read_onnxruntime_profile(json.dumps(events), 3)
    assert layer == EngineLayer("a", "Conv", "", Precision.FP32, "1x8x4x4", 100)
    assert taken == pytest.approx(0.030)


@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.text(), st.just("Node"), st.just("a_kernel_time")),
            lambda inner: st.one_of(
                st.lists(inner), st.dictionaries(st.sampled_from(["cat", "name", "dur", "args", "op_name"]), inner)
            ),
        ).map(json.dumps),
    )
)
def test_no_profile_of_onnxruntime_breaks_the_reader(text: str) -> None:
    """Any file gives layers or a RunError."""
    with suppress(RunError):
        read_onnxruntime_profile(text, 3)
