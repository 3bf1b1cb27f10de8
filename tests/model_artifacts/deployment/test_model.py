"""A model that runs: batches and pictures as people hand them over, from any thread."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import model_artifacts as pipeline
from model_artifacts.deployment.model import Model
from model_artifacts.deployment.resolution import Device, Resolution, Tier
from model_artifacts.errors import ArtifactError, DataError, RunError, UsageError
from model_artifacts.records import Backend, BatchRange, Decoding, Fit, Task, TensorSpec
from model_artifacts.sessions.preprocessing import to_input, to_pixels
from tests.support.hosts import H100
from tests.support.manifests import entry
from tests.support.pictures import photographs

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from pipeline.planning.project import Project

    Batch = npt.NDArray[np.float32]


def test_images_become_names_of_classes(built: Project) -> None:
    """They are resized, cropped and normalised as the manifest says."""
    images = photographs(3)
    with pipeline.load(built.paths.root) as model:
        spec = model.preprocessing
        batch = to_input(np.stack([to_pixels(image, spec) for image in images]), spec)
        expected = [
            str(index) if not model.class_names else model.class_names[index] for index in model(batch).argmax(1)
        ]
        assert [found.name for found in model.predict(images)] == expected
        assert model.predict([]) == ()


def test_paths_are_read_as_the_build_reads_them(built: Project, tmp_path: Path) -> None:
    """Paths give the same answers as their images, and a refused or damaged image is named."""
    for index, image in enumerate(photographs(3)):
        image.save(tmp_path / f"{index}.png")
    Image.fromarray(np.full((40, 40), 600, dtype=np.uint16)).save(tmp_path / "xray.png")
    (tmp_path / "damaged.png").write_bytes(b"no image")
    with pipeline.load(built.paths.root) as model:
        expected = model.predict(photographs(3))
        assert model.predict([tmp_path / "0.png", str(tmp_path / "1.png"), tmp_path / "2.png"]) == expected
        with pytest.raises(DataError, match=r"(?s)more than 8 bits.*xray\.png.*levels"):
            model.predict([tmp_path / "xray.png"])
        with pytest.raises(DataError, match=r"(?s)cannot be read.*damaged\.png"):
            model.predict([tmp_path / "damaged.png"])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(None, [4, 1]), ((1, 1), [1] * 5), ((2, 3), [3, 2]), ((4, 4), [4, 4])],
)
def test_images_are_run_in_batches_that_the_artifact_takes(
    built: Project, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int] | None, expected: list[int]
) -> None:
    """Batches are padded to the smallest size without trace in the answer, and cut to a moderate size."""
    monkeypatch.setattr("model_artifacts.deployment.model._AT_ONCE", 4)
    facts = built.manifest().model
    assert facts is not None
    seen = []
    profile = BatchRange(min=sizes[0], opt=sizes[0], max=sizes[1]) if sizes else None

    def run(batch: Batch) -> Batch:
        seen.append(len(batch))
        return np.eye(10, dtype=np.float32)[: len(batch)]

    found = Resolution(entry("x", profile=profile), Device(Tier.ONNX, None), None, None, ())
    assert len(Model(found, facts, run).predict(photographs(5))) == 5
    assert seen == expected


def test_predict_of_a_model_of_tensors_names_the_call_to_write(built: Project) -> None:
    """It has no images, and so `outputs(images)` would not help."""
    facts = built.manifest().model
    assert facts is not None
    tensors = facts.model_copy(update={"preprocessing": None, "task": Task.TENSORS})
    model = Model(Resolution(entry("x"), Device(Tier.ONNX, None), None, None, ()), tensors, lambda batch: batch)
    with pytest.raises(UsageError, match=r"(?s)takes tensors as they are.*fix: +call the model itself"):
        model.predict(photographs(1))


def test_rectangles_of_one_channel_are_cut_for_the_model(built: Project) -> None:
    """The batch has the height, the width and the channels that the manifest's preprocessing says."""
    facts = built.manifest().model
    assert facts is not None
    assert facts.preprocessing is not None
    spec = facts.preprocessing.model_copy(
        update={"resize": (24, 40), "crop": (20, 36), "mean": (0.5,), "std": (0.5,), "fit": Fit.BORDER}
    )
    seen = []

    def run(batch: Batch) -> Batch:
        seen.append(batch.shape)
        return np.eye(10, dtype=np.float32)[: len(batch)]

    found = Resolution(entry("x"), Device(Tier.ONNX, None), None, None, ())
    model = Model(found, facts.model_copy(update={"preprocessing": spec}), run)
    assert len(model.predict(photographs(3))) == 3
    assert seen == [(3, 1, 20, 36)]


def test_a_detectors_picture_is_opened_once(built: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels and its size, to which the boxes are moved back, come of the same reading."""
    facts = built.manifest().model
    assert facts is not None
    assert facts.preprocessing is not None
    spec = facts.preprocessing.model_copy(update={"resize": (20, 40), "crop": (20, 40), "fit": Fit.SQUASH})
    detector = {"preprocessing": spec, "task": Task.DETECTION, "decoding": Decoding(boxes="boxes", scores="scores")}
    specs = [TensorSpec(name=name, shape=("batch", 1, 4), dtype="float32", layout="") for name in ("boxes", "scores")]
    names = [tmp_path / f"{index}.png" for index in range(3)]
    for index, name in enumerate(names):
        Image.new("RGB", (40 * (index + 1), 20)).save(name)
    opened: list[Path] = []
    real = Image.open

    def opening(file: Path) -> Image.Image:
        opened.append(file)
        return real(file)

    monkeypatch.setattr("PIL.Image.open", opening)

    def run(batch: Batch) -> dict[str, Batch]:
        boxes = np.tile(np.array([[[10, 10, 4, 4]]], np.float32), (len(batch), 1, 1))
        return {"boxes": boxes, "scores": np.full((len(batch), 1, 4), 0.9, np.float32)}

    found = Resolution(entry("x", outputs=tuple(specs)), Device(Tier.ONNX, None), None, None, ())
    model = Model(found, facts.model_copy(update={"class_names": None, **detector}), run)
    boxes = [answer.boxes[0].box for answer in model.predict(names)]
    assert boxes == [(8, 8, 12, 12), (16, 8, 24, 12), (24, 8, 36, 12)]
    assert opened == names


def test_a_batch_that_is_not_taken_is_one_message(built: Project) -> None:
    """It names the expected and the actual shape."""
    with pipeline.load(built.paths.root) as model, pytest.raises(RunError, match=r"(?s)\(batch, 3, 32, 32\).*\(1, 2\)"):
        model(np.zeros((1, 2), np.float32))


def test_one_image_is_enough(built: Project, tmp_path: Path) -> None:
    """One image, its path, its bytes, its pixels and a list of one give the same answer."""
    image = photographs(1)[0]
    file = tmp_path / "one.png"
    image.save(file)
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    with pipeline.load(built.paths.root) as model:
        expected = model.predict([image], top=3)
        assert [len(found.top) for found in expected] == [3]
        for one in (image, file, str(file), file.read_bytes(), pixels, pixels[None], tensor, tensor[None]):
            assert model.predict(one, top=3) == expected


def test_scores_are_the_softmax_of_the_logits(built: Project) -> None:
    """The top classes of an image are those of its logits."""
    image = photographs(1)[0]
    with pipeline.load(built.paths.root) as model:
        logits = model(to_input(to_pixels(image, model.preprocessing)[None], model.preprocessing))[0]
        (found,) = model.predict(image, top=10)
    likely = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
    assert [item.index for item in found.top] == np.argsort(-logits).tolist()
    np.testing.assert_allclose([item.score for item in found.top], np.sort(likely)[::-1], rtol=1e-6)


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.TENSORRT])
@pytest.mark.parametrize(
    ("images", "kind"),
    [
        (Image.new("RGB", (0, 5)), DataError),
        (b"", DataError),
        (b"no image", DataError),
        ("absent.png", DataError),
        (".", DataError),
        ("\0", DataError),
        (np.full((9, 9), 600, ">u2"), DataError),
        (torch.ones(3, 9, 9), RunError),
        (3, RunError),
    ],
    ids=["no pixels", "nothing", "no image", "absent", "a folder", "NUL", "16 bits", "floats", "a number"],
)
def test_every_refusal_says_what_to_do(built: Project, backend: Backend, images: Any, kind: type[Exception]) -> None:
    """Whatever is wrong with an image, the error says what was expected, what was got and what to do."""
    facts = built.manifest().model
    assert facts is not None
    found = Resolution(entry("x").model_copy(update={"backend": backend}), Device(Tier.ONNX, None), None, None, ())
    model = Model(found, facts, lambda batch: np.eye(10, dtype=np.float32)[: len(batch)])
    with pytest.raises(kind) as caught:
        model.predict(images)
    assert isinstance(caught.value, ArtifactError)
    for part in ("expected: ", "got: ", "fix: "):
        assert part in str(caught.value)


def test_a_closed_image_is_refused(built: Project) -> None:
    """An image of Pillow that was closed is named as unreadable."""
    image = photographs(1)[0]
    image.close()
    with pipeline.load(built.paths.root) as model, pytest.raises(DataError, match="cannot be read"):
        model.predict(image)


def test_threads_take_turns(built: Project) -> None:
    """Several threads on one model get their own logits, and its session runs one batch at a time."""
    facts = built.manifest().model
    assert facts is not None
    buffer = np.zeros((1, 10), np.float32)

    def run(batch: Batch) -> Batch:
        buffer[:] = batch[0, 0, 0, 0]
        time.sleep(0.002)  # another thread would overwrite the buffer
        return buffer.copy()

    model = Model(Resolution(entry("x"), Device(Tier.ONNX, None), None, None, ()), facts, run)

    def logit(number: int) -> float:
        return float(model(np.full((1, 3, 32, 32), number, np.float32))[0, 0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(logit, range(40))) == list(map(float, range(40)))


def test_a_model_closes_after_the_batch_that_runs(built: Project) -> None:
    """The end of the block waits for another thread's batch, whose memory it would free."""
    facts = built.manifest().model
    assert facts is not None
    started, done = threading.Event(), []

    def run(batch: Batch) -> Batch:
        started.set()
        time.sleep(0.1)
        done.append(len(batch))
        return np.zeros((1, 10), np.float32)

    model = Model(Resolution(entry("x"), Device(Tier.ONNX, None), None, None, ()), facts, run)
    thread = threading.Thread(target=model, args=(np.zeros((1, 3, 32, 32), np.float32),))
    thread.start()
    started.wait()
    model.close()
    assert done == [1]
    thread.join()


def test_a_stream_checks_as_a_call_does(built: Project) -> None:
    """Tensors go in as arrays, and what a call refuses is refused in its place, with the same message."""
    facts = built.manifest().model
    assert facts is not None
    model = Model(
        Resolution(entry("x"), Device(Tier.ONNX, None), None, None, ()), facts, lambda batch: batch[:, 0, 0, :10] * 2
    )
    good = torch.ones((2, 3, 32, 32), requires_grad=True)
    for bad in (np.ones((2, 3, 32, 32)), np.full((2, 3, 32, 32), np.nan, np.float32), np.ones((3, 32, 32), np.float32)):
        with pytest.raises(RunError) as alone:
            model(bad)
        given: Any = [good, bad, good]
        results = model.stream(given)
        np.testing.assert_array_equal(next(results), np.full((2, 10), 2, np.float32))
        with pytest.raises(RunError) as found:
            next(results)
        assert str(found.value) == str(alone.value)


@pytest.mark.parametrize(
    ("batches", "buffers", "message"),
    [
        (np.ones((2, 3, 32, 32), np.float32), 3, "got: +one ndarray"),
        (torch.ones((2, 3, 32, 32)), 3, "got: +one Tensor"),
        ({"image": np.ones((2, 3, 32, 32), np.float32)}, 3, "got: +one dict"),
        (7, 3, "got: +one int"),
        ([], 1, "2 to 4 buffers"),
        ([], 5, "2 to 4 buffers"),
        ([], True, "2 to 4 buffers"),
    ],
    ids=["array", "tensor", "mapping", "number", "one", "five", "bool"],
)
def test_a_stream_of_something_else_is_refused_at_once(
    built: Project, batches: Any, buffers: Any, message: str
) -> None:
    """The call itself says so, not the first result."""
    with pipeline.load(built.paths.root) as model, pytest.raises(UsageError, match=message):
        model.stream(batches, buffers=buffers)


def test_outputs_of_a_stream_have_the_names_of_the_manifest(built: Project) -> None:
    """In its order; others are refused, as of a call."""
    facts = built.manifest().model
    assert facts is not None
    specs = [TensorSpec(name=name, shape=("batch", 1), dtype="float32", layout="") for name in ("first", "second")]
    named = Resolution(entry("x", outputs=tuple(specs)), Device(Tier.ONNX, None), None, None, ())
    batch = np.ones((1, 3, 32, 32), np.float32)
    model = Model(named, facts, lambda _: {"second": np.ones((1, 1)), "first": np.zeros((1, 1))})
    (found,) = model.stream([batch])
    assert list(found) == ["first", "second"]
    with pytest.raises(RunError, match="other outputs than the manifest says"):
        list(Model(named, facts, lambda _: np.ones((1, 1))).stream([batch]))


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on the first GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:  # type: ignore[override]  # torch's enum is an int
        return 2, 0


def engine_model(built: Project, run: Any) -> Model:
    """Return a model of an engine."""
    facts = built.manifest().model
    assert facts is not None
    engine = entry("x").model_copy(update={"backend": Backend.TENSORRT})
    return Model(Resolution(engine, Device(Tier.EXACT_ENGINE, H100), None, None, ()), facts, run)


def test_a_batch_on_the_engines_gpu_is_read_where_it_lies(built: Project) -> None:
    """The engine gets the tensor itself, contiguous and without gradients."""
    seen: list[Any] = []

    def run(batch: Any) -> Any:
        seen.append(batch)
        return np.zeros((1, 10), np.float32)

    batch = torch.ones(1, 3, 32, 32).contiguous(memory_format=torch.channels_last).as_subclass(OnGpu).requires_grad_()
    engine_model(built, run)(batch)  # type: ignore[arg-type]  # a tensor
    assert isinstance(seen[0], OnGpu)
    assert seen[0].is_contiguous()
    assert not seen[0].requires_grad


def test_a_batch_on_the_gpu_must_be_finite_too(built: Project) -> None:
    """NaN is refused wherever it lies."""
    batch = torch.full((1, 3, 32, 32), torch.nan).as_subclass(OnGpu)
    whole = torch.ones((1, 3, 32, 32), dtype=torch.complex64).as_subclass(OnGpu)
    engine_model(built, lambda _: np.zeros((1, 10), np.float32))(whole)  # type: ignore[arg-type]  # the session refuses it
    with pytest.raises(RunError, match="not finite"):
        engine_model(built, lambda _: np.zeros((1, 10), np.float32))(batch)  # type: ignore[arg-type]  # a tensor
