"""Correction of biases: the mean of a convolution with quantised weights is that of the exact one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.stages.quantize.bias_correction import correct_biases, input_means
from tests.support.quantized_graphs import Given

Array = npt.NDArray[np.float32]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0.5, 1.5, (8, 4, 5, 5)).astype(np.float32)


def graph(weights: dict[str, Array], *, groups: int = 1, bias: bool = True) -> onnx.ModelProto:
    """Return two convolutions in a row, the second with a Q/DQ pair on its weights."""
    names = ["second_scale", "second_zero_point"]
    tensors = {**weights, "second_scale": np.float32(1), "second_zero_point": np.int8(0)}
    model_graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "first", "first_bias"], ["middle"], name="a"),
            helper.make_node("QuantizeLinear", ["second", *names], ["second_quantized"]),
            helper.make_node("DequantizeLinear", ["second_quantized", *names], ["second_dequantized"]),
            helper.make_node(
                "Conv",
                ["middle", "second_dequantized", *(["second_bias"] if bias else [])],
                ["map"],
                name="b",
                group=groups,
            ),
        ],
        "two",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, 5, 5])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(model_graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def exact_weights(groups: int) -> dict[str, Array]:
    """Return weights of which the second convolution's are no whole numbers."""
    return {
        "first": RANDOM.uniform(0, 1, (6, 4, 1, 1)).astype(np.float32),
        "first_bias": np.zeros(6, np.float32),
        "second": RANDOM.uniform(-3, 3, (4, 6 // groups, 1, 1)).astype(np.float32),
        "second_bias": np.ones(4, np.float32),
    }


def test_means_are_those_of_the_inputs() -> None:
    """Every convolution has one mean for each channel of its input, over all images."""
    exact = exact_weights(1)

    means = input_means(graph(exact), Given(IMAGES, 3))

    middle = np.einsum("oihw,nihw->noh", exact["first"], IMAGES.mean(axis=(2, 3), keepdims=True))
    np.testing.assert_allclose(means["a"], IMAGES.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(means["b"], middle.mean(axis=(0, 2)), rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_corrected_mean_is_exact(groups: int) -> None:
    """The mean output with rounded weights is that of the exact weights, in each channel and group."""
    exact = exact_weights(groups)
    rounded = graph({**exact, "second": np.rint(exact["second"])}, groups=groups)
    means = input_means(graph(exact, groups=groups), Given(IMAGES))

    corrected = {
        item.name: numpy_helper.to_array(item) for item in correct_biases(rounded, exact, means).graph.initializer
    }

    def outputs(weights: dict[str, Array]) -> Array:
        grouped = means["b"].reshape(groups, -1).repeat(4 // groups, axis=0)
        product: Array = (weights["second"][:, :, 0, 0] * grouped).sum(axis=1) + weights["second_bias"]
        return product

    np.testing.assert_allclose(outputs(corrected), outputs(exact), rtol=1e-5)
    np.testing.assert_array_equal(corrected["first_bias"], exact["first_bias"])


def test_convolution_without_a_bias_stays() -> None:
    """A convolution that has no bias is left as it is."""
    exact = exact_weights(1)
    rounded = graph({**exact, "second": np.rint(exact["second"])}, bias=False)
    before = rounded.SerializeToString()

    assert correct_biases(rounded, exact, input_means(graph(exact), Given(IMAGES))).SerializeToString() == before
