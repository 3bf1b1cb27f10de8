"""Resolve an artifact for a host, and load it."""
