"""Sections of `pipeline.yaml` about the form of ONNX graphs."""
