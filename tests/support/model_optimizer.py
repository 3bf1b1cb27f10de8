"""An interpreter that stands in for Model Optimizer's: this one, with a package `modelopt` of a few lines."""

from __future__ import annotations

import sys
from textwrap import dedent
from typing import TYPE_CHECKING

from pipeline.planning.project import Project
from pipeline.stages import STAGES
from tests.support.quantized_graphs import with_fp8

if TYPE_CHECKING:
    from pathlib import Path

PLACES = """
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


class Reader(CalibrationDataReader):
    def __init__(self, batch):
        self._batches = iter([batch])

    def get_next(self):
        return next(self._batches, None)


def quantize(source, mode, data, calibration_eps, output_path):
    assert mode in {"int8", "fp8"} and calibration_eps == ["cpu"]
    kinds = ["Conv", "AveragePool"]
    quantize_static(
        source,
        output_path,
        Reader(data),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        op_types_to_quantize=kinds,
        extra_options={
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": kinds,
            "ForceQuantizeNoInputCheck": True,
        },
    )
"""
"""Pairs in front of convolutions and pools, by ONNX Runtime's quantiser."""


def interpreter(folder: Path, body: str = PLACES, version: str = "0.47.0") -> Path:
    """Return an interpreter whose Model Optimizer is a piece of code.

    Args:
        folder: a new folder for it.
        body: the module `modelopt.onnx.quantization`, with a function `quantize`.
        version: Model Optimizer's version.
    """
    package = folder / "packages" / "modelopt"
    (package / "onnx").mkdir(parents=True)
    (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (package / "onnx" / "__init__.py").touch()
    (package / "onnx" / "quantization.py").write_text(dedent(body))
    return command(folder / "python", f'PYTHONPATH="{package.parent}" exec "{sys.executable}" "$@"')


def command(file: Path, line: str) -> Path:
    """Return an executable file that runs a line of the shell; `-I`, its first argument, is taken away."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\nshift\n{line}\n")
    file.chmod(0o755)
    return file


def placed_by_it(built_folder: Path, folder: Path) -> Project:
    """Return a copy of the finished tiny project that asks for fp8, too, and for Model Optimizer's places."""
    config = with_fp8(built_folder, folder).config_file
    config.write_text(config.read_text() + "quantization: {placement: model_optimizer}\n")
    return Project.load(config, STAGES)
