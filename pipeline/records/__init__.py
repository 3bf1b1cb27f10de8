"""Frozen, validated records of the stages' results on disk, one module per stage."""

from pipeline.records.accuracy import AccuracyReport, Loss, PicturesReport, PixelDistance, Verdict
from pipeline.records.artifact import Artifact
from pipeline.records.benchmark import BenchmarkReport, Conditions, Range, RestartRecord, TimedSet, TimedVariant
from pipeline.records.data import AxisSize, BoxKind, DataRecord, ImagesOrigin, SizedSamples
from pipeline.records.farm import FarmHost, FarmNode, FarmRecord
from pipeline.records.graph import OnnxRecord, TensorCast
from pipeline.records.on_demand.load import LoadReport, LoadRun
from pipeline.records.on_demand.profile import HotFunction, LayerProfile, LayerTime
from pipeline.records.on_demand.proposal import PlacedPair, Proposal
from pipeline.records.on_demand.sensitivity import LayerSensitivity, Sensitivity
from pipeline.records.outcome import Outcome
from pipeline.records.report import ReportRecord
from pipeline.records.rounding import OutputRounding, Rounding, RoundingRun, ShownRounding, SizedRounding
from pipeline.records.source import OnnxSource, ReadFile, SourceRecord, tensor_spec

__all__ = [
    "AccuracyReport",
    "Artifact",
    "AxisSize",
    "BenchmarkReport",
    "BoxKind",
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
    "LoadReport",
    "LoadRun",
    "Loss",
    "OnnxRecord",
    "OnnxSource",
    "Outcome",
    "OutputRounding",
    "PicturesReport",
    "PixelDistance",
    "PlacedPair",
    "Proposal",
    "Range",
    "ReadFile",
    "ReportRecord",
    "RestartRecord",
    "Rounding",
    "RoundingRun",
    "Sensitivity",
    "ShownRounding",
    "SizedRounding",
    "SizedSamples",
    "SourceRecord",
    "TensorCast",
    "TimedSet",
    "TimedVariant",
    "Verdict",
    "tensor_spec",
]
