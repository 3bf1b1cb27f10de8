"""FP32 ONNX → the places of Q/DQ pairs that Model Optimizer proposes (`<model>/onnx/int8.proposal.json`, …).

Model Optimizer calibrates and quantises a copy of the graph. Only the places of its pairs are taken.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from model_artifacts.errors import QuantizeError, one_line, storage_errors
from model_artifacts.host.environment import now, tools
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.records import Graph
from model_artifacts.sessions.feeds.batches import feed_of
from pipeline.adapters import onnx_graph
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import Proposal
from pipeline.stages.common.samples import to_batch
from pipeline.stages.propose.model_optimizer import SECONDS, Job, interpreter, quantize_elsewhere
from pipeline.stages.propose.pairs import pairs_of
from pipeline.stages.quantize.stage import fp32_of

if TYPE_CHECKING:
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console

_SAMPLES = 8
"""Calibration images for Model Optimizer, a choice: its places do not depend on their number.

ResNet18's are the same with 8 and with 512 images (Model Optimizer 0.47.0), and its ranges are not taken.
"""


def propose(project: Project, graph: Graph, seconds: float = SECONDS) -> Proposal:
    """Record where Model Optimizer puts Q/DQ pairs.

    Args:
        project: the export of FP32 and the data stage must have run.
        graph: int8 or fp8 for TensorRT.
        seconds: the time limit.

    Raises:
        QuantizeError: Model Optimizer is not installed, or too old; or it cannot quantise the graph, or not in time; or
            its graph does not fit the FP32 graph.
        RecordError: a record of the export or of the data stage is missing or damaged.
        StorageError: the record or the files for Model Optimizer cannot be written.
        NewerRecordError: a newer version of this project wrote the present record.
    """
    path = project.paths.proposal(graph)
    refuse_newer(path)
    key = key_of(project, Step("propose", f"{project.plan.model}/{graph.value}"))  # before the inputs can change
    python, fp32, data = interpreter(), fp32_of(project), project.data()
    names = [value.name for value in fp32.graph.input]
    batch = to_batch(project.pixels(data.calibration)[:_SAMPLES], data.preprocessing)
    with tempfile.TemporaryDirectory() as name, storage_errors(f"writing below {name}"):
        folder = Path(name)
        job = Job(folder / "fp32.onnx", folder / "inputs.npz", graph.precision.value, folder / "quantized.onnx")
        onnx_graph.save(fp32, job.source)
        np.savez(job.inputs, **feed_of(names, batch))
        version = quantize_elsewhere(python, job, seconds)
        pairs = pairs_of(_read(job.output, version), fp32)
    record = Proposal(
        key=key,
        built_at=now(),
        toolchain=tools("onnx"),
        graph=graph,
        structure_sha256=project.onnx(Graph.FP32).structure_sha256,
        model_optimizer=version,
        pairs=pairs,
    )
    return project.write(path, record)


def _read(file: Path, version: str) -> onnx.ModelProto:
    try:
        return onnx.load(file, load_external_data=False)  # the places alone
    except DecodeError as exc:
        raise QuantizeError(
            f"the ONNX file of Model Optimizer {version} cannot be read",
            got=one_line(exc),
            fix="leave `quantization.placement` at auto",
        ) from exc


def run(project: Project, graph: Graph, console: Console) -> int:
    """Record a proposal, and print how many nodes have pairs."""
    record = propose(project, graph)
    nodes = len({pair.node for pair in record.pairs})
    console.say(f"Model Optimizer {record.model_optimizer}: {len(record.pairs)} Q/DQ pairs in front of {nodes} nodes")
    return 0
