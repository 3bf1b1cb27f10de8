"""The limits of a GPU's arithmetic and bandwidth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.records import Graph
from pipeline.stages.report.floors import Peak, Work, floor_of, peak_of, work_of

if TYPE_CHECKING:
    from pipeline.planning.project import Project


def test_a_convolution_s_work_by_hand() -> None:
    """Each of 4 x 6 x 6 outputs takes 3 x 3 x 2 products; weights and boundary values are counted once an image."""
    weight = numpy_helper.from_array(np.zeros((4, 2, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [weight],
    )
    assert work_of(helper.make_model(graph)) == Work(4 * 6 * 6 * 2 * 3 * 3, 72, 128 + 144)


def test_the_tiny_network_s_work(built: Project) -> None:
    """Two convolutions and a product, by hand."""
    work = work_of(onnx.load(built.paths.onnx(Graph.FP32)))
    assert work.macs == 32 * 16 * 16 * 27 + 64 * 8 * 8 * 32 * 9 + 1024 * 10


def test_floors_by_hand() -> None:
    """Two operations a product at the peak rate; two bytes a value at the bandwidth, weights once a batch."""
    floor = floor_of(Work(macs=1000, weight_values=500, boundary_values=100), Peak(1e6, 1e6), 4)
    assert floor.arithmetic_ms == pytest.approx(8.0)
    assert floor.bandwidth_ms == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("Tesla T4", 65e12),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, flops: float) -> None:
    """Names that begin alike are told apart."""
    peak = peak_of(name)
    assert peak is not None
    assert peak.fp16_flops == flops


@pytest.mark.parametrize("name", ["AMD EPYC, 2 cores", "NVIDIA GeForce GT 1030", "NVIDIA T400 4GB", ""])
def test_what_is_not_known_has_no_floor(name: str) -> None:
    """Nothing is guessed."""
    assert peak_of(name) is None
