"""TensorRT's optional libraries: the lean runtime and the builder's kernels, and the packages that bring them."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import BuildError
from model_artifacts.host.environment import cuda_major
from model_artifacts.records import EngineFlavour

if TYPE_CHECKING:
    from model_artifacts.tensorrt.flavour import BuildLog, Flavour

_MISSING = r"Unable to load library: (libnvinfer[\w.+-]*)(?:: (.*?))?(?: In \w+ at |\)|$)"
"""The library's own message: the file, then the loader's words, which 8.x leaves out."""


def missing_library(log: BuildLog) -> BuildError | None:
    """Return the error of a build that needs a library that cannot be loaded. None if the log names no library.

    Args:
        log: the builder's messages.
    """
    found = log.search(_MISSING)
    if not found:
        return None
    name, reason = found[1], (found[2] or "").removeprefix(f"{found[1]}: ")
    version = re.search(r"\.so\.([\d.]+)$", name)
    same = f"in version {version[1]}" if version and "." in version[1] else "in the version of the bindings"
    if "lean" in name:
        purpose, package = "the lean runtime, which `version_compatible: true` puts into the engine", _package("lean-")
    elif "builder_resource" in name:
        architecture = re.search(r"_sm(\d+)", name)
        kernels = f"the builder's kernels for SM {architecture[1]}" if architecture else "the builder's kernels"
        purpose, package = kernels, _package()
    else:
        purpose, package = "a library of TensorRT", _package()
    return BuildError(
        f"{name} cannot be loaded: {purpose}",
        got=reason,
        fix=f"install the package `{package}` {same}, or put the library's folder on LD_LIBRARY_PATH",
    )


def missing_lean_runtime(flavour: Flavour) -> str:
    """Return the reason why a builder cannot put the lean runtime into its engines; empty if it can.

    Args:
        flavour: the TensorRT library. The lean runtime must have the same version.
    """
    name = f"libnvinfer_lean.so.{flavour.version.partition('.')[0]}"
    fix = f"install `{_package('lean-')}=={flavour.version}`"
    try:
        number = lean_runtime_version(name)
    except OSError as exc:
        return f"{name} cannot be loaded ({exc}); {fix}"
    if number != _number(flavour.version):
        return f"{name} is of another version ({number}); {fix}"
    return ""


def lean_runtime_version(name: str) -> int:
    """Load a lean runtime and return the number of its version: 101501 is 10.15.1, and 8601 is 8.6.1.

    Args:
        name: the file's name. It is looked for in the package with the lean runtime, then on the loader's path.

    Raises:
        OSError: the library is not there, or cannot be loaded.
    """
    package = importlib.util.find_spec("tensorrt_lean_libs")
    folders = [Path(folder) for folder in (package.submodule_search_locations or ())] if package else []
    file = next((folder / name for folder in folders if (folder / name).is_file()), Path(name))
    return int(ctypes.CDLL(str(file)).getInferLibVersion())


def _number(version: str) -> int:
    """Return the number of a version as the library counts it (`TENSORRT_VERSION` in its headers)."""
    major, minor, patch = (int(part) for part in [*re.findall(r"\d+", version), "0", "0", "0"][:3])
    return (major * 10 if major < 10 else major * 100) * 100 + minor * 100 + patch  # noqa: PLR2004 - 10 has two digits


def _package(part: str = "") -> str:
    """Return the name of a package with libraries, for the CUDA of the installed bindings."""
    cuda = cuda_major(EngineFlavour.TENSORRT)
    return f"tensorrt-{part}{f'cu{cuda}-' if cuda else ''}libs"
