"""Stage `export`: ONNX graphs in FP32, FP16 and BF16."""
