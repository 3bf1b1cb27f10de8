"""Torch-TensorRT at run time: its versions, its import, its saved modules and recipes, and their contents."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import pickle
import sys
import threading
import warnings
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING

import torch

from model_artifacts.errors import BuildError, RetryableError, RunError, UnsupportedError, one_line
from model_artifacts.host.environment import (
    flavours,
    installed,
    installed_torch_tensorrt,
    missing_driver,
    tensorrt_of,
    version,
)
from model_artifacts.host.factory_code import code_of
from model_artifacts.host.hashes import leaves_its_folder, sha256_of
from model_artifacts.records import Backend, ModuleContents, OperatorCalls, Tool
from model_artifacts.sessions.factory_call import assembly_of
from model_artifacts.sessions.torch_model import assemble, ready_to_compile
from model_artifacts.tensorrt.inspector import read_layers, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType
    from typing import Any

    from torch import nn

    from model_artifacts.records import Gpu, LayerShare, Precision, Recipe, Setting


BUILDER_LOGGER = "torch_tensorrt [TensorRT Conversion Context]"
"""The logger that passes on TensorRT's messages in Torch-TensorRT."""
_SEGMENT = "execute_engine"
"""The operator that runs an engine in a module that was saved and loaded (`torch.ops.tensorrt.execute_engine`)."""


def device_of(gpu: Gpu | None) -> torch.device:
    """Return torch's device for a GPU; None for the CPU."""
    return torch.device("cpu") if gpu is None else torch.device("cuda", gpu.index)


ENGINE_CACHES = frozenset({"cache_built_engines", "reuse_cached_engines"})
"""Settings of a build alone. A module that is compiled again from its recipe reads and writes no engine cache."""

_SWITCHES = {"on": True, "off": False}


def arguments_of(settings: tuple[Setting, ...]) -> dict[str, object]:
    """Return the keyword arguments for a recipe's applied settings: switches and whole numbers.

    Neither compiled engines nor timings are kept: the library's default timing cache is one file for the whole host.

    Raises:
        RunError: a setting is neither a switch nor a whole number.
    """
    applied = {setting.name: setting.value for setting in without_caches(settings) if setting.applied}
    unreadable = {name: value for name, value in applied.items() if value not in _SWITCHES and not value.isdecimal()}
    if unreadable:
        raise RunError(
            "the recipe's settings cannot be read", expected="on, off or a whole number", got=str(unreadable)
        )
    arguments = {name: _SWITCHES[value] if value in _SWITCHES else int(value) for name, value in applied.items()}
    return {**arguments, "timing_cache_path": os.devnull}


def model_of(root: Path, recipe: Recipe, fix: str) -> nn.Module:
    """Return a recipe's model, ready to be compiled, on the CPU.

    Args:
        root: the artifacts folder, which holds the weights.
        recipe: the recipe.
        fix: the remedy for a recipe that does not fit, as messages name it.

    Raises:
        RunError: the weights or the factory's code differ from the recipe's, or the weights lie outside the folder.
        SourceError: the weights do not fit the factory's model.
    """
    weights = root / recipe.weights.path
    if leaves_its_folder(recipe.weights.path):
        raise RunError(f"the recipe names a file outside its folder: {recipe.weights.path}", fix="do not use it")
    if (got := sha256_of(weights)) != recipe.weights.sha256:
        raise RunError(
            f"{weights} does not hold the recipe's weights",
            expected=f"SHA-256 {recipe.weights.sha256}",
            got=f"SHA-256 {got}",
            fix=fix,
        )
    if recipe.code and (code := code_of(recipe.factory)) != recipe.code:
        raise RunError(
            f"the code of {recipe.factory} has changed since the recipe was written",
            expected=recipe.code,
            got=code,
            fix=f"use the code of that time, or {fix}",
        )
    model = assemble(assembly_of(recipe), weights)
    return ready_to_compile(model, recipe.variant.precision, recipe.input_shape)


def without_caches(settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """Return the settings that hold on every machine."""
    return tuple(setting for setting in settings if setting.name not in ENGINE_CACHES)


def libraries() -> tuple[Tool, ...]:
    """Return a module's libraries in their installed versions: torch, Torch-TensorRT and its TensorRT."""
    engines = installed_tensorrt()
    return (Tool(name="torch", version=version("torch")), installed_torch_tensorrt(), *([engines] if engines else []))


def installed_tensorrt() -> Tool | None:
    """Return the TensorRT that Torch-TensorRT builds its engines with; None if it is not installed."""
    wanted = tensorrt_of(installed_torch_tensorrt()).value
    return next((tool for tool in flavours() if tool.name == wanted), None)


def check_libraries(torch_version: str, library: Tool) -> None:
    """Check that torch and Torch-TensorRT belong together: each release is for the torch of its own number.

    Raises:
        UnsupportedError: they do not, or one is missing.
    """
    if "absent" in {torch_version, library.version}:
        missing = "torch" if torch_version == "absent" else "Torch-TensorRT"
        raise UnsupportedError(f"{missing} is not installed here")
    if torch_version.split(".")[:2] != library.version.split(".")[:2]:
        raise UnsupportedError(
            "torch and Torch-TensorRT do not belong together",
            expected=f"{library.name} {'.'.join(torch_version.split('.')[:2])}",
            got=f"{library.name} {library.version} beside torch {torch_version}",
            fix=f"install {library.name} of torch's version",
        )


def check_made_here(made_with: tuple[Tool, ...]) -> None:
    """Check that the installed versions made a saved module, because no others can be trusted to read it.

    Raises:
        RunError: other versions made it; the message names both.
    """
    if made_with not in {libraries(), libraries()[:2]}:  # older records do not name TensorRT
        raise RunError(
            "other versions made the module",
            expected=_joined(made_with),
            got=_joined(libraries()),
            fix="install those versions, or build the module again",
        )


def _joined(tools: tuple[Tool, ...]) -> str:
    return ", ".join(f"{tool.name} {tool.version}" for tool in tools)


def load_library() -> ModuleType:
    """Import Torch-TensorRT.

    Raises:
        UnsupportedError: this host has no driver, without which the import fails, or not the right versions.
    """
    if reason := missing_driver():
        raise UnsupportedError(reason)
    check_libraries(version("torch"), installed_torch_tensorrt())
    _hide_missing_plugins()
    loggers = [logging.getLogger(name) for name in ("torch_tensorrt", BUILDER_LOGGER)]
    before, levels = logging.root.manager.disable, [logger.level for logger in loggers]
    logging.disable(logging.ERROR)  # it logs every optional package that is missing, some as an error
    try:
        with warnings.catch_warnings():  # the filters are the application's
            import torch_tensorrt as library  # noqa: PLC0415 - it takes seconds, and fails without a driver
    except Exception as exc:  # it raises a bare Exception if its TensorRT is missing
        raise RetryableError("Torch-TensorRT cannot be imported here", got=one_line(exc)) from exc
    finally:
        logging.disable(before)
    for logger, level in zip(loggers, levels, strict=True):
        # In every process it warns of its own defaults, several times. A level that the application has set stays.
        logger.setLevel(logging.ERROR if level == logging.NOTSET else level)
    return library  # type: ignore[no-any-return]  # untyped


def _hide_missing_plugins() -> None:
    """Mark TensorRT-RTX's Python plugins as missing for Torch-TensorRT.

    The wheel of 1.4.0.76 has a package `tensorrt_rtx.plugin`, but lacks its bindings. Torch-TensorRT 2.11 imports that
    package, and fails.
    """
    rtx = installed("tensorrt_rtx_bindings") and not installed("tensorrt")
    if rtx and importlib.util.find_spec("tensorrt_rtx_bindings.plugin") is None:
        sys.modules.setdefault("tensorrt.plugin", None)  # type: ignore[arg-type]  # Python's mark for a module that does not exist


def untraceable(error: Exception) -> BuildError:
    """Return the error for a model that torch cannot take as one graph."""
    return BuildError(
        "torch cannot trace the model",
        expected="one graph: no control flow that depends on the values of tensors",
        got=reason_of(error),
    )


def compile_in_time(
    library: ModuleType, module: nn.Module, arguments: Mapping[str, object], on_compiled: Callable[[nn.Module], None]
) -> nn.Module:
    """Return a module that is compiled when it first runs a batch of some size.

    Args:
        library: Torch-TensorRT.
        module: the module, in the form that `ready_to_compile` returns.
        arguments: Torch-TensorRT's options.
        on_compiled: called with every part that was compiled.
    """
    backend = library.dynamo.backend.torch_tensorrt_backend

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library about its own calls
            compiled = backend(graph, inputs, options=dict(arguments))
        on_compiled(compiled)
        return compiled  # type: ignore[no-any-return]  # untyped

    # Each batch size is compiled by itself, as by the library's own torch_compile; the whole model or nothing.
    return torch.compile(  # type: ignore[return-value]  # a module again
        module, backend=compile_graph, dynamic=False, fullgraph=True
    )


def tracing(*, constant_weights: bool) -> contextlib.AbstractContextManager[object]:
    """Let torch trace a module for every batch size and layout that is run. By default it stops at eight graphs.

    Args:
        constant_weights: True gives backends the weights as constants, by torch's own switch for freezing. By default
            they are inputs of the graph (pytorch/TensorRT#3216), which an engine arranges for its kernels in each run:
            ResNet18 in FP16 takes 1.0 ms so (TensorRT 10.6, H200), where dynamo's engine with constants takes 0.14 ms.
    """
    return torch._dynamo.config.patch(  # type: ignore[no-any-return]  # noqa: SLF001 - untyped, and there is no other way
        recompile_limit=sys.maxsize, accumulated_recompile_limit=sys.maxsize, prepare_freezing=constant_weights
    )


def reason_of(error: Exception) -> str:
    """Return an error's reason in one line, with the place in the model's code if torch reports it.

    Torch wraps a backend's error, and its own message does not repeat it.
    """
    inner = getattr(error, "inner_exception", None)
    if isinstance(inner, Exception):
        return one_line(inner)
    stack = getattr(error, "real_stack", None) or ()
    place = f" ({stack[-1].filename}:{stack[-1].lineno}, in {stack[-1].name})" if stack else ""
    return one_line(error) + place


def load(library: ModuleType, backend: Backend, path: Path, gpu: Gpu | None) -> nn.Module:
    """Read a saved module. The caller has checked its digest, because the file holds code.

    Args:
        library: Torch-TensorRT, imported, so that torch knows its operators.
        backend: the backend that the module was saved for.
        path: the file.
        gpu: the GPU; None for the CPU.

    Raises:
        RunError: the file is not a saved module of this backend.
    """
    del library
    try:
        with _no_pickles():
            return _load(backend, path, gpu)
    except pickle.UnpicklingError as exc:
        raise RunError(
            f"{path} holds pickled objects, which are not loaded",
            expected="engines, and plain tensors",
            got=one_line(exc),
            fix="do not use it, or build the module again",
        ) from exc
    except Exception as exc:
        raise RunError(f"torch cannot load {path}", got=one_line(exc)) from exc


def _load(backend: Backend, path: Path, gpu: Gpu | None) -> nn.Module:
    if backend is Backend.DYNAMO_AOTI:
        from torch._inductor import aoti_load_package  # noqa: PLC0415 - only for this format

        index = -1 if gpu is None else gpu.index
        # Each session has a module of its own, and locks between threads would get in the way of CUDA graphs.
        return aoti_load_package(  # type: ignore[return-value]  # called as a module is
            str(path), run_single_threaded=True, device_index=index
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own buffers
        return torch.export.load(path).module()


_ONLY_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_loading = threading.Lock()


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """Let torch unpickle tensors alone, whichever of its calls reads a file.

    Torch asks for `weights_only=False` for an archive's pickled parts, sample inputs, older forms of weights and
    constants, and the format before 2.8. The environment variable overrules that. Engines are not Python pickles:
    torch's reader in C++ creates only classes that are registered there.
    """
    with _loading:
        before = os.environ.get(_ONLY_TENSORS)
        os.environ[_ONLY_TENSORS] = "1"
        try:
            yield
        finally:
            del os.environ[_ONLY_TENSORS]
            if before is not None:
                os.environ[_ONLY_TENSORS] = before


def contents_of(compiled: nn.Module) -> ModuleContents:
    """Return a compiled or loaded module's engines, their precisions, and the operators left in PyTorch."""
    compiled_parts: list[Any] = [part for part in compiled.modules() if hasattr(part, "get_layer_info")]
    graphs = [part for part in compiled.modules() if isinstance(part, torch.fx.GraphModule)]
    calls = [(graph, node) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    runs = [(graph, node) for graph, node in calls if _SEGMENT in str(node.target)]
    texts = [str(engine.get_layer_info()) for engine in compiled_parts]
    texts += [str(engine.get_engine_layer_info()) for graph, node in runs for engine in _engines(graph, node)]
    operators = Counter(str(node.target) for _, node in calls if not _is_plumbing(node.target))
    return ModuleContents(
        segments=len(compiled_parts) + len(runs),
        torch_operators=tuple(sorted(operators)),
        calls=_counted(operators),
        layers=shares(tuple(layer for text in texts for layer in read_layers(text))),
        libraries=libraries(),
    )


def _counted(operators: Counter[str]) -> tuple[OperatorCalls, ...]:
    ordered = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    return tuple(OperatorCalls(name=name, calls=calls) for name, calls in ordered)


def _engines(graph: torch.fx.GraphModule, run: torch.fx.Node) -> list[Any]:
    """Return the engines that an operator of a loaded module runs."""
    owned = [attrgetter(str(item.target))(graph) for item in run.all_input_nodes if item.op == "get_attr"]
    return [item for item in owned if hasattr(item, "get_engine_layer_info")]


def of_all_sizes(parts: Sequence[ModuleContents]) -> ModuleContents:
    """Return the contents of a module that was compiled for several batch sizes: the worst of each. Pure.

    Args:
        parts: the contents for each batch size, at least one.
    """
    segments = [contents.segments for contents in parts]
    layers: dict[Precision | None, LayerShare] = {}
    for share in (share for contents in parts for share in contents.layers):
        layers[share.precision] = max(share, layers.get(share.precision, share), key=lambda item: item.layers)
    operators = Counter[str]()
    for contents in parts:
        operators |= Counter({item.name: item.calls for item in contents.calls})  # the larger count of each
    return ModuleContents(
        segments=max(segments) if all(segments) else 0,
        torch_operators=tuple(sorted({name for contents in parts for name in contents.torch_operators})),
        calls=_counted(operators),
        layers=tuple(sorted(layers.values(), key=lambda share: -share.layers)),
        libraries=parts[0].libraries,
    )


def _is_plumbing(target: object) -> bool:
    """Return true for operators that only unpack a tuple, read a size or run an engine."""
    return getattr(target, "__name__", "") == "getitem" or any(name in str(target) for name in (_SEGMENT, "sym_size"))
