"""Deserialised engine → the GPU memory of its weights and of an execution context."""

from __future__ import annotations

from typing import Any


def stream_weights(engine: Any) -> bool:  # noqa: ANN401 - TensorRT is untyped
    """Keep some weights in the host's memory if the GPU lacks the room; return True if it does.

    Only engines that were built with `weight_streaming` can. By default the library keeps all weights on the GPU. It
    takes another budget only before the first context, and the memory of a context depends on the budget.
    """
    streamable = getattr(engine, "streamable_weights_size", 0)
    if not streamable or not hasattr(engine, "weight_streaming_budget_v2"):
        return False
    engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return bool(engine.weight_streaming_budget_v2 < streamable)


def activation_bytes(trt: Any, engine: Any, profiles: int) -> int:  # noqa: ANN401 - TensorRT is untyped
    """Return the memory of a context, or of one context for each of several profiles."""
    newer = hasattr(engine, "device_memory_size_v2")
    largest = int(engine.device_memory_size_v2 if newer else engine.device_memory_size)
    if profiles == 1:
        return largest
    if not hasattr(trt, "ExecutionContextAllocationStrategy"):  # every context takes the memory of the largest profile
        return largest * profiles
    of_profile = engine.get_device_memory_size_for_profile_v2 if newer else engine.get_device_memory_size_for_profile
    return sum(int(of_profile(profile)) for profile in range(profiles))
