"""The stages in their order: `doit list` prints them, and `doit` runs those that are not on demand.

In each folder `stage.py` does the work and `spec.py` says everything else about it.
"""

from pipeline.stages.benchmark.spec import SPEC as BENCHMARK
from pipeline.stages.build.spec import SPEC as BUILD
from pipeline.stages.data.spec import SPEC as DATA
from pipeline.stages.export.spec import SPEC as EXPORT
from pipeline.stages.load.spec import SPEC as LOAD
from pipeline.stages.manifest.spec import SPEC as MANIFEST
from pipeline.stages.pictures.spec import SPEC as PICTURES
from pipeline.stages.profile.spec import SPEC as PROFILE
from pipeline.stages.propose.spec import SPEC as PROPOSE
from pipeline.stages.quantize.spec import SPEC as QUANTIZE
from pipeline.stages.report.spec import SPEC as REPORT
from pipeline.stages.rounding.spec import SPEC as ROUNDING
from pipeline.stages.sensitivity.spec import SPEC as SENSITIVITY
from pipeline.stages.source.spec import SPEC as SOURCE
from pipeline.stages.validate.spec import SPEC as VALIDATE

STAGES = (
    SOURCE,
    DATA,
    EXPORT,
    QUANTIZE,
    ROUNDING,
    BUILD,
    VALIDATE,
    BENCHMARK,
    MANIFEST,
    REPORT,
    LOAD,
    PROFILE,
    SENSITIVITY,
    PROPOSE,
    PICTURES,
)

__all__ = ["STAGES"]
