"""The origin of the weights: checkpoints, factories, torchvision, and the sample model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.error import URLError

import pytest
import torch
from torchvision.models import resnet18

from model_artifacts.errors import SourceError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.records import Interpolation, WeightsOrigin
from model_artifacts.sessions.torch_model import read_weights
from pipeline.planning.project import Project
from pipeline.records import ImagesOrigin
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.source.stage import make_source
from tests.support import factories, tiny_model
from tests.support.hub_networks import IMAGENET, VIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESNET = "torchvision.models:resnet18"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of downloads that is empty, and a network that answers nothing."""

    def download(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tmp_path / "hub"


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    """Hear the pipeline's own logger, whatever the root logger was set to."""
    caplog.set_level(logging.INFO, logger="pipeline")


def cache(hub: Path, data: bytes | None = None) -> Path:
    """Put a checkpoint of ResNet18 where torch's hub would, or other bytes."""
    file = hub / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    if data is None:
        torch.manual_seed(5)
        torch.save(resnet18().state_dict(), file)
    else:
        file.write_bytes(data)
    return file


def project_of(write_config: Callable[[str], Path], factory: str, weights: str) -> Project:
    """Return a project with this factory and these weights."""
    return Project.load(write_config(factories.configuration(factory, weights=weights)), STAGES)


def test_factory_weights(write_config: Callable[[str], Path]) -> None:
    """`factory` keeps the weights that the factory makes, and says so."""
    record = make_source(project_of(write_config, "tests.support.factories:three_classes", "factory"))

    assert (record.origin, record.classes) == (WeightsOrigin.FACTORY, 3)
    assert "as tests.support.factories:three_classes makes them, seed 0" in record.origin_detail


def test_record_is_written(write_config: Callable[[str], Path]) -> None:
    """The record on disk is the one returned, and vouches for the weights beside it."""
    project = project_of(write_config, "tests.support.tiny_model:make", "factory")

    record = make_source(project)

    assert project.source() == record
    assert record.weights.sha256 == sha256_of(project.paths.weights)


def test_parameters_are_counted(write_config: Callable[[str], Path]) -> None:
    """The number of parameters is that of the network, its statistics left out."""
    record = make_source(project_of(write_config, "tests.support.factories:three_classes", "factory"))

    assert record.parameters == 48 * 3 + 3


def test_checkpoint(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """A file's weights become the model's."""
    torch.manual_seed(3)
    state = tiny_model.make().state_dict()
    torch.save({"state_dict": state}, tmp_path / "mine.pth")
    project = project_of(write_config, "tests.support.tiny_model:make", str(tmp_path / "mine.pth"))

    record = make_source(project)

    assert (record.origin, record.origin_detail) == (WeightsOrigin.CHECKPOINT, "mine.pth, key state_dict")
    stored = read_weights(project.paths.weights)
    assert all(torch.equal(stored[name], tensor) for name, tensor in state.items())


def test_checkpoint_of_another_model(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """A file whose weights do not fit is an error that names the file."""
    torch.save(factories.three_classes().state_dict(), tmp_path / "mine.pth")
    project = project_of(write_config, "tests.support.tiny_model:make", str(tmp_path / "mine.pth"))

    with pytest.raises(SourceError, match=r"(?s)do not fit the model.*mine\.pth"):
        make_source(project)


def test_nothing_is_written_on_failure(write_config: Callable[[str], Path]) -> None:
    """A source that cannot be had leaves no files."""
    project = project_of(write_config, "tests.support.tiny_model:make", "gone.pth")

    with pytest.raises(SourceError, match="does not exist"):
        make_source(project)

    assert not project.paths.root.exists()


def test_tied_weights_are_stored(write_config: Callable[[str], Path]) -> None:
    """A model that has one layer under two names is stored and restored like any other."""
    project = project_of(write_config, "tests.support.factories:Tied", "factory")

    make_source(project)

    restored = restore_model(project).state_dict()
    assert torch.equal(restored["first.weight"], restored["second.weight"])


@pytest.mark.parametrize("weights", ["factory", "sample"])
def test_model_with_another_input(write_config: Callable[[str], Path], weights: str) -> None:
    """A model that cannot take the images is a source error, whatever its weights."""
    project = project_of(write_config, "tests.support.factories:greyscale", weights)

    with pytest.raises(SourceError, match=r"(?s)does not take a batch of images.*data: \{tensors: FILE\.npz\}"):
        make_source(project)


# Arguments, timm and Hugging Face

HUB = "tests.support.hub_networks"


def hub_project(write_config: Callable[[str], Path], call: str, weights: str = "factory") -> Project:
    """Return a project of a factory with arguments, whose preprocessing comes with the network."""
    lines = factories.configuration(weights=weights).splitlines()
    lines[0] = f"model: {{name: tiny, weights: '{weights}', factory: '{HUB}:{call}}}"
    lines[1] = "preprocessing: auto"
    return Project.load(write_config("\n".join(lines)), STAGES)


def test_arguments_reach_the_factory_each_time(write_config: Callable[[str], Path]) -> None:
    """The network is made with them, recorded with them, and made again with them, as if for the first time."""
    text = f"model: {{name: tiny, factory: '{HUB}:sized', arguments: {{sides: [1], options: {{classes: 5}}}}}}"
    lines = factories.configuration().splitlines()
    project = Project.load(write_config("\n".join([text, *lines[1:]])), STAGES)

    record = make_source(project)

    assert record.classes == 5
    assert [(item.name, item.value) for item in record.arguments] == [("sides", [1]), ("options", {"classes": 5})]
    assert f"{HUB}:sized(sides=[1], options={{'classes': 5}})" in record.origin_detail
    weights = read_weights(project.paths.weights)
    assert torch.equal(restore_model(project).state_dict()["head.weight"], weights["head.weight"])


def test_preprocessing_and_names_of_timm(write_config: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """Trained weights of timm bring both."""
    project = hub_project(write_config, "create_model', arguments: {model_name: a, num_classes: 3, pretrained: true}")

    record = make_source(project)

    assert (record.pictures.resize, record.pictures.crop) == (35, 32)
    assert record.class_names == ("a-0", "a-1", "a-2")
    assert "AT RANDOM" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "weights", "warned"),
    [
        ("{model_name: a}", "auto", "draws its weights AT RANDOM: head.weight, head.bias"),
        ("{model_name: a}", "factory", ""),
        ("{model_name: a, pretrained: true, num_classes: 3}", "auto", ""),
    ],
)
def test_random_weights_are_never_silent(
    write_config: Callable[[str], Path], caplog: pytest.LogCaptureFixture, arguments: str, weights: str, warned: str
) -> None:
    """Weights that no training made are a loud warning, unless `factory` asks for a network of them."""
    make_source(hub_project(write_config, f"create_model', arguments: {arguments}", weights))

    assert (warned in caplog.text) if warned else ("AT RANDOM" not in caplog.text)


def test_a_random_head_is_never_silent(write_config: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """A trained network with a head of another size is warned of, whatever `weights` says."""
    make_source(hub_project(write_config, "half_trained'"))

    assert "draws 2 of its weights AT RANDOM: 1.head.weight, 1.head.bias" in caplog.text


def test_network_of_timm_itself(write_config: Callable[[str], Path]) -> None:
    """The real library, where it is installed: its network, its preprocessing and the network made again."""
    pytest.importorskip("timm")
    text = factories.configuration().splitlines()
    call = "factory: 'timm:create_model', arguments: {model_name: mobilenetv3_small_050, num_classes: 10}"
    text[:2] = [f"model: {{name: tiny, weights: factory, {call}}}", "preprocessing: auto"]
    project = Project.load(write_config("\n".join(text)), STAGES)

    record = make_source(project)

    assert (record.classes, record.pictures.crop, record.pictures.interpolation.value) == (10, 224, "bicubic")
    assert restore_model(project)(torch.zeros(1, 3, 224, 224)).shape == (1, 10)


def test_network_of_transformers_itself(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """The real library, where it is installed: a saved folder gives weights, preprocessing and names of classes."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    names = {0: "cat", 1: "dog"}
    config = transformers.ViTConfig(image_size=32, patch_size=16, id2label=names, label2id={}, **sizes)
    saved = transformers.ViTForImageClassification(config).eval()
    saved.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    text = factories.configuration().splitlines()
    call = "factory: 'transformers:AutoModelForImageClassification.from_pretrained'"
    arguments = f"arguments: {{pretrained_model_name_or_path: '{tmp_path / 'vit'}'}}"
    text[:2] = [f"model: {{name: tiny, weights: auto, {call}, {arguments}}}", "preprocessing: auto"]
    project = Project.load(write_config("\n".join(text)), STAGES)

    record = make_source(project)

    assert (record.class_names, record.logits) == (("cat", "dog"), "logits")
    assert (record.pictures.crop, record.pictures.mean) == ((32, 32), (0.5, 0.5, 0.5))
    batch = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(restore_model(project)(batch), saved(batch).logits)


@pytest.mark.parametrize("form", ["mapping", "dataclass"])
def test_network_of_hugging_face(
    write_config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    """A folder gives preprocessing and names of classes; the logits are taken out of the output, also afterwards."""
    monkeypatch.setattr("pipeline.stages.source.presets.hub_settings", lambda _: VIT)
    arguments = f"{{pretrained_model_name_or_path: '{tmp_path / 'model'}', form: {form}}}"
    project = hub_project(write_config, f"HubClassifier.from_pretrained', arguments: {arguments}")

    record = make_source(project)

    assert (record.logits, record.class_names) == ("logits", ("cat", "dog", "fox"))
    assert (record.pictures.crop, record.pictures.mean) == ((32, 32), (0.5, 0.5, 0.5))
    assert restore_model(project)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("form", "got"),
    [
        ("features", r"dict of logits \(2, 3\), pooled \(2, 3\)"),
        ("other name", r"dict of scores \(2, 3\)"),
        ("integers", r"dict of logits \(2, 1\)"),
        ("tuple", "tuple"),
    ],
)
def test_outputs_beside_the_logits_are_refused(
    write_config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, form: str, got: str
) -> None:
    """Nothing of an output is dropped silently, and no other name is taken for logits."""
    monkeypatch.setattr("pipeline.stages.source.presets.hub_settings", lambda _: VIT)
    arguments = f"{{pretrained_model_name_or_path: x, form: {form}}}"
    with pytest.raises(SourceError, match=rf"(?s)does not return logits.*got: +{got}"):
        make_source(hub_project(write_config, f"HubClassifier.from_pretrained', arguments: {arguments}"))


@pytest.mark.parametrize("weights", ["factory", "auto", "mine.pth"])
def test_unknown_preprocessing_is_refused(write_config: Callable[[str], Path], weights: str) -> None:
    """Where nothing says how the images were prepared, ImageNet's steps do not replace it."""
    with pytest.raises(
        SourceError, match=r"(?s)nothing says how the images.*Pooled, with none.*preprocessing: {resize: "
    ):
        make_source(hub_project(write_config, "plain'", weights))


def test_torchvisions_preprocessing_for_a_checkpoint(
    write_config: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint of one's own for torchvision's factory takes that of its weights, with a warning that shows it."""
    torch.manual_seed(5)
    torch.save(resnet18(num_classes=4).state_dict(), tmp_path / "mine.pth")
    text = factories.configuration(RESNET, weights=str(tmp_path / "mine.pth")).splitlines()
    text[0] = text[0].replace("weights:", "arguments: {num_classes: 4}, weights:")
    text[1] = "preprocessing: auto"

    record = make_source(Project.load(write_config("\n".join(text)), STAGES))

    assert (record.preprocessing, record.classes) == (IMAGENET, 4)
    assert "WARNING: taking that of torchvision's IMAGENET1K_V1 for torchvision.models:resnet18" in caplog.text


def test_torchvisions_weights_with_other_classes(write_config: Callable[[str], Path], hub: Path) -> None:
    """Weights that do not fit the arguments are refused, before a download and without the sample model."""
    assert not hub.exists()
    for weights in ("auto", "IMAGENET1K_V1"):
        text = factories.configuration(RESNET, weights=weights).replace(
            "weights:", "arguments: {num_classes: 7}, weights:"
        )
        with pytest.raises(SourceError, match=r"(?s)does not fit the arguments.*resnet18\(num_classes=7\)"):
            make_source(Project.load(write_config(text), STAGES))


# ImageNet


def test_cached_imagenet_weights(write_config: Callable[[str], Path], hub: Path) -> None:
    """Weights in torch's cache are used without a download."""
    file = cache(hub)
    project = project_of(write_config, RESNET, "IMAGENET1K_V1")

    record = make_source(project)

    assert (record.origin, record.classes, record.replaced_head) == (WeightsOrigin.IMAGENET1K_V1, 1000, None)
    assert torch.equal(read_weights(project.paths.weights)["fc.weight"], torch.load(file)["fc.weight"])


def test_imagenet_classes_are_named(write_config: Callable[[str], Path], hub: Path) -> None:
    """ImageNet's classes come with their names."""
    cache(hub)

    names = make_source(project_of(write_config, RESNET, "auto")).class_names

    assert names is not None
    assert (len(names), names[0]) == (1000, "tench")


@pytest.mark.part(2, of="networks at full size")
def test_imagenet_preprocessing(write_config: Callable[[str], Path], hub: Path) -> None:
    """Without a preprocessing of one's own, images are prepared as torchvision's weights want them."""
    cache(hub)
    text = factories.configuration(RESNET, weights="auto")
    own = next(line for line in text.splitlines() if line.startswith("preprocessing:"))

    record = make_source(Project.load(write_config(text.replace(own, "preprocessing: auto")), STAGES))

    assert record.preprocessing == IMAGENET


def test_own_preprocessing_wins(write_config: Callable[[str], Path], hub: Path) -> None:
    """A preprocessing in the configuration replaces the weights' own."""
    cache(hub)

    record = make_source(project_of(write_config, RESNET, "auto"))

    assert (record.pictures.crop, record.pictures.interpolation) == (32, Interpolation.BILINEAR)


def test_inputs_out_of_the_weights_range_are_refused(write_config: Callable[[str], Path], hub: Path) -> None:
    """Weights of torchvision take no inputs of another range, unless a line says that they do."""
    cache(hub)
    text = factories.configuration(RESNET, weights="IMAGENET1K_V1").replace("std: [0.25, 0.25, 0.25]", "std: [1, 1, 1]")
    with pytest.raises(SourceError, match=r"(?s)other inputs than.*input_range: \[-0\.5, 0\.5\]"):
        make_source(Project.load(write_config(text), STAGES))
    stated = text.replace("std: [1, 1, 1]", "std: [1, 1, 1], input_range: [-0.5, 0.5]")
    assert make_source(Project.load(write_config(stated), STAGES)).pictures.input_range == (-0.5, 0.5)


@pytest.mark.usefixtures("hub")
def test_named_imagenet_weights_that_cannot_be_had(write_config: Callable[[str], Path]) -> None:
    """Weights asked for by name are never replaced by others."""
    with pytest.raises(SourceError, match=r"(?s)cannot be downloaded.*no route to host.*put the file at"):
        make_source(project_of(write_config, RESNET, "IMAGENET1K_V1"))


def test_named_imagenet_weights_of_another_factory(write_config: Callable[[str], Path]) -> None:
    """A factory outside torchvision has no ImageNet weights, and the message names the alternatives."""
    with pytest.raises(SourceError, match=r"(?s)no IMAGENET1K_V1 weights for tests.support.tiny_model:make.*`factory`"):
        make_source(project_of(write_config, "tests.support.tiny_model:make", "IMAGENET1K_V1"))


@pytest.mark.part(2, of="networks at full size")
@pytest.mark.usefixtures("hub")
def test_auto_falls_back_to_the_sample(write_config: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """`auto` without a network takes the sample model, and warns loudly that it did."""
    record = make_source(project_of(write_config, RESNET, "auto"))

    assert (record.origin, record.classes, record.replaced_head) == (WeightsOrigin.SAMPLE, 10, "fc")
    warnings = "\n".join(entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING)
    assert "URLError: <urlopen error no route to host>" in warnings
    assert "falling back to the SAMPLE MODEL" in warnings
    assert "not for deployment" in warnings
    assert record.awaited_file == "resnet18-f37072fd.pth"


@pytest.mark.parametrize("data", [b"<html>blocked</html>", None], ids=["damaged", "of another model"])
def test_auto_refuses_a_file_that_it_does_not_understand(
    write_config: Callable[[str], Path], hub: Path, data: bytes | None
) -> None:
    """`auto` takes the sample model if there is no file, never in place of one that is there."""
    file = cache(hub, data or b"")
    if data is None:
        torch.save(tiny_model.make().state_dict(), file)

    with pytest.raises(SourceError, match=rf"(?s)where: +{file}"):
        make_source(project_of(write_config, RESNET, "auto"))


def test_auto_refuses_a_factory_whose_weights_have_other_names(write_config: Callable[[str], Path]) -> None:
    """`auto` never leaves a factory of torchvision with random weights because theirs have another name."""
    with pytest.raises(SourceError, match=r"(?s)no IMAGENET1K_V1 weights.*expected: +one of IMAGENET1K_SWAG_E2E_V1"):
        make_source(project_of(write_config, "torchvision.models:vit_h_14", "auto"))


def test_auto_takes_another_factory_as_it_is(write_config: Callable[[str], Path]) -> None:
    """`auto` with a factory that is not torchvision's keeps the factory's own weights."""
    record = make_source(project_of(write_config, "tests.support.tiny_model:make", "auto"))

    assert record.origin is WeightsOrigin.FACTORY


# The sample model


def sample_of(project: Project, threads: int) -> tuple[str, torch.Tensor]:
    """Fit the sample model with a number of torch's threads; return the digest of its weights, and its head."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        digest = make_source(project).weights.sha256
    finally:
        torch.set_num_threads(before)
    return digest, read_weights(project.paths.weights)["8.weight"]


def test_sample_is_deterministic(write_config: Callable[[str], Path]) -> None:
    """Fitting twice gives the same weights: bit for bit with as many threads, and up to rounding with others."""
    project = project_of(write_config, "tests.support.tiny_model:make", "sample")
    (first, head), (second, _), (_, other) = (sample_of(project, threads) for threads in (2, 2, 1))

    assert first == second
    torch.testing.assert_close(other, head, rtol=1e-3, atol=1e-5)


def test_sample_names_its_classes(built: Project) -> None:
    """The sample model's classes are the ten digits."""
    assert built.source().class_names == tuple("0123456789")


def test_sample_sets_batch_norm_statistics(built: Project) -> None:
    """The sample model's batch-norms have seen images."""
    state = read_weights(built.paths.weights)

    assert not torch.equal(state["1.running_var"], torch.ones(32))


def test_sample_needs_a_linear_layer(write_config: Callable[[str], Path]) -> None:
    """A network without a linear layer cannot be the sample model."""
    with pytest.raises(SourceError, match=r"ends in torch\.nn\.Linear"):
        make_source(project_of(write_config, "tests.support.factories:feature_map", "sample"))


def test_sample_needs_a_head_that_takes_part(write_config: Callable[[str], Path]) -> None:
    """A network whose last linear layer is never called cannot be the sample model."""
    with pytest.raises(SourceError):
        make_source(project_of(write_config, "tests.support.factories:UnusedHead", "sample"))


@pytest.mark.part(2, of="networks at full size")
def test_resnet18_sample_recognises_digits(write_config: Callable[[str], Path]) -> None:
    """The real sample model, ResNet18 at full size, knows nine of ten digits that it was not fitted on."""
    text = factories.configuration(RESNET, weights="sample", more="data: {calibration: 1, validation: 200}")
    own = next(line for line in text.splitlines() if line.startswith("preprocessing:"))
    project = Project.load(write_config(text.replace(own, "preprocessing: auto")), STAGES)
    make_source(project)

    record = make_data(project, restore_model(project))

    assert record.origin is ImagesOrigin.DIGITS
    assert record.reference_top1 is not None
    assert record.reference_top1 >= 0.9
