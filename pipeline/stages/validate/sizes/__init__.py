"""Runs and judgements of artifacts with dynamic axes beside the batch, at other sizes than the network's own."""
