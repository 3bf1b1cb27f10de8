"""A model that is an ONNX file, instead of a factory of torch."""
