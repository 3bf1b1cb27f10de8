"""GPUs and TensorRTs that hosts may have, for tests that need none of them."""

from __future__ import annotations

from pipeline.records import Gpu, Host, Tool

H100 = Gpu(
    index=0,
    uuid="GPU-b7c579ba-ea0e-c2fd-2dc2-2a782d5fbe8b",
    name="NVIDIA H100 80GB HBM3",
    compute_capability=90,
    memory_bytes=80 * 2**30,
)
L4 = Gpu(
    index=1,
    uuid="GPU-00000000-1111-2222-3333-444444444444",
    name="NVIDIA L4",
    compute_capability=89,
    memory_bytes=24 * 2**30,
)
TRT86 = Tool(name="tensorrt", version="8.6.0")
TRT10 = Tool(name="tensorrt", version="10.15.1.29")
RTX = Tool(name="tensorrt_rtx", version="1.4.0.76")


def host(*gpus: Gpu, flavours: tuple[Tool, ...] = (RTX,)) -> Host:
    """Return a host with these GPUs and TensorRTs."""
    return Host(gpus=gpus, flavours=flavours)
