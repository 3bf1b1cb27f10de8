"""Releases: verification, archives, signatures, stores, and model repositories for Triton."""
