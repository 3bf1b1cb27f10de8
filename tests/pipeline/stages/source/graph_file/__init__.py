"""Tests of models that are ONNX files."""
