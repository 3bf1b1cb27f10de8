"""Base classes and field types of all records.

A record refuses unknown fields, is validated once when it is created, and round-trips through JSON. Field names carry
the units.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

if TYPE_CHECKING:
    from collections.abc import Collection

SCHEMA_VERSION = 1
"""Version of every record on disk; part of every staleness key."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in lower-case hexadecimal: 64 digits."""
AxisName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an axis, such as `height`: ASCII letters, digits and `_`. Names of files have it."""
Whole = Annotated[int, Field(strict=True, ge=1)]
"""A whole number of at least 1; `true` and `"8"` are refused."""
Count = Annotated[int, Field(ge=0)]
"""A whole number of at least 0."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction from 0 to 1."""
Milliseconds = Annotated[float, Field(ge=0)]
"""A duration in milliseconds."""
Microseconds = Annotated[float, Field(ge=0)]
"""A duration in microseconds."""

Json = Annotated[JsonValue, WithJsonSchema({"description": "Anything that JSON holds."})]
"""Text, a number, true, false, null, or lists and mappings of these."""


class Record(BaseModel):
    """Base of all records: frozen, closed and comparable. NaN and infinity are refused, because JSON has neither."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,  # an alias is a field's key in JSON; the name in Python is the better one
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def to_json(self) -> str:
        """Return the record as canonical JSON: sorted keys, an indent of two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def without_defaults(record: Record, fields: dict[str, object], later: Collection[str]) -> dict[str, object]:
    """Leave out later fields with their default: older versions read the rest, and old keys and digests hold.

    Args:
        record: the record.
        fields: its fields, serialized.
        later: names of the fields that the first records do not have.
    """
    defaults = {name: type(record).model_fields[name].default for name in later}
    return {
        name: value for name, value in fields.items() if name not in later or getattr(record, name) != defaults[name]
    }


class FileRecord(Record):
    """A file by its path, its size and its digest."""

    path: str
    """Path below artifacts/, or below a release's folder."""
    bytes: Count
    """Size in bytes."""
    sha256: Sha256
    """SHA-256 of the file's bytes."""


class Tool(Record):
    """A package or tool and its full version."""

    name: str
    """Name of the package."""
    version: str
    """Full version; "absent" if the package is not installed."""


class Argument(Record):
    """An argument that the model's factory is called with."""

    name: str
    """Name of the parameter."""
    value: Json
    """Its value: text, a number, true, false, null, or lists and mappings of these."""


def call_of(factory: str, arguments: tuple[Argument, ...]) -> str:
    """Return the call of a factory as text: `timm:create_model(model_name='levit_128s', num_classes=10)`."""
    return factory + (f"({', '.join(f'{item.name}={item.value!r}' for item in arguments)})" if arguments else "")


def sized_name(axis: str, size: int) -> str:
    """Return an axis and its size as one word for names of files: `height160`, `conv1_32`, `side__32`.

    A `_` separates the size from a name that ends with a digit or with `_`. So no two axes and sizes share a word:
    the digits at the end are the size, and a `_` in front of them is no part of the name.

    Args:
        axis: the name of the axis, as `AxisName` takes it.
        size: the size.
    """
    return f"{axis}{'' if axis[-1:].isalpha() else '_'}{size}"


class AxisRange(Record):
    """Sizes of an axis that an artifact takes: from `min` to `max`, tuned for `opt`."""

    name: AxisName
    """Name of the axis, such as `height`."""
    min: Whole
    """Smallest size."""
    opt: Whole
    """Size that an engine is tuned for."""
    max: Whole
    """Largest size."""

    @model_validator(mode="after")
    def _ordered(self) -> AxisRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"expected min ≤ opt ≤ max, got min {self.min}, opt {self.opt}, max {self.max}")
        return self

    def takes(self, size: int) -> bool:
        """Return True if a size lies in the range."""
        return self.min <= size <= self.max

    @property
    def is_fixed(self) -> bool:
        """True if the range is a single size."""
        return self.min == self.max

    @property
    def label(self) -> str:
        """Short name: `height160-224-320`."""
        return f"{sized_name(self.name, self.min)}-{self.opt}-{self.max}"


class TensorSpec(Record):
    """An input or output of a model."""

    name: str
    """Name of the tensor."""
    shape: tuple[int | str, ...]
    """Sizes of the axes; a string is a dynamic axis."""
    dtype: str
    """Element type, such as `float32`."""
    layout: str
    """Order of the axes, such as `NCHW`."""
    meaning: str = ""
    """What the values are, such as the order of the colours; empty for normalised images and the network's own outputs.
    The JSON leaves it out then."""
    ranges: tuple[AxisRange, ...] = ()
    """Sizes of the dynamic axes beside the batch, such as `height`. The JSON leaves it out without any."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"meaning", "ranges"})

    def with_ranges(self, axes: tuple[AxisRange, ...]) -> TensorSpec:
        """Return the same with the ranges of those axes that its shape names."""
        own = tuple(axis for axis in axes if axis.name in self.shape[1:])
        return self.model_copy(update={"ranges": own}) if own else self

    def takes_sample(self, shape: tuple[int, ...]) -> bool:
        """Return True if a sample of this shape fits: fixed axes are equal, and the others lie in their ranges.

        An axis that has a name and no range takes no size: nothing says which ones were validated.
        """
        ranges = {axis.name: axis for axis in self.ranges}
        return len(shape) == len(self.shape) - 1 and all(
            size == want if isinstance(want, int) else want in ranges and ranges[want].takes(size)
            for size, want in zip(shape, self.shape[1:], strict=True)
        )

    def beyond(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Return the dynamic axes of a sample whose sizes miss their ranges; none if it differs in anything else."""
        ranges = {axis.name: axis for axis in self.ranges}
        if len(shape) != len(self.shape) - 1:
            return ()
        wrong = [
            want
            for size, want in zip(shape, self.shape[1:], strict=True)
            if not (size == want if isinstance(want, int) else want in ranges and ranges[want].takes(size))
        ]
        names = [want for want in wrong if isinstance(want, str) and want in ranges]
        return tuple(dict.fromkeys(names)) if len(names) == len(wrong) else ()

    @property
    def sample_words(self) -> tuple[str, ...]:
        """Each axis of a sample as messages show it: `224`, or `height 160 to 320`."""
        ranges = {axis.name: axis for axis in self.ranges}
        return tuple(
            f"{size} {ranges[size].min} to {ranges[size].max}" if size in ranges else str(size)
            for size in self.shape[1:]
        )


class KeyField(Record):
    """One dependency of a result, flattened to text."""

    name: str
    """Name of the dependency."""
    value: str
    """Its value as text, such as a digest or a version."""


class Key(Record):
    """A staleness key: a result is up to date as long as its key is unchanged."""

    fields: tuple[KeyField, ...]
    """All dependencies of the result."""

    @property
    def digest(self) -> str:
        """SHA-256 of the fields as canonical JSON, in hexadecimal."""
        text = json.dumps([[field.name, field.value] for field in self.fields], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class GitState(Record):
    """State of a checkout."""

    commit: str
    """Full hash of the commit."""
    dirty: bool
    """True if tracked files differed from the commit."""


class DigestedRecord(Record):
    """Base of the records whose file states a digest of itself, without which it is not read."""


class StageRecord(DigestedRecord):
    """Base of the records that stages write beside their results."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of the record's schema."""
    key: Key
    """Staleness key of the results."""
    built_at: AwareDatetime
    """Time of the run, in UTC, to the second."""
    toolchain: tuple[Tool, ...] = ()
    """Packages that took part, with their versions."""
    git: GitState | None = None
    """Checkout that made the results, at the start of the run; None outside a repository."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Result files of the stage, each with its digest."""
        return ()

    @property
    def folder(self) -> str:
        """Folder below artifacts/ that holds this record and no other's; empty if the record does not tell."""
        return ""


class VariantRecord(StageRecord):
    """Base of the records of a variant that lie beside its artifact."""

    variant_id: str
    """Variant of the artifact: `model/target/name`."""

    @property
    def folder(self) -> str:
        """The variant's folder, whose path is the variant's id."""
        return self.variant_id
