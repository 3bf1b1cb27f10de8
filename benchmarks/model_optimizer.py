"""Compare our FP16, int8 and fp8 engines with engines of Model Optimizer's int8 and fp8 ONNX files.

    python benchmarks/model_optimizer.py --make --python …    after `doit export data`, on any machine
    python benchmarks/model_optimizer.py --config …           after `doit config=…`, on a GPU host

`--make` lets Model Optimizer quantise the project's own FP32 graph on the CPU, with its defaults and the project's
calibration images. It needs `nvidia-modelopt[onnx]`, which asks for other versions of onnx and ONNX Runtime than this
project. `--python` is the interpreter of an environment that has it. The GPU host needs only the two files.

Their engines are built like ours: the same batch range, workspace, settings and timing cache. All engines of one batch
range and workspace then replay CUDA graphs in turns, in this process. Each line has the median times, the relative L2
and top-1 agreement to the FP32 reference on the validation images, and the share of layers that ran in the precision.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from gpu import ROUNDS, bare, timed

from model_artifacts.errors import ArtifactError, one_line
from model_artifacts.host import cuda
from model_artifacts.records import Accuracy, Backend, BuiltFor, Graph, Precision, is_applied
from model_artifacts.sessions.engine import open_engine
from model_artifacts.sessions.feeds.batches import feed_of
from model_artifacts.tensorrt.flavour import BuildLog, load_flavour
from pipeline.adapters.tensorrt_builder import build_engine
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.build.engine import request_of
from pipeline.stages.common.samples import to_batch
from pipeline.stages.propose.model_optimizer import VARIABLE, Job, interpreter, quantize_elsewhere
from pipeline.stages.validate.batches import batch_sizes_of, run_batches
from pipeline.stages.validate.metrics import measure
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import Gpu, Variant

THEIRS = (Graph.INT8, Graph.FP8)
"""Graphs that Model Optimizer makes, too."""
SLOWER, SLOWER_MS = 1.02, 0.005
"""Factor and milliseconds by which our engine may be slower, as in `gpu.py`."""
WORSE = 1.05
"""Factor by which our relative L2 may be larger: a choice. Thresholds from other images move it as far."""

SECONDS = 3600.0
"""Time limit for each file: ResNet18 takes 80 s with 512 images on two cores."""


class Engine(NamedTuple):
    """An engine of either side."""

    plan: bytes
    built_for: BuiltFor


class Row(NamedTuple):
    """The results of an engine."""

    accuracy: Accuracy
    computed: str
    """The layers that multiply in the engine's precision, of all that multiply: `20/21`."""
    p50_ms: dict[int, float]
    """The median time by batch size."""


def their_file(folder: Path, graph: Graph) -> Path:
    """Return the path of Model Optimizer's ONNX file."""
    return folder / f"modelopt-{graph.value}.onnx"


def inputs_of(project: Project) -> dict[str, str]:
    """Return the digests of the FP32 graph and of the calibration images, which each file carries as metadata."""
    return {"source": project.onnx(Graph.FP32).canonical_sha256, "calibration": project.data().calibration.sha256}


def make(project: Project, folder: Path, python: str) -> None:
    """Quantise the FP32 graph by Model Optimizer, in an interpreter that has it.

    Raises:
        QuantizeError: there is no such interpreter, or Model Optimizer failed.
    """
    data = project.data()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        source, inputs = Path(name) / "fp32.onnx", Path(name) / "calibration.npz"
        shutil.copy(project.file(project.onnx(Graph.FP32).file), source)  # intermediate files are written beside it
        names = [item.name for item in project.onnx(Graph.FP32).inputs]
        np.savez(inputs, **feed_of(names, to_batch(project.pixels(data.calibration), data.preprocessing)))
        for graph in THEIRS:
            file = their_file(Path(name), graph)
            version = quantize_elsewhere(python, Job(source, inputs, graph.value, file), SECONDS)
            model = onnx.load(file)
            onnx.helper.set_model_props(model, inputs_of(project))
            onnx.save(model, folder / file.name)
            print(f"{folder / file.name}, by Model Optimizer {version}")


def check(project: Project, folder: Path) -> None:
    """Print a warning about a file whose metadata names another graph or other images.

    Raises:
        SystemExit: a file is missing.
    """
    for graph in THEIRS:
        path = their_file(folder, graph)
        if not path.is_file():
            sys.exit(f"{path} is missing; make it with --make")
        found = {item.key: item.value for item in onnx.load(path).metadata_props}
        if differing := [name for name, digest in inputs_of(project).items() if found.get(name) != digest]:
            print(f"warning: {path} does not name this project's {' and '.join(differing)}")


def ours(project: Project, variant: Variant) -> Engine | None:
    """Return a variant's engine; None if it was not built, or has no weights of its own."""
    artifact = project.artifact(variant)
    if artifact.outcome is not Outcome.DONE or artifact.file is None or artifact.built_for is None:
        reason = artifact.reason.partition("\n")[0]
        print(f"ours {variant.name}: not built: {reason}")
        return None
    if is_applied("strip_plan", artifact.settings):
        print(f"ours {variant.name}: not compared, because `strip_plan` left its weights out")
        return None
    if split := artifact.built_for.parts_phrase:
        print(f"ours {variant.name}: not compared, because it runs a batch {split}")
        return None
    return Engine(project.file(artifact.file).read_bytes(), artifact.built_for)


def theirs(project: Project, variant: Variant, folder: Path) -> Engine | None:
    """Build an engine of Model Optimizer's file, in the same way as the variant; None if it cannot be built."""
    target = project.plan.engine_target(variant)
    timings = project.paths.timing_cache(target.flavour, target.flavour_version, target.gpu, project.config.tensorrt)
    graph = variant.graph or Graph.INT8
    whole = project.config.tensorrt.model_copy(update={"batch_parts": 1})  # the loop that times it runs one context
    request = replace(request_of(project, variant), onnx=their_file(folder, graph), onnx_opset17=None, settings=whole)
    known = timings.read_bytes() if timings.is_file() else b""
    try:
        built = build_engine(load_flavour(target.flavour), request, BuildLog(), timings=known)
    except ArtifactError as exc:
        print(f"theirs {variant.name}: not built: {one_line(exc)}")
        return None
    print(f"theirs {variant.name}: built in {built.seconds:.0f} s", flush=True)
    return Engine(built.plan, built.built_for)


def evaluate(project: Project, variant: Variant, engine: Engine, gpu: Gpu) -> tuple[Accuracy, str]:
    """Run the validation images; return the accuracy against the FP32 reference, and the layers in the precision."""
    data = project.data()
    with (
        open_engine(load_flavour(engine.built_for.flavour), engine.plan, engine.built_for, gpu) as opened,
        opened.session() as session,
    ):
        sizes = batch_sizes_of(project, variant, opened.batches)
        logits = run_batches(
            session,
            lambda start, stop: to_batch(project.pixels(data.validation)[start:stop], data.preprocessing),
            data.validation_samples,
            batch=sizes.most,
            smallest=sizes.smallest,
        )
        shares = session.shares()
    inside = sum(share.layers for share in shares if share.precision is variant.precision)
    reference = np.load(project.file(data.reference))
    return measure(logits, reference, None), f"{inside}/{sum(share.layers for share in shares)}"


def compare(project: Project, engines: dict[tuple[Variant, str], Engine], gpu: Gpu) -> dict[tuple[Variant, str], Row]:
    """Evaluate the engines of one batch range, then time all of them in turns at each batch size."""
    rows = {key: Row(*evaluate(project, key[0], engine, gpu), {}) for key, engine in engines.items()}
    profile = next(iter(engines))[0].profile
    for batch in (size for size in project.config.timed_batches if profile and profile.takes(size)):
        with ExitStack() as stack:
            loops = {
                key: stack.enter_context(bare(engine.built_for, engine.plan, batch)) for key, engine in engines.items()
            }
            times: dict[tuple[Variant, str], list[float]] = {key: [] for key in loops}
            for _ in range(ROUNDS):
                for key, (replay, stream) in loops.items():
                    times[key].extend(timed(replay, stream)[0])
        for key, taken in times.items():
            rows[key].p50_ms[batch] = statistics.median(taken)
    return rows


def groups(project: Project) -> Iterator[list[Variant]]:
    """Yield the variants of each target, batch range and workspace in FP16, int8 and fp8, FP16 first.

    A workspace that gave the engine of a smaller one in the plan is left out.
    """
    found: dict[tuple[object, ...], list[Variant]] = {}
    for variant in project.plan.variants:
        if variant.backend is Backend.TENSORRT and variant.graph in {Graph.FP16, *THEIRS}:
            found.setdefault((variant.target, variant.profile, variant.workspace), []).append(variant)
    planned = {variant.id for variant in project.plan.variants}
    for variants in found.values():
        if any(project.artifact(variant).same_as not in planned for variant in variants):
            yield sorted(variants, key=lambda variant: variant.precision is not Precision.FP16)


def show(rows: dict[tuple[Variant, str], Row]) -> list[str]:
    """Print a line for each variant and batch size; return the cases in which theirs is faster or more accurate."""
    better = []
    for variant in dict.fromkeys(variant for variant, _ in rows):
        mine, other = rows.get((variant, "ours")), rows.get((variant, "theirs"))
        for batch in next(row.p50_ms for row in (mine, other) if row):
            p50, their_p50 = (row.p50_ms[batch] if row else None for row in (mine, other))
            ratio = f"{p50 / their_p50:.3f}" if p50 and their_p50 else "-"
            print(
                f"{variant.name:<28} {batch:>5} {_ms(p50)} {_ms(their_p50)} {ratio:>6}  {_accuracy(mine):<24} "
                f"{_accuracy(other)}",
                flush=True,
            )
            if p50 and their_p50 and p50 > max(their_p50 * SLOWER, their_p50 + SLOWER_MS):
                better.append(f"{variant.name}, batch {batch}: faster")
        if mine and other and mine.accuracy.relative_l2 > other.accuracy.relative_l2 * WORSE:
            better.append(f"{variant.name}: more accurate")
    return better


def _ms(value: float | None) -> str:
    return f"{value:>9.4f}" if value else f"{'-':>9}"


def _accuracy(row: Row | None) -> str:
    if row is None:
        return "-"
    accuracy = row.accuracy
    finite = "" if accuracy.finite else " NOT FINITE"
    return f"{accuracy.relative_l2:.2e} {accuracy.top1_agreement:7.2%} {row.computed:>5}{finite}"


def run(project: Project, folder: Path) -> list[str]:
    """Build, evaluate and time; print the table; return the cases in which theirs is better.

    Raises:
        SystemExit: there was nothing to compare.
    """
    check(project, folder)
    better: list[str] = []
    compared = 0
    for variants in groups(project):
        gpu = project.plan.gpu(variants[0].target)
        if gpu is None:
            sys.exit(f"{variants[0].target}: this host has no such GPU")
        cuda.use(gpu)
        engines: dict[tuple[Variant, str], Engine] = {}
        with exclusive(gpu):
            for variant in variants:
                if engine := ours(project, variant):
                    engines[variant, "ours"] = engine
                if variant.graph in THEIRS and (engine := theirs(project, variant, folder)):
                    engines[variant, "theirs"] = engine
            rows = compare(project, engines, gpu) if engines else {}
        print(
            f"{variants[0].target:<28} batch   ours ms theirs ms  ratio  ours: L2, top-1, layers  theirs: the same",
        )
        better += show(rows)
        compared += any(side == "theirs" for _, side in rows)
    if not compared:
        sys.exit("nothing was compared: no int8 or fp8 engine of these profiles was built by both sides")
    return better


def main() -> int:
    """Make the files, or print the table; return 1 if theirs is better at something, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("pipeline.yaml"))
    parser.add_argument("--folder", type=Path, help="of the two files; default: ARTIFACTS/model-optimizer")
    parser.add_argument("--make", action="store_true", help="make the two files, and end")
    parser.add_argument("--python", help=f"an interpreter with nvidia-modelopt[onnx]; default: {VARIABLE}")
    arguments = parser.parse_args()
    project = Project.load(arguments.config, STAGES)
    folder = arguments.folder or project.paths.root / "model-optimizer"
    if arguments.make:
        make(project, folder, arguments.python or interpreter())
        return 0
    better = run(project, folder)
    print("\n".join(f"THEIRS IS BETTER: {item}" for item in better) or "ours is as fast and as accurate as theirs")
    return 1 if better else 0


if __name__ == "__main__":
    sys.exit(main())
