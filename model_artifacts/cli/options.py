"""Options of the command lines, each defined once: argparse and doit read the same records."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model_artifacts.records import PLAIN, ImageInput, Precision

if TYPE_CHECKING:
    from collections.abc import Callable

    Container = argparse._ActionsContainer  # noqa: SLF001 - the common base of parsers and groups has no public name

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """An option or a positional argument."""

    flags: tuple[str, ...]
    """For example `("--key",)`. The name alone, without dashes, for a positional argument."""
    help: str
    """One phrase. `%` is written once."""
    type: Callable[[str], Any] | None = None
    """The conversion of the text. It raises `argparse.ArgumentTypeError`. None keeps the text."""
    default: Any = None
    metavar: str | None = None
    """The placeholder in the help."""
    choices: tuple[str, ...] | None = None
    action: str | None = None
    """argparse's `store_true` or `append`. None stores one value."""
    nargs: str | None = None
    """argparse's `?` for a positional argument that may be left out."""

    @property
    def long(self) -> str:
        """The long flag without its dashes: `allow-dirty`."""
        return max(self.flags, key=len).lstrip("-")

    @property
    def name(self) -> str:
        """The name of the parsed value: `allow_dirty`."""
        return self.long.replace("-", "_")

    @property
    def is_switch(self) -> bool:
        """True if the option takes no value."""
        return self.action == "store_true"

    def add_to(self, parser: Container) -> argparse.Action:
        """Add the option to a parser, or to a group of one."""
        settings = {
            "type": self.type,
            "metavar": self.metavar,
            "choices": self.choices,
            "action": self.action,
            "nargs": self.nargs,
        }
        if not self.is_switch:
            settings["default"] = self.default
        used = {name: value for name, value in settings.items() if value is not None}
        return parser.add_argument(*self.flags, help=self.help.replace("%", "%%"), **used)  # type: ignore[arg-type]


def add_group(parser: Container, title: str, options: tuple[Option, ...]) -> None:
    """Add options under a title of their own in the help."""
    group = parser.add_argument_group(title)
    for option in options:
        option.add_to(group)


# Converters: text → value.


def converter(convert: Callable[[str], T], expected: str) -> Callable[[str], T]:
    """Return a conversion whose errors have the form `expected …, got …`.

    Args:
        convert: The conversion. It raises ValueError or ArithmeticError for a wrong text.
        expected: The accepted values, as a phrase.
    """

    def converted(text: str) -> T:
        try:
            return convert(text)
        except (ValueError, ArithmeticError):  # pydantic's errors are ValueErrors
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None

    return converted


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _milliseconds(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError
    return value


def _hours(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise ValueError
    return value


def _share(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _size(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter

    if not re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]i?B|B)?", text, re.ASCII) or not (
        size := int(TypeAdapter(ByteSize).validate_python(text))
    ):
        raise ValueError
    return size


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digest := text.lower()):
        raise ValueError
    return digest


COUNT = converter(_count, "a whole number above 0")
MILLISECONDS = converter(_milliseconds, "milliseconds above 0")
HOURS = converter(_hours, "hours, 0 or more")
SHARE = converter(_share, "a share such as 0.75 or 75%")
SIZE = converter(_size, "a size such as 512MiB or 2GiB")
SHA256 = converter(_digest, "a full SHA-256 of 64 hexadecimal digits")

# Options of several commands.

DEBUG = Option(("--debug",), "show the traceback of an error", action="store_true")
FOLDER = Option(
    ("folder",),
    "the artifacts, with their manifest.json; default: artifacts",
    type=Path,
    default=Path("artifacts"),
    metavar="FOLDER",
    nargs="?",
)
MODEL = Option(("--model",), "the model, in a folder of several", metavar="NAME")
URL = Option(
    ("url",),
    "the store: a folder, s3://…, gs://…, oci://registry/repository[:tag|@sha256:…], or https:// to read from",
    metavar="URL",
)

BATCH = Option(("--batch",), "the batch size that it must take; default: 1", type=COUNT, metavar="N")
MAX_LATENCY_MS = Option(
    ("--max-latency-ms",), "the longest median of a batch, measured on such a GPU", type=MILLISECONDS, metavar="MS"
)
THROUGHPUT = Option(
    ("--throughput",), "prefer images per second, at any batch size unless --batch names one", action="store_true"
)
MIN_TOP1 = Option(
    ("--min-top1",), "the least top-1 accuracy on labelled images: 0.75 or 75%", type=SHARE, metavar="SHARE"
)
PRECISION = Option(
    ("--precision",),
    f"one of {', '.join(precision.value for precision in Precision)}",
    metavar="NAME",
    choices=tuple(precision.value for precision in Precision),
)
MAX_MEMORY = Option(
    ("--max-memory",), "the most memory of the GPU that it may take: 512MiB, 2GiB", type=SIZE, metavar="SIZE"
)
INPUT = Option(
    ("--input",),
    f"the images that you feed: {', '.join(kind.value for kind in ImageInput)}; default: {PLAIN.input.value}",
    metavar="TYPE",
    choices=tuple(kind.value for kind in ImageInput),
    default=PLAIN.input.value,
)
OUTPUT = Option(
    ("--output",),
    f"the answer that you read: logits, probabilities, or such as top5; default: {PLAIN.answer}",
    metavar="NAME",
    default=PLAIN.answer,
)
REQUIREMENTS = (BATCH, MAX_LATENCY_MS, THROUGHPUT, MIN_TOP1, PRECISION, MAX_MEMORY, INPUT, OUTPUT)

VERIFY_PATH = Option(
    ("path",),
    "the release: a folder or a .tar.zst; default: the newest one in the artifacts",
    type=Path,
    metavar="RELEASE",
    nargs="?",
)
VERIFY_KEY = Option(("--key",), "demand a signature by the private key of this public key", type=Path, metavar="PEM")
IDENTITY = Option(("--identity",), "demand a signature by this identity", metavar="NAME")
ISSUER = Option(("--issuer",), "the OIDC issuer that vouches for the identity", metavar="URL")
SIGNATURE = (VERIFY_KEY, IDENTITY, ISSUER)
