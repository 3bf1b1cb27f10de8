"""The place and the text of every kind of mistake in the matrix, the data, the models and what is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError
from pipeline.config.loading import load_configs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEIGHT = "{min: 8, opt: 16, max: 32}"
ARRAYS = "model: {task: tensors, factory: 'a:b'}\n"

WRONG = {
    "an axis in the batch": (
        f"profiles:\n  - batch: {{min: 1, opt: 8, max: 32, height: {HEIGHT}}}\n",
        [
            (
                "3:38: profiles[0].batch.height: expected the axis beside `batch`, and not in it; write "
                "{batch: …, height: …}"
            )
        ],
    ),
    "keys of a batch": (
        f"profiles:\n  - batch: {{min: 1, opt: 8, mx: 32}}\n    height: {HEIGHT}\n",
        ["3:12: missing key 'profiles[0].batch.max'", "3:29: unknown key 'profiles[0].batch.mx'; did you mean 'max'?"],
    ),
    "order of a batch": (
        f"profiles:\n  - height: {HEIGHT}\n    batch: {{min: 1, opt: 9, max: 8}}\n",
        ["4:12: profiles[0].batch: expected min ≤ opt ≤ max, got min 1, opt 9, max 8"],
    ),
    "sizes in a batch": (
        "profiles:\n  - batch: {min: 0, opt: '9', max: 3000000000}\n",
        [
            "3:18: profiles[0].batch.min: expected at least 1, got 0",
            "3:26: profiles[0].batch.opt: expected a whole number, got '9'",
            "3:36: profiles[0].batch.max: expected at most 2147483647, got 3000000000",
        ],
    ),
    "no batch": (
        "profiles:\n  - 1\n  - batch:\n  - batch: true\n",
        [
            "4:11: profiles[1].batch: expected a batch size, {min, opt, max} or {sizes}, got null",
            "5:12: profiles[2].batch: expected a batch size, {min, opt, max} or {sizes}, got true",
        ],
    ),
    "words of the records": (
        "profiles:\n  - {min: 1, opt: 8, max: 8, tuned: [1, 8], axes: []}\n",
        [
            "3:30: unknown key 'profiles[0].tuned'; known keys: min, opt, max, sizes, batch",
            "3:45: unknown key 'profiles[0].axes'; known keys: min, opt, max, sizes, batch",
        ],
    ),
    "several batch sizes": (
        "profiles:\n  - sizes: [8, x, 0]\n  - {sizes: [8, 1]}\n  - {max: 3, sizes: [1, 8]}\n",
        [
            "3:16: profiles[0].sizes[1]: expected a whole number, got 'x'",
            "3:19: profiles[0].sizes[2]: expected at least 1, got 0",
            "4:13: profiles[1].sizes: expected sizes in ascending order, each once, got [8, 1]",
            "5:6: profiles[2].max: expected `sizes` alone, or min, opt and max; remove one of them",
        ],
    ),
    "several sizes beside an axis": (
        f"profiles:\n  - height: {HEIGHT}\n    batch: {{sizes: [1, 8]}}\n",
        ["4:12: profiles[0].batch: expected one range of batch sizes beside other axes, got several sizes"],
    ),
    "two axes of one profile": (
        "profiles:\n  - batch: 8\n    height: 224\n    width: {min: 3, opt: 2, max: 4}\n",
        [
            "4:13: profiles[0].height: expected {min, opt, max}, got 224",
            "5:12: profiles[0].width: expected min ≤ opt ≤ max, got min 3, opt 2, max 4",
        ],
    ),
    "keys of an axis": (
        "profiles:\n  - batch: 8\n    height: {min: 3, opt: x, mx: 4}\n    width: {min: 3, opt: 3, max: 3}\n",
        [
            "4:13: missing key 'profiles[0].height.max'",
            "4:27: profiles[0].height.opt: expected a whole number, got 'x'",
            "4:30: unknown key 'profiles[0].height.mx'; did you mean 'max'?",
            "5:12: profiles[0].width: expected min < max, got 3 for both; an axis of one size needs no range",
        ],
    ),
    "name of an axis": (
        f"profiles:\n  - batch: 8\n    'a b': {HEIGHT}\n",
        ["4:5: profiles[0].a b: expected the name of an axis: letters, digits and `_`, the first one no digit"],
    ),
    "axis of no image": (
        f"profiles:\n  - batch: 8\n    depth: {HEIGHT}\n",
        ["4:12: `profiles[0]`: images have no axis 'depth'; expected height or width"],
    ),
    "long names": (
        (
            f"profiles:\n  - batch: 8\n    {'a' * 90}: {HEIGHT}\n    {'b' * 90}: {HEIGHT}\n{ARRAYS}"
            f"data: {{tensors: a.npz, axes: {{x: [{'a' * 90}, {'b' * 90}]}}}}\n"
        ),
        [
            (
                "3:5: `profiles[0]` is 198 characters in names of files; expected at most 150; write fewer sizes, or "
                "shorter names of axes"
            )
        ],
    ),
    "long names together": (
        (
            f"profiles:\n  - {{batch: 8, {'a' * 90}: {HEIGHT}}}\n  - {{batch: 8, {'b' * 90}: {HEIGHT}}}\n{ARRAYS}"
            f"data: {{tensors: a.npz, axes: {{x: [{'a' * 90}, {'b' * 90}]}}}}\n"
        ),
        [
            (
                "3:3: `profiles`: all axes together is 195 characters in names of files; expected at most 150; write "
                "fewer sizes, or shorter names of axes"
            )
        ],
    ),
    "profiles of modules": (
        "profiles: [1]\ntorch_tensorrt:\n  profiles:\n    - batch: {min: 1, opt: 8, max: x}\n",
        ["5:36: torch_tensorrt.profiles[0].batch.max: expected a whole number, got 'x'"],
    ),
    "names of several inputs": (
        f"profiles: [1]\n{ARRAYS}data:\n  tensors: a.npz\n  axes:\n    mask: sequence\n    x: [null, 1, batch]\n",
        [
            "7:11: data.axes.mask: expected a list with the name of each axis behind the sample, got 'sequence'",
            "8:15: data.axes.x[1]: expected letters, digits and `_`, or null for a fixed axis, got 1",
            "8:18: data.axes.x[2]: expected the axes behind the sample, got `batch`, which is the sample's own",
        ],
    ),
    "names without ranges": (
        f"profiles: [1]\n{ARRAYS}data:\n  tensors: a.npz\n  axes: {{x: [null, steps, side, side]}}\n",
        [
            (
                "6:20: `data.axes.x`: no profile has a range for 'steps'; write one, such as {batch: 8, steps: {min: "
                "…, opt: …, max: …}}, or null for its name"
            ),
            (
                "6:27: `data.axes.x`: no profile has a range for 'side'; write one, such as {batch: 8, side: {min: …, "
                "opt: …, max: …}}, or null for its name"
            ),
        ],
    ),
    "ranges without names": (
        f"profiles: [{{batch: 1, height: {HEIGHT}}}]\n{ARRAYS}data: {{tensors: a.npz}}\n",
        ["2:31: `profiles[0]`: no input has the axis 'height'; name it, such as `data: {axes: {tokens: [height]}}`"],
    ),
    "classes": (
        "profiles: [1]\ndata:\n  classes: [cat, null, '']\n",
        [
            "4:18: data.classes[1]: expected each name as text; write it in quotes, such as 'no', got null",
            "4:24: data.classes[2]: expected each name as text; write it in quotes, such as 'no', got ''",
        ],
    ),
    "entries of models": (
        (
            "profiles: [1]\nmodels:\n  - model: {name: a, task: x}\n"
            "  - data: {axes: {x: y}}\n    model: {name: b, wegths: 3}\n"
        ),
        [
            (
                "4:28: models[0].model.task: expected 'classification', 'embedding', 'tensors', 'segmentation', "
                "'multilabel', 'regression' or 'detection', got 'x'"
            ),
            "5:22: models[1].data.axes.x: expected a list with the name of each axis behind the sample, got 'y'",
            "6:22: unknown key 'models[1].model.wegths'; did you mean 'weights'?",
        ],
    ),
    "a shared profile that is wrong for one model": (
        (
            f"profiles: [{{batch: 1, s: {HEIGHT}}}]\nmodels:\n  - model: {{name: a}}\n"
            "  - model: {name: b, task: tensors, factory: 'a:b'}\n    data: {tensors: a.npz, axes: {x: [s]}}\n"
        ),
        ["2:26: `profiles[0]`: images have no axis 's'; expected height or width (for the model a)"],
    ),
    "a shared profile that is wrong for all models": (
        f"profiles: [{{batch: 1, s: {HEIGHT}}}]\nmodels:\n  - model: {{name: a}}\n  - model: {{name: b}}\n",
        ["2:26: `profiles[0]`: images have no axis 's'; expected height or width"],
    ),
    "text in place of a mapping": (
        "profiles: [1]\nmodel: {task: regression, weights: ' ', tolerance: -1}\n",
        [
            "3:36: model.weights: expected text that is not empty, got ' '",
            "3:52: model.tolerance: expected a number above 0, got -1",
        ],
    ),
    "quantisation": (
        "profiles: [1]\nquantization:\n  calibration: 50%\n  first: 3\n  sums: true\n  lst: false\n",
        [
            "4:16: quantization.calibration: expected a percentile from 99% to below 100%, got '50%'",
            "5:10: quantization.first: expected auto, true or false, got 3",
            "6:9: quantization.sums: expected auto or false, got true",
            "7:3: unknown key 'quantization.lst'; did you mean 'last'?",
        ],
    ),
    "load": (
        "profiles: [1]\nload:\n  scenarios: [single]\n  p99_ms: [0, x]\n  batches: []\n  max_delay_ms: -1\n",
        [
            (
                "4:15: load.scenarios[0]: expected 'single_stream', 'multi_stream', 'offline' or 'server', got "
                "'single'; did you mean 'single_stream'?"
            ),
            "5:12: load.p99_ms[0]: expected a number above 0, got 0",
            "5:15: load.p99_ms[1]: expected a number, got 'x'",
            "6:12: load.batches: expected at least one entry, got []",
            "7:17: load.max_delay_ms: expected a list, got -1",
        ],
    ),
    "durations of load": (
        "profiles: [1]\nload:\n  min_duration_seconds: 100\n",
        [
            (
                "4:25: `load.min_duration_seconds`: 100 is longer than `load.max_duration_seconds`, 60; shorten it or "
                "raise that"
            )
        ],
    ),
    "inputs and outputs": (
        "profiles: [1]\nio:\n  - {input: uint9}\n  - {output: top0}\n  - {output: 5}\n  - {out: 3}\n  - uint8\n",
        [
            "4:13: io[0].input: expected 'float32', 'float16' or 'uint8', got 'uint9'; did you mean 'uint8'?",
            "5:14: io[1].output: expected logits, probabilities, or top1 to top1000, got 'top0'",
            "6:14: io[2].output: expected text, got 5",
            "7:6: unknown key 'io[3].out'; did you mean 'output'?",
            "8:5: io[4]: expected a mapping, got 'uint8'",
        ],
    ),
    "outputs of another task": (
        f"profiles: [1]\n{ARRAYS}data: {{tensors: a.npz}}\nio: [{{input: float32, output: top5}}]\n",
        [
            (
                "5:31: `io[0].output: top5` is of `task: classification`, whose outputs are logits of classes; got "
                "`task: tensors`; write `output: logits`, or remove it"
            )
        ],
    ),
    "compute capabilities": (
        "profiles: [1]\ntensorrt:\n  compute_capabilities: [80, 81]\n",
        [
            (
                "4:30: tensorrt.compute_capabilities[1]: unknown compute capability 81; expected 80+, current or a "
                "list of 75, 80, 86, 89, 120, 121"
            )
        ],
    ),
    "what YAML cannot read": (
        f"profiles:\n  - batch: 0x8\n    height: {{min: 0500, opt: 600, max: 700}}\n    width: {HEIGHT[:-1]}, x: 1}}\n",
        [
            (
                "3:12: expected a number in decimal digits, got 0x8, which YAML may read as another number; write it "
                "in decimal digits, or '0x8' in quotes for text"
            ),
            (
                "4:19: expected a number in decimal digits, got 0500, which YAML may read as another number; write "
                "500, or '0500' in quotes for text"
            ),
            "5:39: unknown key 'profiles[0].width.x'; known keys: min, opt, max",
        ],
    ),
}
"""Documents below `workspaces: [1GiB]`, with all their problems."""


@pytest.mark.parametrize(("text", "expected"), list(WRONG.values()), ids=list(WRONG))
def test_each_mistake_has_its_own_place(write_config: Callable[[str], Path], text: str, expected: list[str]) -> None:
    """All mistakes are reported at once, each where it stands: a value at itself, a key that is wrong at the key."""
    file = write_config(f"workspaces: [1GiB]\n{text}")
    with pytest.raises(ConfigError) as caught:
        load_configs(file)
    assert [problem.removeprefix(f"{file}:") for problem in caught.value.problems] == expected
