"""Commands for the whole plan: plan, why, tune, prune, release, farm, schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cli.options import (
    ALLOW_DIRTY,
    ARTIFACTS,
    BUDGET,
    CONFIG,
    KEYLESS,
    MAX_DROP,
    OBJECTIVE,
    PRUNE_DELETE,
    RELEASE_KEY,
    subject_of,
)
from pipeline.planning.folder.owner import check_owner, claim
from pipeline.planning.project import Project
from pipeline.planning.spec import VARIANT
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.cli.parser import CommandLine, Parser


def add_plan_commands(line: CommandLine, remedy: str) -> None:
    """Add the commands that look at the plan or at everything that it has made."""

    def add(name: str, summary: str, example: str = "", *, only_prints: bool = True) -> Parser:
        parser = line.add(name, summary, example=example, remedy=remedy)
        parser.set_defaults(only_prints=only_prints)
        return parser

    parser = add("plan", "list every step that `doit` runs, as commands")
    for option in (CONFIG, ARTIFACTS):
        option.add_to(parser)
    parser.set_defaults(run=lambda options: _plan(Project.load(options.config, STAGES, options.artifacts)))

    parser = add("why", "say why a variant is stale, step by step", VARIANT.example)
    for option in (subject_of(VARIANT.noun), CONFIG, ARTIFACTS):
        option.add_to(parser)
    parser.set_defaults(
        run=lambda options: _why(Project.load(options.config, STAGES, options.artifacts), options.subject)
    )

    parser = add("tune", "search for the fastest variants that pass their gates", "--budget 10min", only_prints=False)
    for option in (BUDGET, MAX_DROP, OBJECTIVE, CONFIG, ARTIFACTS):
        option.add_to(parser)
    parser.set_defaults(
        run=lambda options: _tune(
            Project.load(options.config, STAGES, options.artifacts), options.budget, options.max_drop, options.objective
        )
    )

    parser = add("prune", "list the files of variants that pipeline.yaml no longer has", "--delete", only_prints=False)
    for option in (PRUNE_DELETE, CONFIG, ARTIFACTS):
        option.add_to(parser)
    parser.set_defaults(
        run=lambda options: _prune(Project.load(options.config, STAGES, options.artifacts), delete=options.delete)
    )

    parser = add("release", "make a folder and an archive of the deployable artifacts", "--key private.pem")
    signing = parser.add_mutually_exclusive_group()
    for option in (RELEASE_KEY, KEYLESS):
        option.add_to(signing)
    for option in (ALLOW_DIRTY, CONFIG):
        option.add_to(parser)
    parser.set_defaults(
        run=lambda options: _release(
            Project.load(options.config, STAGES), options.key, keyless=options.keyless, allow_dirty=options.allow_dirty
        )
    )

    parser = add("farm", "look at the machines of the farm: each target of pipeline.yaml needs one")
    CONFIG.add_to(parser)
    parser.set_defaults(run=lambda options: _farm(options.config))

    parser = add("schema", "print the JSON Schema of manifest.json")
    parser.set_defaults(run=lambda _options: _schema())


def _plan(project: Project) -> int:
    print("\n".join(project.command(step) for step in project.schedule.steps))
    return 0


def _why(project: Project, variant_id: str) -> int:
    from pipeline.planning.why import explain

    print(explain(project, project.plan.variant(variant_id)))
    return 0


def _tune(project: Project, budget_seconds: float, max_drop: float | None, objective: str | None) -> int:
    import logging
    import sys

    from pipeline.tune.tuning import Wishes, tune

    check_owner(project)
    claim(project)
    logging.getLogger("pipeline").setLevel(logging.WARNING)  # a line for each trial says enough
    record = tune(project, Wishes(budget_seconds, max_drop, (objective,) if objective else ()), sys.stdout)
    return 0 if record.answers else 1


def _prune(project: Project, *, delete: bool) -> int:
    from pipeline.planning import prune
    from pipeline.stages.common.console import megabytes

    leftovers = prune.find_leftovers(project)
    for path in leftovers.files:
        print(f"{'deleted' if delete else 'would delete'}: {path}")
    for path in leftovers.in_use:
        print(f"kept: {path}, which a planned variant shares")
    for folder in leftovers.elsewhere:
        print(f"kept: {folder.relative_to(project.paths.root)}, of a target that this host does not have")
    for folder in leftovers.models:
        print(f"kept: {folder}, a model of another name; if no other configuration makes it, delete it yourself")
    size, count = megabytes(leftovers.bytes), len(leftovers.variants)
    if delete:
        prune.delete(project, leftovers)
    if not leftovers.files:
        print("nothing to prune: every variant here is in the configuration")
    elif not delete:
        print(f"{count} variants, {size}; nothing was deleted: `doit prune --delete` does")
    return 0


def _release(project: Project, key: str | None, *, keyless: bool, allow_dirty: bool) -> int:
    from model_artifacts.releases.signature import Signer
    from model_artifacts.releases.signing_keys import open_key
    from pipeline.stages.release.stage import make_release

    signer = Signer(open_key(key) if key else None) if key or keyless else None
    release = make_release(project, signer, allow_dirty=allow_dirty)
    size = release.archive.stat().st_size / 1e6
    signature = "signed" if release.signed else "not signed"
    print(f"{len(release.manifest.artifacts)} artifacts, {signature}: {release.folder}")
    print(f"{size:.1f} MB: {release.archive}")
    return 0


def _farm(config: Path) -> int:
    from pipeline.farm.inspection import look_at_farm

    record = look_at_farm(config)
    for item in record.hosts:
        host = item.machine
        gpu = host.gpus[0].name if host.gpus else "no GPU that a driver shows"
        versions = ", ".join(f"{tool.name} {tool.version}" for tool in host.flavours)
        print(f"{item.worker_kind}: {versions or 'no TensorRT'}, torch {host.torch}, {gpu}, driver {item.host.driver}")
    print(f"{len(record.nodes)} machines have the cores or the GPUs that the configuration names")
    return 0


def _schema() -> int:
    from model_artifacts.records import manifest_schema

    print(manifest_schema(), end="")
    return 0
