"""A text of a size is a message where it goes to a log, a warning, an assertion or an exception, and nowhere else."""

# mypy: disable-error-code="no-untyped-call"
# torch._assert and torch._check have no types.

from __future__ import annotations

import io
import logging
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import sympy
import torch

from pipeline.stages.common.sizes.asking import asker_of, is_own, line_of, makes_message

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
_WARM = 20
"""Calls after which Python runs instructions in other forms."""


class Size:
    """Stands for a size: tells whether its text is a message."""

    def __init__(self) -> None:
        self.told: list[bool] = []

    def __repr__(self) -> str:
        """Return a text."""
        self.told.append(makes_message(sys._getframe(1)))  # noqa: SLF001 - a documented function
        return "24"

    __str__ = __repr__


def _assertion(size: Size) -> None:
    torch._assert(size is not None, f"{size} rows")  # noqa: SLF001 - as networks write it


def _assertion_by_name(size: Size) -> None:
    torch._assert(condition=size is not None, message=f"{size} rows")  # noqa: SLF001 - as networks write it


def _check(size: Size) -> None:
    with suppress(RuntimeError):
        torch._check(cond=False, message=lambda: f"{size} rows")  # noqa: SLF001 - as networks write it


def _several_lines(size: Size) -> None:
    torch._assert(  # noqa: SLF001 - as networks write it
        size is not None,
        f"rows: {size}",
    )


def _logged(size: Size) -> None:
    log.info(f"{size} rows")  # noqa: G004 - as networks write it


def _logged_as_text(size: Size) -> None:
    logging.info("%s rows", str(size))  # noqa: LOG015 - as networks write it


def _printed(size: Size) -> None:
    print(size, f"{size}")  # noqa: T201 - as networks write it
    print(f"{size}", file=sys.stderr)  # noqa: T201 - as networks write it


def _warned(size: Size) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.warn("%s rows" % size)  # noqa: B028, UP031 - as networks write it


def _raised(size: Size) -> None:
    with suppress(ValueError):
        raise ValueError(f"{size} rows")


def _variable(size: Size) -> None:
    message = f"{size} rows, " + "too few" if size else ""
    if not size:
        raise ValueError(message)
    torch._assert(size is not None, message)  # noqa: SLF001 - as networks write it


def _label(size: Size) -> None:
    with torch.profiler.record_function(f"{size} rows"):
        pass


def _require(ok: object, message: str, *, prefix: str = "") -> None:
    if not ok:
        raise ValueError(f"{prefix}{message}")


def _helper(size: Size) -> None:
    _require(size is not None, f"{size} rows")


def _helper_by_name(size: Size) -> None:
    _require(size is not None, message="{} rows".format(size), prefix=str(size))  # noqa: UP032 - as networks write it


class _Layer:
    def __init__(self, size: Size) -> None:
        self.size = size
        self.check(True, f"{size} rows")  # noqa: FBT003 - as networks write it

    def check(self, ok: object, message: str) -> None:
        text = f"layer: {message}"
        torch._assert(ok, text)  # noqa: SLF001 - as networks write it


def _method(size: Size) -> None:
    _Layer(size)


MESSAGES = (
    *(_assertion, _assertion_by_name, _check, _several_lines, _logged, _logged_as_text),
    *(_printed, _warned, _raised, _variable, _label, _helper, _helper_by_name, _method),
)


def _compared(size: Size) -> bool:
    return str(size) == "20"


def _compared_in_a_check(size: Size) -> None:
    torch._assert(f"{size}" != "20", "rows")  # noqa: SLF001 - as networks write it


def _compared_beside_a_message(size: Size) -> None:
    torch._assert(f"{size}" != "20", f"{size} rows")  # noqa: SLF001 - as networks write it


def _key(size: Size) -> int | None:
    return {"20": 3}.get(f"{size}")


def _variable_of_both(size: Size) -> bool:
    message = f"{size} rows"
    torch._assert(size is not None, message)  # noqa: SLF001 - as networks write it
    return message == "20 rows"


def _attribute(size: Size) -> None:
    size.text = f"{size}"  # type: ignore[attr-defined]


def _another_function(size: Size) -> str:
    def _assert(_condition: object, message: str) -> str:
        return message

    return _assert(size, f"{size}")


def _chosen_by(size: Size) -> None:
    print("one" if f"{size}" == "20" else "other")  # noqa: T201 - as networks write it


def _returned(size: Size) -> str:
    return f"{size}x24"


def _listed(size: Size) -> str:
    return "x".join(map(str, (size, size)))


def _kept(message: str) -> dict[str, int]:
    print(message)  # noqa: T201 - as networks write it
    return {message: 1}


def _kept_by_a_helper(size: Size) -> object:
    return _kept(f"{size}")


def _nested(ok: object, message: str) -> None:
    _require(ok, message)


def _another_parameter(size: Size) -> None:
    _require(f"{size}" != "20", "rows")


def _condition_of_a_helper(size: Size) -> None:
    _require(f"{size}", "rows")


def _helper_of_a_helper(size: Size) -> None:
    _nested(size, f"{size}")


def _spread(size: Size) -> None:
    _require(*(size, f"{size}"))


def _printed_to_a_file(size: Size) -> str:
    file = io.StringIO()
    print(f"{size}", file=file)
    return file.getvalue()


def _printed_anywhere(size: Size) -> None:
    more: Any = {"file": sys.stderr}
    print(f"{size}", **more)  # noqa: T201 - as networks write it


DECIDING = (
    *(_printed_to_a_file, _printed_anywhere),
    *(_kept_by_a_helper, _another_parameter, _condition_of_a_helper, _helper_of_a_helper, _spread),
    *(_compared, _compared_in_a_check, _compared_beside_a_message, _key, _variable_of_both),
    *(_attribute, _another_function, _chosen_by, _returned, _listed),
)


@pytest.mark.parametrize("write", MESSAGES, ids=lambda write: write.__name__.strip("_"))
def test_a_message_decides_nothing(write: Callable[[Size], object]) -> None:
    """It is one however often Python has run the line."""
    size = Size()
    for _ in range(_WARM):
        write(size)
    assert size.told
    assert all(size.told)


@pytest.mark.parametrize("write", DECIDING, ids=lambda write: write.__name__.strip("_"))
def test_another_text_may_decide(write: Callable[[Size], object]) -> None:
    """One that is compared, kept or returned is none, also beside a message in the same line."""
    size = Size()
    for _ in range(_WARM):
        write(size)
    assert not all(size.told)


def test_code_without_a_file_writes_no_message() -> None:
    """What cannot be read may decide."""
    size = Size()
    exec("print(size)", {"size": size})  # noqa: S102 - as code that is made in memory is run
    assert size.told == [False]


def test_the_network_asks_by_the_library_of_python() -> None:
    """The asker is the own frame behind it; tools and logs are none."""
    frame = sys._getframe()  # noqa: SLF001 - a documented function
    assert asker_of(frame) is frame
    assert line_of(frame).startswith("test_asking.py:")
    asked = []

    class Pretty:
        def __repr__(self) -> str:
            asked.append(asker_of(sys._getframe(1)))  # noqa: SLF001 - a documented function
            return "24"

    import pprint  # noqa: PLC0415 - a library of Python's that makes texts

    pprint.pformat([Pretty()])
    logging.LogRecord("a", logging.INFO, "b", 1, "%s", (Pretty(),), None).getMessage()
    assert asked == [frame, None]


def test_tools_are_not_the_network() -> None:
    """Tracers and numpy ask for their own sake; other libraries hold networks."""
    assert is_own(__file__)
    assert not any(map(is_own, (torch.__file__, sympy.__file__, logging.__file__, "<eval_with_key>.1")))
    import torchvision  # noqa: PLC0415 - it takes seconds

    assert is_own(torchvision.__file__)
