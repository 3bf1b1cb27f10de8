"""`python -m pipeline STAGE SUBJECT`: one stage of one subject; what every `doit` action runs, and a person pastes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts import __version__
from model_artifacts.cli.boundary import guarded
from model_artifacts.cli.process import end_like_ctrl_c, escape_unknown_characters, ignore_further_signals
from model_artifacts.errors import SourceError, UnsupportedError, UsageError
from pipeline.cli.commands import COMMANDS, run_command
from pipeline.planning.steps import Stage, Step
from pipeline.records import Outcome
from pipeline.system.isolation import PARENT_VARIABLE, end_with
from pipeline.system.nvtx import nvtx_range

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from model_artifacts.records import ModuleContents
    from pipeline.planning.project import Project
    from pipeline.records import Artifact, TensorCast


_HELP = {
    Stage.SOURCE: "the model's weights and preprocessing           SUBJECT: resnet18",
    Stage.DATA: "images, and the FP32 reference's logits         SUBJECT: resnet18",
    Stage.EXPORT: "an ONNX file in fp32, fp16 or bf16              SUBJECT: resnet18/fp16",
    Stage.QUANTIZE: "an int8 or fp8 ONNX file, calibrated            SUBJECT: resnet18/int8",
    Stage.BUILD: "an engine or another artifact                   SUBJECT: resnet18/rtx-sm80+/fp16-b1-ws1GiB",
    Stage.VALIDATE: "an artifact against the FP32 reference          SUBJECT: resnet18/cpu-x86_64/onnxruntime-fp16",
    Stage.BENCHMARK: "all of a target's artifacts, in turn            SUBJECT: resnet18/cpu-x86_64",
    Stage.MANIFEST: "artifacts/manifest.json and a table of it       SUBJECT: resnet18",
    Stage.REPORT: "artifacts/report.html, and the release's bounds SUBJECT: resnet18",
    Stage.SENSITIVITY: "which layers mind int8 or fp8; on demand        SUBJECT: resnet18/int8",
    Stage.PROFILE: "what takes an artifact's time; on demand        SUBJECT: resnet18/cpu-x86_64/onnxruntime-fp32",
}


_REMEDY = "install the building stack: `uv sync`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage.

    Returns:
        the exit status: 0 done or skipped with a reason, 1 failed, 2 wrong usage or configuration; as of a command that
        a signal has ended, 143 when it was asked to end, and 137 when its process was killed.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    escape_unknown_characters()
    if given and given[0] in COMMANDS:
        return guarded(
            given[0],
            lambda: run_command(given[0], given[1:]),
            debug="--debug" in given,
            remedy=_REMEDY,
            may_be_cut_short=True,
        )
    options = _parser().parse_intermixed_args(given)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stdout, force=True)
    for package in ("pipeline", "model_artifacts"):
        logging.getLogger(package).setLevel(logging.INFO)
    return guarded(
        f"{options.stage} {options.subject or ''}".strip(),
        lambda: _run(options),
        debug=options.debug,
        remedy=_REMEDY,
        may_be_cut_short=options.stage in {"plan", "why", "schema"},
    )


def _parser() -> argparse.ArgumentParser:
    stages = "\n".join(f"  {stage.value:<11} {text}" for stage, text in _HELP.items())
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Runs one stage of the pipeline; `doit` runs what is stale of all of them.",
        epilog=f"stages, in their order:\n{stages}\n  plan        lists what `doit` runs, as commands\n"
        "  why         why a variant is stale, step by step             SUBJECT: resnet18/rtx-sm80+/fp16-b1-ws1GiB\n"
        "  prune       lists files of variants that pipeline.yaml no longer has; --delete deletes them\n"
        + "".join(f"  {name:<11} {text}\n" for name, text in COMMANDS.items())
        + "  schema      prints the manifest's JSON Schema\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*(stage.value for stage in Stage), "plan", "why", "prune", "schema"]
    parser.add_argument("stage", choices=names, metavar="STAGE", help="what to do; see below")
    parser.add_argument("subject", nargs="?", metavar="SUBJECT", help="to what; `plan` lists them")
    parser.add_argument("--config", type=Path, default=Path("pipeline.yaml"), help="default: %(default)s")
    parser.add_argument("--artifacts", type=Path, metavar="FOLDER", help="default: what the configuration says")
    parser.add_argument("--delete", action="store_true", help="with prune: delete what it lists")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.delete and options.stage != "prune":
        raise UsageError(f"--delete belongs to prune, and {options.stage} deletes nothing")
    if options.stage == "schema":
        from model_artifacts.records import manifest_schema

        print(manifest_schema(), end="")
        return 0
    from pipeline.planning.freshness import is_reused
    from pipeline.planning.project import Project

    project = Project.load(options.config, options.artifacts)
    if options.stage == "plan":
        print("\n".join(step.command for step in project.plan.steps))
        return 0
    if options.stage == "prune":
        return _prune(project, options.subject, delete=options.delete)
    if options.stage == "why":
        return _why(project, options.subject)
    stage = Stage(options.stage)
    if options.subject is None:
        raise UsageError(f"{stage.value} needs a SUBJECT", expected=_HELP[stage].rpartition(": ")[2])
    if is_reused(Step(stage, options.subject)):
        raise SourceError(
            f"{stage.value} needs torch, which is not installed here; what lies in artifacts/ is missing or stale",
            expected="the folders source/, data/ and onnx/ of this configuration, made on a host with torch",
            fix=f"run `{Step(stage, options.subject).command}` there, and copy {project.paths.folder} from it",
        )
    if project.plan.workers(Step(stage, options.subject)) and not project.on_worker:
        return _on_farm(project, Step(stage, options.subject))
    with _place_for(stage), nvtx_range(f"{stage.value} {options.subject}"):
        return _made(project, Step(stage, options.subject))


def _made(project: Project, step: Step) -> int:
    """Take what another machine has made, or make it and leave it for others; without a cache, make it."""
    if project.config.cache is None or project.on_worker:  # the farm's driver has looked there
        return _STAGES[step.stage](project, step.subject)
    from pipeline.planning.shared_cache import SharedCache

    cache = SharedCache(project.config.cache)
    if found := cache.fetch(project, step):
        _say(f"taken from {found}")
        return 0
    status = _STAGES[step.stage](project, step.subject)
    if status == 0:
        cache.offer(project, step)
    return status


def _on_farm(project: Project, step: Step) -> int:
    from pipeline.farm.executor import Farm

    return Farm(project).run(
        step, lambda said: print(said.line, file=sys.stderr if said.error else sys.stdout, flush=True)
    )


def _why(project: Project, subject: str | None) -> int:
    from pipeline.planning.why import explain

    if subject is None:
        raise UsageError("why needs a SUBJECT", expected="a variant, such as resnet18/rtx-sm80+/fp16-b1-ws1GiB")
    print(explain(project, project.plan.variant(subject)))
    return 0


def _prune(project: Project, subject: str | None, *, delete: bool) -> int:
    from pipeline.planning import prune

    if subject is not None:
        raise UsageError(f"prune takes no SUBJECT, got {subject}", fix="take the variant out of pipeline.yaml")
    found = prune.find_leftovers(project)
    for path in found.files:
        print(f"{'deleted' if delete else 'would delete'}: {path}")
    for path in found.in_use:
        print(f"kept: {path}, which a planned variant shares")
    for folder in found.elsewhere:
        print(f"kept: {folder.relative_to(project.paths.root)}, of a target that this host does not have")
    for folder in found.models:
        print(f"kept: {folder}, a model of another name; if no other configuration makes it, delete it yourself")
    if delete:
        prune.delete(project, found)
    size, count = _megabytes(found.bytes), len(found.variants)
    if not found.files:
        print("nothing to prune: every variant here is in the configuration")
    elif not delete:
        print(f"{count} variants, {size}; nothing was deleted: `doit prune --delete` does")
    return 0


def _place_for(stage: Stage) -> AbstractContextManager[None]:
    """Wait until a stage may run here: nothing else of ours works while something is timed."""
    if stage in {Stage.MANIFEST, Stage.REPORT}:
        return nullcontext()
    from pipeline.system.locks import working

    return working(alone=stage in {Stage.BENCHMARK, Stage.PROFILE})


def _source(project: Project, subject: str) -> int:
    from pipeline.stages.source.stage import make_source

    project.plan.check_model(subject)
    record = make_source(project)
    _say(f"{record.origin_detail}: {record.parameters / 1e6:.1f} M parameters, {record.classes} classes")
    return 0


def _data(project: Project, subject: str) -> int:
    from pipeline.stages.common.model import restore_model
    from pipeline.stages.data.stage import make_data

    project.plan.check_model(subject)
    record = make_data(project, restore_model(project))
    top1 = "no labels" if record.reference_top1 is None else f"reference top-1 {record.reference_top1:.1%}"
    _say(f"{record.calibration_samples} to calibrate, {record.validation_samples} to validate; {top1}")
    for file in record.unreadable:
        _say(f"unreadable, left out: {file}")
    return 0


def _export(project: Project, subject: str) -> int:
    from pipeline.stages.common.model import restore_model
    from pipeline.stages.export.stage import make_onnx

    record = make_onnx(project, restore_model(project), project.plan.graph(subject))
    _say(f"{_megabytes(record.file.bytes)}, opset {record.opset}, {record.folded_batch_norms} batch-norms folded")
    _say_casts(record.casts)
    return 0


def _say_casts(casts: Sequence[TensorCast]) -> None:
    lost = [sum(counts) for counts in zip(*((c.underflow, c.subnormal, c.overflow) for c in casts), strict=True)]
    if any(lost):
        _say(f"cast: {lost[0]:,} values underflow to zero, {lost[1]:,} become subnormal, {lost[2]:,} overflow")


def _quantize(project: Project, subject: str) -> int:
    from pipeline.stages.quantize.stage import make_quantized

    record = make_quantized(project, project.plan.graph(subject))
    _say(f"{_megabytes(record.file.bytes)}, opset {record.opset}{', and one of opset 17' if record.opset17 else ''}")
    _say_casts(record.casts)
    return 0


def _build(project: Project, subject: str) -> int:
    from pipeline.stages.build.stage import build_variant

    artifact = build_variant(project, project.plan.variant(subject))
    return _said(artifact.outcome, artifact.reason, _built(artifact))


def _built(artifact: Artifact) -> str:
    if artifact.file is None:
        return ""
    shared = f", the same engine as {artifact.same_as}" if artifact.same_as else ""
    memory = f", {_megabytes(artifact.memory.activation_bytes)} of activations" if artifact.memory else ""
    size = f"{_megabytes(artifact.file.bytes)}{memory}{_contents(artifact.module)}"
    return f"{size}, built in {artifact.build_seconds:.1f} s{shared}"


_SHOWN = 5
"""How many operators a line names; the record has all."""


def _contents(module: ModuleContents | None) -> str:
    """Return what a module is made of; one that is partly PyTorch says so."""
    if module is None:
        return ""
    times = {item.name: f" ×{item.calls}" for item in module.calls if item.calls > 1}
    ordered = [item.name for item in module.calls] or module.torch_operators
    stayed = [name + times.get(name, "") for name in ordered]
    more = ", …" if len(stayed) > _SHOWN else ""
    left = f"; in PyTorch stayed {', '.join(stayed[:_SHOWN])}{more}" if stayed else ""
    return f", {module.segments} TensorRT {'engine' if module.segments == 1 else 'engines'}{left}"


def _validate(project: Project, subject: str) -> int:
    from pipeline.stages.validate.stage import validate_variant

    report = validate_variant(project, project.plan.variant(subject))
    if report.accuracy is None:
        return _said(report.outcome, report.reason, "")
    words = "passes its gate" if report.passed else f"REJECTED: {report.reason}"
    _say(f"{words} (agreement {report.accuracy.top1_agreement:.2%}, relative L2 {report.accuracy.relative_l2:.1e})")
    return 0


def _benchmark(project: Project, subject: str) -> int:
    from pipeline.stages.benchmark.stage import benchmark_target

    reports = benchmark_target(project, project.plan.target(subject))
    failed = [report for report in reports if report.outcome is Outcome.FAILED]
    for report in failed:
        _say(f"FAILED: {report.variant_id}: {report.reason}")
    reasons = sorted({report.reason for report in reports if report.outcome is Outcome.SKIPPED})
    for reason in reasons:
        _say(f"skipped: {reason}")
    return 1 if failed else 0


def _manifest(project: Project, subject: str) -> int:
    from model_artifacts.cli.tables import print_manifest
    from pipeline.stages.manifest.stage import make_manifest

    project.plan.check_model(subject)
    print_manifest(make_manifest(project), sys.stdout)
    return 0


def _report(project: Project, subject: str) -> int:
    from model_artifacts.host.environment import installed
    from pipeline.cli.tables import print_changes
    from pipeline.stages.report.stage import make_report

    project.plan.check_model(subject)
    missing = [name for name in ("jinja2", "plotly") if not installed(name)]
    if missing and project.config.release is None:  # a build host needs no page; a bound, though, must be held
        _say(f"skipped: {' and '.join(missing)} not installed here")
        return 0
    if missing:
        raise UnsupportedError(f"the report needs {' and '.join(missing)}", fix="install the dependency group `build`")
    report = make_report(project)
    if project.config.release:
        print_changes(report.changes, sys.stdout)
    _say(f"the report: {report.path}")
    for breach in report.breaches:
        print(
            f"error: {breach.id}: {breach.metric} is {breach.turn.value} than released"
            f"\n  expected: {breach.breach}\n  got:      {breach.after}, released {breach.before}",
            file=sys.stderr,
        )
    return 1 if report.breaches else 0


def _profile(project: Project, subject: str) -> int:
    from pipeline.cli.tables import print_profile
    from pipeline.stages.profile.stage import profile_variant

    profile = profile_variant(project, project.plan.variant(subject))
    if profile.outcome is Outcome.DONE:
        print_profile(profile, sys.stdout)
        return 0
    return _said(profile.outcome, profile.reason, "")


def _sensitivity(project: Project, subject: str) -> int:
    from pipeline.cli.tables import print_sensitivity
    from pipeline.stages.sensitivity.stage import measure_sensitivity

    print_sensitivity(measure_sensitivity(project, project.plan.quantized(subject)), sys.stdout)
    return 0


_STAGES: dict[Stage, Callable[[Project, str], int]] = {
    Stage.SOURCE: _source,
    Stage.DATA: _data,
    Stage.EXPORT: _export,
    Stage.QUANTIZE: _quantize,
    Stage.BUILD: _build,
    Stage.VALIDATE: _validate,
    Stage.BENCHMARK: _benchmark,
    Stage.MANIFEST: _manifest,
    Stage.REPORT: _report,
    Stage.PROFILE: _profile,
    Stage.SENSITIVITY: _sensitivity,
}


def _said(outcome: Outcome, reason: str, done: str) -> int:
    """Print how a stage ended, and return its exit status."""
    if outcome is Outcome.DONE:
        _say(done)
    elif outcome is Outcome.SKIPPED:
        _say(f"skipped: {reason}")
    else:
        print(f"error: {reason}", file=sys.stderr)
    return 1 if outcome is Outcome.FAILED else 0


def _say(text: str) -> None:
    if text:
        print(text, flush=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    end_like_ctrl_c()
    if parent := os.environ.get(PARENT_VARIABLE):  # the doit that started this
        end_with(int(parent))
    status = main()
    ignore_further_signals()
    sys.exit(status)
