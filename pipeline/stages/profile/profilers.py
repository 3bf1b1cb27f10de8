"""Outputs of the profilers → layers and functions. Pure, except for running nsys and ONNX Runtime."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from model_artifacts.errors import RunError, one_line
from model_artifacts.host.files import scratch_folder
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import FileRecord, Precision, Tool
from model_artifacts.sessions.onnx import mute
from model_artifacts.sessions.opening import onnxruntime_runner, onnxruntime_session
from model_artifacts.tensorrt.inspector import EngineLayer
from pipeline.records import HotFunction, LayerTime
from pipeline.system.processes import kill_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from model_artifacts.records import Variant
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.opening import ArtifactFile
    from pipeline.planning.project import Project

_MOST = 50
"""The number of functions kept; the rest take next to no time."""
_NAME = 300
"""The longest name kept: C++ templates have names of kilobytes."""
_SECONDS = 600


class Timed(NamedTuple):
    """Layers, and the share of time in those that only copy."""

    layers: tuple[LayerTime, ...]
    copy_share: float


class Trace(NamedTuple):
    """The results of Nsight Systems."""

    functions: tuple[HotFunction, ...]
    command: str
    file: FileRecord
    tool: Tool


def rank_layers(timed: Iterable[tuple[EngineLayer, float]]) -> Timed:
    """Return layers with their times in milliseconds as records, the hottest first."""
    found = sorted(timed, key=lambda item: -item[1])
    total = sum(taken for _, taken in found)
    layers = tuple(
        LayerTime(
            name=layer.name,
            kind=layer.kind,
            precision=layer.precision,
            tactic=layer.tactic,
            shape=layer.shape,
            weights=layer.weights,
            median_us=round(taken * 1e3, 3),
            share=_share(taken, total),
        )
        for layer, taken in found
    )
    return Timed(layers, _share(sum(taken for layer, taken in found if layer.only_copies), total))


def rank_functions(found: Iterable[tuple[str, int, float]]) -> tuple[HotFunction, ...]:
    """Return (name, calls, total microseconds) as records, the hottest first, without those that took no time."""
    timed = sorted(((name, calls, taken) for name, calls, taken in found if taken > 0), key=lambda item: -item[2])
    total = sum(taken for _, _, taken in timed)
    return tuple(
        HotFunction(name=name[:_NAME], calls=calls, total_us=round(taken, 3), share=_share(taken, total))
        for name, calls, taken in timed[:_MOST]
    )


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


# Nsight Systems


def read_kernel_summary(text: str) -> tuple[HotFunction, ...]:
    """Return the kernels of `nsys stats --report cuda_gpu_kern_sum --format csv`.

    Raises:
        RunError: the text is no such summary.
    """
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith("Time (%),")), None)
    if start is None:
        raise RunError("nsys wrote no summary of kernels", got=one_line(RuntimeError(text.strip()[-300:])))
    try:
        return rank_functions(
            (row["Name"], int(row["Instances"]), float(row["Total Time (ns)"]) / 1e3)
            for row in csv.DictReader(line for line in lines[start:] if line.strip())
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise RunError("nsys wrote a summary of kernels that cannot be read", got=one_line(exc)) from exc


def has_nsight() -> bool:
    """Return true if Nsight Systems is installed."""
    return shutil.which("nsys") is not None


def trace_with_nsight(project: Project, variant: Variant) -> Trace:
    """Run a variant under Nsight Systems, and keep its report.

    Raises:
        RunError: nsys failed, or wrote no report.
    """
    path = project.paths.trace(variant)
    command = [
        *("nsys", "profile", "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none"),
        *("--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--force-overwrite=true"),
        *(sys.executable, "-m", "pipeline.stages.profile.workload", str(project.config_file), variant.id),
    ]
    at = command.index(sys.executable)
    with scratch_folder(path.parent) as folder:  # `stats` leaves a database beside the report
        report = folder / path.name
        _nsys([*command[:at], f"--output={report}", *command[at:]])
        if not report.is_file():
            raise RunError("nsys wrote no report", expected=str(path))
        stats = ["nsys", "stats", "--report=cuda_gpu_kern_sum", "--format=csv", "--force-export=true", "--output=-"]
        functions = read_kernel_summary(_nsys([*stats, str(report)]))
        report.replace(path)
    version = _nsys(["nsys", "--version"]).strip().rpartition(" ")[2]
    shown = [*command[:at], f"--output={path.name}", "python", *command[at + 1 :]]
    return Trace(
        functions,
        " ".join(shown),
        describe_file(path, project.paths.root),
        Tool(name="nsys", version=version or "unknown"),
    )


def _nsys(command: list[str]) -> str:
    """Run nsys, and return its output. The processes that it starts end with it in any case."""
    with subprocess.Popen(  # noqa: S603 - fixed words, and a variant of the plan
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=_SECONDS)
        except BaseException as exc:
            kill_session(process)
            if isinstance(exc, subprocess.TimeoutExpired):
                raise RunError(f"nsys gave no result in {_SECONDS} s", got=" ".join(command)) from exc
            raise
    if process.returncode:
        raise RunError(f"nsys failed (exit status {process.returncode})", got=(err or out).strip()[-300:] or "nothing")
    return out


# torch's profiler


def torch_functions(run: Callable[[], None], *, on_gpu: bool) -> tuple[HotFunction, ...]:
    """Return the hot functions of a run, from torch's profiler.

    Args:
        run: runs batches, and waits for them.
        on_gpu: profile every kernel by CUPTI, whichever library launched it; otherwise torch's own operators.
    """
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415 - hosts that build engines may have none

    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    events = profiler.key_averages()
    if on_gpu:
        events = [event for event in events if event.device_type.name == "CUDA"]
        return rank_functions((event.key, event.count, event.self_device_time_total) for event in events)
    return rank_functions((event.key, event.count, event.self_cpu_time_total) for event in events)


# ONNX Runtime's profile


def run_profiled(file: ArtifactFile, images: Batch, runs: int, folder: Path) -> str:
    """Run an ONNX file over and over with ONNX Runtime, which times every node.

    Args:
        file: the artifact.
        images: float32 (batch, channels, height, width).
        runs: the number of batches.
        folder: the folder for the profile.

    Returns:
        the profile, JSON.

    Raises:
        UnsupportedError: this host cannot run it.
        RunError: it cannot be loaded or run.
    """
    if file.gpu is not None:
        mute()
    session = onnxruntime_session(file, profile=str(folder / "profile"))
    run = onnxruntime_runner(file, session)
    for _ in range(runs):
        run(images)
    return Path(session.end_profiling()).read_text()


_ORT_TYPES = {
    "float": Precision.FP32,
    "float16": Precision.FP16,
    "bfloat16": Precision.BF16,
    "int8": Precision.INT8,
    "uint8": Precision.INT8,
}


def read_onnxruntime_profile(text: str, runs: int) -> tuple[tuple[EngineLayer, float], ...]:
    """Return the nodes of ONNX Runtime's profile, with the median time of the last runs in milliseconds.

    Args:
        text: JSON, a list of events.
        runs: the number of batches at its end that count; earlier ones warmed up.

    Raises:
        RunError: the text is no such profile.
    """
    try:
        events = [event for event in json.loads(text) if event.get("cat") == "Node" and _is_kernel(event)]
        found: dict[str, list[dict[str, Any]]] = {}
        for event in events:
            found.setdefault(str(event["name"]).removesuffix("_kernel_time"), []).append(event)
        return tuple(
            (_node(name, known[-1]), median(float(event["dur"]) for event in known[-runs:]) / 1e3)
            for name, known in found.items()
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise RunError("ONNX Runtime wrote a profile that cannot be read", got=one_line(exc)) from exc


def _is_kernel(event: dict[str, Any]) -> bool:
    return str(event.get("name", "")).endswith("_kernel_time")


def _node(name: str, event: dict[str, Any]) -> EngineLayer:
    facts = event["args"]
    outputs = facts.get("output_type_shape") or [{}]
    kind, sizes = next(iter(outputs[0].items()), ("", []))
    precision = _ORT_TYPES.get(kind)
    weights = int(facts.get("parameter_size") or 0)
    width = {Precision.FP32: 4, Precision.INT8: 1}.get(precision, 2) if precision else 1
    return EngineLayer(name, str(facts["op_name"]), "", precision, "x".join(map(str, sizes)), weights // width)
