"""Facts about this host, read from the system: package versions, GPUs, processor, NVIDIA driver, git commit."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import subprocess
import uuid
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.host.cores import usable_cores
from model_artifacts.records import EngineFlavour, GitState, Gpu, Host, Tool

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_DISTRIBUTIONS = {
    EngineFlavour.TENSORRT: (
        "tensorrt-cu13-bindings",
        "tensorrt-cu12-bindings",
        "tensorrt-bindings",
        "tensorrt",
    ),
    EngineFlavour.TENSORRT_RTX: ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
}
"""Distributions whose version is the module's; the ones with the bindings come first, as the most exact."""
_ONNXRUNTIME = frozenset({"onnxruntime", "onnxruntime-gpu"})
"""Names by which the rest of the code asks for the version of ONNX Runtime."""


def now() -> datetime:
    """Return the present time in UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)


@cache
def version(package: str) -> str:
    """Return the installed version of a package; "absent" if it is not installed.

    ONNX Runtime comes under many names, and two of them may lie over each other: the version is that of its module.
    """
    if package in _ONNXRUNTIME:
        return _onnxruntime_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def tools(*packages: str) -> tuple[Tool, ...]:
    """Return the packages with their versions, Python first."""
    python = Tool(name="python", version=platform.python_version())
    return (python, *(Tool(name=package, version=version(package)) for package in packages))


def threads() -> int:
    """Return the number of processor cores that this process may use, a part of a core rounded up."""
    return math.ceil(usable_cores())


def installed(module: str) -> bool:
    """Return True if a top-level module is installed; the module is not imported."""
    return importlib.util.find_spec(module) is not None


def read_host() -> Host:
    """Return this host's GPUs and TensorRT flavours, without opening a GPU or importing a library."""
    present = flavours()
    majors = tuple(cuda_major(EngineFlavour(tool.name)) for tool in present)
    return Host(gpus=gpus(), flavours=present, cuda_majors=majors, torch=version("torch"))


def installed_torch_tensorrt() -> Tool:
    """Return the installed Torch-TensorRT; its two packages exclude each other."""
    packages = (Tool(name=name, version=version(name)) for name in ("torch-tensorrt", "torch-tensorrt-rtx"))
    return next((tool for tool in packages if tool.version != "absent"), Tool(name="torch-tensorrt", version="absent"))


def tensorrt_of(library: Tool) -> EngineFlavour:
    """Return the flavour that a Torch-TensorRT package builds its engines with."""
    return EngineFlavour.TENSORRT_RTX if library.name == "torch-tensorrt-rtx" else EngineFlavour.TENSORRT


def installed_onnxruntime() -> Tool:
    """Return the installed ONNX Runtime: its distribution, or all that brought it, and the version of its module."""
    if (found := _onnxruntime_version()) == "absent":
        return Tool(name="onnxruntime", version="absent")
    return Tool(name=" + ".join(_onnxruntime_distributions()) or "onnxruntime", version=found)


@cache
def _onnxruntime_version() -> str:
    """Return the version in the module's own file, which is not imported: that takes a second."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:  # a folder that an uninstalled package left behind has no origin
        return "absent"
    written = re.search(r"""^__version__\s*=\s*["'](.+?)["']""", Path(spec.origin).read_text("utf-8"), re.MULTILINE)
    if written:
        return written[1]
    known = (importlib.metadata.version(name) for name in _onnxruntime_distributions())
    return next(known, "unknown")


@cache
def _onnxruntime_distributions() -> tuple[str, ...]:
    """Return the names of the installed distributions that bring ONNX Runtime's module, sorted."""
    found = {
        distribution.name
        for distribution in importlib.metadata.distributions()
        if re.match(r"onnxruntime|ort[-_]nightly", distribution.name or "")
    }
    return tuple(sorted(name for name in found if _brings_onnxruntime(name)))


@cache
def onnxruntime_has_cuda() -> bool:
    """Return True if ONNX Runtime has its CUDA provider.

    The provider is a library of its own. Where several distributions lie over each other, the library of one may lie
    beside the module of another. Only then the module is imported and asked, which takes a second.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return False
    if not (Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so").is_file():
        return False
    if len(_onnxruntime_distributions()) == 1:
        return True
    try:
        import onnxruntime  # noqa: PLC0415 - only then

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    except Exception:  # noqa: BLE001 - a module that cannot be imported has no provider, whatever it raises
        return False


def _brings_onnxruntime(name: str) -> bool:
    files = importlib.metadata.files(name)
    return files is None or any(file.as_posix() == "onnxruntime/__init__.py" for file in files)


@cache
def flavours() -> tuple[Tool, ...]:
    """Return the installed flavours with their full versions: `tensorrt` before `tensorrt_rtx`."""
    return tuple(
        Tool(name=flavour.value, version=_flavour_version(flavour))
        for flavour in EngineFlavour
        if installed(flavour.value)
    )


def _flavour_version(flavour: EngineFlavour) -> str:
    distribution = _distribution(flavour)
    return version(distribution) if distribution else "unknown"


def cuda_major(flavour: EngineFlavour) -> int | None:
    """Return the major version of CUDA in the name of a flavour's distribution; None if the name has none."""
    suffix = re.search(r"-cu(\d+)", _distribution(flavour))
    return int(suffix[1]) if suffix else None


def _distribution(flavour: EngineFlavour) -> str:
    """Return the distribution that a flavour was installed from; an empty string if none is known."""
    return next((name for name in _DISTRIBUTIONS[flavour] if version(name) != "absent"), "")


def missing_gpu() -> str:
    """Return the reason for the lack of a GPU, on a host without one."""
    return missing_driver() or "CUDA shows no GPU"


@cache
def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that this process may use (see `CUDA_VISIBLE_DEVICES`), in CUDA's order."""
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
    """Return the NVIDIA driver's version, such as 580.159.04; "absent" without a driver."""
    if missing_driver():
        return "absent"
    import pynvml  # noqa: PLC0415 - hosts without a driver do not need it

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as exc:
        return f"unknown ({exc})"


@cache
def driver_cuda() -> int | None:
    """Return the major version of the latest CUDA that the driver runs, a forward-compatible libcuda included."""
    if missing_driver():
        return None
    from cuda.bindings import driver  # noqa: PLC0415 - 0.2 s that hosts without a driver save

    _, number = driver.cuDriverGetVersion()
    return int(number) // 1000


@cache
def processor() -> str:
    """Return the processor's name from the system, and the number of cores that this process may use.

    A container's quota counts: a latency of eight cores is none of "0.5 cores".
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {usable_cores():g} cores"


def device_name(gpu: Gpu | None) -> str:
    """Return a device as records name it: a GPU with its driver, or for None the processor with its cores."""
    return f"{gpu.name}, driver {driver_version()}" if gpu else processor()


def host_memory_bytes() -> int:
    """Return the size of this host's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def missing_driver() -> str | None:
    """Return the reason why no NVIDIA driver can be used here; None if one can."""
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
    """Return the commit of a checkout and the state of its tracked files; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return GitState(commit=commit, dirty=_git(folder, "status", "--porcelain", "--untracked-files=no") != "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - PATH decides which git
            check=False,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def free_memory_bytes(gpu: Gpu) -> int | None:
    """Return a GPU's free memory in bytes; None without a driver, or if NVML does not report it."""
    if missing_driver():
        return None
    import pynvml  # noqa: PLC0415 - hosts without a driver do not need it

    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(gpu_handle(pynvml, gpu)).free)
    except pynvml.NVMLError:
        return None


def gpu_handle(pynvml: Any, gpu: Gpu) -> Any:  # noqa: ANN401 - untyped
    """Initialise NVML, and return its handle of a GPU.

    Args:
        pynvml: the imported module.
        gpu: a GPU of this host.

    Raises:
        pynvml.NVMLError: NVML does not start, or has no such GPU.
    """
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
