"""Runs Model Optimizer; executed by an interpreter that has it, which has nothing of this project.

Arguments: the FP32 graph, an archive of the inputs by name (.npz), the precision, the file to write, and a JSON file
for the answer: `version`, or `missing` with the reason why it cannot be imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(source: str, inputs: str, precision: str, output: str, answer: str) -> None:
    """Write the quantised graph, and the answer before it."""
    try:
        import modelopt  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - another environment has it
        import numpy as np  # noqa: PLC0415 - the same
        from modelopt.onnx.quantization import (  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - the same
            quantize,
        )
    except ImportError as exc:
        Path(answer).write_text(json.dumps({"missing": str(exc)}), encoding="utf-8")
        return
    Path(answer).write_text(json.dumps({"version": modelopt.__version__}), encoding="utf-8")
    with np.load(inputs) as arrays:
        quantize(source, precision, dict(arrays), calibration_eps=["cpu"], output_path=output)


if __name__ == "__main__":
    main(*sys.argv[1:])
