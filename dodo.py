"""The pipeline's table of contents: `doit list` prints it, `doit` runs what is stale of it, in this order.

Every action is a command that a person can paste: `python -m pipeline build resnet18/rtx-sm80+/fp16-b1-ws1GiB`.
Which variants there are comes from pipeline.yaml; how a stage works, from the module in pipeline/ that has its name.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pipeline.cli.tasks import Tasks
from pipeline.planning.steps import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

DOIT_CONFIG = {"default_tasks": [stage.value for stage in Stage if stage.by_default]}

TASKS = Tasks.load()


def task_source() -> Iterator[dict[str, Any]]:
    """The model's weights and its preprocessing: IMAGENET1K_V1, a checkpoint, or the sample model."""
    yield from TASKS.of(Stage.SOURCE)


def task_data() -> Iterator[dict[str, Any]]:
    """Calibration and validation images, and the FP32 reference's logits."""
    yield from TASKS.of(Stage.DATA)


def task_export() -> Iterator[dict[str, Any]]:
    """ONNX in fp32, fp16 and bf16: batch-norms folded in FP32, then cast, then exported."""
    yield from TASKS.of(Stage.EXPORT)


def task_quantize() -> Iterator[dict[str, Any]]:
    """ONNX in int8: calibrated QDQ for TensorRT, and for this processor."""
    yield from TASKS.of(Stage.QUANTIZE)


def task_build() -> Iterator[dict[str, Any]]:
    """TensorRT engines and modules for every precision, batch profile and workspace."""
    yield from TASKS.of(Stage.BUILD)


def task_validate() -> Iterator[dict[str, Any]]:
    """Every artifact against the FP32 reference, judged by its precision's gate."""
    yield from TASKS.of(Stage.VALIDATE)


def task_benchmark() -> Iterator[dict[str, Any]]:
    """Latency and throughput of a target's artifacts, in interleaved rounds."""
    yield from TASKS.of(Stage.BENCHMARK)


def task_manifest() -> Iterator[dict[str, Any]]:
    """artifacts/manifest.json: what was built, and what of it may be deployed."""
    yield from TASKS.of(Stage.MANIFEST)


def task_report() -> Iterator[dict[str, Any]]:
    """artifacts/report.html: the verdict with its evidence, and what changed since the released build."""
    yield from TASKS.of(Stage.REPORT)


def task_profile() -> Iterator[dict[str, Any]]:
    """On demand: which layers and kernels take an artifact's time, by the library's profiler and Nsight Systems."""
    yield from TASKS.of(Stage.PROFILE)


def task_sensitivity() -> Iterator[dict[str, Any]]:
    """On demand: which layers mind int8 or fp8 most, and which to leave in FP16 for the gate to be kept."""
    yield from TASKS.of(Stage.SENSITIVITY)


def task_release() -> dict[str, Any]:
    """On demand: a folder and an archive of what may be deployed, with its evidence; `--key` signs it."""
    return TASKS.release()


def task_verify() -> dict[str, Any]:
    """On demand: the newest release against everything that it says of itself; `--key` demands a signature."""
    return TASKS.verify()


def task_triton() -> dict[str, Any]:
    """On demand: a model repository for Triton Inference Server, of what it can run."""
    return TASKS.triton()


def task_prune() -> dict[str, Any]:
    """On demand: lists files of variants that pipeline.yaml no longer has; `doit prune --delete` deletes them."""
    return TASKS.prune()


def task_docs() -> dict[str, Any]:
    """For developers: docs/api.md, docs/manifest.md and its schema, from the docstrings."""
    return {"actions": [[sys.executable, "docs/generate.py"]], "verbosity": 2}


def task_check() -> dict[str, Any]:
    """For developers: tests, linters, types, layers, schema and coverage, as CI runs them."""
    return {"actions": [[sys.executable, "-m", "pytest", "--cov", "-n", "auto"]], "verbosity": 2}
