"""The libraries of the build, each behind one module: TensorRT, Torch-TensorRT and ONNX."""
