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
from pipeline.stages.source.stage import IMAGENET, make_source
from tests.support import factories, tiny_model

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

    with pytest.raises(SourceError, match="does not take a batch of images"):
        make_source(project)


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

    assert (record.preprocessing.crop, record.preprocessing.interpolation) == (32, Interpolation.BILINEAR)


def test_inputs_out_of_the_weights_range_are_refused(write_config: Callable[[str], Path], hub: Path) -> None:
    """Weights of torchvision take no inputs of another range, unless a line says that they do."""
    cache(hub)
    text = factories.configuration(RESNET, weights="IMAGENET1K_V1").replace("std: [0.25, 0.25, 0.25]", "std: [1, 1, 1]")
    with pytest.raises(SourceError, match=r"(?s)other inputs than.*input_range: \[-0\.5, 0\.5\]"):
        make_source(Project.load(write_config(text), STAGES))
    stated = text.replace("std: [1, 1, 1]", "std: [1, 1, 1], input_range: [-0.5, 0.5]")
    assert make_source(Project.load(write_config(stated), STAGES)).preprocessing.input_range == (-0.5, 0.5)


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
