"""Batches of a model's inputs, of one or of several."""
