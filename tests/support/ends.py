"""A small classifier with other inputs and outputs than its own, on images with colours."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from model_artifacts.records import ImageInput, Interpolation, Io, OutputForm, Preprocessing
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx.onnx_ml_pb2 as pb

CONFIGURATION = """\
model: {name: tiny, factory: "tests.support.tiny_model:make", weights: sample}
preprocessing: {resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.4, 0.6], std: [0.25, 0.3, 0.2]}
data: {images: photographs, calibration: 32, validation: 64}
precisions: [fp32, fp16]
profiles: [{min: 1, opt: 2, max: 4}]
workspaces: [16MiB]
io: [{}, {input: uint8, output: top5}, {input: float16, output: probabilities}]
benchmark: {batches: [2], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2}
"""
PIXELS_TO_TOP5 = Io(input=ImageInput.UINT8, output=OutputForm.TOP, top=5)
SPEC = Preprocessing(
    resize=32, crop=32, interpolation=Interpolation.BILINEAR, mean=(0.5, 0.4, 0.6), std=(0.25, 0.3, 0.2)
)
CPU = "tiny/cpu-x86_64/onnxruntime-"
TOP5, PROBABILITIES, PLAIN_FP16 = f"{CPU}fp16-uint8-top5", f"{CPU}fp16-float16-probabilities", f"{CPU}fp16"
FP32_TOP5 = f"{CPU}fp32-uint8-top5"
ENGINE = "tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB-uint8-top5"
MODULE = "tiny/gpu/dynamo-fp16-b1-2-4-ws16MiB-uint8-top5"


def made_in(folder: Path) -> Project:
    """Return a project whose ONNX files are validated and timed, and whose FP16 engine is built ahead of time."""
    file = folder / "pipeline.yaml"
    file.write_text(CONFIGURATION)
    project = Project.load(file, STAGES)
    ran = {TOP5, PROBABILITIES, PLAIN_FP16, FP32_TOP5}
    for step in project.schedule.steps:
        first = step.stage in {"source", "data", "export", "rounding"}
        own = step.stage in {"build", "validate"} and step.subject in ran
        built = step.stage == "build" and step.subject in {ENGINE, MODULE}
        if first or own or built:
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    for stage, subject in (("benchmark", "tiny/cpu-x86_64"), ("manifest", "tiny"), ("report", "tiny")):
        assert main([stage, subject, "--config", str(file)]) == 0
    return project


def broken_in(project: Project, folder: Path, variant: str, change: Callable[[pb.GraphProto], None]) -> Project:
    """Return a copy of a project with a fault in the ONNX file of one variant."""
    shutil.copytree(project.config_file.parent, folder)
    broken = Project.load(folder / "pipeline.yaml", STAGES)
    path = broken.paths.graph(broken.plan.variant(variant))
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return broken


def set_constant(graph: pb.GraphProto, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    """Replace the values of an initialiser."""
    tensor = next(item for item in graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))
