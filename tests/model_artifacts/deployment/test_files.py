"""Files of an artifact: which ones it needs, and which artifacts of a folder lack one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from model_artifacts.deployment.files import entry_files, unusable
from model_artifacts.deployment.loading import load, read_manifest, resolve
from model_artifacts.deployment.requirements import Requirements
from model_artifacts.errors import ArtifactError, RecordError, RunError
from model_artifacts.host.hashes import describe_bytes, describe_file
from model_artifacts.host.record_files import write_record
from model_artifacts.records import (
    Backend,
    FileRecord,
    Graph,
    Interpolation,
    KernelSpecialization,
    ManifestEntry,
    ManifestModel,
    ManifestPart,
    Precision,
    Preprocessing,
    Recipe,
    Setting,
    Variant,
    WeightsOrigin,
)
from model_artifacts.releases.store import pull, push
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.stage import make_release
from tests.support.deployables import engine, machine
from tests.support.hosts import H100
from tests.support.manifests import entry, manifest

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.sessions.opening import ArtifactFile

ENGINE, CACHE, ONNX = (describe_bytes(f"m/{name}", name.encode()) for name in ("engine", "cache", "onnx"))
STRIPPED = engine(
    "stripped",
    0.1,
    file=ENGINE,
    runtime_cache=CACHE,
    weights=ONNX,
    settings=(Setting(name="strip_plan", value="on", applied=True),),
)
MODEL = ManifestModel(
    name="m",
    factory="a:b",
    weights_origin=WeightsOrigin.SAMPLE,
    weights_detail="sample",
    weights_sha256="0" * 64,
    class_names=None,
    preprocessing=Preprocessing(resize=8, crop=8, interpolation=Interpolation.BILINEAR, mean=(0.5,), std=(0.5,)),
    images="digits",
    labelled=False,
    reference_top1=None,
)


ABSENT = "was not pulled: its file is missing"


def put(root: Path, *files: FileRecord) -> None:
    """Write files whose contents are their names."""
    for file in files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).write_bytes(file.path.rpartition("/")[2].encode())


def recipe(root: Path) -> ManifestEntry:
    """Write a recipe that names weights, and return its entry."""
    variant = Variant(model="m", target="gpu", backend=Backend.TORCH_COMPILE, precision=Precision.FP16)
    made = Recipe(
        variant=variant,
        factory="a:b",
        replaced_head=None,
        classes=10,
        weights=ONNX,
        input_shape=(3, 8, 8),
        warm_up=(),
        settings=(),
        libraries=(),
    )
    write_record(root / "m/recipe.json", made)
    file = describe_bytes("m/recipe.json", (root / "m/recipe.json").read_bytes())
    return entry("recipe", backend=Backend.TORCH_COMPILE, file=file)


def test_an_artifact_needs_its_cache_and_its_weights(tmp_path: Path) -> None:
    """What `release` copies and `pull --for-host` fetches is what `load` opens."""
    assert entry_files(STRIPPED, tmp_path) == (ENGINE, CACHE, ONNX)
    assert entry_files(entry("plain", file=ONNX), tmp_path) == (ONNX,)
    assert entry_files(entry("none", file=None), tmp_path) == ()
    made = recipe(tmp_path)
    assert entry_files(made, tmp_path) == (made.file, ONNX)


def test_a_recipe_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The weights that it names are unknown."""
    made = entry("recipe", backend=Backend.TORCH_COMPILE, file=ENGINE)
    with pytest.raises(RecordError, match="engine is missing"):
        entry_files(made, tmp_path)


@pytest.mark.parametrize("gone", [ENGINE, ONNX], ids=lambda file: file.path)
def test_an_artifact_without_one_of_its_files_is_incomplete(tmp_path: Path, gone: FileRecord) -> None:
    """Each file counts that it does not run without, that behind a link, too."""
    put(tmp_path, ENGINE, CACHE, ONNX)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / gone.path).rename(tmp_path / "elsewhere/blob")
    (tmp_path / gone.path).symlink_to(tmp_path / "elsewhere/blob")
    assert unusable(tmp_path, manifest(STRIPPED)) == {}
    (tmp_path / "elsewhere/blob").unlink()
    assert unusable(tmp_path, manifest(STRIPPED)) == {STRIPPED.id: ABSENT}


def test_a_recipe_without_its_weights_is_incomplete(tmp_path: Path) -> None:
    """The weights are named in the recipe alone."""
    made = recipe(tmp_path)
    assert unusable(tmp_path, manifest(made)) == {made.id: ABSENT}
    put(tmp_path, ONNX)
    assert unusable(tmp_path, manifest(made)) == {}


@pytest.mark.parametrize(("factory", "is_there"), [("json.decoder:JSONDecoder", True), ("nowhere.models:make", False)])
def test_a_recipe_needs_the_models_factory(tmp_path: Path, factory: str, *, is_there: bool) -> None:
    """Without the factory's package a recipe is passed over, and other artifacts are not."""
    made, plain = recipe(tmp_path), entry("plain", file=ONNX)
    put(tmp_path, ONNX)
    model = MODEL.model_copy(update={"factory": factory})
    reason = "calls the model's factory nowhere.models:make, which is not installed here"
    found = unusable(tmp_path, manifest(made, plain).model_copy(update={"model": model}))
    assert found == ({} if is_there else {made.id: reason})


def test_an_engine_without_its_weights_is_opened_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` hands over the ONNX file, once its digest holds."""
    opened: list[ArtifactFile] = []

    def refuse(file: ArtifactFile, *_: object) -> None:
        opened.append(file)
        raise ArtifactError("opened")

    monkeypatch.setattr("model_artifacts.deployment.loading.open_serving", refuse)
    monkeypatch.setattr("model_artifacts.deployment.loading.this_host", lambda: machine(H100))
    write_record(tmp_path / "manifest.json", manifest(STRIPPED).model_copy(update={"model": MODEL}))
    put(tmp_path, ENGINE, CACHE, ONNX)
    with pytest.raises(ArtifactError, match="opened"), load(tmp_path):
        pass
    assert [(file.path, file.weights, file.runtime_cache) for file in opened] == [
        (tmp_path / ENGINE.path, tmp_path / ONNX.path, b"cache")
    ]
    (tmp_path / ONNX.path).write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match=r"m/onnx is damaged, or is not the recorded file"), load(tmp_path):
        pass
    (tmp_path / ONNX.path).unlink()
    with pytest.raises(ArtifactError, match="stripped: was not pulled: its file is missing"), load(tmp_path):
        pass


@pytest.mark.parametrize("damage", [None, b"other kernels"], ids=["missing", "damaged"])
def test_kernels_that_did_not_arrive_are_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    """They save some seconds of compilation; without them the engine is opened all the same, with a warning."""
    opened: list[ArtifactFile] = []

    def refuse(file: ArtifactFile, *_: object) -> None:
        opened.append(file)
        raise ArtifactError("opened")

    monkeypatch.setattr("model_artifacts.deployment.loading.open_serving", refuse)
    monkeypatch.setattr("model_artifacts.deployment.loading.this_host", lambda: machine(H100))
    lazy = STRIPPED.model_copy(update={"kernel_specialization": KernelSpecialization.LAZY})
    write_record(tmp_path / "manifest.json", manifest(lazy).model_copy(update={"model": MODEL}))
    put(tmp_path, ENGINE, CACHE, ONNX)
    if damage:
        (tmp_path / CACHE.path).write_bytes(damage)
    else:
        (tmp_path / CACHE.path).unlink()
    with pytest.raises(ArtifactError, match="opened"), load(tmp_path):
        pass
    assert [(file.path, file.runtime_cache) for file in opened] == [(tmp_path / ENGINE.path, None)]
    assert [file.specialization for file in opened] == [KernelSpecialization.LAZY]
    assert "its kernels are compiled anew" in caplog.text


def test_what_an_artifact_needs_travels_with_it(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release, a pull for one host and `resolve` go by the same files: an engine without its weights has them."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    built = project.manifest()
    plan = next(item.file for item in built.artifacts if item.backend is Backend.TENSORRT and item.file)
    files = {"file": plan, "runtime_cache": None, "weights": project.onnx(Graph.FP16).file}
    made = STRIPPED.model_copy(update={"model": "tiny", **files})
    other = next(item for item in built.artifacts if item.id.endswith("onnxruntime-fp32"))
    monkeypatch.setattr(Project, "manifest", lambda _: built.model_copy(update={"artifacts": (made, other)}))
    for module in ("deployment.loading", "releases.store"):
        monkeypatch.setattr(f"model_artifacts.{module}.this_host", lambda: machine(H100))
    push(str(tmp_path / "store"), make_release(project, allow_dirty=True).folder)
    pulled = pull(str(tmp_path / "store"), tmp_path / "models", for_host=Requirements())
    assert pulled.entry == made == resolve(tmp_path / "models").entry
    there = {path.relative_to(tmp_path / "models").as_posix() for path in (tmp_path / "models/tiny").rglob("*.*")}
    assert {path for path in there if "." in path.rpartition("/")[2]} == {file.path for file in made.files}
    for file in made.files:
        assert describe_file(tmp_path / "models" / file.path, tmp_path / "models") == file


def test_a_model_without_artifacts_has_a_plain_name_too(tmp_path: Path) -> None:
    """Its name is listed, and asked for."""
    plain = manifest().model_copy(update={"model": MODEL.model_copy(update={"name": "../m"})})
    part = ManifestPart(
        name="\x1b[2J", key=plain.key, built_at=plain.built_at, toolchain=(), git=None, host="", model=None
    )
    several = plain.model_copy(update={"model": None, "models": (part, part.model_copy(update={"name": "m"}))})
    for wrong, shown in ((plain, "'../m'"), (several, "'\\x1b[2J'")):
        write_record(tmp_path / "manifest.json", wrong)
        with pytest.raises(RunError, match=re.escape(f"got:      {shown}")):
            read_manifest(tmp_path)
