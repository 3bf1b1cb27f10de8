"""The stage `export`: ONNX files in floating point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from pipeline.planning.keys import make_key, name_fields
from pipeline.planning.spec import EXPORTED, StageSpec
from pipeline.records import OnnxRecord

if TYPE_CHECKING:
    from model_artifacts.records import Graph, Key
    from pipeline.planning.project import Project

VERSION = 11
"""Raise it when the same weights give another graph, or none.

Since 2 a graph records nothing of the machine. Since 3 its constants are always folded, and its IR version is the
oldest that holds its operators. Since 4 a trace that computes something else than the network is not used, and the
graph is compared with the network. Since 5 weights that torch computes in every call are baked first, and numbers near
0 and 1 are kept. Since 6 graphs in bf16 have none of the operators that TensorRT refuses in bf16. Since 7 a run folds
the batch-norms that torch.fx leaves. Since 8 means without padding count none, and a graph is refused
whose network goes another way at some size. Since 9 it is refused, too, if a number that the trace keeps decides it.
Since 10 so it is if a comparison decides that the trace does not ask for, such as one behind `is True`.
Since 11 so it is if the text or the type of a size decides it, which a run has otherwise than a trace, or if it goes
another way in a narrow type alone.
"""
FILES_VERSION = 1
"""The same for models that are ONNX files alone.

1 keeps arithmetic on sizes in float32.
"""
REWRITES_VERSION = 1
"""Raise it when the same rewrites give another graph."""


def export_key(project: Project, graph: Graph) -> Key:
    """Return the key of an exported graph."""
    source = project.source()
    return make_key(
        model=source.key.digest,
        weights=source.weights.sha256,
        preprocessing=source.preprocessing,
        exporter=VERSION,
        graph=graph,
        torch=version("torch"),
        onnx=version("onnx"),
        onnxscript=version("onnxscript"),
        **({"axes": [axis.model_dump(mode="json") for axis in axes]} if (axes := project.config.axes) else {}),
        **({"files": FILES_VERSION} if source.onnx else {}),
        **({"rewrites": [REWRITES_VERSION, chosen]} if (chosen := project.config.rewrites.chosen) else {}),
        **name_fields(project),
    )


SPEC = StageSpec(
    name="export",
    sentence="ONNX in fp32, fp16 and bf16: batch-norms folded in FP32, then cast, then exported.",
    subjects=EXPORTED,
    version=VERSION,
    record=OnnxRecord,
    records=lambda paths, _plan, graph: (paths.onnx_record(graph),),
    files=lambda paths, _plan, graph: (paths.onnx(graph),),
    key=export_key,
    run="pipeline.stages.export.stage:run",
    seconds=3,
    requires=lambda schedule, _graph: schedule.of("source"),
    is_shared=lambda _plan, _graph: True,
    needs_torch=True,
    maker_fields=frozenset({"torch", "onnx", "onnxscript"}),
)
