"""Stage `quantize`: QDQ ONNX graphs in int8 and fp8."""
