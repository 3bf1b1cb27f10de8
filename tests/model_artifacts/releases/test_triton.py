"""Triton's model repositories: folders, versions, and configurations that Triton's code reads."""

from __future__ import annotations

import json
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
    AxisRange,
    GpuType,
    Manifest,
    ManifestEntry,
    Preprocessing,
    TensorSpec,
)
from model_artifacts.releases.triton import make_repositories
from model_artifacts.releases.verification import verify_release
from tests.support.deployables import engine
from tests.support.hosts import L4
from tests.support.loads import LOAD
from tests.support.manifests import timing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.planning.project import Project
    from pipeline.stages.release.stage import Release
from pipeline.adapters.onnx_ends import inputs_of, outputs_of
from tests.support.ends import PIXELS_TO_TOP5, SPEC
from tests.support.triton import H100_MODEL, IMAGE, LOGITS, ONE, package, plan


def config_of(folder: Path) -> Any:
    """Return a model's configuration, as Triton's own code reads it."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


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
        manifest = built.manifest()
        assert manifest.model is not None
        own = manifest.model.model_copy(update={"name": whole[0].model if whole else manifest.model.name})
        write_record(root / "manifest.json", manifest.model_copy(update={"model": own, "artifacts": tuple(whole)}))
        return root

    return write


def test_an_engines_configuration_says_everything(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """Names, types, shapes, batching, instances, files by GPU, labels and warm-up."""
    timings = (timing(1, 1.0), timing(4, 2.0), timing(8, 5.0))
    root = artifacts(plan("h100", timings=timings), plan("l4", 1.0, gpu=L4))
    made = make_repositories(root, tmp_path / "triton")
    folder = tmp_path / "triton/sm90/m-fp16-b1-4-8-trt"
    config = config_of(folder)
    assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "tensorrt", 8)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("image", pb.TYPE_FP32, [3, 32, 32])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("logits", pb.TYPE_FP32, [10])]
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_GPU, 1)]
    assert dict(config.cc_model_filenames) == {"9.0": "model.sm90.plan"}
    assert config.default_model_filename == ""
    assert (folder / "1/model.sm90.plan").read_bytes() == b"m/cpu-x86_64/h100"
    other = tmp_path / "triton/sm89/m-fp16-b1-4-8-trt"
    assert dict(config_of(other).cc_model_filenames) == {"8.9": "model.sm89.plan"}
    assert (other / "1/model.sm89.plan").read_bytes() == b"m/cpu-x86_64/l4"
    one, largest = config.model_warmup
    assert (one.batch_size, list(one.inputs["image"].dims)) == (1, [3, 32, 32])
    assert (largest.batch_size, largest.inputs["image"].zero_data) == (8, True)
    sample = np.fromfile(folder / "warmup" / one.inputs["image"].input_data_file, dtype=np.float32)
    assert sample.size == 3 * 32 * 32
    assert 0.5 < sample.std() < 2.5
    assert [item.model.path for item in made.models] == ["sm89/m-fp16-b1-4-8-trt", "sm90/m-fp16-b1-4-8-trt"]
    assert made.hosts == ("sm89", "sm90")


def test_pixels_and_classes_have_their_own_types(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """A model with other ends has another name, its own types and shapes, and ranks instead of labels."""
    inputs, outputs = inputs_of(PIXELS_TO_TOP5, SPEC, (IMAGE,)), outputs_of(PIXELS_TO_TOP5, (LOGITS,))
    ended = plan("ended", 0.5).model_copy(update={"inputs": inputs, "outputs": outputs, "io": PIXELS_TO_TOP5})
    made = make_repositories(artifacts(plan("plain", 1.0), ended), tmp_path / "triton")
    name = "sm90/m-fp16-b1-4-8-trt-uint8-top5"
    assert [item.model.path for item in made.models] == [H100_MODEL, name]
    config = config_of(tmp_path / "triton" / name)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("pixels", pb.TYPE_UINT8, [32, 32, 3])]
    assert [(t.name, t.data_type, list(t.dims), t.label_filename) for t in config.output] == [
        ("probabilities", pb.TYPE_FP32, [5], ""),
        ("indices", pb.TYPE_INT32, [5], ""),
    ]
    sample = config.model_warmup[0].inputs["pixels"]
    assert (sample.data_type, list(sample.dims)) == (pb.TYPE_UINT8, [32, 32, 3])
    assert (tmp_path / "triton" / name / "warmup" / sample.input_data_file).stat().st_size == 32 * 32 * 3


def test_a_client_finds_the_preprocessing(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """Triton's clients read the artifact, its digest and the preprocessing in the model's parameters."""
    root = artifacts(plan("h100", 1.0))
    facts = read_record(root / "manifest.json", Manifest)
    assert facts.model is not None
    assert facts.artifacts[0].file is not None
    make_repositories(root, tmp_path / "triton")
    found = {name: item.string_value for name, item in config_of(tmp_path / f"triton/{H100_MODEL}").parameters.items()}
    assert found.keys() == {"artifact", "sha256", "preprocessing"}
    assert (found["artifact"], found["sha256"]) == ("m/cpu-x86_64/h100", facts.artifacts[0].file.sha256)
    assert Preprocessing.model_validate_json(found["preprocessing"]) == facts.model.preprocessing
    assert json.loads(found["preprocessing"]).keys() == Preprocessing.model_fields.keys()
    assert json.loads(found["preprocessing"])["order"] == "rgb"


def test_a_label_is_one_line(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """Triton counts the lines of labels, so that a line break in a name may not move the names after it."""
    root = artifacts(plan("h100", 1.0))
    whole = read_record(root / "manifest.json", Manifest)
    assert whole.model is not None
    names = ("a\nb", "c\u2028d\r\ne", "f  g", *map(str, range(3, 10)))
    write_record(
        root / "manifest.json",
        whole.model_copy(update={"model": whole.model.model_copy(update={"class_names": names})}),
    )
    make_repositories(root, tmp_path / "triton")
    labels = (tmp_path / f"triton/{H100_MODEL}/labels.txt").read_text()
    assert labels == "a b\nc d e\nf  g\n3\n4\n5\n6\n7\n8\n9\n"


def test_another_file_is_another_version(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """A model keeps its version as long as its file is the same; servers see another file as a newer version."""
    root = artifacts(plan("a", 1.0), plan("b", 1.0, profile=ONE))
    file = root / "m/m_cpu-x86_64_a"

    def versions(version: int | None = None) -> dict[str, int]:
        made = make_repositories(root, tmp_path / "triton", version)
        there = {path.parent.name: int(path.name) for path in (tmp_path / "triton").glob("sm90/*/[0-9]*")}
        assert there == {item.model.name: item.version for item in made.models}
        return there

    def changed(content: bytes) -> None:
        file.write_bytes(content)
        whole = read_record(root / "manifest.json", Manifest)
        first = whole.artifacts[0].model_copy(update={"file": describe_file(file, root)})
        write_record(root / "manifest.json", whole.model_copy(update={"artifacts": (first, *whole.artifacts[1:])}))

    name, other = "m-fp16-b1-4-8-trt", "m-fp16-b1-trt"
    assert versions() == {name: 1, other: 1}
    assert versions() == {name: 1, other: 1}
    changed(b"new")
    assert versions() == {name: 2, other: 1}
    assert versions(12) == {name: 12, other: 12}
    changed(b"newer")
    assert versions() == {name: 13, other: 12}
    assert config_of(tmp_path / f"triton/{H100_MODEL}").name == name


def test_warm_up_of_a_rectangle(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """The warm-up's images have the height and the width of the manifest's crop."""
    wide = IMAGE.model_copy(update={"shape": ("batch", 3, 20, 36)})
    root = artifacts(plan("h100", 1.0).model_copy(update={"inputs": (wide,)}))
    manifest = read_record(root / "manifest.json", Manifest)
    assert manifest.model is not None
    assert manifest.model.preprocessing is not None
    spec = manifest.model.preprocessing.model_copy(update={"resize": (24, 40), "crop": (20, 36)})
    model = manifest.model.model_copy(update={"preprocessing": spec})
    write_record(root / "manifest.json", manifest.model_copy(update={"model": model}))
    make_repositories(root, tmp_path / "triton")
    folder = tmp_path / "triton/sm90/m-fp16-b1-4-8-trt"
    config = config_of(folder)
    assert list(config.input[0].dims) == list(config.model_warmup[0].inputs["image"].dims) == [3, 20, 36]
    assert (folder / "warmup/image").stat().st_size == 4 * 3 * 20 * 36


def test_warm_up_of_free_axes(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """Axes are free in the configuration; the warm-up's images have the size that predict prepares."""
    ranges = (AxisRange(name="height", min=24, opt=40, max=48), AxisRange(name="width", min=24, opt=40, max=64))
    sized = IMAGE.model_copy(update={"shape": ("batch", 3, "height", "width"), "ranges": ranges})
    plain = plan("h100", 1.0)
    maps = plain.outputs[0].model_copy(update={"shape": ("batch", 10, "height", "logits_axis_3")})
    entry = plain.model_copy(update={"inputs": (sized,), "outputs": (maps,)})
    make_repositories(artifacts(entry), tmp_path / "triton")
    config = config_of(tmp_path / "triton/sm90/m-fp16-b1-4-8-trt")
    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.output[0].dims) == [10, -1, -1]
    assert list(config.model_warmup[0].inputs["image"].dims) == [3, 32, 32]


def test_arrays_of_any_length_and_their_tags(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """Arrays have no size of their own: the warm-up has the one that the engine is tuned for. Outputs may follow."""
    ranges = (AxisRange(name="sequence", min=4, opt=12, max=24),)
    tokens = TensorSpec(name="tokens", shape=("batch", "sequence"), dtype="int64", layout="NC", ranges=ranges)
    tags = TensorSpec(name="tags", shape=("batch", "sequence", 6), dtype="float32", layout="NCL")
    root = artifacts(plan("h100", 1.0).model_copy(update={"inputs": (tokens,), "outputs": (tags,)}))
    manifest = read_record(root / "manifest.json", Manifest)
    assert manifest.model is not None
    model = manifest.model.model_copy(update={"preprocessing": None})
    write_record(root / "manifest.json", manifest.model_copy(update={"model": model}))
    make_repositories(root, tmp_path / "triton")
    config = config_of(tmp_path / "triton/sm90/m-fp16-b1-4-8-trt")
    assert list(config.input[0].dims) == [-1]
    assert list(config.output[0].dims) == [-1, 6]
    assert list(config.model_warmup[0].inputs["tokens"].dims) == [12]


def test_a_package_has_the_names_that_triton_gives_its_inputs(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """A torch module's inputs and outputs are known by their places."""
    make_repositories(artifacts(package("h100", 1.0, profile=ONE)), tmp_path / "triton")
    config = config_of(tmp_path / "triton/sm90/m-fp16-b1-aoti")
    assert (config.platform, config.backend) == ("torch_aoti", "pytorch")
    assert config.default_model_filename == "model.pt2"
    assert [(t.name, list(t.dims)) for t in config.input] == [("INPUT__0", [1, 3, 32, 32])]
    assert [t.name for t in config.output] == ["OUTPUT__0"]
    assert list(config.model_warmup[0].inputs["INPUT__0"].dims) == [1, 3, 32, 32]
    assert not config.HasField("dynamic_batching")


def test_packages_lie_in_the_repository_of_their_gpu(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """By the GPU that each was made on."""
    on_l4 = package("l4", 1.0).model_copy(update={"gpu": GpuType(name=L4.name, compute_capability=89)})
    make_repositories(artifacts(package("h100", 1.0), on_l4), tmp_path / "triton")
    for host, name in (("sm90", b"m/cpu-x86_64/h100"), ("sm89", b"m/cpu-x86_64/l4")):
        folder = tmp_path / f"triton/{host}/m-fp16-b1-4-8-aoti"
        assert not config_of(folder).cc_model_filenames
        assert (folder / "1/model.pt2").read_bytes() == name


def test_a_build_becomes_a_repository(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny build of this machine: ONNX on the processor; what is not deployable there is not told of."""
    assert main(["triton", str(copied / "artifacts"), "--output", str(tmp_path / "triton")]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "triton").iterdir()) == [".model-artifact-pipeline", "cpu"]
    found = sorted(path.name for path in (tmp_path / "triton/cpu").iterdir())
    assert found == ["tiny-fp16-onnx", "tiny-fp32-onnx", "tiny-int8-cpu-onnx"]
    assert "3 models; " in said
    assert f"tritonserver --model-repository={tmp_path / 'triton/cpu'}\n" in said
    assert "Q/DQ" not in said
    config = config_of(tmp_path / "triton/cpu/tiny-fp32-onnx")
    assert (config.platform, config.max_batch_size) == ("onnxruntime_onnx", 32)
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_CPU]


def test_a_repository_replaces_an_older_one(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """Models that are no longer deployable disappear."""
    root = artifacts(plan("a", 1.0), plan("b", 1.0, profile=ONE))
    make_repositories(root, tmp_path / "triton")
    whole = read_record(root / "manifest.json", Manifest)
    write_record(root / "manifest.json", whole.model_copy(update={"artifacts": whole.artifacts[:1]}))
    make_repositories(root, tmp_path / "triton")
    assert [path.name for path in (tmp_path / "triton").glob("sm90/*")] == ["m-fp16-b1-4-8-trt"]


# What goes wrong.


@pytest.mark.parametrize("place", ["theirs", "sm90/theirs"])
@pytest.mark.parametrize("marked", [True, False])
def test_models_of_others_stay(artifacts: Callable[..., Path], tmp_path: Path, place: str, *, marked: bool) -> None:
    """Models of other writers stay, in their repository and in ours."""
    folder = tmp_path / "triton"
    root = artifacts(plan("a", 1.0))
    if marked:
        make_repositories(root, folder)
    (folder / place / "1").mkdir(parents=True)
    (folder / place / "config.pbtxt").write_text('name: "theirs"')
    found = place if marked else place.partition("/")[0]
    with pytest.raises(TritonError, match=rf"(?s)holds files that this command did not write.*got: +{found}\n"):
        make_repositories(root, folder)
    assert (folder / place / "config.pbtxt").is_file()


def test_a_repository_of_before_is_replaced(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """A repository without folders for kinds of hosts, as earlier versions wrote it, gives way."""
    folder = tmp_path / "triton"
    (folder / "m-fp16-onnx/1").mkdir(parents=True)
    (folder / ".model-artifact-pipeline").write_text("m-fp16-onnx\n")
    make_repositories(artifacts(plan("a", 1.0)), folder)
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["sm90"]


def test_a_release_stays_what_it_is(released: Release, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the repository lies beside it, or `verify` and `pull` would find too much."""
    assert main(["triton", str(released.folder)]) == 0
    assert f"--model-repository={released.folder}-triton/cpu\n" in capsys.readouterr().out
    assert verify_release(released.folder)


def test_a_folder_that_is_no_repository_is_not_replaced(artifacts: Callable[..., Path]) -> None:
    """Whatever is in it stays."""
    root = artifacts(plan("a", 1.0))
    for folder in (root, root / "manifest.json"):
        with pytest.raises(TritonError, match="holds files that this command did not write"):
            make_repositories(root, folder)
    assert (root / "manifest.json").is_file()


def test_a_damaged_engine_is_not_served(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """The repository of before stays."""
    root = artifacts(plan("a", 1.0))
    make_repositories(root, tmp_path / "triton")
    next((root / "m").iterdir()).write_bytes(b"damaged")
    with pytest.raises(RunError, match="is damaged"):
        make_repositories(root, tmp_path / "triton")
    assert (tmp_path / "triton/sm90/m-fp16-b1-4-8-trt/1/model.sm90.plan").read_bytes() == b"m/cpu-x86_64/a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "triton"]


def test_nothing_to_serve_is_an_error_with_the_reasons(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    """A build with TensorRT-RTX alone has nothing for Triton, and the error lists the reasons."""
    root = artifacts(engine("rtx", 1.0, gpu=None))
    with pytest.raises(TritonError, match=r"(?s)can serve no artifact.*none of TensorRT-RTX"):
        make_repositories(root, tmp_path / "triton")
    assert not (tmp_path / "triton").exists()


def test_settings_that_won_under_load_are_written(
    artifacts: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instances, batching and CUDA graphs are those of `doit load`, and the file and the command say so."""
    root = artifacts(plan("h100", 1.0, load=LOAD))
    assert main(["triton", str(root), "--output", str(tmp_path / "triton")]) == 0
    origin = "instances, batching and CUDA graphs: `doit load`: 1,234 images/s within p99 2 ms"
    assert origin in capsys.readouterr().out
    folder = tmp_path / "triton/sm90/m-fp16-b1-4-8-trt"
    config = config_of(folder)
    assert (folder / "config.pbtxt").read_text().splitlines()[1].startswith(f"# {origin}")
    assert [group.count for group in config.instance_group] == [3]
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.optimization.cuda.graphs
    assert [spec.batch_size for spec in config.optimization.cuda.graph_spec] == [1, 2, 3, 4]
    assert main(["triton", str(root), "--output", str(tmp_path / "triton"), "--p99-ms", "10"]) == 0
    assert [group.count for group in config_of(folder).instance_group] == [2]


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
    "version": (lambda folder: (folder / "2").mkdir(), "versions"),
    "parameters": (lambda folder: replaced(folder, 'key: "sha256"', 'key: "sha1"'), "parameters"),
    "preferred": (
        lambda folder: replaced(folder, "dynamic_batching {", "dynamic_batching {\n  preferred_batch_size: 4"),
        "preferred batches",
    ),
    "instances": (lambda folder: replaced(folder, "count: 1", "count: 2"), "instances"),
    "delay": (
        lambda folder: replaced(folder, "dynamic_batching {", "dynamic_batching {\n max_queue_delay_microseconds: 4"),
        "longest delay",
    ),
    "graphs": (
        lambda folder: replaced(
            folder, "dynamic_batching {", "optimization { cuda { graphs: true } }\ndynamic_batching {"
        ),
        "CUDA graphs",
    ),
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
        make_repositories(artifacts(plan("a", 1.0)), tmp_path / "triton")
    assert not (tmp_path / "triton").exists()


def test_a_repository_is_made_from_a_release_too(copied: Path, tmp_path: Path) -> None:
    """Wherever it lies."""
    shutil.copytree(copied / "artifacts", tmp_path / "elsewhere")
    assert make_repositories(tmp_path / "elsewhere", tmp_path / "triton").models


def test_what_is_not_in_the_folder_is_left_out(released: Release, tmp_path: Path) -> None:
    """As after a pull for one host: the others are listed with the reason."""
    kept, *others = (item for item in released.manifest.artifacts if item.file)
    for item in others:
        assert item.file is not None
        (released.folder / item.file.path).unlink()
    made = make_repositories(released.folder, tmp_path / "triton")
    assert [model.entry.id for model, _ in made.models] == [kept.id]
    told = {item.id: item.reason for item in made.left_out}
    assert told == {item.id: "was not pulled: its file is missing" for item in others}
