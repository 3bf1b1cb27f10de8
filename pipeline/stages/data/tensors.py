"""The arrays of `data.tensors` → samples for calibration and for validation, in a fixed shuffled order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.stages.common.tensors.arrays import open_arrays, problem, require_finite

if TYPE_CHECKING:
    from pipeline.planning.project import Project


def split_tensors(project: Project, files: tuple[Path, Path]) -> int:
    """Write the samples, and return the number of all in the file.

    Args:
        project: the source stage must have run.
        files: the .npy files for calibration and for validation, which get a field for each input.

    Raises:
        ConfigError: the arrays are not the model's inputs, have NaN or infinity, or changed since the source was made.
        DataError: the file is damaged.
    """
    config, source = project.config.data, project.source()
    path = Path(str(config.tensors))
    arrays = open_arrays(project, path)
    if {*arrays.specs} != {*source.named_inputs}:
        text = f"{path} has other arrays than the source was made with; run `{project.doit} source`"
        raise problem(project, text)
    arrays = arrays.ordered([spec.name for spec in source.named_inputs])
    order = np.random.default_rng(0).permutation(arrays.count)
    first = min(config.calibration, max(1, arrays.count // 2))
    for file, chosen in zip(files, (order[:first], order[first : first + config.validation]), strict=True):
        rows = np.lib.format.open_memmap(file, "w+", arrays.row, (len(chosen),))  # type: ignore[no-untyped-call]  # numpy's own
        arrays.rows(chosen, rows)
        rows.flush()
        require_finite(project, arrays, rows)
    return arrays.count
