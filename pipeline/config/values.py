"""Values of `pipeline.yaml`: their types, and the checks that need no other value.

A check raises `ValueError` with the expected and the written value. pydantic collects these errors.
"""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import AfterValidator, ByteSize, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from model_artifacts.errors import shortened
from model_artifacts.records import Precision, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.config.files.yaml_source import Location

QUANTIZED_PRECISIONS = {Precision.INT8, Precision.FP8}
"""Precisions that take a calibrated graph; a network is cast to the others."""

KNOWN_COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
"""GPU generations that some TensorRT-RTX version builds for without a GPU (its `ComputeCapability` enumerations)."""

PORTABLE_COMPUTE_CAPABILITIES = (80, 86, 89, 120)
"""The default GPU generations of TensorRT-RTX: Ampere, Ada, Blackwell and later ones.

Source: its documentation, "CPU-Only AOT and TensorRT-RTX Engines".
"""

R = TypeVar("R", bound=Record)
Number = Annotated[float, Field(strict=True)]
INT32_MAX = 2**31 - 1
"""The largest number that torch's and TensorRT's bindings take for a dimension or a count."""
Count = Annotated[int, Field(strict=True, ge=1, le=INT32_MAX)]
Repeats = Annotated[int, Field(strict=True, ge=1, le=1000)]
"""Repetitions of a measurement. A thousand of the shortest take minutes for each variant."""
Seconds = Annotated[float, Field(strict=True, gt=0, le=10_000_000)]
"""A time limit of at most four months. Operating systems do not take every number."""
Flag = Annotated[bool, Field(strict=True)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?B|B)?|\d+(\.\d+)?\s*%", re.ASCII)
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)

_DEVICE = re.compile(r"0|[1-9]\d{0,3}|all|(GPU|MIG)-[\w/-]+", re.ASCII)

_NEARLY_A_DEVICE = re.compile(r"\s*(?:cuda:?|gpu:?)?\s*0*(\d{1,4}|all)[\s;,]*", re.ASCII | re.IGNORECASE)

_SIZE_EXAMPLES = "a size such as 256MiB or 1GiB"
_LARGEST_DROP = 0.5
"""A larger drop is one in percentage points, or accepts every artifact."""
_LEAST_SIZE = 2**10
_LEAST_BARE_SIZE = 2**20
"""The least size without a unit. A smaller number is megabytes or gigabytes whose unit was forgotten."""
_LARGEST_SIZE = 2**44
"""16 TiB, more than any GPU's memory."""
_LONGEST_NAME = 100
"""Characters of a name. Names of files, which hold it with a suffix, have at most 255 bytes."""


def in_yaml(value: object) -> str:
    """Return a value for a message, spelt as in YAML: `true`, `null`, `2026-01-01`; text in quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return shortened(str(value) if isinstance(value, date) else repr(value), 120)


VALUE_PROBLEM, KEY_PROBLEM, UNKNOWN_KEY = "value_error", "key_error", "unknown_key"
"""Types of the problems of parts: of a value, of a key, and of a key that is none of the known ones."""


def part_problem(place: Location, value: object, problem: str, kind: str = VALUE_PROBLEM) -> InitErrorDetails:
    """Return a problem of a part of a value for `parts_error`.

    Args:
        place: the keys and indices that lead from the value to its part.
        value: the part.
        problem: what was expected, and what was written; of `UNKNOWN_KEY` the known keys, joined by commas.
        kind: `VALUE_PROBLEM`, `KEY_PROBLEM` or `UNKNOWN_KEY`.
    """
    return InitErrorDetails(type=PydanticCustomError(kind, "{error}", {"error": problem}), loc=place, input=value)


def missing_key(place: Location, value: object) -> InitErrorDetails:
    """Return the problem of a mapping without a key, for `parts_error`."""
    return InitErrorDetails(type="missing", loc=place, input=value)


def parts_error(problems: Sequence[InitErrorDetails]) -> ValidationError:
    """Return the error of a value whose parts are wrong. A validator raises it, and each part keeps its own place."""
    return ValidationError.from_exception_data("parts", list(problems))


def check_drop(value: float) -> float:
    """Return a drop of accuracy, as a share.

    Raises:
        ValueError: the number is larger than any sensible drop.
    """
    if value > _LARGEST_DROP:
        points = f"; {value:g} percentage points are {value / 100:g}" if value <= 100 else ""  # noqa: PLR2004 - per cent
        raise ValueError(f"expected at most {_LARGEST_DROP}, a share of all answers, got {in_yaml(value)}{points}")
    return value


Drop = Annotated[float, Field(strict=True), AfterValidator(check_drop)]
"""A drop of accuracy, as a share: 0.01 is one percentage point."""


def check_name(value: str) -> str:
    """Return a name that is safe as a part of a path.

    Raises:
        ValueError: the text has other characters, begins with one of `._-`, or is too long.
    """
    if not _NAME.fullmatch(value):
        raise ValueError(f"expected letters, digits and ._- after a first letter or digit, got {in_yaml(value)}")
    if len(value) > _LONGEST_NAME:
        raise ValueError(f"expected at most {_LONGEST_NAME} characters, got {len(value)}")
    return value


Name = Annotated[str, AfterValidator(check_name)]

RESERVED_NAMES = frozenset(
    {"cache", "farm.json", "locks", "manifest.json", "release", "report.html", "report.json", "timing-cache", "triton"}
)
"""Names in the artifacts folder that the pipeline uses itself, in lower case."""


def check_model_name(value: str) -> str:
    """Return the name of a model, which names its folder.

    Raises:
        ValueError: the pipeline has a file or a folder of this name beside the models' folders.
    """
    if value.lower() in RESERVED_NAMES:
        raise ValueError(
            f"{value!r} is a name of the pipeline's own in the artifacts folder; expected a name other than "
            f"{', '.join(sorted(RESERVED_NAMES))}"
        )
    return value


def parse_classes(value: object) -> object:
    """Return names of classes as text; a path and None stay as they are. A number in the list is its digits.

    Raises:
        ValueError: the value is neither a list of names nor a path.
    """
    if value is None or (isinstance(value, str) and value):
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"expected a list of names or the path of a file with them, got {in_yaml(value)}")
    expected = "expected each name as text; write it in quotes, such as 'no', got"
    if wrong := [
        part_problem((index,), item, f"{expected} {in_yaml(item)}")
        for index, item in enumerate(value)
        if isinstance(item, bool) or not isinstance(item, (str, int)) or item == ""
    ]:
        raise parts_error(wrong)
    return tuple(map(str, value))


def parse_numbers(value: object) -> object:
    """Return a list of numbers; a single number is a list of itself."""
    return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def parse_arguments(value: object) -> object:
    """Return the arguments of a factory as pairs of name and value. A value that no record holds is None here.

    `pipeline/config/arguments.py` reports such a value with its own place.

    Raises:
        ValueError: the value is no mapping.
    """
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        expected = "a mapping of the factory's arguments, such as {num_classes: 10}"
        raise ValueError(f"expected {expected}, got {in_yaml(value)}")  # noqa: TRY004 - pydantic collects ValueErrors
    return tuple({"name": name, "value": item} for name, item in value.items())


def parse_weights(value: object) -> object:
    """Return the mapping of weights; text is {file: text}.

    Raises:
        ValueError: the value is neither text nor a mapping.
    """
    if isinstance(value, str):
        return {"file": value}
    if not isinstance(value, (dict, Record)):
        raise ValueError(f"expected text, or {{file, key}}, got {in_yaml(value)}")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


def parse_auto(value: object) -> object:
    """Return None for `auto`, and any other value unchanged."""
    return None if value == "auto" else value


def parse_device(value: object) -> object:
    """Return a device as text.

    Raises:
        ValueError: the value is neither a number as CUDA counts them, nor a UUID as nvidia-smi prints it, nor `all`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not _DEVICE.fullmatch(str(value)):
        found = _NEARLY_A_DEVICE.fullmatch(value) if isinstance(value, str) else None
        hint = f"; write {found[1].lower()}" if found else ""
        raise ValueError(f"expected a GPU's number, its UUID, or all, got {in_yaml(value)}{hint}")
    return str(value)


def parse_compute_capabilities(value: object) -> object:
    """Return GPU generations in ascending order, each once.

    `80+` is `PORTABLE_COMPUTE_CAPABILITIES`. `current` is empty.

    Raises:
        ValueError: the value is none of these and no list of `KNOWN_COMPUTE_CAPABILITIES`.
    """
    if value in ("current", ()):
        return ()
    if value in ("80+", PORTABLE_COMPUTE_CAPABILITIES):
        return PORTABLE_COMPUTE_CAPABILITIES
    expected = f"expected 80+, current or a list of {', '.join(map(str, KNOWN_COMPUTE_CAPABILITIES))}"
    if not isinstance(value, list) or not value:
        raise ValueError(f"{expected}, got {in_yaml(value)}")
    if unknown := [
        part_problem((index,), item, f"unknown compute capability {in_yaml(item)}; {expected}")
        for index, item in enumerate(value)
        if type(item) is not int or item not in KNOWN_COMPUTE_CAPABILITIES
    ]:
        raise parts_error(unknown)
    if repeated := [
        part_problem((index,), item, f"lists the same entry twice: {item}; remove one of them")
        for index, item in enumerate(value)
        if item in value[:index]
    ]:
        raise parts_error(repeated)
    return tuple(sorted(set(value)))


def parse_workspace(value: object) -> object:
    """Return the fields of a `WorkspaceSize` from bytes or text.

    Raises:
        ValueError: the value is neither a whole number nor text.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"expected {_SIZE_EXAMPLES}, got {in_yaml(value)}")  # noqa: TRY004 - pydantic collects ValueErrors
    return {"text": str(value).strip()}


class WorkspaceSize(Record):
    """A workspace as written in the file: bytes, or a percentage of the GPU's total memory."""

    text: str

    @model_validator(mode="after")
    def _is_a_size(self) -> WorkspaceSize:
        if not _SIZE.fullmatch(self.text):
            raise ValueError(f"expected {_SIZE_EXAMPLES}, got {in_yaml(self.text)}")
        if self.percent is not None:
            if not 0 < self.percent <= 100:  # noqa: PLR2004 - per cent
                raise ValueError(f"expected a share above 0 % and up to 100 %, got {self.text!r}")
            return self
        _size_in_bytes(self.text)
        return self

    @property
    def percent(self) -> float | None:
        """The share of the GPU's memory in per cent. None for a size in bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", self.text)
        return float(match[1]) if match else None

    @property
    def label(self) -> str:
        """The text in a form for file names: `1GiB`, `25pct`."""
        return re.sub(r"\s+", "", self.text).replace("%", "pct")

    def bytes(self, gpu_memory_bytes: int | None) -> int | None:
        """Return the size in bytes. None for a percentage without a known GPU memory."""
        if self.percent is None:
            return int(TypeAdapter(ByteSize).validate_python(self.text))
        return None if gpu_memory_bytes is None else max(int(gpu_memory_bytes * self.percent / 100), 1)


def parse_bytes(value: object) -> object:
    """Return a size in bytes from a number of bytes or from text with a unit. None stays None.

    Raises:
        ValueError: the value is neither, or a percentage, or no sensible size.
    """
    if value is None:
        return None
    text = str(value).strip()
    known = isinstance(value, (int, str)) and not isinstance(value, bool)
    if not known or "%" in text or not _SIZE.fullmatch(text):
        raise ValueError(f"expected {_SIZE_EXAMPLES}, got {in_yaml(value)}")
    return _size_in_bytes(text, _LEAST_SIZE)


def _size_in_bytes(text: str, least_bare: int = _LEAST_BARE_SIZE) -> int:
    """Return the bytes of a size.

    Args:
        text: the size.
        least_bare: the least one that needs no unit.

    Raises:
        ValueError: the number is too large or too small, or its unit was forgotten.
    """
    shown = in_yaml(text)
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError):
        raise ValueError(f"expected {_SIZE_EXAMPLES}, got {shown}") from None
    if size > _LARGEST_SIZE:
        raise ValueError(f"expected at most 16TiB, got {shown}")
    if text.isdecimal() and 0 < size < least_bare:
        write = f"{text}B, or a size in MiB" if size >= _LEAST_SIZE else f"{text}MiB or {text}GiB"
        raise ValueError(f"expected a size with its unit, got {text}, which would be bytes; write {write}")
    if size < _LEAST_SIZE:
        raise ValueError(f"expected at least 1KiB, got {shown}")
    return size


def check_factory(value: str) -> str:
    """Return a factory's `package.module:function`.

    Raises:
        ValueError: the text has another form.
    """
    if not _FACTORY.fullmatch(value):
        raise ValueError(f"expected package.module:function, got {value!r}")
    return value


def share_of(unit: str, size: float) -> Callable[[object], object]:
    """Return a validator for a number with its unit, such as `3%` or `0.1pt`. A bare number has no unit and is refused.

    Args:
        unit: the unit's text.
        size: the value of one unit: 0.01 for `%`.
    """

    def validate(value: object) -> object:
        number = value.removesuffix(unit).strip() if isinstance(value, str) and value.endswith(unit) else ""
        if not re.fullmatch(r"\d+(\.\d+)?", number):
            raise ValueError(
                f"expected a number with its unit, such as {3 if unit == '%' else 0.1}{unit}, got {in_yaml(value)}"
            )
        if float(number) > 100:  # noqa: PLR2004 - per cent, and percentage points
            raise ValueError(f"expected at most 100{unit}, got {in_yaml(value)}")
        return float(number) * size

    return validate


_RESOURCES_OF_RAY = re.compile(r"CPU|GPU|memory|object_store_memory|(node|accelerator_type):.*")


def check_own_resource(name: str) -> str:
    """Return the name of a custom resource.

    Raises:
        ValueError: Ray itself defines a resource of this name.
    """
    if _RESOURCES_OF_RAY.fullmatch(name):
        raise ValueError(f"Ray itself defines the resource {name}; expected a custom resource that nodes declare")
    return name


def with_defaults(settings: R, *names: str) -> R:
    """Return a copy of the settings with the defaults of the named ones."""
    return settings.model_copy(update={name: type(settings).model_fields[name].default for name in names})
