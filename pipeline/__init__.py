"""Builds, validates, benchmarks and lists the deployable artifacts of a torch model."""
