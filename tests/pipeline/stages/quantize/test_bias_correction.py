"""Correction of biases: the mean of a convolution with quantised weights is that of the exact one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.stages.quantize.bias_correction import (
    Centre,
    centre_outputs,
    correct_biases,
    input_means,
    output_shifts,
)
from tests.support.quantized_graphs import Given, weights

Array = npt.NDArray[np.float32]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0.5, 1.5, (8, 4, 5, 5)).astype(np.float32)


def graph(given: dict[str, Array], *, groups: int = 1, bias: bool = True) -> onnx.ModelProto:
    """Return two convolutions in a row, the second with a Q/DQ pair on its weights."""
    names = ["second_scale", "second_zero_point"]
    tensors = {**given, "second_scale": np.float32(1), "second_zero_point": np.int8(0)}
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


def narrow(exact: dict[str, Array], *, readers: int = 1) -> onnx.ModelProto:
    """Return a convolution as x86's graph has it: int8 weights of a scale each channel, and an int32 bias."""
    scales = np.linspace(0.5, 2, 4, dtype=np.float32)
    tensors = {
        "second_quantized": np.rint(exact["second"] / scales[:, None, None, None]).astype(np.int8),
        "second_scale": scales,
        "second_zero_point": np.zeros(4, np.int8),
        "bias_quantized": np.rint(exact["second_bias"] / (scales * 1e-3)).astype(np.int32),
        "bias_scale": scales * np.float32(1e-3),
    }
    dequantized = [
        helper.make_node("DequantizeLinear", ["second_quantized", "second_scale", "second_zero_point"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias_quantized", "bias_scale"], ["b"], axis=0),
    ]
    convolutions = [helper.make_node("Conv", ["image", "w", "b"], [f"map{at}"], name="b") for at in range(readers)]
    made = helper.make_graph(
        [*dequantized, *convolutions],
        "narrow",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, 5, 5])],
        [helper.make_tensor_value_info("map0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_int32_bias_is_corrected_in_its_own_steps() -> None:
    """The mean output of x86's graph is that of the exact weights, but for half a step of the bias."""
    exact = {"second": RANDOM.uniform(-3, 3, (4, 4, 1, 1)).astype(np.float32), "second_bias": np.ones(4, np.float32)}
    mean = IMAGES.mean(axis=(0, 2, 3))

    corrected = weights(correct_biases(narrow(exact), exact, {"b": mean}))

    scales = corrected["second_scale"]
    got = (corrected["second_quantized"][:, :, 0, 0] * scales[:, None]) @ mean
    got += corrected["bias_quantized"] * corrected["bias_scale"]
    want = exact["second"][:, :, 0, 0] @ mean + exact["second_bias"]
    assert corrected["bias_quantized"].dtype == np.int32
    assert np.abs(got - want).max() <= 0.5 * corrected["bias_scale"].max() + 1e-5
    assert np.abs(weights(narrow(exact))["bias_quantized"] - corrected["bias_quantized"]).max() > 10


def test_bias_that_two_nodes_read_stays() -> None:
    """The shift of one of them would be wrong for the other."""
    exact = {"second": RANDOM.uniform(-3, 3, (4, 4, 1, 1)).astype(np.float32), "second_bias": np.ones(4, np.float32)}
    shared = narrow(exact, readers=2)
    before = shared.SerializeToString()

    assert correct_biases(shared, exact, {"b": IMAGES.mean(axis=(0, 2, 3))}).SerializeToString() == before


def classifier(weight: Array, bias: Array, *, beta: float = 1.0, softmax: bool = False) -> onnx.ModelProto:
    """Return a product of the flattened image, which is an output or lies in front of a softmax."""
    made = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["inner" if softmax else "logits"], beta=beta),
            *([helper.make_node("Softmax", ["inner"], ["logits"])] if softmax else []),
        ],
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, 5, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


WEIGHT = RANDOM.uniform(-1, 1, (100, 3)).astype(np.float32)
BIAS = np.array([1, 2, 3], np.float32)


def test_outputs_get_the_mean_of_the_exact_graph() -> None:
    """What all images share of an error of the outputs is taken from the bias, and nothing else."""
    exact, rounded = classifier(WEIGHT, BIAS), classifier(np.rint(WEIGHT), BIAS)
    shifts = output_shifts(rounded, exact, Given(IMAGES))

    centred = centre_outputs(rounded, shifts)

    assert np.abs(shifts["logits"]).max() > 0.1
    again = output_shifts(centred, exact, Given(IMAGES))
    np.testing.assert_allclose(again["logits"], 0, atol=1e-5)
    np.testing.assert_array_equal(weights(centred)["weight"], np.rint(WEIGHT))


@pytest.mark.parametrize(
    "more", [pytest.param({"beta": 2.0}, id="a scaled bias"), pytest.param({"softmax": True}, id="a softmax behind")]
)
def test_output_that_no_plain_bias_ends_stays(more: dict[str, Any]) -> None:
    """A shift of the bias would be another one of the output."""
    exact, rounded = classifier(WEIGHT, BIAS, **more), classifier(np.rint(WEIGHT), BIAS, **more)

    assert output_shifts(rounded, exact, Given(IMAGES)) == {}


def test_one_run_of_the_exact_graph_centres_several_graphs() -> None:
    """Each quantised graph has a shift of its own, against the same outputs."""
    exact = classifier(WEIGHT, BIAS)
    centre = Centre.of(exact, Given(IMAGES))

    for steps in (1, 2):
        rounded = classifier((np.rint(WEIGHT * steps) / steps).astype(np.float32), BIAS)
        assert np.abs(centre.shifts(rounded)["logits"]).max() > 0.05
        np.testing.assert_allclose(centre.shifts(centre.centred(rounded))["logits"], 0, atol=1e-5)


def test_outputs_that_are_not_finite_stay() -> None:
    """No bias becomes NaN for them."""
    exact, broken = classifier(WEIGHT, BIAS), classifier(np.full_like(WEIGHT, np.inf), BIAS)

    assert output_shifts(broken, exact, Given(IMAGES)) == {}
