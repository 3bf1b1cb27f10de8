"""The facts of this host."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host import environment
from model_artifacts.records import EngineFlavour, GitState, Tool
from tests.support.hosts import H100

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 - fixed arguments


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    _git(tmp_path, "init", "--quiet")
    (tmp_path / "tracked").write_text("1")
    _git(tmp_path, "add", "tracked")
    _git(tmp_path, "commit", "--quiet", "--message", "one")
    return tmp_path


@pytest.fixture
def fresh_driver() -> Iterator[None]:
    """The answer about the driver is found anew, before the test and after it."""
    environment.missing_driver.cache_clear()
    yield
    environment.missing_driver.cache_clear()


def test_now_is_the_present_in_utc_to_the_second() -> None:
    """Records carry whole seconds of a time that needs no zone to be known."""
    now = environment.now()
    assert (now.tzinfo, now.microsecond) == (timezone.utc, 0)
    assert abs(datetime.now(timezone.utc) - now) < timedelta(minutes=1)


def test_version_of_an_installed_package_is_its_own() -> None:
    """The version is that of the distribution that is installed."""
    assert environment.version("pytest") == pytest.__version__


def test_version_of_what_is_not_installed_is_absent() -> None:
    """A package that is not there is said to be absent; nothing is guessed."""
    assert environment.version("no-such-package-anywhere") == "absent"


def test_tools_begin_with_python() -> None:
    """A toolchain lists Python, then the packages in the order asked for."""
    assert environment.tools("pytest", "no-such-package-anywhere") == (
        Tool(name="python", version=platform.python_version()),
        Tool(name="pytest", version=pytest.__version__),
        Tool(name="no-such-package-anywhere", version="absent"),
    )


def test_threads_are_those_that_this_process_may_use() -> None:
    """A process that is held to one core has one thread."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert environment.threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_processor_ends_with_its_cores() -> None:
    """The processor has a name and the number of cores that this process may use."""
    name, cores = environment.processor().rsplit(", ", 1)
    assert name
    assert cores == f"{environment.threads()} cores"


@pytest.mark.parametrize("content", [None, "flags : fpu\n"])
def test_processor_without_a_name_is_named_by_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    """The architecture stands for a processor without a name."""
    cpuinfo = tmp_path / "cpuinfo"
    if content is not None:
        cpuinfo.write_text(content)
    monkeypatch.setattr(environment, "Path", lambda _: cpuinfo)
    environment.processor.cache_clear()
    try:
        assert environment.processor().startswith(f"{platform.machine()}, ")
    finally:
        environment.processor.cache_clear()


@pytest.mark.parametrize(
    ("names", "major"),
    [
        (("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"), 13),
        (("tensorrt-rtx-cu12-bindings",), 12),
        (("tensorrt-rtx",), None),
        ((), None),
    ],
    ids=str,
)
def test_the_cuda_of_a_tensorrt_is_in_its_packages_name(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], major: int | None
) -> None:
    """Nothing is imported for it; where no name says it, it is not known."""
    monkeypatch.setattr(environment, "version", lambda name: "1.4" if name in names else "absent")
    assert environment.cuda_major(EngineFlavour.TENSORRT_RTX) == major


# The driver.


@pytest.mark.usefixtures("fresh_driver")
def test_host_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the missing library of the driver."""

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert environment.missing_driver() == "no NVIDIA driver found"


@pytest.mark.usefixtures("fresh_driver")
def test_this_host_has_a_driver_if_and_only_if_its_library_loads() -> None:
    """The answer is this host's own: where the library does not load, none is found."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert environment.missing_driver() == "no NVIDIA driver found"
    else:
        assert environment.missing_driver() != "no NVIDIA driver found"


@pytest.mark.usefixtures("fresh_driver")
@pytest.mark.parametrize(
    ("status", "reason"),
    [("CUDA_SUCCESS", None), ("CUDA_ERROR_NO_DEVICE", "the NVIDIA driver does not start: CUDA_ERROR_NO_DEVICE")],
)
def test_driver_that_is_there_must_start(monkeypatch: pytest.MonkeyPatch, status: str, reason: str | None) -> None:
    """A driver that loads but does not start is missing for the reason that it gives."""
    driver = pytest.importorskip("cuda.bindings.driver")
    result = getattr(driver.CUresult, status)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    monkeypatch.setattr(driver, "cuInit", lambda _: (result,))
    assert environment.missing_driver() == reason


@pytest.fixture
def fresh_host() -> Iterator[None]:
    """Forget the cached packages and GPUs before and after a test."""
    caches = (
        environment.gpus,
        environment.flavours,
        environment.driver_version,
        environment.driver_cuda,
        environment.version,
    )
    for found in caches:
        found.cache_clear()
    yield
    for found in caches:
        found.cache_clear()


@pytest.mark.usefixtures("fresh_host")
def test_host_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without a driver has no GPU, and its driver's version is "absent"."""
    monkeypatch.setattr(environment, "missing_driver", lambda: "no NVIDIA driver found")
    assert environment.gpus() == ()
    assert environment.driver_version() == "absent"
    assert environment.driver_cuda() is None


@pytest.mark.usefixtures("fresh_host")
def test_the_drivers_cuda_is_a_major_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The major version comes from libcuda's number: 13010 is CUDA 13.1."""
    driver = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(environment, "missing_driver", lambda: None)
    monkeypatch.setattr(driver, "cuDriverGetVersion", lambda: (driver.CUresult.CUDA_SUCCESS, 13010))
    assert environment.driver_cuda() == 13


@pytest.mark.usefixtures("fresh_host")
def test_gpus_are_those_that_cuda_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of CUDA's devices in its order, with UUID, name, compute capability and memory as CUDA gives them."""
    driver = pytest.importorskip("cuda.bindings.driver")
    ok, attributes = driver.CUresult.CUDA_SUCCESS, driver.CUdevice_attribute
    major = attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    unique = SimpleNamespace(bytes=bytes.fromhex("b7c579baea0ec2fd2dc22a782d5fbe8b"))
    answers = {
        "cuDeviceGetCount": lambda: (ok, 1),
        "cuDeviceGet": lambda index: (ok, index),
        "cuDeviceGetName": lambda length, _: (ok, b"NVIDIA H100 80GB HBM3".ljust(length, b"\0")),
        "cuDeviceGetUuid": lambda _: (ok, unique),
        "cuDeviceTotalMem": lambda _: (ok, 80 * 2**30),
        "cuDeviceGetAttribute": lambda attribute, _: (ok, 9 if attribute == major else 0),
    }
    monkeypatch.setattr(environment, "missing_driver", lambda: None)
    for name, answer in answers.items():
        monkeypatch.setattr(driver, name, answer)
    assert environment.gpus() == (H100,)


@pytest.mark.usefixtures("fresh_host")
def test_flavours_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tensorrt` comes before `tensorrt_rtx`, each with the version that its bindings know best."""
    versions = {"tensorrt-cu12-bindings": "8.6.1", "tensorrt": "8.6", "tensorrt-rtx": "1.4.0.76"}
    monkeypatch.setattr(environment, "installed", lambda _: True)
    monkeypatch.setattr(environment, "version", lambda package: versions.get(package, "absent"))
    assert environment.read_host().flavours == (
        Tool(name="tensorrt", version="8.6.1"),
        Tool(name="tensorrt_rtx", version="1.4.0.76"),
    )


@pytest.mark.usefixtures("fresh_host")
def test_flavour_without_a_distribution_is_of_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that no package brought along is there, and nothing is guessed of its version."""
    monkeypatch.setattr(environment, "installed", lambda module: module == "tensorrt")
    monkeypatch.setattr(environment, "version", lambda _: "absent")
    assert environment.flavours() == (Tool(name="tensorrt", version="unknown"),)


def test_installed_finds_without_importing() -> None:
    """A module is found by its name alone."""
    assert environment.installed("json")
    assert not environment.installed("no_such_module_anywhere")


# Git.


def test_clean_repository_has_its_commit(repository: Path) -> None:
    """The commit that is checked out, with nothing changed."""
    assert environment.git_state(repository) == GitState(commit=_git(repository, "rev-parse", "HEAD"), dirty=False)


@pytest.mark.parametrize("staged", [False, True])
def test_changed_tracked_file_makes_it_dirty(repository: Path, *, staged: bool) -> None:
    """A tracked file that differs from the commit counts, staged or not."""
    (repository / "tracked").write_text("2")
    if staged:
        _git(repository, "add", "tracked")
    state = environment.git_state(repository)
    assert state is not None
    assert state.dirty


def test_untracked_file_leaves_it_clean(repository: Path) -> None:
    """A file that git does not know is no change to the commit."""
    (repository / "untracked").write_text("1")
    state = environment.git_state(repository)
    assert state is not None
    assert not state.dirty


def test_subfolder_belongs_to_its_repository(repository: Path) -> None:
    """A folder within a repository has the repository's state."""
    (repository / "sub").mkdir()
    assert environment.git_state(repository / "sub") == environment.git_state(repository)


def test_folder_outside_a_repository_has_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder outside a repository has no commit."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_state(tmp_path) is None


def test_repository_without_a_commit_has_no_state(tmp_path: Path) -> None:
    """A repository without a commit has no state."""
    _git(tmp_path, "init", "--quiet")
    assert environment.git_state(tmp_path) is None


def test_host_without_git_has_no_state(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without git knows no commit."""
    monkeypatch.setenv("PATH", str(repository))
    assert environment.git_state(repository) is None


def test_repository_that_git_cannot_compare_is_not_called_clean(repository: Path) -> None:
    """The state is not clean if git knows the commit but fails to compare the files."""
    (repository / ".git" / "index").write_bytes(b"damaged")
    state = environment.git_state(repository)
    assert state is None or state.dirty


# ONNX Runtime, which comes under many names.


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that hides ONNX Runtime's own."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    importlib.invalidate_caches()
    own = (environment._onnxruntime_version, environment._onnxruntime_distributions)  # noqa: SLF001 - caches to empty
    facts = (environment.version, environment.onnxruntime_has_cuda, *own)
    for fact in facts:
        fact.cache_clear()
    yield tmp_path
    for fact in facts:
        fact.cache_clear()


def put(site: Path, *distributions: str, module: str | None = "1.22.1") -> None:
    """Install distributions of version 9.9, all with the same module."""
    if module:
        (site / "onnxruntime").mkdir(exist_ok=True)
        (site / "onnxruntime/__init__.py").write_text(f'"""ORT"""\n__version__ = "{module}"\nraise ImportError\n')
    for name in distributions:
        folder = site / f"{name.replace('-', '_')}-9.9.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
        (folder / "RECORD").write_text("onnxruntime/__init__.py,,\n" if module else "other/__init__.py,,\n")


@pytest.mark.parametrize(
    "names",
    [
        ("onnxruntime",),
        ("onnxruntime-openvino",),
        ("onnxruntime-directml",),
        ("ort-nightly-gpu",),
        ("onnxruntime", "onnxruntime-gpu"),
    ],
    ids=" + ".join,
)
def test_onnxruntime_is_what_would_be_imported(site: Path, names: tuple[str, ...]) -> None:
    """The version is the module's, under whatever names it came; two names are both said. Nothing is imported."""
    put(site, *names)
    assert environment.installed_onnxruntime() == Tool(name=" + ".join(names), version="1.22.1")
    assert environment.version("onnxruntime-gpu") == environment.version("onnxruntime") == "1.22.1"


@pytest.mark.parametrize(
    ("names", "library", "asked", "has"),
    [
        (("onnxruntime",), False, "never imported", False),
        (("onnxruntime-openvino",), False, "never imported", False),
        (("onnxruntime-gpu",), True, "never imported", True),
        (("ort-nightly-gpu",), True, "never imported", True),
        (("onnxruntime", "onnxruntime-gpu"), True, "['CPUExecutionProvider']", False),
        (("onnxruntime", "onnxruntime-gpu"), True, "['CUDAExecutionProvider', 'CPUExecutionProvider']", True),
        (("onnxruntime", "onnxruntime-gpu"), True, "1 / 0", False),
    ],
)
def test_the_cuda_provider_is_that_of_the_module(
    site: Path, names: tuple[str, ...], asked: str, *, library: bool, has: bool
) -> None:
    """The provider's library tells; of two wheels that lie over each other the module is asked, if it starts."""
    put(site, *names)
    text = f"def get_available_providers():\n    return {asked}\n" if "never" not in asked else "raise SystemExit\n"
    (site / "onnxruntime/__init__.py").write_text(text)
    if library:
        (site / "onnxruntime/capi").mkdir()
        (site / "onnxruntime/capi/libonnxruntime_providers_cuda.so").touch()
    assert environment.onnxruntime_has_cuda() is has


def test_onnxruntime_that_is_not_there(site: Path) -> None:
    """A package beside it, or a folder that was left behind, is no ONNX Runtime."""
    put(site, "onnxruntime-extensions", module=None)
    (site / "onnxruntime").mkdir()
    assert environment.installed_onnxruntime() == Tool(name="onnxruntime", version="absent")
    assert environment.version("onnxruntime-gpu") == "absent"
    assert environment.onnxruntime_has_cuda() is False


def test_a_quota_counts_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a core is one thread, and another processor than a whole one."""
    monkeypatch.setattr(environment, "usable_cores", lambda: 0.5)
    environment.processor.cache_clear()
    try:
        assert environment.threads() == 1
        assert environment.processor().endswith(", 0.5 cores")
    finally:
        environment.processor.cache_clear()
