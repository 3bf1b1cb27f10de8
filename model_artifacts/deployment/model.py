"""A model that runs: batches → outputs, and pictures → classes or vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.deployment.answers import answers_of, placed_back, require_answers
from model_artifacts.deployment.inputs import check_finite, checked_batch, detached, pictures_of
from model_artifacts.deployment.pictures.ahead import batches_ahead, batches_in_turn
from model_artifacts.deployment.pictures.readers import OnProcessor
from model_artifacts.deployment.predictions import Prediction, checked_top
from model_artifacts.deployment.tensors.named_inputs import checked_inputs, given_inputs, no_pictures
from model_artifacts.errors import RunError, UsageError, listed
from model_artifacts.records import Backend
from model_artifacts.serving.batching import Batcher
from model_artifacts.serving.pool import Pool
from model_artifacts.serving.streams import BUFFERS, Streams, in_turn
from model_artifacts.sessions.feeds.batches import each
from model_artifacts.sessions.onnx import joined, named
from model_artifacts.sessions.overlap.turns import require_buffers
from model_artifacts.sessions.preprocessing import feed_shape

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import numpy.typing as npt

    from model_artifacts.deployment.inputs import Pictures
    from model_artifacts.deployment.pictures.readers import Reader
    from model_artifacts.deployment.resolution import Resolution
    from model_artifacts.records import ManifestEntry, ManifestModel, Preprocessing, TensorSpec
    from model_artifacts.sessions.onnx import Outputs
    from model_artifacts.sessions.opening import Runner
    from model_artifacts.sessions.preprocessing import Placement

    Batch = npt.NDArray[Any]

_AT_ONCE = 32
"""The number of images in a batch, for an artifact that takes any number. It bounds the memory in use."""


class Model:
    """An artifact that runs. Any thread may call it; as many calls run at once as it has contexts."""

    def __init__(
        self,
        resolution: Resolution,
        facts: ManifestModel,
        run: Runner | Pool | Batcher,
        read: Reader | None = None,
        streams: Streams | None = None,
    ) -> None:
        self.resolution = resolution
        """The artifact taken, and the reasons against the others."""
        self._facts = facts
        self._calls = run if isinstance(run, (Pool, Batcher)) else Pool((run,))
        self._read = read
        self._streams = Streams(self._calls, in_turn(self._calls)) if streams is None else streams

    @property
    def entry(self) -> ManifestEntry:
        """The manifest's entry: accuracy, latencies, the precision it computed in."""
        return self.resolution.entry

    @property
    def preprocessing(self) -> Preprocessing:
        """The steps from an image to the input.

        Raises:
            UsageError: the model takes tensors, which `entry.inputs` describes.
        """
        return self._spec_of("preprocessing")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the logits' classes; None if unknown."""
        return self._facts.class_names

    @property
    def contexts(self) -> int:
        """The number of calls that run at once; further ones wait, first come, first served.

        It is less than `load` was asked for where calls take turns: of torch's modules, and of onnx's evaluator.
        """
        return len(self._calls)

    def __call__(self, batch: Batch | Mapping[str, Batch] | None = None, /, **inputs: Batch) -> Outputs:
        """Return the outputs of images that are preprocessed already: logits, or the vectors of an embedding.

        An artifact with another input or output takes and gives what `entry.inputs` and `entry.outputs` say, such as
        uint8 pixels (batch, height, width, channels), and probabilities with the indices of their classes.

        A model of tensors takes an array by the name of each input: `model(tokens=…, mask=…)`, or a mapping.

        Args:
            batch: float32 (batch, channels, height, width) in this machine's byte order, finite: an array, or a tensor
                of torch in any memory. An engine reads an array in its GPU's memory, with `__dlpack__` or
                `__cuda_array_interface__`, where it lies; of libraries other than torch, its values are not looked at.
                Of a model of tensors a mapping of such arrays in the types of `entry.inputs`, or the one array alone.
            inputs: the same arrays, each by its input's name.

        Returns:
            float32 (batch, classes), of an embedding (batch, length): a new array in the host's memory. Of a model with
            several outputs, a dictionary with such an array by the name of each, in the manifest's order.

        Raises:
            RunError: the artifact does not take such a batch, or gives other outputs than the manifest says; or the
                `with` block has ended.
            BusyError: no context was free within `wait_seconds` of `load`.
        """
        self._calls.check_open()
        return self._named(self._calls(self._checked(batch, inputs)))

    def stream(
        self, batches: Iterable[Batch | Mapping[str, Batch]], *, buffers: int = BUFFERS
    ) -> Generator[Outputs, None, None]:
        """Yield the outputs of batches in their order, with several batches under way at once.

        An engine copies a batch to the GPU and the outputs of another one back while it computes a third, in a context
        and buffers of its own, which take GPU memory beside those of `contexts`. Batches of one shape overlap; another
        shape waits for those before it. A batch in the GPU's memory runs by itself, since nothing is to be copied. An
        ONNX file runs on a thread of its own while `batches` makes the next batch. Torch's modules run one batch after
        the other.

        `batches` is asked for on the thread that asks for the results. The result of a batch comes once `buffers`
        batches were taken, or `batches` has ended. An error of a batch, or of `batches`, comes in its place in the
        order. A loop that is left discards the batches under way, and so does the end of the `with` block.

        Args:
            batches: an iterable of batches as the model itself takes them. Their sizes may differ. The memory of a
                batch may change as soon as the next one is asked for.
            buffers: the most batches under way at once: 2 to 4.

        Returns:
            a generator of what the model returns for each batch: new arrays, which no later batch overwrites. One
            thread at a time uses it; `close()` ends it.

        Raises:
            UsageError: `buffers` is another number, or `batches` is a single batch or no iterable.
            RunError: as for a batch of its own; or the GPU has no room for the buffers.
            BusyError: the same, without buffers of its own: no context was free in time.
        """
        self._calls.check_open()
        require_buffers(buffers)
        if not isinstance(batches, Iterable) or isinstance(batches, (Mapping, str, bytes)) or hasattr(batches, "dtype"):
            raise UsageError(
                "`stream` takes batches in a row",
                expected="an iterable of batches, such as a list or a generator",
                got=f"one {type(batches).__name__}",
                fix="write `stream([batch])`, or call the model itself for one batch",
            )
        return self._stream(iter(batches), buffers)

    def _stream(self, batches: Iterator[Any], buffers: int) -> Generator[Outputs, None, None]:
        with closing(self._streams.results(batches, lambda batch: self._checked(batch, {}), buffers)) as found:
            for outputs in found:
                yield self._named(outputs)

    def _named(self, found: Outputs) -> Outputs:
        """Return the outputs in the manifest's order.

        Raises:
            RunError: they are others than the manifest's.
        """
        names = [spec.name for spec in self.entry.outputs]
        own = {*found} if isinstance(found, dict) else None
        if own != ({*names} if len(names) > 1 else None):
            raise RunError(
                "the artifact has other outputs than the manifest says",
                expected=listed(names),
                got=listed(sorted(own)) if own else "one output",
                fix="pull the artifact again, or build it again",
            )
        return {name: np.asarray(found[name]) for name in names} if own else np.asarray(found)

    def predict(self, images: Pictures, *, top: int | None = None) -> tuple[Prediction, ...]:
        """Return what the task means by each image's output: the likeliest classes, a mask, numbers or boxes.

        The images are read, resized, cropped and normalised as the manifest records, by the code that read the images
        of the validation. They run in batches that the artifact takes. Several threads read the images of a batch, and
        the next batch while the present one runs. If the artifact's smallest batch is larger, copies of the last image
        fill it up.

        Args:
            images: one image, or an iterable of them: paths, bytes or open files of image files, Pillow's images, or
                arrays and tensors of uint8 pixels. Arrays are (height, width, channels) or (height, width), torch's
                tensors (channels, height, width). Greyscale of more than 8 bits needs the preprocessing's `levels`.
            top: the number of classes to name for each image, or of boxes. By default a classification names one, and
                other tasks all that are an answer.

        Returns:
            a prediction for each image, in the order of the images, also for one image.

        Raises:
            DataError: an image cannot be read, or its mode does not fit the preprocessing.
            RunError: the artifact cannot run them, they are no images, or its logits are not finite; or the `with`
                block has ended.
            BusyError: no context was free within `wait_seconds` of `load`.
            UsageError: `top` is no whole number above 0, the task has no answers, code of the user's own decodes them,
                or the model takes tensors.
        """
        self._calls.check_open()
        facts = self._facts
        spec = self._spec_of("predict")
        require_answers(facts.task, facts.postprocess)
        most = None if top is None else checked_top(top)
        found: list[Prediction] = []
        for outputs, places in self._of_each_batch(images, spec):
            answers = answers_of(outputs, facts, most, self.entry.io)
            found += placed_back(answers, places) if facts.decoding is not None else answers
        return tuple(found)

    def outputs(self, images: Pictures) -> Outputs:
        """Return the network's output for each image: logits, or the vector of an embedding.

        The images are read and run as `predict` does it.

        Args:
            images: one image, or an iterable of them, as `predict` takes them.

        Returns:
            float32 (images, …) as the network gives it, in the order of the images, also for one image. Of a model with
            several outputs, a dictionary with such an array by the name of each.

        Raises:
            DataError: an image cannot be read, or its mode does not fit the preprocessing.
            RunError: the artifact cannot run them, they are no images, or an output is not finite; or the `with` block
                has ended.
            BusyError: no context was free within `wait_seconds` of `load`.
            UsageError: the model takes tensors.
        """
        self._calls.check_open()
        preprocessing = self._spec_of("outputs")
        specs = self.entry.outputs
        names = [spec.name for spec in specs]
        parts = [outputs for outputs, _ in self._of_each_batch(images, preprocessing)]
        found = joined(parts or [named(names, [_empty(spec) for spec in specs])])
        for name, values in found.items() if isinstance(found, dict) else [("", found)]:
            broken = np.unique(np.nonzero(~np.isfinite(values))[0])
            if len(broken):
                raise RunError(
                    f"the values of output {name!r} are not finite" if name else "the outputs are not finite",
                    expected="finite values",
                    got=f"NaN or infinity for {len(broken)} of {len(values)} images, the first at {broken[0]}",
                    fix="take an artifact of another precision: `Requirements(precision=...)`",
                )
        return found

    def _spec_of(self, method: str) -> Preprocessing:
        """Return the steps from an image to the input, of which a method or a property has need.

        Raises:
            UsageError: the model takes tensors.
        """
        if self._facts.preprocessing is None:
            raise no_pictures(method, self.entry.inputs)
        return self._facts.preprocessing

    def _of_each_batch(self, images: Pictures, spec: Preprocessing) -> Iterator[tuple[Outputs, tuple[Placement, ...]]]:
        """Yield the outputs of the images, batch by batch, and the way of each image to the network's input.

        On the processor, other threads read the next batch while this one runs the present one.
        """
        profile = self.entry.profile
        smallest, largest = (profile.min, profile.max) if profile else (1, _AT_ONCE)
        pictures = pictures_of(images)
        if self._read:  # a GPU decodes, on the calling thread's own stream
            batches = batches_in_turn(pictures, self._read, smallest, largest)
        else:
            batches = batches_ahead(pictures, OnProcessor(spec, self.entry.io.input), smallest, largest)
        with closing(batches):
            for size, read in batches:
                yield each(self(read.batch), itemgetter(slice(size))), read.places

    def close(self) -> None:
        """Refuse all further batches, and those that wait: the `with` block has ended. Batches that run are waited for.

        Any thread may close a model, also more than once.
        """
        self._calls.close()
        self._streams.close()

    def _checked(self, batch: Any, inputs: Mapping[str, Batch]) -> Any:  # noqa: ANN401 - whatever a caller hands over
        """Return a batch that every backend takes alike, as a contiguous array; of several inputs, one for each name.

        Raises:
            RunError: names, types, shapes or values are others.
        """
        spec, specs = self._facts.preprocessing, self.entry.inputs
        if spec is None:
            return checked_inputs(given_inputs(batch, inputs, specs), specs, self._is_near)
        if inputs or isinstance(batch, Mapping):
            (batch,) = given_inputs(batch, inputs, specs).values()
        batch = detached(batch)
        if self._is_near(batch):
            check_finite(batch)
            return batch
        kind = self.entry.io.input
        return checked_batch(batch, feed_shape(spec, kind), kind, specs[0] if specs else None)

    def _is_near(self, batch: object) -> bool:
        """Return true if an engine's batch lies in the memory of its GPU, as far as a library says which GPU it is."""
        if self.entry.backend is not Backend.TENSORRT or isinstance(batch, np.ndarray):
            return False
        from model_artifacts.host import gpu_arrays  # noqa: PLC0415 - only where there is a GPU

        gpu, index = self.resolution.place.gpu, getattr(getattr(batch, "device", None), "index", None)
        return gpu_arrays.on_gpu(batch) and (gpu is None or index is None or index == gpu.index)


def _empty(spec: TensorSpec) -> npt.NDArray[np.generic]:
    """Return the output of no image. An axis that follows the size of the images has no entry then."""
    sizes = (size if isinstance(size, int) else 0 for size in spec.shape[1:])
    return np.empty((0, *sizes), dtype=_dtype_of(spec))


def _dtype_of(spec: TensorSpec) -> type[np.generic]:
    """Return the type that a session gives an output in: indices as they are, and values in float32."""
    return np.int32 if spec.dtype == np.dtype(np.int32).name else np.float32
