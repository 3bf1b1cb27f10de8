"""The inputs and outputs of artifacts in pipeline.yaml: `io`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from model_artifacts.records import ImageInput, Io, OutputForm, Record, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config.files.yaml_source import Location
    from pipeline.config.settings import Config

_TOP = re.compile(r"top([1-9]\d{0,3})")
_MOST = 1000
"""The most classes of a top-k: a choice; more are nearly all classes."""


def check_output(text: str) -> str:
    """Return an output as it is written.

    Raises:
        ValueError: it is none.
    """
    found = _TOP.fullmatch(text)
    if text not in {OutputForm.LOGITS.value, OutputForm.PROBABILITIES.value} and not (found and int(found[1]) <= _MOST):
        raise ValueError(f"expected logits, probabilities, or top1 to top{_MOST}, got {text!r}")
    return text


class IoConfig(Record):
    """An input with an output. The network's own are the defaults."""

    input: ImageInput = ImageInput.FLOAT32
    """float32 (normalised, NCHW), the same in float16, or uint8 (pixels, NHWC: the artifact normalises them)."""
    output: Annotated[str, AfterValidator(check_output)] = OutputForm.LOGITS.value
    """logits (whatever the network gives), probabilities (their softmax), or the most likely classes, such as top5."""

    @property
    def io(self) -> Io:
        """The same as a record of a variant."""
        if found := _TOP.fullmatch(self.output):
            return Io(input=self.input, output=OutputForm.TOP, top=int(found[1]))
        return Io(input=self.input, output=OutputForm(self.output))


def io_problems(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the outputs that the model's task has not, as pairs of location and text."""
    task, tensorrt = config.model.task, config.tensorrt
    for index, item in enumerate(config.io):
        io = item.io
        if io.output is not OutputForm.LOGITS and task is not Task.CLASSIFICATION:
            text = (
                f"`io[{index}].output: {item.output}` is of `task: classification`, whose outputs are logits of classes"
            )
            yield ("io", index, "output"), f"{text}; got `task: {task.value}`; write `output: logits`, or remove it"
        for name in ("refit", "strip_plan"):
            if not io.is_plain and getattr(tensorrt, name):
                text = f"`tensorrt.{name}` takes weights from the graph that has the network's own input and output"
                yield ("io", index), f"`io[{index}]`: {text}; remove one of them"
