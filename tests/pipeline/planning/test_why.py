"""Why a variant is stale, or since when it is up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import GateCheck, LayerShare, Precision
from pipeline.cli.main import main
from pipeline.records import AccuracyReport, Outcome
from tests.support.configs import rewrite

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"


def why(folder: Path, capsys: pytest.CaptureFixture[str], variant: str = ENGINE) -> list[str]:
    """Return the output of the command."""
    assert main(["why", variant, "--config", str(folder / "pipeline.yaml")]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_current_variant_says_since_when(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line about the variant, one of every step that it comes from."""
    said = why(copied, capsys)
    assert said[0].startswith(f"{ENGINE} is up to date since 20")
    steps = [line.split()[0] for line in said[1:]]
    target = ENGINE.rpartition("/")[0]
    assert steps == [
        "source:tiny",
        "data:tiny",
        "export:tiny/fp16",
        "rounding:tiny/fp32",
        "rounding:tiny/fp16",
        f"build:{ENGINE}",
        f"validate:{ENGINE}",
        f"benchmark:{target}",
    ]
    assert all("up to date since" in line for line in said[1:])


def test_a_setting_far_up_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A variant's line names the changed setting with both values."""
    rewrite(copied, "mean: [0.5, 0.5, 0.5]", "mean: [0.4, 0.5, 0.5]")
    said = why(copied, capsys)
    assert said[0] == f"{ENGINE} is stale: preprocessing.mean changed: [0.5, 0.5, 0.5] → [0.4, 0.5, 0.5] (source)"
    assert said[1].endswith("stale: preprocessing.mean changed: [0.5, 0.5, 0.5] → [0.4, 0.5, 0.5]")
    assert said[3].startswith("  export:tiny/fp16")
    assert said[3].endswith("looked at again after source:tiny")


def test_a_damaged_file_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file and a missing file are named."""
    engine = copied / "artifacts" / ENGINE / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-1])
    assert why(copied, capsys)[0] == f"{ENGINE} is stale: {ENGINE}/model.engine is not what was made (build)"
    engine.unlink()
    assert why(copied, capsys)[0] == f"{ENGINE} is stale: {ENGINE}/model.engine is missing (build)"


def test_what_has_never_run_says_so(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new workspace's engine is not made yet, though everything that it is made from is there."""
    rewrite(copied, "[16MiB, 32MiB]", "[16MiB, 32MiB, 64MiB]")
    variant = ENGINE.replace("16MiB", "64MiB")
    assert why(copied, capsys, variant)[0] == f"{variant} is stale: not made yet (build)"


def test_what_is_skipped_has_nothing_to_do(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A variant that this host cannot build is up to date, and there is nothing to validate."""
    said = why(copied, capsys, "tiny/gpu/dynamo-fp16-b1-ws16MiB")
    assert "up to date" in said[0]
    assert any(line.startswith("  validate:") and line.endswith("nothing to do") for line in said)


def test_an_unknown_variant_is_wrong_usage(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The closest names are in the message."""
    assert main(["why", ENGINE + "x", "--config", str(copied / "pipeline.yaml")]) == 2
    assert ENGINE in capsys.readouterr().err


def test_a_rejected_variant_names_the_layers_of_another_type(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason of a rejection follows, with the layers that computed in another precision than the variant's."""
    file = copied / "artifacts" / ENGINE / "accuracy.json"
    record = read_record(file, AccuracyReport)
    check = GateCheck(metric="executed precision", bound="≥ 95% fp16", value="50.0%", passed=False)
    layers = (
        LayerShare(precision=Precision.FP16, layers=3, examples=("a", "b", "c")),
        LayerShare(precision=Precision.FP32, layers=3, examples=("d", "e")),
    )
    judged = {"outcome": Outcome.DONE, "checks": (check,), "reason": "executed precision 50.0%", "layers": layers}
    rejected = record.model_copy(update=judged)
    write_record(file, rejected)

    assert why(copied, capsys)[-2:] == ["rejected: executed precision 50.0%", "  in fp32: d, e and 1 more"]


def test_a_damaged_verdict_is_a_reason_and_no_failure(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged record of the validation makes the variant stale; the command itself does not fail."""
    (copied / "artifacts" / ENGINE / "accuracy.json").write_text("{")

    assert why(copied, capsys)[0].endswith("(validate)")
