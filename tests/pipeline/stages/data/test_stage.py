"""Calibration and validation images, and the FP32 reference's logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from model_artifacts.errors import DataError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.sessions.arithmetic import strict_fp32
from pipeline.planning.project import Project
from pipeline.records import DataRecord, ImagesOrigin
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.samples import to_batch
from pipeline.stages.data.stage import make_data, reference_logits
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import _sample
from tests.support import factories, odd_networks
from tests.support.parts import long_test

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

THREE = "tests.support.factories:three_classes"


@pytest.fixture
def make(write_config: Callable[[str], Path]) -> Callable[[str, str], tuple[Project, DataRecord]]:
    """A function that runs the source and the data stage of a factory with a `data:` section."""

    def run(factory: str, section: str) -> tuple[Project, DataRecord]:
        project = Project.load(write_config(factories.configuration(factory, more=f"data: {section}")), STAGES)
        make_source(project)
        return project, make_data(project, restore_model(project))

    return run


def fill(folder: Path, classes: int, count: int) -> None:
    """Write images into a folder a class."""
    for name in range(classes):
        (folder / str(name)).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (12, 10), (name * 80, index, 0)).save(folder / str(name) / f"{index:03}.png")


def test_sample_gets_digits(built: Project) -> None:
    """The sample model is judged on labelled digits."""
    data = built.data()

    assert (data.origin, data.calibration_samples, data.validation_samples) == (ImagesOrigin.DIGITS, 32, 100)
    assert data.labels is not None


def test_other_models_get_photographs(make: Callable[[str, str], tuple[Project, DataRecord]]) -> None:
    """Other models are judged on photographs, which have no labels."""
    _, record = make(THREE, "{calibration: 2, validation: 3}")

    assert record.origin is ImagesOrigin.PHOTOGRAPHS
    assert (record.labels, record.reference_top1) == (None, None)


def test_calibration_and_validation_do_not_overlap(make: Callable[[str, str], tuple[Project, DataRecord]]) -> None:
    """No photograph's crop is both calibrated and validated on."""
    project, record = make(THREE, "{calibration: 5, validation: 5}")

    both = np.concatenate([project.pixels(record.calibration), project.pixels(record.validation)]).reshape(10, -1)
    assert len(np.unique(both, axis=0)) == 10


def test_digits_for_another_model(make: Callable[[str, str], tuple[Project, DataRecord]]) -> None:
    """Any model of ten classes can be judged on digits."""
    _, record = make("tests.support.tiny_model:make", "{images: digits, calibration: 2, validation: 3}")

    assert record.origin is ImagesOrigin.DIGITS


def test_digits_need_ten_classes(make: Callable[[str, str], tuple[Project, DataRecord]]) -> None:
    """A model with another number of classes cannot be judged on digits."""
    with pytest.raises(DataError, match=r"(?s)expected: 10 classes.*got: +3.*set `data.images`"):
        make(THREE, "{images: digits}")


def test_too_many_digits_to_calibrate_on(make: Callable[[str, str], tuple[Project, DataRecord]]) -> None:
    """Calibration takes no more digits than there are beside the held-out ones."""
    with pytest.raises(DataError, match=r"`data\.calibration` up to 800"):
        make("tests.support.tiny_model:make", "{images: digits, calibration: 801}")


def test_image_folder(make: Callable[[str, str], tuple[Project, DataRecord]], tmp_path: Path) -> None:
    """A folder of images gives both sets, and the labels."""
    fill(tmp_path / "pictures", 3, 4)

    project, record = make(THREE, f"{{images: '{tmp_path / 'pictures'}', calibration: 4, validation: 100}}")

    assert (record.origin, record.calibration_samples, record.validation_samples) == (ImagesOrigin.FOLDER, 4, 8)
    assert record.labels is not None
    assert len(np.load(project.file(record.labels))) == 8


def test_small_image_folder_is_shared_out(
    make: Callable[[str, str], tuple[Project, DataRecord]], tmp_path: Path
) -> None:
    """A folder with fewer images than calibration asks for keeps half of them for validation."""
    fill(tmp_path / "pictures", 3, 2)

    _, record = make(THREE, f"{{images: '{tmp_path / 'pictures'}', calibration: 500, validation: 500}}")

    assert (record.calibration_samples, record.validation_samples) == (3, 3)


def test_one_image_is_too_few(make: Callable[[str, str], tuple[Project, DataRecord]], tmp_path: Path) -> None:
    """A folder with a single image leaves none for validation."""
    fill(tmp_path / "pictures", 3, 1)
    for name in "12":
        (tmp_path / "pictures" / name / "000.png").unlink()

    with pytest.raises(DataError, match=r"none is left for validation"):
        make(THREE, f"{{images: '{tmp_path / 'pictures'}'}}")


def test_unreadable_images_are_recorded(make: Callable[[str, str], tuple[Project, DataRecord]], tmp_path: Path) -> None:
    """Images that could not be read are named in the record."""
    fill(tmp_path / "pictures", 3, 80)
    broken = tmp_path / "pictures" / "1" / "007.png"
    broken.write_bytes(b"no image")

    _, record = make(THREE, f"{{images: '{tmp_path / 'pictures'}', calibration: 120, validation: 120}}")

    assert record.unreadable == (str(broken),)
    assert record.calibration_samples + record.validation_samples == 239


def test_samples_of_a_folder_have_names(make: Callable[[str, str], tuple[Project, DataRecord]], tmp_path: Path) -> None:
    """Samples of a folder keep their file names, so a rejection names its worst image; others have numbers only."""
    fill(tmp_path / "pictures", 3, 4)
    project, record = make(THREE, f"{{images: '{tmp_path / 'pictures'}', calibration: 4, validation: 100}}")
    assert record.names in record.files
    assert record.names is not None
    names = json.loads(project.file(record.names).read_text())
    labels = np.load(project.paths.labels).tolist()
    assert [int(name.partition("/")[0]) for name in names] == labels
    assert _sample(project, 5) == f"5 ({names[5]})"


def test_images_that_are_all_read_alike_are_refused(
    make: Callable[[str, str], tuple[Project, DataRecord]], tmp_path: Path
) -> None:
    """A folder of images that are all white to the network gives no data, and so nothing deployable."""
    for name in "012":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (12 + index, 10), "white").save(tmp_path / "pictures" / name / f"{index}.png")

    with pytest.raises(DataError, match=r"all 8 images are the same"):
        make(THREE, f"{{images: '{tmp_path / 'pictures'}', calibration: 4, validation: 100}}")


def test_listed_classes_name_the_logits(make: Callable[[str, str], tuple[Project, DataRecord]], tmp_path: Path) -> None:
    """`data.classes` gives folders their labels and logits their names, also for images without labels."""
    fill(tmp_path / "pictures", 3, 4)
    project, record = make(
        THREE, f"{{images: '{tmp_path / 'pictures'}', classes: ['2', '0', '1'], calibration: 4, validation: 100}}"
    )
    assert record.class_names == ("2", "0", "1")
    names = json.loads((project.paths.sample_names).read_text())
    assert [record.class_names[label] for label in np.load(project.paths.labels)] == [name[0] for name in names]
    _, record = make(THREE, "{classes: [cat, dog, emu], calibration: 2, validation: 3}")
    assert record.class_names == ("cat", "dog", "emu")


def test_classes_are_as_many_as_the_logits(make: Callable[[str, str], tuple[Project, DataRecord]]) -> None:
    """A list of two classes for three logits is refused, whatever the images are."""
    with pytest.raises(DataError, match=r"(?s)expected: 3 names.*got: +2 names"):
        make(THREE, "{classes: [cat, dog], calibration: 2, validation: 3}")


def test_network_that_takes_blue_first(
    make: Callable[[str, str], tuple[Project, DataRecord]], write_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """Labels show the other order of channels, which is refused until pipeline.yaml states an order."""
    for number, name in enumerate("012"):  # most are green, which both orders have in the middle
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(32 if name == "1" else 12):
            colour = tuple(200 + index if channel == number else 0 for channel in range(3))
            Image.new("RGB", (10, 10), colour).save(tmp_path / "pictures" / name / f"{index}.png")
    section = f"{{images: '{tmp_path / 'pictures'}', calibration: 4, validation: 100}}"
    factory = "tests.support.factories:blue_first"
    with pytest.raises(DataError, match=r"(?s)red and blue exchanged.*100\.0%.*`order: bgr`"):
        make(factory, section)
    for order, right in (("bgr", 1.0), ("rgb", 0.57)):
        text = factories.configuration(factory, more=f"data: {section}").replace(
            "crop: 32", f"crop: 32, order: {order}"
        )
        project = Project.load(write_config(text), STAGES)
        make_source(project)
        top1 = make_data(project, restore_model(project)).reference_top1
        assert top1 == pytest.approx(right, abs=0.1)


def test_rectangle_of_one_channel(write_config: Callable[[str], Path]) -> None:
    """Pixels of a greyscale rectangle have its height first."""
    text = factories.configuration("tests.support.factories:greyscale")
    own = next(line for line in text.splitlines() if line.startswith("preprocessing:"))
    wide = "preprocessing: {resize: [24, 40], crop: [20, 36], interpolation: bilinear, mean: [0.4], std: [0.2]}"
    project = Project.load(write_config(text.replace(own, wide)), STAGES)
    assert make_source(project).inputs[0].shape == ("batch", 1, 20, 36)

    record = make_data(project, restore_model(project))

    assert project.pixels(record.validation).shape == (6, 20, 36, 1)


def test_record_vouches_for_every_file(built: Project) -> None:
    """The record holds the digest of every file of the stage."""
    record = built.data()

    assert {file.path for file in record.files} == {
        f"tiny/data/{name}.npy" for name in ("calibration", "validation", "labels", "reference")
    }
    assert all(sha256_of(built.file(file)) == file.sha256 for file in record.files)


def test_labels_of_other_images_do_not_stay(copied: Path) -> None:
    """Images without labels leave no labels of earlier images beside them."""
    config = copied / "pipeline.yaml"
    config.write_text(config.read_text().replace("data: {", "data: {images: photographs, "))
    project = Project.load(config, STAGES)

    make_data(project, restore_model(project))

    assert not project.paths.labels.exists()


def test_reference_is_the_models_own_logits(built: Project) -> None:
    """The reference holds the model's strict FP32 logits, sample by sample, for every batch size."""
    data = built.data()
    pixels = built.pixels(data.validation)[40:43]
    model = restore_model(built)
    with strict_fp32():
        logits = model(torch.from_numpy(to_batch(pixels, data.preprocessing))).numpy()

    reference = np.load(built.file(data.reference))

    assert (reference.shape, reference.dtype) == ((100, 10), np.dtype(np.float32))
    np.testing.assert_allclose(reference[40:43], logits, rtol=1e-5, atol=1e-6)


def test_reference_top1_is_that_of_the_labels(built: Project) -> None:
    """The recorded top-1 is the share of labels that the reference predicts."""
    data = built.data()
    assert data.labels is not None
    hits = np.load(built.file(data.reference)).argmax(axis=1) == np.load(built.file(data.labels))

    assert data.reference_top1 == pytest.approx(hits.mean())


def test_reference_that_is_not_finite(built: Project) -> None:
    """A model that gives NaN cannot be a reference."""
    spec = built.data().preprocessing

    with pytest.raises(DataError, match="NaN or infinity"):
        reference_logits(factories.not_finite().eval(), np.zeros((2, 32, 32, 3), dtype=np.uint8), spec)


def test_reference_takes_any_number_of_images(built: Project) -> None:
    """A last batch that is not full gives its logits too."""
    spec = built.data().preprocessing

    logits = reference_logits(factories.three_classes().eval(), np.zeros((33, 32, 32, 3), dtype=np.uint8), spec)

    assert logits.shape == (33, 3)


@long_test
def test_reference_of_many_images_takes_no_more_memory(built: Project, tmp_path: Path) -> None:
    """Images on disk are mapped part by part, so memory holds only the part that runs."""
    spec = built.data().preprocessing
    file = tmp_path / "many.npy"
    np.save(file, np.zeros((5_000, 32, 32, 3), dtype=np.uint8))
    mapped: list[int] = []

    def look(*_: int) -> None:
        parts = Path("/proc/self/smaps").read_text().split(f"{file}\n")[1:]
        mapped.append(sum(int(found[1]) for part in parts if (found := re.search(r"Rss: +(\d+) kB", part))))

    reference_logits(factories.three_classes().eval(), np.load(file, mmap_mode="r"), spec, look)
    assert mapped
    assert max(mapped) < file.stat().st_size / 1024 / 10


@pytest.mark.parametrize("kind", [odd_networks.Viewing, odd_networks.Striding])
def test_networks_that_need_contiguous_weights(kind: type[nn.Module], built: Project) -> None:
    """The reference is what plain PyTorch computes, also where channels_last fails or gives other logits."""
    spec = built.data().preprocessing
    torch.manual_seed(0)
    model = kind().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model(torch.from_numpy(to_batch(pixels, spec))).numpy()

    assert np.allclose(reference_logits(model, pixels, spec), expected, atol=1e-5)
