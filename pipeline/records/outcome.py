"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from enum import Enum


class Outcome(str, Enum):
    """How a stage ended for a variant."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
