"""Somebody else's code, imported and called on behalf of a model: it neither ends nor configures the process."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from model_artifacts.errors import SourceError, one_line
from model_artifacts.sessions.arithmetic import kept_arithmetic

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def running_factory(spec: str, failure: str, fix: str = "") -> Iterator[None]:
    """Run the code of a model's factory, and translate what it raises.

    A training script may parse the command line when it is imported. It sees none here, so that it takes its defaults,
    whichever of our commands runs it. What it sets in torch's arithmetic is undone.

    Args:
        spec: the factory, `package.module:function`.
        failure: the fact, as the message says it.
        fix: the remedy.

    Raises:
        SourceError: the code raised something, or ended the process.
    """
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        with kept_arithmetic(f"the model's factory {spec!r}"):
            yield
    except SystemExit as exc:
        raise SourceError(
            failure,
            where=spec.partition(":")[0],
            expected="a module that can be imported, and a function without arguments",
            got=f"its code ends the process with exit status {exc.code}, as a script does that parses its command line",
            fix='put the code of the script under `if __name__ == "__main__":`',
        ) from exc
    except Exception as exc:
        raise SourceError(failure, got=one_line(exc), fix=fix) from exc
    finally:
        sys.argv = arguments
