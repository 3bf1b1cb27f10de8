"""The adapter's use of Torch-TensorRT, against the sources in the wheels of versions 2.11 to 2.14."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Backend
from pipeline.adapters.torch_tensorrt_builder import options_of
from pipeline.config.settings import TorchTensorRTConfig
from tests.support.hosts import module_request
from tests.support.wheels import Wheel, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

V11 = Wheel("torch-tensorrt", "2.11.0")
V12 = Wheel("torch-tensorrt", "2.12.1")
V13 = Wheel("torch-tensorrt", "2.13.0")
V14 = Wheel("torch-tensorrt", "2.14.0", last_python=(3, 14))
RTX = Wheel("torch-tensorrt-rtx", "2.11.0")
RTX14 = Wheel("torch-tensorrt-rtx", "2.14.0", last_python=(3, 14))
OF_RTX = {RTX, RTX14}


@dataclass(frozen=True)
class Sources:
    """An unpacked wheel's Python sources."""

    folder: Path

    def body(self, file: str) -> ast.Module:
        """Return a module's syntax tree."""
        return ast.parse((self.folder / "torch_tensorrt" / file).read_text(encoding="utf-8"))

    def function(self, file: str, name: str) -> ast.FunctionDef:
        """Return a function, a method written as `Class.method` included."""
        scope: list[ast.stmt] = self.body(file).body
        *classes, wanted = name.split(".")
        for step in classes:
            scope = next(item for item in scope if isinstance(item, ast.ClassDef) and item.name == step).body
        return next(item for item in scope if isinstance(item, ast.FunctionDef) and item.name == wanted)

    def parameters(self, file: str, name: str) -> set[str]:
        """Return the names of a function's parameters."""
        arguments = self.function(file, name).args
        return {item.arg for item in (*arguments.args, *arguments.kwonlyargs)}

    def settings(self) -> frozenset[str]:
        """Return the result of `known_settings` in this version."""
        settings = next(
            item
            for item in self.body("dynamo/_settings.py").body
            if isinstance(item, ast.ClassDef) and item.name == "CompilationSettings"
        )
        annotated = [item.target for item in settings.body if isinstance(item, ast.AnnAssign)]
        fields = {target.id for target in annotated if isinstance(target, ast.Name)}
        return frozenset(fields | self.parameters("dynamo/_compiler.py", "compile"))


@pytest.fixture
def sources(wheels: Path) -> Callable[[Wheel], Sources]:
    """A function that gives a version's sources, or skips with the reason why they cannot be had."""

    def of(wheel: Wheel) -> Sources:
        folder = unpacked(wheel, wheels)
        if isinstance(folder, str):
            pytest.skip(folder)
        return Sources(folder)

    return of


every = pytest.mark.parametrize("wheel", [V11, V12, V13, V14, RTX, RTX14], ids=lambda wheel: f"{wheel.package}-{wheel}")

ALL_ON = TorchTensorRTConfig(optimization_level=2, require_full_compilation=True, engine_cache=True)


@every
@pytest.mark.parametrize("backend", [Backend.DYNAMO, Backend.DYNAMO_AOTI, Backend.TORCH_COMPILE])
def test_no_setting_is_passed_that_a_version_lacks(
    sources: Callable[[Wheel], Sources], wheel: Wheel, backend: Backend, tmp_path: Path
) -> None:
    """Only settings that the version knows are passed, because it drops the rest in silence."""
    known = sources(wheel).settings()
    options = options_of(module_request(tmp_path, backend=backend, settings=ALL_ON), known, tunes=wheel not in OF_RTX)
    assert set(options.arguments) <= known


@pytest.mark.parametrize(
    ("wheel", "refused"),
    [
        (V11, []),
        (V12, []),
        (V13, ["use_explicit_typing"]),
        (V14, ["use_explicit_typing"]),
        (RTX, ["optimization_level"]),
        (RTX14, ["use_explicit_typing", "optimization_level"]),
    ],
    ids=str,
)
def test_what_a_version_lacks_is_recorded(
    sources: Callable[[Wheel], Sources], wheel: Wheel, refused: list[str], tmp_path: Path
) -> None:
    """From 2.13 on engines are strongly typed whatever is asked, and TensorRT-RTX has no levels; the record says so."""
    options = options_of(
        module_request(tmp_path, settings=ALL_ON), sources(wheel).settings(), tunes=wheel not in OF_RTX
    )
    assert [setting.name for setting in options.settings if not setting.applied] == refused


@every
def test_saving_takes_what_it_is_given(sources: Callable[[Wheel], Sources], wheel: Wheel) -> None:
    """`save` has the keywords that the adapter uses, and knows both formats."""
    found = sources(wheel)
    used = {"module", "file_path", "output_format", "arg_inputs", "dynamic_shapes"}
    assert used <= found.parameters("_compile.py", "save")
    text = ast.unparse(found.function("_compile.py", "save"))
    assert "exported_program" in text
    assert "aot_inductor" in text


@every
def test_inputs_and_device_take_what_they_are_given(sources: Callable[[Wheel], Sources], wheel: Wheel) -> None:
    """Shapes are given by the keywords that `Input` reads; the debugger has the switches for detailed layers."""
    found = sources(wheel)
    text = ast.unparse(found.function("_Input.py", "Input.__init__"))
    assert all(f"'{name}'" in text for name in ("shape", "min_shape", "opt_shape", "max_shape", "dtype"))
    assert "'gpu_id'" in ast.unparse(found.function("_Device.py", "Device.__init__")) or "gpu_id" in found.parameters(
        "_Device.py", "Device.__init__"
    )
    switches = found.parameters("dynamo/debug/_Debugger.py", "Debugger.__init__")
    assert {"log_level", "save_engine_profile", "engine_builder_monitor", "logging_dir"} <= switches


@every
def test_engines_tell_their_layers(sources: Callable[[Wheel], Sources], wheel: Wheel) -> None:
    """The class that runs an engine reports its layers."""
    assert sources(wheel).function("dynamo/runtime/_TorchTensorRTModule.py", "TorchTensorRTModule.get_layer_info")


@every
def test_the_backend_takes_options(sources: Callable[[Wheel], Sources], wheel: Wheel) -> None:
    """torch.compile's backend is called with a graph, its inputs and `options`."""
    backend = sources(wheel).function("dynamo/backend/backends.py", "torch_tensorrt_backend")
    assert [item.arg for item in backend.args.args] == ["gm", "sample_inputs"]
    assert backend.args.kwarg is not None
