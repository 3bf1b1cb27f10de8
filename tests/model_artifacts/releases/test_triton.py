"""Triton's model repository: models, omissions with reasons, and configurations that Triton's code reads."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from model_artifacts.cli.main import main
from model_artifacts.errors import ArtifactError, RunError, TritonError
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import (
    Backend,
    BatchRange,
    GpuType,
    Graph,
    Manifest,
    ManifestEntry,
    Precision,
    RowCheck,
    Setting,
    Status,
    TensorSpec,
)
from model_artifacts.releases.triton import make_repository
from model_artifacts.releases.triton_models import Platform, plan_models
from model_artifacts.releases.verification import verify_release
from tests.support.deployables import engine
from tests.support.hosts import H100, L4, TRT10, TRT86
from tests.support.manifests import entry, manifest, timing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import BatchTiming
    from pipeline.planning.project import Project
    from pipeline.stages.release.stage import Release

IMAGE = TensorSpec(name="image", shape=("batch", 3, 32, 32), dtype="float32", layout="NCHW")
LOGITS = TensorSpec(name="logits", shape=("batch", 10), dtype="float32", layout="NC")
RANGE = BatchRange(min=1, opt=4, max=8)
ONE = BatchRange(min=1, opt=1, max=1)


def plan(name: str, *milliseconds: float, profile: BatchRange = RANGE, **changes: Any) -> ManifestEntry:
    """Return an engine of TensorRT for the H100."""
    return engine(name, *milliseconds, profile=profile, inputs=(IMAGE,), outputs=(LOGITS,), **changes)


def package(name: str, *milliseconds: float, **changes: Any) -> ManifestEntry:
    """Return an AOTInductor package for the H100."""
    return plan(name, *milliseconds, backend=Backend.DYNAMO_AOTI, built_for=None, **changes)


def onnx(name: str, graph: Graph, *batches: int, **changes: Any) -> ManifestEntry:
    """Return an ONNX file that ONNX Runtime ran on the processor, validated at these batch sizes and timed at 1."""
    rows = tuple(RowCheck(batch=batch, reference_l2=0.0, relative_l2=0.0) for batch in batches)
    facts = {"graph": graph, "precision": graph.precision, "inputs": (IMAGE,), "outputs": (LOGITS,), "rows": rows}
    return entry(name, timing(1, 1.0)).model_copy(update=facts | changes)


def of(*entries: ManifestEntry) -> Manifest:
    """Return a manifest of these."""
    return manifest(*entries)


def config_of(folder: Path) -> Any:
    """Return a model's configuration, as Triton's own code reads it."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


# What Triton can run.


def test_engines_of_several_gpu_types_are_one_model() -> None:
    """Triton takes the file of the GPU that it finds."""
    on_l4 = plan("l4", 2.0, gpu=L4).model_copy(update={"target": "sm89-l4-trt10.15"})
    (model,), left = plan_models(of(plan("h100", 1.0), on_l4))
    assert model.name == "m-fp16-b1-4-8-trt"
    assert model.filenames == ("model.sm89.plan", "model.sm90.plan")
    assert [item.id for item in model.entries] == [on_l4.id, "m/cpu-x86_64/h100"]
    assert left == ()


def test_of_workspaces_the_fastest_is_taken() -> None:
    """The others are named with it."""
    slow, fast = plan("ws1GiB", 1.0, 1.0, 1.0, 0.9), plan("ws2GiB", 1.0, 1.0, 1.0, 0.8)
    (model,), left = plan_models(of(slow, fast))
    assert model.entries == (fast,)
    assert [item.id for item in left] == [slow.id]
    assert f"{fast.id} takes its place" in left[0].reason


def test_two_types_of_one_compute_capability_cannot_both_be_there() -> None:
    """Triton tells GPUs apart by SM alone."""
    pcie = H100.model_copy(update={"name": "NVIDIA H100 PCIe"})
    (model,), (left,) = plan_models(of(plan("sxm", 1.0), plan("pcie", 2.0, gpu=pcie)))
    assert model.filenames == ("model.sm90.plan",)
    assert "by SM alone" in left.reason


def test_a_server_has_one_version_of_tensorrt() -> None:
    """The newest stays, although the older engine is faster."""
    new = plan("new", 2.0)
    assert new.built_for is not None
    old = plan("old", 1.0, built_for=new.built_for.model_copy(update={"version": TRT86.version}))
    (model,), (left,) = plan_models(of(old, new))
    assert model.entries == (new,)
    assert TRT10.version > ""
    assert "newer TensorRT" in left.reason


def test_precisions_batches_and_forms_are_models_of_their_own() -> None:
    """Clients choose between precisions, batch ranges and forms by the name of the model."""
    models, left = plan_models(
        of(
            plan("a", 1.0),
            plan("b", 1.0, profile=ONE),
            plan("c", 1.0, precision=Precision.INT8),
            plan("d", 1.0, precision=Precision.INT8, graph=Graph.INT8_MIXED),
            package("e", 1.0),
            onnx("f", Graph.FP32, 1, 8),
            onnx("g", Graph.INT8_CPU, 1),
        )
    )
    assert [model.name for model in models] == [
        "m-fp16-b1-4-8-aoti",
        "m-fp16-b1-4-8-trt",
        "m-fp16-b1-trt",
        "m-fp32-onnx",
        "m-int8-b1-4-8-trt",
        "m-int8-cpu-onnx",
        "m-int8-mixed-b1-4-8-trt",
    ]
    assert [model.platform for model in models[:2]] == [Platform.AOTI, Platform.TENSORRT]
    assert left == ()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (engine("rtx", 1.0, gpu=None), "none of TensorRT-RTX"),
        (plan("dynamo", 1.0, backend=Backend.DYNAMO), "no ExportedPrograms"),
        (plan("recipe", 1.0, backend=Backend.TORCH_COMPILE), "nothing to load"),
        (plan("bare", 1.0, built_for=None), "TensorRT-RTX"),
        (
            plan("stripped", 1.0, settings=(Setting(name="strip_plan", value="true", applied=True),)),
            "without its weights",
        ),
        (onnx("int8", Graph.INT8, 1), "its Q/DQ pairs are placed for TensorRT"),
        (onnx("fp32", Graph.FP32, 1, target="sm90-h100"), "without TF32"),
    ],
    ids=lambda item: item.id if isinstance(item, ManifestEntry) else "",
)
def test_what_triton_cannot_run_is_told(bad: ManifestEntry, reason: str) -> None:
    """One line each."""
    models, (left,) = plan_models(of(bad))
    assert models == ()
    assert left.id == bad.id
    assert reason in left.reason


def test_what_may_not_be_deployed_is_not_mentioned() -> None:
    """Baselines and artifacts that are not deployable are not mentioned."""
    rejected = plan("a", 1.0, status=Status.REJECTED)
    assert plan_models(of(rejected, onnx("b", Graph.FP32, 1, backend=Backend.EAGER))) == ((), ())


@pytest.mark.parametrize(
    ("profile", "largest", "preferred", "dims"),
    [
        (RANGE, 8, 4, (3, 32, 32)),
        (BatchRange(min=1, opt=1, max=8), 8, None, (3, 32, 32)),
        (ONE, 0, None, (1, 3, 32, 32)),
        (BatchRange(min=64, opt=64, max=64), 0, None, (64, 3, 32, 32)),
        (BatchRange(min=2, opt=4, max=8), 0, None, (-1, 3, 32, 32)),
    ],
    ids=lambda item: item.label if isinstance(item, BatchRange) else "",
)
def test_triton_batches_only_what_takes_any_size_up_to_the_largest(
    profile: BatchRange, largest: int, preferred: int | None, dims: tuple[int, ...]
) -> None:
    """A fixed size is part of the shape; one that takes no single image is left to the client."""
    (model,), _ = plan_models(of(plan("a", 1.0, profile=profile)))
    assert (model.max_batch, model.preferred_batch, model.dims(IMAGE)) == (largest, preferred, dims)


@pytest.mark.parametrize("timings", [(), (timing(1, 1.0),), (timing(64, 1.0),)])
def test_onnx_is_batched_as_far_as_it_was_validated(timings: tuple[BatchTiming, ...]) -> None:
    """It takes any size, and the largest that was validated counts, whether it was timed or not."""
    (model,), _ = plan_models(of(onnx("a", Graph.FP16, 1, 3, 32, timings=timings)))
    assert model.max_batch == 32


# What is written.


@pytest.fixture
def artifacts(built: Project, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a folder whose manifest has these entries, each with a file of its own."""

    def write(*entries: ManifestEntry) -> Path:
        root = tmp_path / "artifacts"
        root.mkdir()
        whole = []
        for item in entries:
            file = root / "m" / item.id.replace("/", "_")
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(item.id.encode())
            whole.append(item.model_copy(update={"file": describe_file(file, root)}))
        write_record(root / "manifest.json", built.manifest().model_copy(update={"artifacts": tuple(whole)}))
        return root

    return write


def test_an_engines_configuration_says_everything(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """Names, types, shapes, batching, instances, files by GPU, labels and warm-up."""
    root = artifacts(plan("h100", 1.0), plan("l4", 1.0, gpu=L4))
    made = make_repository(root, tmp_path / "triton")
    folder = tmp_path / "triton/m-fp16-b1-4-8-trt"
    config = config_of(folder)
    assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "tensorrt", 8)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("image", pb.TYPE_FP32, [3, 32, 32])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("logits", pb.TYPE_FP32, [10])]
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_GPU, 1)]
    assert dict(config.cc_model_filenames) == {"9.0": "model.sm90.plan", "8.9": "model.sm89.plan"}
    assert (folder / "1/model.sm89.plan").read_bytes() == b"m/cpu-x86_64/l4"
    one, largest = config.model_warmup
    assert (one.batch_size, list(one.inputs["image"].dims)) == (1, [3, 32, 32])
    assert (largest.batch_size, largest.inputs["image"].zero_data) == (8, True)
    sample = np.fromfile(folder / "warmup" / one.inputs["image"].input_data_file, dtype=np.float32)
    assert sample.size == 3 * 32 * 32
    assert 0.5 < sample.std() < 2.5
    assert [model.name for model in made.models] == ["m-fp16-b1-4-8-trt"]


def test_warm_up_of_a_rectangle(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """The warm-up's images have the height and the width of the manifest's crop."""
    wide = IMAGE.model_copy(update={"shape": ("batch", 3, 20, 36)})
    root = artifacts(plan("h100", 1.0).model_copy(update={"inputs": (wide,)}))
    manifest = read_record(root / "manifest.json", Manifest)
    assert manifest.model is not None
    spec = manifest.model.preprocessing.model_copy(update={"resize": (24, 40), "crop": (20, 36)})
    model = manifest.model.model_copy(update={"preprocessing": spec})
    write_record(root / "manifest.json", manifest.model_copy(update={"model": model}))
    make_repository(root, tmp_path / "triton")
    folder = tmp_path / "triton/m-fp16-b1-4-8-trt"
    config = config_of(folder)
    assert list(config.input[0].dims) == list(config.model_warmup[0].inputs["image"].dims) == [3, 20, 36]
    assert (folder / "warmup/image").stat().st_size == 4 * 3 * 20 * 36


def test_a_package_has_the_names_that_triton_gives_its_inputs(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """A torch module's inputs and outputs are known by their places."""
    make_repository(artifacts(package("h100", 1.0, profile=ONE)), tmp_path / "triton")
    config = config_of(tmp_path / "triton/m-fp16-b1-aoti")
    assert (config.platform, config.backend) == ("torch_aoti", "pytorch")
    assert config.default_model_filename == "model.pt2"
    assert [(t.name, list(t.dims)) for t in config.input] == [("INPUT__0", [1, 3, 32, 32])]
    assert [t.name for t in config.output] == ["OUTPUT__0"]
    assert list(config.model_warmup[0].inputs["INPUT__0"].dims) == [1, 3, 32, 32]
    assert not config.HasField("dynamic_batching")


def test_packages_of_several_gpu_types_are_one_model(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """By the GPU that each was made on."""
    on_l4 = package("l4", 1.0).model_copy(update={"gpu": GpuType(name=L4.name, compute_capability=89)})
    make_repository(artifacts(package("h100", 1.0), on_l4), tmp_path / "triton")
    config = config_of(tmp_path / "triton/m-fp16-b1-4-8-aoti")
    assert dict(config.cc_model_filenames) == {"9.0": "model.sm90.pt2", "8.9": "model.sm89.pt2"}


def test_a_build_becomes_a_repository(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny build of this machine: ONNX on the processor, in four precisions; the rest is told."""
    assert main(["triton", str(copied / "artifacts"), "--output", str(tmp_path / "triton")]) == 0
    said = capsys.readouterr().out
    found = sorted(path.name for path in (tmp_path / "triton").iterdir())
    assert found == [".model-artifact-pipeline", "tiny-fp16-onnx", "tiny-fp32-onnx", "tiny-int8-cpu-onnx"]
    assert "3 models: " in said
    assert "its Q/DQ pairs are placed for TensorRT" in said
    config = config_of(tmp_path / "triton/tiny-fp32-onnx")
    assert (config.platform, config.max_batch_size) == ("onnxruntime_onnx", 32)
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_CPU]


def test_a_repository_replaces_an_older_one(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """Models that are no longer deployable disappear."""
    root = artifacts(plan("a", 1.0), plan("b", 1.0, profile=ONE))
    make_repository(root, tmp_path / "triton")
    whole = read_record(root / "manifest.json", Manifest)
    write_record(root / "manifest.json", whole.model_copy(update={"artifacts": whole.artifacts[:1]}))
    make_repository(root, tmp_path / "triton")
    assert [path.name for path in (tmp_path / "triton").glob("[!.]*")] == ["m-fp16-b1-4-8-trt"]


# What goes wrong.


@pytest.mark.parametrize("marked", [True, False])
def test_models_of_others_stay(artifacts: Callable[..., Path], tmp_path: Path, *, marked: bool) -> None:
    """Models of other writers stay, in their repository and in ours."""
    folder = tmp_path / "triton"
    root = artifacts(plan("a", 1.0))
    if marked:
        make_repository(root, folder)
    (folder / "theirs/1").mkdir(parents=True)
    (folder / "theirs/config.pbtxt").write_text('name: "theirs"')
    with pytest.raises(TritonError, match=r"(?s)holds files that this command did not write.*theirs"):
        make_repository(root, folder)
    assert (folder / "theirs/config.pbtxt").is_file()


def test_a_release_stays_what_it_is(released: Release, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the repository lies beside it, or `verify` and `pull` would find too much."""
    assert main(["triton", str(released.folder)]) == 0
    assert f"models: {released.folder}-triton\n" in capsys.readouterr().out
    assert verify_release(released.folder)


def test_a_folder_that_is_no_repository_is_not_replaced(artifacts: Callable[..., Path]) -> None:
    """Whatever is in it stays."""
    root = artifacts(plan("a", 1.0))
    for folder in (root, root / "manifest.json"):
        with pytest.raises(TritonError, match="holds files that this command did not write"):
            make_repository(root, folder)
    assert (root / "manifest.json").is_file()


def test_a_damaged_engine_is_not_served(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """The repository of before stays."""
    root = artifacts(plan("a", 1.0))
    make_repository(root, tmp_path / "triton")
    next((root / "m").iterdir()).write_bytes(b"damaged")
    with pytest.raises(RunError, match="is damaged"):
        make_repository(root, tmp_path / "triton")
    assert (tmp_path / "triton/m-fp16-b1-4-8-trt/1/model.sm90.plan").read_bytes() == b"m/cpu-x86_64/a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "triton"]


def test_nothing_to_serve_is_an_error_with_the_reasons(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """A build with TensorRT-RTX alone has nothing for Triton, and the error lists the reasons."""
    root = artifacts(engine("rtx", 1.0, gpu=None))
    with pytest.raises(TritonError, match=r"(?s)can serve no artifact.*none of TensorRT-RTX"):
        make_repository(root, tmp_path / "triton")
    assert not (tmp_path / "triton").exists()


def replaced(folder: Path, old: str, new: str) -> None:
    """Change a configuration."""
    config = folder / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "name": (lambda folder: replaced(folder, 'name: "m-fp16', 'name: "n-fp16'), "name"),
    "batch": (lambda folder: replaced(folder, "max_batch_size: 8", "max_batch_size: 9"), "largest batch"),
    "input": (lambda folder: replaced(folder, "dims: 32", "dims: 33"), "inputs"),
    "type": (lambda folder: replaced(folder, "TYPE_FP32", "TYPE_FP16"), "inputs"),
    "output": (lambda folder: replaced(folder, 'name: "logits"', 'name: "logit"'), "outputs"),
    "platform": (lambda folder: replaced(folder, "tensorrt_plan", "onnxruntime_onnx"), "platform"),
    "file": (lambda folder: (folder / "1/model.sm90.plan").rename(folder / "1/model.plan"), "files"),
    "bytes": (lambda folder: (folder / "1/model.sm90.plan").write_bytes(b"x"), r"digest of model\.sm90\.plan"),
    "gpu": (lambda folder: replaced(folder, 'key: "9.0"', 'key: "9.1"'), "files by GPU"),
    "sample": (lambda folder: (folder / "warmup/image").write_bytes(b"1234"), "bytes of image"),
    "syntax": (
        lambda folder: replaced(folder, "max_batch_size: 8", "max_batch_size: eight"),
        "is no valid configuration",
    ),
    "field": (lambda folder: replaced(folder, "max_batch_size", "maximum_batch_size"), "is no valid configuration"),
}


@pytest.mark.parametrize("how", FAULTS)
def test_what_was_written_is_held_against_the_manifest(
    artifacts: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whatever of it is wrong, no repository is made."""
    import model_artifacts.releases.triton as module  # noqa: PLC0415 - to spoil what it writes

    genuine = module._write_model  # noqa: SLF001 - the same
    spoil, message = FAULTS[how]

    def spoiled(folder: Path, *arguments: Any) -> None:
        genuine(folder, *arguments)
        spoil(folder)

    monkeypatch.setattr(module, "_write_model", spoiled)
    with pytest.raises(ArtifactError, match=message):
        make_repository(artifacts(plan("a", 1.0)), tmp_path / "triton")
    assert not (tmp_path / "triton").exists()


def test_a_repository_is_made_from_a_release_too(copied: Path, tmp_path: Path) -> None:
    """Wherever it lies."""
    shutil.copytree(copied / "artifacts", tmp_path / "elsewhere")
    assert make_repository(tmp_path / "elsewhere", tmp_path / "triton").models


def test_what_is_not_in_the_folder_is_left_out(released: Release, tmp_path: Path) -> None:
    """As after a pull for one host: the others are listed with the reason."""
    kept, *others = (item for item in released.manifest.artifacts if item.file)
    for item in others:
        assert item.file is not None
        (released.folder / item.file.path).unlink()
    made = make_repository(released.folder, tmp_path / "triton")
    assert [item.id for model in made.models for item in model.entries] == [kept.id]
    told = {item.id: item.reason for item in made.left_out}
    assert told == {item.id: "its file is not in this folder" for item in others}
