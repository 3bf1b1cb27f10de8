"""Prune: leftovers are listed, and deleted on demand."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Graph, Precision
from pipeline.cli.main import main
from pipeline.planning.freshness import is_current
from pipeline.planning.project import Project
from pipeline.planning.prune import find_leftovers
from pipeline.records import Artifact
from pipeline.stages import STAGES
from tests.support.configs import rewrite

if TYPE_CHECKING:
    from pathlib import Path

    Files = dict[Path, bytes]


SMALL = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"


def files(folder: Path) -> Files:
    """Return every file with its contents, except the cache of digests."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".digests"))
    return {path: path.read_bytes() for path in found}


def test_what_is_planned_is_no_leftover(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right after a run there is nothing to prune."""
    before = files(copied)
    assert main(["prune", "--delete", "--config", str(copied / "pipeline.yaml")]) == 0
    assert files(copied) == before
    assert capsys.readouterr().out == "nothing to prune: every variant here is in the configuration\n"


def test_nothing_is_deleted_unless_asked(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --delete the files are only listed, with their size."""
    config = rewrite(copied, "[fp32, fp16, bf16, int8]", "[fp32, fp16, int8]")
    before = files(copied)
    assert main(["prune", "--config", config]) == 0
    said = capsys.readouterr().out
    assert files(copied) == before
    assert f"would delete: {copied}/artifacts/tiny/rtx-sm80+/bf16-b1-ws16MiB/model.engine" in said
    assert f"nothing was deleted: `doit config={config} prune --delete` does" in said


def test_a_dropped_precision_takes_its_variants_files_and_no_others(copied: Path) -> None:
    """Empty folders go, too; foreign files and all other files stay."""
    config = rewrite(copied, "[fp32, fp16, bf16, int8]", "[fp32, fp16, int8]")
    mine = copied / "artifacts/tiny/rtx-sm80+/bf16-b1-ws16MiB/notes.txt"
    mine.write_text("mine")
    before = files(copied)
    assert main(["prune", "--delete", "--config", config]) == 0
    gone = before.keys() - files(copied).keys()
    assert {path.parent.name for path in gone} >= {"bf16-b1-ws16MiB", "bf16-b1-2-4-ws32MiB"}
    assert all("bf16" in f"{path.parent.name}/{path.name}" for path in gone)
    assert (copied / "artifacts/tiny/onnx/ranges.npz").exists()
    assert mine.read_text() == "mine"
    assert not (mine.parent.parent / "bf16-b1-ws32MiB").exists()
    project = Project.load(copied / "pipeline.yaml", STAGES)
    assert all(is_current(project, step) for step in project.schedule.steps if step.stage in {"build", "validate"})
    assert main(["prune", "--config", config]) == 0


def test_restarts_beyond_the_configured_number_go(copied: Path) -> None:
    """A benchmark with fewer restarts leaves the samples of the others, and a dropped variant those of all."""
    folder = copied / "artifacts/tiny/cpu-x86_64"
    for name in ("onnxruntime-fp32", "onnxruntime-fp16"):
        for suffix in ("json", "npz"):
            shutil.copy(
                folder / name / f"benchmark.restart-1.{suffix}", folder / name / f"benchmark.restart-7.{suffix}"
            )
    before = files(copied)
    config = rewrite(copied, "restarts: 2", "restarts: 1")
    assert main(["prune", "--delete", "--config", config]) == 0
    gone = {path.name for path in before.keys() - files(copied).keys()}
    assert gone == {f"benchmark.restart-{number}.{suffix}" for number in (2, 7) for suffix in ("json", "npz")}
    assert (folder / "onnxruntime-fp32/benchmark.restart-1.npz").exists()
    shutil.copy(
        folder / "onnxruntime-fp16/benchmark.restart-1.npz", folder / "onnxruntime-fp16/benchmark.restart-8.npz"
    )
    assert main(["prune", "--delete", "--config", rewrite(copied, "[fp32, fp16, bf16, int8]", "[fp32]")]) == 0
    assert not (folder / "onnxruntime-fp16").exists()


def test_a_file_that_a_planned_variant_shares_is_kept(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Engines of two workspaces that are the same are one file, which outlives the variant whose folder it lies in."""
    twin = read_record(copied / "artifacts" / TWIN / "artifact.json", Artifact)
    assert twin.same_as == SMALL
    config = rewrite(copied, "[16MiB, 32MiB]", "[32MiB]")
    assert main(["prune", "--delete", "--config", config]) == 0
    engine = copied / "artifacts" / SMALL / "model.engine"
    assert f"kept: {engine}, which a planned variant shares" in capsys.readouterr().out
    assert engine.exists()
    assert not (engine.parent / "artifact.json").exists()
    project = Project.load(copied / "pipeline.yaml", STAGES)
    assert not find_leftovers(project).variants
    assert [
        step.subject for step in project.schedule.steps if step.subject == TWIN and not is_current(project, step)
    ] == []


def test_another_hosts_artifacts_are_kept(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Builds for a GPU that this host lacks stay while their precision, batch range and workspace are planned."""
    record = read_record(copied / "artifacts" / SMALL / "artifact.json", Artifact)
    for precision, graph in ((Precision.FP16, Graph.FP16), (Precision.BF16, Graph.BF16)):
        update = {"target": "sm90-h100-trt10.15", "precision": precision, "graph": graph}
        variant = record.variant.model_copy(update=update)
        there = copied / "artifacts/tiny/sm90-h100-trt10.15" / variant.name
        there.mkdir(parents=True)
        write_record(there / "artifact.json", record.model_copy(update={"variant": variant, "file": None, "log": None}))
    config = rewrite(copied, "[fp32, fp16, bf16, int8]", "[fp32, fp16, int8]")
    assert main(["prune", "--delete", "--config", config]) == 0
    assert "kept: tiny/sm90-h100-trt10.15/fp16-b1-ws16MiB, of a target that" in capsys.readouterr().out
    folder = copied / "artifacts/tiny/sm90-h100-trt10.15"
    assert [path.name for path in folder.iterdir()] == ["fp16-b1-ws16MiB"]


def test_what_no_record_vouches_for_is_nobodys(copied: Path) -> None:
    """A folder without a readable record is left alone."""
    folder = copied / "artifacts/tiny/rtx-sm80+/fp8-b1-ws16MiB"
    folder.mkdir()
    (folder / "model.engine").write_bytes(b"x")
    (folder / "artifact.json").write_text("{}")
    before = files(copied)
    assert main(["prune", "--delete", "--config", str(copied / "pipeline.yaml")]) == 0
    assert files(copied) == before


def test_a_record_in_another_variants_folder_deletes_nothing(copied: Path) -> None:
    """A record counts only in the folder of its own variant."""
    source = copied / "artifacts" / SMALL / "artifact.json"
    folder = copied / "artifacts/tiny/rtx-sm80+/copy"
    folder.mkdir()
    record = read_record(source, Artifact)
    other = record.variant.model_copy(update={"target": "rtx-sm89"})
    write_record(folder / "artifact.json", record.model_copy(update={"variant": other}))
    assert find_leftovers(Project.load(copied / "pipeline.yaml", STAGES)).files == ()


def test_an_engine_goes_with_the_last_variant_that_shares_it(copied: Path) -> None:
    """Also where the variant that built it was pruned before."""
    config = rewrite(copied, "[16MiB, 32MiB]", "[32MiB]")
    assert main(["prune", "--delete", "--config", config]) == 0
    engine = copied / "artifacts" / SMALL / "model.engine"
    assert engine.exists()
    rewrite(copied, "[32MiB]", "[64MiB]")
    assert main(["prune", "--delete", "--config", config]) == 0
    assert not engine.parent.exists()
    assert list((copied / "artifacts/tiny").glob("*/*ws16MiB/*")) == []


def test_engines_for_other_gpus_are_the_configurations_own(copied: Path) -> None:
    """Engines ahead of time for GPUs that left the configuration do not count as another host's."""
    config = copied / "pipeline.yaml"
    config.write_text(config.read_text() + "tensorrt: {compute_capabilities: [89]}\n")
    found = find_leftovers(Project.load(config, STAGES))
    assert (copied / "artifacts" / SMALL) in found.variants
    assert not found.elsewhere


def test_a_dropped_precision_takes_its_graphs(copied: Path) -> None:
    """The graphs of a dropped precision go with their records; graphs that others are made from stay."""
    config = rewrite(copied, "[fp32, fp16, bf16, int8]", "[fp16]")
    assert main(["prune", "--delete", "--config", config]) == 0
    left = sorted(path.name for path in (copied / "artifacts/tiny/onnx").iterdir())
    assert left == ["fp16.json", "fp16.onnx", "fp32.json", "fp32.onnx"]


@pytest.mark.parametrize(
    ("now", "before"), [('"schema_version": 1', '"schema_version": 0'), (r'  "digest": "\w*",\n', "")]
)
def test_a_variant_of_an_older_schema_goes_too(copied: Path, now: str, before: str) -> None:
    """An unplanned variant with a record of an older schema is pruned, and a planned one is made again."""
    folder, planned = copied / "artifacts/tiny/rtx-sm80+/fp8-b1-ws16MiB", copied / "artifacts" / SMALL
    shutil.copytree(planned, folder)
    for record in (folder / "artifact.json", planned / "artifact.json"):
        record.write_text(re.sub(now, before, record.read_text()))
    (folder / "notes.txt").write_text("mine")
    assert main(["prune", "--delete", "--config", str(copied / "pipeline.yaml")]) == 0
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert (planned / "model.engine").exists()


def test_a_model_of_another_name_is_named_and_kept(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another configuration may make it."""
    config = rewrite(copied, "name: tiny", "name: small")
    before = files(copied)
    assert main(["prune", "--delete", "--config", config]) == 0
    assert files(copied) == before
    assert f"kept: {copied}/artifacts/tiny, a model of another name" in capsys.readouterr().out


def test_a_model_of_the_same_configuration_is_planned(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is told to delete it, though its folder names a file that was renamed since."""
    file = copied / "pipeline.yaml"
    first, _, rest = file.read_text().partition("preprocessing:")
    assert first.startswith("model:")
    other = first.replace("name: tiny", "name: small").replace("\n", "\n  ").removeprefix("model:").rstrip()
    entry = first.replace("\n", "\n  ").rstrip()
    (copied / "p2.yaml").write_text(f"models:\n- {entry}\n- model:{other}\npreprocessing:{rest}")
    file.unlink()
    assert main(["prune", "--config", str(copied / "p2.yaml")]) == 0
    assert capsys.readouterr().out == "nothing to prune: every variant here is in the configuration\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "tiny"], "expected no further arguments, got tiny"),
        (["plan", "--delete"], "expected no further arguments, got --delete"),
        (["why"], "expected SUBJECT"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong usage is one message and status 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
