"""A machine that runs artifacts: resolved, verified, opened, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pytest

import model_artifacts as pipeline
from model_artifacts.deployment.requirements import Requirements
from model_artifacts.errors import ArtifactError, RunError, UnsupportedError, UsageError
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Backend, BatchRange, Manifest, Precision
from model_artifacts.serving.runners import Opened
from model_artifacts.serving.streams import InTurn
from model_artifacts.sessions.preprocessing import to_input
from tests.support.deployables import engine, machine, module
from tests.support.hosts import H100
from tests.support.pictures import photographs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import FileRecord, ManifestEntry
    from pipeline.planning.project import Project
    from pipeline.stages.release.stage import Release

    Batch = npt.NDArray[np.float32]


def test_logits_are_those_that_were_validated(built: Project) -> None:
    """A deployment's logits of the validation images agree with the reference's logits."""
    data = built.data()
    pixels, reference = built.pixels(data.validation), np.load(built.file(data.reference))
    with pipeline.load(built.paths.root, Requirements(precision=Precision.FP32)) as model:
        assert model.entry.backend is Backend.ONNXRUNTIME
        logits = model(to_input(pixels, model.preprocessing))
    assert logits.dtype == np.float32
    assert np.linalg.norm(logits - reference) / np.linalg.norm(reference) < 1e-5


def test_a_wish_decides_what_is_opened(built: Project) -> None:
    """`load` takes the same requirements as `resolve`."""
    with pipeline.load(built.paths.root, Requirements(precision=Precision.FP16)) as model:
        assert model.entry.precision is Precision.FP16
        assert (
            model.resolution.entry == pipeline.resolve(built.paths.root, Requirements(precision=Precision.FP16)).entry
        )


@pytest.fixture
def changed(copied: Path) -> Callable[[Callable[[ManifestEntry], dict[str, object]]], Path]:
    """A function that changes every entry of a copied project's manifest, and returns the folder."""

    def change(update: Callable[[ManifestEntry], dict[str, object]]) -> Path:
        path = copied / "artifacts" / "manifest.json"
        manifest = read_record(path, Manifest)
        entries = tuple(item.model_copy(update=update(item)) for item in manifest.artifacts)
        write_record(path, manifest.model_copy(update={"artifacts": entries}))
        return path.parent

    return change


def moved(file: FileRecord | None, path: str) -> dict[str, object]:
    """Return a change of where a file lies."""
    return {"file": file.model_copy(update={"path": path}) if file else None}


def test_a_damaged_file_is_refused_before_it_is_loaded(copied: Path) -> None:
    """The digest of every kind of artifact is checked before the file is loaded."""
    file = pipeline.resolve(copied / "artifacts").entry.file
    assert file is not None
    path = copied / "artifacts" / file.path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"is damaged.*\n  expected: SHA-256"), pipeline.load(copied / "artifacts"):
        pass


@pytest.mark.parametrize("where", ["../outside.onnx", "/etc/passwd"])
def test_a_file_outside_the_folder_is_refused(
    changed: Callable[[Callable[[ManifestEntry], dict[str, object]]], Path], where: str
) -> None:
    """`..` and absolute paths are refused, whatever lies there."""
    folder = changed(lambda item: moved(item.file, where))
    (folder.parent / "outside.onnx").write_bytes(b"x")
    with pytest.raises(RunError, match="names a file outside its folder"), pipeline.load(folder):
        pass


def test_links_into_a_store_of_contents_are_followed(copied: Path, tmp_path: Path) -> None:
    """A folder of links, as Hugging Face's cache and DVC make, loads if the digests hold, and else is refused."""
    folder, blobs = copied / "artifacts", tmp_path / "blobs"
    blobs.mkdir()
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        blob = blobs / f"{len(list(blobs.iterdir()))}"
        file.rename(blob)
        file.symlink_to(blob)
    with pipeline.load(folder) as model:
        assert model(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)
        taken = model.entry.file
    assert taken is not None
    (folder / taken.path).resolve().write_bytes(b"other")
    with pytest.raises(RunError, match=r"is damaged.*\n  expected: SHA-256"), pipeline.load(folder):
        pass


def test_what_was_not_pulled_is_not_taken(copied: Path) -> None:
    """An artifact that was not pulled is passed over here; for another host every artifact counts."""
    folder = copied / "artifacts"
    everything = [item for item in pipeline.resolve(folder).rejected if "was not pulled" in item.reason]
    best, required = pipeline.resolve(folder).entry, pipeline.resolve(folder, Requirements(precision="fp32")).entry
    other = required if required != best else pipeline.resolve(folder, Requirements(precision="fp16")).entry
    for item in read_record(folder / "manifest.json", Manifest).artifacts:
        if item.file and other.file and item.file != other.file:
            (folder / item.file.path).unlink(missing_ok=True)
    found = pipeline.resolve(folder)
    assert everything == []
    assert found.entry == other
    assert {item.id: item.reason for item in found.rejected}[best.id] == "was not pulled: its file is missing"
    assert pipeline.resolve(folder, host=pipeline.this_host()).entry == best
    with pipeline.load(folder) as model:
        assert model.entry == other


def test_a_manifest_without_a_model_is_refused(copied: Path) -> None:
    """There is no preprocessing to be had."""
    path = copied / "artifacts" / "manifest.json"
    write_record(path, read_record(path, Manifest).model_copy(update={"model": None}))
    with pytest.raises(RunError, match="does not describe the model"), pipeline.load(path.parent):
        pass


def test_a_model_is_used_inside_its_block(built: Project) -> None:
    """Before the block and after it, calls are refused with the line to write."""
    batch = np.zeros((1, 3, 32, 32), np.float32)
    opening = pipeline.load(built.paths.root)
    refusal = r"(?s)has not opened the model.*with load"
    with pytest.raises(UsageError, match=refusal):
        opening(batch)
    with pytest.raises(UsageError, match=refusal):
        opening.predict(photographs(1))
    with opening as model:
        pass
    closed = r"(?s)the model is closed.*expected: .*got: .*with load"
    for call in (lambda: model(batch), lambda: model.predict(photographs(1)), lambda: model.predict([])):
        with pytest.raises(RunError, match=closed):
            call()


def test_a_loading_may_be_entered_again(built: Project) -> None:
    """Each `with` opens a model of its own."""
    opening = pipeline.load(built.paths.root)
    batch = np.zeros((1, 3, 32, 32), np.float32)
    with opening as first, opening as second:
        expected = first(batch)
        assert second is not first
        np.testing.assert_array_equal(second(batch), expected)
    with opening as third:
        np.testing.assert_array_equal(third(batch), expected)


def test_each_thread_closes_its_own_model(built: Project) -> None:
    """Two threads that enter one loading and leave it in the same order each close the model that they opened."""
    opening = pipeline.load(built.paths.root)
    batch = np.zeros((1, 3, 32, 32), np.float32)
    entered, left = threading.Barrier(2, timeout=30), threading.Event()

    def first() -> None:
        with opening:
            entered.wait()
        left.set()

    def second() -> tuple[int, ...]:
        with opening as model:
            entered.wait()
            left.wait()
            logits: npt.NDArray[np.float32] = model(batch)
            return logits.shape

    with ThreadPoolExecutor(2) as pool:
        closing, using = pool.submit(first), pool.submit(second)
        closing.result()
        assert using.result() == (1, 10)


def test_threads_call_a_model_at_once(built: Project) -> None:
    """As many calls run at once as were asked for, joined or not, and each gets the logits of its own rows."""
    images = np.random.default_rng(0).normal(size=(24, 3, 32, 32)).astype(np.float32)
    with pipeline.load(built.paths.root, Requirements(precision=Precision.FP32)) as model:
        assert model.contexts == 1
        expected = np.concatenate([model(images[at : at + 2]) for at in range(0, 24, 2)])
    for batching in (None, pipeline.Batching(6, 5)):
        opening = pipeline.load(
            built.paths.root, Requirements(precision=Precision.FP32), contexts=3, wait_seconds=30, batching=batching
        )
        with opening as model, ThreadPoolExecutor(8) as threads:
            assert model.contexts == 3
            found = [*threads.map(model, [images[at : at + 2] for at in range(0, 24, 2)])]
            np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)
            assert len(model.predict(photographs(3))) == 3
        with pytest.raises(RunError, match="the model is closed"):
            model(images[:2])


@pytest.mark.parametrize("batching", [None, pipeline.Batching(4, 1)], ids=["alone", "batching"])
def test_a_stream_gives_what_the_model_gives(built: Project, batching: pipeline.Batching | None) -> None:
    """As docs/deploy.md shows it: batches of several sizes go in, and the outputs come in their order."""
    spec = built.manifest().model.preprocessing  # type: ignore[union-attr]  # a finished build
    assert spec is not None
    pixels = to_input(built.pixels(built.data().validation)[:8], spec)
    batches = [pixels[:3], pixels[3:6], pixels[6:7], pixels[:3]]
    with pipeline.load(built.paths.root, batching=batching) as model:
        assert model.entry.backend is Backend.ONNXRUNTIME
        expected = [model(batch) for batch in batches]
        found = list(model.stream((batch for batch in batches), buffers=3))
        assert len(found) == len(expected)
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        left = model.stream(batches * 10)
        next(left)
    with pytest.raises(RunError, match="the model is closed"):
        next(left)
    with pytest.raises(RunError, match="the model is closed"):
        model.stream(batches)
    for thread in threading.enumerate():
        if thread.name.startswith("stream"):
            thread.join(30)  # after the batch that ran
            assert not thread.is_alive()


@pytest.mark.parametrize("overlaps", [True, False], ids=["overlap", "no-overlap"])
def test_a_stream_takes_what_the_artifact_has(
    built: Project, monkeypatch: pytest.MonkeyPatch, *, overlaps: bool
) -> None:
    """An engine's streams are its own, with the buffers that were asked for; an ONNX file runs on another thread."""
    asked: list[int] = []
    seen: list[str] = []

    def run(batch: Batch) -> Batch:
        seen.append(threading.current_thread().name)
        return np.eye(10, dtype=np.float32)[: len(batch)]

    @contextmanager
    def overlap(buffers: int) -> Iterator[InTurn]:
        asked.append(buffers)
        yield InTurn(lambda batch: np.zeros((len(batch), 10), np.float32))

    opened = nullcontext(Opened((run,), overlap if overlaps else None))
    monkeypatch.setattr("model_artifacts.deployment.loading.open_serving", lambda *_: opened)
    batches = [np.zeros((1, 3, 32, 32), np.float32)] * 3
    with pipeline.load(built.paths.root) as model:
        found = list(model.stream(batches, buffers=2))
    assert [float(outputs.max()) for outputs in found] == [0.0 if overlaps else 1.0] * 3
    assert asked == [2] * overlaps
    assert [name.startswith("stream") for name in seen] == [True] * 3 * (not overlaps)


def test_what_cannot_be_served_so_is_said(
    built: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An artifact that takes turns, or takes smaller batches, is opened all the same, and the log says so."""
    only = Requirements(precision=Precision.FP32)
    real = pipeline.resolve(built.paths.root, only)
    small = real.entry.model_copy(update={"profile": BatchRange(min=1, opt=2, max=4)})

    def one(*_: object) -> AbstractContextManager[Opened]:
        return nullcontext(Opened((lambda batch: np.eye(10, dtype=np.float32)[: len(batch)],)))

    monkeypatch.setattr("model_artifacts.deployment.loading.open_serving", one)
    monkeypatch.setattr("model_artifacts.deployment.loading.resolve_entry", lambda *_: real._replace(entry=small))
    with pipeline.load(built.paths.root, only, contexts=3, batching=pipeline.Batching(64, 0)) as model:
        assert model.contexts == 1
        assert model(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)
    assert "runs one call at a time instead of 3" in caplog.text
    assert "takes 4 images at most, which limits the batching" in caplog.text
    small = small.model_copy(update={"rows": ()})
    with pipeline.load(built.paths.root, only, batching=pipeline.Batching(4, 1e6)) as model:
        assert model(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)
    assert "joins no calls: no check has shown that its rows do not depend on each other" in caplog.text


def test_everything_that_goes_wrong_is_a_pipeline_error(tmp_path: Path) -> None:
    """Every failure is an error of one type."""
    with pytest.raises(pipeline.ArtifactError, match=r"manifest\.json is missing"), pipeline.load(tmp_path):
        pass
    assert pipeline.ArtifactError is ArtifactError


def test_names_that_are_not_there_are_attribute_errors() -> None:
    """An unknown attribute of the package is an AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        pipeline.loads  # noqa: B018 - that is the test


@pytest.mark.parametrize("made", [engine("engine", 0.1, gpu=H100), module("module", 0.1)])
def test_what_needs_a_gpu_says_so_where_it_does_not_start(
    copied: Path, monkeypatch: pytest.MonkeyPatch, made: ManifestEntry
) -> None:
    """A manifest that was resolved for a GPU that is not there gives one message, and no crash."""
    path = copied / "artifacts" / "manifest.json"
    manifest = read_record(path, Manifest)
    made = made.model_copy(update={"model": "tiny", "file": manifest.artifacts[0].file})
    write_record(path, manifest.model_copy(update={"artifacts": (made,)}))
    monkeypatch.setattr("model_artifacts.deployment.loading.this_host", lambda: machine(H100))
    with pytest.raises((RunError, UnsupportedError)), pipeline.load(path.parent):
        pass


BLOCKED = """
import sys
for name in ("torch", "torchvision", "doit", "yaml", "onnx", "ray", "pipeline"):
    sys.modules[name] = None  # how Python marks what is not there
from model_artifacts.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["host", "resolve", "show", "verify"])
def test_commands_of_deployments_need_no_building_stack(released: Release, command: str) -> None:
    """The commands of deployments work without torch, doit and yaml."""
    given = [command, *([str(released.folder)] if command != "host" else [])]
    subprocess.run([sys.executable, "-c", BLOCKED, *given], check=True, capture_output=True)  # noqa: S603 - our own


LEAN = """
import json, sys
import model_artifacts as pipeline
from PIL import Image
with pipeline.load({folder!r}) as model:
    names = [found.name for found in model.predict([Image.new("RGB", (40, 50))])]
heavy = sorted({{"torch", "torchvision", "doit", "yaml", "onnx", "sklearn", "filelock"}} & set(sys.modules))
print(json.dumps([names, heavy]))
"""


def test_neither_torch_nor_doit_is_imported(built: Project) -> None:
    """Resolving, running and preparing images import neither torch nor doit."""
    code = LEAN.format(folder=str(built.paths.root))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    names, heavy = json.loads(done.stdout)
    assert len(names) == 1
    assert heavy == []
