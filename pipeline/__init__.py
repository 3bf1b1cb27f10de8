"""Builds, validates, benchmarks and lists the deployable artifacts of a torch model.

`python -m pipeline --help` explains the stages; `doit list` shows them in order.
"""

__version__ = "0.1.0"
