"""Options as records: argparse and doit read the same definitions."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from model_artifacts.cli import options
from model_artifacts.cli.options import (
    COUNT,
    HOURS,
    MILLISECONDS,
    PRECISION,
    SHARE,
    SIZE,
    THROUGHPUT,
    VERIFY_KEY,
    VERIFY_PATH,
    Option,
)
from pipeline.cli.options import ALLOW_DIRTY

ALL = [value for value in vars(options).values() if isinstance(value, Option)]


@pytest.mark.parametrize(
    ("option", "name", "long", "is_switch"),
    [
        (VERIFY_KEY, "key", "key", False),
        (VERIFY_PATH, "path", "path", False),
        (ALLOW_DIRTY, "allow_dirty", "allow-dirty", True),
        (Option(("-k", "--keep-all"), "keep all"), "keep_all", "keep-all", False),
    ],
)
def test_an_option_has_the_names_that_doit_takes(option: Option, name: str, long: str, *, is_switch: bool) -> None:
    """The name of the parsed value, and the long flag without its dashes."""
    assert (option.name, option.long, option.is_switch) == (name, long, is_switch)


@pytest.mark.parametrize("option", ALL, ids=lambda option: option.name)
def test_argparse_takes_every_option(option: Option) -> None:
    """Its value is found under the record's name, and its help has no stray `%`."""
    parser = argparse.ArgumentParser()
    action = option.add_to(parser)
    assert action.dest == option.name
    assert option.help in " ".join(parser.format_help().split())


def test_values_are_converted() -> None:
    """A path becomes a Path, a switch True, and a choice stays its name."""
    parser = argparse.ArgumentParser()
    for option in (VERIFY_PATH, VERIFY_KEY, THROUGHPUT, PRECISION):
        option.add_to(parser)
    parsed = parser.parse_args(["r", "--key", "k.pub", "--throughput", "--precision", "fp16"])
    assert vars(parsed) == {"path": Path("r"), "key": Path("k.pub"), "throughput": True, "precision": "fp16"}


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (COUNT, "8", 8),
        (MILLISECONDS, "0.5", 0.5),
        (HOURS, "0", 0.0),
        (SHARE, "75%", 0.75),
        (SHARE, "0.75", 0.75),
        (SIZE, "512MiB", 512 * 2**20),
        (SIZE, "1.5 GB", 1_500_000_000),
    ],
)
def test_a_text_becomes_a_value(convert: object, text: str, value: float) -> None:
    """Sizes are in bytes, shares between 0 and 1."""
    assert callable(convert)
    assert convert(text) == value


@pytest.mark.parametrize(
    ("convert", "text"),
    [(COUNT, "0"), (MILLISECONDS, "inf"), (HOURS, "-1"), (SHARE, "101%"), (SIZE, "0MiB"), (SIZE, "1e3")],
)
def test_a_wrong_text_is_reported_with_the_accepted_values(convert: object, text: str) -> None:
    """The message has the form `expected …, got …`."""
    assert callable(convert)
    with pytest.raises(argparse.ArgumentTypeError, match=rf"^expected .*, got '{text}'$"):
        convert(text)
