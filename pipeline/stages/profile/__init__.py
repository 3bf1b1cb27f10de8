"""Layers and kernels that take an artifact's time."""
