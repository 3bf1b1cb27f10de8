"""The loader on a real GPU: several contexts of one engine, joined batches, graphs of many sizes, kept kernels."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import model_artifacts as pipeline
from model_artifacts.errors import RunError
from model_artifacts.host import cuda
from model_artifacts.records import Backend, EngineFlavour, Precision
from model_artifacts.serving.batching import Batcher, Batching
from model_artifacts.serving.pool import Pool
from model_artifacts.serving.runners import open_runners
from model_artifacts.tensorrt.kernels import KeptKernels
from pipeline.stages.common.opening import file_of, gpu_of
from pipeline.system.locks import exclusive
from tests.support.logits import FP16, distance, images, reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import BatchRange
    from pipeline.planning.project import Project
    from pipeline.records import Artifact


def batches_of(artifact: Artifact) -> BatchRange:
    """Return the batch sizes of an engine."""
    assert artifact.variant.profile is not None
    return artifact.variant.profile


def test_threads_get_the_logits_of_their_own_images(project: Project) -> None:
    """Three contexts of one engine, called by eight threads, give the logits that one context gives."""
    with pipeline.load(project.paths.root, pipeline.Requirements(precision=Precision.FP16), contexts=3) as model:
        assert model.entry.backend is Backend.TENSORRT
        assert model.contexts == 3
        step = batches_of(project.artifact(project.plan.variant(model.entry.id))).max
        parts = [images(project, 8)[at : at + step] for at in range(0, 8, step)]
        expected = [model(part) for part in parts]
        assert distance(np.concatenate(expected), reference(project, 8)) < FP16
        with ThreadPoolExecutor(8) as threads:
            for number, found in enumerate(threads.map(model, parts * 40)):
                assert distance(found, expected[number % len(parts)]) < 2 * FP16
        closing = threading.Thread(target=model.close)
        closing.start()
        closing.join()
        with pytest.raises(RunError, match="the model is closed"):
            model(parts[0])


@pytest.mark.parametrize("buffers", [2, 4])
def test_a_stream_gives_the_logits_of_its_batches(project: Project, buffers: int) -> None:
    """Batches of several sizes, beside calls and another stream; what ends early gives its memory back."""
    with pipeline.load(project.paths.root, pipeline.Requirements(precision=Precision.FP16)) as model:
        sizes = batches_of(project.artifact(project.plan.variant(model.entry.id)))
        order = [sizes.max] * 20 + [sizes.min] * 5 + [sizes.max] * 5
        pictures, wanted = images(project, 8), reference(project, 8)
        parts = [np.roll(pictures, number, axis=0)[:size] for number, size in enumerate(order)]
        both = zip(model.stream(parts, buffers=buffers), model.stream(parts), strict=True)
        for number, (found, other) in enumerate(both):
            expected = np.roll(wanted, number, axis=0)[: order[number]]
            assert distance(found, expected) < FP16
            assert distance(other, expected) < FP16
            assert distance(model(parts[number]), found) < 2 * FP16
        gpu, after = model.resolution.place.gpu, []
        assert gpu is not None
        with exclusive(gpu):  # another process that builds would take memory meanwhile
            for _ in range(3):
                for _ in model.stream(parts, buffers=buffers):
                    break
                with cuda.using(gpu):
                    after.append(cuda.free_bytes())
        assert after[0] - after[-1] < 8 * 2**20


def test_contexts_give_their_memory_back(project: Project, ranged: Artifact) -> None:
    """Every context, its buffers and its graphs are freed at the end, and the next opening has the memory again."""
    file, gpu = file_of(project, ranged), gpu_of(project, ranged)
    sizes = batches_of(ranged)
    after = []
    with exclusive(gpu):  # another process that builds would take memory meanwhile
        for _ in range(3):
            with open_runners(file, 4) as runs:
                for run in runs:
                    for size in range(sizes.min, sizes.max + 1):
                        run(images(project, size))
            with cuda.using(gpu):
                after.append(cuda.free_bytes())
    assert after[0] - after[-1] < 8 * 2**20


@pytest.mark.parametrize("contexts", [1, 2])
def test_joined_calls_get_their_own_rows(project: Project, ranged: Artifact, contexts: int) -> None:
    """Single images of many threads run as batches, and each thread gets the logits of its image."""
    batch = images(project, 8)
    with open_runners(file_of(project, ranged), contexts) as runs:
        expected = [runs[0](batch[at : at + 1]) for at in range(8)]
        batcher = Batcher(Pool(runs), Batching(batches_of(ranged).max, 2), batches_of(ranged).max)
        with ThreadPoolExecutor(8) as threads:
            for number, found in enumerate(threads.map(batcher, [batch[at : at + 1] for at in range(8)] * 40)):
                assert distance(found, expected[number % 8]) < 2 * FP16  # of other kernels
        batcher.close()


def test_each_size_is_captured_once(project: Project, ranged: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """After all sizes have come, no call captures, and each replays the logits of its own size."""
    captured: list[int] = []
    capture = cuda.Stream.capture

    def counted(stream: cuda.Stream, work: Callable[[], None]) -> cuda.Graph:
        captured.append(1)
        return capture(stream, work)

    monkeypatch.setattr(cuda.Stream, "capture", counted)
    sizes = range(batches_of(ranged).min, batches_of(ranged).max + 1)
    with open_runners(file_of(project, ranged)) as (run,):
        for size in [*sizes, *reversed(sizes)] * 5:
            assert distance(run(images(project, size)), reference(project, size)) < FP16
    assert len(captured) == len(sizes)


def test_kernels_of_another_run_are_set_aside(
    project: Project, ranged: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT-RTX opens the engine although its runtime cache is none, and keeps what it compiled instead."""
    assert ranged.built_for is not None
    if ranged.built_for.flavour is not EngineFlavour.TENSORRT_RTX:
        pytest.skip("this host's TensorRT compiles no kernels at run time")
    kept = KeptKernels(tmp_path / "own.kernels")
    file = replace(file_of(project, ranged), runtime_cache=b"no kernels at all")
    with open_runners(file, 2, kept) as runs:
        assert distance(runs[1](images(project, 2)), reference(project, 2)) < FP16
    assert kept.read()  # whether the library refused those bytes, or passed over them
    caplog.clear()
    with caplog.at_level(logging.WARNING), open_runners(file, 1, kept) as (run,):
        assert distance(run(images(project, 2)), reference(project, 2)) < FP16
    assert caplog.text == ""
