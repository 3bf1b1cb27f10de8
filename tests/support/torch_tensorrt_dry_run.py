"""Drives the adapter on the genuine Torch-TensorRT without a GPU, up to where engines would be built: its dry run.

`python -m tests.support.torch_tensorrt_dry_run` prints the outcome as JSON. It runs in its own process: the library
asks `torch.cuda` for a GPU when it is imported, and is told of one here.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from model_artifacts.records import Backend, BatchRange, Precision, Record, Setting
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.factory_call import LogitsOf
from model_artifacts.sessions.torch_model import Typed, TypedInputs, make_model, ready_to_compile
from pipeline.adapters import torch_tensorrt_builder
from pipeline.config.settings import TorchTensorRTConfig
from pipeline.records import tensor_spec
from tests.support.hosts import IMAGES_OF_SIZES, TEXTS_OF_LENGTHS, module_request
from tests.support.segments import Segmenter
from tests.support.sized_segmenters import Sampled
from tests.support.texts import Tags
from tests.support.untraced import trace_less, untraced

if TYPE_CHECKING:
    from pipeline.adapters.torch_tensorrt_builder import ModuleRequest

PROFILES = {"fixed": BatchRange(min=2, opt=2, max=2), "range": BatchRange(min=1, opt=2, max=4)}
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)
SIZED = ("maps", "resized", "tags")
"""Networks of several heights and widths, the second in one batch size, and of several lengths of two inputs."""
ALL_ON = TorchTensorRTConfig(min_block_size=1, optimization_level=1, require_full_compilation=True)


class Case(Record):
    """The outcome of one compilation."""

    segments: int
    stayed: tuple[str, ...]
    settings: tuple[Setting, ...]
    inputs: int = 1
    """Tensors that the module takes: the images, and no weights."""
    same_logits: bool = True


class Report(Record):
    """The outcomes of all compilations."""

    version: str
    known: tuple[str, ...]
    """The settings of this version."""
    cases: dict[str, Case]


def pretend_a_gpu() -> None:
    """Answer the library's questions about a GPU before it uses one."""
    memory = 80 * 2**30
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda *_: (memory, memory)
    torch.cuda.empty_cache = lambda: None
    patch.object(torch_tensorrt_runtime, "missing_driver", lambda: None).start()
    patch.object(torch_tensorrt_builder, "device_of", lambda _: torch.device("cpu")).start()


def engines_of(module: torch.nn.Module) -> int:
    """Return how many parts of a module would have become engines."""
    return sum("_run_on_acc" in name for name, _ in module.named_children())


def stayed_in(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the operators outside of those parts."""
    for name, _ in list(module.named_children()):
        if "_run_on_acc" in name:
            setattr(module, name, torch.nn.Identity())
    return torch_tensorrt_runtime.contents_of(module).torch_operators


def ahead(library: Any, request: ModuleRequest, factory: str) -> Case:
    """Compile ahead of time, without engines."""
    model = ready_to_compile(make_model(factory), request.precision, (3, 32, 32))
    made = torch_tensorrt_builder.compile_ahead(library, model, request)
    count = engines_of(made.module)
    return Case(segments=count, stayed=stayed_in(made.module), settings=made.settings)


def of_sizes(library: Any, folder: Path, kind: str) -> Case:
    """Compile a network for several sizes ahead of time, and trace the result once more, as the library saves it."""
    own = Tags() if kind == "tags" else LogitsOf(Sampled() if kind == "resized" else Segmenter(), "out")
    model = (TypedInputs if kind == "tags" else Typed)(own, torch.float16).eval()
    inputs = TEXTS_OF_LENGTHS if kind == "tags" else IMAGES_OF_SIZES
    axes = inputs[0].ranges
    profile = PROFILES["fixed" if kind == "resized" else "range"].model_copy(update={"axes": axes})
    request = module_request(folder, profile=profile, settings=ALL_ON, inputs=inputs)
    made = torch_tensorrt_builder.compile_ahead(library, model, request)
    examples = torch_tensorrt_builder.examples_of(request, torch.device("cpu"))
    program = torch.export.export(made.module, examples, dynamic_shapes=torch_tensorrt_builder.dims_of(request))
    ranges = {(int(item.lower), int(item.upper)) for item in program.range_constraints.values()}
    assert ranges == {*(() if profile.is_fixed else [(1, 4)]), *((axis.min, axis.max) for axis in axes)}
    count = engines_of(made.module)
    return Case(segments=count, stayed=stayed_in(made.module), settings=made.settings, inputs=len(inputs))


def in_time(library: Any, folder: Path, precision: Precision) -> Case:
    """Compile just in time without engines: the parts for engines run in torch."""
    request = module_request(folder, backend=Backend.TORCH_COMPILE, precision=precision, settings=ALL_ON)
    known = torch_tensorrt_builder.known_settings(library)
    options = torch_tensorrt_builder.options_of(request, known, tunes=torch_tensorrt_builder.times_tactics())
    model = ready_to_compile(make_model("tests.support.tiny_model:make"), precision, (3, 32, 32))
    seen: list[torch.nn.Module] = []
    compiled = torch_tensorrt_runtime.compile_in_time(
        library, model, {**options.arguments, "dryrun": True}, seen.append
    )
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode(), torch_tensorrt_runtime.tracing(constant_weights=True):
        same = torch.allclose(compiled(images), model(images), atol=1e-2)
    (found,) = seen
    assert isinstance(found, torch.fx.GraphModule)
    inputs = sum(node.op == "placeholder" for node in found.graph.nodes)
    return Case(
        segments=engines_of(found),
        stayed=stayed_in(found),
        settings=options.settings,
        inputs=inputs,
        same_logits=same,
    )


def main() -> None:
    """Print the report."""
    pretend_a_gpu()
    library = torch_tensorrt_runtime.load_library()
    real = library.dynamo.compile
    library.dynamo.compile = functools.wraps(real)(functools.partial(untraced(real), dryrun=True))
    trace_less()
    cases = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for precision in PRECISIONS:
            for label, profile in PROFILES.items():
                request = module_request(folder, precision=precision, profile=profile, settings=ALL_ON)
                cases[f"tiny {precision.value} {label}"] = ahead(library, request, "tests.support.tiny_model:make")
            cases[f"in time {precision.value}"] = in_time(library, folder, precision)
        cases |= {f"{kind} of sizes": of_sizes(library, folder, kind) for kind in SIZED}
        request = module_request(folder, profile=PROFILES["range"], settings=ALL_ON)
        large = dataclasses.replace(request, inputs=(tensor_spec("image", (3, 224, 224)),))
        cases["resnet18 fp16 range"] = ahead(library, large, "torchvision.models:resnet18")
    known = tuple(sorted(torch_tensorrt_builder.known_settings(library)))
    report = Report(version=library.__version__, known=known, cases=cases)
    sys.stdout.write("\n" + report.to_json().replace("\n", "") + "\n")


if __name__ == "__main__":
    main()
