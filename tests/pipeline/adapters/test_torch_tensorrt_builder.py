"""Compiling and saving with Torch-TensorRT, whose part a stand-in plays."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model_artifacts.errors import BuildError, UnsupportedError
from model_artifacts.records import AxisRange, Backend, BatchRange, Precision, Setting, Tool
from model_artifacts.sessions.factory_call import LogitsOf
from model_artifacts.sessions.torch_model import Typed, TypedInputs
from model_artifacts.sessions.torch_tensorrt_runtime import arguments_of, load
from pipeline.adapters import torch_tensorrt_builder
from pipeline.adapters.torch_tensorrt_builder import (
    compile_ahead,
    dims_of,
    examples_of,
    known_settings,
    options_of,
    save,
)
from pipeline.config.settings import TorchTensorRTConfig
from tests.support.factories import Branches
from tests.support.hosts import IMAGES_OF_SIZES, TEXTS_OF_LENGTHS, module_request
from tests.support.segments import Segmenter
from tests.support.sized_segmenters import Sampled
from tests.support.texts import Tags
from tests.support.torch_tensorrt_stub import Library, network

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.adapters.torch_tensorrt_builder import ModuleRequest


ALL = frozenset(
    {"workspace_size", "min_block_size", "disable_tf32", "use_explicit_typing", "pass_through_build_failures"}
    | {"timing_cache_path", "optimization_level", "require_full_compilation"}
    | {"cache_built_engines", "reuse_cached_engines", "engine_cache_dir", "immutable_weights"}
)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let modules run where there is no GPU."""
    monkeypatch.setattr(torch_tensorrt_builder, "device_of", lambda _: torch.device("cpu"))


def values(settings: tuple[Setting, ...]) -> dict[str, str]:
    """Return the applied settings' values."""
    return {setting.name: setting.value for setting in settings if setting.applied}


def test_defaults_are_said_in_full(tmp_path: Path) -> None:
    """A version that knows everything gets the request's values, and the record has them but for paths."""
    options = options_of(module_request(tmp_path), ALL, tunes=True)
    assert options.arguments == {
        "workspace_size": 2**24,
        "min_block_size": 5,
        "disable_tf32": False,
        "use_explicit_typing": True,
        "pass_through_build_failures": True,
        "timing_cache_path": str(tmp_path / "timings.bin"),
    }
    assert values(options.settings) == {
        "workspace_size": "16777216",
        "min_block_size": "5",
        "disable_tf32": "off",
        "use_explicit_typing": "on",
        "pass_through_build_failures": "on",
    }


@pytest.mark.parametrize(
    ("precision", "disabled"), [(Precision.FP32, True), (Precision.TF32, False), (Precision.BF16, False)]
)
def test_tf32_is_off_for_strict_fp32_only(tmp_path: Path, precision: Precision, *, disabled: bool) -> None:
    """Strict FP32 is the only precision that TF32 would falsify."""
    assert (
        options_of(module_request(tmp_path, precision=precision), ALL, tunes=True).arguments["disable_tf32"] is disabled
    )


def test_an_engine_cache_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """The cache is asked for only where it is on, and then lies in the variant's own folder."""
    on = options_of(module_request(tmp_path, settings=TorchTensorRTConfig(engine_cache=True)), ALL, tunes=True)
    assert on.arguments["engine_cache_dir"] == str(tmp_path / "engines")
    assert (on.arguments["cache_built_engines"], on.arguments["reuse_cached_engines"]) == (True, True)
    assert on.arguments["immutable_weights"] is False  # or the library keeps nothing, and says so in a warning
    assert "cache_built_engines" not in options_of(module_request(tmp_path), ALL, tunes=True).arguments


def test_what_a_version_lacks_is_not_passed_and_is_recorded(tmp_path: Path) -> None:
    """A setting that the version does not have is left out of the call, and the record says why."""
    settings = TorchTensorRTConfig(optimization_level=4)
    options = options_of(module_request(tmp_path, settings=settings), ALL - {"optimization_level"}, tunes=True)
    assert "optimization_level" not in options.arguments
    assert (
        Setting(name="optimization_level", value="4", applied=False, note="this version has no such setting")
        in options.settings
    )


@pytest.mark.parametrize(
    ("precision", "refused"),
    [(Precision.FP32, {"disable_tf32", "optimization_level"}), (Precision.FP16, {"optimization_level"})],
)
def test_what_tensorrt_rtx_ignores_is_recorded(tmp_path: Path, precision: Precision, refused: set[str]) -> None:
    """TensorRT-RTX multiplies FP32 in TF32 and has no levels; the record says so, as for plain engines."""
    request = module_request(tmp_path, precision=precision, settings=TorchTensorRTConfig(optimization_level=4))
    options = options_of(request, ALL, tunes=False)
    assert {setting.name for setting in options.settings if not setting.applied} == refused
    assert not refused & set(options.arguments)
    assert all("TensorRT-RTX" in setting.note for setting in options.settings if not setting.applied)


def test_torch_compile_cannot_require_full_compilation(tmp_path: Path) -> None:
    """torch.compile is not passed `require_full_compilation`, which the library ignores there; the record says so."""
    request = module_request(
        tmp_path, backend=Backend.TORCH_COMPILE, settings=TorchTensorRTConfig(require_full_compilation=True)
    )
    options = options_of(request, ALL, tunes=True)
    (setting,) = (item for item in options.settings if item.name == "require_full_compilation")
    assert (setting.applied, "leaves to PyTorch" in setting.note) == (False, True)
    assert "require_full_compilation" not in options.arguments


@given(
    st.builds(
        TorchTensorRTConfig,
        min_block_size=st.integers(1, 10**6),
        optimization_level=st.none() | st.integers(0, 5),
        require_full_compilation=st.booleans(),
        engine_cache=st.booleans(),
    ),
    st.sampled_from([Backend.DYNAMO, Backend.TORCH_COMPILE]),
    st.sampled_from([Precision.FP32, Precision.TF32, Precision.FP16]),
)
def test_a_record_gives_back_what_was_passed(
    tmp_path_factory: pytest.TempPathFactory, settings: TorchTensorRTConfig, backend: Backend, precision: Precision
) -> None:
    """A recipe's settings stand for the arguments of the build, but for its caches: neither timings nor engines."""
    request = module_request(tmp_path_factory.getbasetemp(), backend=backend, precision=precision, settings=settings)
    options = options_of(request, ALL, tunes=True)
    caches = {"cache_built_engines", "reuse_cached_engines", "engine_cache_dir"}
    passed = {name: value for name, value in options.arguments.items() if name not in caches}
    assert arguments_of(options.settings) == {**passed, "timing_cache_path": os.devnull}


def test_settings_are_read_from_the_version_that_is_there() -> None:
    """Fields of its settings and parameters of its compiler count; the catch-all does not."""
    known = known_settings(Library())
    assert {"workspace_size", "use_explicit_typing", "device"} <= known
    assert not known & {"kwargs", "optimization_level"}


@pytest.mark.parametrize("profile", [BatchRange(min=2, opt=2, max=2), BatchRange(min=1, opt=2, max=4)], ids=str)
def test_a_saved_module_computes_what_the_model_does(tmp_path: Path, profile: BatchRange) -> None:
    """A module that was compiled, saved and loaded gives the model's logits for every batch size in its range."""
    library, model, request = Library(), network(), module_request(tmp_path, profile=profile)
    compiled = compile_ahead(library, model, request)
    save(library, compiled.module, request, tmp_path / "model.pt2")
    loaded = load(library, Backend.DYNAMO, tmp_path / "model.pt2", None)
    for size in profile.sizes:
        images = torch.rand(size, 3, 32, 32)
        assert torch.allclose(loaded(images), model(images), atol=1e-6)
    assert (library.saved_as, library.seen[0]["workspace_size"]) == (["exported_program"], 2**24)


def test_a_package_is_asked_for_by_its_format(tmp_path: Path) -> None:
    """The same module as an AOTInductor package is another format of the same call."""
    library, request = Library(), module_request(tmp_path, backend=Backend.DYNAMO_AOTI)
    save(library, compile_ahead(library, network(), request).module, request, tmp_path / "model.pt2")
    assert library.saved_as == ["aot_inductor"]


def test_a_model_that_does_not_trace_is_a_clear_error(tmp_path: Path) -> None:
    """The error names control flow that depends on values as the part that torch does not trace."""
    with pytest.raises(BuildError, match="torch cannot trace the model") as caught:
        compile_ahead(Library(), Branches(), module_request(tmp_path))
    assert "no control flow that depends on the values of tensors" in str(caught.value)


def test_what_the_library_raises_is_a_clear_error(tmp_path: Path) -> None:
    """The message of a failed compilation holds the library's own words."""
    with pytest.raises(BuildError, match="cannot compile the model") as caught:
        compile_ahead(Library(fails="no converter for aten.foo"), network(), module_request(tmp_path))
    assert "no converter for aten.foo" in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "name", "version", "refused"),
    [
        (Backend.DYNAMO_AOTI, "torch-tensorrt-rtx", "2.11.0", True),
        (Backend.DYNAMO_AOTI, "torch-tensorrt-rtx", "2.12.0", False),
        (Backend.DYNAMO_AOTI, "torch-tensorrt", "2.11.0", False),
        (Backend.DYNAMO, "torch-tensorrt-rtx", "2.11.0", False),
    ],
)
def test_format_that_a_version_cannot_load_is_not_made(
    backend: Backend,
    name: str,
    version: str,
    refused: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    """A package that crashes every process is no artifact; other versions are tried."""
    said = pytest.raises(UnsupportedError, match="crashes every process that loads it") if refused else nullcontext()
    with said:
        torch_tensorrt_builder.check_format(backend, Tool(name=name, version=version))


def test_a_trace_has_the_sizes_that_it_is_tuned_for(tmp_path: Path) -> None:
    """Torch-TensorRT tunes for them. An axis that is best at its smallest size is traced at its largest."""
    small = AxisRange(name="width", min=24, opt=24, max=64)
    (image,) = IMAGES_OF_SIZES
    inputs = (image.model_copy(update={"ranges": (image.ranges[0], small)}),)
    request = module_request(tmp_path, profile=BatchRange(min=1, opt=2, max=4), inputs=inputs)
    (example,) = examples_of(request, torch.device("cpu"))
    assert example.shape == (4, 3, 32, 64)
    assert [tensor.dtype for tensor in examples_of(texts_request(tmp_path), torch.device("cpu"))] == [
        torch.int64,
        torch.float32,
    ]


def texts_request(folder: Path) -> ModuleRequest:
    """Return the request of a module of texts of several lengths."""
    return module_request(folder, profile=BatchRange(min=1, opt=2, max=4), inputs=TEXTS_OF_LENGTHS)


def test_inputs_of_one_length_share_its_dimension(tmp_path: Path) -> None:
    """The library's own dimensions would let a module take inputs of two lengths."""
    first, second = dims_of(texts_request(tmp_path)) or ({}, {})
    assert first == second
    assert [(dim.__name__, dim.min, dim.max) for dim in first.values()] == [("batch", 1, 4), ("sequence", 4, 24)]


@pytest.mark.parametrize("kind", ["maps", "resized", "tags"])
def test_a_module_of_several_sizes_is_saved_with_them(tmp_path: Path, kind: str) -> None:
    """Once loaded, it gives the model's outputs at each size, and torch itself refuses others."""
    library, batches = Library(), (3, 3, 3) if kind == "resized" else (1, 2, 4)
    profile = BatchRange(min=batches[0], opt=batches[1], max=batches[2])
    inputs = TEXTS_OF_LENGTHS if kind == "tags" else IMAGES_OF_SIZES
    own = LogitsOf(Sampled() if kind == "resized" else Segmenter(), "out")
    model = TypedInputs(Tags(), torch.float32) if kind == "tags" else Typed(own, torch.float32)
    request = module_request(tmp_path, profile=profile, inputs=inputs, precision=Precision.FP32)
    save(library, compile_ahead(library, model.eval(), request).module, request, tmp_path / "model.pt2")
    loaded = load(library, Backend.DYNAMO, tmp_path / "model.pt2", None)

    def batch(*sizes: int) -> tuple[torch.Tensor, ...]:
        if kind == "tags":
            return torch.randint(1, 9, (3, *sizes)), torch.ones(3, *sizes)
        return (torch.rand(3, 3, *sizes),)

    for sizes in ((4,), (13,), (24,)) if kind == "tags" else ((24, 24), (33, 41), (48, 64)):
        given = batch(*sizes)
        assert torch.allclose(loaded(*given), model(*given), atol=1e-5)
    with pytest.raises(AssertionError, match="Guard failed"):
        loaded(*batch(*((25,) if kind == "tags" else (49, 24))))


def test_a_resize_beside_a_range_of_batches_is_skipped(tmp_path: Path) -> None:
    """No version converts it, and the message says what to write. By a factor, it is converted."""
    library, profile = Library(), BatchRange(min=1, opt=2, max=4)
    request = module_request(tmp_path, profile=profile, inputs=IMAGES_OF_SIZES)
    with pytest.raises(UnsupportedError, match=r"(?s)batches of one size alone.*upsample_bilinear2d.*of 1 to 4"):
        compile_ahead(library, Typed(LogitsOf(Sampled(), "out"), torch.float32).eval(), request)
    assert library.seen == []
    compile_ahead(library, Typed(nn.Upsample(scale_factor=2), torch.float32).eval(), request)
    assert len(library.seen) == 1


def test_a_version_that_saves_no_dimensions_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not tell that two inputs have one length; nothing is compiled for it."""
    library = Library()

    def save_as(compiled: nn.Module, path: str, *, output_format: str, arg_inputs: list[object]) -> None:
        raise NotImplementedError

    monkeypatch.setattr(library, "save", save_as)
    with pytest.raises(UnsupportedError, match="cannot save modules of several sizes or inputs"):
        compile_ahead(library, network(), texts_request(tmp_path))
    assert library.seen == []
    assert compile_ahead(library, network(), module_request(tmp_path)).settings
