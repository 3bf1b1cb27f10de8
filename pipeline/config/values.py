"""`pipeline.yaml` → `Config`: the only reader of the configuration, and every check that needs nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import ByteSize, Field, TypeAdapter, ValidationError, model_validator

from model_artifacts.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable


KNOWN_COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
"""What TensorRT-RTX of any version can build for without a GPU (its `ComputeCapability` enumerations)."""

PORTABLE_COMPUTE_CAPABILITIES = (80, 86, 89, 120)
"""What TensorRT-RTX builds for by default: Ampere, Ada and Blackwell, and whatever comes later (its documentation,
"CPU-Only AOT and TensorRT-RTX Engines")."""

Number = Annotated[float, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]

_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?B|B)?|\d+(\.\d+)?\s*%", re.ASCII)
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

_SIZE_EXAMPLES = "a size such as 256MiB or 1GiB"


def parse_batch_range(value: object) -> object:
    """A bare number is a fixed batch."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"expected a batch of at least 1, got {value}")
        return {"min": value, "opt": value, "max": value}
    if not isinstance(value, dict):
        raise ValueError(f"expected a batch size or {{min, opt, max}}, got {value!r}")  # noqa: TRY004 - as above
    return value


def parse_auto(value: object) -> object:
    return None if value == "auto" else value


def parse_device(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or (isinstance(value, int) and value < 0):
        raise ValueError(f"expected a GPU's number, its UUID, or all, got {value!r}")
    return str(value)


def parse_compute_capabilities(value: object) -> object:
    """`80+` is the portable default; a list is sorted, and every entry must be known; `current` is none."""
    if value in ("current", ()):
        return ()
    if value in ("80+", PORTABLE_COMPUTE_CAPABILITIES):
        return PORTABLE_COMPUTE_CAPABILITIES
    known = ", ".join(map(str, KNOWN_COMPUTE_CAPABILITIES))
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected 80+, current or a list out of {known}, got {value!r}")
    unknown = [item for item in value if type(item) is not int or item not in KNOWN_COMPUTE_CAPABILITIES]
    if unknown:
        raise ValueError(f"unknown compute capability {unknown[0]!r}; expected 80+, current or a list out of {known}")
    return tuple(sorted(set(value)))


def parse_workspace(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"expected {_SIZE_EXAMPLES}, got {value!r}")  # noqa: TRY004 - pydantic collects ValueErrors
    return {"text": str(value).strip()}


class WorkspaceSize(Record):
    """A workspace as written: bytes, or a percentage of the GPU's total memory."""

    text: str

    @model_validator(mode="after")
    def _is_a_size(self) -> WorkspaceSize:
        if not _SIZE.fullmatch(self.text):
            raise ValueError(f"expected {_SIZE_EXAMPLES}, got {self.text!r}")
        if self.percent is not None:
            if not 0 < self.percent <= 100:  # noqa: PLR2004 - per cent
                raise ValueError(f"expected a share above 0 % and up to 100 %, got {self.text!r}")
            return self
        try:
            size = TypeAdapter(ByteSize).validate_python(self.text)
        except ValidationError:
            raise ValueError(f"expected {_SIZE_EXAMPLES}, got {self.text!r}") from None
        if size <= 0:
            raise ValueError(f"expected a size above 0, got {self.text!r}")
        return self

    @property
    def percent(self) -> float | None:
        """The share of the GPU's memory, in per cent, if that is what was written."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", self.text)
        return float(match[1]) if match else None

    @property
    def label(self) -> str:
        """The text as a file name may hold it: `1GiB`, `25pct`."""
        return re.sub(r"\s+", "", self.text).replace("%", "pct")

    def bytes(self, gpu_memory_bytes: int | None) -> int | None:
        """Return the size in bytes; None for a percentage where no GPU's memory is known."""
        if self.percent is None:
            return int(TypeAdapter(ByteSize).validate_python(self.text))
        return None if gpu_memory_bytes is None else max(int(gpu_memory_bytes * self.percent / 100), 1)


def check_factory(value: str) -> str:
    if not _FACTORY.fullmatch(value):
        raise ValueError(f"expected package.module:function, got {value!r}")
    return value


def share_of(unit: str, size: float) -> Callable[[object], object]:
    """Return a validator of a share with its unit: `3%`, `0.1pt`; a bare number says nothing of its unit."""

    def validate(value: object) -> object:
        number = value.removesuffix(unit).strip() if isinstance(value, str) and value.endswith(unit) else ""
        if not re.fullmatch(r"\d+(\.\d+)?", number):
            raise ValueError(
                f"expected a number with its unit, such as {3 if unit == '%' else 0.1}{unit}, got {value!r}"
            )
        return float(number) * size

    return validate


_RAYS_OWN = re.compile(r"CPU|GPU|memory|object_store_memory|(node|accelerator_type):.*")


def check_own_resource(name: str) -> str:
    if _RAYS_OWN.fullmatch(name):
        raise ValueError(f"{name} is a resource of Ray's own; expected one that nodes declare")
    return name
