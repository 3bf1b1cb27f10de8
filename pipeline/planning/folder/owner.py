"""The configuration that makes a model's folder: a second one with other settings would overwrite its results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import ArtifactError, RecordError, UsageError
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Graph, OutputForm, Record
from pipeline.config.loading import load_configs
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.folder.configurations import read_place
from pipeline.planning.paths import Paths

if TYPE_CHECKING:
    from pipeline.config.settings import Config
    from pipeline.planning.project import Project


class Owner(Record):
    """`artifacts/<model>/configuration.json`: the configuration that ran last."""

    configuration: str
    """Path of the file, relative to the artifacts folder."""


def check_owner(project: Project) -> None:
    """Check that no other configuration makes this model's folder with other settings.

    Two files may share a folder if they differ in the matrix alone, because each variant has a folder of its own. A
    file that is gone, or that names another model or folder now, owns nothing.

    Raises:
        UsageError: another configuration would have its results overwritten, and would overwrite these.
        ConfigError: a configuration is wrong whose results are used here through links.
    """
    _check_links(project)
    other = _owner(project)
    if other is None:
        return
    try:
        found = load_configs(other, project.plan.host)
    except ArtifactError:
        return  # it makes nothing while it is wrong
    theirs = next((config for config in found if _makes(config, other, project.paths.root, project.plan.model)), None)
    if theirs is None:
        return
    if differing := _differing(_results(project.config), _results(theirs)):
        raise UsageError(
            f"{project.config_file} and {other} would overwrite each other's results in {project.paths.folder}",
            expected="a `model.name`, or an `artifacts` folder, of its own for each configuration",
            got=f"the same for both, with other {', '.join(differing)}",
            fix=f"change `model.name` in {project.config_file}; or delete {other}, if nobody uses it any more",
        )


def _check_links(project: Project) -> None:
    """Check that what lies here through links is made by the settings of its own configuration.

    Points of `doit tune` have their model, images and graphs so. Once their configuration has changed, a step that is
    run by hand for the former point would overwrite what was made since.

    Raises:
        UsageError: it is made by other settings.
        ConfigError: its own configuration is wrong.
    """
    links = [path for path in sorted(project.paths.folder.glob("*")) if path.is_symlink()]
    for folder, link in {link.resolve().parent: link for link in links}.items():
        theirs = Paths(folder.parent, folder.name)
        file = _last(theirs)
        configs = load_configs(file, project.plan.host) if file else ()
        for config in configs:
            if file and _makes(config, file, theirs.root, theirs.model):
                _require_same_through(link, project, config, file)


def _require_same_through(link: Path, project: Project, other: Config, file: Path) -> None:
    """Refuse to use another configuration's results that have other settings.

    Raises:
        UsageError: the settings differ.
    """
    own = _own_sections(project.paths)
    mine, others = (_shared_results(config, own) for config in (project.config, other))
    if differing := _differing(mine, others):
        shown = Path(os.path.relpath(file))
        raise UsageError(
            f"{project.config_file} would overwrite results of {shown} through the link {link}",
            expected="the same settings for both, but for the choices of a search",
            got=f"other {', '.join(differing)}",
            fix=f"search again: `doit config={shown} tune`; or delete the links in {link.parent}",
        )


def _differing(mine: dict[str, object], others: dict[str, object]) -> list[str]:
    """Return the sections that differ, as messages name them."""
    return [f"`{name}`" for name, value in mine.items() if value != others[name]]


def claim(project: Project) -> None:
    """Record that this configuration makes the model's folder.

    Raises:
        StorageError: the record cannot be written.
    """
    file = os.path.relpath(project.config_file.resolve(), project.paths.root.resolve())
    owner = Owner(configuration=Path(file).as_posix())
    try:
        if read_record(project.paths.owner, Owner) == owner:
            return
    except RecordError:
        pass  # none yet, or a damaged one
    write_record(project.paths.owner, owner)


def is_made(project: Project, model: str) -> bool:
    """Return whether a configuration makes a model in a project's artifacts folder.

    The project's own does if it lists the model: its file may have moved, and `--artifacts` may name the folder. Else
    it is the one that ran last in the model's folder.

    Args:
        project: a project of that artifacts folder.
        model: the model's name.
    """
    root, host = project.paths.root, project.plan.host
    if model in _listed(project):
        return True
    file = _last(Paths(root, model))
    if file is None:
        return False
    try:
        configs = load_configs(file, host)
    except ArtifactError:
        return True  # somebody is at work on it, and its results are as good as before
    return any(_makes(config, file, root, model) for config in configs)


def _listed(project: Project) -> frozenset[str]:
    """Return the names of the models that the project's configuration lists."""
    try:
        found = read_place(project.named, project.plan.host)
    except ArtifactError:
        found = ()  # it is wrong or gone since; the project's own model is known
    return frozenset({project.plan.model, *(item.config.model.name for item in found)})


def _makes(config: Config, file: Path, root: Path, model: str) -> bool:
    """Return whether a configuration makes a model of this name in an artifacts folder."""
    return config.model.name == model and (file.parent / config.artifacts).resolve() == root.resolve()


def _owner(project: Project) -> Path | None:
    """Return the other configuration that ran last in the model's folder; None if there is none."""
    file = _last(project.paths)
    return None if file is None or file.samefile(project.config_file) else Path(os.path.relpath(file))


def _last(paths: Paths) -> Path | None:
    """Return the configuration that ran last in a model's folder; None if the record or the file is gone."""
    try:
        owner = read_record(paths.owner, Owner)
    except RecordError:
        return None
    file = Path(os.path.normpath(paths.root.resolve() / owner.configuration))
    return file if file.is_file() else None


def _own_sections(paths: Paths) -> frozenset[str]:
    """Return the sections whose graphs a point of a search has for itself, and not through links.

    A folder of graphs is its own where layers are left in FP16. So are its whole graphs in int8 and fp8 where their
    pairs or ranges are other ones, and all of them where the network's graph is rewritten.
    """
    whole = [paths.onnx_record(graph) for graph in Graph if graph.precision in QUANTIZED_PRECISIONS]
    if whole[0].parent.is_symlink():
        return frozenset()
    if any(map(Path.is_symlink, whole)):
        return frozenset({"leave_unquantized"})
    rewritten = {"rewrites"} if not paths.onnx_record(Graph.FP32).is_symlink() else set[str]()
    return frozenset({"leave_unquantized", "quantization", *rewritten})


def _shared_results(config: Config, own: frozenset[str]) -> dict[str, object]:
    """Return the settings of the results that the points of a search share.

    Args:
        config: the configuration.
        own: the sections whose results a point has for itself.
    """
    chosen = {"tensorrt", "torch_tensorrt", "gates", *own}
    return {name: value for name, value in _results(config).items() if name not in chosen}


def _results(config: Config) -> dict[str, object]:
    """Return the settings that change results of one name: all but the matrix, the place and the speed of the work."""
    tensorrt = config.tensorrt.model_copy(update={"compute_capabilities": ()})  # the target's name has them
    return {
        "model": config.model.model_copy(update={"download_timeout_seconds": 1.0}),
        "preprocessing": config.preprocessing,
        "data": config.data,
        "profiles": (config.axes, config.checked_sizes),  # graphs name the axes, and the data has images of each size
        "io": {item.io.answer for item in config.io if item.io.output is not OutputForm.LOGITS},  # rounding has them
        "rewrites": config.rewrites,
        "quantization": config.quantization,
        "leave_unquantized": config.leave_unquantized,
        "tensorrt": tensorrt.key_settings,
        "torch_tensorrt": config.torch_tensorrt.build_settings,
        "gates": config.gates,
    }
