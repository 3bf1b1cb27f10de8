"""Rewrites of ONNX graphs for faster kernels: they compute the same, in another form. Pure."""
