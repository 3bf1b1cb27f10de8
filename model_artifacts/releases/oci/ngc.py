"""NVIDIA's containers whose TensorRT loads an engine. Pure."""

from __future__ import annotations

from model_artifacts.records import EngineFlavour

_TRITON = {"10.15.1.29": "nvcr.io/nvidia/tritonserver:26.02-py3"}
"""Triton's image by the TensorRT in it, which must be the engine's own.

Source: people who looked into the image and wrote `TensorRT 10.15.1` down; NVIDIA's own support matrix could not be
read here. The table of Triton's docs/introduction/compatibility.md is of the images for TensorRT-LLM alone.
"""
UNKNOWN = "unknown"


def triton_image(flavour: EngineFlavour, version: str) -> str:
    """Return Triton's image for an engine; `unknown` for a version without a known one.

    Args:
        flavour: the flavour that built the engine.
        version: its full version.
    """
    if flavour is EngineFlavour.TENSORRT_RTX:
        return "none: Triton runs no engine of TensorRT-RTX"
    return _TRITON.get(version, UNKNOWN)
