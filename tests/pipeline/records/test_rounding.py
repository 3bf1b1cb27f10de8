"""The record of a precision's own rounding, of several outputs."""

from __future__ import annotations

from model_artifacts.records import Graph
from pipeline.records import OutputRounding
from tests.support.records import reread, rounding_of


def test_a_record_of_rounding_gives_that_of_an_output() -> None:
    """Its own distances, and no others; of one output, the record itself."""
    parts = {"part_l2_high": (2e-3,) * 4, "part_l2_redrawn": (3e-3,) * 4, "part_sizes": (1.0,) * 4}
    boxes = OutputRounding(name="boxes", relative_l2_high=1e-3, relative_l2_low=5e-4, sample_l2_high=2e-3, **parts)
    record = rounding_of(Graph.FP16, high=4e-3, sample=8e-3).model_copy(update={"outputs": (boxes,)})
    own = record.of("boxes")
    assert (own.relative_l2_high, own.relative_l2_low, own.sample_l2_high, own.outputs) == (1e-3, 5e-4, 2e-3, ())
    assert (own.part_l2_high, own.part_l2_redrawn, own.part_sizes) == ((2e-3,) * 4, (3e-3,) * 4, (1.0,) * 4)
    alone = rounding_of(Graph.FP16, high=1e-3, sample=2e-3)
    assert alone.of("") is alone
    assert all(name not in alone.to_json() for name in ("outputs", "part_l2_high", "part_l2_redrawn", "part_sizes"))
    assert reread(record) == record
