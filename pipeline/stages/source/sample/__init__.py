"""The sample model: a network to try the pipeline with."""
