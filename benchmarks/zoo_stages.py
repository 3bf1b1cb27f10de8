"""Run every network of a file through the pipeline's stages: the table of networks and stages in docs/models.md.

python benchmarks/zoo_stages.py ../shared/models/zoo.py               all networks that the results lack; no GPU needed
python benchmarks/zoo_stages.py ../shared/models/zoo.py --only unet   the networks whose name matches, anew
python benchmarks/zoo_stages.py ../shared/models/zoo.py --table       write the table to docs/models.md
python benchmarks/zoo_stages.py ../shared/models/zoo.py --engines --results r.json --section gpu
                                                                      engines alone; with --table another table

The file has functions without arguments that return networks, which `model.factory: FILE:NAME` can name. Each gets a
small project: its own random weights, a few crops of photographs or drawn arrays, the smallest settings. Each step is
a process of its own with a time limit. TensorRT-RTX builds an engine ahead of time, and ONNX Runtime runs the graphs.
Where there is a GPU, it runs the engine, too, whose target `--target` names. What the networks need beside this project
(timm, transformers, …) belongs on PYTHONPATH: `pip install --no-deps --target DIR timm …`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console

from model_artifacts.host.environment import missing_driver, version

if TYPE_CHECKING:
    import resource
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

RESULTS = Path("artifacts/zoo_stages.json")
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
LIMIT_SECONDS = 900
"""Longest time of one step."""
FAULT, REFUSED, REJECTED, DONE = "fault", "refused", "rejected", "done"
_PACKAGES = ("timm", "segmentation-models-pytorch", "ultralytics", "transformers", "efficientnet-lite-pytorch")


class Settings(NamedTuple):
    """The settings of a network's project that differ from a classifier's of 224×224 in colour."""

    task: str = "classification"
    size: int = 224
    channels: int = 3
    more: str = ""
    """Further settings of the model, as YAML."""
    weights: str = ""
    """A factory of the same file, and a file that its state dict is saved in before: `factory > file`."""
    arrays: tuple[str, ...] = ()
    """The inputs of a network that takes no images of a folder, of those in `ARRAYS`."""


KNOWN = {
    "resnet18_embed": Settings("embedding"),
    "features_only": Settings("tensors"),
    "gray_resnet": Settings(channels=1),
    "unet": Settings("segmentation", 128),
    "fcn": Settings("segmentation", 128),
    "lraspp_out": Settings("segmentation", 128),
    "unet_flat": Settings("tensors", 128),
    "ssdlite": Settings("tensors", 320),
    "fasterrcnn": Settings("tensors", 320),
    "yolo": Settings("tensors", 320),
    "yolo_boxes": Settings("tensors", 320),
    "yolo_flat": Settings("tensors", 320),
    "two_heads_dict": Settings("tensors"),
    "two_heads_tuple": Settings("tensors"),
    "siamese": Settings("embedding", arrays=("left", "right")),
    "regressor": Settings("regression", more="tolerance: 0.1"),
    "regressor_n1": Settings("regression", more="tolerance: 0.1"),
    "multilabel": Settings("multilabel"),
    "text_encoder": Settings("embedding", arrays=("input_ids", "attention_mask")),
    "text_one_input": Settings("embedding", arrays=("input_ids",)),
    "efficientnet_lite0_plain": Settings(weights="efficientnet_lite0 > efficientnet-lite0.pth"),
}
"""The networks of the project's zoo that are no plain classifiers."""

SAMPLES, TOKENS = 24, 16
ARRAYS: dict[str, Callable[[np.random.Generator], npt.NDArray[np.generic]]] = {
    "left": lambda random: random.normal(size=(SAMPLES, 3, 224, 224)).astype(np.float32),
    "right": lambda random: random.normal(size=(SAMPLES, 3, 224, 224)).astype(np.float32),
    "input_ids": lambda random: random.integers(0, 1000, (SAMPLES, TOKENS)),
    "attention_mask": lambda _: np.ones((SAMPLES, TOKENS), np.int64),
}
"""The arrays of an input, drawn anew for each network."""

IMAGES = """preprocessing:
  {{resize: {settings.size}, crop: {settings.size}, interpolation: bilinear, mean: {mean}, std: {std}}}
data: {{images: photographs, calibration: 8, validation: 16}}"""
TENSORS = "data: {tensors: inputs.npz, calibration: 8, validation: 16}"
CONFIGURATION = """
model: {{name: {name}, factory: "{module}:{name}", weights: factory, task: {settings.task}{more}}}
{data}
precisions: [fp32, fp16, int8]
profiles: [{{min: 1, opt: 1, max: 4}}]
workspaces: [1GiB]
"""
ENGINE_RUNS = "engine runs"
STEPS = {
    "source": ("source {}",),
    "data": ("data {}",),
    "export fp32": ("export {}/fp32",),
    "export fp16": ("export {}/fp16",),
    "int8": ("quantize {}/int8",),
    "rounding": ("rounding {}/fp32", "rounding {}/tf32", "rounding {}/fp16", "rounding {}/int8"),
    "engine fp16": ("build {}/TARGET/fp16-b1-1-4-ws1GiB",),
    ENGINE_RUNS: ("validate {}/TARGET/fp16-b1-1-4-ws1GiB",),
    "runs fp32": ("build {}/cpu-x86_64/onnxruntime-fp32", "validate {}/cpu-x86_64/onnxruntime-fp32"),
    "runs fp16": ("build {}/cpu-x86_64/onnxruntime-fp16", "validate {}/cpu-x86_64/onnxruntime-fp16"),
    "runs int8": ("build {}/cpu-x86_64/onnxruntime-int8", "validate {}/cpu-x86_64/onnxruntime-int8"),
}
"""The columns of the table, and the steps of each. TARGET is that of the engines."""
ENGINE_STEPS = {
    column: STEPS[column] for column in ("source", "data", "export fp32", "export fp16", "engine fp16", ENGINE_RUNS)
} | {"rounding": ("rounding {}/fp32", "rounding {}/fp16")}
"""The columns of the engines alone, which a lent GPU host has time for: what they need, and they themselves."""


class Step(NamedTuple):
    """The fate of a column's steps."""

    outcome: str
    """`done`, `rejected` by a gate, `refused` with a reason, `fault`, or empty where an earlier one stopped it."""
    reason: str
    seconds: float
    gigabytes: float
    """Peak memory of the largest process."""


def networks_of(file: Path) -> list[str]:
    """Return the names of a file's functions without arguments, in their order."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    functions = [item for item in body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
    return [item.name for item in functions if not (item.args.args or item.args.kwarg or item.args.vararg)]


def prepare(file: Path, name: str, folder: Path, environment: dict[str, str]) -> None:
    """Write the small project of a network."""
    settings = KNOWN.get(name, Settings())
    (folder / file.name).write_bytes(file.read_bytes())
    mean, std = [0.5] * settings.channels, [0.25] * settings.channels
    more = f", {settings.more}" if settings.more else ""
    data = TENSORS if settings.arrays else IMAGES.format(settings=settings, mean=mean, std=std)
    text = CONFIGURATION.format(name=name, module=file.stem, settings=settings, more=more, data=data)
    if settings.arrays:
        random = np.random.default_rng(0)
        np.savez(
            folder / "inputs.npz", allow_pickle=False, **{array: ARRAYS[array](random) for array in settings.arrays}
        )
    (folder / "pipeline.yaml").write_text(text, encoding="utf-8")
    factory, _, weights = settings.weights.partition(" > ")
    if factory:
        code = f"import torch, {file.stem}; torch.save({file.stem}.{factory}().state_dict(), {weights!r})"
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)  # noqa: S603 - this Python


def run(file: Path, name: str, target: str, steps_of: dict[str, tuple[str, ...]]) -> dict[str, Step]:
    """Run the steps of a network's project, each in a process of its own."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found: dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        prepare(file, name, folder, {**environment, "PYTHONPATH": f"{folder}{os.pathsep}{environment['PYTHONPATH']}"})
        for column in (column for column in STEPS if column in steps_of):
            commands = steps_of[column]
            if column == ENGINE_RUNS and missing_driver():
                continue
            steps = [command.format(name).replace("TARGET", target) for command in commands]
            found[column] = _column(steps, folder, environment)
            if column == "source" and found[column].outcome != DONE:
                break
    return found


def _column(commands: Iterable[str], folder: Path, environment: dict[str, str]) -> Step:
    """Run the steps of a column until one fails; the seconds are those of all, the memory is that of the largest."""
    last, seconds, gigabytes = Step(DONE, "", 0.0, 0.0), 0.0, 0.0
    for command in commands:
        last = run_step(command, folder, environment)
        seconds, gigabytes = seconds + last.seconds, max(gigabytes, last.gigabytes)
        if last.outcome != DONE:
            break
    return last._replace(seconds=round(seconds, 1), gigabytes=round(gigabytes, 2))


def run_step(command: str, folder: Path, environment: dict[str, str]) -> Step:
    """Run a step of a project, and read its fate from what it prints."""
    arguments = [sys.executable, "-m", "pipeline", *command.split()]
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(  # noqa: S603 - the pipeline itself
            arguments, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        usage, status = _wait(process)
        output.seek(0)
        text = output.read()
    seconds = time.perf_counter() - began
    return Step(*fate_of(status, text), seconds, usage.ru_maxrss / 2**20)


def _wait(process: subprocess.Popen[bytes]) -> tuple[resource.struct_rusage, int]:
    """Wait for a process, at most the limit, and return what it and its children used and its exit status."""
    previous = signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
    signal.alarm(LIMIT_SECONDS)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage, process.returncode


def fate_of(status: int, text: str) -> tuple[str, str]:
    """Return the outcome of a step and its reason, by its exit status and what it printed.

    Args:
        status: the exit status; negative for a signal.
        text: everything that it printed.
    """
    lines = text.splitlines()
    error = next((index for index, line in enumerate(lines) if line.startswith("error: ")), None)
    if status < 0:
        limit = " after the time limit" if -status == signal.SIGKILL else ""
        return FAULT, f"ended by {signal.Signals(-status).name}{limit}"
    if "Traceback (most recent call last)" in text or "error: unexpected " in text:
        return FAULT, " ".join(lines[error or 0 :][:2])
    if status == 0:
        for line in lines:
            if line.startswith("skipped: "):
                return REFUSED, line
            if line.startswith("REJECTED: "):
                return REJECTED, line.removeprefix("REJECTED: ")
        return DONE, ""
    if error is None:
        return FAULT, f"exit status {status} without a reason"
    whole = "\n".join(lines[error:]).removeprefix("error: ")
    if re.search(r"^\S+ is missing\n +fix: ", whole) or "not built: " in whole:
        return "", ""  # an earlier step has told the reason
    return REFUSED, whole


def _cell(step: Step | None, notes: list[str]) -> str:
    if step is None or not step.outcome:
        return ""
    if step.outcome == DONE:
        return f"{step.seconds:.0f} s"
    text = f"{step.outcome}: {_short(step)}"
    if text not in notes:
        notes.append(text)
    return f"{step.outcome} [{notes.index(text) + 1}]"


def _short(step: Step) -> str:
    """Return a reason in one line: a rejection without its numbers, else the fact with what was expected and got."""
    first, *details = [" ".join(line.split()) for line in step.reason.splitlines()]
    if step.outcome == REJECTED:
        return first.partition(": ")[0]
    return "; ".join([first, *(line for line in details if line.startswith(("expected:", "got:")))])


def table(results: dict[str, dict[str, Step]], names: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the page's table, with the reasons below it."""
    found = [f"{name} {number}" for name in _PACKAGES if (number := version(name)) != "absent"]
    used = [f"torch {version('torch')}", f"onnxruntime {version('onnxruntime-gpu')}"]
    used += [f"{name} {number}" for name in ("tensorrt", "tensorrt-rtx") if (number := version(name)) != "absent"]
    used += found
    yield from textwrap.wrap(f"{', '.join(used)}.", 120, break_on_hyphens=False)
    yield ""
    columns = [column for column in STEPS if any(column in steps for steps in results.values())]
    yield f"| network | task, input | {' | '.join(columns)} | minutes | GB |"
    yield f"|---|---|{'---|' * len(columns)}---|---|"
    notes: list[str] = []
    for name in names:
        if name not in results:
            continue
        steps, settings = results[name], KNOWN.get(name, Settings())
        cells = [_cell(steps.get(column), notes) for column in columns]
        minutes = sum(step.seconds for step in steps.values()) / 60
        memory = max(step.gigabytes for step in steps.values())
        image = f"{settings.task}, {', '.join(settings.arrays) or settings.size}"
        yield f"| {name} | {image} | {' | '.join(cells)} | {minutes:.1f} | {memory:.1f} |"
    yield ""
    yield "| note | reason |"
    yield "|---|---|"
    for place, note in enumerate(notes, 1):
        yield f"| {place} | {note.replace('<', '&lt;').replace('|', '&#124;')} |"


def write_page(results: dict[str, dict[str, Step]], names: Iterable[str], section: str) -> None:
    """Replace a table of the page: that between the comments of its section."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n{chr(10).join(table(results, names))}\n{end}{after}", encoding="utf-8")


def main() -> int:
    """Run the networks that are asked for, one after the other, and write each result at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a Python file with functions that return networks")
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--engines", action="store_true", help="run what the engines need, and these, alone")
    parser.add_argument("--target", default="rtx-sm80+", help="the target of the engines, as `pipeline plan` lists it")
    parser.add_argument("--table", action="store_true", help="write the table, run nothing")
    parser.add_argument("--section", default="stages", help="the table of the page: the name in its comments")
    options = parser.parse_args()
    names = networks_of(options.file)
    read = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else {}
    results = {name: {column: Step(*step) for column, step in steps.items()} for name, steps in read.items()}
    if options.table:
        write_page(results, names, options.section)
        return 0
    console, faults = Console(), 0
    for name in names:
        if not re.search(options.only, name) or (name in results and not options.only):
            continue
        results[name] = run(options.file.resolve(), name, options.target, ENGINE_STEPS if options.engines else STEPS)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
        faults += sum(step.outcome == FAULT for step in results[name].values())
        for column, step in results[name].items():
            console.print(
                f"{name}, {column}: {step.outcome} in {step.seconds} s, {step.gigabytes} GB {step.reason}",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
