"""Commands for the whole plan: plan, why, tune, prune, release, farm, schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.terminal import size_phrase
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
    RELEASE_MODEL,
    subject_of,
)
from pipeline.planning.folder.owner import check_owner, claim
from pipeline.planning.folder.projects import load_projects, project_with
from pipeline.planning.plan import find_named
from pipeline.planning.project import Project
from pipeline.planning.spec import VARIANT
from pipeline.stages import STAGES

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from model_artifacts.cli.parser import CommandLine, Parser
    from pipeline.planning.prune import Leftovers


def add_plan_commands(line: CommandLine, remedy: str) -> None:
    """Add the commands that look at the plan or at everything that it has made."""

    def add(name: str, summary: str, example: str = "", *, only_prints: bool = True) -> Parser:
        parser = line.add(name, summary, example=example, remedy=remedy)
        parser.set_defaults(only_prints=only_prints)
        return parser

    parser = add("plan", "list every step that `doit` runs, as commands")
    for option in (CONFIG, ARTIFACTS):
        option.add_to(parser)
    parser.set_defaults(run=lambda options: _plan(_loaded(options)))

    parser = add("why", "say why a variant is stale, step by step", VARIANT.example)
    for option in (subject_of(VARIANT.noun), CONFIG, ARTIFACTS):
        option.add_to(parser)
    parser.set_defaults(run=lambda options: _why(_loaded(options), options.subject))

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
    parser.set_defaults(run=lambda options: _prune(_loaded(options), delete=options.delete))

    parser = add("release", "make a folder and an archive of the deployable artifacts", "--key private.pem")
    signing = parser.add_mutually_exclusive_group()
    for option in (RELEASE_KEY, KEYLESS):
        option.add_to(signing)
    for option in (ALLOW_DIRTY, RELEASE_MODEL, CONFIG):
        option.add_to(parser)
    parser.set_defaults(run=_release)

    parser = add("farm", "look at the machines of the farm: each target of pipeline.yaml needs one")
    CONFIG.add_to(parser)
    parser.set_defaults(run=lambda options: _farm(options.config))

    parser = add("schema", "print the JSON Schema of manifest.json")
    parser.set_defaults(run=lambda _options: _schema())


def _loaded(options: argparse.Namespace) -> tuple[Project, ...]:
    """Return the projects of the models that the command line's configuration has."""
    return load_projects(options.config, STAGES, options.artifacts)


def _plan(projects: tuple[Project, ...]) -> int:
    steps = [(project, step) for spec in STAGES for project in projects for step in project.schedule.planned(spec)]
    print("\n".join(project.command(step) for project, step in steps))
    return 0


def _why(projects: tuple[Project, ...], variant_id: str) -> int:
    from pipeline.planning.why import explain

    print(explain(*project_with(projects, variant_id)))
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


def _prune(projects: tuple[Project, ...], *, delete: bool) -> int:
    from pipeline.planning import prune

    found = [(project, prune.find_leftovers(project)) for project in projects]
    for project, leftovers in found:
        _print_leftovers(project, leftovers, delete=delete)
    for folder in dict.fromkeys(folder for _, leftovers in found for folder in leftovers.models):
        print(f"kept: {folder}, a model of another name; if no other configuration makes it, delete it yourself")
    size, count = (size_phrase(sum(item.bytes for _, item in found)), sum(len(item.variants) for _, item in found))
    if delete:
        for project, leftovers in found:
            prune.delete(project, leftovers)
    if not any(leftovers.files for _, leftovers in found):
        print("nothing to prune: every variant here is in the configuration")
    elif not delete:
        print(f"{count} variants, {size}; nothing was deleted: `{projects[0].doit} prune --delete` does")
    return 0


def _print_leftovers(project: Project, leftovers: Leftovers, *, delete: bool) -> None:
    for path in leftovers.files:
        print(f"{'deleted' if delete else 'would delete'}: {path}")
    for path in leftovers.in_use:
        print(f"kept: {path}, which a planned variant shares")
    for folder in leftovers.elsewhere:
        print(f"kept: {folder.relative_to(project.paths.root)}, of a target that this host does not have")


def _release(options: argparse.Namespace) -> int:
    """Make a release of each model, or of the named one."""
    from model_artifacts.releases.signature import Signer
    from model_artifacts.releases.signing_keys import open_key
    from pipeline.stages.release.stage import make_release

    projects = {project.plan.model: project for project in load_projects(options.config, STAGES)}
    chosen = [find_named(options.model, projects, "model")] if options.model else projects.values()
    signer = Signer(open_key(options.key) if options.key else None) if options.key or options.keyless else None
    for project in chosen:
        release = make_release(project, signer, allow_dirty=options.allow_dirty)
        size = size_phrase(release.archive.stat().st_size)
        signature = "signed" if release.signed else "not signed"
        print(f"{len(release.manifest.artifacts)} artifacts, {signature}: {release.folder}")
        print(f"{size}: {release.archive}")
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
