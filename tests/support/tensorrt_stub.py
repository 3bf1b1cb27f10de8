"""Drives the adapter on a TensorRT's genuine bindings with stand-in objects, and prints the outcome as JSON.

    python -m tests.support.tensorrt_stub FOLDER    # the folder holds the package `tensorrt_bindings`

The bindings import on stub libraries, without a GPU: enumerations, data types and the classes to derive from are the
genuine ones. What TensorRT's factories would make is a stand-in, which has the attributes that the genuine class has,
and takes the arguments that the genuine signatures say. One flavour a process: each registers the same types.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from model_artifacts.errors import ArtifactError
from model_artifacts.records import BatchRange, EngineFlavour, Precision, Record, Setting, TensorSpec
from model_artifacts.tensorrt.flavour import BuildLog, Flavour, make_logger
from model_artifacts.tensorrt.refitter import refit_engine
from model_artifacts.tensorrt.runtime import load_engine
from pipeline.adapters.tensorrt_builder import EngineRequest, build_engine
from pipeline.config.settings import HardwareCompatibility, TacticSource, TensorRTConfig
from tests.support.hosts import H100

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MADE = ("Builder", "OnnxParser", "OnnxParserRefitter", "Refitter", "Runtime")
"""The classes whose constructors need the real libraries."""

_SIGNATURE = re.compile(r"^(?:\d+\. )?\w*\((?P<parameters>.*)\) -> (?P<returns>.+)$", re.MULTILINE)

_PLAIN: dict[str, Callable[[object], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "buffer": lambda value: isinstance(value, (bytes, bytearray, memoryview)),
    "int": lambda value: hasattr(value, "__index__"),
    "list": lambda value: isinstance(value, list),
    "str": lambda value: isinstance(value, str),
    "tuple": lambda value: isinstance(value, tuple),
}
_NEWER_NAMES = {
    "typing.SupportsInt": "int",
    "typing_extensions.Buffer": "buffer",
    "collections.abc.Buffer": "buffer",  # from Python 3.12
}
_DEFAULTS: dict[str, object] = {"None": None, "bool": True, "int": 0, "str": ""}
"""What a stand-in returns where nothing else was said, by the type in the signature."""


class ContractError(TypeError):
    """A call that the genuine binding would refuse."""


def signatures(docstring: str | None) -> list[inspect.Signature]:
    """Return the signatures in pybind's docstring of a method, one for each overload."""
    found = _SIGNATURE.finditer(docstring or "")
    return [inspect.Signature(list(_parameters(one["parameters"])), return_annotation=one["returns"]) for one in found]


def _parameters(text: str) -> Iterator[inspect.Parameter]:
    for part in _split(text):
        declared, _, default = part.partition(" = ")
        name, _, annotation = declared.partition(": ")
        yield inspect.Parameter(
            name,
            # pybind calls a parameter without a name arg0, arg1 …, and takes no such keyword
            inspect.Parameter.POSITIONAL_ONLY
            if re.fullmatch(r"arg\d+", name)
            else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=default or inspect.Parameter.empty,
            annotation=annotation,
        )


def _split(text: str) -> Iterator[str]:
    """Split at the commas that no bracket encloses."""
    depth, begun = 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and not depth:
            yield text[begun:index].strip()
            begun = index + 1
    if text[begun:].strip():
        yield text[begun:].strip()


class Library(ModuleType):
    """A genuine module whose factories return stand-ins, in the place of TensorRT."""

    def __init__(self, genuine: ModuleType, answers: Callable[[Library], Mapping[str, Any]]) -> None:
        """Wrap a module; the answers are values, or functions of a call's arguments, by `Class.member`."""
        super().__init__("tensorrt")
        self.genuine = genuine
        self.calls: list[str] = []
        self.answers = dict(answers(self))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.genuine, name)
        return (lambda *args, **kwargs: self._make(found, args, kwargs)) if name in _MADE else found

    def _make(self, genuine: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Standin:
        made = Standin(genuine, self)
        self.call(f"{genuine.__name__}.__init__", genuine.__init__.__doc__, (made, *args), kwargs)
        return made

    def call(self, name: str, docstring: str | None, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """Hold a call against the genuine signatures, note it, and answer.

        Raises:
            ContractError: no overload takes these arguments.
        """
        problems: list[str] = []
        for signature in signatures(docstring):
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as exc:
                problems.append(str(exc))
                continue
            given = bound.arguments
            wrong = [
                f"{key} is {_shown(value)}, no {signature.parameters[key].annotation}"
                for key, value in given.items()
                if not self._fits(value, signature.parameters[key].annotation)
            ]
            if not wrong:
                rest = list(given.values())[1:]
                self.calls.append(f"{name}({', '.join(map(_shown, rest))})")
                return self.answer(name, signature.return_annotation, rest)
            problems += wrong
        raise ContractError(f"{name}: {'; '.join(problems) or 'its signature is unknown'}")

    def answer(self, name: str, returns: str, args: list[object]) -> object:
        """Return the set answer of this member, or a value of the type that it returns."""
        if name in self.answers:
            said = self.answers[name]
            return said(*args) if callable(said) else said
        if returns in _DEFAULTS:
            return _DEFAULTS[returns]
        found = self._class(returns)
        if hasattr(found, "__members__"):
            raise ContractError(f"{name}: nothing was said that it returns")
        return Standin(found, self)

    def _fits(self, value: object, annotation: str) -> bool:
        plain = _NEWER_NAMES.get(annotation, annotation)
        if plain in _PLAIN:
            return _PLAIN[plain](value)
        found = self._class(annotation)
        if found is self.genuine.Dims and isinstance(value, (tuple, list)):
            return all(isinstance(size, int) for size in value)  # pybind converts these
        return issubclass(value.genuine_class, found) if isinstance(value, Standin) else isinstance(value, found)

    def _class(self, annotation: str) -> Any:
        """Return a class by its name in a docstring: `tensorrt.IBuilder`, or `nvinfer1::IEngineInspector` in C++."""
        name = re.split(r"\.|::", annotation)[-1]
        for known in (name, name.removeprefix("I")):
            if inspect.isclass(found := getattr(self.genuine, known, None)):
                return found
        raise ContractError(f"{annotation} is none of the types that the contract knows")


class Standin:
    """An object of a genuine class, as far as its attributes and its methods' signatures go."""

    genuine_class: Any

    def __init__(self, genuine: Any, library: Library, **values: object) -> None:
        """Stand in for an object of a class; the values are those of its properties, where they matter."""
        self.__dict__.update(genuine_class=genuine, _library=library, _values=values)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.genuine_class, name)
        full = f"{self.genuine_class.__name__}.{name}"
        if not isinstance(member, property):
            return lambda *args, **kwargs: self._library.call(full, member.__doc__, (self, *args), kwargs)
        if name in self._values:
            return self._values[name]
        (signature,) = signatures(inspect.getdoc(member.fget))
        return self._library.answer(full, signature.return_annotation, [])

    def __setattr__(self, name: str, value: object) -> None:
        member = getattr(self.genuine_class, name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{self.genuine_class.__name__}.{name} cannot be set")
        self._library.call(f"{self.genuine_class.__name__}.{name}.set", member.fset.__doc__, (self, value), {})
        self._values[name] = value

    def __bytes__(self) -> bytes:
        if self.genuine_class is not self._library.genuine.IHostMemory:
            raise ContractError(f"{self.genuine_class.__name__} holds no bytes")
        return b"host memory"


def _shown(value: object) -> str:
    if isinstance(value, Standin):
        return str(value.genuine_class.__name__)
    plain = isinstance(value, (int, str, bytes, tuple, list))
    return repr(value) if plain else str(value) if hasattr(type(value), "__members__") else type(value).__name__


# What is driven


class Case(Record):
    """The outcome of one use of the adapter."""

    calls: tuple[str, ...] = ()
    violation: str = ""
    """What the genuine binding would have raised."""
    error: str = ""
    """What the adapter raised on purpose, by its class and first line."""
    settings: tuple[Setting, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    said: tuple[str, ...] = ()
    """What else it gave, as text."""


class Report(Record):
    """The outcomes for one flavour."""

    version: str
    cases: dict[str, Case]


SETTINGS = {
    "plain": TensorRTConfig(),
    "every": TensorRTConfig(
        optimization_level=3,
        tactic_sources=(TacticSource.EDGE_MASK_CONVOLUTIONS, TacticSource.JIT_CONVOLUTIONS),
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
        version_compatible=True,
        refit=True,
        strip_plan=True,
    ),
    "same": TensorRTConfig(hardware_compatibility=HardwareCompatibility.SAME_COMPUTE_CAPABILITY),
    "cublas": TensorRTConfig(tactic_sources=(TacticSource.CUBLAS, TacticSource.CUBLAS_LT, TacticSource.CUDNN)),
    "untimed": TensorRTConfig(timing_cache=False),
}
RANGE = BatchRange(min=1, opt=2, max=4)
FIXED = BatchRange(min=4, opt=4, max=4)
LAYER = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Name": "image", "Format/Datatype": "Half"}]}


def _answers(library: Library) -> dict[str, Any]:
    """Return the answers of a network and an engine with one input and one output."""
    trt = library.genuine
    shapes = {"image": trt.Dims((-1, 3, 8, 8)), "logits": trt.Dims((-1, 10))}
    image, logits = (
        Standin(trt.ITensor, library, name=name, shape=shape, dtype=trt.DataType.FLOAT)
        for name, shape in shapes.items()
    )
    return {
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.num_outputs": 1,
        "INetworkDefinition.get_input": image,
        "INetworkDefinition.get_output": logits,
        "Builder.build_serialized_network": lambda _, config: _build(library, config),
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.device_memory_size": 4096,
        "ICudaEngine.device_memory_size_v2": 4096,
        "ICudaEngine.get_tensor_name": lambda index: list(shapes)[index],
        "ICudaEngine.get_tensor_mode": lambda name: getattr(trt.TensorIOMode, {"image": "INPUT"}.get(name, "OUTPUT")),
        "ICudaEngine.get_tensor_shape": shapes.get,
        "ICudaEngine.get_tensor_dtype": trt.DataType.FLOAT,
        "ICudaEngine.get_tensor_profile_shape": [trt.Dims((batch, 3, 8, 8)) for batch in (1, 2, 4)],
        "IExecutionContext.get_tensor_shape": lambda name: trt.Dims((2, *tuple(shapes[name])[1:])),
        "EngineInspector.get_engine_information": json.dumps({"Layers": [LAYER]}),
    }


def _build(library: Library, config: Any) -> Standin:
    """Build, and tell of it as the library's C++ does: through the genuine class's virtual methods."""
    trt = library.genuine
    if hasattr(trt, "IProgressMonitor") and config.progress_monitor:
        monitor, kind = config.progress_monitor, trt.IProgressMonitor
        kind.phase_start(monitor, "tune", None, 2)
        kind.phase_start(monitor, "conv", "tune", 1)
        library.calls.append(f"go on: {kind.step_complete(monitor, 'conv', 0)}")
        kind.phase_finish(monitor, "conv")
    return Standin(trt.IHostMemory, library)


@dataclass
class _Told:
    """Hears of a build's progress."""

    events: list[str]

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self.events.append(f"start {phase} of {parent}, {steps} steps")

    def step(self, phase: str, done: int) -> None:
        self.events.append(f"{phase}: {done}")

    def finish(self, phase: str) -> None:
        self.events.append(f"finish {phase}")


def _request(precision: Precision, settings: TensorRTConfig, profile: BatchRange = RANGE) -> EngineRequest:
    return EngineRequest(
        onnx=Path("graph.onnx"),
        onnx_opset17=Path("graph17.onnx"),
        precision=precision,
        profile=profile,
        workspace_bytes=2**24,
        compute_capabilities=(),
        gpu=H100,
        settings=settings,
    )


def _built(flavour: Flavour, request: EngineRequest, timings: bytes = b"") -> dict[str, Any]:
    told = _Told([])
    engine = build_engine(flavour, request, BuildLog(), told, timings)
    memory = str(engine.memory.activation_bytes)
    said = (memory, engine.plan.decode(), engine.timing_cache.decode(), *told.events)
    return {"settings": engine.settings, "inputs": engine.inputs, "outputs": engine.outputs, "said": said}


def _loaded(flavour: Flavour, weights: Path | None = None) -> dict[str, Any]:
    """Use everything that a loaded engine and its context offer."""
    with load_engine(flavour, b"plan", weights) as engine:
        inspected = engine.inspect()
        with engine.context(stream=7) as context:
            context.set_input_shape("image", (2, 3, 8, 8))
            context.set_address("image", 4096)
            shape = context.shape("logits")
            layers = context.layers()
            context.enqueue(7)
            cache = context.runtime_cache()
        said = (engine.batches.label, str(layers[0].precision), str(shape), str(cache), inspected)
        return {"inputs": engine.inputs, "outputs": engine.outputs, "said": said}


def _refitted(flavour: Flavour, weights: Path) -> dict[str, Any]:
    """Put other weights into an engine."""
    return {"said": (refit_engine(flavour, b"plan", weights, BuildLog()).decode(),)}


def _weights(folder: Path, *names: str) -> Path:
    """Write a graph with weights of these names."""
    tensors = [numpy_helper.from_array(np.ones(2, dtype=np.float16), name) for name in names]
    graph = helper.make_graph([], "graph", [], [], tensors)
    file = folder / "weights.onnx"
    onnx.save(helper.make_model(graph), file)
    return file


def _profiled(flavour: Flavour) -> dict[str, Any]:
    """Have a context time its layers."""
    with load_engine(flavour, b"plan") as engine, engine.context(stream=7) as context:
        return {"said": tuple(f"{name} {taken:.2f}" for name, taken in context.time_layers(7, 2).items())}


def _telling(trt: ModuleType) -> dict[str, Any]:
    """Return answers of a context that reports to its profiler, through the genuine class's virtual method."""
    told: list[Any] = []

    def run(_: int) -> bool:
        for name, taken in (("conv", 0.5), ("copy", 0.125), ("copy", 0.125)):
            trt.IProfiler.report_layer_time(told[-1], name, taken)
        return True

    return {"IExecutionContext.profiler.set": told.append, "IExecutionContext.execute_async_v3": run}


def _logged(flavour: Flavour) -> dict[str, Any]:
    """Log as the library's C++ does: through the genuine class's virtual method."""
    trt, log = flavour.module, BuildLog()
    logger = make_logger(trt, log)
    for severity in trt.ILogger.Severity.__members__.values():
        trt.ILogger.log(logger, severity, "hello")
    return {"said": tuple(log.text().splitlines())}


def _config(flavour: Flavour) -> Any:
    trt = flavour.module
    return trt.Builder(make_logger(trt, BuildLog())).create_builder_config()


def _assign(target: object, name: str, value: object) -> None:
    setattr(target, name, value)


_MISTAKES: dict[str, Callable[[Flavour], object]] = {
    "a property": lambda flavour: _config(flavour).max_workspace_size,
    "a property that is set": lambda flavour: _assign(_config(flavour), "max_workspace_size", 1),
    "a flag": lambda flavour: _config(flavour).set_flag(flavour.module.BuilderFlag.FP16),
    "a keyword": lambda flavour: _config(flavour).set_memory_pool_limit(
        pool=flavour.module.MemoryPoolType.WORKSPACE, size=1
    ),
    "the number of arguments": lambda flavour: _config(flavour).set_timing_cache(
        _config(flavour).create_timing_cache(b"")
    ),
    "another enumeration": lambda flavour: _config(flavour).set_flag(flavour.module.MemoryPoolType.WORKSPACE),
    "a number for an enumeration": lambda flavour: _assign(_config(flavour), "profiling_verbosity", 1),
    "another object": lambda flavour: _config(flavour).add_optimization_profile(_config(flavour)),
    "a property that is read only": lambda flavour: _assign(_config(flavour), "num_optimization_profiles", 1),
    "a constructor": lambda flavour: flavour.module.Runtime(),
}
"""What the contract must catch: some in every flavour, some in those that lack what is used."""


def _mistaken(mistake: Callable[[Flavour], object], flavour: Flavour) -> dict[str, Any]:
    mistake(flavour)
    return {}


def _attempt(
    genuine: ModuleType, action: Callable[[Flavour], Mapping[str, Any]], answers: Mapping[str, Any] | None = None
) -> Case:
    library = Library(genuine, lambda self: {**_answers(self), **(answers or {})})
    flavour = Flavour(EngineFlavour.TENSORRT, genuine.__version__, library)
    gave: Mapping[str, Any] = {}
    try:
        gave = action(flavour)
    except ArtifactError as exc:
        gave = {"error": f"{type(exc).__name__}: {exc.what}"}
    except (AttributeError, TypeError) as exc:
        gave = {"violation": f"{type(exc).__name__}: {exc}"}
    return Case(calls=tuple(library.calls), **gave)


def drive(genuine: ModuleType, folder: Path) -> Report:
    """Use a flavour in every way that the adapter offers; files lie in the folder."""
    attempt = partial(_attempt, genuine)
    matrix = {
        f"build {precision.value} {name}": attempt(partial(_built, request=_request(precision, settings)))
        for precision in Precision
        for name, settings in SETTINGS.items()
    }
    build = partial(_built, request=_request(Precision.FP16, SETTINGS["plain"]))
    refit = partial(_loaded, weights=Path("weights.onnx"))
    bad_graph = {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 1,
        "ParserError.desc": "no such operator",
    }
    taken = iter((False, True))
    named = {"Refitter.get_all_weights": ["weight"], "Refitter.get_missing_weights": []}
    fresh = partial(_refitted, weights=_weights(folder, "weight"))
    others = {
        "build a fixed batch": attempt(partial(_built, request=_request(Precision.FP16, SETTINGS["plain"], FIXED))),
        "build with timings": attempt(partial(build, timings=b"timings")),
        "build with another GPU's timings": attempt(
            partial(build, timings=b"timings"), {"IBuilderConfig.set_timing_cache": lambda *_: next(taken)}
        ),
        "build with tactic sources that are refused": attempt(
            partial(_built, request=_request(Precision.FP16, SETTINGS["every"])),
            {"IBuilderConfig.set_tactic_sources": False},
        ),
        "build of a bad graph": attempt(build, bad_graph),
        "build that fails": attempt(build, {"Builder.build_serialized_network": None}),
        "load": attempt(_loaded),
        "load with weights": attempt(refit),
        "load with weights of another": attempt(refit, {"OnnxParserRefitter.refit_from_file": False}),
        "load what is damaged": attempt(_loaded, {"Runtime.deserialize_cuda_engine": None}),
        "a second context": attempt(_loaded, {"IExecutionContext.active_optimization_profile": -1}),
        "refit": attempt(fresh, named),
        "refit what is damaged": attempt(fresh, {"Runtime.deserialize_cuda_engine": None}),
        "refit that fails": attempt(fresh, {**named, "Refitter.refit_cuda_engine": False}),
        "refit that lacks weights": attempt(fresh, {**named, "Refitter.get_missing_weights": ["other"]}),
        "refit of other names": attempt(fresh, {**named, "Refitter.get_all_weights": ["weight", "other"]}),
        "refit without a graph": attempt(partial(_refitted, weights=Path("none.onnx")), named),
        "profile": attempt(_profiled, _telling(genuine)),
        "log": attempt(_logged),
    }
    mistakes = {f"mistake: {name}": attempt(partial(_mistaken, mistake)) for name, mistake in _MISTAKES.items()}
    return Report(version=genuine.__version__, cases={**matrix, **others, **mistakes})


if __name__ == "__main__":
    sys.modules["tensorrt_libs"] = None  # type: ignore[assignment]  # the stub libraries, not those that may be installed
    sys.path.insert(0, sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        report = drive(importlib.import_module("tensorrt_bindings"), Path(scratch))
    sys.stdout.write(report.model_dump_json())
