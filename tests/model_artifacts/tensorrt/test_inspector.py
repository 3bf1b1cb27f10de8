"""Layers as an engine's inspector reports them: real excerpts, and arbitrary JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.records import LayerShare, Precision
from model_artifacts.tensorrt.inspector import EngineLayer, of_profile, read_layers, shares

if TYPE_CHECKING:
    from collections.abc import Sequence

RTX_FP16 = r"""{"Layers": [{
  "Name": "__myl_CastConc_myl0_0",
  "LayerType": "kgen",
  "Inputs": [
  {
    "Name": "image",
    "Dimensions": [1,3,224,224],
    "Format/Datatype": "Float"
  }],
  "Outputs": [
  {
    "Name": "relu.1_2_myl0",
    "Dimensions": [1,4,224,224],
    "Format/Datatype": "Half"
  }],
  "TacticName": "__myl_CastConc_0xdaa954dc95381d64c62525f1ecf05d2c",
  "StreamId": 0,
  "Metadata": "[ONNX Layer: node__to_copy]\u001f[ONNX Layer: node_conv2d]\u001f[ONNX Layer: node_relu]"
},{
  "Name": "node_conv2d_myl0_1",
  "LayerType": "correlation",
  "Inputs": [
  {
    "Name": "relu.1_2_myl0",
    "Dimensions": [1,4,224,224],
    "Format/Datatype": "Half"
  }],
  "Outputs": [
  {
    "Name": "max_pool2d.1_3_myl0",
    "Dimensions": [1,64,112,112],
    "Format/Datatype": "Half"
  }],
  "TacticName": "__myelin_CASK_STUB",
  "StreamId": 0,
  "Metadata": "[ONNX Layer: node_conv2d]\u001f[ONNX Layer: node_relu]"
},{
  "Name": "node_max_pool2d_myl0_2",
  "LayerType": "maxpool",
  "Inputs": [
  {
    "Name": "max_pool2d.1_3_myl0",
    "Dimensions": [1,64,112,112],
    "Format/Datatype": "Half"
  }],
  "Outputs": [
  {
    "Name": "relu_1.1_4_myl0",
    "Dimensions": [1,64,56,56],
    "Format/Datatype": "Half"
  }],
  "TacticName": "__myelin_CASK_STUB",
  "StreamId": 0,
  "Metadata": "[ONNX Layer: node_max_pool2d]"
},{
  "Name": "node_conv2d_2_myl0_4",
  "LayerType": "correlation",
  "Inputs": [
  {
    "Name": "relu_2.1_5_myl0",
    "Dimensions": [1,64,56,56],
    "Format/Datatype": "Half"
  },
  {
    "Name": "relu_1.1_4_myl0",
    "Dimensions": [1,64,56,56],
    "Format/Datatype": "Half"
  }],
  "Outputs": [
  {
    "Name": "relu_3.1_6_myl0",
    "Dimensions": [1,64,56,56],
    "Format/Datatype": "Half"
  }],
  "TacticName": "__myelin_CASK_STUB",
  "StreamId": 0,
  "Metadata": "[ONNX Layer: node_conv2d_2]\u001f[ONNX Layer: node_relu_2]\u001f[ONNX Layer: node_add_45]"
},{
  "Name": "__myl_MulSumAddCast_myl0_24",
  "LayerType": "kgen",
  "Inputs": [
  {
    "Name": "__myln_k_arg__bb1_25_myl0",
    "Dimensions": [512,1],
    "Format/Datatype": "Half"
  }],
  "Outputs": [
  {
    "Name": "logits",
    "Dimensions": [1,10],
    "Format/Datatype": "Float"
  }],
  "TacticName": "__myl_MulSumAddCast_0xe7075acee30d27220d8a786fd920b611",
  "StreamId": 0,
  "Metadata": "[ONNX Layer: node_linear]\u001f[ONNX Layer: node__to_copy_1]"
}],
"Bindings": ["image"
,"logits"
]}"""
"""Layers 0, 1, 2, 4 and 24 of ResNet-18 in FP16 at batch 1, built by TensorRT-RTX 1.4 and read on an H100."""

DYNAMIC_INT8 = {
    "Name": "(Unnamed Layer* 1) [Convolution]",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "Reformatted Input Tensor 0 to (Unnamed Layer* 1) [Convolution]",
            "Location": "Device",
            "Dimensions": [-1, 128, 14, 14],
            "Format/Datatype": "N/A due to dynamic shapes",
        }
    ],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 13824},
    "Bias": {"Type": "Float", "Count": 12},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw",
    "TacticValue": "0xff4e814e86dc840c",
}
"""A convolution of a TensorRT 8 engine whose batch is dynamic."""

FP16_FORMAT = "Two wide channel vectorized row major FP16 format"
FP32_FORMAT = "Row major linear FP32"
TF32_TACTIC = "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x128x16_stage4"
FP32_TACTIC = "ampere_scudnn_128x64_relu_small_nn_v1"


def cask(name: str, shown: str, tactic: str = "", kind: str = "CaskConvolution") -> dict[str, object]:
    """Return a layer as TensorRT 8.6 and 10 tell of one."""
    inputs = [{"Name": "x", "Location": "Device", "Dimensions": [1, 64, 56, 56], "Format/Datatype": shown}]
    return {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": [], "TacticName": tactic}


def read(*layers: object) -> tuple[EngineLayer, ...]:
    """Return the layers as they are read from JSON."""
    return read_layers(json.dumps({"Layers": layers, "Bindings": ["image", "logits"]}))


def precision(layer: object) -> Precision | None:
    """Return the type in which one layer is read to multiply."""
    return read(layer)[0].precision


def test_layers_of_tensorrt_rtx_are_read() -> None:
    """Every layer has its name, its type and the kernel that runs it."""
    layers = read_layers(RTX_FP16)
    assert [layer.kind for layer in layers] == ["kgen", "correlation", "maxpool", "correlation", "kgen"]
    assert (layers[1].name, layers[1].tactic) == ("node_conv2d_myl0_1", "__myelin_CASK_STUB")


def test_a_layer_tells_its_output_and_its_weights() -> None:
    """The first output's dimensions, and how many values the weights have, where they are told."""
    assert read_layers(RTX_FP16)[1].shape == "1x64x112x112"
    (told,) = read(cask("conv", "Half") | {"Weights": {"Type": "Half", "Count": 9408}})
    assert (told.weights, told.shape) == (9408, "")


@pytest.mark.parametrize("kind", ["Reformat", "Shuffle", "copy", "Transpose", "ReorderInput", "Cast"])
def test_copies_are_known(kind: str) -> None:
    """Layers that compute nothing are counted apart; a kernel that casts and convolves is not one of them."""
    assert EngineLayer("x", kind, "", None).only_copies
    assert not EngineLayer("x", "CaskConvolution", "", None).only_copies
    assert not EngineLayer("x", "CastConvolution", "", None).only_copies


def test_convolutions_of_tensorrt_rtx_are_counted() -> None:
    """`correlation` is TensorRT-RTX's convolution; pooling and generated kernels do not count."""
    assert shares(read_layers(RTX_FP16)) == (
        LayerShare(precision=Precision.FP16, layers=2, examples=("node_conv2d_myl0_1", "node_conv2d_2_myl0_4")),
    )


@pytest.mark.parametrize(
    ("shown", "tactic", "expected"),
    [
        (FP16_FORMAT, "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16", Precision.FP16),
        ("Channel major FP16 format where channel % 8 == 0", "", Precision.FP16),
        ("Half", "", Precision.FP16),
        (FP32_FORMAT, FP32_TACTIC, Precision.FP32),
        (FP32_FORMAT, TF32_TACTIC, Precision.TF32),
        ("Float", "cutlass_tensorop_s1688fprop_optimized_TF32_64x64_16x10", Precision.TF32),
        ("Thirty-two wide channel vectorized row major Int8 format.", "", Precision.INT8),
        ("Int8 NC/32HW32", "", Precision.INT8),
        ("BFloat16", "", Precision.BF16),
        ("Row major linear BF16", "", Precision.BF16),
        ("FP8", "", Precision.FP8),
        ("Row major linear FP8 format (E4M3)", "", Precision.FP8),
        ("UInt8", "", None),
        ("Int32", "", None),
        ("N/A due to dynamic shapes", "", None),
        (FP16_FORMAT, "kernel_with_tf32_in_its_name", Precision.FP16),
    ],
)
def test_type_is_that_of_the_first_input(shown: str, tactic: str, expected: Precision | None) -> None:
    """A convolution multiplies in its input's type; FP32 whose kernel's name says so, in TF32."""
    assert precision(cask("conv", shown, tactic)) is expected


def test_type_that_dynamic_shapes_hide_is_the_weights() -> None:
    """TensorRT does not tell an input's type where the batch is dynamic, and tells the weights'."""
    assert precision(DYNAMIC_INT8) is Precision.INT8


def test_tf32_with_dynamic_shapes_is_told_by_the_tactic() -> None:
    """FP32 weights and a TF32 kernel are TF32, whatever the shapes are."""
    layer = DYNAMIC_INT8 | {"Weights": {"Type": "Float", "Count": 1}, "TacticName": TF32_TACTIC}
    assert precision(layer) is Precision.TF32


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("CaskConvolution", True),
        ("CaskGemmConvolution", True),
        ("CaskDeconvolutionV2", True),
        ("CudnnConvolution", True),
        ("correlation", True),
        ("gemm", True),
        ("MatrixMultiply", True),
        ("CublasConvolution", True),
        ("FullyConnected", True),
        ("fc", True),
        ("PoolingTiled", False),
        ("CaskPooling", False),
        ("PointWiseV2", False),
        ("Reduce", False),
        ("kgen", False),
        ("NoOp", False),
    ],
)
def test_convolutions_and_matrix_products_multiply(kind: str, *, counts: bool) -> None:
    """Only convolutions and matrix products count for an engine's precision."""
    assert read(cask("x", FP16_FORMAT, kind=kind))[0].multiplies is counts


def test_parameter_type_tells_what_a_kernel_is_for() -> None:
    """The type of a layer's parameters gives its operation if the layer's own type is the library's."""
    assert read(cask("x", FP16_FORMAT, kind="CaskV3") | {"ParameterType": "Convolution"})[0].multiplies


def test_reformat_does_not_count() -> None:
    """Copying a convolution's input into another format is no convolution, whatever it is called."""
    name = "Reformatting CopyNode for Input Tensor 0 to node_conv2d"
    layer = cask(name, FP32_FORMAT, kind="Reformat") | {"ParameterType": "Reformat", "Origin": "REFORMAT"}
    assert shares(read(layer, cask("conv", FP16_FORMAT))) == (
        LayerShare(precision=Precision.FP16, layers=1, examples=("conv",)),
    )


def test_most_frequent_type_comes_first_with_a_few_names() -> None:
    """The first 32 of forty convolutions in one type are named, and types are ordered by their counts."""
    layers = [cask("first", FP32_FORMAT), *(cask(f"c{index}", FP16_FORMAT) for index in range(40))]
    assert shares(read(*layers)) == (
        LayerShare(precision=Precision.FP16, layers=40, examples=tuple(f"c{index}" for index in range(32))),
        LayerShare(precision=Precision.FP32, layers=1, examples=("first",)),
    )


@pytest.mark.parametrize("text", ["{}", '{"Layers": []}', '{"Layers": ["conv1", "relu1"], "Bindings": []}'])
def test_engine_without_details_tells_nothing(text: str) -> None:
    """An engine whose layers are names only is not taken to be of any type."""
    assert shares(read_layers(text)) == ()


@pytest.mark.parametrize("inputs", [[], None, ["x"], [{"Name": "x"}]])
def test_layer_that_does_not_tell_its_inputs_is_of_no_type(inputs: object) -> None:
    """A convolution of an unknown type counts as one."""
    assert shares(read({"Name": "conv", "LayerType": "CaskConvolution", "Inputs": inputs})) == (
        LayerShare(precision=None, layers=1, examples=("conv",)),
    )


_TENSORS = st.dictionaries(
    st.sampled_from(["Name", "Format/Datatype", "Datatype", "Format"]),
    st.sampled_from(["Float", "Half", "Int8", FP16_FORMAT, FP32_FORMAT]) | st.text(max_size=8) | st.none(),
)
_TEXTS = st.sampled_from(["CaskConvolution", "gemm", "Reformat", TF32_TACTIC]) | st.text(max_size=8) | st.none()
_LAYERS = st.text(max_size=4) | st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("Name", "LayerType", "ParameterType", "TacticName"), _TEXTS),
        "Inputs": st.none() | st.lists(_TENSORS, max_size=2),
        "Weights": st.none() | st.fixed_dictionaries({"Type": st.sampled_from(["Float", "Half", "Int8"])}),
    },
)


@given(st.lists(_LAYERS, max_size=8))
def test_every_layer_that_multiplies_is_counted_once(layers: Sequence[object]) -> None:
    """Whatever an inspector says, the shares add up, none is empty, and no type appears twice."""
    found = read(*layers)
    counted = shares(found)
    assert sum(share.layers for share in counted) == sum(layer.multiplies for layer in found)
    assert len({share.precision for share in counted}) == len(counted)
    assert [share.layers for share in counted] == sorted((share.layers for share in counted), reverse=True)


@pytest.mark.parametrize(
    ("profile", "names"),
    [
        (0, ["node_conv2d + node_relu", "__myl_Cas_myl3_0"]),
        (
            1,
            [
                "node_conv2d + node_relu [profile 1]",
                "__myl_Cas_myl12_1",
                "node_linear [profile 1]_myl12_2",
            ],
        ),
        (2, ["node__to_copy [profile 2]", "__myl_Cas_myl18_3"]),
        (3, []),
    ],
)
def test_layers_go_with_the_profile_named_last(profile: int, names: list[str]) -> None:
    """Names as TensorRT 10.6 shows them for an engine of three profiles (2026-11-29, H200)."""
    shown = (
        "node_conv2d + node_relu",
        "__myl_Cas_myl3_0",
        "node_conv2d + node_relu [profile 1]",
        "__myl_Cas_myl12_1",
        "node_linear [profile 1]_myl12_2",
        "node__to_copy [profile 2]",
        "__myl_Cas_myl18_3",
    )
    layers = tuple(EngineLayer(name, "gemm", "", None) for name in shown)
    assert [layer.name for layer in of_profile(layers, profile)] == names
