"""Batches in a row, with the copies of some beside the computation of another."""
