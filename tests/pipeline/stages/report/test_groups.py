"""Artifacts that are not deployable, grouped for the report."""

from __future__ import annotations

from model_artifacts.records import Status
from pipeline.stages.report.groups import groups_of
from tests.support.manifests import entry

NO_DRIVER = "no NVIDIA driver found"


def test_artifacts_of_one_reason_are_one_group_without_a_command() -> None:
    """Forty-nine rows that no command can help are one, with their number."""
    skipped = [entry(f"gpu{index}", status=Status.SKIPPED, reason=NO_DRIVER) for index in range(49)]
    (group,) = groups_of([entry("fine"), *skipped])
    assert (group.status, group.reason, group.command) == (Status.SKIPPED, NO_DRIVER, "")
    assert group.entries == tuple(skipped)


def test_only_a_failure_has_a_command() -> None:
    """A rejected or skipped artifact comes out the same on this host, however often it is built."""
    entries = [entry(status.value, status=status, reason="r") for status in Status]
    commands = {group.status: group.command for group in groups_of(entries)}
    assert commands == {
        Status.FAILED: "python -m pipeline build m/cpu-x86_64/failed",
        Status.REJECTED: "",
        Status.BUILT: "",
        Status.SKIPPED: "",
    }


def test_several_failures_of_one_reason_have_the_command_for_all() -> None:
    """`doit` tries every failure again."""
    failed = [entry(name, status=Status.FAILED, reason="r") for name in "ab"]
    assert [group.command for group in groups_of(failed)] == ["doit"]


def test_failures_come_first_and_then_the_larger_group() -> None:
    """What needs attention stands above what this host cannot do."""
    few = entry("x", status=Status.SKIPPED, reason="few")
    many = [entry(name, status=Status.SKIPPED, reason="many") for name in "yz"]
    failed = entry("f", status=Status.FAILED, reason="f")
    assert [group.reason for group in groups_of([few, *many, failed])] == ["f", "many", "few"]
