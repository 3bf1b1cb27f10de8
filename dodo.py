"""The pipeline's table of contents: `doit list` prints it, `doit` runs its stale steps, in the order of the stages.

The stages are in `pipeline/stages/__init__.py`; the folder of each holds `spec.py`, which says everything about it, and
`stage.py`, which does its work. Every action is a command that a person can paste:
`python -m pipeline build resnet18/rtx-sm80+/fp16-b1-ws1GiB`. pipeline.yaml decides which variants there are.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from doit.action import CmdAction

from pipeline.cli.tasks import Tasks
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

DOIT_CONFIG = {"default_tasks": [spec.name for spec in STAGES if not spec.on_demand]}

TASKS = Tasks.load(STAGES)


def task_stages() -> Iterator[dict[str, Any]]:
    """Yield one task group for each stage, with a task for each step."""
    for spec in STAGES:
        yield {"basename": spec.name, "name": None, "doc": spec.sentence}
        yield from TASKS.of(spec)


def task_tune() -> dict[str, Any]:
    """On demand: the fastest variants that pass their gates, searched within `--budget 10min`."""
    return TASKS.tune()


def task_release() -> dict[str, Any]:
    """On demand: a folder and an archive of what may be deployed, with its evidence; `--key` signs it."""
    return TASKS.release()


def task_verify() -> dict[str, Any]:
    """On demand: the newest release against everything that it says of itself; `--key` demands a signature."""
    return TASKS.verify()


def task_triton() -> dict[str, Any]:
    """On demand: model repositories for Triton Inference Server, of what it can run."""
    return TASKS.triton()


def task_prune() -> dict[str, Any]:
    """On demand: lists files of variants that pipeline.yaml no longer has; `doit prune --delete` deletes them."""
    return TASKS.prune()


def task_docs() -> dict[str, Any]:
    """For developers: docs/api.md, docs/manifest.md and its schema, from the docstrings."""
    return {"actions": [[sys.executable, "docs/generate.py"]], "verbosity": 2}


def task_check() -> dict[str, Any]:
    """For developers: tests, linters, types, layers, schema and coverage, as CI runs them."""
    # `doit check FILE…` runs these files' own tests only.
    whole = {"name": "whole", "long": "all", "type": bool, "default": False, "help": "run the long campaigns whole"}
    return {
        "actions": [CmdAction(_check_command, shell=False)],
        "params": [whole],
        "pos_arg": "files",
        "verbosity": 2,
    }


def _check_command(whole: bool, files: list[str]) -> list[str]:  # noqa: FBT001 - doit passes it by name
    return [sys.executable, "-m", "tests.support.check", *(["--all"] if whole else []), *files]
