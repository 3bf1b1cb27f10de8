"""Parts of a batch that run at once: those of a network and a batch range, and real engines for one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import AxisRange, BatchRange, EngineFlavour, Graph, TensorSpec
from model_artifacts.tensorrt.flavour import load_flavour
from pipeline.adapters.trials.parts import Parts, parts_of
from tests.support.engine_requests import build, request_of, with_setting

if TYPE_CHECKING:
    from pipeline.planning.project import Project

IMAGE = TensorSpec(name="image", shape=("batch", 3, 8, 8), dtype="float32", layout="NCHW")
LOGITS = TensorSpec(name="logits", shape=("batch", 16), dtype="float32", layout="NC")


def fixed(size: int) -> BatchRange:
    """Return the range of one batch size."""
    return BatchRange(min=size, opt=size, max=size)


def test_the_engine_is_for_one_part() -> None:
    """Its own batch is a share of what callers send."""
    assert parts_of(fixed(64), 4, [IMAGE, LOGITS]) == Parts(4, fixed(16))
    assert parts_of(fixed(64), 1, []) == Parts(1, fixed(64))


HEIGHT = AxisRange(name="height", min=8, opt=8, max=16)


@pytest.mark.parametrize(
    ("profile", "ends", "says"),
    [
        (fixed(63), [IMAGE, LOGITS], "a batch of 63 has no 4 equal parts"),
        (BatchRange(min=4, opt=8, max=8), [IMAGE, LOGITS], "an engine for several sizes runs each batch as a whole"),
        (BatchRange(min=1, opt=8, max=8, tuned=(4, 8)), [], "an engine for several sizes runs each batch as a whole"),
        (BatchRange(min=8, opt=8, max=8, axes=(HEIGHT,)), [], "an engine for several sizes"),
        (fixed(64), [IMAGE.model_copy(update={"shape": (64, 3, 8, 8)})], "the batch size of image is fixed"),
        (fixed(8), [IMAGE, LOGITS], "a part of logits has 128 bytes, 128 more than a multiple of 256"),
    ],
    ids=["indivisible", "range", "profiles", "axes", "fixed in the graph", "unaligned"],
)
def test_a_batch_that_stays_whole_says_why(profile: BatchRange, ends: list[TensorSpec], says: str) -> None:
    """The setting is recorded as unsupported for this engine, and the engine is built without it."""
    number, left, obstacle = parts_of(profile, 4, ends)
    assert (number, left) == (1, profile)
    assert obstacle.startswith(says)


def test_a_real_engine_for_a_part_has_the_records_of_the_batch(built: Project) -> None:
    """Tensors and memory are those of the whole batch, and the digest is no other engine's."""
    flavour = load_flavour(EngineFlavour.TENSORRT_RTX)
    whole = request_of(built, Graph.FP16, fixed(128), workspace_bytes=2**26)
    split = build(flavour, with_setting(whole, "batch_parts", 2))
    half = build(flavour, replace(whole, profile=fixed(64)))
    assert split.built_for.batch_parts == 2
    assert [item.shape[0] for item in (*split.inputs, *split.outputs)] == [128, 128]
    assert split.memory.activation_bytes == 2 * half.memory.activation_bytes
    assert split.memory.weights_bytes == half.memory.weights_bytes
    assert next(item for item in split.settings if item.name == "batch_parts").applied
    assert split.layers_sha256 != half.layers_sha256
    assert half.built_for.batch_parts == 1
    assert "batch_parts" not in half.built_for.to_json()


def test_a_real_engine_without_equal_parts_is_built_as_a_whole(built: Project) -> None:
    """The record says why the setting is not applied."""
    flavour = load_flavour(EngineFlavour.TENSORRT_RTX)
    engine = build(flavour, with_setting(request_of(built, Graph.FP16), "batch_parts", 2))
    (setting,) = [item for item in engine.settings if item.name == "batch_parts"]
    assert (setting.applied, setting.value) == (False, "2")
    assert setting.note == "an engine for several sizes runs each batch as a whole"
    assert engine.built_for.batch_parts == 1
