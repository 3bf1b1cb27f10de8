"""NVIDIA's containers whose TensorRT loads an engine. Pure."""

from __future__ import annotations

from model_artifacts.records import EngineFlavour

_TRITON = {
    "10.8.0.43": "25.02",
    "10.9.0.34": "25.04",
    "10.10.0.31": "25.05",
    "10.11.0.33": "25.06",
    "10.13.2.6": "25.08",
    "10.13.3.9": "25.10",
    "10.14.1.48": "26.01",
    "10.15.1.29": "26.02",
    "10.16.0.72": "26.03",
    "10.16.1.11": "26.04",
}
"""Release of Triton's image by the TensorRT in it, which must be the engine's own; the newest release of several.

Source: the table "Container Versions" of NVIDIA's release notes of Triton 26.04, as a script of another project
(X-Square-Robot/Qwen3TTS-Streaming, scripts/bash/ngc_matrix.conf, 2026-07-08) has copied it; NVIDIA's own page could not
be read here. People who looked into 26.02 found the same. Rows are left out whose CUDA is not that of Triton's
docs/introduction/compatibility.md; that page has the TensorRT of the images for TensorRT-LLM alone.
"""
UNKNOWN = "unknown"
NO_PARTS = "none: Triton runs no batch in parts"
"""The fact in place of an image: Triton would take the engine of one part for that of a batch."""


def triton_image(flavour: EngineFlavour, version: str) -> str:
    """Return Triton's image for an engine; `unknown` for a version without a known one.

    Args:
        flavour: the flavour that built the engine.
        version: its full version.
    """
    if flavour is EngineFlavour.TENSORRT_RTX:
        return "none: Triton runs no engine of TensorRT-RTX"
    return f"nvcr.io/nvidia/tritonserver:{_TRITON[version]}-py3" if version in _TRITON else UNKNOWN
