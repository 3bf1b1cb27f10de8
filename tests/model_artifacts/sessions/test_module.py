"""Sessions of torch modules, with a stand-in for Torch-TensorRT on the CPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model_artifacts.errors import RunError
from model_artifacts.host.factory_code import code_of
from model_artifacts.records import CPU_TARGET, Backend, BatchRange, Layout, Precision, Variant
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.module import Loaded, open_session
from model_artifacts.sessions.torch_model import make_model
from model_artifacts.sessions.torch_tensorrt_runtime import model_of
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import tensor_spec
from pipeline.stages import STAGES
from pipeline.stages.build import module as torchtrt
from pipeline.stages.common.modules import load_module
from tests.support.hosts import H100, host
from tests.support.logits import FP16, distance, images, reference
from tests.support.modules import IMAGES
from tests.support.torch_modules import artifact_of, made, named
from tests.support.torch_tensorrt_stub import Library, use

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the finished tiny project, planned for an H100 that is the CPU, with Torch-TensorRT's stand-in."""
    use(Library(), monkeypatch)
    found = Project.load(copied / "pipeline.yaml", STAGES)
    return Project(Plan(found.config, host(H100)), found.paths, STAGES)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("eager-fp32", 1e-5),
        ("eager-fp16", FP16),
        ("eager-fp16-channels_last", FP16),
        ("dynamo-fp16-b1-2-4-ws16MiB", FP16),
        ("torch_compile-fp16-b1-2-4-ws16MiB", FP16),
        ("torch_compile-fp32-b1-2-4-ws16MiB", 1e-5),
    ],
)
@pytest.mark.parametrize("layout", list(Layout))
def test_every_module_gives_the_references_logits(project: Project, name: str, bound: float, layout: Layout) -> None:
    """Loaded from its file or made from its recipe, it gives the reference's logits, however the images lie."""
    variant = named(project, name)
    path = project.file(project.source().weights)
    artifact = made(project, name) if variant.backend.is_torch_tensorrt else artifact_of(project, variant, path)
    module = load_module(project, artifact, H100)
    with open_session(module, variant, IMAGES, None) as run:
        for size in (4, 1, 3):
            assert distance(run(images(project, size), layout), reference(project, size)) < bound


def test_weights_are_contiguous_whatever_the_factory_gave(project: Project) -> None:
    """A recipe's weights never lie in channels_last, which gave wrong numbers without a warning."""
    recipe = torchtrt.recipe_of(project, named(project, "torch_compile-fp16-b1-ws16MiB"), ())
    factory = "tests.support.factories:in_channels_last"
    given = [tensor for tensor in make_model(factory).parameters() if tensor.ndim == 4]
    assert not all(tensor.is_contiguous() for tensor in given)
    recipe = recipe.model_copy(update={"factory": factory, "code": code_of(factory)})
    model = model_of(project.paths.root, recipe, "build it again")
    weights = [tensor for tensor in model.parameters() if tensor.ndim == 4]
    assert weights
    assert all(tensor.is_contiguous() for tensor in weights)
    assert {tensor.dtype for tensor in weights} == {torch.float16}


def test_a_recipe_is_compiled_once_its_session_is_open(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a recipe compiles it for every named batch size, and the contents can be reported."""
    artifact = made(project, "torch_compile-fp16-b1-2-4-ws16MiB")
    library = Library()
    use(library, monkeypatch)
    with open_session(load_module(project, artifact, H100), artifact.variant, IMAGES, None) as run:
        assert len(library.seen) == 3
        run(images(project, 4))
        contents = run.contents()
    assert len(library.seen) == 3
    assert contents is not None
    assert (contents.segments, contents.torch_operators) == (1, ())


def test_a_saved_module_tells_its_engines_once_loaded(project: Project) -> None:
    """The contents are those of the loaded file, not those that the build had in memory."""
    artifact = made(project, "dynamo-fp16-b1-ws16MiB")
    with open_session(load_module(project, artifact, H100), artifact.variant, IMAGES, None) as run:
        contents = run.contents()
    assert contents is not None
    assert contents.segments == 1


def test_a_recipe_is_made_again_without_the_hosts_timings(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's default is one file in /tmp that every user of the host reads and writes."""
    library = Library()
    use(library, monkeypatch)
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    with open_session(load_module(project, artifact, H100), artifact.variant, IMAGES, None) as run:
        run(images(project, 1))
    assert library.seen[-1]["timing_cache_path"] == os.devnull


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda batch: batch.astype(np.float64), "float64"),
        (lambda batch: batch[:, :, :16], "(2, 3, 16, 32)"),
        (lambda batch: np.concatenate([batch] * 3), "(6, 3, 32, 32)"),
        (lambda batch: batch[:0], "(0, 3, 32, 32)"),
        (lambda batch: batch.transpose(0, 1, 3, 2), "strides"),
    ],
)
def test_what_a_module_does_not_take_is_refused(project: Project, change: Any, got: str) -> None:
    """A wrong type, shape, batch or layout is refused with expected and got, and the session goes on."""
    artifact = made(project, "dynamo-fp16-b1-2-4-ws16MiB")
    with open_session(load_module(project, artifact, H100), artifact.variant, IMAGES, None) as run:
        with pytest.raises(RunError, match="takes other batches") as caught:
            run(change(images(project, 2)))
        assert got in str(caught.value)
        assert "expected: float32 (1 to 4, 3, 32, 32), contiguous" in str(caught.value)
        assert distance(run(images(project, 2)), reference(project, 2)) < FP16


def test_what_a_module_raises_is_a_clear_error(project: Project) -> None:
    """The model's own error is translated, with the size of the batch."""
    variant = named(project, "eager-fp32")
    with (
        open_session(Loaded(torch.nn.Linear(3, 3)), variant, IMAGES, None) as run,
        pytest.raises(RunError, match="cannot run a batch of 2"),
    ):
        run(images(project, 2))


def test_a_session_compiles_every_size_and_layout(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's default of eight graphs for a module is no reason to run without Torch-TensorRT after the eighth."""
    library = Library()
    use(library, monkeypatch)
    profile = BatchRange(min=1, opt=2, max=5)
    variant = named(project, "torch_compile-fp32-b1-ws16MiB").model_copy(update={"profile": profile})
    module = torch_tensorrt_runtime.compile_in_time(library, torch.nn.Flatten(), {}, lambda _: None)
    with open_session(Loaded(module), variant, IMAGES, None) as run:
        for size in range(1, 6):
            for layout in Layout:
                run(images(project, size), layout)
    assert len(library.seen) == 10


def test_a_session_on_the_cpu_has_no_stream(project: Project) -> None:
    """A session on the CPU has no CUDA stream to time, and the error says so."""
    variant = named(project, "eager-fp32")
    with (
        open_session(Loaded(torch.nn.Identity()), variant, IMAGES, None) as run,
        pytest.raises(RunError, match="no CUDA stream"),
    ):
        _ = run.stream


@pytest.mark.parametrize(("name", "tf32"), [("eager-fp32", False), ("eager-fp16", True)])
def test_only_strict_fp32_forbids_tf32(project: Project, name: str, *, tf32: bool) -> None:
    """Within a session TF32 is off for strict FP32 alone, no gradients are kept, and afterwards all is as before."""
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision())
    variant = named(project, name)
    with open_session(Loaded(torch.nn.Identity()), variant, IMAGES, None):
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert (torch.get_float32_matmul_precision() == "high") is tf32
        assert torch.is_inference_mode_enabled()
    now = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision())
    assert now == before
    assert variant.precision in {Precision.FP32, Precision.FP16}


PAIR = (tensor_spec("image", (3, 4, 4)), tensor_spec("words", (2,), "int64"))
"""A picture with token ids beside it."""


class Counting(torch.nn.Module):
    """A network of two inputs and two outputs, that tells them apart."""

    def forward(self, image: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean of the picture, and the sum of the ids."""
        return image.mean(dim=(1, 2, 3)), words.sum(dim=1)


def pair(size: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """Return a batch of it, in another order than the network's."""
    words = np.arange(2 * size, dtype=np.int64).reshape(size, 2)
    return {"words": words, "image": np.full((size, 3, 4, 4), size, np.float32)}


def test_several_inputs_arrive_by_their_names() -> None:
    """In the order of the network, each in its type; a size that ran before has its own buffers."""
    variant = Variant(model="tiny", target=CPU_TARGET, backend=Backend.EAGER, precision=Precision.FP32)
    with open_session(Loaded(Counting(), output_names=("mean", "sum")), variant, PAIR, None) as run:
        for size in (2, 1, 2):
            found = run(pair(size))
            assert isinstance(found, dict)
            np.testing.assert_array_equal(found["mean"], [size] * size)
            np.testing.assert_array_equal(found["sum"], pair(size)["words"].sum(axis=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": None}, r"other inputs than the batch.*image, words.*got: +image"),
        ({"words": np.zeros((2, 2), np.float32)}, r"words: int64 \(batch, 2\).*words: float32 \(2, 2\)"),
        ({"words": np.zeros((1, 2), np.int64)}, r"takes other batches.*words: int64 \(1, 2\)"),
        ({"image": np.zeros((2, 3, 4, 5), np.float32)}, r"image: float32 \(batch, 3, 4, 4\).*\(2, 3, 4, 5\)"),
        ({"image": np.zeros((2, 3, 4, 8), np.float32)[..., ::2]}, "with strides"),
    ],
    ids=["missing", "type", "fewer", "shape", "strides"],
)
def test_several_inputs_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    """With what each input takes; nothing is cast or repeated unseen."""
    variant = Variant(model="tiny", target=CPU_TARGET, backend=Backend.EAGER, precision=Precision.FP32)
    batch = {name: array for name, array in (pair(2) | change).items() if array is not None}
    with (
        open_session(Loaded(Counting()), variant, PAIR, None) as run,
        pytest.raises(RunError, match=rf"(?s){message}"),
    ):
        run(batch)
