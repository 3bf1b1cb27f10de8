"""doit's tasks: lists, results, and errors of use."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from model_artifacts.host.environment import missing_driver
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from tests.conftest import TINY
from tests.support.doit_runs import doit, ran
from tests.support.parts import long_test
from tests.support.records import with_digest

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import ManifestEntry

ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
UP_TO_DATE = (
    "everything is up to date\n"
    "the verdict: artifacts/report.html, and on the terminal `model-artifacts show artifacts`\n"
)
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"


def names(folder: Path) -> list[str]:
    """Return the names of a folder's files, sorted."""
    return sorted(file.name for file in folder.iterdir())


ONNX_FILES = sorted(
    [
        *(f"{graph}.{suffix}" for graph in ("fp32", "int8", "int8-cpu") for suffix in ("onnx", "json")),
        "int8.opset17.onnx",
        "means.npz",
        "ranges.npz",
    ]
)


def test_list_reads_like_a_table_of_contents(checkout: Path) -> None:
    """`doit list` shows the stages in their order, each with a sentence."""
    lines = doit(checkout, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines][:9] == [
        "source", "data", "export", "quantize", "rounding", "build", "validate", "benchmark", "manifest",
    ]  # fmt: skip
    assert all(line.endswith(".") for line in lines)


def test_nothing_to_do_does_nothing(finished: Path) -> None:
    """Doit on a finished project runs nothing, says so and leaves the manifest as it is."""
    manifest = finished / "artifacts" / "manifest.json"
    assert doit(finished, "-n", "1").returncode == 0  # the manifest of another folder may be of another commit
    before = manifest.read_bytes()
    done = doit(finished)
    assert (done.returncode, done.stdout, done.stderr) == (0, UP_TO_DATE, "")
    assert manifest.read_bytes() == before


HIDES_TORCH = """
import importlib.util

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
"""


def test_what_was_made_elsewhere_is_taken_as_given(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torch, doit says of each result that needed it that it was taken as it is, and runs nothing of it."""
    assert doit(finished, "-n", "1").returncode == 0  # the manifest of another folder may be of another commit
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDES_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    done = doit(finished)
    assert done.returncode == 0, done.stdout + done.stderr
    given = [line for line in done.stdout.splitlines() if "reused" in line]
    assert given[0] == "source:tiny: reused: torch is not installed here, and the digests hold"
    assert {line.split(":")[0] for line in given} == {"source", "data", "export", "quantize", "rounding"}
    assert done.stdout.endswith(f"\n{UP_TO_DATE}")


def test_given_result_that_is_damaged_is_one_message(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged result that cannot be reused without torch has a fix, and stops the steps that build on it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDES_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    Project.load(finished / "pipeline.yaml", STAGES).paths.weights.write_bytes(b"damaged")
    done = doit(finished, "build:tiny/rtx-sm80+/fp16-b1-ws16MiB")
    assert done.returncode == 1
    assert "source needs torch, which is not installed here" in done.stderr + done.stdout
    assert "not run, because what they build on failed" in done.stdout


def test_a_deleted_engine_is_built_again(finished: Path) -> None:
    """Only the deleted engine, the variant that shares it, and their validations and benchmarks run again."""
    project = Project.load(finished / "pipeline.yaml", STAGES)
    project.paths.engine(project.plan.variant(ENGINE)).unlink()
    done = doit(finished, "-n", "1")
    assert done.returncode == 0
    assert {f"build:{ENGINE}", "manifest:tiny"} <= ran(done.stdout)
    # A plan may come out with other bytes: then what was said of the old one is said anew of this one.
    again = {f"build:{TWIN}", f"validate:{ENGINE}", f"validate:{TWIN}", "benchmark:tiny/rtx-sm80+"}
    assert ran(done.stdout) <= {f"build:{ENGINE}", "manifest:tiny"} | again
    assert doit(finished).stdout == UP_TO_DATE
    assert doit(finished, "source").stdout == "everything is up to date\n"


def test_one_variant_can_be_asked_for(finished: Path) -> None:
    """`doit build:VARIANT` builds that variant, and nothing that it does not need."""
    project = Project.load(finished / "pipeline.yaml", STAGES)
    project.paths.engine(project.plan.variant(ENGINE)).unlink()
    assert ran(doit(finished, f"build:{ENGINE}").stdout) == {f"build:{ENGINE}"}


@pytest.mark.skipif(not missing_driver(), reason="there is a GPU here")
@pytest.mark.parametrize(("stage", "name"), [("build", "tiny/gpu/dynamo-fp16-b1-ws16MiB"), ("validate", ENGINE)])
def test_what_lacks_its_gpu_is_recorded_as_its_command_does(finished: Path, stage: str, name: str) -> None:
    """Doit writes the record of a skip without a process, with the same contents and message as the command."""
    record = finished / "artifacts" / name / {"build": "artifact.json", "validate": "accuracy.json"}[stage]
    before = json.loads(record.read_text())
    record.unlink()
    done = doit(finished, f"{stage}:{name}")
    assert done.returncode == 0, done.stderr
    assert f"{stage}:{name}: skipped: {before['reason']}\n" in done.stdout
    own = {"built_at": "", "digest": "", "git": None}
    assert {**json.loads(record.read_text()), **own} == {**before, **own}


@long_test
def test_two_at_once_give_the_same_result(checkout: Path, built: Project) -> None:
    """A whole run of two processes at a time ends like one of a single one."""
    file = checkout / "pipeline.yaml"
    text = TINY.replace("[fp32, fp16, bf16, int8]", "[fp32, int8]").replace("[1, {min: 1, opt: 2, max: 4}]", "[1]")
    file.write_text(text.replace("batches: [1, 2]", "batches: [1]"))
    done = doit(checkout, "-n", "2")
    assert done.returncode == 0, done.stdout + done.stderr

    def outcome(entry: ManifestEntry) -> tuple[object, ...]:
        agreement = entry.accuracy.top1_agreement if entry.accuracy else None
        return entry.id, entry.status, entry.reason, entry.equals, agreement, entry.inputs, entry.outputs

    parallel, alone = (
        {entry.id: outcome(entry) for entry in found.manifest().artifacts}
        for found in (Project.load(file, STAGES), built)
    )
    both = parallel.keys() & alone.keys()
    assert len(both) > len(parallel) / 2
    assert {name: parallel[name] for name in both} == {name: alone[name] for name in both}
    assert names(checkout / "artifacts" / "tiny" / "onnx") == ONNX_FILES


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["buidl"], 'Invalid parameter: "buidl"'),
        (["buidl"], "did you mean `doit build`?"),
        (["lst"], "did you mean `doit list`?"),
        (["config=pipeline.yaml", "lst"], "did you mean `doit config=pipeline.yaml list`?"),
        ([f"build:{ENGINE}x"], f"did you mean `doit build:{ENGINE}`?"),
        (["confg=other.yaml"], "doit has no variable 'confg'"),
        (["Config=other.yaml"], "did you mean `config=other.yaml`?"),
        (["release", "--key=k.pem", "key=k.pem"], "expected: config=FILE"),
        (["--bogus"], "option --bogus not recognized"),
        (["config=none.yaml"], "the configuration none.yaml cannot be read"),
    ],
)
def test_wrong_usage_is_one_message(checkout: Path, arguments: list[str], says: str) -> None:
    """An unknown task, option or file ends with status 2 and no traceback."""
    done = doit(checkout, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_configuration_is_one_message(checkout: Path) -> None:
    """A mistake in pipeline.yaml ends every command of doit with status 2 and its position."""
    (checkout / "pipeline.yaml").write_text(TINY.replace("precisions", "precision"))
    for command in ([], ["list"]):
        done = doit(checkout, *command)
        assert done.returncode == 2
        assert "pipeline.yaml:7:1: unknown key 'precision'; did you mean 'precisions'?" in done.stderr
        assert "Traceback" not in done.stderr


def test_another_configuration_can_be_named(finished: Path) -> None:
    """`doit config=FILE` runs another file, and its commands name it."""
    (finished / "pipeline.yaml").rename(finished / "other.yaml")
    project = Project.load(finished / "other.yaml", STAGES)
    project.paths.engine(project.plan.variant(ENGINE)).unlink()
    done = doit(finished, "config=other.yaml", f"build:{ENGINE}")
    assert (done.returncode, ran(done.stdout)) == (0, {f"build:{ENGINE}"})


def test_a_second_doit_refuses(checkout: Path) -> None:
    """While one doit works on a model, another says so and ends."""
    (checkout / "artifacts/tiny").mkdir()
    with FileLock(checkout / "artifacts/tiny/.doit.lock"):
        done = doit(checkout)
    assert done.returncode == 1
    assert "another doit works in artifacts/tiny" in done.stderr


def test_two_projects_in_one_checkout_do_not_wait_for_each_other(checkout: Path) -> None:
    """A configuration of another model has a lock of its own, in the same artifacts folder or in another one."""
    text = (checkout / "pipeline.yaml").read_text()
    (checkout / "artifacts/tiny").mkdir()
    with FileLock(checkout / "artifacts/tiny/.doit.lock"):
        for changed in (text + "\nartifacts: others\n", text.replace("name: tiny", "name: second")):
            (checkout / "other.yaml").write_text(changed)
            done = doit(checkout, "config=other.yaml", "source")
            assert done.returncode == 0, done.stderr
    assert ran(done.stdout) == {"source:second"}
    assert (checkout / "others/.durations.json").is_file()
    assert "source:second" in (checkout / "artifacts/.durations.json").read_text()


def test_doit_keeps_no_database(finished: Path) -> None:
    """Staleness follows from the records on disk; doit has no state of its own to damage or lose."""
    (finished / "artifacts" / ".doit.sqlite3").write_bytes(b"garbage" * 1000)
    assert ran(doit(finished).stdout) <= {"manifest:tiny"}
    assert [path.name for path in (finished / "artifacts").glob(".doit*.db*")] == []


def test_a_damaged_cache_of_digests_rebuilds_nothing(finished: Path) -> None:
    """A damaged cache of digests costs only time."""
    doit(finished, "manifest")
    (finished / "artifacts" / ".digests.sqlite3").write_bytes(b"garbage" * 1000)
    done = doit(finished)
    assert (done.returncode, ran(done.stdout)) == (0, set())


def test_prune_lists_and_deletes(finished: Path) -> None:
    """`doit prune` only lists; `doit prune --delete` deletes, and the manifest loses the dropped variants."""
    config = finished / "pipeline.yaml"
    config.write_text(config.read_text().replace("[fp32, fp16, bf16, int8]", "[fp32, fp16, int8]"))
    engine = finished / "artifacts/tiny/rtx-sm80+/bf16-b1-ws16MiB/model.engine"
    listed = doit(finished, "prune")
    assert (listed.returncode, engine.exists()) == (0, True)
    assert "nothing was deleted: `doit prune --delete` does" in listed.stdout
    other = finished / "other.yaml"
    other.write_text(config.read_text())
    named = doit(finished, "config=other.yaml", "prune")
    assert "nothing was deleted: `doit config=other.yaml prune --delete` does" in named.stdout
    other.unlink()
    assert "rtx-sm80+/bf16-b1-ws16MiB/model.engine\n" in listed.stdout
    assert doit(finished, "prune", "--delete").returncode == 0
    assert not engine.parent.exists()
    assert doit(finished, "manifest").returncode == 0
    manifest = json.loads((finished / "artifacts/manifest.json").read_text())
    assert {entry["precision"] for entry in manifest["artifacts"]} == {"fp32", "fp16", "int8"}


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["verify"], "doit release"),
        (["config=other.yaml", "verify"], "doit config=other.yaml release"),
        (["config=other.yaml", "verify", "--model", "tiny"], "doit config=other.yaml release"),
    ],
    ids=["pipeline.yaml", "another", "a model of another"],
)
def test_verify_without_a_release_names_the_command_that_makes_one(
    checkout: Path, words: list[str], command: str
) -> None:
    """With the configuration: without it, that would be a release of another model."""
    (checkout / "other.yaml").write_text((checkout / "pipeline.yaml").read_text())
    done = doit(checkout, *words)
    assert done.returncode == 1
    assert f"fix:      run `{command}` first" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_newer_record_stops_doit_by_its_name(finished: Path) -> None:
    """Nothing is run that would misread it, or write over it."""
    record = finished / "artifacts" / ENGINE / "artifact.json"
    newer = with_digest(record.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    record.write_text(newer)
    done = doit(finished)
    assert done.returncode == 1
    assert f"{ENGINE}/artifact.json was written by a newer version" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert record.read_text() == newer


def test_artifacts_that_is_no_folder_is_one_message(checkout: Path) -> None:
    """A file where artifacts/ should be ends with status 1 and no traceback."""
    (checkout / "artifacts").rmdir()
    (checkout / "artifacts").write_text("")
    done = doit(checkout)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@long_test
def test_two_clean_runs_make_the_same(checkout: Path, built: Project) -> None:
    """Other processes in another folder give the same weights, images and graphs, byte for byte, by the same keys."""
    done = doit(checkout, "source", "data", "export", "quantize", "build:tiny/cpu-x86_64/onnxruntime-fp16")
    assert done.returncode == 0, done.stderr
    project = Project.load(checkout / "pipeline.yaml", STAGES)
    made = [
        (item.source(), item.data(), *(item.onnx(graph) for graph in item.plan.graphs)) for item in (project, built)
    ]
    for mine, theirs in zip(*made, strict=True):
        assert mine.files == theirs.files
        assert mine.key == theirs.key
    variant = project.plan.variant("tiny/cpu-x86_64/onnxruntime-fp16")
    assert project.artifact(variant).key == built.artifact(variant).key


def test_only_one_field_of_the_manifest_is_a_time(built: Project) -> None:
    """The manifest is sorted and canonical, so that a diff of two manifests shows the changes."""
    before = built.manifest()
    text = before.to_json()
    stamp = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
    assert [line.split(":")[0].strip() for line in text.splitlines() if stamp.search(line)] == ['"built_at"']
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert [entry.id for entry in before.artifacts] == sorted(entry.id for entry in before.artifacts)
