"""Outcome of a stage for a variant."""

from __future__ import annotations

from enum import Enum


class Outcome(str, Enum):
    """Outcome of a stage for a variant."""

    DONE = "done"
    """The stage finished its work."""
    FAILED = "failed"
    """The stage ended with an error."""
    SKIPPED = "skipped"
    """This host, flavour or graph does not support the work."""
