"""The configuration `pipeline.yaml`: its YAML, its settings and their checks."""
