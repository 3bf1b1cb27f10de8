"""A stand-in for Torch-TensorRT on a machine without a GPU: its engines are torch's own graphs."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import fx, nn

from model_artifacts.sessions import torch_tensorrt_runtime
from pipeline.adapters import torch_tensorrt_builder

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    Wrong = Callable[..., bool]


LAYERS = {
    "Layers": [
        {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Name": "image", "Format/Datatype": "Half"}]},
        {"Name": "norm", "LayerType": "Scale", "Inputs": [{"Name": "conv", "Format/Datatype": "Float"}]},
    ]
}
"""What every engine says of itself."""


@dataclasses.dataclass
class CompilationSettings:
    """The settings that this version has."""

    workspace_size: int = 0
    min_block_size: int = 5
    disable_tf32: bool = False
    use_explicit_typing: bool = True
    pass_through_build_failures: bool = False
    require_full_compilation: bool = False
    timing_cache_path: str = ""


class Input:
    """A shape, or three."""

    def __init__(self, **given: Any) -> None:
        self.given = given

    def example(self) -> torch.Tensor:
        """Return a batch of the largest shape."""
        return torch.zeros(self.given.get("max_shape") or self.given["shape"])

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Any]] | None:
        """Return torch.export's form of a batch range."""
        if "shape" in self.given:
            return None
        return ({0: torch.export.Dim("batch", min=self.given["min_shape"][0], max=self.given["max_shape"][0])},)


@torch.library.custom_op("stand_in::execute_engine", mutates_args=())
def _execute_engine(result: torch.Tensor) -> torch.Tensor:
    """Mark the output of an engine in a saved module."""
    return result.clone()


@_execute_engine.register_fake
def _(result: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(result)


class Engine(nn.Module):
    """A graph that runs in torch and reports like an engine's inspector."""

    def __init__(self, graph: Callable[..., Any], wrong: Wrong = lambda *_: False) -> None:
        super().__init__()
        self._hidden = [graph]  # in a list, so that its operators are not seen
        self._wrong = wrong

    def get_layer_info(self) -> str:
        """Return the inspector's JSON."""
        return json.dumps(LAYERS)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return the graph's output, or twice that."""
        results = self._hidden[0](*inputs)
        if isinstance(results, torch.Tensor):
            return _execute_engine(results)
        graph = self._hidden[0]
        weights = tuple(graph.parameters()) if isinstance(graph, nn.Module) else ()
        return tuple(2 * item for item in results) if self._wrong(*inputs, *weights) else results


def weights_in_channels_last(*inputs: torch.Tensor) -> bool:
    """Weights of convolutions do, and the batch is as large as where the library gave wrong numbers."""
    strided = any(item.ndim == 4 and item.shape[-1] == 3 and not item.is_contiguous() for item in inputs)
    return strided and any(item.ndim == 4 and item.shape[-1] == 32 and len(item) >= 64 for item in inputs)


class Library(ModuleType):
    """The stand-in for the module `torch_tensorrt`.

    Args:
        stays: an operator that stays in PyTorch behind the engine.
        engines: whether anything becomes an engine.
        fails: what every compilation fails with.
        says: what TensorRT's builder says to its logger before that.
        wrong: which inputs and weights give wrong logits, just in time.
    """

    def __init__(
        self,
        *,
        stays: bool = False,
        engines: bool = True,
        fails: str = "",
        says: str = "",
        wrong: Wrong = lambda *_: False,
    ) -> None:
        super().__init__("torch_tensorrt")
        self.Input = Input
        self.Device = lambda gpu_id: f"gpu {gpu_id}"
        self.seen: list[dict[str, Any]] = []
        """The settings of every compilation."""
        self.saved_as: list[str] = []
        self._stays, self._engines, self._fails = stays, engines, fails
        self._says, self._wrong = says, wrong
        self.dynamo = SimpleNamespace(
            CompilationSettings=CompilationSettings,
            compile=self._compile,
            backend=SimpleNamespace(torch_tensorrt_backend=self._backend),
        )

    def _compile(
        self, program: torch.export.ExportedProgram, *, arg_inputs: list[Input], device: str, **kwargs: Any
    ) -> Any:
        del device
        body = program.module(check_guards=False)
        for node in [node for node in body.graph.nodes if "_assert_" in str(node.target)]:
            body.graph.erase_node(node)  # as the library drops a trace's checks
        body.recompile()
        return self._made(body, len(arg_inputs), kwargs)

    def _backend(self, graph: fx.GraphModule, inputs: list[torch.Tensor], *, options: dict[str, Any]) -> Any:
        return self._made(graph, len(inputs), options)

    def _made(self, body: Callable[..., Any], inputs: int, settings: dict[str, Any]) -> fx.GraphModule:
        CompilationSettings(**settings)
        self.seen.append(settings)
        with Path(settings.get("timing_cache_path", os.devnull)).open("ab") as timings:
            timings.write(b"+")  # in place, as the library does
        if self._says:
            logging.getLogger("torch_tensorrt [TensorRT Conversion Context]").error(self._says)
        if self._fails:
            raise RuntimeError(self._fails)
        graph, root = fx.Graph(), nn.Module()
        if self._engines:
            root.add_module("_run_on_acc_0", Engine(body, self._wrong))
        else:
            root.add_module("_run_on_gpu_0", body if isinstance(body, nn.Module) else Engine(body))
        names = [graph.placeholder(f"input_{index}") for index in range(inputs)]
        result = graph.call_module("_run_on_acc_0" if self._engines else "_run_on_gpu_0", tuple(names))
        if self._stays:
            result = graph.call_function(torch.ops.aten.relu.default, (result,))
        graph.output(result)
        return fx.GraphModule(root, graph)

    def save(
        self,
        compiled: fx.GraphModule,
        path: str,
        *,
        output_format: str,
        arg_inputs: list[Input] | list[torch.Tensor],
        dynamic_shapes: tuple[dict[int, Any], ...] | None = None,
    ) -> None:
        """Write a compiled module as torch writes one."""
        self.saved_as.append(output_format)
        given = tuple(item.example() if isinstance(item, Input) else item for item in arg_inputs)
        if dynamic_shapes is None and isinstance(arg_inputs[0], Input):
            dynamic_shapes = arg_inputs[0].dynamic_shapes
        torch.export.save(torch.export.export(compiled, given, dynamic_shapes=dynamic_shapes), path)


def use(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a stand-in compile on the CPU."""
    torch.compiler.reset()
    monkeypatch.setattr(torch_tensorrt_runtime, "load_library", lambda: library)
    monkeypatch.setattr(torch_tensorrt_runtime, "device_of", lambda _: torch.device("cpu"))
    monkeypatch.setattr(torch_tensorrt_builder, "device_of", lambda _: torch.device("cpu"))
    monkeypatch.setattr("pipeline.stages.build.module.cuda.use", lambda _: None)


def network() -> nn.Module:
    """Return a small network for 32x32 images."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
