"""Batch ranges."""
