"""Latencies from host to host beside the floor of their copies."""

from __future__ import annotations

import pytest

from model_artifacts.records import Backend, Clock, Link, Status, TensorSpec
from pipeline.stages.report.copies import CopiedBytes, copied_of, rate_limits, rows_of
from tests.support.manifests import entry, timing

LINK = Link(gpu="a GPU", to_gpu_bytes_per_s=1e6, to_host_bytes_per_s=5e5, copied_bytes=100, copies=20)
IMAGE = TensorSpec(name="image", shape=("batch", 10, 10, 3), dtype="uint8", layout="NHWC")
LOGITS = TensorSpec(name="logits", shape=("batch", 25), dtype="float32", layout="NC")
ENDS = {"inputs": (IMAGE,), "outputs": (LOGITS,)}
CLOCKS = (
    timing(2, 1.0, clock=Clock.GPU),
    timing(2, 0.9, clock=Clock.GPU_GRAPH),
    timing(2, 2.0, clock=Clock.PINNED),
    timing(2, 2.1, clock=Clock.HOST),
    timing(2, 1.2, clock=Clock.OVERLAPPED),
)


def test_a_row_has_the_floor_beside_the_clocks() -> None:
    """Two images of 300 bytes at 1 MB/s, and two rows of 100 bytes at 0.5 MB/s, take 1 ms."""
    (row,) = rows_of([entry("x", *CLOCKS, **ENDS)], LINK)
    assert row.input == "uint8"
    assert row.floor_ms == pytest.approx(0.6 + 0.4)
    assert row.host is not None
    assert row.overlapped is not None
    found = (row.gpu, row.pinned, row.host, row.overlapped)
    assert [item.p50_ms for item in found] == [0.9, 2.0, 2.1, 1.2]
    assert row.share == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("changes", "clocks", "link"),
    [
        ({}, CLOCKS, None),
        ({}, CLOCKS[:2], LINK),
        ({}, CLOCKS[2:], LINK),
        ({"status": Status.REJECTED}, CLOCKS, LINK),
        ({"backend": Backend.EAGER}, CLOCKS, LINK),
        ({"inputs": (IMAGE.model_copy(update={"dtype": "fp5"}),)}, CLOCKS, LINK),
        ({"outputs": (LOGITS.model_copy(update={"shape": ("batch", "boxes")}),)}, CLOCKS, LINK),
    ],
    ids=["no-link", "no-pinned", "no-gpu", "rejected", "baseline", "unknown-type", "unknown-axis"],
)
def test_what_cannot_be_compared_has_no_row(changes: dict[str, object], clocks: tuple, link: Link | None) -> None:  # type: ignore[type-arg]
    """Nothing is guessed, and only what may be deployed counts."""
    assert rows_of([entry("x", *clocks, **{**ENDS, **changes})], link) == ()


def test_overlapped_batches_are_optional() -> None:
    """Modules have none."""
    (row,) = rows_of([entry("x", *CLOCKS[:3], **ENDS)], LINK)
    assert (row.host, row.overlapped, row.share) == (None, None, None)


def test_several_inputs_and_outputs_are_added() -> None:
    """Every tensor is copied."""
    several = entry("x", inputs=(IMAGE, IMAGE), outputs=(LOGITS, LOGITS, LOGITS))
    assert copied_of(several) == CopiedBytes(600, 300)
    assert copied_of(entry("x")) is None


def test_the_slower_direction_limits_the_images_a_second() -> None:
    """The link carries both ways at once: 300 bytes in take longer than 100 out."""
    floats = IMAGE.model_copy(update={"dtype": "float32"})
    wide = entry("y", inputs=(IMAGE.model_copy(update={"shape": ("batch", 10)}),), outputs=(LOGITS,))
    found = rate_limits([entry("x", **ENDS), entry("z", inputs=(floats,), outputs=(LOGITS,))], LINK)
    assert found == pytest.approx({"uint8": 1e6 / 300, "float32": 1e6 / 1200})
    assert rate_limits([wide], LINK) == pytest.approx({"uint8": 5e5 / 100})
    assert rate_limits([wide], None) == {}
