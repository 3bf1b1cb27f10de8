"""Frozen, validated records of the stages' results on disk, one module per stage."""

from pipeline.records.accuracy import AccuracyReport
from pipeline.records.artifact import Artifact
from pipeline.records.benchmark import BenchmarkReport, Conditions, Range
from pipeline.records.data import DataRecord, ImagesOrigin
from pipeline.records.farm import FarmHost, FarmNode, FarmRecord
from pipeline.records.graph import OnnxRecord, TensorCast
from pipeline.records.outcome import Outcome
from pipeline.records.profile import HotFunction, LayerProfile, LayerTime
from pipeline.records.report import ReportRecord
from pipeline.records.sensitivity import LayerSensitivity, Sensitivity
from pipeline.records.source import SourceRecord

__all__ = [
    "AccuracyReport",
    "Artifact",
    "BenchmarkReport",
    "Conditions",
    "DataRecord",
    "FarmHost",
    "FarmNode",
    "FarmRecord",
    "HotFunction",
    "ImagesOrigin",
    "LayerProfile",
    "LayerSensitivity",
    "LayerTime",
    "OnnxRecord",
    "Outcome",
    "Range",
    "ReportRecord",
    "Sensitivity",
    "SourceRecord",
    "TensorCast",
]
