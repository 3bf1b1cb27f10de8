"""Records and hypothesis strategies that the tests of records share."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timezone
from typing import Any, TypeVar

from hypothesis import strategies as st

from model_artifacts.records import BatchRange, FileRecord, Graph, Interpolation, Key, KeyField, Preprocessing, Record
from pipeline.records import Rounding, RoundingRun

R = TypeVar("R", bound=Record)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
KEY = Key(fields=(KeyField(name="a", value="1"),))
RGB = Preprocessing(
    resize=32, crop=16, interpolation=Interpolation.BICUBIC, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)


def file_record(name: str) -> FileRecord:
    """Return the record of a file of one byte."""
    return FileRecord(path=name, bytes=1, sha256="0" * 64)


def rounding_of(graph: Graph, *, high: float, sample: float, logits: FileRecord | None = None) -> Rounding:
    """Return the record of a graph's own rounding, with a quantile and the distance of the worst sample."""
    return Rounding(
        key=KEY,
        built_at=NOW,
        toolchain=(),
        graph=graph,
        precision=graph.precision,
        emulator="by hand",
        samples=64,
        runs=(RoundingRun(name="results", relative_l2=high / 2),),
        relative_l2_high=high,
        sample_l2_high=sample,
        margin_noise=0.1,
        logits=logits,
    )


def reread(record: R) -> R:
    """Return a record after a round trip through JSON."""
    return type(record).model_validate_json(record.to_json())


def with_digest(text: str) -> str:
    """Return a record's text, changed or not, with the digest that belongs to it."""
    plain = re.sub(r'\A\{\n  "digest": "\w*",\n', "{\n", text)
    return plain.replace("{\n", f'{{\n  "digest": "{hashlib.sha256(plain.encode()).hexdigest()}",\n', 1)


def as_record(content: Any) -> str:
    """Return JSON as the text of a record's file, with its digest if it is an object that is not empty."""
    text = json.dumps(content, indent=2)
    return with_digest(text) if text.startswith("{\n") else text


TEXTS = st.text(max_size=12)
COUNTS = st.integers(0, 2**60)
FINITE = st.floats(0, allow_nan=False, allow_infinity=False)

BATCH_RANGES = st.lists(st.integers(1, 10**6), min_size=3, max_size=3).map(
    lambda sizes: BatchRange(**dict(zip(("min", "opt", "max"), sorted(sizes), strict=True)))
)

KEYS = st.lists(st.builds(KeyField, name=TEXTS, value=TEXTS), max_size=3).map(lambda fields: Key(fields=tuple(fields)))
