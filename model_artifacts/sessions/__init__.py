"""Artifact files → sessions that run batches: engines, torch modules and ONNX files, and their preprocessing."""
