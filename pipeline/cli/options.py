"""Options of `python -m pipeline` that doit's tasks take, too."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from model_artifacts.cli.options import Option
from pipeline.config.values import share_of

_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h)")
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float:
    """Return a duration in seconds, from text such as `90s`, `10min` or `1.5h`.

    Raises:
        argparse.ArgumentTypeError: it is none, or no time at all.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"expected a duration, such as 90s, 10min or 1.5h, got {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def drop_of(text: str) -> float:
    """Return a drop as a fraction, from text such as `0.5pt`: percentage points.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        return float(str(share_of("pt", 0.01)(text)))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


CONFIG = Option(
    ("--config",), "file, or folder of files; default: pipeline.yaml", Path, Path("pipeline.yaml"), metavar="FILE"
)
RELEASE_KEY = Option(("--key",), "sign with this private key on an elliptic curve: PEM, or pkcs11:…", metavar="KEY")
KEYLESS = Option(("--keyless",), "sign as the identity that CI's OIDC vouches for", action="store_true")
ALLOW_DIRTY = Option(("--allow-dirty",), "make the release although files differ from the commit", action="store_true")
PRUNE_DELETE = Option(("--delete",), "delete the files; without this they are only listed", action="store_true")
BUDGET = Option(("--budget",), "seconds, minutes or hours: 90s, 10min, 1.5h; default: 10min", seconds_of, 600.0, "TIME")
MAX_DROP = Option(("--max-drop",), "the most answers to lose, beside the gates: 0.5pt", drop_of, metavar="DROP")
OBJECTIVE = Option(
    ("--objective",), "latency, throughput or memory; default: all three", choices=("latency", "throughput", "memory")
)
RELEASE_MODEL = Option(("--model",), "release this model alone, of a configuration of several", metavar="NAME")
ARTIFACTS = Option(("--artifacts",), "default: the configuration's `artifacts`", type=Path, metavar="FOLDER")


def subject_of(noun: str) -> Option:
    """Return the positional argument that names the subject of a command."""
    return Option(("subject",), f"the {noun}; `python -m pipeline plan` lists all", metavar="SUBJECT")
