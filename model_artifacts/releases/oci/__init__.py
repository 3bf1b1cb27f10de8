"""Releases in OCI registries."""
