"""What this host is: package versions, processor, NVIDIA driver, git commit. Read, never guessed."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import uuid
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.records import EngineFlavour, GitState, Gpu, Host, Tool

if TYPE_CHECKING:
    from types import ModuleType

_DISTRIBUTIONS = {
    EngineFlavour.TENSORRT: (
        "tensorrt-cu13-bindings",
        "tensorrt-cu12-bindings",
        "tensorrt-bindings",
        "tensorrt",
    ),
    EngineFlavour.TENSORRT_RTX: ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
}
"""Which installed distribution tells a module's version; those with the bindings know it best."""


def now() -> datetime:
    """Return the present, in UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)


@cache
def version(package: str) -> str:
    """Return the installed version of a package, "absent" where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def tools(*packages: str) -> tuple[Tool, ...]:
    """Return the packages with their versions, Python first."""
    python = Tool(name="python", version=platform.python_version())
    return (python, *(Tool(name=package, version=version(package)) for package in packages))


def threads() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def installed(module: str) -> bool:
    """Return whether a top-level module can be found; it is not imported."""
    return importlib.util.find_spec(module) is not None


def read_host() -> Host:
    """Return this host's GPUs and TensorRTs; neither is touched, so this is quick."""
    found = flavours()
    majors = tuple(cuda_major(EngineFlavour(tool.name)) for tool in found)
    return Host(gpus=gpus(), flavours=found, cuda_majors=majors, torch=version("torch"))


def installed_torch_tensorrt() -> Tool:
    """Return the installed Torch-TensorRT: it has two names, of which one excludes the other."""
    found = (Tool(name=name, version=version(name)) for name in ("torch-tensorrt", "torch-tensorrt-rtx"))
    return next((tool for tool in found if tool.version != "absent"), Tool(name="torch-tensorrt", version="absent"))


def tensorrt_of(library: Tool) -> EngineFlavour:
    """Return the TensorRT that a Torch-TensorRT builds its engines with."""
    return EngineFlavour.TENSORRT_RTX if library.name == "torch-tensorrt-rtx" else EngineFlavour.TENSORRT


def installed_onnxruntime() -> Tool:
    """Return the installed ONNX Runtime: with CUDA, or the plain one."""
    found = [Tool(name=name, version=version(name)) for name in ("onnxruntime-gpu", "onnxruntime")]
    return next((tool for tool in found if tool.version != "absent"), found[-1])


@cache
def flavours() -> tuple[Tool, ...]:
    """Return the installed TensorRTs with their full versions: `tensorrt` before `tensorrt_rtx`."""
    return tuple(
        Tool(name=flavour.value, version=_flavour_version(flavour))
        for flavour in EngineFlavour
        if installed(flavour.value)
    )


def _flavour_version(flavour: EngineFlavour) -> str:
    distribution = _distribution(flavour)
    return version(distribution) if distribution else "unknown"


def cuda_major(flavour: EngineFlavour) -> int | None:
    """Return the major version of the CUDA that an installed TensorRT is made for; None where its name does not say."""
    found = re.search(r"-cu(\d+)", _distribution(flavour))
    return int(found[1]) if found else None


def _distribution(flavour: EngineFlavour) -> str:
    """Return which distribution a TensorRT was installed from, "" where none is known."""
    return next((name for name in _DISTRIBUTIONS[flavour] if version(name) != "absent"), "")


def missing_gpu() -> str:
    """Return why there is no GPU here, where there is none."""
    return missing_driver() or "CUDA shows no GPU"


@cache
def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA shows this process (`CUDA_VISIBLE_DEVICES` counts), in its order."""
    if missing_driver():
        return ()
    from cuda.bindings import driver  # noqa: PLC0415 - 0.2 s that hosts without a driver save

    _, count = driver.cuDeviceGetCount()
    return tuple(_gpu(driver, index) for index in range(count))


def _gpu(driver: ModuleType, index: int) -> Gpu:
    attributes = driver.CUdevice_attribute
    _, device = driver.cuDeviceGet(index)
    _, name = driver.cuDeviceGetName(128, device)
    _, unique = driver.cuDeviceGetUuid(device)
    _, memory = driver.cuDeviceTotalMem(device)
    _, major = driver.cuDeviceGetAttribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    _, minor = driver.cuDeviceGetAttribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(
        index=index,
        uuid=f"GPU-{uuid.UUID(bytes=bytes(unique.bytes))}",
        name=name.split(b"\0", 1)[0].decode(),
        compute_capability=10 * major + minor,
        memory_bytes=memory,
    )


@cache
def driver_version() -> str:
    """Return the NVIDIA driver's version such as 580.159.04, "absent" where there is none."""
    if missing_driver():
        return "absent"
    import pynvml  # noqa: PLC0415 - hosts without a driver do without

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as exc:
        return f"unknown ({exc})"


@cache
def driver_cuda() -> int | None:
    """Return the latest CUDA that the driver runs, by its major version; a forward-compatible libcuda counts."""
    if missing_driver():
        return None
    from cuda.bindings import driver  # noqa: PLC0415 - 0.2 s that hosts without a driver save

    _, number = driver.cuDriverGetVersion()
    return int(number) // 1000


@cache
def processor() -> str:
    """Return the processor's name as the system gives it, with the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {threads()} cores"


def host_memory_bytes() -> int:
    """Return how much memory this host has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def missing_driver() -> str | None:
    """Return why no NVIDIA driver can be used here, None where one can."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver found"
    from cuda.bindings import driver  # noqa: PLC0415 - 0.2 s that hosts without a driver save

    (status,) = driver.cuInit(0)
    if status == driver.CUresult.CUDA_SUCCESS:
        return None
    return f"the NVIDIA driver does not start: {status.name}"


def git_state(folder: Path) -> GitState | None:
    """Return the commit checked out in `folder` and whether tracked files differ from it; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return GitState(commit=commit, dirty=_git(folder, "status", "--porcelain", "--untracked-files=no") != "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - git is where the PATH says
            check=False,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
